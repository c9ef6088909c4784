"""The systems of a batch: their numbers, and rows that are taken out and put back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
import torch_sim as ts

from uqcalc.records import Assessment, Level
from uqcalc.torchsim.model import ReliableModel


SYSTEM = "uqcalc_system"  # extra of a state: the number of each system
_LISTS = {"per-atom": "atom_extras", "per-system": "system_extras"}


@dataclass(frozen=True, slots=True, eq=False)
class Left:
    """A system that was taken out of a run.

    Attributes
    ----------
    system : int
        Its number (`numbered`).
    step : int
        Step at which the trigger acted. For an optimiser: the number of checks of this
        system.
    kept_step : int
        Step of the state that was kept.
    kept_level : Level
        Level of the kept state. It is RELIABLE unless the system never was.
    reason : str
    assessment : Assessment
        Of the geometry at ``step``.
    """

    system: int
    step: int
    kept_step: int
    kept_level: Level
    reason: str
    assessment: Assessment


def numbered(systems: Any, model: ReliableModel) -> Any:
    """Return the state of many systems in which each has its number, from 0 on.

    The number is ``state.uqcalc_system``. It stays with the system when autobatchers
    sort, split and swap systems, and it is the ``system`` of all records.

    Parameters
    ----------
    systems : list of Atoms, SimState or what else ``torch_sim.initialize_state`` takes
    model : ReliableModel
        Its device and dtype are those of the state.
    """
    state = ts.initialize_state(systems, model.device, model.dtype)
    state.system_extras[SYSTEM] = torch.arange(state.n_systems, device=state.device)
    return state


def numbers_of(state: Any) -> list[int]:
    """Return the number of each system.

    Raises
    ------
    ValueError
        If the state has none.
    """
    settle(state)
    found = state.system_extras.get(SYSTEM)
    if found is None:
        msg = (
            "systems must be numbered so that records can name them, got a state "
            "without numbers; call state = uqcalc.torchsim.numbered(systems, model) "
            "and pass this state"
        )
        raise ValueError(msg)
    return [int(number) for number in found.tolist()]


def settle(state: Any, keys: Iterable[str] = ()) -> None:
    """Move extras of systems to their place where each system has a single atom.

    TorchSim then takes them for extras of atoms, and later cannot join this state with
    others. ``keys`` are those of the model, `ReliableModel.system_keys`.
    """
    extras = state.atom_extras
    if len(state.cell) == state.n_atoms:
        for key in {SYSTEM, *keys} & {*extras}:
            state.system_extras[key] = extras.pop(key)


def copied(state: Any) -> Any:
    """Return a copy without the graph that MACE leaves on the positions."""
    copy = state.clone()
    copy.positions, copy.cell = copy.positions.detach(), copy.cell.detach()
    return copy


def take(state: Any, systems: Sequence[int]) -> Any:
    """Return a state of some systems, with their thermostats and barostats."""
    part = state[list(systems)]
    rows = torch.tensor(list(systems), device=state.device)
    count = len(state.cell)
    for name, value in ts.state.get_attrs_for_scope(state, "global"):
        if _is_chain(value):
            chosen = {
                key: tensor[rows] for key, tensor in _by_system(value, count).items()
            }
            setattr(part, name, replace(value, **chosen))
    return part


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Places of some systems in a batch, and of their atoms; on the device."""

    systems: torch.Tensor
    atoms: torch.Tensor

    @classmethod
    def of(cls, state: Any, systems: Sequence[int]) -> Places:
        """Return the places of these systems, in this order."""
        ends = np.cumsum(state.n_atoms_per_system.tolist())
        starts = ends - np.diff(ends, prepend=0)
        atoms = np.concatenate([np.arange(starts[k], ends[k]) for k in systems])
        return cls(
            torch.tensor(list(systems), device=state.device),
            torch.from_numpy(atoms).to(state.device),
        )


def put(state: Any, part: Any, places: Places) -> None:
    """Write the systems of ``part`` into these places of ``state``.

    Entries of another shape, such as a padded Hessian, and entries that ``state`` lacks
    are not written.
    """
    index = {"per-atom": places.atoms, "per-system": places.systems}
    for scope, place in index.items():
        new = dict(ts.state.get_attrs_for_scope(part, scope))
        for name, old in list(ts.state.get_attrs_for_scope(state, scope)):
            value = new.get(name)
            if name == "system_idx" or value is None or not _fits(old, value):
                continue
            written = old.detach().index_copy(0, place, value.detach().to(old.dtype))
            extras = getattr(state, _LISTS[scope])
            if name in extras:
                extras[name] = written
            else:
                setattr(state, name, written)
    _put_chains(state, part, places.systems)


def _put_chains(state: Any, part: Any, rows: torch.Tensor) -> None:
    count, others = len(state.cell), len(part.cell)
    given = dict(ts.state.get_attrs_for_scope(part, "global"))
    for name, value in ts.state.get_attrs_for_scope(state, "global"):
        if not _is_chain(value):
            continue
        new = _by_system(given[name], others)
        setattr(
            state,
            name,
            replace(
                value,
                **{
                    key: old.index_copy(0, rows, new[key])
                    for key, old in _by_system(value, count).items()
                    if key in new
                },
            ),
        )


def _fits(old: Any, new: Any) -> bool:
    both = isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor)
    return both and old.shape[1:] == new.shape[1:]


def _is_chain(value: Any) -> bool:
    """Return whether a global entry of a state holds variables of each system.

    TorchSim slices states, but not the chains of a Nosé-Hoover thermostat or barostat.
    """
    return is_dataclass(value) and not isinstance(value, type)


def _by_system(chain: Any, count: int) -> dict[str, torch.Tensor]:
    """Return the entries of a chain with one row for each system."""
    values = {entry.name: getattr(chain, entry.name) for entry in fields(chain)}
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, torch.Tensor) and value.ndim and len(value) == count
    }
