"""Measure the time that uqcalc adds to a step of molecular dynamics.

The models have published shapes and random weights, on which the time does not depend.
A step moves all atoms by about 1e-3 Å and computes forces, as dynamics does.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import subprocess
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from common import (
    import_mace,
    mace_calculator,
    markdown_table,
    print_table,
    print_targets,
    random_mace,
    read_result,
    target,
    water_box,
    write_result,
)
from stages import staged

from uqcalc import ReliableCalculator
from uqcalc.backbones.base import Prediction
from uqcalc.backbones.registry import tap
from uqcalc.fitting.training import Recipe
from uqcalc.policy import Policy, Threshold
from uqcalc.probe.calibration import Calibration
from uqcalc.probe.card import Card
from uqcalc.probe.inputs import Statistics
from uqcalc.probe.network import ProbeNetwork
from uqcalc.probe.probe import Probe
from uqcalc.probe.scope import Scope
from uqcalc.probe.stacked import ATOM_CENTRES, CENTRES, StackedPaths, StackedShape
from uqcalc.signals.probe import ProbeSignal


NAME = "overhead"
MODELS = {"small": ("96x0e", 4.5), "medium": ("128x0e + 128x1o", 5.0)}
ELEMENTS = [1, 6, 7, 8, 9, 15, 16, 17, 35, 53]
# Limit on wall time over bare with importance; without it, half the excess.
LIMITS = {("small", "cpu"): 1.05, ("medium", "cpu"): 1.02}
CUDA_LIMIT = 1.01
MEMORY_LIMIT_GB = 1.0
MEMORY_ATOMS = 4000
MEMBERS = 4
ALTERNATIVE_REPEATS = 3
ENOUGH_PAIRS = 10
WARM_STEPS = 5  # before the stages are timed
CPU_SIZES = [20, 200, 1000]
CUDA_SIZES = [50, 500, 5000]
ACCEPT = Policy([Threshold("probe", suspect=1.0, unreliable=1.0)])
NOTES = [
    "random weights; a step = all atoms moved by about 1e-3 Å, then forces",
    "ratio: median over wrapped steps, each over the mean of the bare ones around it",
    "added_ms: median time outside the MACE calculator's pass, wrapped minus bare",
    "by_parts: 1 + added_ms / bare_ms; without the effect of a signal on the pass",
    f"ratio is judged where there are {ENOUGH_PAIRS} pairs, else by_parts",
]

COLUMNS = {
    "model": "model",
    "device": "device",
    "atoms": "atoms",
    "what": "what runs",
    "bare_ms": "bare ms",
    "added_ms": "added ms",
    "by_parts": "1 + added / bare",
    "ratio": "wrapped / bare, paired",
    "quartiles": "quartiles",
    "pairs": "pairs",
    "syncs": "syncs added",
}


def random_probe(
    features: int, architecture: str, fingerprint: str, seed: int
) -> Probe:
    """Return a probe with random weights in the shape of ``architecture``."""
    recipe = Recipe(architecture=architecture)
    layers = recipe.shape(features, charges=False)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ProbeNetwork(layers)
    card = Card(
        fingerprint=fingerprint,
        target="forces",
        boundary=0.1,
        architecture=architecture,
        shape=layers.to_dict(),
        elements=ELEMENTS,
        sizes=[1, 10_000],
    )
    if architecture == "probe-2026":
        return Probe(card, network, None)
    if architecture == "standard":
        return Probe(card, network, Statistics(features))
    shape = StackedShape(features, CENTRES, ATOM_CENTRES)
    card = replace(
        card,
        joined=asdict(shape),
        atom_boundary=0.1,
        atom_calibration=Calibration(),
        # no geometry is outside the scope: otherwise a second reading is needed
        scope=Scope(1e9, 0.99, 1, 10_000),
    )
    return Probe(card, network, Statistics(features), random_paths(shape, seed))


def random_paths(shape: StackedShape, seed: int) -> StackedPaths:
    """Return the other paths of the default probe, with all buffers filled."""
    joined = StackedPaths(shape)
    generator = torch.Generator().manual_seed(seed)
    for name, buffer in joined.named_buffers():
        if name.endswith("scale"):
            buffer.fill_(1.0)
        elif name not in {"weights", "averages", "limit"}:
            buffer.normal_(generator=generator).mul_(0.1)
    return joined


@dataclass
class Runner:
    """One calculator on its own copy of the structure.

    Attributes
    ----------
    seconds : list of float
        Wall time of each step.
    outside : list of float
        The part outside ``calculate`` of the MACE calculator.
    """

    atoms: Atoms
    device: str
    after: Callable[[], object] | None = None
    seconds: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)
    inside: float = 0.0

    def step(self, positions: np.ndarray) -> float:
        """Move the atoms and time their forces."""
        gc.collect()
        self.inside = 0.0
        _settle(self.device)
        start = time.perf_counter()
        self.atoms.set_positions(positions)
        self.atoms.get_forces()
        if self.after is not None:
            self.after()
        _settle(self.device)
        elapsed = time.perf_counter() - start
        self.seconds.append(elapsed)
        self.outside.append(elapsed - self.inside)
        return elapsed

    def watch(self, calculator: Any) -> None:
        """Time the inside of ``calculator.calculate``."""
        original = calculator.calculate

        def timed(*args: Any, **kwargs: Any) -> None:
            start = time.perf_counter()
            original(*args, **kwargs)
            self.inside += time.perf_counter() - start

        calculator.calculate = timed


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Disable the garbage collector during the timed steps."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def runners(
    model: torch.nn.Module, box: Atoms, shapes: list[str], device: str, seed: int
) -> dict[str, Runner]:
    """Return the bare runner and the wrapped ones; they share one model."""
    bare = mace_calculator(model, device=device)
    found = {"bare": _runner(box, bare, bare, device)}
    for shape in shapes:
        for importance in (True, False):
            base = mace_calculator(model, device=device)
            wrapped = wrap(base, shape, importance=importance, seed=seed)
            name = f"{shape}, {'with' if importance else 'no'} importance"
            found[name] = _runner(box, wrapped, base, device)
    return found


def alternatives(
    model: torch.nn.Module, box: Atoms, device: str, *, committee: bool
) -> dict[str, Runner]:
    """Return the two methods without a tap.

    The members of the committee are copies of one model.
    """
    second = mace_calculator(model, device=device)
    again = _runner(box, second, second, device)
    again.after = lambda: second.get_descriptors(again.atoms)
    found = {"forces, then get_descriptors": again}
    if committee:
        several = mace_calculator(*[model] * MEMBERS, device=device)
        found[f"committee of {MEMBERS}"] = _runner(box, several, several, device)
    return found


def wrap(base: Any, shape: str, *, importance: bool, seed: int) -> ReliableCalculator:
    """Wrap ``base`` with a random probe and a policy that accepts everything.

    With this policy no geometry is flagged, so importance is computed once.
    """
    backbone = tap(base)
    width = feature_width(base)
    probe = random_probe(width, shape, backbone.fingerprint, seed)
    signal = ProbeSignal(probe, importance=importance)
    return ReliableCalculator(backbone, signals=[signal], policy=ACCEPT)


def feature_width(calculator: Any) -> int:
    """Return the number of scalar features of an atom."""
    width = tap(calculator).feature_dim
    if width is None:
        msg = "feature width of a MACE must be known before the first pass, got None"
        raise RuntimeError(msg)
    return width


def _runner(box: Atoms, calculator: Any, base: Any, device: str) -> Runner:
    atoms = box.copy()
    atoms.calc = calculator
    runner = Runner(atoms, device)
    runner.watch(base)
    return runner


def measure(
    found: dict[str, Runner],
    others: dict[str, Runner],
    *,
    repeats: int,
    seconds: float,
    rng: np.random.Generator,
) -> dict[str, dict[str, Any]]:
    """Alternate bare and wrapped steps; return a row for each wrapped runner.

    Each wrapped step is divided by the mean of the bare steps before and after it.
    ``others`` come last, a few times each, divided by the bare step before them.
    """
    bare, *wrapped = found
    deadline = time.perf_counter() + seconds
    walk = _walk(found[bare].atoms, rng)
    ratios: dict[str, list[float]] = defaultdict(list)
    with quiet_collector():
        slow = _warm(found, walk, rng) > 1.0
        before = found[bare].step(next(walk))
        for turn in range(repeats):
            for name in rng.permutation(wrapped).tolist():
                if turn and time.perf_counter() > deadline:
                    break
                elapsed = found[name].step(next(walk))
                after = found[bare].step(next(walk))
                ratios[name].append(2 * elapsed / (before + after))
                before = after
        for name in [*others] * (1 if slow else ALTERNATIVE_REPEATS):
            if not slow:
                before = found[bare].step(next(walk))
            ratios[name].append(others[name].step(next(walk)) / before)
    everything = found | others
    return {n: _row(found[bare], everything[n], ratios[n]) for n in ratios}


def _warm(
    found: dict[str, Runner], walk: Iterator[np.ndarray], rng: np.random.Generator
) -> float:
    """Make the steps before the timing; return the seconds of a bare step.

    TorchScript compiles in its first passes. If a pass takes long, only the signals
    are run, on random features.
    """
    bare = found["bare"]
    seconds = bare.step(next(walk))
    if seconds < 5.0:
        seconds = bare.step(next(walk))
    for runner in found.values():
        calculator = runner.atoms.calc
        if seconds < 0.5:
            runner.step(next(walk))
            runner.step(next(walk))
        elif isinstance(calculator, ReliableCalculator):
            width = feature_width(bare.atoms.calc)
            prediction = random_prediction(len(runner.atoms), width, rng, bare.device)
            for signal in calculator.signals:
                signal(prediction)
    for runner in found.values():
        runner.seconds.clear()
        runner.outside.clear()
    return seconds


def _walk(atoms: Atoms, rng: np.random.Generator) -> Iterator[np.ndarray]:
    positions = atoms.get_positions()
    while True:
        positions = positions + rng.normal(0, 1e-3, positions.shape)
        yield positions


def _row(bare: Runner, other: Runner, ratios: list[float]) -> dict[str, Any]:
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    bare_ms = 1e3 * float(np.median(bare.seconds))
    if isinstance(other.atoms.calc, ReliableCalculator):
        added = 1e3 * float(np.median(other.outside) - np.median(bare.outside))
        parts = 1 + added / bare_ms
    else:  # its cost is in the passes
        added, parts = bare_ms * (float(middle) - 1), None
    return {
        "bare_ms": bare_ms,
        "added_ms": added,
        "by_parts": parts,
        "ratio": float(middle),
        "ratio_q25": float(low),
        "ratio_q75": float(high),
        "quartiles": f"{low:.3f} to {high:.3f}",
        "pairs": len(ratios),
    }


def added_syncs(found: dict[str, Runner], rng: np.random.Generator) -> dict[str, int]:
    """Count the host synchronisations that the wrapper adds to a step."""
    walk = _walk(found["bare"].atoms, rng)
    counts = {name: _syncs(runner, next(walk)) for name, runner in found.items()}
    return {name: count - counts["bare"] for name, count in counts.items()}


def _syncs(runner: Runner, positions: np.ndarray) -> int:
    # The timed step synchronises on purpose, so `step` cannot be used here.
    runner.atoms.set_positions(positions)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runner.atoms.get_forces()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(w.message) for w in caught)


def head_memory(shape: str, features: int, atoms: int, seed: int) -> float:
    """Return the peak memory in GB that the signal alone adds at ``atoms`` atoms.

    Call this in a new process: the operating system gives the peak of a process.
    """
    rng = np.random.default_rng(seed)
    probe = random_probe(features, shape, "random:0", seed)
    signal = ProbeSignal(probe, importance=True)
    signal(random_prediction(10, features, rng))  # loads the kernels
    prediction = random_prediction(atoms, features, rng)
    before = _peak_gb()
    signal(prediction)
    return _peak_gb() - before


def _peak_gb() -> float:
    """Return the peak memory of this process in GB.

    On Linux ``ru_maxrss`` survives exec: a child starts from its parent's value.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text(encoding="utf-8").splitlines()
        (peak,) = (line for line in lines if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e9
    peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_rss / 1e9 if sys.platform == "darwin" else peak_rss * 1024 / 1e9


def random_prediction(
    atoms: int, features: int, rng: np.random.Generator, device: str = "cpu"
) -> Prediction:
    """Return a prediction with random features."""
    rows = rng.normal(size=(atoms, features)).astype(np.float32)
    return Prediction(
        numbers=np.resize([8, 1, 1], atoms),
        positions=rng.normal(size=(atoms, 3)),
        cell=np.zeros((3, 3)),
        pbc=np.zeros(3, dtype=bool),
        results={},
        energy=-1.0 * atoms,
        forces=rng.normal(size=(atoms, 3)),
        features=torch.from_numpy(rows).to(device),
    )


def memory_row(
    shape: str, features: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure `head_memory` in a subprocess."""
    command = [sys.executable, __file__, "--memory-of", shape, str(features)]
    command += ["--seed", str(options.seed)]
    if options.threads:
        command += ["--threads", str(options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {
        "model": f"{features} features",
        "device": "cpu",
        "atoms": MEMORY_ATOMS,
        "what": f"{shape}, with importance, memory",
        "peak_gb": json.loads(done.stdout)["peak_gb"],
    }


def targets_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the targets, one for each row that has one.

    With fewer than ``ENOUGH_PAIRS`` pairs the noise of the pass exceeds the added time;
    then the target is for the time outside the pass.
    """
    entries = []
    for row in rows:
        what = f"{row['model']}, {row['atoms']} atoms, {row['device']}: {row['what']}"
        if "peak_gb" in row:
            entries.append(target(f"{what}, GB", row["peak_gb"], MEMORY_LIMIT_GB))
        elif "importance" in row["what"]:
            limit = LIMITS.get((row["model"], row["device"]), CUDA_LIMIT)
            share = 0.5 if "no importance" in row["what"] else 1.0
            limit = round(1 + share * (limit - 1), 4)
            paired = row["pairs"] >= ENOUGH_PAIRS
            how, value = ("paired", "ratio") if paired else ("by parts", "by_parts")
            entries.append(target(f"{what} ({how})", row[value], limit))
            if row["syncs"] is not None:
                entries.append(target(f"{what}, synchronisations", row["syncs"], 1))
    return entries


def run_cell(
    name: str,
    size: int,
    model: torch.nn.Module,
    options: argparse.Namespace,
    seconds: float,
) -> list[dict[str, Any]]:
    """Measure one model at one size within about ``seconds``."""
    rng = np.random.default_rng(options.seed)
    box = water_box(size, options.seed)
    device = options.device
    found = runners(model, box, options.shapes, device, options.seed)
    # On the CPU a committee of medium models would take half of the time, so it is
    # left out at the largest size.
    committee = device == "cuda" or name == "small" or size <= 500
    others = alternatives(model, box, device, committee=committee)
    rows = measure(found, others, repeats=options.repeats, seconds=seconds, rng=rng)
    syncs = added_syncs(found, rng) if device == "cuda" else {}
    head = {"model": name, "device": device, "atoms": len(box)}
    names = [n for n in found | others if n in rows]
    return [head | {"what": n, "syncs": syncs.get(n)} | rows[n] for n in names]


def profile(options: argparse.Namespace) -> None:
    """Print and write the time of each stage of a wrapped step."""
    rng, rows = np.random.default_rng(options.seed), []
    for name, size in [
        (name, size) for size in options.sizes for name in options.models
    ]:
        model = random_mace(*MODELS[name], seed=options.seed)
        box = water_box(size, options.seed)
        for shape in options.shapes:
            base = mace_calculator(model, device=options.device)
            calculator = wrap(base, shape, importance=True, seed=options.seed)
            runner = _runner(box, calculator, base, options.device)
            walk = _walk(runner.atoms, rng)
            for _ in range(WARM_STEPS):
                runner.step(next(walk))
            with quiet_collector(), staged(calculator, base) as stages:
                for _ in range(options.repeats):
                    runner.step(next(walk))
            head = {"model": name, "atoms": len(box), "shape": shape}
            new = [head | row for row in stages.rows(options.repeats)]
            title = f"{name} shape, {len(box)} atoms, {shape}"
            print_table(title, new, {"stage": "stage", "ms": "ms"})
            rows += new
    write_result("overhead_stages", seeds=[options.seed], rows=rows, notes=NOTES[:1])


def run(options: argparse.Namespace) -> None:
    """Measure all cells; print and write the rows."""
    started = time.perf_counter()
    rows = [memory_row(shape, 96, options) for shape in options.shapes]
    models = {n: random_mace(*MODELS[n], seed=options.seed) for n in options.models}
    cells = [(name, size) for size in options.sizes for name in options.models]
    for index, (name, size) in enumerate(cells):
        left = 60 * options.budget_minutes - (time.perf_counter() - started)
        share = _weight(name, size) / sum(_weight(*cell) for cell in cells[index:])
        new = run_cell(name, size, models[name], options, share * left)
        rows += new
        title = f"MACE-OFF23 {name} shape, {new[0]['atoms']} atoms, {options.device}"
        print_table(title, new, _shown(new, without=("model", "device", "atoms")))
    targets = targets_of(rows)
    print_targets(targets)
    name = NAME if options.device == "cpu" else f"{NAME}_{options.device}"
    write_result(name, seeds=[options.seed], rows=rows, targets=targets, notes=NOTES)
    print(f"{time.perf_counter() - started:.0f} s")


def _weight(name: str, size: int) -> float:
    """Share of the time budget: less than proportional to the time of a step."""
    return (size * (3.0 if name == "medium" else 1.0)) ** 0.6


def table() -> str:
    """Return the markdown section from the last results."""
    result = read_result(NAME)
    host = result["host"]
    timed = [row for row in result["rows"] if "ratio" in row]
    memory = [row for row in result["rows"] if "peak_gb" in row]
    where = f"{host['cpu']}, {host['torch_threads']} threads"
    if host["gpu"]:
        where += f", {host['gpu']}"
    missed = [entry["name"] for entry in result["targets"] if not entry["met"]]
    met = f"{len(result['targets']) - len(missed)} of {len(result['targets'])}"
    versions = result["versions"]
    software = f"torch {versions['torch']}, mace-torch {versions['mace-torch']}"
    lines = [
        f"Measured on {where}; {software}, float32, random weights.",
        "",
        markdown_table(timed, _shown(timed)),
        "",
        *(
            f"Peak memory of the probe alone ({row['what'].partition(',')[0]}, with "
            f"importance) at {row['atoms']} atoms: {row['peak_gb']:.2f} GB."
            for row in memory
        ),
        "",
        f"Targets met: {met}." + "".join(f"\n- missed: {name}" for name in missed),
    ]
    return "\n".join(lines)


def _shown(rows: list[dict[str, Any]], without: tuple[str, ...] = ()) -> dict[str, str]:
    left_out = {*without, *(["syncs"] if rows[0]["syncs"] is None else [])}
    return {key: head for key, head in COLUMNS.items() if key not in left_out}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, help="of torch; its default otherwise")
    parser.add_argument("--repeats", type=int, default=40, help="pairs at most")
    parser.add_argument("--sizes", type=int, nargs="+", help="atoms")
    choices = ["probe-2026", "joined"]
    parser.add_argument("--shapes", nargs="+", choices=choices, default=choices)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget-minutes", type=float, default=7.5)
    parser.add_argument("--device", choices=["cpu", "cuda"])
    parser.add_argument("--table", action="store_true", help="print the last results")
    parser.add_argument(
        "--profile", action="store_true", help="time the stages of a step instead"
    )
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    default = CUDA_SIZES if options.device == "cuda" else CPU_SIZES
    options.sizes = sorted(options.sizes or default)
    return options


def main() -> None:
    options = parse()
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.table:
        print(table())
    elif options.profile:
        import_mace()
        profile(options)
    elif options.memory_of:
        shape, features = options.memory_of
        peak = head_memory(shape, int(features), MEMORY_ATOMS, options.seed)
        print(json.dumps({"peak_gb": peak}))
    else:
        import_mace()
        run(options)


if __name__ == "__main__":
    main()
