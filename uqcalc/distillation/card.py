"""The card of a distilled head, read without torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from uqcalc.errors import ModelError
from uqcalc.files.card import FileCard
from uqcalc.files.tensorfile import Kind


LARGEST = 100_000  # width of a layer; a larger number is damage
FILE = Kind(
    name="distilled head",
    key="uqcalc_direct_head",
    error=ModelError,
    make="make one with uqcalc distill",
    otherwise="copy it again, or distil another one",
    checked_since=2,
    schema=2,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadCard(FileCard):
    """What a head was distilled from, and how closely it follows its potential.

    The entries of every card are described in `uqcalc.files.card.FileCard`; the
    ``report`` has the held-out RMSE in eV/Å and R² against the potential's own forces.

    Attributes
    ----------
    features, vectors : int
        Width of the features and channels of the vectors that the head reads.
    cutoff : float
        In Å.
    hidden : int
        Width of the hidden layers.

    Raises
    ------
    ModelError
        If an entry is impossible.
    """

    file: ClassVar[Kind] = FILE

    features: int
    vectors: int
    cutoff: float
    hidden: int
    schema: int = FILE.schema

    def __post_init__(self) -> None:
        FileCard.__post_init__(self)
        sizes = (self.features, self.hidden, self.vectors + 1)
        if not (all(1 <= n <= LARGEST for n in sizes) and 0 < self.cutoff < math.inf):
            msg = (
                f"features, hidden and vectors of a {FILE.name} must be sizes from 1 "
                f"to {LARGEST}, and its cutoff positive and finite, got "
                f"{self.features}, {self.hidden}, {self.vectors} and {self.cutoff}; "
                f"{FILE.otherwise}"
            )
            raise ModelError(msg)
