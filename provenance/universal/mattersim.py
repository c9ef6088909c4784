"""Labelled crystals of microsoft/mattersim with the predictions of a potential."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from ase.io import read
from ase.stress import voigt_6_to_full_3x3_stress
from mp2020 import corrections

import uqcalc
from uqcalc.agreement import vanishing
from uqcalc.backbones import Backbone, Prediction
from uqcalc.labels.dataset import Dataset, build_dataset
from uqcalc.labels.defects import NO_INFORMATION
from uqcalc.labels.groups import reduced_formula
from uqcalc.probe.seen import geometry_hashes
from uqcalc.targets import TARGETS, voigt_stress


REGIMES = {
    "alexandria-random-1k": "relaxed",
    "mptrj-random-1k": "MPtrj, at random (training pool)",
    "mptrj-highest-stress-1k": "strained (training pool)",
    "mpf-TP": "hot and dense",
    "mpf-alkali-TP": "hot and dense, alkali metals",
    "random-TP": "random cells",
}
RELAXED = ("alexandria-random-1k", "mptrj-random-1k")
STEP = 2e-3  # strain of the differences in `check_stress`
CHECKED = 3  # structures of each set with features that are computed again
KEYS = {"forces_key": "forces", "stress_key": "stress", "energy_key": "REF_energy"}


def chgnet() -> BaseCalculator:
    from chgnet.model.dynamics import CHGNetCalculator

    return CHGNetCalculator(use_device="cpu", on_isolated_atoms="ignore")


def sevennet() -> BaseCalculator:
    from sevenn.calculator import SevenNetCalculator

    return SevenNetCalculator("7net-0", device="cpu")


OPENERS: dict[str, Callable[[], BaseCalculator]] = {
    "chgnet": chgnet,
    "sevennet": sevennet,
}


@dataclass(frozen=True)
class Source:
    """The potential, its frames, and where their predictions are.

    Attributes
    ----------
    backbone : Backbone
    frames : list of Atoms
        Labels of forces and stresses under `KEYS`; energies: `label_energies`.
    features : Path or None
        Folder with stored predictions (no stress); None: computed.
    cache : Path or None
        Folder that keeps computed predictions.
    """

    backbone: Backbone
    frames: list[Atoms]
    features: Path | None
    cache: Path | None

    @property
    def groups(self) -> list[str]:
        """Reduced formulas of the frames that have or can get a prediction.

        Of stored predictions with equal positions and cells the first counts, as in
        earlier versions: the formulas decide the split.
        """
        known = self.backbone.elements or frozenset(range(119))
        frames = self.frames
        if self.features is not None:
            frames = [*{_key(frame): frame for frame in reversed(frames)}.values()]
        return [
            reduced_formula(frame)
            for frame in frames
            if self.features is not None or known.issuperset(frame.numbers.tolist())
        ]


def _key(frame: Atoms) -> bytes:
    return bytes(frame.positions.tobytes() + frame.cell.array.tobytes())


def load_frames(folder: Path, largest: int) -> list[Atoms]:
    """Return the frames of all sets with at most ``largest`` atoms."""
    frames = []
    for name in REGIMES:
        for row, frame in enumerate(read(folder / f"{name}.xyz", ":")):
            if len(frame) <= largest:
                frame.info.update(set=name, row=row)
                frames.append(frame)
    return frames


def open_source(
    model: str, data: Path, features: Path, cache: Path | None, largest: int
) -> Source:
    """Open the potential and its labels of forces and stresses."""
    backbone = uqcalc.tap(OPENERS[model]())
    frames = load_frames(data, largest)
    return Source(backbone, frames, features if model == "sevennet" else None, cache)


def label_energies(source: Source) -> None:
    """Add reference energies to the frames; those for CHGNet are corrected."""
    added = np.zeros(len(source.frames))
    if source.backbone.name == "chgnet":
        kept = None if source.cache is None else source.cache / "mp2020.npy"
        added = corrections(source.frames, {*REGIMES} - {*RELAXED}, kept)
    for frame, energy in zip(source.frames, added, strict=True):
        if np.isfinite(energy):
            frame.info["REF_energy"] = frame.get_potential_energy() + float(energy)


def load_dataset(
    source: Source, labels: uqcalc.Labels, rows: Sequence[int] | None = None
) -> tuple[Dataset, list[str]]:
    """Return a dataset for one target, and the set of each of its structures.

    Single atoms are labels for the target "forces" only. Predictions come from the
    stored features, which hold no stress, or else are computed (and kept).

    Parameters
    ----------
    rows : sequence of int, optional
        Frames to use; by default all.
    """
    if labels.of_energy:
        label_energies(source)
    if source.features is not None and labels.of != "stress":
        data, sets = _stored(source, labels)
    else:
        frames = source.frames
        if rows is not None:
            frames = [frames[i] for i in rows]
        data = build_dataset(
            frames,
            source.backbone,
            labels,
            exclude=("missing", "duplicate", "unknown elements"),
            cache=source.cache,
        )
        left_out = {i for found in data.excluded.values() for i in found}
        sets = [a.info["set"] for i, a in enumerate(frames) if i not in left_out]
    return data if labels.of == "forces" else replace(data, atom_errors=None), sets


def _stored(source: Source, labels: uqcalc.Labels) -> tuple[Dataset, list[str]]:
    """Return the dataset from stored predictions; a few of them are checked."""
    by_row = {(a.info["set"], a.info["row"]): a for a in source.frames}
    kept: list[Atoms] = []
    predictions, errors, residuals, of_atoms = [], [], [], []
    blank, seen = 0, set()
    for name in REGIMES:
        for place, (row, prediction) in enumerate(_read(source, name)):
            frame = by_row.get((name, row))
            if frame is None:
                continue
            prediction = _placed(prediction, frame)
            key = _key(frame)
            if key in seen:
                continue
            seen.add(key)
            if place < CHECKED:
                _check(prediction, source.backbone, frame)
            forces = labels.reference_of(frame, "forces")
            reference = labels.reference(frame)
            zero = vanishing(prediction.forces, forces)
            if zero.all() and labels.of == "forces":
                blank += 1
                continue
            error = TARGETS[labels.target].error
            predicted = prediction.results[labels.of]
            predictions.append(prediction)
            errors.append(float(error(predicted, reference, len(frame))))
            residuals.append(frame.get_potential_energy() - prediction.energy)
            size = np.linalg.norm(prediction.forces - forces, axis=1)
            of_atoms.append(np.where(zero, np.nan, size))
            kept.append(frame)
    data = Dataset(
        predictions,
        np.array(errors),
        [reduced_formula(frame) for frame in kept],
        {NO_INFORMATION: [0] * blank},
        atom_errors=of_atoms,
        residuals=np.array(residuals) if labels.of_energy else None,
        labels=labels,
        fingerprint=source.backbone.fingerprint,
        geometries=geometry_hashes(kept, range(len(kept))),
    )
    return data, [frame.info["set"] for frame in kept]


def _read(source: Source, name: str) -> list[tuple[int, Prediction]]:
    """Return row and prediction of each stored structure of a set, not placed."""
    data = np.load(source.features / f"{name}.npz")
    cuts = np.cumsum(data["n"])[:-1]
    columns = [np.split(data[key], cuts) for key in ("z", "h", "f_pred")]
    found = []
    for row, energy, numbers, features, forces in zip(
        data["index"], data["e_pred"], *columns, strict=True
    ):
        forces = forces.astype(float)
        prediction = Prediction(
            numbers=numbers.astype(np.int64),
            positions=np.zeros((len(numbers), 3)),
            cell=np.zeros((3, 3)),
            pbc=np.ones(3, dtype=bool),
            results={"energy": float(energy), "forces": forces},
            energy=float(energy),
            forces=forces,
            features=torch.from_numpy(features.astype(np.float32)),
        )
        found.append((int(row), prediction))
    return found


def _placed(prediction: Prediction, frame: Atoms) -> Prediction:
    return replace(
        prediction,
        numbers=frame.numbers,
        positions=frame.positions,
        cell=frame.cell.array,
        pbc=frame.pbc,
    )


def check_stress(source: Source) -> None:
    """Compare the potential's stress with its own energies, and its sign with labels.

    The energies give central differences along a random strain e: the slope is V sum_ij
    s_ij e_ij. Three compressed frames are compared. Their predicted pressure must have
    the sign of the label.
    """
    rng = np.random.default_rng(0)
    strained = [f for f in source.frames if f.info["set"] == "mpf-TP" and len(f) < 12]
    for frame in strained[:: len(strained) // 3][:3]:
        strain = rng.normal(size=(3, 3))
        strain = (strain + strain.T) / np.linalg.norm(strain + strain.T)
        energies = []
        for sign in (1, -1):
            moved = Atoms(frame)
            shape = np.eye(3) + sign * STEP * strain
            moved.set_cell(moved.cell @ shape, scale_atoms=True)
            energies.append(source.backbone(moved, ["energy", "forces"]).energy)
        slope = (energies[0] - energies[1]) / (2 * STEP * frame.get_volume())
        found = source.backbone(Atoms(frame), ["energy", "forces", "stress"])
        stress = voigt_6_to_full_3x3_stress(voigt_stress(found.results["stress"]))
        np.testing.assert_allclose((stress * strain).sum(), slope, rtol=0.05, atol=2e-3)
        label = voigt_stress(frame.get_stress())[:3].mean()
        np.testing.assert_equal(np.sign(np.trace(stress)), np.sign(label))


def _check(prediction: Prediction, backbone: Backbone, frame: Atoms) -> None:
    fresh = backbone(Atoms(frame), ["energy", "forces"])
    # the stored features have half precision
    np.testing.assert_allclose(
        prediction.features, fresh.features, rtol=2e-2, atol=5e-3
    )
    np.testing.assert_allclose(prediction.forces, fresh.forces, atol=2e-3, rtol=2e-3)


if __name__ == "__main__":
    sys.exit("read by fit_probe.py; run that script")
