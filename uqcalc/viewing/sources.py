"""Which files belong to which run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from uqcalc.errors import RecordError


_HEADER = b'{"event": "header"'
_FRAMES = (".xyz", ".extxyz", ".traj", ".db")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files of one run.

    Attributes
    ----------
    name : str
    log : Path or None
    frames : tuple of Path
        Files with structures: flagged frames, trajectories, annotated files.
    """

    name: str
    log: Path | None
    frames: tuple[Path, ...]


def is_log(path: Path) -> bool:
    """Return whether a file begins with the header record of an event log."""
    try:
        with path.open("rb") as file:
            return file.read(len(_HEADER)) == _HEADER
    except OSError:  # it was removed just now
        return False


def logs_in(folder: Path) -> list[Path]:
    """Return the event logs of a folder, without its subfolders, by name."""
    return sorted(path for path in folder.glob("*.jsonl") if is_log(path))


def beside(log: Path) -> tuple[Path, ...]:
    """Return the files with structures whose names begin with that of the log.

    ``run_flagged.xyz`` and ``run.traj`` belong to ``run.jsonl``; ``run2.xyz`` does not,
    and neither does ``run_b_flagged.xyz`` if there is a log ``run_b.jsonl``.
    """
    others = [p.stem for p in logs_in(log.parent) if len(p.stem) > len(log.stem)]
    found = []
    for path in sorted(log.parent.glob("*")):
        rest = path.stem.removeprefix(log.stem)
        mine = path.stem.startswith(log.stem) and rest[:1] in ("", "_", "-", ".")
        theirs = any(path.stem.startswith(stem) for stem in others)
        if mine and not theirs and path.suffix in _FRAMES and path.is_file():
            found.append(path)
    return tuple(found)


def runs_of(paths: Sequence[Path]) -> list[RunFiles]:
    """Return the runs that files and folders stand for.

    A log begins a run; files with structures that follow it belong to this run. If none
    follows, these are the files of `beside`. Files with structures before the first log
    are a run each. A folder stands for its logs.

    Raises
    ------
    RecordError
        If a path does not exist, a folder has no log, or a file is neither.
    """
    found: list[tuple[Path | None, list[Path]]] = []
    for path in paths:
        if path.is_dir():
            logs = logs_in(path)
            if not logs:
                msg = (
                    f"folder must have an event log (*.jsonl), got {path} without one; "
                    "pass the files themselves"
                )
                raise RecordError(msg)
            found += [(log, []) for log in logs]
        elif not path.is_file():
            msg = f"file must exist, got {path}; check its name and folder"
            raise RecordError(msg)
        elif path.suffix == ".jsonl":
            _check_log(path)
            found.append((path, []))
        elif found and found[-1][0] is not None:
            found[-1][1].append(path)
        else:
            found.append((None, [path]))
    return _named(found)


def _check_log(path: Path) -> None:
    if not is_log(path):
        msg = (
            f"event log must begin with a header record, got {path} without one; pass "
            "a file that Monitor or `uqcalc run` wrote"
        )
        raise RecordError(msg)


def _named(found: Iterable[tuple[Path | None, list[Path]]]) -> list[RunFiles]:
    runs = []
    for log, frames in found:
        first = frames[0] if log is None else log
        given = tuple(frames) if frames or log is None else beside(log)
        runs.append(RunFiles(first.stem, log, given))
    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    return [
        RunFiles(f"{_first(run).parent.name}/{run.name}", run.log, run.frames)
        for run in runs
    ]


def _first(run: RunFiles) -> Path:
    return (run.frames[0] if run.log is None else run.log).absolute()
