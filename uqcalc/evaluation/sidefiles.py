"""Where the scores of a probe are written: three files with one name."""

from __future__ import annotations

import os
from pathlib import Path

from uqcalc.files.writing import replaceable


_BEGINNING = '{\n "card": {'  # of a file of `uqcalc.evaluation.Evaluation.to_dict`


def side_files(stem: str | os.PathLike[str]) -> tuple[Path, Path, Path]:
    """Return ``STEM.json``, ``STEM.png`` and ``STEM.html``, where scores are written.

    Raises
    ------
    RecordError
        If the folder does not exist, or ``STEM.json`` is something else than scores: it
        can be a database of labelled frames.
    """
    base = Path(stem).absolute()
    numbers, picture, page = (
        base.with_name(f"{base.name}.{ending}") for ending in ("json", "png", "html")
    )
    return replaceable(numbers, _BEGINNING, "scores"), picture, page
