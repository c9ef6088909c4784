"""`uqcalc select`: choose frames to label among flagged ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uqcalc.cli.console import reporting
from uqcalc.cli.options import (
    DeviceOption,
    ModelOfProbe,
    QuietOption,
    SpeciesOption,
    existing,
    new_extended_xyz,
)
from uqcalc.cli.probes import ProbeOption, load_probe, model_of


if TYPE_CHECKING:
    from uqcalc.calculator import ReliableCalculator
    from uqcalc.learning.selection import Selection


def _sources(values: list[Path]) -> list[Path]:
    for value in values:
        existing(value)
    return values


def _picture(value: Path | None) -> Path | None:
    from uqcalc.cli.options import creatable

    if value is not None and value.suffix not in {".png", ".svg", ".pdf"}:
        msg = f"picture must end in .png, .svg or .pdf, got {value.name}"
        raise typer.BadParameter(msg)
    return creatable(value)


SourcesArgument = Annotated[
    list[Path],
    typer.Argument(
        metavar="FRAMES...",
        callback=_sources,
        help="Files of flagged or annotated frames; other frames need --model.",
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=new_extended_xyz,
        help="New extended XYZ file for the chosen frames.",
    ),
]
CountOption = Annotated[
    int, typer.Option("--number", "-n", min=1, help="Largest number of frames.")
]
ByOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="Larger values come first: risk, the name of a signal, or an info entry "
        "with a number, such as probe_novelty or step.",
    ),
]
DiverseOption = Annotated[
    bool,
    typer.Option(
        "--diverse/--no-diverse",
        help="Choose frames that differ in the features of the potential, too.",
    ),
]
PerEventOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Largest number of frames of one event; by default twice the average for "
        "an event, and more only if the other events have no frames left.",
    ),
]
GroupOption = Annotated[
    str | None,
    typer.Option(
        metavar="ENTRY",
        help="Info entry that names the group, such as the run: frames of two groups "
        "are never one event.",
    ),
]
PictureOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=_picture,
        help="Picture of the choice (.png, .svg or .pdf); by default the output's "
        "name with .png.",
    ),
]


def select(  # noqa: PLR0913  (one option each)
    sources: SourcesArgument,
    output: OutputOption,
    *,
    number: CountOption = 50,
    by: ByOption = "risk",
    diverse: DiverseOption = True,
    per_event: PerEventOption = None,
    group: GroupOption = None,
    model: ModelOfProbe = None,
    probe: ProbeOption = None,
    picture: PictureOption = None,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Choose frames to label: risky ones that differ from each other.

    Flagged frames of a monitor contain their verdict and descriptor. For other frames,
    --model (or --probe) names the potential that computes these. The same command
    always chooses the same frames.
    """
    with reporting(quiet=quiet) as report:
        import uqcalc
        from uqcalc.files.structures import read_frames

        frames = [f for path in sources for f in read_frames(path, species=species)]
        chosen = uqcalc.select(
            frames,
            number,
            by,
            diverse=diverse,
            calculator=_opened(model, probe, device),
            per_event=per_event,
            group=group,
        )
        drawn = picture or output.with_suffix(".png")
        _write(chosen, output, drawn)
        report.result(str(chosen))
        report.result(f"wrote {output} and {drawn}")


def _opened(
    model: str | None, probe: str | None, device: str
) -> ReliableCalculator | None:
    """Return the potential that was named, with its probe; None without a name."""
    if model is None and probe is None:
        return None
    import uqcalc
    from uqcalc.defaults import shipped_probe
    from uqcalc.models.named import SHIPPED_PROBES

    name = model or "default" if probe is None else model_of(probe, model)
    base = uqcalc.open_model(name, device=device)
    if probe is not None:
        return uqcalc.ReliableCalculator(base, load_probe(probe))
    if name in SHIPPED_PROBES:
        return uqcalc.ReliableCalculator(base, shipped_probe(name))
    return uqcalc.ReliableCalculator(base)


def _write(chosen: Selection, output: Path, picture: Path) -> None:
    """Write the frames and the picture, each whole or not at all.

    Raises
    ------
    RecordError
        If no frame was chosen.
    """
    from uqcalc.annotating.frames import append_frame
    from uqcalc.errors import RecordError
    from uqcalc.files.writing import whole
    from uqcalc.learning.picture import save_plot

    if not len(chosen):
        msg = f"frames must hold candidates to choose from, got none; {chosen}"
        raise RecordError(msg)
    with whole(output) as partial:
        for number, frame in enumerate(chosen):
            append_frame(partial, frame, f"chosen frame {number}")
    save_plot(chosen.plot, picture)
