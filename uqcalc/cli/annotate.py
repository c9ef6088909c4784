"""`uqcalc annotate`: judge every frame of a trajectory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uqcalc.annotating.done import Message, earlier_message, job_hash, write_record
from uqcalc.annotating.names import check_tables, checked_table
from uqcalc.cli.console import Report, notice, reporting, usage_errors
from uqcalc.cli.options import (
    DeviceOption,
    GpusOption,
    HeadOption,
    LimitsOption,
    MembersOption,
    ModelOfProbe,
    PerturbationOption,
    QuietOption,
    RayOption,
    SpeciesOption,
    SpreadLimitsOption,
    WorkersOption,
    annotated,
    existing,
    on_ray,
)
from uqcalc.cli.probes import ProbesOption, is_shipped, model_of
from uqcalc.cli.signalchoice import (
    CHOICES,
    PROBE,
    ForceDeltaChoice,
    SpreadChoice,
    check_given,
    checked_names,
    reliable,
)
from uqcalc.cli.streams import input_file, is_standard, output_file
from uqcalc.models.named import SHIPPED_PROBES
from uqcalc.showing import in_words
from uqcalc.uses import checked_use


if TYPE_CHECKING:
    from uqcalc.annotating.tally import AnnotationSummary
    from uqcalc.calculator import ReliableCalculator
    from uqcalc.probe.probe import Probe


def _use(value: str | None) -> str | None:
    with usage_errors("--use"):
        return checked_use(value)


def _signals(value: str | None) -> str | None:
    with usage_errors("--signals"):
        return value if value is None else ",".join(checked_names(value))


def _index(value: str) -> str:
    from uqcalc.annotating.selecting import parse_index

    with usage_errors("--index"):
        parse_index(value)
    return value


def _condition(value: str | None) -> str | None:
    from uqcalc.annotating.selecting import Condition

    with usage_errors("--select"):
        return value if value is None else str(Condition.parse(value))


def _table(parameter: typer.CallbackParam, value: Path | None) -> Path | None:
    if value is not None:
        with usage_errors(parameter.opts[0]):
            checked_table(value)
    return value


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
        callback=annotated,
        help=(
            "File to write: extended XYZ (.xyz, .extxyz), trajectory (.traj) or "
            "database (.db) of ASE. A file of an interrupted command is continued. "
            "- is extended XYZ on standard output, written at the end."
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
UseOption = Annotated[
    str | None,
    typer.Option(
        "--use",
        metavar="USE",
        callback=_use,
        help=(
            "What the frames are used for, which decides the probe that counts: "
            "energy; fixed_cell (forces); moving_cell (forces and stress, as for NPT "
            "and equations of state). By default forces, and the stress if the frames "
            "look like a run with a moving cell."
        ),
    ),
]
IndexOption = Annotated[
    str,
    typer.Option(
        metavar="START:STOP:STEP",
        callback=_index,
        help="Frames to judge, such as 100:, -50: or ::10; the first has the number 0.",
    ),
]
SelectOption = Annotated[
    str | None,
    typer.Option(
        metavar="CONDITION",
        callback=_condition,
        help=(
            'Judged frames to write, such as "reliability<0.2" or "level>=SUSPECT". '
            "Frames that could not be evaluated are always written."
        ),
    ),
]
TableOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=_table,
        help="Also write a table with one row for each written frame (.csv, .parquet).",
    ),
]
AtomTableOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=_table,
        help="Also write a table with one row for each atom (.csv, .parquet).",
    ),
]
SignalsOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,NAME",
        callback=_signals,
        help=(
            f"Signals to evaluate and write: {', '.join(CHOICES)}. By default the "
            "probes and what the other options add. sanity and flags always run."
        ),
    ),
]
ForcesOption = Annotated[
    bool,
    typer.Option(
        "--forces/--no-forces",
        help=(
            "Compute no forces: faster for MACE and CHGNet with signals that read only "
            "energy and features. A verdict on forces is then at least SUSPECT."
        ),
    ),
]
FormerGuaranteed = Annotated[bool, typer.Option("--promised", hidden=True)]
WorstOption = Annotated[
    int, typer.Option(min=0, help="Number of worst frames (largest risk) to list.")
]


def annotate(  # noqa: PLR0913  (one option each)
    context: typer.Context,
    source: SourceArgument,
    output: OutputOption,
    *,
    model: ModelOfProbe = None,
    probe: ProbesOption = None,
    use: UseOption = None,
    guaranteed: GuaranteedOption = False,
    promised: FormerGuaranteed = False,
    head: HeadOption = None,
    limits: LimitsOption = None,
    perturbation: PerturbationOption = None,
    spread_limits: SpreadLimitsOption = None,
    members: MembersOption = 16,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
    index: IndexOption = ":",
    select: SelectOption = None,
    signals: SignalsOption = None,
    forces: ForcesOption = True,
    table: TableOption = None,
    atoms_table: AtomTableOption = None,
    ray: RayOption = None,
    workers: WorkersOption = 1,
    gpus_per_worker: GpusOption = 0.0,
    worst: WorstOption = 10,
    quiet: QuietOption = False,
) -> None:
    """Judge every frame of a trajectory, and write the frames with their reliability.

    Without --model and --probe, the bundled potential and its probe are used. Labels
    are kept: energy and forces of the file become original_energy and original_forces.
    The exit status is 1 if a frame could not be evaluated.
    """
    if promised:
        notice("--promised is now --guaranteed; version 0.3 removes the old name")
    guaranteed = guaranteed or promised
    if spread_limits is not None and perturbation is None:
        msg = "--spread-limits must be given together with --perturbation FILE"
        raise typer.BadParameter(msg, param_hint="'--spread-limits'")
    options = {
        PROBE: probe or guaranteed,
        "force_delta": head or limits,
        "functional_spread": perturbation,
    }
    check_given(signals, options)
    with usage_errors("--atoms-table"):
        check_tables(table, atoms_table)
    stopped = "the frames so far are on disk; repeat the command to continue"
    if is_standard(output):
        stopped = "the frames so far are on standard output"
    with (
        reporting(stopped, quiet=quiet, to_stderr=is_standard(output)) as report,
        input_file(source) as readable,
        output_file(output) as target,
    ):
        done, outputs = _job_hash(source, output, context.params)
        if (message := _earlier_message(done, outputs)) is not None:
            _tell(message, report)
            _end(message)
            return

        import uqcalc
        from uqcalc.annotating.tables import write_tables

        name = model_of(probe[0], model) if probe else model or "default"
        make = partial(
            _calculator,
            name,
            probe,
            ForceDeltaChoice(head, limits) if limits or head else None,
            SpreadChoice(perturbation, spread_limits, members)
            if perturbation
            else None,
            signals=signals,
            device=device,
            guaranteed=guaranteed,
        )
        calculator = make()
        try:
            summary = uqcalc.annotate_file(
                readable,
                target,
                calculator,
                species=species,
                worst=worst,
                use=checked_use(use),
                index=index,
                select=select,
                forces=forces,
                workers=on_ray(make, ray, workers, gpus_per_worker),
            )
        except uqcalc.errors.SourceError as error:
            _show(error.summary, output, report)
            raise
        _show(summary, output, report)
        if table is not None or atoms_table is not None:
            if summary.frames:
                write_tables(target, frames=table, atoms=atoms_table)
            else:
                notice("No table is written, because no frame is in the file.")
        if done is not None:
            write_record(done, outputs, _message(_repeated(summary)))
    _end(_message(summary))


# Parameters without an effect on what is written.
_OUTSIDE = ("source", "output", "ray", "workers", "gpus_per_worker", "quiet")


def _job_hash(
    source: Path, output: Path, given: Mapping[str, Any]
) -> tuple[str | None, list[Path]]:
    """Return a name for what is to be done (`uqcalc.annotating.done`), and its outputs.

    The name is None if the weights of the potential are not in this package, in that of
    the potential, or in a file that is named.
    """
    if is_standard(output):
        return None, []
    model, probes = given["model"], given["probe"] or ()
    parts = [Path(part) for part in (model or "").split(":")[1:]]
    weights = [path for path in parts if path.is_file()]
    if not (model is None or model in SHIPPED_PROBES or weights):
        return None, []
    files = [Path(name) for name in probes if not is_shipped(name)]
    files += [given[key] for key in ("head", "perturbation") if given[key]]
    options = {key: given[key] for key in sorted({*given} - {*_OUTSIDE})}
    tables = [given[key] for key in ("table", "atoms_table") if given[key]]
    return job_hash(source, options, [*weights, *files]), [output, *tables]


def _earlier_message(done: str | None, outputs: Sequence[Path]) -> Message | None:
    return None if done is None else earlier_message(done, outputs)


def _end(message: Message) -> None:
    if message.failed:
        raise typer.Exit(code=1)


def _calculator(
    name: str,
    probe: list[str] | None,
    chosen: ForceDeltaChoice | None,
    spread: SpreadChoice | None,
    *,
    signals: str | None,
    device: str,
    guaranteed: bool,
) -> ReliableCalculator:
    """Return the calculator of the command, in this process or in a worker."""
    import uqcalc

    names = None if signals is None else signals.split(",")
    probes = []
    if names is None or PROBE in names:
        probes = _probes(name, probe, needed=guaranteed or names is not None)
    model = uqcalc.open_model(name, device=device)
    return reliable(model, probes, chosen, spread, names, guaranteed=guaranteed)


def _probes(name: str, given: list[str] | None, *, needed: bool) -> list[Probe]:
    """Return the probes that were named, or those that ship for the model."""
    from uqcalc.defaults import open_probes, shipped_probes
    from uqcalc.models.named import SHIPPED_PROBES

    if given:
        return open_probes(given)
    return shipped_probes(name) if needed or name in SHIPPED_PROBES else []


def _show(summary: AnnotationSummary, output: Path, report: Report) -> None:
    if is_standard(output):
        summary = replace(summary, target=Path("standard output"))
    _tell(_message(summary), report)


def _repeated(summary: AnnotationSummary) -> AnnotationSummary:
    """Return the summary of a repeat of the command, which finds nothing to do."""
    return replace(summary, resumed_from=summary.frames, passed=0)


def _message(summary: AnnotationSummary) -> Message:
    columns: tuple[str, ...] = ()
    rows = []
    if summary.worst:
        by_probe = summary.worst[0].reliability is not None
        number = "P(reliable)" if by_probe else "risk"
        columns = ("frame", "formula", "level", number, "why")
    for row in summary.worst:
        number = in_words(row.risk, row.unit, digits=3)
        if row.reliability is not None:
            number = f"{row.reliability:.3f}"
        rows.append((str(row.index), row.formula, row.level.name, number, row.reason))
    return Message(columns, tuple(rows), str(summary), len(summary.failed))


def _tell(message: Message, report: Report) -> None:
    from rich.table import Table

    if message.columns:
        table = Table(*message.columns[:3], title="the worst frames")
        table.add_column(message.columns[3], justify="right")
        table.add_column(message.columns[4], overflow="fold")
        for row in message.rows:
            table.add_row(*row)
        report.result(table, fold=True)
    report.result(message.text)
