"""The live view of runs in a terminal."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uqcalc.records import Level
from uqcalc.showing import harmless
from uqcalc.viewing.following import Follower, Watched


if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

# Basic colours, which every terminal has; the letters distinguish levels without
# colour.
_STYLES = {
    Level.RELIABLE: "blue",
    Level.SUSPECT: "yellow",
    Level.UNRELIABLE: "bold red",
}
_LETTERS = {Level.RELIABLE: "▁", Level.SUSPECT: "▄", Level.UNRELIABLE: "█"}
_STATUS = {"running": "green", "halted": "bold red", "finished": "blue",
           "quiet": "yellow", "gone": "yellow", "waiting": "dim"}  # fmt: skip
_STRIP = 24
_COLUMNS = (
    "run", "status", "step", "time", "steps/s", "left", "P", "last levels",
)  # fmt: skip


def watch(
    place: Path, console: Console, *, every: float = 1.0, once: bool = False
) -> None:
    """Show the runs of a folder, or of one log, until Ctrl-C or until all have ended.

    Parameters
    ----------
    place : Path
    console : rich Console
    every : float
        Time between two looks in s.
    once : bool
        Print the state once and return.
    """
    from rich.live import Live

    watched = Watched(place)
    if once:
        console.print(screen(watched.poll()))
        return
    with Live(screen(watched.poll()), console=console, auto_refresh=False) as live:
        while not _all_ended(watched.runs.values()):
            time.sleep(every)
            live.update(screen(watched.poll()), refresh=True)


def _all_ended(runs: Iterable[Follower]) -> bool:
    found = [run.status for run in runs]
    return bool(found) and set(found) <= {"halted", "finished", "gone"}


def screen(runs: Sequence[Follower]) -> RenderableType:
    """Return what is shown of the runs: a row each, and below it the reason."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if not runs:
        return Text("Waiting for an event log (*.jsonl).")
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    lines: list[Text] = []
    for run in runs:
        status = Text(run.status, style=_STATUS[run.status])
        last = run.last or {}
        table.add_row(
            Text(harmless(run.path.stem)),
            status,
            str(last.get("step", "")),
            _time(last.get("time_fs")),
            "" if run.rate is None else f"{run.rate:.3g}",
            _duration(run.left_s),
            _probability(run),
            strip(run),
        )
        said = [(text, "dim") for text in run.notes]
        if run.why:
            said.append((run.why, "" if run.level is None else _STYLES[run.level]))
        lines += [Text(harmless(f"{run.path.stem}: {t}"), style=s) for t, s in said]
    key = Text("last levels: ")
    for level in Level:
        key.append(f"{_LETTERS[level]} {level.name}  ", style=_STYLES[level])
    return Group(table, *lines, key)


def strip(run: Follower, width: int = _STRIP) -> Text:
    """Return the levels of the last steps, one letter for each; blank if not judged."""
    from rich.text import Text

    text = Text()
    for level in run.levels[-width:]:
        text.append(" " if level is None else _LETTERS[level],
                    style="" if level is None else _STYLES[level])  # fmt: skip
    return text


def _probability(run: Follower) -> str:
    values = (run.last or {}).get("values") or {}
    found = values.get("probe_reliability")
    return f"{found:.2f}" if isinstance(found, float) else ""


def _time(time_fs: object) -> str:
    return f"{time_fs / 1000:.4g} ps" if isinstance(time_fs, (int, float)) else ""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
