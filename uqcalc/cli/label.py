"""`uqcalc label`: reference values of frames, in processes, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import reporting
from uqcalc.cli.options import (
    QuietOption,
    RayOption,
    SpeciesOption,
    existing,
    extended_xyz,
)
from uqcalc.cli.streams import is_standard


def _output(value: Path) -> Path:
    if is_standard(value):
        msg = "output must be a file, got -; a repeated command continues this file"
        raise typer.BadParameter(msg)
    return extended_xyz(value)


SourceArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FRAMES", callback=existing, help="Frames, in any format ASE reads."
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=_output,
        help="Extended XYZ file; one that an interrupted run left is continued. Frames "
        "on which the reference fails go to NAME_failed beside it.",
    ),
]
ReferenceOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="gfn2-xtb (pip install 'uqcalc[xtb]'), or file.py:function or "
        "module:function of a function that returns an ASE calculator. It runs the "
        "code of that file.",
    ),
]
WorkersOption = Annotated[
    int,
    typer.Option(
        min=0, help="Processes, or workers on Ray; 0 evaluates in this process."
    ),
]
CheckOption = Annotated[
    bool,
    typer.Option(
        "--check/--no-check",
        help="Compare forces and stress of the first frame with differences of the "
        "energy: detects wrong units and signs.",
    ),
]
RetryOption = Annotated[
    bool, typer.Option("--retry", help="Evaluate failed frames again.")
]


def label(  # noqa: PLR0913  (one option each)
    source: SourceArgument,
    output: OutputOption,
    reference: ReferenceOption,
    *,
    workers: WorkersOption = 1,
    ray: RayOption = None,
    check: CheckOption = True,
    retry: RetryOption = False,
    species: SpeciesOption = None,
    quiet: QuietOption = False,
) -> None:
    """Compute energy, forces and stress of frames with a reference method.

    Writes REF_energy (eV), REF_forces (eV/angstrom) and, for crystals, REF_stress
    (eV/angstrom^3). Each frame is on disk when it is finished; after a kill the same
    command continues. Ends with status 1 if the reference failed on a frame.
    """
    stopped = "frames so far are on disk; the same command continues"
    with reporting(stopped, quiet=quiet) as report:
        import uqcalc
        from uqcalc.files.structures import read_frames

        frames = read_frames(source, species=species)
        summary = uqcalc.label(
            frames,
            reference,
            output,
            workers=workers,
            ray=ray,
            check=check,
            retry=retry,
        )
        report.result(str(summary))
    if summary.failed:
        raise typer.Exit(code=1)
