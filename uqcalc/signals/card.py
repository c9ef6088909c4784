"""The card of a fitted signal, and what was held out of its fit.

Reading a card takes no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from uqcalc.errors import SignalError
from uqcalc.files.entries import check_elements, checked
from uqcalc.files.tensorfile import Kind


if TYPE_CHECKING:
    import torch

SCHEMA = 2
FILE = Kind(
    name="fitted signal",
    key="uqcalc_signal",
    error=SignalError,
    make="fit one, for example with uqcalc.LatentDistance.fit",
    otherwise="copy it again, or fit it again",
    checked_since=2,
    unknown=("held_out.risks",),
)


@dataclass(frozen=True, slots=True)
class SignalCard:
    """What a signal was fitted on, for which backbone, and what its risk means.

    Attributes
    ----------
    kind : str
        Which signal it is, such as "latent_distance".
    fingerprint : str
        Of the backbone (``Backbone.fingerprint``).
    feature_dim : int
        Width of the features it reads; 0 where it reads none.
    elements : list of int
        Atomic numbers that were in the fit.
    risk : str
        What the risk is, in words; ``unit`` is its unit, empty for a pure number.
    settings : dict
        How it was fitted and how it reads.
    training : dict
        Counts of what it was fitted on, and of what was held out.
    report : dict
        What was found on the frames that were held out.
    notes : list of str
        What a reader must know before believing it.
    """

    kind: str
    fingerprint: str
    feature_dim: int
    elements: list[int]
    risk: str
    unit: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    uqcalc_version: str = field(default_factory=lambda: version("uqcalc"))
    schema: int = SCHEMA

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> SignalCard:
        """Rebuild a card.

        Raises
        ------
        SignalError
            For a newer schema, and for entries that are missing or unknown.
        """
        schema = data.get("schema", 0)
        if not isinstance(schema, int) or schema > SCHEMA:
            msg = (
                f"schema of a fitted signal must be at most {SCHEMA} for this version "
                f"of uqcalc, got {schema!r}; upgrade uqcalc"
            )
            raise SignalError(msg)
        what = "card of a fitted signal"
        card = cls(**checked(cls, data, what, SignalError, FILE.otherwise))
        what = "elements of a fitted signal"
        check_elements(card.elements, what, SignalError, FILE.otherwise)
        return card

    def __str__(self) -> str:
        symbols = " ".join(chemical_symbols[z] for z in self.elements)
        unit = f" in {self.unit}" if self.unit else ""
        return f"{self.kind} for {self.fingerprint}: {self.risk}{unit}; {symbols}"


@dataclass(frozen=True, slots=True, eq=False)
class HeldOut:
    """Risks of structures that were not in a fit, (structures,), and their groups."""

    risks: NDArray[np.float64]
    groups: NDArray[np.int64]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return both for a file."""
        import torch

        return {
            "held_out.risks": torch.from_numpy(np.asarray(self.risks, dtype=float)),
            "held_out.groups": torch.from_numpy(np.asarray(self.groups, dtype=int)),
        }

    @classmethod
    def none(cls) -> HeldOut:
        """Return what there is where nothing was held out."""
        return cls(np.empty(0), np.empty(0, dtype=int))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> HeldOut:
        """Rebuild from `tensors`."""
        risks, groups = tensors["held_out.risks"], tensors["held_out.groups"]
        return cls(risks.numpy(), groups.numpy())


def read_signal(
    path: str | os.PathLike[str],
) -> tuple[SignalCard, dict[str, torch.Tensor]]:
    """Return card and tensors of a file of any fitted signal.

    Raises
    ------
    SignalError
        If it holds none.
    """
    tensors, entries = FILE.read(path)
    return SignalCard.from_dict(entries), tensors
