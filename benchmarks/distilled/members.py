"""Three small members of a committee with the bundled MACE, and its disagreement."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from common import BUNDLED


MEMBERS = 3
FIRST_SEED = 31
SCRIPT = BUNDLED / "train_backbone.py"


def train_members(cache: Path, minutes: float) -> list[Path]:
    """Train the absent members at the same time, one thread each; return all folders.

    The training frames are ``backbone.xyz`` of the cache, those for the scores
    ``ordinary.xyz``.
    """
    folders = [cache / f"member_{i}" for i in range(MEMBERS)]
    shutil.copyfile(cache / "ordinary.xyz", cache / "backbone_validation.xyz")
    running = []
    for i, folder in enumerate(folders):
        if (folder / "backbone.json").is_file():
            continue
        command = [sys.executable, "-W", "ignore", str(SCRIPT), "--data", str(cache)]
        command += ["--output", str(folder), "--minutes", str(minutes)]
        command += ["--seed", str(FIRST_SEED + i), "--evaluate-every", "1000"]
        running.append(
            subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
        )
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("a member of the committee could not be trained, see above")
    return folders


def training(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return frames, minutes, epochs and error of the training of each member."""
    cards = []
    for folder in folders:
        text = (folder / "backbone.json").read_text(encoding="utf-8")
        card = json.loads(text)["training"]
        squares = [
            entry["force_rmse_mev_per_angstrom"] ** 2
            for entry in card["validation"].values()
        ]
        cards.append(
            {
                "frames": card["frames"],
                "minutes": card["minutes"],
                "epochs": card["epochs"],
                "force RMSE on ordinary, meV/A": float(np.sqrt(np.mean(squares))),
            }
        )
    return cards


def spread(
    folders: Sequence[Path],
    frames: Sequence[Atoms],
    own: Sequence[np.ndarray],
    path: Path,
) -> np.ndarray:
    """Return the disagreement of these members and one more, (structures,) in eV/Å.

    ``own`` are the forces of the further member. The disagreement is the standard
    deviation over the members, as RMS over the force components. It is read from
    ``path`` if that exists.
    """
    if path.is_file():
        with np.load(path) as data:
            return data["spread"]
    from halting.signals import outputs

    every = [list(own)]
    for folder in folders:
        predicted = outputs(_member(folder), list(frames))
        every.append([p.forces for batch in predicted for p in batch])
    found = np.array(
        [
            np.sqrt(np.mean(np.var(forces, axis=0, ddof=1)))
            for forces in zip(*every, strict=True)
        ]
    )
    partial = path.with_name(f".{path.name}")
    with partial.open("wb") as file:
        np.savez(file, spread=found)
    partial.replace(path)
    return found


@functools.cache
def _member(folder: Path) -> Any:
    from halting.signals import member

    return member(folder)
