"""A model on disk as ONNX, checked against PyTorch by ONNX Runtime.

The same as `rmd export`.

python launch/export.py RUN_FOLDER_OR_FILE --onnx model.onnx
"""

from rmd_dist.commands.entry import run
from rmd_dist.commands.export import main

if __name__ == "__main__":
    run(main)
