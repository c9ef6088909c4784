"""Measure errors on unseen molecules and time per call of the bundled backbone."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms
from fast import accelerate
from molecules import HELD_OUT, write_text
from sample import embed, run_plan
from train_backbone import evaluate, prepare

from uqcalc.models.bundled import bare_calculator, load_model


SPEED_SMILES = "CC(=O)Oc1ccc(C(=O)O)cc1"  # 21 atoms
BINS = [(300.0, 900.0), (900.0, 1500.0), (1500.0, 2250.0), (2250.0, 3001.0)]


def cells(frames: list[Atoms]) -> dict[str, list[Atoms]]:
    """Group frames by kind and temperature."""
    groups: dict[str, list[Atoms]] = {}
    for atoms in frames:
        temperature = atoms.info["temperature"]
        name = f"{atoms.info['kind']} {temperature:.0f} K"
        if atoms.info["kind"] == "ramp":
            low, high = next(b for b in BINS if b[0] <= temperature < b[1])
            name = f"ramp {low:.0f}-{high:.0f} K"
        groups.setdefault(name, []).append(atoms)
    return dict(sorted(groups.items()))


def errors(model: torch.nn.Module, path: Path, e0: np.ndarray) -> dict[str, Any]:
    """Return the error figures of every group of frames in a file."""
    result: dict[str, Any] = {}
    for name, frames in cells(ase.io.read(path, ":")).items():
        samples = [prepare(atoms, e0) for atoms in frames]
        result[name] = {"frames": len(frames), **evaluate(model, samples)}
        sane = [s for s in samples if float(s["forces"].abs().max()) < 30.0]
        if len(sane) < len(samples):
            result[name]["forces_below_30"] = {
                "frames": len(sane),
                **evaluate(model, sane),
            }
    return result


def held_out(model: torch.nn.Module, e0: np.ndarray) -> dict[str, Any]:
    """Return the error figures on fresh 300 K frames of the held-out molecules."""
    result: dict[str, Any] = {}
    for name, smiles in HELD_OUT.items():
        frames = run_plan(smiles, {300.0: 6}, "held-out").frames
        samples = [prepare(atoms, e0) for atoms in frames]
        result[name] = {"frames": len(frames), **evaluate(model, samples)}
    return result


def milliseconds(repeats: int = 50) -> float:
    """Return the time of one energy and force evaluation at 21 atoms."""
    atoms = embed(SPEED_SMILES, 1)
    atoms.calc = bare_calculator()
    times = []
    for seed in range(repeats + 5):
        atoms.rattle(0.005, seed=seed)
        start = time.perf_counter()
        atoms.get_forces()
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[5:]))


def main() -> None:
    """Print and write all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("bundled_data"))
    data = parser.parse_args().data
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    model = load_model()
    e0 = model.atomic_energies_fn.atomic_energies.double().numpy().flatten()
    figures: dict[str, Any] = {"ms_per_evaluation_21_atoms": round(milliseconds(), 1)}
    config = {"model": {"hidden_irreps": "64x0e", "max_ell": 2}}
    model = accelerate(model, config)
    for name in ("backbone_validation", "probe_calibration", "probe_test"):
        path = data / f"{name}.xyz"
        if path.exists():
            figures[name] = errors(model, path, e0)
    figures["held_out_300_K"] = held_out(model, e0)
    text = json.dumps(figures, indent=1)
    write_text(data / "figures.json", text)
    print(text)


if __name__ == "__main__":
    main()
