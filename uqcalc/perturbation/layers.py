"""The layers of a model that take noise, found by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from uqcalc.backbones.base import Backbone
from uqcalc.errors import BackboneError


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A module of the model, and the channels of its output that take noise.

    Attributes
    ----------
    name : str
        Path of the module from the root of the model.
    module : torch.nn.Module
        Its output must be a tensor with one row for each atom or edge.
    channels : slice
        Channels of the output that do not change when the structure is rotated: all
        channels of an ordinary layer, the scalars (0e) of an e3nn layer.
    """

    name: str
    module: torch.nn.Module
    channels: slice

    @property
    def width(self) -> int:
        """Number of channels that take noise."""
        return int(self.channels.stop - self.channels.start)


def find_layers(backbone: Backbone, patterns: Sequence[str] = ()) -> list[Layer]:
    """Return the layers of a backbone whose names match one of ``patterns``.

    Parameters
    ----------
    backbone : Backbone
    patterns : sequence of str
        Paths of modules from the root of the model, with ``*`` for any text, such as
        ``"layers.*.linear"``; by default those of the backbone
        (`Backbone.perturbable`).

    Raises
    ------
    BackboneError
        If the backbone has no single torch model, if a pattern matches no layer, or
        if a layer has no channels that stay the same under rotations.
    """
    root = backbone.network
    if root is None:
        msg = (
            "potential to perturb must have one torch model, got "
            f"{backbone.name} ({type(backbone.calculator).__name__}); wrap a single "
            "model, uncompiled"
        )
        raise BackboneError(msg)
    chosen = tuple(patterns) or backbone.perturbable
    if not chosen:
        msg = (
            f"layers to perturb must be named for {backbone.name}, got none; pass "
            f"layers=, some of {_names(root)}"
        )
        raise BackboneError(msg)
    modules = dict(root.named_modules())
    found: dict[str, Layer] = {}
    for pattern in chosen:
        names = [name for name in modules if name and fnmatchcase(name, pattern)]
        if not names:
            msg = (
                f"layers to perturb must be modules of the model, got {pattern!r}, "
                f"which matches none; choose among {_names(root)}"
            )
            raise BackboneError(msg)
        for name in names:
            found[name] = Layer(name, modules[name], _invariant(name, modules[name]))
    return list(found.values())


def _names(root: torch.nn.Module) -> list[str]:
    """Return the names of the linear layers, of which each can take noise."""
    return [
        name
        for name, module in root.named_modules()
        if hasattr(module, "out_features") or type(module).__name__ == "Linear"
    ]


def _invariant(name: str, module: Any) -> slice:
    """Return the channels of the output that stay the same under rotations."""
    width = getattr(module, "out_features", None)
    if width is not None:
        return slice(0, int(width))
    irreps: Any = getattr(module, "irreps_out", None)
    if type(module).__name__ == "Linear" and hasattr(irreps, "slices"):
        pairs = zip(irreps, irreps.slices(), strict=True)
        scalars = [part for (_, kind), part in pairs if kind.l == 0 and kind.p == 1]
        if len(scalars) == 1:
            return slice(scalars[0].start, scalars[0].stop)
        msg = (
            f"layer {name!r} must have one block of scalars (0e) in its output, got "
            f"{irreps}; choose another layer"
        )
        raise BackboneError(msg)
    msg = (
        f"layer {name!r} must be a linear layer of torch or e3nn, got "
        f"{type(module).__name__}; choose another layer"
    )
    raise BackboneError(msg)
