"""`uqcalc annotate`: judge every frame of a trajectory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uqcalc.cli.console import Report, notice, reporting
from uqcalc.cli.options import (
    DeviceOption,
    HeadOption,
    LimitsOption,
    ModelOfProbe,
    QuietOption,
    SpeciesOption,
    existing,
    extended_xyz,
)
from uqcalc.cli.probes import ProbeOption, load_probe, model_of
from uqcalc.cli.signalchoice import with_force_delta
from uqcalc.cli.streams import input_file, is_standard, output_file


if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

    from uqcalc.annotating.tally import AnnotationSummary
    from uqcalc.calculator import ReliableCalculator
    from uqcalc.probe.probe import Probe

SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        callback=existing,
        help=(
            "Trajectory, in any format that ASE reads; - is extended XYZ on standard "
            "input."
        ),
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=extended_xyz,
        help=(
            "Extended XYZ file to write (.xyz or .extxyz). A file of an interrupted "
            "command is continued. - is standard output, written at the end."
        ),
    ),
]
GuaranteedOption = Annotated[
    bool,
    typer.Option(
        "--guaranteed",
        help="RELIABLE only within the guarantee on the probe's card (uqcalc certify).",
    ),
]
FormerGuaranteed = Annotated[bool, typer.Option("--promised", hidden=True)]
WorstOption = Annotated[
    int, typer.Option(min=0, help="Number of worst frames (largest risk) to list.")
]


def annotate(  # noqa: PLR0913  (one option each)
    source: SourceArgument,
    output: OutputOption,
    *,
    model: ModelOfProbe = None,
    probe: ProbeOption = None,
    guaranteed: GuaranteedOption = False,
    promised: FormerGuaranteed = False,
    head: HeadOption = None,
    limits: LimitsOption = None,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
    worst: WorstOption = 10,
    quiet: QuietOption = False,
) -> None:
    """Judge every frame of a trajectory, and write the frames with their reliability.

    Without --model and --probe, the bundled potential and its probe are used. Labels
    are kept: energy and forces of the file become original_energy and original_forces.
    The exit status is 1 if a frame could not be evaluated.
    """
    if promised:
        notice("--promised is now --guaranteed; the old name goes with 0.3")
    guaranteed = guaranteed or promised
    stopped = "the frames so far are on disk; repeat the command to continue"
    if is_standard(output):
        stopped = "the frames so far are on standard output"
    with (
        reporting(stopped, quiet=quiet, to_stderr=is_standard(output)) as report,
        input_file(source) as readable,
        output_file(output) as target,
    ):
        import uqcalc

        name = model or "default" if probe is None else model_of(probe, model)
        loaded = _probe(name, probe, needed=guaranteed)
        calculator = uqcalc.open_model(name, device=device)
        reliable = _calculator(calculator, loaded, head, limits, guaranteed=guaranteed)
        try:
            summary = uqcalc.annotate_file(
                readable, target, reliable, species=species, worst=worst
            )
        except uqcalc.errors.SourceError as error:
            _show(error.summary, output, report)
            raise
        _show(summary, output, report)
    if summary.failed:
        raise typer.Exit(code=1)


def _probe(name: str, probe: str | None, *, needed: bool) -> Probe | None:
    """Return the probe that was named, or the one that the model brings."""
    from uqcalc.defaults import shipped_probe
    from uqcalc.models.named import SHIPPED_PROBES

    if probe is not None:
        return load_probe(probe)
    return shipped_probe(name) if needed or name in SHIPPED_PROBES else None


def _calculator(
    calculator: BaseCalculator,
    probe: Probe | None,
    head: Path | None,
    limits: tuple[float, float] | None,
    *,
    guaranteed: bool,
) -> ReliableCalculator:
    """Return a calculator with the probe, Force Delta (if it has limits), or both.

    Without both, it reads the signals that need no labels, and every frame is at least
    SUSPECT.
    """
    from uqcalc.calculator import ReliableCalculator

    if limits is not None or head is not None:
        return with_force_delta(calculator, probe, head, limits, guaranteed=guaranteed)
    if probe is None:
        return ReliableCalculator(calculator)
    card = probe.card
    policy = card.guarantee_policy() if guaranteed else card.policy()
    return ReliableCalculator(calculator, probe, policy=policy)


def _show(summary: AnnotationSummary, output: Path, report: Report) -> None:
    from rich.table import Table

    if is_standard(output):
        summary = replace(summary, target=Path("standard output"))
    if summary.worst:
        by_probe = summary.worst[0].reliability is not None
        table = Table("frame", "formula", "level", title="the worst frames")
        table.add_column("P(reliable)" if by_probe else "risk", justify="right")
        table.add_column("why", overflow="fold")
        for row in summary.worst:
            number = f"{row.risk:.3g} {row.unit}"
            if row.reliability is not None:
                number = f"{row.reliability:.3f}"
            table.add_row(
                str(row.index), row.formula, row.level.name, number, row.reason
            )
        report.result(table, fold=True)
    report.result(str(summary))
