"""Inputs of a probe for many systems, and their plain numbers computed on the device.

The functions here give the same numbers as `uqcalc.probe.numbers.from_host` and
`uqcalc.probe.inputs`, which compute them in NumPy for one structure after another. Here
thousands of systems are described by a fixed number of tensor operations, none of which
waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from ase.units import GPa

from uqcalc.probe.inputs import Ragged, lengths
from uqcalc.probe.numbers import ELEMENTS, FLOOR, OF_STRESS, STRESS_FLOOR, FromHost


class Batch(NamedTuple):
    """Inputs of a probe for a ragged batch, all on one device.

    Attributes
    ----------
    features : tensor (atoms, dim)
        float32, not standardised.
    numbers : integer tensor (atoms,)
        Atomic numbers.
    sizes : sequence of int
        Atoms of each structure.
    scalars : tensor (structures, 4)
        `inputs.host_scalars`; for the published architecture (structures, 2).
    host : FromHost or None
        Plain numbers; None if the probe has a single path.
    charges : tensor (atoms,) or None
        Atomic charges in e.
    floors : tensor (structures,) or None
        `scope.AtomFloor` of each structure; None if the probe has none.
    """

    features: torch.Tensor
    numbers: torch.Tensor
    sizes: Sequence[int]
    scalars: torch.Tensor
    host: FromHost | None
    charges: torch.Tensor | None
    floors: torch.Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class BatchPass:
    """Results of one pass of many systems, all on one device.

    Attributes
    ----------
    numbers : integer tensor (atoms,)
        Atomic numbers.
    system : integer tensor (atoms,)
        Index of the system of each atom, increasing from 0.
    sizes : sequence of int
        Atoms of each system.
    features : tensor (atoms, dim)
    energies : tensor (systems,)
        In eV.
    forces : tensor (atoms, 3)
        In eV/Å.
    stresses : tensor (systems, 3, 3) or None
        In eV/Å³; None without a stress.
    volumes : tensor (systems,)
        In Å³.
    periodic, solid : bool
        Whether one, or all, of the three directions are periodic.
    """

    numbers: torch.Tensor
    system: torch.Tensor
    sizes: Sequence[int]
    features: torch.Tensor
    energies: torch.Tensor
    forces: torch.Tensor
    stresses: torch.Tensor | None
    volumes: torch.Tensor
    periodic: bool
    solid: bool

    @property
    def counts(self) -> torch.Tensor:
        """Atoms of each system, (systems,)."""
        return lengths(self.sizes, self.system.device)


def numbers_of_batch(
    given: BatchPass,
    atom_energies: torch.Tensor,
    counts: torch.Tensor | None,
    of_cells: float | None,
    *,
    stress: bool = False,
) -> FromHost:
    """Return what `uqcalc.probe.numbers.from_host` gives, in the same order.

    Parameters
    ----------
    given : BatchPass
    atom_energies : tensor (119,)
        eV that are subtracted from the energies.
    counts : tensor (119,) or None
        Atoms of each element in the labels; None leaves out the rarest element (NaN).
    of_cells : float, optional
        As for `uqcalc.probe.inputs.log_count`.
    stress : bool
        Whether to give the numbers of the stress.
    """
    device = given.system.device
    ragged, atoms = Ragged(given.sizes, device), given.counts.double()
    squares = given.forces.double().square().sum(dim=1)
    norms = squares.sqrt()
    logs = (norms + FLOOR).log()
    means = ragged.mean(
        torch.stack([squares, logs, atom_energies.double()[given.numbers]], dim=1)
    )
    log_atoms = atoms.log()
    if of_cells is not None and given.periodic:
        log_atoms = torch.full_like(log_atoms, of_cells)
    shares = _shares(given, atoms)
    rows = [
        given.energies.double() / atoms - means[:, 2],
        log_atoms,
        ((means[:, 0] / 3).sqrt() + FLOOR).log(),
        (ragged.max(norms[:, None])[:, 0] + FLOOR).log(),
        (_medians(norms, given, atoms) + FLOOR).log(),
        means[:, 1],
        *_composition(shares, counts),
    ]
    of_stress = _stress_numbers(given, atoms) if stress else squares.new_empty(0)
    return FromHost(
        given.sizes,
        torch.stack(rows, dim=1).float(),
        shares.float(),
        logs.float(),
        of_stress.reshape(len(given.sizes), -1).float(),
    )


def raw_scalars_of_batch(given: BatchPass, atom_energies: torch.Tensor) -> torch.Tensor:
    """Return `uqcalc.probe.inputs.raw_scalars` of each system, (systems, 2)."""
    atoms = given.counts.double()
    free = atom_energies.double()[given.numbers, None]
    mean = Ragged(given.sizes, given.system.device).mean(free)[:, 0]
    energies = given.energies.double() - mean * atoms
    return torch.stack([energies, atoms], dim=1).float()


def distinct_atoms_of_batch(given: BatchPass) -> torch.Tensor:
    """Return `uqcalc.probe.inputs.distinct_atoms` of each system, (systems,)."""
    norms = given.forces.double().square().sum(dim=1).sqrt()
    steps = (norms.nan_to_num() * 1e3).round().clamp(max=2.0**34 - 1).long()
    kinds = (given.system.long() * 128 + given.numbers.long()) * 2**34 + steps
    ordered = kinds.sort().values
    new = torch.ones_like(ordered)
    new[1:] = (ordered[1:] != ordered[:-1]).long()
    found = new.new_zeros(len(given.sizes))
    return found.index_add(0, ordered // (128 * 2**34), new)


def _shares(given: BatchPass, atoms: torch.Tensor) -> torch.Tensor:
    """Return the share of each element in each system, (systems, 119)."""
    place = given.system.long() * ELEMENTS + given.numbers.long()
    counted = atoms.new_zeros(len(given.sizes) * ELEMENTS)
    counted = counted.index_add(0, place, torch.ones_like(place, dtype=atoms.dtype))
    return counted.view(-1, ELEMENTS) / atoms[:, None]


def _medians(
    norms: torch.Tensor, given: BatchPass, atoms: torch.Tensor
) -> torch.Tensor:
    """Return the median of the force norms of each system, (systems,)."""
    by_size = norms.argsort(stable=True)
    order = by_size[given.system[by_size].argsort(stable=True)]
    ordered, count = norms[order], atoms.long()
    starts = count.cumsum(0) - count
    return (ordered[starts + (count - 1) // 2] + ordered[starts + count // 2]) / 2


def _composition(
    shares: torch.Tensor, counts: torch.Tensor | None
) -> list[torch.Tensor]:
    """Return the seven numbers of a composition, each (systems,)."""
    numbers = torch.arange(ELEMENTS, device=shares.device, dtype=shares.dtype)
    present = shares > 0
    centre = shares @ numbers
    spread = (shares @ numbers.square() - centre.square()).clamp(min=0.0).sqrt()
    rarest = torch.full_like(centre, math.nan)
    if counts is not None:
        known = counts.double().expand_as(shares)
        rarest = (known.where(present, math.inf).amin(dim=1) + 1).log()
    of_numbers = numbers.expand_as(shares)
    return [
        present.sum(dim=1).double(),
        -torch.xlogy(shares, shares).sum(dim=1),
        centre,
        spread,
        of_numbers.where(present, math.inf).amin(dim=1),
        of_numbers.where(present, -math.inf).amax(dim=1),
        rarest,
    ]


def _stress_numbers(given: BatchPass, atoms: torch.Tensor) -> torch.Tensor:
    """Return `uqcalc.probe.numbers.stress_numbers` of each system, (systems, 4)."""
    if given.stresses is None or not given.solid:
        return torch.full((len(atoms), len(OF_STRESS)), math.nan, device=atoms.device)
    stresses = given.stresses.double()
    stresses = (stresses + stresses.mT) / 2
    pressures = -stresses.diagonal(dim1=1, dim2=2).mean(dim=1)
    squares = stresses.square().sum(dim=(1, 2))
    rows = [
        ((squares / 9).sqrt() + STRESS_FLOOR).log(),
        (pressures.abs() + STRESS_FLOOR).log(),
        (pressures / GPa).asinh(),
        (given.volumes.double() / atoms).log(),
    ]
    return torch.stack(rows, dim=1)
