"""The main job in three minutes: heat a molecule until its potential breaks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import CalculationFailed
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import thermalize_momenta
from rich.progress import Progress

from uqcalc.calculator import ReliableCalculator
from uqcalc.default import default_calculator
from uqcalc.errors import MissingExtraError
from uqcalc.monitor import Monitor
from uqcalc.probe.card import Card
from uqcalc.probe.checkpoint import Probe
from uqcalc.signals.probe import ProbeSignal


if TYPE_CHECKING:
    from matplotlib.figure import Figure

TIMESTEP_FS = 0.5
PATIENCE = 10
KEEP_EVERY = 10


@dataclass(frozen=True, slots=True, eq=False)
class DemoRun:
    """A monitored run with the frames that were kept and, if any, their truth.

    ``errors`` are true RMS force errors in eV/Å, NaN where the reference did not
    converge, None where there is no reference.
    """

    monitor: Monitor
    card: Card
    frames: list[Atoms]
    errors: np.ndarray | None


def run_demo(output: Path, *, crystal: bool = True, seed: int = 1) -> str:
    """Run the demonstration into ``output`` and return what it has to say.

    Raises
    ------
    MissingExtraError
        Without mace-torch, tblite or (for the crystal) chgnet.
    FileExistsError
        If ``output`` holds an earlier demonstration.
    """
    if output.exists() and any(output.iterdir()):
        msg = f"output must be an empty folder, got {output}; remove it first"
        raise FileExistsError(msg)
    output.mkdir(parents=True, exist_ok=True)
    molecule = watch_aspirin(output, seed=seed)
    _save(
        picture(molecule, "Aspirin, heated until its potential breaks"),
        output / "aspirin.png",
    )
    lines = describe_molecule(molecule, output)
    if crystal:
        solid = watch_crystal(output, seed=seed)
        _save(
            picture(solid, "Rutile TiO₂ with CHGNet, squeezed"), output / "crystal.png"
        )
        lines += describe_crystal(solid, output)
    return "\n".join(lines)


def watch_aspirin(output: Path, *, seed: int, picoseconds: float = 2.0) -> DemoRun:
    """Heat aspirin from 300 to 3000 K; halt it; compute the truth beside it."""
    reference = _xtb()
    with as_file(files("uqcalc") / "data" / "aspirin.xyz") as path:
        atoms = cast("Atoms", read(path))
    atoms.calc = default_calculator()
    rng = np.random.default_rng(seed)
    thermalize_momenta(atoms, temperature_K=300, rng=rng)
    dynamics = _langevin(atoms, rng)
    steps = round(picoseconds * 1000 / TIMESTEP_FS)

    def heat() -> None:
        share = min(dynamics.nsteps / steps, 1.0)
        dynamics.set_temperature(temperature_K=300 + 2700 * share)

    monitor, frames = _watch(dynamics, output / "aspirin", steps, heat)
    errors = true_errors(frames, reference)
    for frame, error in zip(frames, errors, strict=True):
        frame.info["true_force_error"] = float(error)
    _write(output / "aspirin.xyz", frames)
    return DemoRun(monitor, _card(atoms.calc), frames, errors)


def watch_crystal(output: Path, *, seed: int, steps: int = 160) -> DemoRun:
    """Squeeze rutile at 300 K with CHGNet, a universal potential; halt it."""
    atoms = _rutile()
    atoms.calc = _chgnet()
    rng = np.random.default_rng(seed)
    thermalize_momenta(atoms, temperature_K=300, rng=rng)
    dynamics = _langevin(atoms, rng, timestep_fs=1.0)

    def squeeze() -> None:
        atoms.set_cell(atoms.cell * 0.998, scale_atoms=True)

    monitor, frames = _watch(dynamics, output / "crystal", steps, squeeze)
    _write(output / "crystal.xyz", frames)
    return DemoRun(monitor, _card(atoms.calc), frames, None)


def picture(run: DemoRun, title: str) -> Figure:
    """Draw what happened on one time axis, and which atoms weighed at the end."""
    import matplotlib.pyplot as plt

    from uqcalc import plotting

    history, card = run.monitor.history, run.card
    rows = (
        ["T", "P", "truth", "verdict"]
        if run.errors is not None
        else ["T", "P", "verdict"]
    )
    heights = [0.16 if name == "verdict" else 1.0 for name in rows]
    figure, axes = plt.subplot_mosaic(
        [[name, "atoms"] for name in rows],
        figsize=(12, 6.6),
        height_ratios=heights,
        width_ratios=[1.65, 1],
        layout="constrained",
    )
    figure.suptitle(title, fontsize=15, x=0.012, ha="left")
    plotting.plot_temperature(history, axes["T"])
    plotting.plot_probability(history, card.suspect, card.unreliable, axes["P"])
    if run.errors is not None:
        times = [frame.info["step"] * TIMESTEP_FS / 1000 for frame in run.frames]
        plotting.plot_true_error(times, run.errors, card.boundary, axes["truth"])
    plotting.plot_verdicts(history, axes["verdict"])
    _finish_axes(run, [axes[name] for name in rows])
    last = run.frames[-1]
    plotting.plot_atoms(last, last.arrays["probe_importance"], axes["atoms"])
    axes["atoms"].set_title("attention of the verdict at the last step", fontsize=10)
    return figure


def _finish_axes(run: DemoRun, axes: list[Any]) -> None:
    from uqcalc.plotting import INK

    end = run.monitor.history[-1].time_fs or 0.0
    for axis in axes:
        axis.set_xlim(0, end / 1000 * 1.04)
        axis.spines[["top", "right"]].set_visible(False)
        if run.monitor.halted:
            axis.axvline(end / 1000, color=INK, lw=1.4)
    for axis in axes[:-1]:
        axis.set_xticklabels([])
    if run.monitor.halted:
        axes[0].annotate(
            "halted",
            (end / 1000, 1.0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            xytext=(-5, -4),
            ha="right",
            va="top",
            fontsize=11,
        )
    axes[-1].set(xlabel="time [ps]", ylabel="verdict")
    axes[-1].yaxis.label.set(rotation=0, ha="right", va="center")


def _langevin(
    atoms: Atoms, rng: np.random.Generator, timestep_fs: float = TIMESTEP_FS
) -> Langevin:
    return Langevin(
        atoms,
        timestep_fs * units.fs,
        temperature_K=300,
        friction=0.02 / units.fs,
        fixcm=False,
        rng=rng,
    )


def _watch(
    dynamics: Langevin, stem: Path, steps: int, drive: Callable[[], None]
) -> tuple[Monitor, list[Atoms]]:
    monitor = Monitor(
        dynamics,
        log=stem.with_suffix(".jsonl"),
        flagged=stem.with_name(stem.name + "_flagged.xyz"),
        patience=PATIENCE,
    )
    frames: list[Atoms] = []
    with Progress(transient=True) as progress:
        task = progress.add_task(f"watching {stem.name}", total=steps)

        def keep() -> None:
            progress.update(task, completed=dynamics.nsteps)
            if dynamics.nsteps % KEEP_EVERY == 0 or monitor.halted:
                frames.append(monitor.snapshot())

        dynamics.insert_observer(keep, position=1)
        dynamics.attach(drive)
        dynamics.run(steps)
    return monitor, frames


def true_errors(frames: list[Atoms], reference: Any) -> np.ndarray:
    """Return the RMS force error of each frame in eV/Å, NaN if not converged."""
    errors = np.full(len(frames), np.nan)
    for index, frame in enumerate(frames):
        atoms = Atoms(frame.numbers, frame.positions)
        atoms.calc = reference
        try:
            difference = frame.get_forces() - atoms.get_forces()
        except CalculationFailed:
            reference.reset()
            continue
        errors[index] = np.sqrt(np.mean(difference**2))
    return errors


def describe_molecule(run: DemoRun, output: Path) -> list[str]:
    """Say in a few lines what was watched, when it stopped and what was true."""
    monitor, card = run.monitor, run.card
    last = monitor.history[-1]
    halt = f"Halted: {monitor.reason}." if monitor.halted else "It was not halted."
    return [
        "Watched aspirin under Langevin dynamics, heated from 300 K: "
        f"{last.step} steps of {TIMESTEP_FS} fs.",
        "The question at every step: is the RMS force error within "
        f"{card.boundary * 1000:.0f} meV/Å?",
        halt,
        f"Temperature then: {last.temperature_K:.0f} K; atoms that weighed most: "
        f"{', '.join(map(str, last.worst_atoms))}.",
        *_truth_lines(run),
        f"Files: {output / 'aspirin.png'} (look at this first), aspirin.jsonl (log), "
        "aspirin.xyz (annotated), aspirin_flagged.xyz.",
    ]


def _truth_lines(run: DemoRun) -> list[str]:
    errors = np.array([]) if run.errors is None else run.errors
    beyond = np.flatnonzero(errors > run.card.boundary)
    known = errors[np.isfinite(errors)] * 1000
    lost = len(errors) - len(known)
    text = (
        f"Truth (GFN2-xTB, a tenth of the frames): {known[0]:.0f} meV/Å at the start, "
        f"{known[-1]:.0f} meV/Å at the last step; "
    )
    if len(beyond):
        text += (
            f"first beyond the boundary at step {run.frames[beyond[0]].info['step']}."
        )
    else:
        text += "never beyond the boundary."
    marked = f"The reference did not converge on {lost} frames; they are marked."
    return [text, marked] if lost else [text]


def describe_crystal(run: DemoRun, output: Path) -> list[str]:
    """Say the same of the crystal, and that its truth is not at hand."""
    monitor, last = run.monitor, run.frames[-1]
    began = run.frames[0].get_volume() / len(last)
    ended = last.get_volume() / len(last)
    halt = f"Halted: {monitor.reason}" if monitor.halted else "It was not halted"
    return [
        "Then rutile TiO₂ with CHGNet (a universal potential), squeezed at 300 K: "
        f"{monitor.history[-1].step} steps of 1 fs; boundary "
        f"{run.card.boundary * 1000:.0f} meV/Å against PBE.",
        f"{halt}; from {began:.2f} to {ended:.2f} Å³ an atom.",
        "Its truth is not at hand here: no DFT was run, so this part shows the verdict "
        "and cannot show that it is right.",
        f"Files: {output / 'crystal.png'}, crystal.jsonl, crystal.xyz, "
        "crystal_flagged.xyz.",
    ]


def _xtb() -> Any:
    try:
        from tblite.ase import TBLite
    except ImportError as error:
        raise MissingExtraError("the demonstration's truth", "tblite", "xtb") from error
    return TBLite(method="GFN2-xTB", verbosity=0)


def _chgnet() -> ReliableCalculator:
    from contextlib import redirect_stdout
    from io import StringIO

    try:
        from chgnet.model.dynamics import CHGNetCalculator
    except ImportError as error:
        raise MissingExtraError(
            "the crystal's potential", "chgnet", "chgnet"
        ) from error
    with redirect_stdout(StringIO()):  # it announces its device
        calculator = CHGNetCalculator(use_device="cpu")
    with as_file(files("uqcalc") / "data" / "chgnet.probe") as path:
        return ReliableCalculator(calculator, probe=Probe.load(path))


def _rutile() -> Atoms:
    """Rutile TiO₂, 12 atoms (a 4.594 Å, c 2.959 Å, u 0.305; 1x1x2 cells)."""
    from ase.spacegroup import crystal

    cell = crystal(
        ["Ti", "O"],
        basis=[(0, 0, 0), (0.305, 0.305, 0)],
        spacegroup=136,
        cellpar=[4.594, 4.594, 2.959, 90, 90, 90],
    )
    return Atoms(cell * (1, 1, 2))


def _card(calculator: ReliableCalculator) -> Card:
    return next(s.probe.card for s in calculator.signals if isinstance(s, ProbeSignal))


def _write(path: Path, frames: list[Atoms]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    write(partial, frames, format="extxyz")
    partial.replace(path)


def _save(figure: Figure, path: Path) -> None:
    import matplotlib.pyplot as plt

    partial = path.with_name(f".{path.stem}.partial.png")
    figure.savefig(partial, dpi=160)
    plt.close(figure)
    partial.replace(path)
