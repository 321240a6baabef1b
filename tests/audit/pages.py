"""A small page for tests, with names that are hard to show and to quote."""

from __future__ import annotations

import numpy as np

from rmd_dist.audit.page import Case, Page

CLASSES = (
    "cat",
    "</script><script>document.title = 'taken over'</script>",
    'a "quoted", name;\twith\r\nline ends',
    "שלום",  # written from right to left
    "\U0001f408 & <b>\u2028" + "long " * 60,
    "",
)


def page(count: int, more: int = 0) -> Page:
    """`count` cases over CLASSES, every path another trap; the pictures are of three sizes."""
    rng = np.random.default_rng(0)
    sizes = ((32, 32), (300, 40), (60, 200))
    pictures = {
        key: rng.integers(0, 256, (*sizes[key % 3], 3), dtype=np.uint8) for key in range(min(count, 30) + 3)
    }
    classes = len(CLASSES)
    cases = [
        Case(
            index=3 * number,
            path=f"{'folder/' * (number % 9)}{CLASSES[number % classes]}\udcff{number}.png",
            given=number % classes,
            suggested=(number + 1 + number // classes % (classes - 1)) % classes,
            p_given=0.1,
            p_suggested=float("nan") if number == 1 else 0.8,
            picture=number % 30,
            examples=(1, 2)[: number % 3],
            duplicate_of="<img src=x onerror=alert(1)>" if number % 5 == 0 else "",
            conflict=number % 10 == 0,
        )
        for number in range(count)
    ]
    matrix = np.full((classes, classes), 0.1 / (classes - 1))
    np.fill_diagonal(matrix, 0.9)
    matrix[0, 1] += 0.05
    summary = [("images", "3 000"), ("data", "<i>\udcff")]
    return Page("<u>audit</u> & 'co'", "0f3a", CLASSES, cases, pictures, summary, matrix, more)
