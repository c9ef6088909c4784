"""TorchANI: the atomic environment vectors that the networks of a model read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from ase import Atoms, units

from uqcalc.backbones.base import Capture, Prediction
from uqcalc.backbones.fingerprint import fingerprint
from uqcalc.backbones.lazy import LazyBackbone
from uqcalc.backbones.load import Costs
from uqcalc.errors import BackboneError


@final
class TorchANIBackbone(LazyBackbone):
    """A ``torchani.ase.Calculator``; features are the AEVs, (atoms, 1008) in ANI-2x.

    They are descriptors that nothing has learned. All members of an ensemble read the
    same ones, so that an evaluation of it is one pass. That pass gives each member's
    energy and forces on demand, at one backward pass a member: wrap the ensemble itself
    for `uqcalc.ForceSpread`, rather than a `uqcalc.Committee` of its members, which
    would compute the AEVs for each. ANIq and ANImbis give charges, too; they sum to
    zero.
    """

    name = "torchani"
    by_autograd = True

    def __init__(self, calculator: Any, model_calculator: Any | None = None) -> None:
        owner = calculator if model_calculator is None else model_calculator
        _check(owner)
        model = owner.model
        super().__init__(
            calculator,
            owner,
            feature_dim=int(model.aev_computer.out_dim),
            fingerprint=_fingerprint(model),
            elements=frozenset(model.atomic_numbers.tolist()),
        )
        self.cutoff = float(model.aev_computer.radial.cutoff)
        self.reads = frozenset()
        angles = float(model.aev_computer.angular.cutoff)
        self.costs = Costs(pair=5e3, triple=1e3, angles=angles)
        if hasattr(model.nnp, "charge_normalizer"):
            self.provides |= {"charges"}
        elif len(_members(model)) > 1:
            self.provides |= {"committee_energies", "committee_forces"}
            self.on_demand = frozenset({"committee_energies", "committee_forces"})

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Listen to the networks, not to the model: with stress it is run past.

        Charges are read where they have just been made to sum to zero, since the
        calculator drops them, and with stress the model does, too.
        """
        captured = Capture([], [])
        potential = self.model_calculator.model.nnp

        def vectors(
            _module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> None:
            aevs = args[1] if len(args) > 1 else kwargs["aevs"]
            captured.features.append(aevs.detach().squeeze(0))

        def charges(
            _module: torch.nn.Module, _args: tuple[Any, ...], output: torch.Tensor
        ) -> None:
            captured.charges.append(output.detach().squeeze(0))

        networks = potential.neural_networks
        handles = [networks.register_forward_pre_hook(vectors, with_kwargs=True)]
        if "charges" in self.provides:
            normalizer = potential.charge_normalizer
            handles.append(normalizer.register_forward_hook(charges))
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def armed_for(self, extras: frozenset[str]) -> Iterator[Capture]:
        """Listen to the members of the ensemble as well, where they are wanted.

        Coordinates are what the neighbour list is made of; the first list is of all.
        """
        if not extras:
            with self.armed() as captured:
                yield captured
            return
        model = self.model_calculator.model
        networks = model.nnp.neural_networks
        coordinates: list[torch.Tensor] = []
        energies: list[torch.Tensor] = []

        def note(_module: torch.nn.Module, args: tuple[Any, ...]) -> None:
            coordinates.append(args[2])

        def one(
            _module: torch.nn.Module, _args: tuple[Any, ...], output: torch.Tensor
        ) -> None:
            energies.append(output.sum())

        with self.armed() as captured, ExitStack() as stack:

            def all_of_them(*_: Any) -> None:
                place = coordinates[0]
                gradients = [
                    torch.autograd.grad(
                        energy, place, retain_graph=True, materialize_grads=True
                    )[0]
                    if energy.requires_grad  # not of an atom alone
                    else torch.zeros_like(place)
                    for energy in energies
                ]
                captured.more["committee_energies"] = torch.stack(energies).detach()
                captured.more["committee_forces"] = -torch.cat(gradients)

            lists = {id(m): m for m in (model.neighborlist, _own_list(model)) if m}
            hooks = [part.register_forward_pre_hook(note) for part in lists.values()]
            hooks += [part.register_forward_hook(one) for part in _members(model)]
            hooks.append(networks.register_forward_hook(all_of_them))
            for hook in hooks:
                stack.callback(hook.remove)
            yield captured

    def _prediction(self, atoms: Atoms, captured: Capture) -> Prediction:
        """Put what is no network's, such as a repulsion, into each member's answer."""
        given = [
            captured.more.pop(name, None)
            for name in ("committee_energies", "committee_forces")
        ]
        prediction = super()._prediction(atoms, captured)
        if given[0] is None or given[1] is None:
            return prediction
        energies, forces = (
            torch.as_tensor(value).double().cpu().numpy() * units.Hartree
            for value in given
        )
        return replace(
            prediction,
            committee_energies=prediction.energy + energies - energies.mean(),
            committee_forces=prediction.forces + forces - forces.mean(axis=0),
        )

    def check_structure(self, atoms: Atoms) -> None:
        """Refuse films and wires across the axes, too: TorchANI gets them wrong.

        Version 2.9 wraps atoms into the cell by fractional coordinates, and then
        undoes it in the directions without images by Cartesian ones.
        """
        super().check_structure(atoms)
        if atoms.pbc.all() or not atoms.pbc.any():
            return
        cell = atoms.cell.complete().array
        across = cell - np.diag(np.diag(cell))
        across[np.ix_(atoms.pbc, atoms.pbc)] = 0.0
        if np.abs(across).max() > 1e-6:
            msg = (
                "cell vectors without images must lie along their axes, and the "
                f"others at right angles, for TorchANI, got {cell.tolist()} with pbc "
                f"{atoms.pbc.tolist()}; rotate the structure, or make it periodic in "
                "all directions with enough vacuum"
            )
            raise BackboneError(msg)

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:  # noqa: ARG002
        """ANI reads nothing but the geometry: all its molecules are neutral."""
        return {}


def _members(model: Any) -> list[torch.nn.Module]:
    """Return the networks whose mean the model takes; none where they are merged."""
    networks = model.nnp.neural_networks
    members = getattr(networks, "members", None)
    if members is None:
        return []
    return [members[index] for index in networks.active_members_idxs]


def _own_list(model: Any) -> torch.nn.Module | None:
    """Return the neighbour list that AEVs may be made with past the model's own."""
    found: torch.nn.Module | None = getattr(
        model.nnp.aev_computer, "neighborlist", None
    )
    return found


def _check(owner: Any) -> None:
    """Refuse what cannot be tapped, or not in one pass."""
    if isinstance(owner.model, torch.jit.ScriptModule):
        msg = (
            "ANI model must be eager to be tapped, got a TorchScript one, which "
            "accepts no hooks; make the calculator with model.ase(jit=False)"
        )
        raise BackboneError(msg)
    if owner._stress_kind == "numerical":
        msg = (
            "stress_kind must be one that takes one pass, got 'numerical', which takes "
            "thirteen; make the calculator with model.ase(stress_kind='scaling')"
        )
        raise BackboneError(msg)


def _fingerprint(model: Any) -> str:
    """Hash the networks, the AEVs' constants and the pair potentials beside them."""
    floats = [v for v in model.state_dict().values() if v.is_floating_point()]
    potentials = sorted(
        (name, round(float(potential.cutoff), 6))
        for name, potential in model.potentials.items()
        if potential._enabled
    )
    constants: list[object] = [
        model.atomic_numbers.tolist(),
        potentials,
        list(model.neural_networks.active_members_idxs),
    ]
    return fingerprint("torchani", floats, constants)
