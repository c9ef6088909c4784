"""AIMNet2 with random weights, through the package's own exporter."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import torch
from builders import rattled


SPECIES = (1, 6, 7, 8, 11, 17)
ATOMIC_ENERGIES = {z: -10.0 * z for z in SPECIES}  # eV


def export(folder, atomic_energies, seed=0):
    """Write a model file into ``folder`` and return its path."""
    import aimnet
    from aimnet.config import build_module
    from aimnet.train.export_model import export_model

    design = Path(aimnet.__file__).parent / "models" / "aimnet2_dftd3_wb97m.yaml"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        torch.save(build_module(str(design)).state_dict(), folder / "weights.pt")
    shifts = "".join(f"{z}: {energy}\n" for z, energy in atomic_energies.items())
    (folder / "shifts.sae").write_text(shifts)
    export_model.callback(
        weights=str(folder / "weights.pt"),
        output=str(folder / "model.pt"),
        model=str(design),
        sae=str(folder / "shifts.sae"),
        needs_coulomb=None,
        needs_dispersion=None,
    )
    return folder / "model.pt"


@cache
def artifact(seed=0):
    """Export once for the whole process; the file is removed at its end."""
    folder = Path(tempfile.mkdtemp(prefix="aimnet2-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return export(folder, ATOMIC_ENERGIES, seed)


def aimnet2(*, seed=0, path=None, needs_dispersion=None, **options):
    from aimnet.calculators import AIMNet2ASE, AIMNet2Calculator

    base = AIMNet2Calculator(
        str(path or artifact(seed)), device="cpu", needs_dispersion=needs_dispersion
    )
    return AIMNet2ASE(base, **options)


def ion(charge=1, name="CH3OH"):
    atoms = rattled(name)
    atoms.info["charge"] = charge
    return atoms
