"""TorchANI: features are the atomic environment vectors (AEVs)."""

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
from uqcalc.backbones.passmemory import Costs
from uqcalc.errors import BackboneError


@final
class TorchANIBackbone(LazyBackbone):
    """A ``torchani.ase.Calculator``; features are the AEVs, (atoms, 1008) in ANI-2x.

    AEVs are descriptors without trained parameters. All members of an ensemble use the
    same AEVs, so that an ensemble needs one pass. This pass gives the energy and forces
    of each member on demand, with one backward pass for each member. For
    `uqcalc.ForceSpread` wrap the ensemble itself: a `uqcalc.Committee` of its members
    would compute the AEVs for each. ANIq and ANImbis also give charges, with sum zero.
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
        """Listen to the networks, because a stress calculation bypasses the model.

        Charges are read after their normalisation to sum zero, because the calculator
        drops them, and so does the model in a stress calculation.
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
        """Listen to the members of the ensemble, too, if there are ``extras``.

        Coordinates are those from which the first neighbour list is made.
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
                    if energy.requires_grad  # False for a single atom
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
        """Add the terms outside the networks, such as repulsion, to each member."""
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
        """Refuse films and wires whose open directions are not along the axes, too.

        TorchANI gives wrong results for them: version 2.9 wraps atoms into the cell in
        fractional coordinates, but reverts this in open directions in Cartesian ones.
        """
        super().check_structure(atoms)
        if atoms.pbc.all() or not atoms.pbc.any():
            return
        cell = atoms.cell.complete().array
        across = cell - np.diag(np.diag(cell))
        across[np.ix_(atoms.pbc, atoms.pbc)] = 0.0
        if np.abs(across).max() > 1e-6:
            msg = (
                "cell vectors of directions with pbc=False must lie along x, y and "
                "z, at right angles to the other vectors, for TorchANI, got "
                f"{cell.tolist()} with pbc {atoms.pbc.tolist()}; rotate the "
                "structure, or make it periodic in all directions with enough vacuum"
            )
            raise BackboneError(msg)

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:  # noqa: ARG002
        """Return an empty dict: ANI reads only the geometry; molecules are neutral."""
        return {}


def _members(model: Any) -> list[torch.nn.Module]:
    """Return the networks that the model averages; an empty list if merged."""
    networks = model.nnp.neural_networks
    members = getattr(networks, "members", None)
    if members is None:
        return []
    return [members[index] for index in networks.active_members_idxs]


def _own_list(model: Any) -> torch.nn.Module | None:
    """Return the AEV computer's own neighbour list, or None."""
    found: torch.nn.Module | None = getattr(
        model.nnp.aev_computer, "neighborlist", None
    )
    return found


def _check(owner: Any) -> None:
    """Raise an error for a calculator that cannot be tapped in one pass."""
    if isinstance(owner.model, torch.jit.ScriptModule):
        msg = (
            "ANI model must be eager to be tapped, got a TorchScript one, which "
            "accepts no hooks; make the calculator with model.ase(jit=False)"
        )
        raise BackboneError(msg)
    if owner._stress_kind == "numerical":
        msg = (
            "stress_kind must need one pass of the model, got 'numerical', which "
            "needs thirteen; make the calculator with "
            "model.ase(stress_kind='scaling')"
        )
        raise BackboneError(msg)


def _fingerprint(model: Any) -> str:
    """Hash the networks, the constants of the AEVs and the pair potentials."""
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
