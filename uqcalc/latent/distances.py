"""How far features lie from those of a fit, element by element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn


# An element of fewer atoms than this many times the width shares its covariance.
OWN_COVARIANCE = 4
# Below this share of the largest spread a feature is constant.
_CONSTANT = 1e-6


class AtomSample:
    """A uniform sample of atoms of each element, from a stream of structures.

    Parameters
    ----------
    per_element : int
        Atoms kept of an element at most; memory stays below twice as many.
    seed : int
    """

    def __init__(self, per_element: int, seed: int = 0) -> None:
        self._limit = per_element
        self._rng = np.random.default_rng(seed)
        self._rows: dict[int, list[torch.Tensor]] = {}
        self._keys: dict[int, list[NDArray[np.float64]]] = {}
        self.seen: dict[int, int] = {}

    def add(self, numbers: NDArray[np.int64], features: torch.Tensor) -> None:
        """Offer the atoms of some structures: (atoms,) and (atoms, dim)."""
        on_host = features.detach().to("cpu", torch.float32)
        for z in np.unique(numbers).tolist():
            rows = np.flatnonzero(numbers == z)
            self._rows.setdefault(z, []).append(on_host[torch.from_numpy(rows)])
            self._keys.setdefault(z, []).append(self._rng.random(len(rows)))
            self.seen[z] = self.seen.get(z, 0) + len(rows)
            if sum(map(len, self._keys[z])) > 2 * self._limit:
                self._thin(z)

    def arrays(self) -> tuple[NDArray[np.int64], torch.Tensor]:
        """Return the numbers and the features of all that was kept."""
        for z in self._rows:
            self._thin(z)
        kept = sorted(self._rows)
        counts = [len(self._keys[z][0]) for z in kept]
        return np.repeat(kept, counts), torch.cat([self._rows[z][0] for z in kept])

    def _thin(self, z: int) -> None:
        """Keep the smallest of random keys: each atom with the same chance."""
        keys = np.concatenate(self._keys[z])
        best = np.sort(np.argsort(keys, kind="stable")[: self._limit])
        self._keys[z] = [keys[best]]
        self._rows[z] = [torch.cat(self._rows[z])[torch.from_numpy(best)]]


class PerElement(nn.Module):
    """A distance of atoms to the fit's atoms of the same element, per element."""

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

        About 1 for an atom like those of the fit, whatever the width; NaN for an
        element that was not in it.
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

    Class-conditional Gaussians (Lee et al. 2018, arXiv:1807.03888) with a covariance of
    their own, shrunk (Ledoit & Wolf 2004, doi:10.1016/S0047-259X(03)00096-4), where an
    element has at least ``OWN_COVARIANCE * dim`` atoms, and else the pooled one.
    """

    names = ("means", "whitening", "which")
    means: torch.Tensor
    whitening: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__(tensors)
        self._which: list[int] = tensors["which"].tolist()

    @classmethod
    def fit(cls, numbers: NDArray[np.int64], features: torch.Tensor) -> Self:
        """Fit to atoms: (atoms,) and (atoms, dim)."""
        centre, scale, standard = _standardised(features)
        means, whitening, which = [], [], []
        within = standard.clone()
        own: list[tuple[int, torch.Tensor]] = []
        elements = np.unique(numbers).tolist()
        for index, z in enumerate(elements):
            mine = torch.from_numpy(numbers == z)
            means.append(standard[mine].mean(dim=0))
            within[mine] -= means[-1]
            if int(mine.sum()) >= OWN_COVARIANCE * standard.shape[1]:
                own.append((index, mine))
        whitening.append(_whitening(shrunk_covariance(within)))
        which = [0] * len(elements)
        for index, mine in own:
            which[index] = len(whitening)
            whitening.append(_whitening(shrunk_covariance(within[mine])))
        return cls(
            {
                "elements": torch.tensor(elements),
                "centre": centre,
                "scale": scale,
                "means": torch.stack(means),
                "whitening": torch.stack(whitening).float(),
                "which": torch.tensor(which),
            }
        )

    def of_element(self, index: int, standard: torch.Tensor) -> torch.Tensor:
        """Return sqrt((x - m)^T C^-1 (x - m) / dim), (atoms,)."""
        whitening = self.whitening[self._which[index]].double()
        white = (standard - self.means[index]) @ whitening
        distances: torch.Tensor = white.square().mean(dim=1).sqrt()
        return distances


@final
class Neighbours(PerElement):
    """Mean distance to the fit's nearest atoms of the same element, over sqrt(dim).

    Distances are between features that were standardised over all atoms.
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
        """Keep these atoms, (atoms,) and (atoms, dim), as references."""
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
        """Return the mean over the nearest, (atoms,), or over all of a few."""
        start, end = self._spans[index]
        references = self.references[start:end].double()
        apart = torch.cdist(standard, references) / standard.shape[1] ** 0.5
        few = min(self._nearest, end - start)
        closest: torch.Tensor = apart.topk(few, largest=False).values.mean(dim=1)
        return closest + 0 * standard.sum(dim=1)  # topk of NaN may be a number


def shrunk_covariance(centred: torch.Tensor) -> torch.Tensor:
    """Return the Ledoit-Wolf covariance of centred rows, (dim, dim).

    ``(1 - s) S + s mu I`` with ``mu = tr(S) / dim`` and the share s that is expected to
    be closest to the true one (doi:10.1016/S0047-259X(03)00096-4).
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


def _whitening(covariance: torch.Tensor) -> torch.Tensor:
    """Return W with W W^T the inverse of a covariance."""
    eye = torch.eye(len(covariance)).to(covariance)
    floor = _CONSTANT * covariance.diagonal().mean() + 1e-12
    factor = torch.linalg.cholesky(covariance + floor * eye)
    inverse: torch.Tensor = torch.linalg.solve_triangular(factor, eye, upper=False)
    return inverse.T.contiguous()


def _standardised(
    features: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return centre and scale (dim,), and standard features, in double precision."""
    rows = features.detach().cpu().double()
    centre, spread = rows.mean(dim=0), rows.std(dim=0, correction=0)
    largest = float(spread.max()) or 1.0
    scale = torch.where(spread > _CONSTANT * largest, spread, largest)
    return centre, scale, (rows - centre) / scale


def _on(index: NDArray[np.int64], like: torch.Tensor) -> torch.Tensor:
    """Copy indices to the device, which is not waited for."""
    return torch.from_numpy(index).to(like.device, non_blocking=like.is_cuda)
