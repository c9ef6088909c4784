"""`uqcalc features`: write the features of all atoms of a trajectory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.annotate import IndexOption, SourceArgument
from uqcalc.cli.console import reporting
from uqcalc.cli.options import (
    DeviceOption,
    ModelOption,
    QuietOption,
    SpeciesOption,
    creatable,
)
from uqcalc.cli.streams import input_file


OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=creatable,
        help='HDF5 file to write. Needs "uqcalc[hdf5]".',
    ),
]


def features(
    source: SourceArgument,
    output: OutputOption = Path("features.h5"),
    *,
    model: ModelOption = "default",
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
    index: IndexOption = ":",
    quiet: QuietOption = False,
) -> None:
    """Write the features (embeddings) of all atoms of a trajectory to an HDF5 file.

    They are what the potential itself computes for each atom, from its own forward
    pass. The exit status is 1 if a frame could not be evaluated.
    """
    with reporting(quiet=quiet) as report, input_file(source) as readable:
        import uqcalc

        summary = uqcalc.write_features(
            readable,
            output,
            uqcalc.open_model(model, device=device),
            species=species,
            index=index,
        )
        report.result(str(summary))
    if summary.left_out:
        raise typer.Exit(code=1)
