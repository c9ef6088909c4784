"""`uqcalc attack`: structures at which a potential's two forces disagree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uqcalc.cli.console import (
    DeviceOption,
    ModelOption,
    SpeciesOption,
    errors_as_messages,
    out,
)
from uqcalc.cli.judging import HeadOption, LimitsOption, judging
from uqcalc.progress import progress_bar


if TYPE_CHECKING:
    from collections.abc import Sequence

    from ase import Atoms

    from uqcalc.attacking.path import AttackPath
    from uqcalc.calculator import ReliableCalculator


def attack(  # noqa: PLR0913  (one option each)
    structure: Annotated[
        Path, typer.Argument(help="In any format ASE reads; its last frame is taken.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="New extended XYZ file, for all frames."),
    ],
    model: ModelOption,
    *,
    probe: Annotated[
        Path | None, typer.Option(help="A probe, to be read as well.")
    ] = None,
    head: HeadOption = None,
    limits: LimitsOption = None,
    steps: Annotated[int, typer.Option(help="Most steps of a path.")] = 50,
    alpha: Annotated[
        float, typer.Option(help="Weight of the gradient of U, in Å³/eV.")
    ] = 1.0,
    beta: Annotated[
        float, typer.Option(help="Weight of the gradient of the energy, in Å²/eV.")
    ] = 0.01,
    starts: Annotated[
        int, typer.Option(help="Paths; all but the first begin rattled.")
    ] = 1,
    rattle: Annotated[
        float, typer.Option(help="Standard deviation of the rattling, in Å.")
    ] = 0.05,
    seed: Annotated[int, typer.Option(help="Of the rattling.")] = 0,
    max_step: Annotated[
        float, typer.Option(help="Largest displacement in a step, in Å.")
    ] = 0.05,
    max_energy_rise: Annotated[
        float | None, typer.Option(help="End a path there, in eV/atom.")
    ] = None,
    free_cell: Annotated[
        bool, typer.Option("--free-cell", help="Strain the cell, too.")
    ] = False,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Move a structure to where a potential's two forces disagree more (Force Delta).

    For potentials with a direct force head: r <- r + alpha dU/dr - beta dE/dr. All
    frames of all paths are written with their reliability, as they are made.
    """
    with errors_as_messages(f"the frames so far are in {output}"):
        import uqcalc

        settings = uqcalc.AttackSettings(
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
        target, atoms = _new_file(output), _last_frame(structure, species)
        judge = judging(
            uqcalc.open_model(model, device=device),
            None if probe is None else uqcalc.Probe.load(probe),
            head,
            limits,
        )
        paths = _attacked(atoms, judge, settings, target)
    _show(paths)
    count = sum(len(path.frames) for path in paths)
    out().print(f"wrote {output} with {count} frames")


def _new_file(output: Path) -> Path:
    from uqcalc.errors import RecordError
    from uqcalc.files.writing import writable

    target = writable(output, "output")
    if target.suffix not in {".xyz", ".extxyz"}:
        msg = f"output must end in .xyz or .extxyz, got {output.name}"
        raise RecordError(msg)
    if target.exists():
        msg = f"output must be a new file, got {output}, which exists; choose another"
        raise RecordError(msg)
    return target


def _last_frame(structure: Path, species: str | None) -> Atoms:
    from uqcalc.files.structures import read_frames

    return read_frames(structure, species=species)[-1]


def _attacked(
    atoms: Atoms, judge: ReliableCalculator, settings: Any, target: Path
) -> list[AttackPath]:
    """Attack under a progress bar; every frame is in the file before the next."""
    import uqcalc
    from uqcalc.annotating.frames import append_frame
    from uqcalc.attacking.path import START_KEY, STEP_KEY
    from uqcalc.files.writing import OneWriter

    each = settings.steps + 1
    lost: set[str] = set()
    with OneWriter(target), progress_bar() as bar:
        task = bar.add_task("attack", total=settings.starts * each)

        def keep(frame: Atoms) -> None:
            start, step = frame.info[START_KEY], frame.info[STEP_KEY]
            what = f"step {step} from start {start}"
            lost.update(append_frame(target, frame, what))
            bar.update(task, completed=start * each + step + 1)

        paths = uqcalc.attack(atoms, judge, settings, observer=keep)
    if lost:
        out().print(f"left out, as the file cannot hold it: {', '.join(sorted(lost))}")
    return paths


def _show(paths: Sequence[AttackPath]) -> None:
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
    out().print(table, soft_wrap=False)
