"""Probes of one system, their verdicts along its runs, and the committee's spread.

A verdict is that of `ReliableCalculator` for the frame: probe, scope, flags and sanity.
`check_product` compares the arrays with the calculator's own evaluation.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from ase.io import read
from halting.signals import committee_spread, write_arrays
from latent import LatentDistance

from uqcalc import Labels, Probe, ReliableCalculator, fit
from uqcalc.backbones import Prediction
from uqcalc.errors import LabelError
from uqcalc.geometry.bonds import BondFinder
from uqcalc.watching.bondgraph import BondGraph
from workflow.dynamics import PARTS, Run, read_runs
from workflow.potential import batched, member_folders, read_model
from workflow.systems import System


BOUNDARY = 0.1  # eV/Å
# name of a probe -> sets of labels
PROBES = {"300 K": ("cold",), "300 and 600 K": ("cold", "hot")}


@dataclass(frozen=True)
class Verdicts:
    """Readings along one run, each (frames,); larger is worse, except for ``p``.

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
    """Return the predictions of the potential's backbone for all frames."""
    return [
        Prediction(
            numbers=run.numbers,
            positions=positions,
            cell=run.cell,
            pbc=np.full(3, np.any(run.cell)),
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


def training_distance(folder: Path, system: System) -> LatentDistance:
    """Return the latent distance to the frames that trained the potential."""
    frames = read(folder / "potential.xyz", ":")
    model = batched(folder, periodic=system.periodic)
    out = model.output(frames)["node_feats"].detach().numpy()
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
        changed=np.array([bool(graph(run.atoms(i))) for i in range(len(run.energy))]),
        distance=np.array([far(run.numbers, x).mean() for x in run.features]),
        largest=np.linalg.norm(run.forces, axis=2).max(axis=1),
    )


def judge_system(folder: Path, system: System, name: str) -> None:
    """Write the verdicts of one probe on the runs of each part, unless they exist."""
    parts = [
        part
        for part in PARTS
        if (folder / f"{part}.npz").is_file()
        and not (folder / f"{name}, {part}.npz").is_file()
    ]
    if not parts or fit_probe(folder, name):
        return
    calc = ReliableCalculator(
        calculator(folder),
        probe=Probe.load(folder / f"{name}.probe"),
        importance="flagged",
    )
    far = training_distance(folder, system)
    for part in parts:
        runs = read_runs(folder / f"{part}.npz")
        largest = check_product(calc, runs[-1])
        print(f"{folder.name}, {name}, {part}: {largest:.1e}", flush=True)
        arrays = {
            f"{number} {key}": value
            for number, run in enumerate(runs)
            for key, value in vars(judge(calc, far, run)).items()
        }
        write_arrays(folder / f"{name}, {part}.npz", **arrays)


def ask_committee(folder: Path, system: System) -> None:
    """Write the spread of the committee on the runs of each part, unless it exists."""
    periodic = system.periodic
    members = [batched(one, periodic=periodic) for one in member_folders(folder)]
    for part in PARTS:
        path = folder / f"committee, {part}.npz"
        if path.is_file() or not (folder / f"{part}.npz").is_file():
            continue
        arrays = {}
        for number, run in enumerate(read_runs(folder / f"{part}.npz")):
            frames = [run.atoms(index) for index in range(len(run.energy))]
            arrays[f"{number}"] = committee_spread(members, frames)
        write_arrays(path, **arrays)


def read_spread(folder: Path, part: str) -> list[np.ndarray] | None:
    """Return the spread along each run, (frames,); None without a committee."""
    path = folder / f"committee, {part}.npz"
    if not path.is_file():
        return None
    with np.load(path) as data:
        return [data[f"{number}"] for number in range(len(data.files))]


def check_product(calc: ReliableCalculator, run: Run, count: int = 6) -> float:
    """Return the largest difference of P to that of the calculator for single frames.

    The runs are those of an accelerated copy of the model.
    """
    seen = predictions(run)
    return max(
        abs(
            calc.judge(seen[i]).results()["probe_reliability"]
            - calc.assess(run.atoms(i)).results()["probe_reliability"]
        )
        for i in np.linspace(0, len(seen) - 1, count).astype(int)
    )


def read_verdicts(path: Path) -> list[Verdicts]:
    """Read what `judge_system` wrote."""
    with np.load(path) as data:
        count = 1 + max(int(key.split()[0]) for key in data.files)
        names = Verdicts.__annotations__
        return [
            Verdicts(**{key: data[f"{number} {key}"] for key in names})
            for number in range(count)
        ]
