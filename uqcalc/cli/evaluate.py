"""`uqcalc evaluate`: how good a probe is on frames it never saw."""

from __future__ import annotations

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
from uqcalc.cli.labels import EnergyKey, Exclude, ForcesKey, Group


def evaluate(  # noqa: PLR0913  (one option each)
    probe: Annotated[Path, typer.Argument(help="The probe.")],
    data: Annotated[
        Path, typer.Argument(help="Labelled frames, in any format ASE reads.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Where to write, without ending; by default PROBE-DATA.",
        ),
    ] = None,
    *,
    model: ModelOption = "default",
    group: Group = None,
    forces_key: ForcesKey = "REF_forces",
    energy_key: EnergyKey = "REF_energy",
    exclude: Exclude = None,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score a probe on labelled frames that it was not fitted on.

    Prints the scores, and writes them as .json, their pictures as .png, and both on
    one page as .html.
    """
    with errors_as_messages() as heard:
        import uqcalc
        from uqcalc.files.structures import read_frames
        from uqcalc.files.writing import writable

        stem = output or Path(f"{probe.stem}-{data.stem}")
        writable(stem, "output")
        loaded = uqcalc.Probe.load(probe)
        labels = uqcalc.Labels(
            loaded.card.target,
            energy_key=energy_key,
            forces_key=forces_key,
            group_key=group,
        )
        result = uqcalc.evaluate(
            loaded,
            read_frames(data, species=species),
            uqcalc.open_model(model, device=device),
            labels,
            exclude=exclude or (),
        )
        out().print(str(result))
        written = result.write(stem, heard)
        out().print(f"wrote {', '.join(map(str, written))}")
