"""Any calculator with a torch module: the user names the layer of the features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from uqcalc.backbones.base import Backbone, Capture, one_at_a_time
from uqcalc.backbones.differentiable import Trainable
from uqcalc.backbones.fingerprint import fingerprint
from uqcalc.backbones.hooks import listen_to_output
from uqcalc.errors import BackboneError


@final
class ModuleBackbone(Backbone):
    """A calculator whose features are the output of a named sub-module.

    Parameters
    ----------
    calculator : ase calculator
        It must evaluate its model once in ``calculate``.
    module : str
        Dotted path from the calculator to the sub-module, ``"model.readout"``.
    select : callable, optional
        Returns the (atoms, dim) tensor from the sub-module's output, if the output is
        not this tensor. A leading axis of length one is removed.
    feature_dim : int, optional
        Width of the features; by default taken from the first pass.
    conservative : bool
        Whether the calculator's forces are the negative gradient of its energy.
    energy : callable, optional
        ``energy(atoms, positions)`` returns the model's energy in eV as a tensor (),
        from positions (atoms, 3) in Å that have a graph. `uqcalc.perturb` needs it.
    """

    name = "module"
    trains_in_batches = False

    def __init__(
        self,
        calculator: BaseCalculator,
        *,
        module: str,
        select: Callable[[Any], torch.Tensor] | None = None,
        feature_dim: int | None = None,
        conservative: bool = True,
        energy: Callable[[Atoms, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.conservative = conservative
        self._energy = energy
        self._root, self._module = _resolve(calculator, module)
        self._select = select
        super().__init__(
            calculator,
            calculator,
            feature_dim=feature_dim,
            fingerprint=fingerprint("module", self._root.parameters(), [module]),
        )

    @property
    def network(self) -> torch.nn.Module:
        """The first torch module on the path of the named one."""
        return self._root

    def models(self) -> list[object]:
        """Return the modules in the attributes, and the root of the named module."""
        return [*super().models(), self._root]

    def armed(self) -> AbstractContextManager[Capture]:
        """Listen to the output of the named sub-module during one call."""
        return listen_to_output(self._module, self._tensor)

    def feature_rows(self, captured: Capture, atoms: int) -> torch.Tensor:
        """Take the width from the first pass; later passes must have the same."""
        if self.feature_dim is None and captured.features:
            self.feature_dim = int(captured.features[0].shape[-1])
        return super().feature_rows(captured, atoms)

    @one_at_a_time
    def trainable(
        self, frames: Sequence[Atoms], *, copies: int = 1, stress: bool = False
    ) -> Trainable:
        """Evaluate one copy of ``frames``, one by one, and keep the graph.

        The forces are the negative gradient of the energy.

        Raises
        ------
        BackboneError
            If the energy is not known as a function, or a stress is wanted.
        """
        if self._energy is None or copies != 1 or stress:
            msg = (
                "calculator around a torch module must have its energy as a function "
                "of positions to be trained, for forces and energies of one copy; pass "
                "uqcalc.tap(calculator, module=..., energy=...)"
            )
            raise BackboneError(msg)
        energies, forces = [], []
        for atoms in frames:
            kind = next(self._root.parameters())
            positions = torch.as_tensor(atoms.positions).to(kind).requires_grad_()
            energy = self._energy(atoms, positions)
            (gradient,) = torch.autograd.grad(energy, positions, create_graph=True)
            energies.append(energy.reshape(()))
            forces.append(-gradient)
        return Trainable(torch.stack(energies)[None], torch.cat(forces)[None])

    def _tensor(self, output: Any) -> torch.Tensor:
        picked = output if self._select is None else self._select(output)
        if not isinstance(picked, torch.Tensor):
            msg = (
                "output of the tapped module must be a tensor, got "
                f"{type(picked).__name__}; pass select=, a function that returns the "
                "tensor"
            )
            raise BackboneError(msg)
        return picked.squeeze(0) if picked.ndim == 3 else picked


def _resolve(
    calculator: BaseCalculator, path: str
) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return the first and the last torch module on ``path``."""
    root: torch.nn.Module | None = None
    target: Any = calculator
    for name in path.split("."):
        try:
            target = target[int(name)] if name.isdigit() else getattr(target, name)
        except (AttributeError, IndexError, TypeError) as error:
            msg = (
                f"module must be a path from the calculator to a torch.nn.Module, got "
                f"{path!r}, which has no {name!r}; modules under it: "
                f"{_children(root)}"
            )
            raise BackboneError(msg) from error
        if root is None and isinstance(target, torch.nn.Module):
            root = target
    if root is None or not isinstance(target, torch.nn.Module):
        msg = (
            f"module must be a path to a torch.nn.Module, got {path!r}, which is a "
            f"{type(target).__name__}; name a layer such as 'model.readout'"
        )
        raise BackboneError(msg)
    return root, target


def _children(root: torch.nn.Module | None) -> list[str]:
    return [] if root is None else [name for name, _ in root.named_children()]
