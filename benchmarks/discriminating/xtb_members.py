"""Further members of a committee with the bundled backbone: same labels, other seeds.

The scripts of ``provenance/bundled`` make the frames again (all seeds are fixed) and
train each member for 25 minutes instead of 50. So the members are weaker: those of the
table have 97 and 92 meV/Å on validation frames at 300 K, the bundled backbone has 81.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common import BUNDLED

from uqcalc.models.bundled import build_model


if TYPE_CHECKING:
    from mace.calculators import MACECalculator

MINUTES = 25.0  # of one core each
FIRST_SEED = 20  # the bundled backbone's


def further_members(cache: Path, count: int, workers: int) -> list[MACECalculator]:
    """Return members that differ from the bundled backbone in their seed.

    Members that are not in the cache are trained first, ``workers`` at a time.
    """
    folders = [cache / f"mace_gfn2_{i}" for i in range(1, count + 1)]
    absent = [
        (FIRST_SEED + i, folder)
        for i, folder in enumerate(folders, start=1)
        if not (folder / "backbone.safetensors").is_file()
    ]
    if absent:
        data = _frames(cache / "raw" / "backbone", workers)
        for start in range(0, len(absent), workers):
            _train(data, absent[start : start + workers])
    return [_calculator(folder) for folder in folders]


def _frames(data: Path, workers: int) -> Path:
    """Return the folder with the backbone's frames, sampled again if absent."""
    if not (data / "backbone.xyz").is_file():
        _run("molecules.py", "--data", data)
        _run("sample.py", "--data", data, "--workers", workers)
    return data


def _run(script: str, *options: object) -> None:
    command = [sys.executable, BUNDLED / script, *map(str, options)]
    subprocess.run(command, check=True, env=_one_thread())


def _train(data: Path, members: list[tuple[int, Path]]) -> None:
    script = BUNDLED / "train_backbone.py"
    running = []
    for seed, folder in members:
        partial = folder.with_suffix(".partial")
        command = [
            sys.executable, script, "--data", data, "--output", partial,
            "--seed", str(seed), "--minutes", str(MINUTES), "--evaluate-every", "4",
        ]  # fmt: skip
        running.append((subprocess.Popen(command, env=_one_thread()), partial, folder))
    codes = [process.wait() for process, _, _ in running]
    if any(codes):
        msg = f"training of members must exit with 0, got {codes}; see above"
        raise SystemExit(msg)
    for _, partial, folder in running:
        partial.rename(folder)


def _one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def _calculator(folder: Path) -> MACECalculator:
    from safetensors.torch import load

    config = json.loads((folder / "backbone.json").read_text(encoding="utf-8"))
    model = build_model(config)  # imports mace quietly
    model.load_state_dict(load((folder / "backbone.safetensors").read_bytes()))
    from mace.calculators import MACECalculator

    return MACECalculator(models=model.double(), device="cpu", default_dtype="float64")
