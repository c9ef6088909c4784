"""`uqcalc fit`: labelled frames in, a probe out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import (
    DeviceOption,
    ModelOption,
    SpeciesOption,
    errors_as_messages,
    out,
)
from uqcalc.cli.labels import Boundary, EnergyKey, Exclude, ForcesKey, Group


def fit(  # noqa: PLR0913  (one option each)
    data: Annotated[
        Path, typer.Argument(help="Labelled frames, in any format ASE reads.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The probe to write.")
    ] = Path("my.probe"),
    *,
    model: ModelOption = "default",
    target: Annotated[
        str,
        typer.Option(
            help="Whose error to foresee: forces, energy, energy_per_atom or "
            "atom_forces."
        ),
    ] = "forces",
    boundary: Boundary = None,
    group: Group = None,
    fit_offsets: Annotated[
        bool,
        typer.Option(
            help="Fit an energy for each element first, and remove it: for labels of "
            "another level of theory than the potential."
        ),
    ] = False,
    test: Annotated[
        Path | None, typer.Option(help="Frames for the test, instead of a share.")
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Frames for the calibration, instead of a share."),
    ] = None,
    forces_key: ForcesKey = "REF_forces",
    energy_key: EnergyKey = "REF_energy",
    exclude: Exclude = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Most passes over the data; by default the recipe's own."
        ),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder that keeps the potential's features: the next fit of these "
            "frames reads them, an interrupted one goes on."
        ),
    ] = None,
    devices: Annotated[
        int,
        typer.Option(min=1, help="Processes that train, each on a device of its own."),
    ] = 1,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the split and of the network.")
    ] = 0,
    published: Annotated[
        bool, typer.Option(help="The published architecture and recipe instead.")
    ] = False,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Fit a probe for a potential on frames with reference labels.

    Writes the probe and, beside it, its scores, their pictures, and both on one page
    (my.probe.json, my.probe.png and my.probe.html).
    """
    with errors_as_messages() as heard:
        import uqcalc
        from uqcalc.files.structures import read_frames
        from uqcalc.probe.probe import check_output

        check_output(output)
        labels = uqcalc.Labels(
            target,
            energy_key=energy_key,
            forces_key=forces_key,
            group_key=group,
            boundary=boundary,
            offsets=fit_offsets,
        )
        recipe = (uqcalc.Recipe.published if published else uqcalc.Recipe)(
            seed=seed, devices=devices
        )
        if epochs is not None:
            recipe = replace(recipe, epochs=epochs)
        result = uqcalc.fit(
            read_frames(data, species=species),
            uqcalc.open_model(model, device=device),
            labels,
            recipe,
            calibration=None
            if calibration is None
            else read_frames(calibration, species=species),
            test=None if test is None else read_frames(test, species=species),
            exclude=exclude or (),
            cache=cache,
        )
        out().print(str(result))
        written = [result.probe.save(output), *result.write(output, heard)]
        out().print(f"wrote {', '.join(map(str, written))}")
