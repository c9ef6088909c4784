"""Taps that hook into a module for one call, and are removed after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from uqcalc.backbones.base import Capture
from uqcalc.errors import BackboneError


@contextmanager
def listen_to_input(module: torch.nn.Module) -> Iterator[Capture]:
    """Record the first positional input of every call of ``module``."""
    captured = Capture([], [])

    def hook(_module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        captured.features.append(args[0].detach())

    handle = module.register_forward_pre_hook(hook)
    try:
        yield captured
    finally:
        handle.remove()


@contextmanager
def listen_to_forward(module: torch.nn.Module) -> Iterator[Capture]:
    """Record the first input of ``module.forward``, even if it is called directly.

    Hooks miss direct calls of ``forward``, as in the heads of orb-models 0.7.
    """
    captured = Capture([], [])
    original = module.forward

    def forward(features: torch.Tensor, *args: Any, **options: Any) -> Any:
        captured.features.append(features.detach())
        return original(features, *args, **options)

    module.forward = forward
    try:
        yield captured
    finally:
        del module.forward  # the method of the class is used again


@contextmanager
def listen_to_output(
    module: torch.nn.Module, select: Callable[[Any], torch.Tensor]
) -> Iterator[Capture]:
    """Record ``select(output)`` of every call of ``module``."""
    captured = Capture([], [])

    def hook(_module: torch.nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        captured.features.append(select(output).detach())

    try:
        handle = module.register_forward_hook(hook)
    except RuntimeError as error:  # ScriptModules refuse hooks
        msg = (
            f"module to tap must accept forward hooks, got {type(module).__name__} "
            f"({error}); load the model uncompiled"
        )
        raise BackboneError(msg) from error
    try:
        yield captured
    finally:
        handle.remove()
