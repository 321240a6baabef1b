"""What a command is to write is looked at before its work, and refused in one line."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest

from rmd_dist.commands import prepare
from rmd_dist.errors import ConfigError

# Command -> its words but for the place of the output, and what of its work must not have begun by then.
COMMANDS = {
    "prepare": ("noise --dataset digits --out data --manifest", "rmd_dist.commands.prepare.open_dataset"),
    "compare": ("run --plot", "rmd_dist.commands.compare.rows"),
    "report": ("study --out", "rmd_dist.report.build.make_report"),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("place", ["file/x", "/proc/x"])
def test_an_unwritable_output_is_refused_before_the_work(command, place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    words, work = COMMANDS[command]
    monkeypatch.setattr(work, lambda *_, **__: pytest.fail("work was begun"))
    monkeypatch.setattr("rmd_dist.study.folder.read_study", lambda _: None)
    main = importlib.import_module(f"rmd_dist.commands.{command}").main
    with pytest.raises(ConfigError, match="cannot write to") as caught:
        main([*words.split(), place])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["prepare", "compare"])
def test_a_folder_is_no_file(command, tmp_path, monkeypatch):
    words, work = COMMANDS[command]
    monkeypatch.setattr(work, lambda *_, **__: pytest.fail("work was begun"))
    main = importlib.import_module(f"rmd_dist.commands.{command}").main
    with pytest.raises(ConfigError, match="is a folder; give the name of a file"):
        main([*words.split(), str(tmp_path)])


def test_a_file_is_no_folder(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("rmd_dist.study.folder.read_study", lambda _: None)
    main = importlib.import_module("rmd_dist.commands.report").main
    with pytest.raises(ConfigError, match="cannot write to"):
        main(["study", "--out", str(tmp_path / "file")])


def test_the_manifest_of_labels_is_written(tmp_path, capsys):
    out = tmp_path / "new" / "m.json"
    prepare.main(["noise", "--dataset", "digits", "--out", str(tmp_path), "--manifest", str(out)])
    manifest = json.loads(out.read_text())
    assert manifest["protocol"] == "symmetric" and "transitions" in manifest
    assert "symmetric" in capsys.readouterr().out
