"""`tap`: return the backbone that reads the features of an ASE calculator."""

from __future__ import annotations

from collections.abc import Callable, Collection
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol, cast

import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.locks import entered, held, parts_of
from uqcalc.errors import BackboneError


GROUP = "uqcalc.backbones"

# Name of the calculator class (with its module if the name is common) -> path of its
# backbone. A new backbone needs one file and one line here; third parties use the
# entry-point group instead.
BUILT_IN: dict[str, str] = {
    "MACECalculator": "uqcalc.backbones.mace:MACEBackbone",
    "CHGNetCalculator": "uqcalc.backbones.chgnet:CHGNetBackbone",
    "AIMNet2ASE": "uqcalc.backbones.aimnet2:AIMNet2Backbone",
    "torchani.ase.Calculator": "uqcalc.backbones.torchani:TorchANIBackbone",
    "ORBCalculator": "uqcalc.backbones.orb:OrbBackbone",
    "SevenNetCalculator": "uqcalc.backbones.sevennet:SevenNetBackbone",
    "PESCalculator": "uqcalc.backbones.matgl:MatGLBackbone",
    "MetatomicCalculator": "uqcalc.backbones.metatomic:MetatomicBackbone",
    "UPETCalculator": "uqcalc.backbones.metatomic:MetatomicBackbone",
    "FAIRChemCalculator": "uqcalc.backbones.fairchem:FAIRChemBackbone",
    "MatterSimCalculator": "uqcalc.backbones.mattersim:MatterSimBackbone",
}

# Calculators whose released models give no descriptors in the pass that they run: why,
# and what works instead. The names are as in `BUILT_IN`.
NOT_TAPPED: dict[str, str] = {
    "NequIPCalculator": (
        "a compiled NequIP or Allegro model returns no descriptors; load the model "
        "uncompiled and name its output: uqcalc.tap(calculator, module='model', "
        "select=lambda output: output['node_features'])"
    ),
    "TPCalculator": (
        "GRACE runs in TensorFlow, where torch hooks cannot read a layer; use a model "
        "exported with metatomic, or compare GRACE with a potential that can be "
        "tapped: uqcalc.Committee([other, this])"
    ),
    "deepmd.calculator.DP": (
        "DeePMD-kit computes descriptors in an evaluation of their own, not in that of "
        "the forces; use a model exported with metatomic, or compare it with a "
        "potential that can be tapped: uqcalc.Committee([other, this])"
    ),
}


class _Factory(Protocol):
    def __call__(
        self, calculator: BaseCalculator, model_calculator: BaseCalculator
    ) -> Backbone: ...


def tap(
    calculator: BaseCalculator | Backbone,
    *,
    module: str | None = None,
    select: Callable[[Any], torch.Tensor] | None = None,
    energy: Callable[[Atoms, torch.Tensor], torch.Tensor] | None = None,
) -> Backbone:
    """Return the backbone that taps ``calculator``.

    ``tap(calculator)(atoms).features`` are the features of any potential, from the pass
    that gives energy and forces, too.

    Parameters
    ----------
    calculator : ase calculator
        Calculators of the packages in README.md need no ``module``, also inside a
        ``SumCalculator``. A `Backbone` is returned unchanged.
    module : str, optional
        For any other calculator around a ``torch.nn.Module``: the dotted path, from
        the calculator, of the sub-module whose output is the per-atom feature, such
        as ``"model.readout"``.
    select : callable, optional
        Returns the (atoms, dim) tensor from the output of ``module``, if it is not
        this tensor.
    energy : callable, optional
        ``energy(atoms, positions)`` returns the energy in eV from a tensor of positions
        in Å, with ``module``; only `uqcalc.perturb` needs it.

    Raises
    ------
    BackboneError
        If the calculator cannot be tapped; the message gives a remedy.
    """
    for argument, value in (("select", select), ("energy", energy)):
        if value is not None and module is None:
            msg = (
                f"{argument}= must be given together with module=, got module=None; "
                'name the layer, such as module="model.readout"'
            )
            raise BackboneError(msg)
    if isinstance(calculator, Backbone):
        return calculator
    if not isinstance(calculator, BaseCalculator):
        raise BackboneError(_not_a_calculator(calculator))
    if hasattr(calculator, "assess"):
        msg = (
            "calculator must not be wrapped already, got a ReliableCalculator; pass "
            "the calculator inside: calculator.backbone.calculator"
        )
        raise BackboneError(msg)
    if module is not None:
        from uqcalc.backbones.module import ModuleBackbone

        return ModuleBackbone(calculator, module=module, select=select, energy=energy)
    known = BUILT_IN | {p.name: p.value for p in entry_points(group=GROUP)}
    found = [
        (part, name)
        for part in parts_of(calculator)
        if (name := _known_name(part, known)) is not None
    ]
    if len(found) != 1:
        raise BackboneError(_refusal(calculator, known, len(found)))
    part, name = found[0]
    factory = _load(known[name])
    with entered(alone=False), held([calculator, *parts_of(calculator)]):
        return factory(calculator, part)  # no thread evaluates the model now


def _known_name(calculator: BaseCalculator, known: Collection[str]) -> str | None:
    names = (
        name
        for cls in type(calculator).__mro__
        for name in (f"{cls.__module__}.{cls.__qualname__}", cls.__name__)
    )
    return next((name for name in names if name in known), None)


def _load(path: str) -> _Factory:
    module, _, attribute = path.partition(":")
    return cast("_Factory", getattr(import_module(module), attribute))


def _not_a_calculator(got: object) -> str:
    return (
        f"calculator must be an ASE calculator, got {type(got).__name__}; pass an "
        "instance such as MACECalculator(...)"
    )


def _refusal(calculator: BaseCalculator, known: dict[str, str], found: int) -> str:
    what = type(calculator).__name__
    if found > 1:
        return (
            "a sum of calculators must have exactly one calculator that can be "
            f"tapped, got {found} in {what}; wrap one of them with ReliableCalculator "
            "instead"
        )
    for part in parts_of(calculator):
        if (name := _known_name(part, NOT_TAPPED)) is not None:
            return f"{type(part).__name__} cannot be tapped: {NOT_TAPPED[name]}"
    return (
        f"calculator must be one that can be tapped ({', '.join(sorted(known))}, or "
        f"a sum with one of them), got {what}; for any other calculator around a "
        "torch.nn.Module, name the sub-module whose output is the per-atom feature: "
        'uqcalc.tap(calculator, module="model.readout")'
    )
