"""The rows of the table: the fit of each, and its risk."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol, cast

import numpy as np
import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from discriminating.labelled import SPREADS
from uqcalc.backbones import Backbone, Prediction
from uqcalc.fitting.crossfit import group_folds
from uqcalc.fitting.network import fit_single, margins, validation_split
from uqcalc.fitting.recipe import Recipe
from uqcalc.fitting.training import fit_datasets
from uqcalc.labels.dataset import Dataset
from uqcalc.labels.labels import Labels
from uqcalc.probe.calibration import platt
from uqcalc.probe.probe import Probe
from uqcalc.signals.distance import Mahalanobis, Neighbours
from uqcalc.signals.rigidity import Rigidity


BACKBONE = cast(
    "Backbone",
    SimpleNamespace(fingerprint="benchmark", provides=frozenset({"features"})),
)
FOLDS = 3
MANY = 1_000  # labels
NEIGHBOURS_FROM = 4_000  # atoms
Risk = Callable[[Dataset], np.ndarray]


class Row(Protocol):
    """Fits to labelled structures; returns a function that reads risks."""

    def __call__(self, data: Dataset, target: str, boundary: float) -> Risk:
        """Return a function that reads the risk of each structure."""
        ...


def max_force(_data: Dataset, _target: str, _boundary: float) -> Risk:
    return lambda d: np.array(
        [np.linalg.norm(p.forces, axis=1).max() for p in d.predictions]
    )


def atom_count(_data: Dataset, _target: str, _boundary: float) -> Risk:
    return lambda d: np.array([float(len(p.numbers)) for p in d.predictions])


def distance(data: Dataset, _target: str, _boundary: float) -> Risk:
    fitted = Mahalanobis.fit(*_atoms(data))
    return lambda d: _by_structure(fitted, d)


def neighbours(data: Dataset, _target: str, _boundary: float) -> Risk:
    numbers, features = _atoms(data)
    chosen = np.random.default_rng(0).permutation(len(numbers))[:NEIGHBOURS_FROM]
    fitted = Neighbours.fit(numbers[chosen], features[torch.from_numpy(chosen)])
    return lambda d: _by_structure(fitted, d)


def rigidity(data: Dataset, target: str, _boundary: float) -> Risk:
    sums = _sums(data)
    fitted = Rigidity.fit(sums.T @ sums, len(sums))

    def risk(d: Dataset) -> np.ndarray:
        if target == "energy":
            return fitted(_sums(d)).sqrt().numpy()
        sizes = torch.tensor([len(p.numbers) for p in d.predictions])
        if target == "energy_per_atom":
            return (fitted(_sums(d)).sqrt() / sizes).numpy()
        local = [fitted(p.features).mean().sqrt() for p in d.predictions]
        return torch.stack(local).numpy()

    return risk


def committee(_data: Dataset, target: str, _boundary: float) -> Risk:
    def of(p: Prediction) -> float:
        energy, forces = (p.results[name] for name in SPREADS)
        if target == "forces":
            return float(np.sqrt(np.mean(forces**2)))
        return float(energy) / (len(p.numbers) if target == "energy_per_atom" else 1)

    return lambda d: np.array([of(p) for p in d.predictions])


def logistic(data: Dataset, _target: str, boundary: float) -> Risk:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=200))
    model.fit(_pooled(data), data.errors > boundary)
    return lambda d: model.decision_function(_pooled(d))


def boosting(data: Dataset, _target: str, boundary: float) -> Risk:
    model = HistGradientBoostingClassifier(
        max_iter=150, learning_rate=0.05, max_leaf_nodes=8, min_samples_leaf=10
    )
    model.fit(_pooled(data), data.errors > boundary)
    return lambda d: model.decision_function(_pooled(d))


def network(recipe: Recipe) -> Row:
    """Return a row for an attention network alone."""

    def fit(data: Dataset, target: str, boundary: float) -> Risk:
        labels = Labels(_label(target), boundary=boundary)
        probe, _ = fit_single(data, BACKBONE, labels, recipe, boundary)
        return lambda d: -margins(probe, d)

    return fit


ROWS: dict[str, Row] = {
    "latent distance": distance,
    "nearest neighbours": neighbours,
    "prediction rigidity": rigidity,
    "max force": max_force,
    "atom count": atom_count,
    "logistic, pooled": logistic,
    "boosting, pooled": boosting,
}
# Settings of the table; the published scripts have 1 000 and at least 256.
PASSES: dict[str, Any] = {"epochs": 200, "batch_size": 64}
NETWORKS = {  # by kind: the raw published network takes four times as long
    "networks": {
        "our attention alone": Recipe(architecture="standard"),
        "published, standardised": Recipe.published(architecture="standard", **PASSES),
    },
    "published": {"published, raw": Recipe.published(**PASSES)},
}
COMMITTEE: dict[str, Row] = {"committee": committee}
KINDS: dict[str, dict[str, Row]] = {"rows": ROWS, "committee": COMMITTEE} | {
    kind: {name: network(how) for name, how in recipes.items()}
    for kind, recipes in NETWORKS.items()
}
OURS = "uqcalc"
KINDS[OURS] = {}  # the probe alone, which is among the rows, too


def ours(train: Dataset, target: str, boundary: float, seed: int) -> Probe:
    """Fit the default probe with its default recipe."""
    labels = Labels(_label(target), boundary=boundary)
    recipe = Recipe(seed=seed)
    few = train.subset(np.arange(min(50, len(train))))
    return fit_datasets(train, None, few, BACKBONE, labels, recipe).probe


def judged(
    row: Row,
    train: Dataset,
    test: Dataset,
    target: str,
    boundary: float,
    *,
    believed: bool,
    refits: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return (risk, P(reliable)) on ``test``; without ``believed``, P is None.

    The two parameters of Platt's calibration are fitted to groups that are left out of
    refits, as for uqcalc. A network with many labels takes minutes a fit: without
    ``refits`` they are fitted to the tenth of the groups that chose its epoch.
    """
    fitted = row(train, target, boundary)
    risk = _whole(fitted(test))
    if not believed:
        return risk, None
    if refits:
        rows = np.arange(len(train))
        left_out = _left_out(row, train, target, boundary)
    else:
        rng = np.random.default_rng(Recipe().seed)
        rows = validation_split(train, rng)[1]
        left_out = fitted(train.subset(rows))
    reliable = train.errors[rows] <= boundary
    return risk, calibrated(_whole(left_out), reliable, risk)


def _left_out(row: Row, train: Dataset, target: str, boundary: float) -> np.ndarray:
    found = np.empty(len(train))
    for kept, rows in folds(train):
        fitted = row(train.subset(kept), target, boundary)
        found[rows] = fitted(train.subset(rows))
    return found


def folds(train: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return, for each fold of groups, the other structures and those of the fold."""
    fold = group_folds(train.groups, FOLDS, 0)
    return [
        (np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(FOLDS)
    ]


def refitted(kind: str, labels: int) -> bool:
    """Return whether rows of this kind are calibrated by refits."""
    return kind not in NETWORKS or labels < MANY


def calibrated(
    left_out: np.ndarray, reliable: np.ndarray, risk: np.ndarray
) -> np.ndarray:
    """Return P(reliable); the prevalence if the risk ranks no better than chance."""
    from uqcalc.errors import LabelError

    logs = [np.log(x - min(0.0, left_out.min()) + 1e-9) for x in (left_out, risk)]
    if left_out.min() < 0:  # it is a logit already
        logs = [left_out, risk]
    try:
        slope, intercept = platt(-logs[0], reliable)
    except LabelError:
        return np.full(len(risk), reliable.mean())
    return 1 / (1 + np.exp(-np.clip(-slope * logs[1] + intercept, -500, 500)))


def _label(target: str) -> str:
    return "forces" if target == "atoms" else target


def _atoms(data: Dataset) -> tuple[np.ndarray, torch.Tensor]:
    numbers = np.concatenate([p.numbers for p in data.predictions])
    return numbers, torch.cat([p.features for p in data.predictions])


def _by_structure(fitted: Any, data: Dataset) -> np.ndarray:
    of_atoms = fitted(*_atoms(data)).numpy()
    cuts = np.cumsum([len(p.numbers) for p in data.predictions])[:-1]
    return np.array([part.mean() for part in np.split(of_atoms, cuts)])


def _sums(data: Dataset) -> torch.Tensor:
    return torch.stack([p.features.double().sum(dim=0) for p in data.predictions])


def _pooled(data: Dataset) -> np.ndarray:
    rows = []
    for p in data.predictions:
        h = p.features.numpy()
        rows.append(np.concatenate([h.mean(0), h.max(0), h.min(0), h.std(0)]))
    return np.array(rows)


def _whole(risk: np.ndarray) -> np.ndarray:
    """Replace NaN, as for unseen elements, by the largest risk."""
    known = np.isfinite(risk)
    return np.where(known, risk, risk[known].max() if known.any() else 0.0)
