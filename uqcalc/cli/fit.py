"""`uqcalc fit`: labelled frames in, a probe out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import DeviceOption, ModelOption, errors_as_messages, out
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
        str, typer.Option(help="Whose error to foresee: forces or energy.")
    ] = "forces",
    boundary: Boundary = None,
    group: Group = None,
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
    epochs: Annotated[int, typer.Option(help="Most passes over the data.")] = 200,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the split and of the network.")
    ] = 0,
    published: Annotated[
        bool, typer.Option(help="The published architecture and recipe instead.")
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Fit a probe for a potential on frames with reference labels.

    Writes the probe and, beside it, its scores and their picture (my.probe.json and
    my.probe.png).
    """
    with errors_as_messages():
        import uqcalc
        from uqcalc.probe.checkpoint import check_output
        from uqcalc.reading import read_frames

        check_output(output)
        labels = uqcalc.Labels(
            target,
            energy_key=energy_key,
            forces_key=forces_key,
            group_key=group,
            boundary=boundary,
        )
        recipe = uqcalc.Recipe.published if published else uqcalc.Recipe
        result = uqcalc.fit(
            read_frames(data),
            uqcalc.open_model(model, device=device),
            labels,
            recipe(epochs=epochs, seed=seed),
            calibration=None if calibration is None else read_frames(calibration),
            test=None if test is None else read_frames(test),
            exclude=exclude or (),
        )
        out().print(str(result))
        written = [result.probe.save(output), *result.write(output)]
        out().print(f"wrote {', '.join(map(str, written))}")
