"""`uqcalc annotate`: judge every frame of a trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uqcalc.cli.console import DeviceOption, ModelOption, errors_as_messages, out
from uqcalc.cli.judging import HeadOption, LimitsOption, judging


if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

    from uqcalc.annotating.tally import AnnotationSummary
    from uqcalc.calculator import ReliableCalculator


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
    head: HeadOption = None,
    limits: LimitsOption = None,
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

        judge = _judge(
            uqcalc.open_model(model, device=device), model, probe, head, limits
        )
        try:
            summary = uqcalc.annotate_file(source, output, judge, worst=worst)
        except uqcalc.SourceError as error:
            _show(error.summary)
            raise
        _show(summary)
    if summary.failed:
        raise typer.Exit(code=1)


def _judge(
    calculator: BaseCalculator,
    name: str,
    probe: Path | None,
    head: Path | None,
    limits: tuple[float, float] | None,
) -> ReliableCalculator:
    """Judge by the probe, by Force Delta where limits on it are given, or by both."""
    from uqcalc.calculator import ReliableCalculator
    from uqcalc.probe.checkpoint import Probe
    from uqcalc.shipped import SHIPPED_PROBES, shipped_probe

    if probe is not None:
        loaded = Probe.load(probe)
    elif limits is None or name in SHIPPED_PROBES:
        loaded = shipped_probe(name)
    else:
        return judging(calculator, None, head, limits)
    if limits is None and head is None:
        return ReliableCalculator(calculator, loaded)
    return judging(calculator, loaded, head, limits)


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
