"""The card of a fitted signal, and the risks of structures held out of its fit.

This module does not import torch at load time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from uqcalc.errors import SignalError
from uqcalc.files.card import FileCard
from uqcalc.files.tensorfile import Kind


if TYPE_CHECKING:
    import torch

FILE = Kind(
    name="fitted signal",
    key="uqcalc_signal",
    error=SignalError,
    make="fit one, for example with uqcalc.LatentDistance.fit",
    otherwise="copy it again, or fit it again",
    checked_since=2,
    unknown=("held_out.risks",),
    schema=2,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignalCard(FileCard):
    """Fit data, backbone and meaning of the risk of a fitted signal.

    The entries of every card are described in `uqcalc.files.card.FileCard`. Its
    ``training`` counts the structures in the fit and the structures held out.

    Attributes
    ----------
    kind : str
        Kind of signal, such as "latent_distance".
    feature_dim : int
        Width of the features that the signal reads; 0 if it reads no features.
    risk : str
        Meaning of the risk in words.
    unit : str
        Unit of the risk; empty for a dimensionless risk.
    settings : dict
        Settings of the fit and of the reading.
    notes : list of str
        Warnings for the user of the signal.
    """

    file: ClassVar[Kind] = FILE

    kind: str
    feature_dim: int
    risk: str
    unit: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    schema: int = FILE.schema

    def _facts(self) -> list[str]:
        unit = f" in {self.unit}" if self.unit else ""
        return [f"{self.kind}, {self.risk}{unit}", *FileCard._facts(self)]


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
