"""A monitored run in words."""

from __future__ import annotations

from uqcalc.records import Event
from uqcalc.watching.eventlog import EventLog
from uqcalc.watching.history import History
from uqcalc.watching.outputs import Outputs


def summarise(
    history: History,
    acted_on: Event | None,
    *,
    halted: bool,
    reason: str,
    outputs: Outputs,
    first_step: int | None = None,
) -> str:
    """Return a few lines: what was watched, how it ended, which atoms, what next."""
    if history.first is None:
        return "Nothing watched yet: no step was run since the monitor was attached."
    counts = ", ".join(f"{n} {lv.name}" for lv, n in history.counts().items())
    lines = [f"Watched steps {history.first.step} to {history[-1].step}: {counts}."]
    if acted_on is None:
        lines.append("It was not halted: the policy saw no reason to act.")
    else:
        lines.append(f"{'Halted' if halted else 'Went on, but was flagged'}: {reason}.")
        lines += _advice(acted_on)
    log, flagged = outputs.log, outputs.flagged
    if log is not None:
        lines.append(f"Log: {log.path}.")
        lines += _continued(log, first_step)
    if flagged is not None and flagged.written:
        left = flagged.left_out
        lines.append(
            f"Flagged frames: {flagged.path} ({flagged.written} written"
            + (f", {left} more left out beyond the cap)." if left else ").")
        )
    return "\n".join([*lines, *outputs.words()])


def _continued(log: EventLog, first_step: int | None) -> list[str]:
    if log.last_step is None:
        return []
    if first_step is not None:
        return [
            f"It went on from step {first_step}, the last that was saved of a run that "
            f"was ended from outside at step {log.last_step}."
        ]
    return [
        f"It continues a log that ended at step {log.last_step}, whose "
        "geometry is taken to be the one that this run began with."
    ]


def _advice(event: Event) -> list[str]:
    lines = []
    if event.worst_atoms:
        atoms = ", ".join(str(index) for index in event.worst_atoms)
        lines.append(f"Atoms that weighed most (indices): {atoms}.")
    lines.append(
        "Next: compute a reference for the flagged frames. If their errors are ones "
        "you can live with, widen the boundary of the probe (fit it with a larger "
        "one), or the limit of another signal; a higher limit on 1 - P would let true "
        "failures pass, too. If they are wrong, train the potential on them or run "
        f"under milder conditions than at step {event.step}."
    )
    return lines
