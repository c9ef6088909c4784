"""The annotated frames of a run: read once for their numbers, once for structures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from uqcalc.annotating.copies import INFO_KEY, read_assessment, step_of
from uqcalc.annotating.descriptor import read_descriptor
from uqcalc.errors import UqcalcError
from uqcalc.files.structures import UNREADABLE, frames_of
from uqcalc.records import Assessment, Level
from uqcalc.viewing.motifs import MotifCounts


ATOMS_KEY = "probe_reliabilities"
MOST_ROWS = 400  # frames in the image of the atoms
MOST_ATOMS = 300  # atoms in it
_MOST_STRUCTURES, _MOST_ATOMS = 600, 25_000  # in the page


class SeenFrame(NamedTuple):
    """One annotated frame of a run, without its structure.

    ``file`` and ``row`` are its file and its place in it; ``reliability`` is P, NaN
    without a probe; ``descriptor`` is the stored vector with the name of its potential.
    """

    file: int
    row: int
    step: int
    level: Level
    reliability: float
    atoms: int
    descriptor: tuple[NDArray[np.float64], str] | None


@dataclass
class FramesSeen:
    """Content of the files with structures of one run.

    Attributes
    ----------
    files : sequence of Path
    frames : list of SeenFrame
        Each step once, in order of the steps.
    motifs : MotifCounts
    columns : list of (step, array (atoms,))
        P of each atom, of frames with as many atoms as the first one.
    notes : list of str
        What could not be read.
    plain : dict
        File -> number of frames without a verdict.
    formula : str
        Symbols of all atoms in order; empty if the frames differ.
    """

    files: Sequence[Path]
    frames: list[SeenFrame] = field(default_factory=list)
    motifs: MotifCounts = field(default_factory=MotifCounts)
    columns: list[tuple[int, NDArray[np.float32]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    plain: dict[Path, int] = field(default_factory=dict)
    formula: str = ""

    @classmethod
    def of(
        cls, files: Sequence[Path], *, stepped: bool
    ) -> tuple[FramesSeen, list[dict[str, Any]]]:
        """Read all frames; also return a step record for each, as in an event log.

        Parameters
        ----------
        files : sequence of Path
        stepped : bool
            Whether the frames belong to one run with a log, so that each step counts
            once. Otherwise the place in the files is the step.
        """
        seen = cls(files)
        records: list[dict[str, Any]] = []
        known: dict[int, int] = {}
        for number, path in enumerate(files):
            for index, frame in seen._readable(path):
                if INFO_KEY not in frame.info:
                    seen.plain[path] = seen.plain.get(path, 0) + 1
                    continue
                known_step = step_of(frame) if stepped else len(records)
                step = index if known_step is None else known_step
                if step in known:
                    seen._complete(known[step], number, index, frame)
                    continue
                known[step] = len(seen.frames)
                assessment = read_assessment(frame)
                records.append(record_of(step, frame, assessment))
                seen._add(SeenFrame(number, index, step, assessment.level,
                                    _reliability(frame), len(frame),
                                    read_descriptor(frame)), frame)  # fmt: skip
        seen.frames.sort(key=lambda f: f.step)
        seen.columns.sort(key=lambda column: column[0])
        return seen, sorted(records, key=lambda record: int(record["step"]))

    def _readable(self, path: Path) -> Iterator[tuple[int, Atoms]]:
        """Yield the frames of a file up to the first that cannot be read."""
        count = 0
        try:
            for frame in frames_of(path):
                yield count, frame
                count += 1
        except UqcalcError as error:
            self.notes.append(str(error))
        except UNREADABLE as error:
            self.notes.append(
                f"{path.name} could be read up to frame {count} only "
                f"({type(error).__name__}): it may be growing, or be damaged"
            )

    def _add(self, frame: SeenFrame, atoms: Atoms) -> None:
        symbols = str(atoms.symbols)
        self.formula = symbols if self.formula in ("", symbols) else "different"
        self.frames.append(frame)
        values = atoms.arrays.get(ATOMS_KEY)
        if values is None:
            return
        self.motifs.add(atoms, np.asarray(values, dtype=float))
        if not self.columns or len(self.columns[0][1]) == len(atoms):
            self.columns.append((frame.step, np.asarray(values, dtype=np.float32)))

    def _complete(self, row: int, file: int, index: int, atoms: Atoms) -> None:
        """Take the descriptor of a second copy of a frame, where the first has none."""
        found = self.frames[row]
        if found.descriptor is None and read_descriptor(atoms) is not None:
            self.frames[row] = found._replace(
                file=file, row=index, descriptor=read_descriptor(atoms)
            )

    def structures(self, chosen: Sequence[SeenFrame]) -> list[Atoms]:
        """Return the structures of some frames, in their order."""
        wanted = {(frame.file, frame.row): k for k, frame in enumerate(chosen)}
        found: dict[int, Atoms] = {}
        for number, path in enumerate(self.files):
            last = max((i for f, i in wanted if f == number), default=-1)
            if last < 0:
                continue
            for index, atoms in enumerate(frames_of(path, slice(0, last + 1))):
                if (number, index) in wanted:
                    found[wanted[number, index]] = atoms
        return [found[k] for k in range(len(chosen))]


def record_of(step: int, frame: Atoms, assessment: Assessment) -> dict[str, Any]:
    """Return the step record of an annotated frame, with the entries of a log's."""
    values = {
        key: float(value)
        for key, value in assessment.results().items()
        if np.ndim(value) == 0
    }
    temperature = frame.get_temperature() if frame.has("momenta") else None
    energy = frame.info.get("predicted_energy")
    return {
        "event": "step",
        "step": step,
        "time_fs": None,
        "temperature_K": temperature,
        "energy_eV": energy,
        "level": assessment.level.name,
        "readings": {r.signal: r.risk for r in assessment.readings},
        "values": values,
        "reasons": list(assessment.verdict.reasons),
        "worst_atoms": assessment.worst_atoms(),
    }


def _reliability(frame: Atoms) -> float:
    return float(frame.info.get("probe_reliability", math.nan))


def chosen_frames(
    frames: Sequence[SeenFrame], spans: Sequence[tuple[int, int]]
) -> tuple[list[SeenFrame], list[int]]:
    """Choose the frames whose structures go into the page.

    First the worst frame of each event (level, then lowest P), then evenly spaced ones,
    up to 600 frames and 25 000 atoms.

    Parameters
    ----------
    frames : sequence of SeenFrame
    spans : sequence of (int, int)
        First and last step of each event, the worst event first.

    Returns
    -------
    chosen : list of SeenFrame
        In order of the steps.
    worst : list of int
        Place in ``chosen`` of the worst frame of each event that has one, the worst
        first.
    """
    worst = []
    for first, last in spans:
        inside = [f for f in frames if first <= f.step <= last]
        if inside:
            worst.append(max(inside, key=_badness))
    room = max(frame.atoms for frame in frames) if frames else 1
    most = max(1, min(_MOST_STRUCTURES, _MOST_ATOMS // max(room, 1)))
    kept = dict.fromkeys((f.file, f.row) for f in worst[:most])
    even = np.linspace(0, max(len(frames) - 1, 0), most).round().astype(int)
    for row in dict.fromkeys(even.tolist()):
        if frames and len(kept) < most:
            kept[frames[row].file, frames[row].row] = None
    chosen = [frame for frame in frames if (frame.file, frame.row) in kept]
    places = {(f.file, f.row): k for k, f in enumerate(chosen)}
    order = dict.fromkeys(places[f.file, f.row] for f in worst[:most])
    return chosen, list(order)


def _badness(frame: SeenFrame) -> tuple[Level, float]:
    return frame.level, -math.inf if math.isnan(
        frame.reliability
    ) else -frame.reliability


def atom_image(
    columns: Sequence[tuple[int, NDArray[np.float32]]],
) -> tuple[list[int], list[int], NDArray[np.float32]] | None:
    """Return the steps, the atoms and P of each atom, (atoms, frames), for an image.

    At most 400 evenly spaced frames, and the 300 atoms with the lowest mean P, in the
    order of their indices. None without values.
    """
    if not columns:
        return None
    rows = np.unique(np.linspace(0, len(columns) - 1, MOST_ROWS).round().astype(int))
    steps = [columns[row][0] for row in rows]
    table = np.stack([columns[row][1] for row in rows], axis=1)
    atoms = np.argsort(np.nan_to_num(table, nan=0.0).mean(axis=1), kind="stable")
    atoms = np.sort(atoms[:MOST_ATOMS])
    return steps, [int(i) for i in atoms], table[atoms]
