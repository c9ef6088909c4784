"""Small models, probes and structures for many tests; they need no weights."""

from __future__ import annotations

import copy
import subprocess
import time
import warnings
from functools import lru_cache

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule

from uqcalc.backbones.base import Backbone
from uqcalc.fitting.training import Recipe
from uqcalc.probe.card import Card
from uqcalc.probe.inputs import Statistics
from uqcalc.probe.network import ProbeNetwork
from uqcalc.probe.probe import Probe


def run_and_kill(command, ready, within_s=240):
    """Start a process and kill it outright (-9) once ``ready()`` is true."""
    victim = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + within_s
        while not ready():
            assert victim.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        victim.kill()
        victim.wait()


def import_mace():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mace.calculators
        import mace.modules

    return mace


def tiny_mace(hidden="8x0e + 8x1o", *, seed=0, dtype=torch.float64):
    """A random MACE of two layers for H, C, N, O, Na and Cl."""
    # a copy takes a tenth of the time, and its numbers are the same
    built = _built_mace(hidden, seed, dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        return copy.deepcopy(built)


@lru_cache(maxsize=32)
def _built_mace(hidden, seed, dtype):
    mace = import_mace()
    from e3nn import o3

    zs = [1, 6, 7, 8, 11, 17]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    block = mace.modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    try:
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            model = mace.modules.ScaleShiftMACE(
                r_max=4.0,
                num_bessel=6,
                num_polynomial_cutoff=5,
                max_ell=2,
                interaction_cls=block,
                interaction_cls_first=block,
                num_interactions=2,
                num_elements=len(zs),
                hidden_irreps=o3.Irreps(hidden),
                MLP_irreps=o3.Irreps("8x0e"),
                atomic_energies=np.linspace(-1, -5, len(zs)),
                avg_num_neighbors=8.0,
                atomic_numbers=zs,
                correlation=2,
                gate=torch.nn.functional.silu,
                atomic_inter_scale=1.0,
                atomic_inter_shift=0.0,
            )
    finally:
        torch.set_default_dtype(before)
    return model.to(dtype).eval()


def mace_calculator(*seeds, hidden="8x0e + 8x1o", dtype="float64", **options):
    """A MACECalculator on tiny random models, a committee for several seeds."""
    mace = import_mace()
    kind = getattr(torch, dtype)
    models = [tiny_mace(hidden, seed=s, dtype=kind) for s in (seeds or (0,))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mace.calculators.MACECalculator(
            models=models, default_dtype=dtype, **options
        )


def tiny_probe(backbone: Backbone, *, seed=0, bias=0.0, **card_changes) -> Probe:
    """A random probe for ``backbone``; ``bias`` shifts the calibrated logit."""
    shape = Recipe().shape(backbone.feature_dim, charges=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ProbeNetwork(shape)
    card = {
        "fingerprint": backbone.fingerprint,
        "target": "forces",
        "boundary": 0.1,
        "architecture": "standard",
        "shape": shape.to_dict(),
        "elements": [1, 6, 7, 8, 11, 17],
        "sizes": [1, 100],
        "calibration": (1.0, bias),
    }
    card.update(card_changes)
    return Probe(Card(**card), network, Statistics(backbone.feature_dim))


def rattled(name="CH3OH", *, seed=0, amount=0.05) -> Atoms:
    atoms = molecule(name)
    atoms.rattle(amount, seed=seed)
    return atoms


def salt(repeat=1, *, seed=1) -> Atoms:
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True) * repeat
    atoms.rattle(0.05, seed=seed)
    return atoms
