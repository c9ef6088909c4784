"""All data of a report on runs, read from their files."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.symbols import string2symbols

from uqcalc.plotting.structure import shades_of
from uqcalc.plotting.style import with_unit
from uqcalc.plotting.track import Rows, Track
from uqcalc.records import Level
from uqcalc.viewing.frames import FramesSeen, SeenFrame, chosen_frames
from uqcalc.viewing.maps import map_of
from uqcalc.viewing.motifs import Enrichment, MotifCounts
from uqcalc.viewing.sources import RunFiles, runs_of
from uqcalc.viewing.structures import Shown, dataset
from uqcalc.viewing.trouble import Trouble, ranked, troubles_of
from uqcalc.watching.eventlog import read_log, read_standing


if TYPE_CHECKING:
    from uqcalc.calculator import ReliableCalculator

_MOST_BUTTONS = 12
_COLOURS = {
    "reliability": "the probability that the force of the atom is reliable",
    "importance": "the attention that the probe pays to the atom",
    "force_delta": "Force Delta of the atom",
}


@dataclass
class Run:
    """One run: its track, its events and its frames.

    Attributes
    ----------
    files : RunFiles
    track : Track
    troubles : list of Trouble
    seen : FramesSeen
    end : mapping or None
        End record of the log.
    about : list of (str, str)
        Rows about the probe and the settings.
    saved : list of (float, int)
        Of each structure in the page its place on the axis of the track, and its number
        among the structures of all runs.
    """

    files: RunFiles
    track: Track
    troubles: list[Trouble]
    seen: FramesSeen
    end: Mapping[str, Any] | None
    about: list[tuple[str, str]]
    levels: Counter[Level] = field(default_factory=Counter)
    unjudged: int = 0
    saved: list[tuple[float, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the log or of the file."""
        return self.files.name

    @property
    def symbols(self) -> list[str]:
        """Element of each atom; empty if unknown."""
        try:
            return list(string2symbols(str(self.track.run["formula"])))
        except (KeyError, ValueError):
            return []


@dataclass
class Gathered:
    """The runs of a report, and what is drawn of all of them together."""

    runs: list[Run]
    elements: list[Enrichment] = field(default_factory=list)
    motifs: list[Enrichment] = field(default_factory=list)
    dataset: dict[str, Any] | None = None
    worst: list[tuple[int, str]] = field(default_factory=list)
    map_text: str = ""
    colour_text: str = ""
    structures_text: str = ""


def gather(
    paths: Sequence[str | os.PathLike[str]],
    calculator: ReliableCalculator | None = None,
) -> Gathered:
    """Read the files of runs.

    Parameters
    ----------
    paths : sequence of path
        As for `uqcalc.viewing.sources.runs_of`.
    calculator : ReliableCalculator, optional
        Computes the embeddings of its probe for the map. Without it the map is drawn
        from the descriptors in the frames.

    Raises
    ------
    RecordError
        If a file cannot be read.
    """
    runs = [_run(files) for files in runs_of([Path(path) for path in paths])]
    found = Gathered(runs)
    counts = MotifCounts(frames=[pair for r in runs for pair in r.seen.motifs.frames])
    found.elements, found.motifs = counts.elements(), counts.motifs()
    _add_structures(found, calculator)
    return found


def _run(files: RunFiles) -> Run:
    seen, from_frames = FramesSeen.of(files.frames, stepped=files.log is not None)
    rows, levels, unjudged = Rows(), Counter[Level](), 0
    if files.log is None:
        header = {"event": "header", "run": {"formula": seen.formula}}
        for record in [header, *from_frames]:
            rows.add(record)
        troubles = troubles_of(from_frames)
    else:
        for record in read_log(files.log):
            rows.add(record)
        troubles = troubles_of(_standing(files.log))
    track = rows.track()
    for level, n in zip(*np.unique(track.level, return_counts=True), strict=True):
        if math.isnan(level):
            unjudged += int(n)
        else:
            levels[Level(int(level))] = int(n)
    return Run(files, track, troubles, seen, rows.end, _about(rows.run, seen),
               levels, unjudged)  # fmt: skip


def _standing(log: Path) -> Iterator[Mapping[str, Any]]:
    return (r for r in read_standing(log) if r.get("event") == "step")


def _about(run: Mapping[str, Any], seen: FramesSeen) -> list[tuple[str, str]]:
    """Return the card of the probe in the header, or what the frames say of it."""
    from uqcalc.evaluation.cardinfo import card_info
    from uqcalc.probe.card import Card

    card = run.get("probe")
    if card:
        return card_info(Card.from_dict(dict(card))).rows
    rows = [("signals", ", ".join(run.get("signals", ())) or "not stated")]
    rows += [("file", str(path)) for path in seen.files]
    return rows


def _add_structures(found: Gathered, calculator: ReliableCalculator | None) -> None:
    """Choose structures of all runs, place them in the map, and describe both."""
    shown: list[Shown] = []
    chosen: list[SeenFrame] = []
    total = 0
    for run in found.runs:
        spans = [(t.first, t.last) for t in ranked(run.troubles)]
        frames, worst = chosen_frames(run.seen.frames, spans)
        start = len(chosen)
        for place in worst[:_MOST_BUTTONS]:
            name = f"{run.name}, " if len(found.runs) > 1 else ""
            found.worst.append((start + place, f"{name}step {frames[place].step}"))
        chosen += frames
        total += len(run.seen.frames)
        for frame, atoms in zip(frames, run.seen.structures(frames), strict=True):
            x = run.track.place(frame.step)
            if math.isfinite(x):
                run.saved.append((x, len(shown)))
            shown.append(Shown(atoms, run.name, frame.step, x, frame.level,
                               frame.reliability, (x, frame.reliability)))  # fmt: skip
    if not shown:
        return
    x_name = with_unit(*found.runs[0].track.axis)
    axes, found.map_text = _place(shown, chosen, calculator, x_name)
    first = found.worst[0][0] if found.worst else 0
    found.dataset = dataset(shown, axes, x_name, first)
    common = set.intersection(*(set(shades_of(one.atoms)) for one in shown))
    found.colour_text = next((_COLOURS[n] for n in _COLOURS if n in common), "element")
    found.structures_text = f"{len(shown)} of {total} saved frames are in this page" + (
        "." if len(shown) == total else ": the worst of each event, then evenly spaced."
    )


def _place(
    shown: list[Shown],
    chosen: Sequence[SeenFrame],
    calculator: ReliableCalculator | None,
    x_name: str,
) -> tuple[tuple[str, str], str]:
    """Give each structure its place; return the names of the axes and a sentence."""
    vectors, what = _vectors([one.atoms for one in shown], chosen, calculator)
    if vectors is None:
        text = (
            f"The map shows P against the {x_name.partition(' [')[0]}, since not "
            "all frames have a descriptor: name the potential with --model to draw a "
            "map of embeddings."
        )
        return (x_name, "P(reliable)"), text
    places, method = map_of(vectors)
    for k, one in enumerate(shown):
        place = (float(places[k, 0]), float(places[k, 1]))
        shown[k] = Shown(one.atoms, one.run, one.step, one.x, one.level,
                         one.reliability, place)  # fmt: skip
    text = f"Structures that are alike lie beside each other ({method} of {what})."
    return (f"{method} 1", f"{method} 2"), text


def _vectors(
    atoms: list[Atoms],
    chosen: Sequence[SeenFrame],
    calculator: ReliableCalculator | None,
) -> tuple[np.ndarray | None, str]:
    """Return a vector for each structure, and what it is; None without one."""
    if calculator is not None:
        from uqcalc.defaults import probes_of

        for probe in probes_of(calculator.signals):
            found = probe.embeddings(atoms, calculator)
            if np.isfinite(found).all():
                return found, "the probe's embeddings"
    stored = [frame.descriptor for frame in chosen]
    if any(one is None for one in stored):
        return None, ""
    given = [one for one in stored if one is not None]
    alike = {(len(vector), potential) for vector, potential in given}
    if len(alike) != 1:
        return None, ""
    rows = np.stack([vector for vector, _ in given])
    return (
        (rows, "the descriptors in the frames")
        if np.isfinite(rows).all()
        else (None, "")
    )
