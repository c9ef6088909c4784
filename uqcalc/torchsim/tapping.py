"""The tap on the model inside a TorchSim model: the backbone that ASE uses, too.

A backbone (`uqcalc.types.Backbone`) needs an ASE calculator. So one is made around the
torch module that TorchSim runs. It is never evaluated; it gives the fingerprint, by
which the probe is recognised, the elements, the cutoff and the place of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from ase.calculators.calculator import BaseCalculator

from uqcalc.backbones.base import Backbone, Capture
from uqcalc.backbones.mace import MACEBackbone
from uqcalc.backbones.orb_release import calculator_class
from uqcalc.backbones.registry import tap
from uqcalc.errors import BackboneError


@dataclass(slots=True, eq=False)
class Heard:
    """Results of a pass of the tapped model.

    Attributes
    ----------
    output : dict
        Output of the tapped model alone, without the other parts of a sum.
    capture : Capture
        Features, and further forces if they were asked for.
    """

    output: dict[str, Any] = field(default_factory=dict)
    capture: Capture = field(default_factory=lambda: Capture([], []))


class Tap:
    """Listens to the one model in a TorchSim model that has features.

    Parameters
    ----------
    model : torch_sim ModelInterface
        A ``MaceModel``, ``MaceTorchSimModel`` or ``OrbModel``, or a ``SumModel`` with
        one of them.

    Attributes
    ----------
    backbone : Backbone

    Raises
    ------
    BackboneError
        If there is no such model in it, or more than one.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        found = [
            (part, _MAKERS[name])
            for part in _parts(model)
            if (name := _known(part)) is not None
        ]
        if len(found) != 1:
            msg = (
                f"model must hold one of {', '.join(_MAKERS)}, or be a sum with one "
                f"of them, got {len(found)} in {type(model).__name__}; wrap a "
                "MaceModel or an OrbModel, or judge saved frames with uqcalc.annotate"
            )
            raise BackboneError(msg)
        self._part, make = found[0]
        self.backbone: Backbone = tap(make(self._part))

    @contextmanager
    def listening(self, extras: frozenset[str]) -> Iterator[Heard]:
        """Record one pass; ``extras`` are quantities of ``backbone.on_demand``."""
        heard, backbone = Heard(), self.backbone

        def keep(_module: Any, _args: Any, output: Mapping[str, Any]) -> None:
            heard.output = dict(output)

        with ExitStack() as hooks:
            hooks.enter_context(_hook(self._part, keep))
            if isinstance(backbone, MACEBackbone):
                # on the network itself: MACE's own class for TorchSim returns only
                # energy, forces and stress
                def hear(_module: Any, _args: Any, output: Mapping[str, Any]) -> None:
                    heard.capture.features.append(backbone.scalars(output))

                hooks.enter_context(_hook(self._part.model, hear))
            else:
                heard.capture = hooks.enter_context(backbone.armed_for(extras))
            yield heard


@contextmanager
def _hook(module: Any, listener: Callable[[Any, Any, Any], None]) -> Iterator[None]:
    """Call ``listener`` with each output of a module."""
    handle = module.register_forward_hook(listener)
    try:
        yield
    finally:
        handle.remove()


def _parts(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the models inside a sum, or the model itself."""
    if _is_named(model, "SumModel"):
        inner: Any = model
        return [part for child in inner.models for part in _parts(child)]
    return [model]


def _is_named(model: torch.nn.Module, name: str) -> bool:
    return any(cls.__name__ == name for cls in type(model).__mro__)


def _known(model: torch.nn.Module) -> str | None:
    return next((name for name in _MAKERS if _is_named(model, name)), None)


def _around_mace(model: Any) -> BaseCalculator:
    """Return ASE's calculator around the same MACE, which stays as it is."""
    from uqcalc.models.bundled import import_mace

    import_mace("a MaceModel")
    from mace.calculators import MACECalculator

    before = torch.get_default_dtype()
    trained = [(p, p.requires_grad) for p in model.model.parameters()]
    heads = list(getattr(model.model, "heads", None) or ["Default"])
    # where no head is named MACE takes the first one
    head = heads[getattr(model, "_head_index", 0)]
    options = {"head": head} if len(heads) > 1 else {}
    try:
        return MACECalculator(
            models=[model.model],
            device=str(model.device),
            default_dtype=str(model.dtype).removeprefix("torch."),
            **options,
        )
    finally:
        torch.set_default_dtype(before)  # the calculator sets it for the process
        for parameter, flag in trained:
            parameter.requires_grad_(flag)


def _around_orb(model: Any) -> BaseCalculator:
    """Return ASE's calculator around the same Orb."""
    calculator: BaseCalculator = calculator_class()(
        model.model,
        model.atoms_adapter,
        edge_method=model.edge_method,
        device=str(model.device),
    )
    return calculator


# Name of a class of TorchSim, or of a base of it -> what makes the calculator.
_MAKERS: dict[str, Callable[[Any], BaseCalculator]] = {
    "MaceModel": _around_mace,
    "MaceTorchSimModel": _around_mace,  # MACE's own; TorchSim's from 0.6.1 on
    "OrbTorchSimModel": _around_orb,
}
