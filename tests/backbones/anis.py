"""TorchANI with random weights, of the released architectures."""

from __future__ import annotations

import torch
from builders import rattled


SYMBOLS = ("H", "C", "N", "O", "S", "F", "Cl")


def ani_2x(members=2, seed=0):
    """The architecture of ANI-2x; its loader would download the weights."""
    from torchani.arch import Assembler

    assembler = Assembler(periodic_table_index=True)
    assembler.set_symbols(SYMBOLS)
    assembler.set_global_cutoff_fn("cosine")
    assembler.set_aev_computer(radial="ani2x", angular="ani2x", strategy="pyaev")
    assembler.set_atomic_networks(ctor="ani2x")
    assembler.set_neighborlist("all_pairs")
    assembler.set_gsaes_as_self_energies("wb97x-631gd")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return assembler.assemble(members).requires_grad_(False).eval()


def ani_q(seed=0, *, merged=False):
    """Energies, charges and a pair repulsion, as in ANIq."""
    from torchani.arch import simple_aniq

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = simple_aniq(
            SYMBOLS,
            lot="wb97x-631gd",
            strategy="pyaev",
            bias=True,
            merge_charge_networks=merged,
        )
        return model.requires_grad_(False).eval()


def with_repulsion():
    from torchani.arch import simple_ani

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = simple_ani(
            SYMBOLS,
            lot="wb97x-631gd",
            strategy="pyaev",
            repulsion=True,
            ensemble_size=3,
        )
        return model.requires_grad_(False).eval()


def double(model, **options):
    return model.double().ase(**options)


def crystal(pbc=True):
    """Methanol in a small skew cell, or in a film of it."""
    atoms = rattled()
    if pbc is True:
        atoms.cell = [(5.2, 0.0, 0.0), (0.4, 5.0, 0.0), (0.3, 0.5, 5.4)]
    else:
        atoms.cell = [(5.2, 0.0, 0.0), (0.4, 5.0, 0.0), (0.0, 0.0, 9.0)]
    atoms.pbc = pbc
    return atoms
