"""Training and test sets: one task is a fit of each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from discriminating.judging import judge
from discriminating.labelled import Labelled, load
from discriminating.rows import KINDS, OURS, judged, ours, refitted
from uqcalc.fitting.network import margins
from uqcalc.labels.dataset import Dataset
from uqcalc.probe.inputs import chunks
from uqcalc.probe.probe import Probe
from uqcalc.signals.distance import Mahalanobis
from uqcalc.signals.rigidity import Rigidity


SEVENNET = Path("../shared/data/sevennet0_mattersim")
TARGETS = ("energy", "energy_per_atom", "forces")
LABELS = (250, 1000, 3900)
TESTED = 975  # structures of SevenNet-0's set, in each random split
SHIFTED = {"transfer", "hot", "acac", "sio2"}
STILL = 1e-3  # eV/Å; largest predicted force if forces vanish by symmetry
MOVING = "moving"  # the structures of a test with nonzero forces


@dataclass(frozen=True)
class Task:
    """One division of one block."""

    block: str
    part: str
    target: str
    labels: int
    seed: int

    @property
    def key(self) -> str:
        """Return a unique name."""
        return "|".join(str(value) for value in asdict(self).values())


def all_tasks(seeds: int, cache: Path, kind: str = "rows") -> Iterator[Task]:
    """Yield the tasks, seed by seed, so that a stopped run is complete up to a seed.

    The kind "committee" has tasks for blocks with further members only.
    """
    names = sorted(path.stem for path in SEVENNET.glob("*.npz"))
    blocks = [
        (block, "all", target, labels)
        for target in TARGETS
        for labels in LABELS
        for block in ("random", "composition")
    ]
    blocks += [("transfer", name, t, 1000) for t in TARGETS for name in names]
    organic = ("energy", "forces")
    blocks += [("molecules", "all", t, labels) for t in organic for labels in LABELS]
    blocks += [("hot", "hot", target, 1000) for target in organic]
    blocks += [("acac", "hot_600K", target, 500) for target in TARGETS]
    blocks += [("acac", "dihedral", "energy", 500)]
    blocks += [("sio2", "melt", target, 500) for target in TARGETS]
    for seed in range(seeds):
        for block, part, target, labels in blocks:
            wanted = files(block, cache)
            if kind == "committee":
                wanted += [cache / f"{p.stem}_members.npz" for p in wanted]
            if wanted and all(path.is_file() for path in wanted):
                yield Task(block, part, target, labels, seed)


def files(block: str, cache: Path) -> list[Path]:
    """Return the files of a block."""
    made = {
        "molecules": ["gfn2"],
        "hot": ["gfn2"],
        "acac": ["acac"],
        "sio2": ["sio2"],
    }
    if block in made:
        return [cache / f"{name}.npz" for name in made[block]]
    return sorted(SEVENNET.glob("*.npz"))


def opened(block: str, cache: Path) -> Labelled:
    """Return the structures of a block.

    Raises
    ------
    SystemExit
        If data are absent; the message names them.
    """
    paths = files(block, cache)
    if not paths or not all(path.is_file() for path in paths):
        msg = f"labelled data of block {block!r} are absent: {paths or SEVENNET}"
        raise SystemExit(msg)
    return load(paths, cache)


def divide(task: Task, data: Labelled) -> tuple[np.ndarray, np.ndarray]:
    """Return the structures for the fit, and those for the test."""
    rng = np.random.default_rng(task.seed)
    everything = np.arange(len(data.predictions))
    if task.block == "molecules":
        everything = everything[data.sets == "molecules"]
    if task.block == "random":
        order = rng.permutation(everything)
        return order[: task.labels], order[-TESTED:]
    if task.block in {"composition", "molecules"}:
        names = rng.permutation(np.unique(data.groups[everything]))
        held = np.isin(data.groups[everything], names[: len(names) // 5])
        pool = rng.permutation(everything[~held])
        return pool[: task.labels], everything[held]
    tested = data.sets == task.part
    home = {"acac": "probe_300K", "sio2": "crystal"}.get(task.block)
    pool = ~tested if home is None else data.sets == home
    return rng.permutation(everything[pool])[: task.labels], everything[tested]


def datasets(task: Task, data: Labelled) -> tuple[Dataset, Dataset]:
    """Return the datasets for the fit and for the test."""
    labelled, tested = divide(task, data)
    grouped = task.block != "random"
    train = data.dataset(task.target, labelled, grouped=grouped)
    return train, data.dataset(task.target, tested, grouped=grouped)


def run(task: Task, data: Labelled, kind: str) -> list[dict[str, Any]]:
    """Fit and judge every row of one kind, of `KINDS`, on one task."""
    torch.set_num_threads(1)
    train, test = datasets(task, data)
    boundary = float(np.median(train.errors))
    own = task.block in SHIFTED
    found = []
    for name, row in KINDS[kind].items():
        risk, belief = judged(
            row, train, test, task.target, boundary,
            believed=not own, refits=refitted(kind, len(train)),
        )  # fmt: skip
        found += _judged(task, name, test, risk, belief, boundary)
    if kind in {"rows", OURS}:
        found += _ours(task, train, test, boundary)
    return found


def _judged(
    task: Task,
    name: str,
    test: Dataset,
    risk: np.ndarray,
    belief: np.ndarray | None,
    boundary: float,
) -> list[dict[str, Any]]:
    """Judge one row on the test, and on its structures with nonzero forces."""
    own = task.block in SHIFTED
    columns = judge(test.errors, risk, belief, boundary, own_median=own)
    found = [asdict(task) | {"row": name} | columns]
    kept = moving(test)
    if task.target == "forces" and task.part == "all" and not kept.all():
        believed = None if belief is None else belief[kept]
        columns = judge(
            test.errors[kept], risk[kept], believed, boundary, own_median=own
        )
        found.append(asdict(task) | {"part": MOVING, "row": name} | columns)
    return found


def moving(data: Dataset) -> np.ndarray:
    """Return which structures have forces: on all others any potential is right."""
    return np.array([np.abs(p.forces).max() > STILL for p in data.predictions])


def _ours(
    task: Task, train: Dataset, test: Dataset, boundary: float
) -> list[dict[str, Any]]:
    own = task.block in SHIFTED
    probe = ours(train, task.target, boundary, task.seed)
    scored = torch.from_numpy(margins(probe, test))
    belief = probe.card.calibration.logits(scored).sigmoid().numpy()
    found = _judged(task, OURS, test, -scored.numpy(), belief, boundary)
    found[0] |= _scope(probe, test, belief)
    if task.target == "forces":
        found += _atoms(task, probe, train, test, own=own)
    return found


def _scope(probe: Probe, test: Dataset, belief: np.ndarray) -> dict[str, float]:
    """Return the share outside the scope: of all, and of wrong ones with P >= 0.5."""
    novelty = torch.cat(
        [probe.read(chunk).novelty for chunk in chunks(test.predictions)]
    ).numpy()
    outside = np.array(
        [
            bool(probe.unseen_elements(p.numbers))
            or bool(probe.card.scope.doubts(p.numbers, periodic=bool(p.pbc.any())))
            for p in test.predictions
        ]
    ) | ~(novelty <= 1)
    wrong = (belief >= 0.5) & (test.errors > probe.card.boundary)
    caught = float(outside[wrong].mean()) if wrong.any() else float("nan")
    return {"outside_scope": float(outside.mean()), "false_trust_outside": caught}


def _atoms(
    task: Task, probe: Probe, train: Dataset, test: Dataset, *, own: bool
) -> list[dict[str, Any]]:
    """Judge the reliabilities of single atoms, and the alternatives."""
    if train.atom_errors is None or test.atom_errors is None:
        return []
    errors = np.concatenate(test.atom_errors)
    reliability = [probe.read(chunk).atoms for chunk in chunks(test.predictions)]
    belief = torch.cat(reliability).numpy()
    numbers = np.concatenate([p.numbers for p in train.predictions])
    features = torch.cat([p.features for p in train.predictions])
    seen = np.concatenate([p.numbers for p in test.predictions])
    rows = torch.cat([p.features for p in test.predictions])
    norms = np.concatenate([np.linalg.norm(p.forces, axis=1) for p in test.predictions])
    gram = features.double().T @ features.double()
    away = Mahalanobis.fit(numbers, features)(seen, rows).numpy()
    risks = {
        OURS: (1 - belief, belief),
        "max force": (norms, None),
        "latent distance": (np.where(np.isnan(away), 1e9, away), None),
        "prediction rigidity": (Rigidity.fit(gram, len(features))(rows).numpy(), None),
    }
    boundary = float(probe.card.atom_boundary or 0.0)
    return [
        asdict(task)
        | {"target": "atoms", "row": name}
        | judge(errors, risk, p, boundary, own_median=own)
        for name, (risk, p) in risks.items()
    ]
