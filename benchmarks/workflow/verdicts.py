"""Probes of one molecule, and their verdicts along its runs.

A verdict is that of `ReliableCalculator` for the frame: probe, scope, flags and sanity.
`check_product` compares the arrays with the calculator's own evaluation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.io import read
from latent import LatentDistance

from uqcalc import Labels, Probe, ReliableCalculator, fit
from uqcalc.backbones import Prediction
from uqcalc.errors import LabelError
from uqcalc.geometry.bonds import BondFinder
from uqcalc.watching.bondgraph import BondGraph
from workflow.dynamics import Run, read_runs
from workflow.potential import batched, read_model


BOUNDARY = 0.1  # eV/Å
# name of a probe -> sets of labels
PROBES = {"300 K": ("cold",), "300 and 600 K": ("cold", "hot")}


@dataclass(frozen=True)
class Verdicts:
    """Readings along one run, each (frames,), and larger is worse but for ``p``.

    ``p`` is P(reliable) of the structure; ``level`` is 0, 1 or 2; ``changed`` says
    whether bonds differ from those of the first frame; ``distance`` is the latent
    distance to the training frames, mean over the atoms; ``largest`` is the largest
    force in eV/Å; ``novelty`` is the probe's own.
    """

    p: np.ndarray
    level: np.ndarray
    novelty: np.ndarray
    changed: np.ndarray
    distance: np.ndarray
    largest: np.ndarray


def calculator(folder: Path) -> object:
    """Return the potential as an ASE calculator."""
    from mace.calculators import MACECalculator

    model, _ = read_model(folder)
    return MACECalculator(models=model, device="cpu", default_dtype="float32")


def fit_probe(folder: Path, name: str) -> str:
    """Fit a probe unless it exists; return why it was refused, empty if it was not."""
    path = folder / f"{name}.probe"
    refusal = path.with_suffix(".refused")
    if path.is_file() or refusal.is_file():
        return refusal.read_text(encoding="utf-8") if refusal.is_file() else ""
    frames = [f for part in PROBES[name] for f in read(folder / f"{part}.xyz", ":")]
    labels = Labels("forces", boundary=BOUNDARY, group_key="run")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few labels are part of the question
            result = fit(frames, calculator(folder), labels)
    except LabelError as error:
        refusal.write_text(str(error), encoding="utf-8")
        return str(error)
    result.probe.save(path)
    return ""


def predictions(run: Run) -> list[Prediction]:
    """Return the predictions of all frames, as the potential's backbone gives them."""
    return [
        Prediction(
            numbers=run.numbers,
            positions=positions,
            cell=np.zeros((3, 3)),
            pbc=np.zeros(3, dtype=bool),
            results={"energy": float(energy), "forces": forces},
            energy=float(energy),
            forces=forces,
            conservative_forces=forces,
            features=torch.tensor(features),
        )
        for positions, energy, forces, features in zip(
            run.positions,
            run.energy,
            run.forces.astype(np.float32),
            run.features,
            strict=True,
        )
    ]


def training_distance(folder: Path) -> LatentDistance:
    """Return the latent distance to the frames that trained the potential."""
    frames = read(folder / "potential.xyz", ":")
    out = batched(folder).output(frames)["node_feats"].detach().numpy()
    numbers = np.concatenate([frame.numbers for frame in frames])
    return LatentDistance(numbers, out[:, out.shape[1] // 2 :].astype(float))


def judge(calc: ReliableCalculator, far: LatentDistance, run: Run) -> Verdicts:
    """Judge all frames of a run."""
    seen = predictions(run)
    judged = [calc.judge(prediction) for prediction in seen]
    found = [a.results() for a in judged]
    graph = BondGraph(BondFinder())
    return Verdicts(
        p=np.array([r["probe_reliability"] for r in found], dtype=float),
        level=np.array([int(a.level) for a in judged]),
        novelty=np.array([r.get("probe_novelty", np.nan) for r in found], float),
        changed=np.array([bool(graph(Atoms(run.numbers, x))) for x in run.positions]),
        distance=np.array([far(run.numbers, x).mean() for x in run.features]),
        largest=np.linalg.norm(run.forces, axis=2).max(axis=1),
    )


def judge_molecule(folder: Path, name: str) -> None:
    """Write the verdicts of one probe on all runs, unless they exist."""
    path = folder / f"{name}.npz"
    if path.is_file() or fit_probe(folder, name):
        return
    calc = ReliableCalculator(
        calculator(folder),
        probe=Probe.load(folder / f"{name}.probe"),
        importance="flagged",
    )
    far = training_distance(folder)
    runs = read_runs(folder / "runs.npz")
    print(f"{folder.name}, {name}: {check_product(calc, runs[-1]):.1e}", flush=True)
    arrays = {
        f"{number} {key}": value
        for number, run in enumerate(runs)
        for key, value in vars(judge(calc, far, run)).items()
    }
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)


def check_product(calc: ReliableCalculator, run: Run, every: int = 97) -> float:
    """Return the largest difference of P to that of the calculator for single frames.

    The runs are those of an accelerated copy of the model.
    """
    seen = predictions(run)
    return max(
        abs(
            calc.judge(seen[i]).results()["probe_reliability"]
            - calc.assess(Atoms(run.numbers, run.positions[i])).results()[
                "probe_reliability"
            ]
        )
        for i in range(0, len(seen), every)
    )


def read_verdicts(path: Path) -> list[Verdicts]:
    """Read what `judge_molecule` wrote."""
    with np.load(path) as data:
        count = 1 + max(int(key.split()[0]) for key in data.files)
        names = Verdicts.__annotations__
        return [
            Verdicts(**{key: data[f"{number} {key}"] for key in names})
            for number in range(count)
        ]
