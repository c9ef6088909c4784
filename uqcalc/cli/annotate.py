"""`uqcalc annotate`: judge every frame of a trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uqcalc.cli.console import (
    DeviceOption,
    ModelOption,
    SpeciesOption,
    errors_as_messages,
    out,
)
from uqcalc.cli.judging import HeadOption, LimitsOption, judging


if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

    from uqcalc.annotating.tally import AnnotationSummary
    from uqcalc.calculator import ReliableCalculator
    from uqcalc.probe.probe import Probe


def annotate(  # noqa: PLR0913  (one option each)
    source: Annotated[Path, typer.Argument(help="Any trajectory that ASE reads.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Extended XYZ file (.xyz or .extxyz); one that an interrupted run "
            "left is continued.",
        ),
    ],
    *,
    model: ModelOption = "default",
    probe: Annotated[
        Path | None,
        typer.Option(help="The probe; default and chgnet bring their own."),
    ] = None,
    promised: Annotated[
        bool,
        typer.Option(
            "--promised",
            help="RELIABLE only within the promise on the probe's card (uqcalc "
            "calibrate).",
        ),
    ] = False,
    head: HeadOption = None,
    limits: LimitsOption = None,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
    worst: Annotated[
        int, typer.Option(min=0, help="How many of the worst frames to list.")
    ] = 10,
) -> None:
    """Judge every frame of a trajectory, and write it with its reliability.

    Labels are kept: what the file has as energy and forces becomes original_energy
    and original_forces. Ends with status 1 if a frame could not be evaluated.
    """
    with errors_as_messages("frames so far are on disk; the same command goes on"):
        import uqcalc

        loaded = _probe(model, probe, needed=promised)
        judge = _judge(
            uqcalc.open_model(model, device=device),
            loaded,
            head,
            limits,
            promised=promised,
        )
        try:
            summary = uqcalc.annotate_file(
                source, output, judge, species=species, worst=worst
            )
        except uqcalc.SourceError as error:
            _show(error.summary)
            raise
        _show(summary)
    if summary.failed:
        raise typer.Exit(code=1)


def _probe(name: str, probe: Path | None, *, needed: bool) -> Probe | None:
    """Return the probe that was named, or the one that the model brings."""
    from uqcalc.defaults import shipped_probe
    from uqcalc.models.named import SHIPPED_PROBES
    from uqcalc.probe.probe import Probe

    if probe is not None:
        return Probe.load(probe)
    return shipped_probe(name) if needed or name in SHIPPED_PROBES else None


def _judge(
    calculator: BaseCalculator,
    probe: Probe | None,
    head: Path | None,
    limits: tuple[float, float] | None,
    *,
    promised: bool,
) -> ReliableCalculator:
    """Judge by the probe, by Force Delta where limits on it are given, or by both.

    Without either, signals that need no labels are read, and every frame is at least
    SUSPECT.
    """
    from uqcalc.calculator import ReliableCalculator

    if limits is not None or head is not None:
        return judging(calculator, probe, head, limits, promised=promised)
    if probe is None:
        return ReliableCalculator(calculator)
    card = probe.card
    policy = card.promise_policy() if promised else card.policy()
    return ReliableCalculator(calculator, probe, policy=policy)


def _show(summary: AnnotationSummary) -> None:
    from rich.table import Table

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
        out().print(table, soft_wrap=False)
    out().print(str(summary))
