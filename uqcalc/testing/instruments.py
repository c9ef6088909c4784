"""Helpers of the checks."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from torch.nn.modules.module import register_module_forward_pre_hook

from uqcalc.backbones.base import Backbone, Prediction


# ValueError: ctypes refuses to copy pointers so. OSError: MatterSim's copies read the
# released weights again.
_NOT_COPYABLE = (
    OSError,
    pickle.PicklingError,
    TypeError,
    AttributeError,
    RuntimeError,
    ValueError,
)


@contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Count the calls of every torch module in the process, by class."""
    calls: Counter[str] = Counter()

    def note(module: torch.nn.Module, _args: Any) -> None:
        calls[type(module).__name__] += 1

    handle = register_module_forward_pre_hook(note)
    try:
        yield calls
    finally:
        handle.remove()


def ways_to_copy(calculator: BaseCalculator) -> set[str]:
    """Return which of deepcopy and pickle work on ``calculator``."""
    ways: dict[str, Callable[[Any], Any]] = {
        "deepcopy": copy.deepcopy,
        "pickle": pickle.dumps,
    }
    possible = set()
    for name, way in ways.items():
        try:
            way(calculator)
        except _NOT_COPYABLE:
            continue
        possible.add(name)
    return possible


def predict(backbone: Backbone, atoms: Atoms) -> Prediction:
    """Evaluate as a step does: all properties, and nothing that is on demand."""
    own = atoms.copy()  # the backbone may write to the copy
    return backbone(own, wanted(backbone, own))


def predict_all(backbone: Backbone, atoms: Atoms) -> Prediction:
    """Evaluate with everything that the backbone can give."""
    own = atoms.copy()
    return backbone(own, [*wanted(backbone, own), *sorted(backbone.on_demand)])


def wanted(backbone: Backbone, atoms: Atoms) -> list[str]:
    """Return the properties that the backbone has and the structure can have."""
    extra = {"stress"} if atoms.pbc.all() else set()
    return sorted(backbone.provides & ({"energy", "forces"} | extra))
