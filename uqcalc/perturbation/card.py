"""The card of a learned perturbation, read without torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from uqcalc.errors import ModelError
from uqcalc.files.card import FileCard
from uqcalc.files.tensorfile import Kind


LARGEST = 100_000  # width of a layer; a larger number is damage
NOISE = ("structure", "atom")
FILE = Kind(
    name="perturbation",
    key="uqcalc_perturbation",
    error=ModelError,
    make="make one with uqcalc perturb",
    otherwise="copy it again, or train another one",
    schema=1,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PerturbationCard(FileCard):
    """Which layers of which model take noise, and how the noise was trained.

    The entries of every card are described in `uqcalc.files.card.FileCard`. The
    ``report`` has scores on held-out groups: ``crps_forces_eV_per_A`` and
    ``crps_energy_eV_per_atom`` of the members, ``mae_...`` of the potential itself,
    and ``spread_skill``.

    Attributes
    ----------
    layers : list of str
        Names of the layers, in the order of their weights.
    widths : list of int
        Number of channels that take noise, for each layer.
    dimension : int
        Length of the noise vector.
    noise : {"structure", "atom"}
        One noise vector for a whole structure, or one for each atom.
    changes_model : bool
        Whether the parameters of the model were trained, too, and are in the file. If
        False, the potential's own results stay as they are.

    Raises
    ------
    ModelError
        If an entry is impossible.
    """

    file: ClassVar[Kind] = FILE

    layers: list[str]
    widths: list[int]
    dimension: int
    noise: str = "structure"
    changes_model: bool = False
    schema: int = FILE.schema

    def __post_init__(self) -> None:
        FileCard.__post_init__(self)
        sizes = (self.dimension, *self.widths)
        sound = all(1 <= size <= LARGEST for size in sizes)
        if not (sound and 0 < len(self.layers) == len(self.widths)):
            msg = (
                f"layers of a {FILE.name} must each have a width from 1 to {LARGEST}, "
                f"and so must the noise, got {len(self.layers)} layers, widths "
                f"{self.widths[:5]} and {self.dimension}; {FILE.otherwise}"
            )
            raise ModelError(msg)
        if self.noise not in NOISE:
            msg = (
                f"noise of a {FILE.name} must be one of {list(NOISE)}, got "
                f"{self.noise!r}; {FILE.otherwise}"
            )
            raise ModelError(msg)
