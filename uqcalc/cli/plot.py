"""`uqcalc plot`: draw the timeline of a run, or an annotated structure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uqcalc.cli.console import reporting
from uqcalc.cli.options import QuietOption, creatable, existing


if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (".png", ".svg", ".pdf")
SHADES = ("reliability", "importance", "force_delta")


def picture(value: Path | None) -> Path | None:
    """Refuse a path to write without the ending of a picture."""
    if value is not None and value.suffix.lower() not in KINDS:
        msg = f"picture must end in {', '.join(KINDS)}, got {value.name}"
        raise typer.BadParameter(msg)
    return creatable(value)


def _shade(value: str | None) -> str | None:
    if value is not None and value not in SHADES:
        msg = f"shade must be one of {', '.join(SHADES)}, got {value!r}"
        raise typer.BadParameter(msg)
    return value


FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        callback=existing,
        help="Event log of a run (JSON lines), or a file with annotated frames.",
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PICTURE",
        callback=picture,
        help="Picture to write (.png, .svg or .pdf); by default FILE with .png.",
    ),
]
FrameOption = Annotated[
    int, typer.Option(metavar="INDEX", help="Frame to draw; -1 is the last one.")
]
ShadeOption = Annotated[
    str | None,
    typer.Option(
        metavar="QUANTITY",
        callback=_shade,
        help=f"Quantity that shades the atoms: {', '.join(SHADES)}; by default the "
        "first of these that the frame has.",
    ),
]
WorstOption = Annotated[
    int, typer.Option(min=0, help="Number of atoms that are named, the worst first.")
]


def plot(
    file: FileArgument,
    output: OutputOption = None,
    *,
    frame: FrameOption = -1,
    shade: ShadeOption = None,
    worst: WorstOption = 5,
    quiet: QuietOption = False,
) -> None:
    """Draw the timeline of a run from its log, or one annotated structure.

    The timeline has the temperature, the change of the total energy, P with the bands
    of its levels, further signals with their limits, the verdicts, and every halt. The
    structure has its cell and bonds; element and index label the worst atoms.
    """
    with reporting(quiet=quiet) as report:
        import matplotlib as mpl

        from uqcalc.plotting import save_figure

        mpl.use("Agg")
        target = output or file.with_suffix(".png")
        if _is_log(file):
            from uqcalc.plotting import plot_run
            from uqcalc.watching.eventlog import read_log

            figure = plot_run(read_log(file))
        else:
            figure = _structure(file, frame, shade, worst)
        save_figure(figure, target)
        report.result(f"wrote {target}")


def _is_log(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(1) == b"{"


def _structure(path: Path, index: int, shade: str | None, worst: int) -> Figure:
    """Draw one frame of a file.

    Raises
    ------
    RecordError
        If the file does not have this frame.
    """
    from uqcalc.errors import RecordError
    from uqcalc.files.structures import read_frames
    from uqcalc.plotting import structure_figure

    frames = read_frames(path)
    if not -len(frames) <= index < len(frames):
        msg = f"frame must be one of the {len(frames)} frames of {path}, got {index}"
        raise RecordError(msg)
    return structure_figure(frames[index], shade=shade, worst=worst)
