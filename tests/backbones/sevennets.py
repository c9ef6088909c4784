"""SevenNet-0 and a model of several methods, whose weights come with the package."""

from __future__ import annotations

import warnings
from functools import cache

from ase.build import bulk


def loaded(model="7net-0", modal=None):
    from sevenn.calculator import SevenNetCalculator

    with warnings.catch_warnings():
        # it may be slow without an accelerator for tensor products
        warnings.filterwarnings("ignore", message="No tensor product accelerator")
        return SevenNetCalculator(model, device="cpu", modal=modal)


@cache
def shared_model(name):
    """Load it once, which takes seconds: no test may change it."""
    return loaded(name, "PBE" if name == "7net-mf-0" else None).model


def sevennet(name="7net-0", modal=None):
    return loaded(shared_model(name), modal)


def crystal(element="Si", *, seed=0):
    atoms = bulk(element)
    atoms.rattle(0.05, seed=seed)
    return atoms
