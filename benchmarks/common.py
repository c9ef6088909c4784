"""Shared functions of the benchmarks: result files, tables, structures, models."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule


RESULTS = Path(__file__).parent / "results"
# Scripts of the bundled potential; benchmarks import its molecules and its dynamics.
BUNDLED = Path(__file__).parents[1] / "provenance" / "bundled"
PACKAGES = ("torch", "ase", "numpy", "mace-torch", "uqcalc")


def target(name: str, value: float, limit: float, *, at_most: bool = True) -> dict:
    """Return an entry of ``targets``; a NaN value never meets its target."""
    met = value <= limit if at_most else value >= limit
    sign = "<=" if at_most else ">="
    return {
        "name": name,
        "value": float(value),
        "target": f"{sign} {limit:g}",
        "met": bool(met),
    }


def write_result(
    name: str,
    *,
    seeds: Sequence[int],
    rows: Sequence[Mapping[str, Any]],
    targets: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    more: Mapping[str, Any] | None = None,
) -> Path:
    """Write ``results/NAME.json`` by rename, and return its path.

    ``more`` has further entries. NaN and infinite numbers are written as null, since
    JSON does not have them.
    """
    record = {
        "benchmark": name,
        "seeds": list(seeds),
        "versions": versions(),
        "host": host(),
        "targets": [dict(entry) for entry in targets],
        "notes": list(notes),
        "rows": [dict(row) for row in rows],
        **(more or {}),
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    partial = path.with_name(f".{name}.{os.getpid()}.partial")
    text = json.dumps(_plain(record), indent=1, ensure_ascii=False, allow_nan=False)
    try:
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_result(name: str) -> dict[str, Any]:
    """Read what `write_result` wrote.

    Raises
    ------
    SystemExit
        If the benchmark has not been run yet.
    """
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        msg = f"no results of {name} yet: run python benchmarks/{name}.py first"
        raise SystemExit(msg)
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of `PACKAGES`; None for absent ones."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found | {"commit": _commit()}


def host() -> dict[str, Any]:
    """Return processor, GPU, threads and load, on which timings depend."""
    cuda = torch.cuda.is_available()
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "system": platform.system(),
        "machine": platform.machine(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def markdown_table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> str:
    """Return a markdown table; ``columns`` maps keys of a row to headings."""
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + " --- |" * len(columns)]
    for row in rows:
        cells = (_cell(row.get(key)) for key in columns)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def print_table(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> None:
    """Print the table of `markdown_table` to a terminal."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console.width = max(console.width, 120)
    table = Table(title=title, title_justify="left")
    for heading in columns.values():
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    console.print(table)


def print_targets(targets: Sequence[Mapping[str, Any]]) -> None:
    """Print which targets were met."""
    rows = [{**entry, "met": "yes" if entry["met"] else "NO"} for entry in targets]
    columns = {"name": "target", "target": "wanted", "value": "got", "met": "met"}
    print_table("targets", rows, columns)


_TURNS, _CONTACT = 1000, 1.7  # tries for a molecule; Å between two molecules


def water_box(atoms: int, seed: int = 0) -> Atoms:
    """Return about ``atoms`` atoms of periodic water at 1 g/cm³.

    Rigid molecules in random orientations on a jittered cubic grid with evenly spread
    vacancies. It has the number of neighbours of the liquid, but not its structure. No
    two molecules touch: `uqcalc.Flags` would flag them, and the reading of a flagged
    structure computes the importance, too.
    """
    rng = np.random.default_rng(seed)
    count = max(1, round(atoms / 3))
    edge = (count * 29.9) ** (1 / 3)  # Å; 29.9 Å³ a molecule is 1 g/cm³
    side = int(np.ceil(count ** (1 / 3) - 1e-9))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), axis=-1).reshape(-1, 3)
    sites = grid[np.linspace(0, len(grid) - 1, count).round().astype(int)]
    box = Atoms(cell=[edge] * 3, pbc=True)
    for site in sites:
        for _ in range(_TURNS):
            water = molecule("H2O")
            water.rotate(rng.uniform(0, 360), rng.normal(size=3), center="COM")
            place = (site + 0.5) * edge / side + rng.normal(0, 0.05, 3)
            water.translate(place - water.get_center_of_mass())
            apart = water.positions[:, None] - box.positions
            apart -= edge * np.round(apart / edge)
            if not (np.linalg.norm(apart, axis=2) < _CONTACT).any():
                break
        box += water
    box.wrap()
    return box


def import_mace() -> Any:
    """Import mace without the warnings and messages its import emits."""
    import contextlib
    import io

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        import mace.calculators
        import mace.modules
    return mace


def random_mace(hidden: str, r_max: float, *, seed: int = 0) -> torch.nn.Module:
    """Return a float32 MACE with the shape of MACE-OFF23 and random weights.

    ``"96x0e"`` and 4.5 Å are the small model, ``"128x0e + 128x1o"`` and 5.0 Å the
    medium one (Kovács et al. 2023, arXiv:2312.15211).
    """
    mace = import_mace()
    from e3nn import o3

    elements = [1, 6, 7, 8, 9, 15, 16, 17, 35, 53]
    block = mace.modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model: torch.nn.Module = mace.modules.ScaleShiftMACE(
            r_max=r_max,
            num_bessel=8,
            num_polynomial_cutoff=5,
            max_ell=3,
            interaction_cls=block,
            interaction_cls_first=block,
            num_interactions=2,
            num_elements=len(elements),
            hidden_irreps=o3.Irreps(hidden),
            MLP_irreps=o3.Irreps("16x0e"),
            atomic_energies=np.zeros(len(elements)),
            avg_num_neighbors=40.0,
            atomic_numbers=elements,
            correlation=3,
            gate=torch.nn.functional.silu,
            atomic_inter_scale=1.0,
            atomic_inter_shift=0.0,
            radial_MLP=[64, 64, 64],
        )
    return model.float().eval()


def mace_calculator(*models: torch.nn.Module, device: str = "cpu") -> Any:
    """Return a float32 ``MACECalculator``, a committee for several models."""
    mace = import_mace()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return mace.calculators.MACECalculator(
            models=list(models), device=device, default_dtype="float32"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if 0.1 < abs(value) < 10 else f"{value:.4g}"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    return names[0] if names else platform.processor() or "unknown"


def _commit() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    command = [git, "describe", "--always", "--dirty", "--exclude", "*"]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() or None
