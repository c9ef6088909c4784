"""The card of a fitted signal, and the risks of structures held out of its fit.

This module does not import torch at load time.
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
    """Fit data, backbone and meaning of the risk of a fitted signal.

    Attributes
    ----------
    kind : str
        Kind of signal, such as "latent_distance".
    fingerprint : str
        Fingerprint of the backbone (``Backbone.fingerprint``).
    feature_dim : int
        Width of the features that the signal reads; 0 if it reads no features.
    elements : list of int
        Atomic numbers in the fit.
    risk : str
        Meaning of the risk in words.
    unit : str
        Unit of the risk; empty for a dimensionless risk.
    settings : dict
        Settings of the fit and of the reading.
    training : dict
        Counts of the structures in the fit and of the structures held out.
    report : dict
        Statistics of the held-out frames.
    notes : list of str
        Warnings for the user of the signal.
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
        """Build a card from a dict.

        Raises
        ------
        SignalError
            If the schema is newer, or if entries are missing or unknown.
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
    """Risks and groups of the structures held out of a fit, both (structures,)."""

    risks: NDArray[np.float64]
    groups: NDArray[np.int64]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return risks and groups as tensors for a file."""
        import torch

        return {
            "held_out.risks": torch.from_numpy(np.asarray(self.risks, dtype=float)),
            "held_out.groups": torch.from_numpy(np.asarray(self.groups, dtype=int)),
        }

    @classmethod
    def none(cls) -> HeldOut:
        """Return empty arrays, for a fit without held-out structures."""
        return cls(np.empty(0), np.empty(0, dtype=int))

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> HeldOut:
        """Build it from the output of `tensors`."""
        risks, groups = tensors["held_out.risks"], tensors["held_out.groups"]
        return cls(risks.numpy(), groups.numpy())


def read_signal(
    path: str | os.PathLike[str],
) -> tuple[SignalCard, dict[str, torch.Tensor]]:
    """Return card and tensors from the file of any fitted signal.

    Raises
    ------
    SignalError
        If the file does not hold a fitted signal.
    """
    tensors, entries = FILE.read(path)
    return SignalCard.from_dict(entries), tensors
