"""Sentences of a report on a run: its verdict, its facts, and the next steps."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from uqcalc.asking import asks_words
from uqcalc.records import Level
from uqcalc.showing import in_words
from uqcalc.viewing.gathering import Run
from uqcalc.viewing.trouble import ranked


_MOST_STEPS = 10
_LABELS = 50  # frames to choose, as the default of `uqcalc select`


def verdict(run: Run) -> str:
    """Return the verdict on a run in one sentence."""
    judged = sum(run.levels.values())
    if not judged:
        return "Nothing was judged, so nothing is known about the reliability."
    shares = [
        f"{_share(n, judged)} {level.name}"
        for level in Level
        if (n := run.levels.get(level, 0))
    ]
    what = "steps" if run.files.log is not None else "frames"
    counts = f"{judged} judged {what} were {_listed(shares)}"
    counts += f" ({run.unjudged} more were not judged)" if run.unjudged else ""
    if run.files.log is None:
        return f"{counts[0].upper()}{counts[1:]}."
    return f"{_ended(run)}: {counts}."


def _ended(run: Run) -> str:
    last = "" if not len(run.track) else f" at step {run.track.step[-1]}"
    if run.track.timed:
        last += f" ({run.track.x[-1]:.4g} ps)"
    if run.end is None:
        return f"Running, or killed{last}"
    if run.end.get("how") == "halted":
        return f"Halted{last}"
    converged = {True: ", converged", False: ", not converged", None: ""}
    return f"Finished{last}{converged[run.end.get('converged')]}"


def tone(run: Run) -> str:
    """Return "halted", "fine" (all judged steps were RELIABLE) or ""."""
    if run.end is not None and run.end.get("how") == "halted":
        return "halted"
    judged = sum(run.levels.values())
    return "fine" if judged and run.levels.get(Level.RELIABLE, 0) == judged else ""


def facts(run: Run) -> list[tuple[str, str]]:
    """Return rows: why it ended, what was watched, and by which probe."""
    header, track = run.track.run, run.track
    rows = []
    if run.end is not None and run.end.get("reason"):
        rows.append(("why", str(run.end["reason"])))
    atoms = "" if track.atoms is None else f", {track.atoms} atoms"
    rows.append(("structure", (track.formula or "not stated") + atoms))
    if header.get("dynamics"):
        step = header.get("timestep_fs")
        text = str(header["dynamics"])
        rows.append(
            ("dynamics", text if step is None else f"{text}, {step:g} fs a step")
        )
    rows += _probe_rows(run)
    asks = header.get("ask") or (run.end or {}).get("ask") or {}
    rows += [("to ask the reference", asks_words(asks))] if asks else []
    files = [run.files.log, *run.files.frames]
    rows.append(("files", ", ".join(path.name for path in files if path is not None)))
    return rows


def _probe_rows(run: Run) -> list[tuple[str, str]]:
    from uqcalc.probe.card import Card
    from uqcalc.probe.validity import validity

    given = run.track.run.get("probe")
    if not given:
        return []
    card = Card.from_dict(dict(given))
    rows = [("probe", card.question.replace("<=", "≤"))]
    rows.append(("boundary", in_words(card.boundary, card.unit, both=True)))
    rows.append(("valid", validity(card)))
    if card.guarantee is not None:
        rows.append(("guarantee", str(card.guarantee)))
    return rows


def notes_of(run: Run) -> list[str]:
    """Return what a reader must know about the files of a run."""
    notes = [*run.seen.notes]
    for path, count in run.seen.plain.items():
        output = path.with_name(f"{path.stem}_judged.xyz").name
        notes.append(
            f"{count} frames of {path.name} have no verdict and are left out. Judge "
            f"them with: uqcalc annotate {shlex.quote(path.name)} -o "
            f"{shlex.quote(output)}"
        )
    if run.files.log is not None and run.end is None:
        notes.append(
            "The log has no end record: the run goes on, or it was killed after its "
            "last step."
        )
    if run.files.log is not None and not run.files.frames:
        notes.append(
            "There are no structures: no file beside the log has a name that begins "
            "with that of the log. Name the files after the log on the command line."
        )
    return notes


def next_steps(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return sentences with the command of each, or an empty one."""
    judged = sum(sum(run.levels.values()) for run in runs)
    troubles = [trouble for run in runs for trouble in run.troubles]
    if not judged:
        text = "Judge the frames of a trajectory."
        return [(text, "uqcalc annotate md.traj -o judged.xyz")]
    if not troubles:
        return [
            (
                "No label is needed for these runs: all judged steps were RELIABLE. "
                "This holds for the quantity and the scope of the probe only; check "
                "some frames with the reference method all the same.",
                "",
            )
        ]
    return [
        *_label_steps(runs),
        (
            "Train the potential on the labels if the errors are too large. If you "
            "accept the errors, fit a probe with a larger boundary.",
            "uqcalc fit labelled.xyz --group uqcalc_event -o new.probe",
        ),
    ]


def _label_steps(runs: Sequence[Run]) -> list[tuple[str, str]]:
    steps = []
    for run in runs:
        worst = [str(t.worst) for t in ranked(run.troubles)[:_MOST_STEPS]]
        if worst:
            more = len(run.troubles) - len(worst)
            many = f" and {more} more" if more else ""
            steps.append(f"{run.name}: {', '.join(worst)}{many}")
    files = [_shown(path) for run in runs for path in _labellable(run)]
    text = "Compute reference values for the worst step of each event"
    text += f" ({'; '.join(steps)})"
    if not files:
        return [
            (
                f"{text}. Their structures were not saved: repeat the run with "
                'Monitor(..., flagged="flagged.xyz").',
                "",
            )
        ]
    names = " ".join(files)
    return [
        (
            f"{text}. This command chooses frames that differ from each other:",
            f"uqcalc select {names} -n {_LABELS} -o chosen.xyz",
        ),
        (
            "Compute their reference values, with GFN2-xTB or your own method:",
            "uqcalc label chosen.xyz -o labelled.xyz --reference my_dft.py:reference",
        ),
    ]


def _labellable(run: Run) -> list[Path]:
    """Return the files whose frames have descriptors; all annotated ones if none."""
    described = {f.file for f in run.seen.frames if f.descriptor is not None}
    every = {f.file for f in run.seen.frames}
    return [run.seen.files[k] for k in sorted(described or every)]


def _shown(path: Path) -> str:
    return shlex.quote(str(path))


def _share(n: int, of: int) -> str:
    return f"{n / of:.1%}" if n < of else "all"


def _listed(parts: Sequence[str]) -> str:
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"
