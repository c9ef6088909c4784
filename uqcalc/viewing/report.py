"""`write_report`: one page about finished runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uqcalc.files.writing import whole, writable


if TYPE_CHECKING:
    from uqcalc.calculator import ReliableCalculator


def write_report(
    runs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    calculator: ReliableCalculator | None = None,
) -> Path:
    """Write one HTML page about finished runs; it needs no network.

    The page has the verdict on each run in one sentence, its timeline, its events (a
    stretch of steps that were not RELIABLE is one event), the worst structures in three
    dimensions with each atom coloured, a map of all structures, the elements and motifs
    of the unreliable atoms, and what to do next. Of long runs it shows all changes of
    the level and evenly spaced steps; the page says so.

    Parameters
    ----------
    runs : path or sequence of path
        Event logs, files with annotated frames, or folders with logs. Give the
        files of a run after its log. If none follows a log, these are the files beside
        it whose names begin with that of the log.
    output : path
    calculator : ReliableCalculator, optional
        Computes the embeddings of its probe for the map. Without it the map is drawn
        from the descriptors in flagged frames.

    Returns
    -------
    Path
        The absolute path of the page.

    Raises
    ------
    RecordError
        If a file cannot be read.
    MissingExtraError
        Without plotly or chemiscope, which the extra ``report`` installs.
    """
    from uqcalc.viewing.gathering import gather
    from uqcalc.viewing.page import render

    paths = [runs] if isinstance(runs, (str, os.PathLike)) else list(runs)
    target = writable(output, "report")
    text = render(gather(paths, calculator))
    with whole(target) as partial:
        partial.write_text(text, encoding="utf-8")
    return target
