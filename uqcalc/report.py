"""A monitored run in words."""

from __future__ import annotations

from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from uqcalc.monitor import Event, Monitor


def summarise(monitor: Monitor) -> str:
    """Return a few lines: what was watched, how it ended, which atoms, what next."""
    if not monitor.history:
        return "Nothing watched yet: no step was run since the monitor was attached."
    first, last = monitor.history[0], monitor.history[-1]
    counts = ", ".join(f"{n} {level.name}" for level, n in monitor.counts().items())
    lines = [f"Watched steps {first.step} to {last.step}: {counts}."]
    lines += _ending(monitor, monitor.acted_on)
    if monitor.log is not None:
        lines.append(f"Log: {monitor.log.path}.")
    if monitor.flagged is not None and monitor.flagged.written:
        left = monitor.flagged.left_out
        lines.append(
            f"Flagged frames: {monitor.flagged.path} ({monitor.flagged.written} written"
            + (f", {left} more left out beyond the cap)." if left else ").")
        )
    return "\n".join(lines)


def _ending(monitor: Monitor, event: Event | None) -> list[str]:
    if event is None:
        return ["It was not halted: the policy saw no reason to act."]
    how = "Halted" if monitor.halted else "Went on, but was flagged"
    lines = [f"{how}: {monitor.reason}."]
    if event.worst_atoms:
        atoms = ", ".join(str(index) for index in event.worst_atoms)
        lines.append(f"Atoms that weighed most (indices): {atoms}.")
    lines.append(
        "Next: compute a reference for the flagged frames; if they are right, raise "
        "the limit, if they are wrong, train the potential on them or run under "
        f"milder conditions than at step {event.step}."
    )
    return lines
