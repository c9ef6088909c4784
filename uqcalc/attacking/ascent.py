"""One step towards where a model disagrees with itself: settings, gradients, bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from uqcalc.backbones.differentiable import CanDifferentiate


# Largest number of halvings of a step that brings atoms too close together.
HALVINGS = 6
# Steps below these (Å, and strain) count as rounding.
_NO_STEP, _NO_STRAIN = 1e-9, 1e-10


@dataclass(frozen=True, slots=True)
class AttackSettings:
    """How `uqcalc.attack` moves a structure, and where it stops.

    Attributes
    ----------
    alpha : float
        Weight of the gradient of U (eV/Å²) in a step (Å): in Å³/eV.
    beta : float
        Weight of the gradient of the energy (eV/Å), which keeps the energy low: in
        Å²/eV. Beyond 1 over the stiffest bond's force constant (C-H: about 30 eV/Å²)
        the energy oscillates.
    steps : int
        Largest number of steps of a path.
    starts : int
        Number of paths: the first from the structure itself, the others from rattled
        copies.
    rattle : float
        Standard deviation of each coordinate's displacement in those copies, in Å.
    seed : int
        Seed of the rattling; path k does not depend on the number of paths.
    max_step : float
        Largest displacement of an atom in one step, in Å: the whole step is scaled
        down to it. Displacements by a moving cell are bounded by ``max_strain``.
    closest : float
        Smallest distance of two atoms, periodic images included, as a fraction of the
        sum of their covalent radii (Cordero et al. 2008, doi:10.1039/b801115j). Bonds
        are rarely below 0.75. A step that goes below it is halved, at most six times.
    cell : {"fixed", "free"}
        Whether the cell is strained along the gradients, too.
    max_strain : float
        Largest component of the strain in one step.
    max_energy_rise : float, optional
        Largest energy of a frame above the first geometry of its path, in eV/atom.

    Raises
    ------
    ValueError
        If one of them is out of its range; the message names it.
    """

    alpha: float = 1.0
    beta: float = 0.01
    steps: int = 50
    starts: int = 1
    rattle: float = 0.05
    seed: int = 0
    max_step: float = 0.05
    closest: float = 0.6
    cell: Literal["fixed", "free"] = "fixed"
    max_strain: float = 0.01
    max_energy_rise: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("starts", 1), ("seed", 0)):
            _check_whole(name, getattr(self, name), least)
        for name in ("alpha", "beta", "rattle"):
            _check_number(name, getattr(self, name), zero=True)
        positive = ["max_step", "closest", "max_strain"]
        if self.max_energy_rise is not None:
            positive.append("max_energy_rise")
        for name in positive:
            _check_number(name, getattr(self, name), zero=False)
        if self.closest >= 1:
            msg = f"closest must be below 1, got {self.closest}; 0.6 is usual"
            raise ValueError(msg)
        if self.alpha == 0 and self.beta == 0:
            msg = (
                "alpha or beta must be above 0, got 0 for both, which moves no atom; "
                "raise one"
            )
            raise ValueError(msg)
        if self.starts > 1 and self.rattle == 0:
            msg = (
                f"rattle must be above 0 for {self.starts} starts, got 0, which makes "
                "all starts the same; raise rattle"
            )
            raise ValueError(msg)
        if self.cell not in {"fixed", "free"}:
            msg = f"cell must be 'fixed' or 'free', got {self.cell!r}"
            raise ValueError(msg)


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        msg = f"{name} must be a whole number of at least {least}, got {value!r}"
        raise ValueError(msg)


def _check_number(name: str, value: Any, *, zero: bool) -> None:
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        words = "at least 0" if zero else "above 0"
        msg = f"{name} must be a number {words}, got {value!r}"
        raise ValueError(msg)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Displacements (atoms, 3) in Å, and after them a symmetric strain (3, 3)."""

    displacements: np.ndarray
    strain: np.ndarray

    @property
    def finite(self) -> bool:
        """Whether all components are finite."""
        return bool(
            np.isfinite(self.displacements).all() and np.isfinite(self.strain).all()
        )

    @property
    def nothing(self) -> bool:
        """Whether the step is zero up to rounding."""
        return _longest(self) <= _NO_STEP and _largest(self) <= _NO_STRAIN

    def times(self, factor: float) -> Step:
        """Return the same step, scaled."""
        return Step(self.displacements * factor, self.strain * factor)

    def bounded(self, max_step: float, max_strain: float) -> Step:
        """Return the whole step, scaled down to these limits."""
        factors = [1.0]
        if (longest := _longest(self)) > max_step:
            factors.append(max_step / longest)
        if (largest := _largest(self)) > max_strain:
            factors.append(max_strain / largest)
        return self.times(min(factors))

    def apply(self, atoms: Atoms) -> Atoms:
        """Return a moved copy."""
        copy: Atoms = atoms.copy()
        stretch = np.eye(3) + self.strain
        copy.positions = (atoms.positions + self.displacements) @ stretch
        if self.strain.any():
            copy.set_cell(atoms.cell.array @ stretch)
        return copy


def _longest(step: Step) -> float:
    return float(np.linalg.norm(step.displacements, axis=1).max())


def _largest(step: Step) -> float:
    return float(np.abs(step.strain).max())


def uphill(
    atoms: Atoms, backbone: CanDifferentiate, signal: Any, settings: AttackSettings
) -> Step:
    """Return the step along alpha grad U - beta grad E, before any bound.

    "When Forces Disagree: A Data-Free Fast Uncertainty Estimate for Direct-Force
    Pre-trained Neural Network Potentials", 2025, equation 3: the derivative of U
    includes that of the conservative forces.

    The strain is the gradient with respect to strain divided by L² = N V^(2/3). So both
    parts of a step have one scale: a strain counts as the displacements that it causes
    in a cubic cell.
    """
    graph = backbone.differentiable(atoms)
    objective = torch.zeros((), dtype=torch.float64).to(graph.energy.device)
    if settings.alpha:
        uncertainty = signal.uncertainty(graph, atoms)
        if float(uncertainty.detach()) != 0:  # the square root has no gradient there
            objective = objective + settings.alpha * uncertainty.double()
    if settings.beta:
        objective = objective - settings.beta * graph.energy.double()
    step = Step(np.zeros((len(atoms), 3)), np.zeros((3, 3)))
    if not objective.requires_grad:
        return step
    gradients = torch.autograd.grad(
        objective, [graph.positions, graph.strain], materialize_grads=True
    )
    positions, strain = (g.detach().cpu().double().numpy() for g in gradients)
    if settings.cell == "fixed":
        return Step(positions, step.strain)
    square = len(atoms) * float(atoms.cell.volume) ** (2 / 3)
    return Step(positions, (strain + strain.T) / 2 / square)


def within_bounds(atoms: Atoms, step: Step, closest: float) -> Atoms | None:
    """Return ``atoms`` after ``step`` or a halved step; None if no step is allowed."""
    for _ in range(HALVINGS + 1):
        moved = step.apply(atoms)
        if not too_close(moved, closest):
            return moved
        step = step.times(0.5)
    return None


def too_close(atoms: Atoms, closest: float) -> list[tuple[int, int, float]]:
    """Return pairs below ``closest`` times the sum of covalent radii: i, j, Å."""
    spheres = closest * covalent_radii[atoms.numbers]
    pairs = zip(*neighbor_list("ijd", atoms, spheres), strict=True)
    return [(int(i), int(j), float(d)) for i, j, d in pairs if i <= j]
