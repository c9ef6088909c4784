"""Labels of one system that were added to a fitted probe: their part of the card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from uqcalc.errors import ProbeError
from uqcalc.files.entries import checked
from uqcalc.probe.calibration import Calibration
from uqcalc.probe.scope import Scope


@dataclass(frozen=True, slots=True)
class Added:
    """Labels of one system that were added to a probe, the prior.

    The labels have their own calibration and scope. Inside their scope the probability
    is that of their calibration, far outside that of the prior
    (`uqcalc.probe.addedpaths`).

    Attributes
    ----------
    centres, atom_centres : int
        Kernel centres of the corrections of structures and of atoms; no
        ``atom_centres`` if only the prior judges atoms.
    calibration : Calibration
        That of the prior, with ``system`` fitted to the added labels.
    scope : Scope
        Limits of the added labels.
    atom_calibration : Calibration or None
        As ``calibration``, of single atoms.
    name, checksum : str
        File of the prior, and the checksum in it; empty if it was not read from a file.
    """

    centres: int
    atom_centres: int
    calibration: Calibration
    scope: Scope
    atom_calibration: Calibration | None = None
    name: str = ""
    checksum: str = ""

    def __post_init__(self) -> None:
        if self.centres < 1 or self.atom_centres < 0:
            msg = (
                "added labels of a probe must have kernel centres, got "
                f"{self.centres} and {self.atom_centres}; the file is damaged, fit the "
                "probe again"
            )
            raise ProbeError(msg)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; `from_dict` reads it back."""
        return asdict(self) | {"scope": self.scope.to_dict()}

    @classmethod
    def from_dict(cls, data: object) -> Added:
        """Rebuild from `to_dict`.

        Raises
        ------
        ProbeError
            If an entry is missing, unknown or of another type; the message names it.
        """
        what = "added labels of a probe"
        if not isinstance(data, Mapping) or "scope" not in data:
            return cls(**checked(cls, data, what, ProbeError))  # raises
        # an unknown share of the scope is None in a file
        scope = Scope.from_dict(data["scope"])
        plain = dict(data) | {"scope": asdict(replace(scope, outside=0.0))}
        return cls(**checked(cls, plain, what, ProbeError) | {"scope": scope})

    def at(self, boundary: float, unit: str = "") -> Added:
        """Return the part of a card for another boundary, in ``unit``."""
        return replace(self, calibration=self.calibration.at(boundary, unit))
