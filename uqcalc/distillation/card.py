"""The card of a distilled head, read without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from uqcalc.errors import ModelError
from uqcalc.files.entries import check_elements, checked
from uqcalc.files.tensorfile import Kind


SCHEMA = 2
LARGEST = 100_000  # of a layer; a larger number is no size
FILE = Kind(
    name="distilled head",
    key="uqcalc_direct_head",
    error=ModelError,
    make="make one with uqcalc distill",
    otherwise="copy it again, or distil another one",
    checked_since=2,
)


@dataclass(frozen=True, slots=True)
class HeadCard:
    """What a head was distilled from, and how closely it follows its potential.

    Attributes
    ----------
    fingerprint : str
        Of the backbone whose forces it repeats.
    features, vectors : int
        Width of the features and channels of the vectors it reads.
    cutoff : float
        In Å.
    elements : list of int
        Atomic numbers it has seen.
    report : dict
        Held-out RMSE in eV/Å and R² against the potential's own forces.
    """

    fingerprint: str
    features: int
    vectors: int
    cutoff: float
    hidden: int
    elements: list[int]
    report: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    uqcalc_version: str = ""
    schema: int = SCHEMA

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> HeadCard:
        """Rebuild a card.

        Raises
        ------
        ModelError
            For a newer schema, and naming an entry that is missing, unknown, of
            another type, or no size.
        """
        schema = data.get("schema", 1)
        if not isinstance(schema, int) or schema > SCHEMA:
            msg = (
                f"schema of a distilled head must be at most {SCHEMA} for this version "
                f"of uqcalc, got {schema!r}; upgrade uqcalc"
            )
            raise ModelError(msg)
        entries = dict(data) | {"schema": schema}
        card = cls(**checked(cls, entries, FILE.name, ModelError, FILE.otherwise))
        what = f"elements of a {FILE.name}"
        check_elements(card.elements, what, ModelError, FILE.otherwise)
        sizes = (card.features, card.hidden, card.vectors + 1)
        if not (all(1 <= n <= LARGEST for n in sizes) and 0 < card.cutoff < math.inf):
            msg = (
                f"features, hidden and vectors of a {FILE.name} must be sizes from 1 "
                f"to {LARGEST}, and its cutoff positive and finite, got "
                f"{card.features}, {card.hidden}, {card.vectors} and {card.cutoff}; "
                f"{FILE.otherwise}"
            )
            raise ModelError(msg)
        return card
