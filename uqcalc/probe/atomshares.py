r"""P of single atoms from the error of their structure and their shares in it.

The error of atom i is ``|ΔF_i| = E exp(share_i) r``. E is the error of the structure.
Its distribution is that of the probe: P(E <= b) at every boundary b. The share is
linear in the score and the log force of the atom, and the mean of exp(2 share) over a
structure is 1. The distribution of r comes from labels. P(\|ΔF_i\| <= b) is the mean
over E, by Gauss-Legendre quadrature at ten quantiles. So a structure and its atoms
cannot contradict each other, and repeating a cell changes no P.

`uqcalc.fitting.atoms` fits them. Torch is imported inside the functions that need it,
so that reading a card does not need it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from uqcalc.errors import ProbeError
from uqcalc.files.entries import checked
from uqcalc.probe.calibration import Calibration, interpolate


if TYPE_CHECKING:
    import torch

NODES = 10
# Log-odds of an atom are not resolved beyond this P in single precision.
_SURE = 1e-6


@dataclass(frozen=True, slots=True)
class AtomShares:
    """Shares of atoms in the error of their structure.

    Attributes
    ----------
    score, force : float
        The share of an atom grows by ``score`` for each unit that its score falls, and
        by ``force`` for each unit of its log force; both at least 0.
    knots : tuple of (log of r, log-odds)
        Distribution of r; both columns increase.
    """

    score: float
    force: float
    knots: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        rises = np.diff(np.array(self.knots), axis=0) > 0
        if min(self.score, self.force) < 0 or len(self.knots) < 2 or not rises.all():
            msg = (
                "atom shares of a probe must have weights of at least 0 and increasing "
                f"knots, got {self}; the file is damaged, fit the probe again"
            )
            raise ProbeError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> AtomShares:
        """Rebuild from `to_dict`.

        Raises
        ------
        ProbeError
            If an entry is missing, unknown or of another type; the message names it.
        """
        return cls(**checked(cls, data, "atom shares of a probe", ProbeError))

    def shares(
        self, scores: torch.Tensor, log_forces: torch.Tensor, sizes: Sequence[int]
    ) -> torch.Tensor:
        """Return the log shares (atoms,) from scores and log forces (atoms,)."""
        raw = self.force * log_forces - self.score * scores
        return raw - _log_rms(raw, sizes)

    def logits(
        self,
        calibration: Calibration,
        structures: torch.Tensor,
        shares: torch.Tensor,
        sizes: Sequence[int],
        boundary: float,
    ) -> torch.Tensor:
        r"""Return the log-odds of \|ΔF_i\| <= boundary, (atoms,).

        Parameters
        ----------
        calibration : Calibration
            Of structures; at several boundaries.
        structures : tensor (structures,)
            Log-odds of the structures at the calibration's own boundary.
        shares : tensor (atoms,)
            From `shares`. NaN gives NaN.
        sizes : sequence of int
            Atoms of each structure.
        boundary : float
            In eV/Å.
        """
        levels, weights = _nodes(shares.device, shares.dtype)
        errors = calibration.log_errors(structures.to(shares.dtype), levels)
        each = _of_atoms(errors, sizes, len(shares))
        left = float(np.log(boundary)) - each - shares[:, None]
        found: torch.Tensor = interpolate(left, self.knots).sigmoid() @ weights
        return found.clamp(_SURE, 1 - _SURE).logit()


def _log_rms(logs: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """Return the log of the RMS over the structure of each atom, (atoms,).

    The numbers are given by their logs, (atoms,).
    """
    from uqcalc.probe.inputs import Ragged

    if len(sizes) == 1:
        return ((2 * logs).logsumexp(dim=0) - float(np.log(len(logs)))) / 2
    ragged = Ragged(sizes, logs.device)
    largest = ragged.max(logs[:, None])  # so that no exponential overflows
    apart = logs[:, None] - _of_atoms(largest, sizes, len(logs))
    found = largest + ragged.mean((2 * apart).exp()).log() / 2
    return _of_atoms(found, sizes, len(logs))[:, 0]


def _of_atoms(rows: torch.Tensor, sizes: Sequence[int], atoms: int) -> torch.Tensor:
    """Return the row of its structure for each atom, (atoms, k)."""
    from uqcalc.probe.inputs import lengths

    if len(sizes) == 1:
        return rows.expand(atoms, rows.shape[1])
    # with the size of the output, torch does not wait for the device to count
    count = lengths(sizes, rows.device)
    return rows.repeat_interleave(count, dim=0, output_size=atoms)


@lru_cache(maxsize=8)
def _nodes(device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """Return the log-odds and the weights of the nodes, each (NODES,)."""
    import torch

    places, weights = np.polynomial.legendre.leggauss(NODES)
    with torch.inference_mode(mode=False):
        shares = torch.from_numpy((places + 1) / 2)
        return (
            shares.logit().to(device, dtype),
            torch.from_numpy(weights / 2).to(device, dtype),
        )
