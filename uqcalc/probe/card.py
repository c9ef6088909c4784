"""The card of a probe: everything a reader must know before believing it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from uqcalc.errors import ProbeError
from uqcalc.policy import Policy, Threshold


SCHEMA = 1
ARCHITECTURES = ("standard", "probe-2026")
RAW_ARCHITECTURE = "probe-2026"  # published layout: energy and atom count enter raw
UNITS = {"energy": "eV", "forces": "eV/Å"}


@dataclass(frozen=True, slots=True)
class Card:
    """What a probe was fitted on, for which backbone, and what its answer means.

    Attributes
    ----------
    fingerprint : str
        Of the backbone whose features it reads (``Backbone.fingerprint``).
    target : str
        "energy" (absolute error of the total energy) or "forces" (RMS error over
        the structure's force components).
    boundary : float
        Errors up to it are reliable, in ``unit``.
    percentile : float or None
        Percentile of the training errors the boundary was taken at, if it was.
    architecture : str
        "standard", or "probe-2026" for the published one with its raw inputs.
    shape : dict
        Of the network (`uqcalc.probe.network.Shape`).
    calibration : (slope, intercept)
        P(reliable) = sigmoid(slope * (logit_0 - logit_1) + intercept)
        (Platt 1999).
    suspect, unreliable : float
        Cutoffs on P(reliable), below which a prediction is SUSPECT, UNRELIABLE.
    elements : list of int
        Atomic numbers seen in the labels; empty where nobody knows (imported).
    sizes : (smallest, largest)
        Atoms per labelled structure; empty where nobody knows.
    atom_energies : dict
        eV per element (by atomic number) subtracted from the predicted energy.
    """

    fingerprint: str
    target: str
    boundary: float
    architecture: str
    shape: dict[str, Any]
    elements: list[int]
    sizes: list[int]
    percentile: float | None = None
    calibration: tuple[float, float] = (1.0, 0.0)
    suspect: float = 0.8
    unreliable: float = 0.5
    atom_energies: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    description: str = ""
    uqcalc_version: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.target not in UNITS:
            msg = f"target must be one of {sorted(UNITS)}, got {self.target!r}"
            raise ProbeError(msg)
        if self.architecture not in ARCHITECTURES:
            msg = (
                f"architecture of a probe must be one of {ARCHITECTURES}, got "
                f"{self.architecture!r}; upgrade uqcalc"
            )
            raise ProbeError(msg)
        if not (math.isfinite(self.boundary) and self.boundary > 0):
            msg = (
                "boundary of a probe must be finite and positive, got "
                f"{self.boundary} {self.unit}; fit the probe with another boundary"
            )
            raise ProbeError(msg)
        if not 0 <= self.unreliable <= self.suspect <= 1:
            msg = (
                "cutoffs on P(reliable) must satisfy 0 <= unreliable <= suspect <= 1, "
                f"got unreliable={self.unreliable} and suspect={self.suspect}"
            )
            raise ProbeError(msg)

    @property
    def unit(self) -> str:
        """Unit of the boundary."""
        return UNITS[self.target]

    @property
    def feature_dim(self) -> int:
        """Width of the features it reads."""
        return int(self.shape["features"])

    @property
    def charges(self) -> bool:
        """Whether it reads atomic charges."""
        return bool(self.shape["charges"])

    def element_energies(self) -> NDArray[np.float64]:
        """Return ``atom_energies`` by atomic number, (119,) in eV."""
        energies = np.zeros(119)
        for z, energy in self.atom_energies.items():
            energies[int(z)] = energy
        return energies

    def policy(self) -> Policy:
        """Return the policy that the stored cutoffs amount to."""
        return Policy([Threshold("probe", 1 - self.suspect, 1 - self.unreliable)])

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form with the unit spelled out."""
        return asdict(self) | {"unit": self.unit}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Card:
        """Rebuild from `to_dict`.

        Raises
        ------
        ProbeError
            For a newer schema, missing or unknown entries, or another unit.
        """
        entries = dict(data)
        schema = int(entries.get("schema", 0))
        if schema > SCHEMA:
            msg = (
                f"schema of a probe must be at most {SCHEMA} for this version of "
                f"uqcalc, got {schema}; upgrade uqcalc"
            )
            raise ProbeError(msg)
        unit = entries.pop("unit", None)
        known = {f.name for f in fields(cls)}
        required = {"fingerprint", "target", "boundary", "architecture", "shape"}
        required |= {"elements", "sizes", "calibration"}
        if not required <= set(entries) <= known:
            msg = (
                f"card of a probe must have the entries {sorted(required)}, got "
                f"{sorted(entries)}; the file is not a probe or is damaged"
            )
            raise ProbeError(msg)
        entries["calibration"] = tuple(entries["calibration"])
        card = cls(**entries)
        if unit != card.unit:
            msg = (
                f"boundary of a probe for {card.target} must be in {card.unit}, got "
                f"{unit!r}; fit the probe again"
            )
            raise ProbeError(msg)
        return card

    def __str__(self) -> str:
        symbols = ", ".join(chemical_symbols[z] for z in self.elements)
        sizes = " to ".join(str(size) for size in self.sizes)
        what = {"energy": "total energy error", "forces": "RMS force error"}
        return (
            f"probe for {self.fingerprint} ({self.architecture}): "
            f"P({what[self.target]} <= {self.boundary:.4g} {self.unit}); "
            f"elements {symbols or 'not stated'}; {sizes or 'any number of'} atoms"
        )
