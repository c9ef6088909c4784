"""Errors of the checks, and the tolerances for numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from uqcalc.errors import UqcalcError


class ContractError(UqcalcError, AssertionError):
    """A backbone or a signal breaks a clause of its contract.

    Attributes
    ----------
    clause : str
        Name of the clause; the message says what was found instead.
    """

    def __init__(self, clause: str, message: str) -> None:
        self.clause = clause
        super().__init__(f"{clause}: {message}")


@dataclass(frozen=True)
class Limits:
    """Largest differences of two results on one frame, and the checks that use them."""

    rtol: float = 0.0
    atol: float = 0.0
    force_atol: float = 0.0
    step: float = 0.0
    exact: bool = True
    frame: str = ""

    def require(self, clause: str, holds: bool, message: str) -> None:  # noqa: FBT001
        """Raise ContractError unless ``holds``."""
        if not holds:
            where = f" (frame {self.frame!r})" if self.frame else ""
            raise ContractError(clause, message + where)

    def close(self, clause: str, ours: Any, theirs: Any, what: str) -> None:
        """Compare to round-off, relative to the largest value; NaN equals NaN."""
        a, b = to_array(ours), to_array(theirs)
        self.require(clause, a.shape == b.shape, f"{what}: {a.shape} != {b.shape}")
        # an infinite stress of a molecule without a cell is the calculator's own
        differ = ~((np.isnan(a) & np.isnan(b)) | (a == b))
        size = float(np.abs(b[np.isfinite(b)]).max(initial=0.0))
        a, b = a[differ], b[differ]
        limit = self.atol + self.rtol * size
        worst = float(np.abs(a - b).max(initial=0.0))
        message = f"{what} must agree to {limit:.1e}, got a difference of {worst:.1e}"
        self.require(clause, worst <= limit, message)

    def same(self, clause: str, ours: Any, theirs: Any, what: str) -> None:
        """Compare bitwise, or to round-off where sums are not reproducible."""
        if self.exact:
            self.bitwise(clause, ours, theirs, what)
        else:
            self.close(clause, ours, theirs, what)

    def bitwise(self, clause: str, ours: Any, theirs: Any, what: str) -> None:
        """Compare bitwise; NaN equals NaN."""
        alike = np.array_equal(to_array(ours), to_array(theirs), equal_nan=True)
        self.require(clause, alike, f"{what} must be bitwise equal")


def to_array(value: Any) -> np.ndarray:
    """Return numbers or tensors as an array on the host."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return np.asarray(value)
