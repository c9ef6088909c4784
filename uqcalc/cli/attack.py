"""`uqcalc attack`: find structures of large Force Delta."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uqcalc.cli.console import Report, reporting, usage_errors
from uqcalc.cli.options import (
    DeviceOption,
    HeadOption,
    LimitsOption,
    ModelOption,
    QuietOption,
    SpeciesOption,
    existing,
    new_extended_xyz,
)
from uqcalc.cli.probes import ProbeOption, load_probe
from uqcalc.cli.signalchoice import ForceDeltaChoice, reliable
from uqcalc.cli.streams import input_file
from uqcalc.progress import progress_bar


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

    from uqcalc.attacking.ascent import AttackSettings
    from uqcalc.attacking.path import AttackPath
    from uqcalc.calculator import ReliableCalculator


StructureArgument = Annotated[
    Path,
    typer.Argument(
        metavar="STRUCTURE",
        callback=existing,
        help=(
            "File with the start structure, in any format that ASE reads; its last "
            "frame is used. - is extended XYZ on standard input."
        ),
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=new_extended_xyz,
        help="Extended XYZ file to write, with all frames; it must not exist.",
    ),
]
StepsOption = Annotated[int, typer.Option(help="Maximum number of steps of a path.")]
AlphaOption = Annotated[
    float, typer.Option(help="Weight alpha of the gradient of U, in angstrom^3/eV.")
]
BetaOption = Annotated[
    float,
    typer.Option(help="Weight beta of the gradient of the energy E, in angstrom^2/eV."),
]
StartsOption = Annotated[
    int,
    typer.Option(
        help="Number of paths; all but the first start from random displacements."
    ),
]
RattleOption = Annotated[
    float,
    typer.Option(help="Standard deviation of the random displacements, in angstrom."),
]
SeedOption = Annotated[int, typer.Option(help="Random seed of the displacements.")]
MaxStepOption = Annotated[
    float, typer.Option(help="Largest displacement of an atom in a step, in angstrom.")
]
MaxRiseOption = Annotated[
    float | None,
    typer.Option(
        help=(
            "End a path when the energy has risen by this, in eV/atom; no limit by "
            "default."
        )
    ),
]
FreeCellOption = Annotated[
    bool, typer.Option("--free-cell", help="Change the cell, too; fixed by default.")
]


def attack(  # noqa: PLR0913  (one option each)
    structure: StructureArgument,
    output: OutputOption,
    model: ModelOption,
    *,
    probe: ProbeOption = None,
    head: HeadOption = None,
    limits: LimitsOption = None,
    steps: StepsOption = 50,
    alpha: AlphaOption = 1.0,
    beta: BetaOption = 0.01,
    starts: StartsOption = 1,
    rattle: RattleOption = 0.05,
    seed: SeedOption = 0,
    max_step: MaxStepOption = 0.05,
    max_energy_rise: MaxRiseOption = None,
    free_cell: FreeCellOption = False,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Move a structure towards larger Force Delta, where two forces disagree.

    U is the Force Delta: the difference between the direct and the conservative forces
    of a potential. Each step is r <- r + alpha dU/dr - beta dE/dr, with the energy E.
    All frames of all paths are written with their reliability, as they are made.
    """
    stopped = f"the frames so far are in {output}"
    with reporting(stopped, quiet=quiet) as report, input_file(structure) as source:
        atoms = _last_frame(source, species)
        import uqcalc

        with usage_errors():
            settings = uqcalc.types.AttackSettings(
                alpha=alpha,
                beta=beta,
                steps=steps,
                starts=starts,
                rattle=rattle,
                seed=seed,
                max_step=max_step,
                cell="free" if free_cell else "fixed",
                max_energy_rise=max_energy_rise,
            )
        loaded = [] if probe is None else [load_probe(probe)]
        model_calculator = uqcalc.open_model(model, device=device)
        choice = ForceDeltaChoice(head, limits)
        calculator = reliable(model_calculator, loaded, choice)
        paths = _attacked(atoms, calculator, settings, output, report)
        _show(paths, report)
        count = sum(len(path.frames) for path in paths)
        report.result(f"wrote {output} with {count} frames")


def _last_frame(structure: Path, species: str | None) -> Atoms:
    from uqcalc.files.structures import read_frames

    return read_frames(structure, species=species)[-1]


def _attacked(
    atoms: Atoms,
    calculator: ReliableCalculator,
    settings: AttackSettings,
    output: Path,
    report: Report,
) -> list[AttackPath]:
    """Attack under a progress bar; every frame is in the file before the next."""
    import uqcalc
    from uqcalc.annotating.frames import append_frame
    from uqcalc.attacking.path import START_KEY, STEP_KEY
    from uqcalc.files.writing import OneWriter

    each = settings.steps + 1
    lost: set[str] = set()
    with OneWriter(output), progress_bar() as bar:
        task = bar.add_task("attack", total=settings.starts * each)

        def keep(frame: Atoms) -> None:
            start, step = frame.info[START_KEY], frame.info[STEP_KEY]
            what = f"step {step} from start {start}"
            lost.update(append_frame(output, frame, what))
            bar.update(task, completed=start * each + step + 1)

        paths = uqcalc.attack(atoms, calculator, settings, observer=keep)
    if lost:
        what = ", ".join(sorted(lost))
        report.result(f"left out, because extended XYZ cannot hold it: {what}")
    return paths


def _show(paths: Sequence[AttackPath], report: Report) -> None:
    from rich.table import Table

    table = Table("start")
    for name in ("steps", "U first (eV/Å)", "U last", "energy (eV/atom)"):
        table.add_column(name, justify="right")
    table.add_column("level")
    table.add_column("ended", overflow="fold")
    for path in paths:
        row = ["", "", "", ""]
        if path.frames:
            first, last = path.force_delta[[0, -1]]
            rise = f"{path.energy_rise[-1]:+.3g}"
            row = [f"{first:.3g}", f"{last:.3g}", rise, path.levels[-1].name]
        table.add_row(str(path.start), str(path.steps), *row, path.reason)
    report.result(table, fold=True)
