"""What a signal says of many samples, beside their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uqcalc.errors import LabelError


@dataclass(frozen=True, slots=True, eq=False)
class Risks:
    """What a signal says of some samples, in the order they were read.

    Attributes
    ----------
    order, risks, errors : arrays (structures,)
        Index of each; the risk, NaN where the signal does not run; and the error, NaN
        where there is no label.
    elements : list of sets
        Atomic numbers of each.
    """

    order: NDArray[np.int64]
    risks: NDArray[np.float64]
    errors: NDArray[np.float64]
    elements: list[set[int]]

    def where(self, chosen: NDArray[np.bool_]) -> Risks:
        """Return those of the samples."""
        elements = [self.elements[i] for i in np.flatnonzero(chosen)]
        return Risks(
            self.order[chosen], self.risks[chosen], self.errors[chosen], elements
        )

    def refuse_missing(self, target: str) -> None:
        """Refuse samples without an error (LabelError)."""
        if len(missing := self.order[np.isnan(self.errors)]):
            msg = (
                f"every frame must have a finite reference for {target}, got none in "
                f"{len(missing)} (the first: frame {missing.min()}); leave them out, "
                "or name the key in labels"
            )
            raise LabelError(msg)

    def refuse_unknown(self, name: str, everything: Risks) -> None:
        """Say that these are few because ``name`` knows no risk of the others."""
        if lost := len(everything.order) - len(self.order):
            msg = (
                f"the signal {name!r} must know the risk of enough frames, got none "
                f"for {lost} of {len(everything.order)}, such as frames of elements "
                "that it was not fitted on; fit it on these, or choose another signal"
            )
            raise LabelError(msg)
