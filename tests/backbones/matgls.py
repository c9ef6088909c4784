"""MatGL's models with random weights."""

from __future__ import annotations

import torch


ELEMENTS = ("H", "C", "O", "Na", "Cl")
# by kind: options that make it small, and the width of its features
KINDS = {
    "TensorNet": ({"is_intensive": False, "units": 16}, 16),
    "QET": ({"units": 16}, 16),
    "M3GNet": ({"is_intensive": False, "units": 16, "dim_node_embedding": 12}, 12),
    "CHGNet": ({"dim_atom_embedding": 16}, 16),
    "SO3Net": ({"is_intensive": False, "dim_node_embedding": 16, "lmax": 2}, 16),
}


def potential(kind="TensorNet", *, seed=0, size=None, **options):
    from matgl import models
    from matgl.apps.pes import Potential

    small, _ = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        build = getattr(models, kind)
        model = build(element_types=ELEMENTS, **small, **(size or {})).eval()
    options = {"calc_charge": kind == "QET"} | options
    return Potential(model=model, **options).eval()


def matgl(
    kind="TensorNet",
    *,
    unit="eV/A3",
    use_voigt=False,
    cls="PESCalculator",
    **options,
):
    from matgl.ext import ase

    return getattr(ase, cls)(
        potential(kind, **options), stress_unit=unit, use_voigt=use_voigt
    )
