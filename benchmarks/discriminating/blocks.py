"""Write the labelled predictions for `benchmarks/discrimination.py`.

    python benchmarks/discriminating/blocks.py --cache DIR [--only NAME]

The script writes one ``.npz`` file for each of ``gfn2``, ``acac`` and ``sio2``. The
layout is that of ``shared/data/sevennet0_mattersim`` (energies in eV, forces in eV/Å,
numbers of atoms in ``n``, atoms one after another), with ``set`` and ``group`` of each
structure. DIR keeps frames and weights that took time; existing blocks are not written
again. ``NAME_members`` has the predictions of further members of a committee, which
differ from the first in their seed (and for ``gfn2`` in the length of the training).
SevenNet-0 has one published seed, so ``sevennet_members`` has those of CHGNet 0.3.0.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import torch
from ase import Atoms


sys.path.insert(0, str(Path(__file__).parents[1]))
from uqcalc import tap
from uqcalc.backbones import Backbone
from uqcalc.models.bundled import bare_calculator


Rows = dict[str, np.ndarray]
MATTERSIM = Path("../shared/data/mattersim")
BATCH = 16
MEMBERS = 3  # of a committee


def evaluated(backbone: Backbone, frames: Sequence[Atoms], name: str) -> Rows:
    """Return predictions and labels of one set; groups are molecules or runs."""
    kept: dict[str, list[Any]] = {key: [] for key in ("e_pred", "h", "e", "f_pred")}

    def keep_energies(_model: Any, _args: Any, output: dict[str, Any]) -> None:
        kept["e"].append(output["node_energy"].detach().cpu().numpy())

    handle = backbone.model_calculator.models[0].register_forward_hook(keep_energies)
    for start in range(0, len(frames), BATCH):
        batch = [Atoms(atoms) for atoms in frames[start : start + BATCH]]
        for prediction in backbone.predict_many(batch):
            kept["e_pred"].append(prediction.energy)
            kept["h"].append(prediction.features.cpu().numpy())
            kept["f_pred"].append(prediction.forces)
    handle.remove()
    first = frames[0].info
    energy = "REF_energy" if "REF_energy" in first else "energy"
    group = "molecule" if "molecule" in first else "run"
    forces = energy.replace("energy", "forces")
    return {
        "index": np.array([a.info.get("row", i) for i, a in enumerate(frames)]),
        "n": np.array([len(a) for a in frames]),
        "e_pred": np.array(kept["e_pred"]),
        "e_ref": np.array([a.info[energy] for a in frames]),
        "set": np.array([name] * len(frames)),
        "group": np.array([a.info[group] for a in frames]),
        "temperature": np.array([a.info.get("temperature", np.nan) for a in frames]),
        "z": np.concatenate([a.numbers for a in frames]).astype(np.uint8),
        **{key: _joined(kept[key]) for key in ("h", "e", "f_pred")},
        "f_ref": _joined([a.arrays[forces] for a in frames]),
    }


def _joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts).astype(np.float32)


def summary(rows: Rows) -> dict[str, float | int | str | None]:
    """Return sizes and root mean square errors of one set; None without labels."""
    off = rows["e_pred"] - rows["e_ref"]
    return {
        "set": str(rows["set"][0]),
        "structures": len(rows["n"]),
        "atoms": int(rows["n"].sum()),
        "groups": len(np.unique(rows["group"])),
        "energy_rmse_mev": _rms(off),
        "energy_rmse_mev_per_atom": _rms(off / rows["n"]),
        "force_rmse_mev_per_angstrom": _rms(rows["f_pred"] - rows["f_ref"]),
    }


def _rms(errors: np.ndarray) -> float | None:
    """Return the root mean square times 1000."""
    value = 1e3 * float(np.sqrt(np.mean(errors.astype(float) ** 2)))
    return round(value, 3) if np.isfinite(value) else None


def write_block(path: Path, parts: Sequence[Rows]) -> None:
    """Join the sets and write them to a temporary file, which is then renamed."""
    _write(path, {k: np.concatenate([part[k] for part in parts]) for k in parts[0]})
    figures = [summary(part) for part in parts]
    text = json.dumps(figures, indent=1)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text, flush=True)


def _write(path: Path, arrays: Rows) -> None:
    unfinished = path.with_suffix(f".{os.getpid()}.partial")
    with unfinished.open("wb") as file:
        np.savez_compressed(file, **arrays)
    unfinished.replace(path)


def gfn2(cache: Path, workers: int, _device: str) -> None:
    """Write the block of the bundled backbone: unseen molecules, hot training ones."""
    from discriminating.xtb_frames import hot_frames, unseen_frames

    raw = cache / "raw"
    backbone = tap(bare_calculator(dtype="float64"))
    parts = [evaluated(backbone, unseen_frames(raw, workers), "molecules")]
    # can be used while the hot runs are made
    write_block(cache / "gfn2_molecules.npz", parts)
    parts.append(evaluated(backbone, hot_frames(raw, workers), "hot"))
    write_block(cache / "gfn2.npz", parts)


def train_and_judge(name: str, cache: Path, _workers: int, device: str) -> None:
    """Write the block of a MACE for acetylacetone at 300 K or crystalline silica."""
    from discriminating import systems

    system = {"acac": systems.acac, "sio2": systems.sio2}[name]()
    backbone = _potential(cache / f"mace_{name}", system, system.how, device)
    parts = [evaluated(backbone, frames, key) for key, frames in system.sets.items()]
    write_block(cache / f"{name}.npz", parts)


def _potential(folder: Path, system: Any, how: Any, device: str) -> Backbone:
    from discriminating.potentials import trained

    model = trained(folder, system.train, system.held_out, how, device)
    from mace.calculators import MACECalculator  # after a quiet first import

    model = model.double().to(device)
    return tap(MACECalculator(models=model, device=device, default_dtype="float64"))


def ask_members(name: str, cache: Path, _workers: int, device: str) -> None:
    """Write the predictions of further members of a committee for one block."""
    from discriminating import systems

    system = {"acac": systems.acac, "sio2": systems.sio2}[name]()
    members = [
        _potential(
            cache / f"mace_{name}_{member}",
            system,
            replace(system.how, seed=system.how.seed + member),
            device,
        )
        for member in range(1, MEMBERS)
    ]
    _write_members(cache / f"{name}_members.npz", members, list(system.sets.values()))


def gfn2_members(cache: Path, workers: int, _device: str) -> None:
    """Write the predictions of further members of the bundled backbone's committee."""
    from discriminating.xtb_frames import hot_frames, unseen_frames
    from discriminating.xtb_members import further_members

    raw = cache / "raw"
    members = [tap(one) for one in further_members(cache, MEMBERS - 1, workers)]
    sets = [unseen_frames(raw, workers), hot_frames(raw, workers)]
    _write_members(cache / "gfn2_members.npz", members, sets)


def _write_members(
    path: Path, members: Sequence[Backbone], sets: Sequence[Sequence[Atoms]]
) -> None:
    energies, forces = [], []
    for backbone in members:
        rows = [evaluated(backbone, frames, "") for frames in sets]
        energies.append(np.concatenate([part["e_pred"] for part in rows]))
        forces.append(np.concatenate([part["f_pred"] for part in rows]))
    found = {
        "z": np.concatenate([part["z"] for part in rows]),
        "e_pred": np.array(energies),
        "f_pred": np.array(forces),
    }
    _write(path, found)


def sevennet_members(cache: Path, _workers: int, device: str) -> None:
    """Write the predictions of CHGNet for the structures of SevenNet-0, by set.

    The energies of the two potentials have different zeros for each element, since one
    is for corrected energies. So the part of the difference that is linear in the
    composition is subtracted. It is fitted to the predictions, without labels.
    """
    from chgnet.model.dynamics import CHGNetCalculator

    from discriminating.tasks import SEVENNET

    names = sorted(path.stem for path in SEVENNET.glob("*.npz"))
    if not names:
        msg = f"features of SevenNet-0 must be in {SEVENNET}, got none; leave it out"
        raise SystemExit(msg)
    backbone = tap(CHGNetCalculator(use_device=device, on_isolated_atoms="ignore"))
    asked = {name: np.load(SEVENNET / f"{name}.npz") for name in names}
    answers = {name: _asked_again(name, data, backbone) for name, data in asked.items()}
    counts = np.concatenate([_counts(data["z"], data["n"]) for data in asked.values()])
    ours = np.concatenate([energies for energies, _ in answers.values()])
    theirs = np.concatenate([data["e_pred"] for data in asked.values()])
    zeros = np.linalg.lstsq(counts, ours - theirs, rcond=None)[0]
    for name, data in asked.items():
        energies, forces = answers[name]
        rows = {
            "z": data["z"],
            "e_pred": (energies - _counts(data["z"], data["n"]) @ zeros)[None],
            "f_pred": forces[None].astype(np.float32),
        }
        _write(cache / f"{name}_members.npz", rows)
    _write(cache / "sevennet_members.npz", {"zeros": zeros})


def _asked_again(
    name: str, data: Any, backbone: Backbone
) -> tuple[np.ndarray, np.ndarray]:
    """Return energies (structures,) and forces (atoms, 3) of another potential."""
    frames = ase.io.read(MATTERSIM / f"{name}.xyz", ":")
    chosen = []
    for row in data["index"]:
        frame = frames[int(row)]
        chosen.append(Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=True))
    if not np.array_equal(np.concatenate([a.numbers for a in chosen]), data["z"]):
        msg = f"frames of {MATTERSIM / name} must be those of the features"
        raise SystemExit(msg)
    energies, forces = [], []
    for start in range(0, len(chosen), BATCH):
        for prediction in backbone.predict_many(chosen[start : start + BATCH]):
            energies.append(prediction.energy)
            forces.append(prediction.forces)
    print(f"{name}: {len(chosen)} structures asked again", flush=True)
    return np.array(energies), np.concatenate(forces)


def _counts(numbers: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return how many atoms of each element, (structures, 119)."""
    parts = np.split(numbers, np.cumsum(sizes)[:-1])
    return np.array([np.bincount(z, minlength=119) for z in parts], dtype=float)


BLOCKS = {
    "gfn2": gfn2,
    "acac": partial(train_and_judge, "acac"),
    "sio2": partial(train_and_judge, "sio2"),
    "sio2_members": partial(ask_members, "sio2"),
    "acac_members": partial(ask_members, "acac"),
    "gfn2_members": gfn2_members,
    "sevennet_members": sevennet_members,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--only", choices=sorted(BLOCKS))
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="where potentials are trained")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name, write in BLOCKS.items():
        wanted = given.only in (None, name)
        if wanted and not (given.cache / f"{name}.npz").is_file():
            started = time.monotonic()
            write(given.cache, given.workers, given.device)
            print(f"{name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
