"""Text summary of a monitored run."""

from __future__ import annotations

from collections.abc import Sequence

from uqcalc.asking import asks_words
from uqcalc.records import BandEvent, Event
from uqcalc.watching.asker import Asker
from uqcalc.watching.band import BandAssessment
from uqcalc.watching.eventlog import EventLog
from uqcalc.watching.harvest import Harvest
from uqcalc.watching.history import History
from uqcalc.watching.outputs import Outputs
from uqcalc.watching.rewinding import Rewound


def summarise(  # noqa: PLR0913  (all that a run has)
    history: History,
    acted_on: Event | None,
    *,
    halted: bool,
    reason: str,
    outputs: Outputs,
    first_step: int | None = None,
    band: BandAssessment | None = None,
    harvest: Harvest | None = None,
    asker: Asker | None = None,
    rewinds: Sequence[Rewound] = (),
    validity: str = "",
    guarantee: str = "",
) -> str:
    """Return a few lines: steps and levels, the end, the worst atoms, next steps."""
    if history.first is None:
        return (
            "Nothing was watched yet: no step was run since the monitor was attached."
        )
    counts = ", ".join(f"{n} {lv.name}" for lv, n in history.counts().items())
    counts += f", {history.unjudged} not judged" if history.unjudged else ""
    lines = [f"Watched steps {history.first.step} to {history[-1].step}: {counts}."]
    if acted_on is None:
        lines.append("The run was not halted.")
    else:
        flagged_as = "Rewound" if rewinds else "Flagged, but not halted"
        lines.append(f"{'Halted' if halted else flagged_as}: {reason}.")
        lines += _advice(acted_on)
    lines += [f"Probe: {validity}."] if validity else []
    lines += [f"Guarantee: {guarantee}"] if guarantee else []
    lines += [asks_words(history.asks)] if history.asks else []
    lines += [part.words() for part in (asker, harvest) if part is not None]
    if rewinds:
        gone = ", ".join(f"{r.step} to {r.to_step}" for r in rewinds)
        noun = "time" if len(rewinds) == 1 else "times"
        lines.append(
            f"Rewound {len(rewinds)} {noun}, from step {gone}. The steps in between "
            "are not part of the run any more: uqcalc.reliable_frames leaves them out."
        )
    if band is not None:
        images = ", ".join(
            f"{index} {'not judged' if level is None else level.name}"
            for index, level in enumerate(band.levels)
        )
        lines += [f"Images at the last step: {images}.", band.barrier_words()]
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
            f"This run continues from step {first_step}, the last saved step of a run "
            f"that was killed at step {log.last_step}."
        ]
    return [f"The log continues one that ended at step {log.last_step}."]


def _advice(event: Event) -> list[str]:
    lines = []
    if event.worst_atoms:
        atoms = ", ".join(str(index) for index in event.worst_atoms)
        image = f" of image {event.image}" if isinstance(event, BandEvent) else ""
        lines.append(f"Worst atoms (indices{image}): {atoms}.")
    lines.append(
        "Next: compute a reference for the flagged frames. If you accept their "
        "errors, fit the probe with a larger boundary, or raise the limit of another "
        "signal. Do not raise the limit on the risk 1 - P(reliable): a larger limit "
        "also accepts true failures. If the errors are too large, train the potential "
        f"on these frames, or run under milder conditions than at step {event.step}."
    )
    return lines
