"""The state of a run between two steps: atoms, random numbers, heat bath and cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from numpy.typing import NDArray


# # Variables of ASE's dynamics that are kept from step to step, besides the atoms.
# Langevin (BAOAB): accelerations, momentum of the cell and the force on it. Nosé-Hoover
# chains and MTK: coordinates and momenta of the chains and of the cell, and own copies
# of positions, momenta and cell.
_BAOAB = ("accel", "p_eps", "force_eps", "gamma_mod")
_CARRIED = (*_BAOAB, "_q", "_p", "_h", "_eps", "_p_eps", "_p_g", "_p_c")
_CHAINS = {"_thermostat": ("_eta", "_p_eta"), "_barostat": ("_xi", "_p_xi")}


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """All that the next step of a run depends on.

    Attributes
    ----------
    step : int
    positions, momenta : arrays (atoms, 3)
        In Å and in ASE's unit of momentum.
    cell : array (3, 3)
        In Å.
    generator : dict or None
        State of the random numbers; None if the dynamics draws none, or draws from a
        generator without a state of its own (``np.random``).
    carried : dict of arrays
        Further variables of heat bath and barostat, by the name of the attribute.
    """

    step: int
    positions: NDArray[np.float64]
    momenta: NDArray[np.float64]
    cell: NDArray[np.float64]
    generator: dict[str, Any] | None
    carried: dict[str, NDArray[np.float64]]

    @classmethod
    def of(cls, step: int, atoms: Atoms, dynamics: Any) -> State:
        """Copy the state of a run between two steps."""
        rng = getattr(dynamics, "rng", None)
        return cls(
            step,
            atoms.get_positions(),
            atoms.get_momenta(),
            atoms.cell.array.copy(),
            dict(rng.bit_generator.state)
            if isinstance(rng, np.random.Generator)
            else None,
            {
                name: np.array(getattr(place, attribute))
                for name, place, attribute in _places(dynamics)
            },
        )

    def place(self, atoms: Atoms, *, moving: bool) -> None:
        """Set cell and positions of ``atoms`` and, if ``moving``, their momenta."""
        atoms.set_cell(self.cell, scale_atoms=False, apply_constraint=False)
        atoms.set_positions(self.positions, apply_constraint=False)
        if moving:
            atoms.set_momenta(self.momenta, apply_constraint=False)

    def wind(self, dynamics: Any, *, noise: bool = True) -> None:
        """Set the variables of the dynamics; with ``noise`` the random numbers, too."""
        if noise and self.generator is not None:
            dynamics.rng.bit_generator.state = self.generator
        for name, place, attribute in _places(dynamics):
            if name in self.carried:
                value = self.carried[name]
                setattr(place, attribute, value.copy() if value.ndim else float(value))


def _places(dynamics: Any) -> list[tuple[str, Any, str]]:
    """Return (name, object, attribute) of each variable that the dynamics stores."""
    found = [(name, dynamics, name) for name in _CARRIED if _is_numeric(dynamics, name)]
    for part, names in _CHAINS.items():
        owner = getattr(dynamics, part, None)
        found += [
            (f"{part}.{name}", owner, name)
            for name in names
            if _is_numeric(owner, name)
        ]
    return found


def _is_numeric(owner: Any, name: str) -> bool:
    return isinstance(getattr(owner, name, None), float | np.ndarray)
