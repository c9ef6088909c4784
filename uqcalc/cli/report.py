"""`uqcalc report`: one page about finished runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uqcalc.cli.console import reporting
from uqcalc.cli.options import DeviceOption, QuietOption, creatable
from uqcalc.cli.probes import ProbesOption, load_probe, model_of
from uqcalc.cli.signalchoice import reliable


if TYPE_CHECKING:
    from uqcalc.calculator import ReliableCalculator


def _page(value: Path) -> Path:
    if value.suffix.lower() not in {".html", ".htm"}:
        msg = f"report must end in .html, got {value.name}"
        raise typer.BadParameter(msg)
    creatable(value)
    return value


RunsArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="RUN...",
        help=(
            "Event logs (*.jsonl), files with annotated frames, or folders. Give the "
            "files of a run after its log. If no file follows a log, the files "
            "beside it whose names begin with that of the log are taken."
        ),
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="PAGE", callback=_page, help="Page to write (.html)."
    ),
]
MapModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help=(
            "Potential of the runs: it computes the probe's embeddings for the map. By "
            "default the map is drawn from the descriptors in flagged frames."
        ),
    ),
]


def report(
    runs: RunsArgument,
    output: OutputOption = Path("report.html"),
    *,
    model: MapModelOption = None,
    probe: ProbesOption = None,
    device: DeviceOption = "cpu",
    quiet: QuietOption = False,
) -> None:
    """Write one page about finished runs: verdict, timeline, events, worst structures.

    The page needs no network. It shows which elements and motifs are often unreliable,
    and which frames to label next. The command needs the extra "report".
    """
    with reporting(quiet=quiet) as said:
        from uqcalc.viewing.report import write_report

        calculator = _calculator(model, probe, device)
        said.result(f"wrote {write_report(runs, output, calculator=calculator)}")


def _calculator(
    model: str | None, probes: list[str] | None, device: str
) -> ReliableCalculator | None:
    """Return the potential that was named, with its probe; None without a name."""
    if model is None and not probes:
        return None
    import uqcalc
    from uqcalc.models.named import SHIPPED_PROBES

    names = probes or ([str(model)] if model in SHIPPED_PROBES else [])
    base = uqcalc.open_model(model_of(names[0], model) if names else str(model),
                             device=device)  # fmt: skip
    return reliable(base, [load_probe(name) for name in names])
