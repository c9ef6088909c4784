"""`run_loop`: run, select, label, train, again; every round on disk."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uqcalc.errors import MissingExtraError, RecordError, RunFileError
from uqcalc.files.writing import OneWriter, whole
from uqcalc.learning.loopfile import LoopFile, read_loop_file
from uqcalc.learning.picture import save_plot
from uqcalc.learning.rounds import Round, RoundRow
from uqcalc.references.named import FromText
from uqcalc.runfile.file import read_run_file


if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class LoopReport:
    """Results of a learning loop.

    Attributes
    ----------
    rounds : tuple of RoundRow
    reason : str
        Why it ended.
    folder : Path
    """

    rounds: tuple[RoundRow, ...]
    reason: str
    folder: Path

    def __str__(self) -> str:
        names = ["round", "runs", "steps", "wrecked", "broken", "flagged"]
        names += ["labels", "failed", "meV/Å"]
        lines = ["  ".join(names)]
        for row in self.rounds:
            error = "-" if row.error is None else f"{1000 * row.error:.0f}"
            counts = (row.runs, row.steps, row.wrecked, row.broken, row.flagged)
            cells = [row.number, *counts, row.labelled, row.failed, error]
            pairs = zip(cells, names, strict=True)
            lines.append("  ".join(f"{cell!s:>{len(name)}}" for cell, name in pairs))
        return "\n".join([*lines, f"Ended: {self.reason}. Rounds: {self.folder}."])

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw error, flagged frames and wrecked runs of each round."""
        from uqcalc.learning.picture import plot_rounds

        return plot_rounds(self.rounds, ax)


def run_loop(
    path: str | os.PathLike[str], *, say: Callable[[str], object] | None = None
) -> LoopReport:
    """Improve a potential on its own flagged frames, round after round.

    A round runs the run file under a `Monitor` (by default with
    ``on_unreliable="harvest"``), chooses frames, labels them with the reference, and
    calls the commands that train the potential and make its probe. The loop ends if
    the runs of a round flag nothing, if the label budget is spent, or after the last
    round. The last model is then run once more, without labels, and has a row of its
    own. After a kill the same call continues; a stage whose file exists is not
    repeated.

    Parameters
    ----------
    path : path
        Loop file (`uqcalc.learning.loopfile.LoopFile`).
    say : callable, optional
        Called with one line of text after each run and each stage.

    Raises
    ------
    RunFileError
        If the loop file or its run file is invalid.
    RecordError
        If the folder of the rounds belongs to another loop.
    LoopError
        If a command of the user fails.
    """
    loop = read_loop_file(path)
    _check_before_any_run(loop, path)
    folder = loop.rounds_folder
    folder.mkdir(exist_ok=True)
    with OneWriter(folder / "loop.json"):
        _check_same(loop, folder / "loop.json")
        rows, reason = _rounds(loop, say or (lambda _: None))
    report = LoopReport(tuple(rows), reason, folder)
    save_plot(report.plot, folder / "rounds.png")
    with whole(folder / "rounds.txt") as partial:
        partial.write_text(f"{report}\n", encoding="utf-8")
    return report


def _rounds(loop: LoopFile, say: Callable[[str], object]) -> tuple[list[RoundRow], str]:
    rows: list[RoundRow] = []
    before: Round | None = None
    reason = f"{loop.rounds} rounds are done"
    for number in range(1, loop.rounds + 1):
        spent = sum(row.labelled + row.failed for row in rows)
        left = None if loop.budget is None else loop.budget - spent
        if left is not None and left <= 0:
            reason = f"the budget of {loop.budget} labels is spent"
            break
        one = Round(loop, number, before, left, say)
        row = one.done() or one.run()
        rows.append(row)
        if not row.flagged:
            return rows, f"nothing was flagged in {row.steps} steps"
        if not row.labelled:
            return rows, "no frame could be labelled"
        before = one
    if before is not None and _can_judge_a_trained_model(loop):
        rows.append(Round(loop, len(rows) + 1, before, 0, say).only_run())
    return rows, reason


def _can_judge_a_trained_model(loop: LoopFile) -> bool:
    """Return whether runs of a trained model have verdicts: a probe, or Force Delta."""
    if "{model_out}" not in loop.model or loop.refit is not None:
        return True
    return read_run_file(loop.at(loop.run)).force_delta is not None


def _check_before_any_run(loop: LoopFile, path: str | os.PathLike[str]) -> None:
    """Find errors that would stop the loop after hours of runs.

    Raises
    ------
    RunFileError
        If the reference cannot be found, or later rounds would have no probe.
    """
    problems = []
    try:
        FromText(loop.reference_at).find()
    except (RecordError, MissingExtraError) as error:
        problems.append(f"reference: {error}")
    run = read_run_file(loop.at(loop.run))
    if run.policy.halting_guarantee is not None:
        problems.append(
            "run: must leave out policy.halting_guarantee, which is for one potential"
        )
    if run.functional_spread is not None and "{model_out}" in loop.model:
        problems.append(
            "run: must leave out functional_spread, whose perturbation is for one "
            "potential, where the potential is trained"
        )
    if loop.rounds > 1 and not _can_judge_a_trained_model(loop):
        problems.append(
            "refit: must be given, since a probe is for one potential, and the trained "
            "one needs another; or write rounds: 1"
        )
    if problems:
        raise RunFileError(str(path), problems)


def _check_same(loop: LoopFile, path: Path) -> None:
    """Write the settings of the loop, or compare them with those in the folder.

    Raises
    ------
    RecordError
        If another loop file or run file has filled the folder.
    """
    run = loop.at(loop.run).read_bytes()
    # These may change: limits, and commands, so that a user can correct a mistake
    # (the log of each command begins with the command).
    free = {"rounds", "budget", "workers", "train", "refit"}
    now = loop.model_dump(mode="json", exclude=free)
    now["run_sha256"] = hashlib.sha256(run).hexdigest()
    if not path.exists():
        with whole(path) as partial:
            partial.write_text(json.dumps(now, indent=1), encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before != now:
        changed = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
        msg = (
            f"folder of the rounds must belong to this loop, got {path.parent} with "
            f"other {', '.join(changed)}; choose another folder, or move it away"
        )
        raise RecordError(msg)
