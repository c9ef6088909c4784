"""Latent distance: distance of an atom's features to the fit, per element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, final

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from numpy.typing import NDArray
from torch import nn

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.signals.base import TensorReading
from uqcalc.signals.card import HeldOut, SignalCard
from uqcalc.signals.fitted import FittedSignal, fit_card
from uqcalc.signals.samples import Samples, Split
from uqcalc.statistics.mahalanobis import squared_distances, whitening


if TYPE_CHECKING:
    from uqcalc.labels.dataset import Dataset


# Elements with fewer atoms than this multiple of the width use the pooled covariance.
OWN_COVARIANCE = 4
# A feature counts as constant below this fraction of the largest spread.
_CONSTANT = 1e-6


class AtomSample:
    """A uniform sample of atoms of each element, from a stream of structures.

    Parameters
    ----------
    per_element : int
        Largest number of atoms kept per element; memory holds about twice as many.
    seed : int
    """

    def __init__(self, per_element: int, seed: int = 0) -> None:
        self._limit = per_element
        self._rng = np.random.default_rng(seed)
        self._rows: dict[int, list[torch.Tensor]] = {}
        self._keys: dict[int, list[NDArray[np.float64]]] = {}
        self.seen: dict[int, int] = {}

    def add(self, numbers: NDArray[np.int64], features: torch.Tensor) -> None:
        """Add atoms to the stream: numbers (atoms,), features (atoms, dim)."""
        on_host = features.detach().to("cpu", torch.float32)
        for z in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == z)
            self._rows.setdefault(z, []).append(on_host[torch.from_numpy(rows)])
            self._keys.setdefault(z, []).append(self._rng.random(len(rows)))
            self.seen[z] = self.seen.get(z, 0) + len(rows)
            if sum(map(len, self._keys[z])) > 2 * self._limit:
                self._thin(z)

    def arrays(self) -> tuple[NDArray[np.int64], torch.Tensor]:
        """Return atomic numbers (kept,) and features (kept, dim) of the kept atoms."""
        for z in self._rows:
            self._thin(z)
        kept = sorted(self._rows)
        counts = [len(self._keys[z][0]) for z in kept]
        return np.repeat(kept, counts), torch.cat([self._rows[z][0] for z in kept])

    def _thin(self, z: int) -> None:
        """Keep the atoms with the smallest random keys: a uniform sample."""
        keys = np.concatenate(self._keys[z])
        best = np.sort(np.argsort(keys, kind="stable")[: self._limit])
        self._keys[z] = [keys[best]]
        self._rows[z] = [torch.cat(self._rows[z])[torch.from_numpy(best)]]


class PerElement(nn.Module):
    """Base class: distance of an atom to the fit's atoms of the same element."""

    names: tuple[str, ...]
    centre: torch.Tensor
    scale: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        for name in ("elements", "centre", "scale", *self.names):
            self.register_buffer(name, tensors[name])
        self.known: list[int] = tensors["elements"].tolist()
        self._index = {z: i for i, z in enumerate(self.known)}

    def forward(
        self, numbers: NDArray[np.int64], features: torch.Tensor
    ) -> torch.Tensor:
        """Return the distance of every atom, (atoms,) in double precision.

        It is about 1 for an atom like those of the fit, for any feature width, and NaN
        for an element outside the fit.
        """
        order = np.argsort(numbers, kind="stable")
        kinds, counts = np.unique(numbers, return_counts=True)
        standard = (features.double() - self.centre) / self.scale
        pieces = standard[_on(order, features)].split(counts.tolist())
        found = [
            self.of_element(self._index[z], piece)
            if z in self._index
            else torch.full_like(piece[:, 0], torch.nan)
            for z, piece in zip(kinds.tolist(), pieces, strict=True)
        ]
        return torch.cat(found)[_on(np.argsort(order), features)]

    def of_element(self, index: int, standard: torch.Tensor) -> torch.Tensor:
        """Return the distances of atoms of one element, (atoms,)."""
        raise NotImplementedError


@final
class Mahalanobis(PerElement):
    """Mahalanobis distance to the Gaussian of an atom's element, over sqrt(dim).

    Each element has a Gaussian (Lee et al. 2018, arXiv:1807.03888). An element with at
    least ``OWN_COVARIANCE * dim`` atoms has its own covariance; the others use the
    pooled one. Both are shrunk (Ledoit & Wolf 2004,
    doi:10.1016/S0047-259X(03)00096-4). ``probe_novelty`` of a probe is computed from
    the square of such a distance, with one covariance C + 1e-3 I for all elements
    (`uqcalc.probe.inputs.Statistics`).
    """

    names = ("means", "whitening", "which")
    means: torch.Tensor
    whitening: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self._which: list[int] = tensors["which"].tolist()

    @classmethod
    def fit(cls, numbers: NDArray[np.int64], features: torch.Tensor) -> Self:
        """Fit to atoms: numbers (atoms,), features (atoms, dim)."""
        centre, scale, standard = _standardised(features)
        means, matrices, which = [], [], []
        within = standard.clone()
        own: list[tuple[int, torch.Tensor]] = []
        elements = np.unique(numbers).tolist()
        for index, z in enumerate(elements):
            mine = torch.from_numpy(numbers == z)
            means.append(standard[mine].mean(dim=0))
            within[mine] -= means[-1]
            if int(mine.sum()) >= OWN_COVARIANCE * standard.shape[1]:
                own.append((index, mine))
        matrices.append(_whitened(shrunk_covariance(within)))
        which = [0] * len(elements)
        for index, mine in own:
            which[index] = len(matrices)
            matrices.append(_whitened(shrunk_covariance(within[mine])))
        return cls(
            {
                "elements": torch.tensor(elements),
                "centre": centre,
                "scale": scale,
                "means": torch.stack(means),
                "whitening": torch.stack(matrices).float(),
                "which": torch.tensor(which),
            }
        )

    def of_element(self, index: int, standard: torch.Tensor) -> torch.Tensor:
        """Return sqrt((x - m)^T C^-1 (x - m) / dim), (atoms,)."""
        own = self.whitening[self._which[index]].double()
        return squared_distances(standard - self.means[index], own).sqrt()


@final
class Neighbours(PerElement):
    """Mean distance to the fit's nearest atoms of the same element, over sqrt(dim).

    The features are standardised over all atoms of the fit.
    """

    names = ("references", "counts", "nearest")
    references: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        ends = np.cumsum(tensors["counts"].numpy())
        self._spans = list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True))
        self._nearest = int(tensors["nearest"])

    @classmethod
    def fit(
        cls, numbers: NDArray[np.int64], features: torch.Tensor, *, nearest: int = 5
    ) -> Self:
        """Store atoms as references: numbers (atoms,), features (atoms, dim)."""
        centre, scale, standard = _standardised(features)
        elements, counts = np.unique(numbers, return_counts=True)
        order = torch.from_numpy(np.argsort(numbers, kind="stable"))
        return cls(
            {
                "elements": torch.from_numpy(elements),
                "centre": centre,
                "scale": scale,
                "references": standard[order].float(),
                "counts": torch.from_numpy(counts),
                "nearest": torch.tensor(nearest),
            }
        )

    def of_element(self, index: int, standard: torch.Tensor) -> torch.Tensor:
        """Return the mean distance to the nearest references, (atoms,).

        If the element has fewer references than ``nearest``, all of them count.
        """
        start, end = self._spans[index]
        references = self.references[start:end].double()
        apart = torch.cdist(standard, references) / standard.shape[1] ** 0.5
        few = min(self._nearest, end - start)
        closest: torch.Tensor = apart.topk(few, largest=False).values.mean(dim=1)
        return closest + 0 * standard.sum(dim=1)  # keeps NaN: topk may drop it


def shrunk_covariance(centred: torch.Tensor) -> torch.Tensor:
    """Return the Ledoit-Wolf covariance of centred rows, (dim, dim).

    ``(1 - s) S + s mu I`` with the sample covariance S, ``mu = tr(S) / dim``, and the s
    with the smallest expected squared error (doi:10.1016/S0047-259X(03)00096-4).
    """
    count, width = centred.shape
    covariance = centred.T @ centred / count
    mean = covariance.diagonal().mean()
    eye = torch.eye(width).to(covariance)
    apart = (covariance - mean * eye).square().sum()
    noise = (centred.square().sum(dim=1).square().sum() / count) - (
        covariance.square().sum()
    )
    share = (noise / count / apart).clamp(0, 1) if apart > 0 else 0.0
    return (1 - share) * covariance + share * mean * eye


def _whitened(covariance: torch.Tensor) -> torch.Tensor:
    """Return W with W Wᵀ = C⁻¹; a floor keeps C invertible with constant features."""
    return whitening(
        covariance, _CONSTANT * float(covariance.diagonal().mean()) + 1e-12
    )


def _standardised(
    features: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return centre and scale (dim,) and standardised features, double precision."""
    rows = features.detach().cpu().double()
    centre, spread = rows.mean(dim=0), rows.std(dim=0, correction=0)
    largest = float(spread.max()) or 1.0
    scale = torch.where(spread > _CONSTANT * largest, spread, largest)
    return centre, scale, (rows - centre) / scale


def _on(index: NDArray[np.int64], like: torch.Tensor) -> torch.Tensor:
    """Copy indices to the device of ``like``, without waiting for the copy."""
    return torch.from_numpy(index).to(like.device, non_blocking=like.is_cuda)


# Default for the largest number of atoms per element in a fit.
PER_ELEMENT = {"mahalanobis": 5000, "nearest": 1000}
_CLASSES: dict[str, type[Mahalanobis | Neighbours]] = {
    "mahalanobis": Mahalanobis,
    "nearest": Neighbours,
}


@final
class LatentDistance(FittedSignal):
    """Distance of each atom's features to those of its element in the fit.

    It is dimensionless, and about 1 for atoms like those of the fit. It needs no
    labels. It measures how unusual a structure is, not its error. `fit` builds one.

    - "mahalanobis": ``sqrt((x - m)^T C^-1 (x - m) / dim)`` with mean and shrunk
      covariance of the element (Lee et al. 2018, arXiv:1807.03888; see
      `uqcalc.signals.distance.Mahalanobis`).
    - "nearest": mean distance to the k nearest atoms of the element in the fit,
      divided by ``sqrt(dim)``, with features standardised over all atoms.

    The risk is NaN for an element outside the fit; the note names it.

    Examples
    --------
    >>> from ase.build import molecule
    >>> from uqcalc import LatentDistance, open_model, tap
    >>> calculator = open_model("default")
    >>> frames = [molecule(name) for name in ("CH3OH", "C2H6", "NH3", "H2O")]
    >>> distance = LatentDistance.fit(frames, calculator)
    >>> stretched = molecule("CH3OH")
    >>> stretched.positions *= 1.2
    >>> known, unknown = (
    ...     float(distance(tap(calculator)(atoms, ["energy", "forces"])).risk)
    ...     for atoms in (frames[0], stretched)
    ... )
    >>> known < unknown
    True
    """

    kind = "latent_distance"
    settings_read: ClassVar[Mapping[str, Any]] = {
        "kind": Literal["mahalanobis", "nearest"],
        "reduce": Literal["mean", "max"],
    }

    def __init__(
        self, card: SignalCard, distance: PerElement, held_out: HeldOut | None = None
    ) -> None:
        super().__init__(card, held_out)
        self.distance = distance

    @classmethod
    def fit(
        cls,
        frames: Sequence[Atoms] | Dataset,
        calculator: BaseCalculator | Backbone,
        *,
        kind: str = "mahalanobis",
        reduce: str = "mean",
        nearest: int = 5,
        per_element: int | None = None,
        split: Split = Split(),  # noqa: B008  (frozen)
    ) -> Self:
        """Fit to structures that the potential describes well; no labels are needed.

        Parameters
        ----------
        frames : sequence of Atoms or Dataset
            The closer to the potential's own training set, the better.
        calculator : ase calculator or Backbone
            The potential; for a dataset, the potential that it was built with.
        kind : {"mahalanobis", "nearest"}
        reduce : {"mean", "max"}
            The risk is the mean or the maximum over atoms. The results hold both.
        nearest : int
            Number of nearest references, for "nearest".
        per_element : int, optional
            Largest number of atoms per element in the fit, drawn at random. By default
            5 000, for "nearest" 1 000.
        split : Split
            The groups that are held out for `threshold`.

        Raises
        ------
        ValueError
            If a setting is invalid.
        LabelError
            If a frame cannot be evaluated, or there are too few groups.
        """
        _check_settings(kind, reduce, nearest, per_element)
        samples = Samples(frames, calculator, group_key=split.group_key)
        fitting, held = samples.split(split)
        sample = AtomSample(per_element or PER_ELEMENT[kind], split.seed)
        for _, prediction, _ in samples.read(fitting, cls.requires):
            sample.add(prediction.numbers, prediction.features)
        numbers, features = sample.arrays()
        options = {"nearest": nearest} if kind == "nearest" else {}
        distance = _CLASSES[kind].fit(numbers, features, **options)
        card = fit_card(
            cls.kind,
            samples,
            sample.seen,
            features.shape[1],
            risk=f"{reduce} over atoms of the {kind} distance of the features",
            settings={"kind": kind, "reduce": reduce, **options},
            training=_counts(fitting, held, sample, len(numbers)),
        )
        signal = cls(card, distance)
        signal.hold_out(samples, held)
        return signal

    def __call__(self, prediction: Prediction) -> TensorReading:
        """Compute the distance of every atom on the device of the features."""
        features = prediction.features
        if self.distance.centre.device != features.device:
            self.distance.to(features.device)
        with torch.no_grad():
            per_atom = self.distance(prediction.numbers, features)
        mean, worst = per_atom.mean(), per_atom.max()
        results: dict[str, Any] = {
            "latent_distance": mean,
            "latent_distance_max": worst,
            "latent_distances": per_atom,
        }
        unseen = self.unseen_elements(prediction.numbers)
        return TensorReading(
            signal=self.name,
            risk=mean if self.card.settings["reduce"] == "mean" else worst,
            results=results,
            per_atom_key="latent_distances",
            note=f"elements {unseen} were not in its fit" if unseen else "",
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the means and whitening matrices, or the reference atoms."""
        return self.distance.state_dict()

    @classmethod
    def rebuild(
        cls, card: SignalCard, held_out: HeldOut, tensors: dict[str, torch.Tensor]
    ) -> Self:
        """Build the signal from the output of `tensors`."""
        kind = _CLASSES[card.settings["kind"]]
        return cls(card, kind(tensors), held_out)


def _counts(
    fitting: NDArray[np.int64], held: NDArray[np.int64], sample: AtomSample, used: int
) -> dict[str, int]:
    return {
        "structures": len(fitting),
        "held_out": len(held),
        "atoms": sum(sample.seen.values()),
        "atoms_used": used,
    }


def _check_settings(
    kind: str, reduce: str, nearest: int, per_element: int | None
) -> None:
    if kind not in _CLASSES:
        msg = f"kind must be one of {sorted(_CLASSES)}, got {kind!r}"
        raise ValueError(msg)
    if reduce not in {"mean", "max"}:
        msg = f"reduce must be 'mean' or 'max', got {reduce!r}"
        raise ValueError(msg)
    if nearest < 1 or (per_element is not None and per_element < 1):
        msg = (
            "nearest and per_element must be at least 1, got "
            f"{nearest} and {per_element}"
        )
        raise ValueError(msg)
