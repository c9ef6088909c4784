"""Features of all frames of a trajectory in one HDF5 file, in constant memory."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from uqcalc.annotating.file import Source, check_source
from uqcalc.annotating.selecting import parse_index
from uqcalc.annotating.trajectory import Cells
from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.batching import evaluate_each
from uqcalc.backbones.registry import tap
from uqcalc.errors import MissingExtraError, RecordError
from uqcalc.files.writing import whole, writable


_CHUNK_NUMBERS = 2**17  # numbers in a chunk of features: 0.5 MB in single precision
_CHUNK_ROWS = 4096
_MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class FeatureSummary:
    """Summary of the file of `write_features`.

    Attributes
    ----------
    target : Path
    frames, atoms, dim : int
        Number of frames and of atoms in the file, and width of the features.
    left_out : tuple of (int, str)
        Number in the source, and reason, of each frame without features.
    """

    target: Path
    frames: int
    atoms: int
    dim: int
    left_out: tuple[tuple[int, str], ...]

    def __str__(self) -> str:
        lines = [
            f"{self.target}: features of {self.frames} frames, {self.atoms} atoms, "
            f"{self.dim} numbers for each atom"
        ]
        if self.left_out:
            lines.append(f"left out: {len(self.left_out)} frames without features")
            shown = self.left_out[:_MOST_NAMED]
            lines += [f"  frame {number}: {reason}" for number, reason in shown]
            if more := len(self.left_out) - len(shown):
                lines.append(f"  and {more} others, in {self.target} under left_out")
        return "\n".join(lines)


_ENDINGS = (".h5", ".hdf5")


def write_features(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    calculator: BaseCalculator | Backbone,
    *,
    species: str | Sequence[str] | None = None,
    index: str | slice = ":",
    batch_atoms: int | None = None,
) -> FeatureSummary:
    """Write the features of each atom of a trajectory to an HDF5 file.

    The file appears when all frames are done; one batch at a time is in memory. It has
    these datasets, with frames in the order of the source:

    - ``features`` (atoms, dim) in the precision of the model, and ``numbers`` (atoms,),
      the atomic numbers, with the atoms of all frames one after the other;
    - ``atoms`` (frames,), the number of atoms of each frame, ``first`` (frames,), the
      row of its first atom, and ``frame`` (frames,), its number in the source;
    - ``left_out/frame`` and ``left_out/reason`` for frames that the model cannot
      evaluate or whose results are NaN or infinite.

    The attributes are ``backbone``, ``fingerprint``, ``invariant`` (whether the
    features stay the same when a structure is rotated) and ``uqcalc``, the version.

    Parameters
    ----------
    source : path
        Any trajectory that ASE reads.
    target : path
        It ends in .h5 or .hdf5. An existing file is replaced.
    calculator : ase calculator or Backbone
        Any potential that `uqcalc.tap` takes.
    species, index, batch_atoms
        As for `uqcalc.annotate_file`.

    Raises
    ------
    MissingExtraError
        If h5py is not installed.
    RecordError
        If source or target cannot be used, or no frame has features. If the source
        cannot be read to its end, the frames before are in the file.
    """
    h5py = _h5py()
    output = writable(target, "target")
    if output.suffix not in _ENDINGS:
        msg = (
            f"target must end in {' or '.join(_ENDINGS)}, got {output.name}; the file "
            "is HDF5"
        )
        raise RecordError(msg)
    path = Path(source)
    check_source(path)
    backbone = tap(calculator)
    chosen = parse_index(index) if isinstance(index, str) else index
    reading = Source(path, species, chosen, Cells())
    with whole(output) as partial, h5py.File(partial, "w") as file:
        writer = _Writer(file, backbone)
        evaluated = evaluate_each(backbone, _bare(reading), limit=batch_atoms)
        for row, (_, outcome) in enumerate(evaluated):
            writer.add(reading.number(row), outcome)
        writer.finish()
        if not writer.frames:
            raise RecordError(_nothing(path, reading.error, writer.left_out))
    if reading.error:
        msg = (
            f"source must be readable to its end, got {path} ({reading.error}) after "
            f"{reading.frames} frames, which are in {output}; repair the file"
        )
        raise RecordError(msg)
    return FeatureSummary(
        output, writer.frames, writer.atoms, writer.dim, tuple(writer.left_out)
    )


class _Writer:
    """Appends the features of one frame after the other to an open HDF5 file."""

    def __init__(self, file: Any, backbone: Backbone) -> None:
        self.frames = self.atoms = self.dim = 0
        self.left_out: list[tuple[int, str]] = []
        self._file = file
        file.attrs["backbone"] = backbone.name
        file.attrs["fingerprint"] = backbone.fingerprint
        file.attrs["invariant"] = backbone.invariant_features
        file.attrs["uqcalc"] = version("uqcalc")

    def add(self, number: int, outcome: Prediction | str) -> None:
        """Append a frame, or note why it has no features."""
        if isinstance(outcome, str):
            self.left_out.append((number, outcome))
            return
        features = outcome.features.cpu().numpy()
        if not self.frames:
            self._begin(features)
        self._append("frame", [number])
        self._append("first", [self.atoms])
        self._append("atoms", [len(features)])
        self._append("numbers", outcome.numbers)
        self._append("features", features)
        self.frames += 1
        self.atoms += len(features)

    def finish(self) -> None:
        """Write the list of frames that are left out."""
        group = self._file.create_group("left_out")
        group["frame"] = np.array([number for number, _ in self.left_out], dtype=int)
        group["reason"] = [reason.encode() for _, reason in self.left_out] or np.empty(
            0, dtype="S1"
        )

    def _begin(self, features: np.ndarray) -> None:
        self.dim = features.shape[1]
        rows = max(1, _CHUNK_NUMBERS // self.dim)
        self._create("features", features.dtype, (self.dim,), rows)
        for name in ("frame", "first", "atoms"):
            self._create(name, np.int64, (), _CHUNK_ROWS)
        self._create("numbers", np.uint8, (), _CHUNK_ROWS)

    def _create(self, name: str, dtype: Any, shape: tuple[int, ...], rows: int) -> None:
        self._file.create_dataset(
            name, (0, *shape), dtype, maxshape=(None, *shape), chunks=(rows, *shape)
        )

    def _append(self, name: str, rows: Any) -> None:
        dataset = self._file[name]
        start = len(dataset)
        dataset.resize(start + len(rows), axis=0)
        dataset[start:] = rows


def _bare(frames: Source) -> Iterator[Atoms]:
    """Yield the frames without the results that the file has stored with them."""
    for frame in frames:
        frame.calc = None
        yield frame


def _nothing(path: Path, error: str, left_out: Sequence[tuple[int, str]]) -> str:
    why = error or "; ".join(f"frame {n}: {reason}" for n, reason in left_out[:1])
    return (
        "source must be a trajectory that ASE reads, with at least one frame that the "
        f"model can evaluate, got {path}{f' ({why})' if why else ''}"
    )


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise MissingExtraError("a file of features", "h5py", "hdf5") from error
    return h5py
