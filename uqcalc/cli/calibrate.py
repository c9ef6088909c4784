"""`uqcalc calibrate`: a probe and frames it never saw in, a promise on its card out."""

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


def calibrate(  # noqa: PLR0913  (one option each)
    probe: Annotated[Path, typer.Argument(help="The probe.")],
    data: Annotated[
        Path,
        typer.Argument(
            help="Labelled frames that the probe was neither fitted nor tested on."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="The probe to write; by default over the old one."
        ),
    ] = None,
    *,
    model: ModelOption = "default",
    tolerance: Annotated[
        str | None,
        typer.Option(
            help='Larger errors are wrong: "1 kcal/mol", "50 meV/angstrom", or a '
            "number in the unit of the probe. By default the probe's boundary."
        ),
    ] = None,
    risk: Annotated[
        float,
        typer.Option(
            help="Largest share of wrong ones, of one accepted structure a group."
        ),
    ] = 0.05,
    confidence: Annotated[
        float, typer.Option(help="How sure the promise must be.")
    ] = 0.95,
    group: Group = None,
    forces_key: ForcesKey = "REF_forces",
    energy_key: EnergyKey = "REF_energy",
    exclude: Exclude = None,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Find the cutoff above which a probe keeps a promise, and put both on its card.

    Of one structure from each new group, where it is accepted, at most a share RISK
    errs by more than TOLERANCE. One frame of each group counts: frames of one run are
    not independent.
    """
    with errors_as_messages():
        import uqcalc
        from uqcalc.files.structures import read_frames
        from uqcalc.probe.probe import check_output

        target = check_output(output or probe)
        loaded = uqcalc.Probe.load(probe)
        labels = uqcalc.Labels(
            loaded.card.target,
            energy_key=energy_key,
            forces_key=forces_key,
            group_key=group,
        )
        backbone = uqcalc.tap(uqcalc.open_model(model, device=device))
        promised = uqcalc.calibrate(
            loaded,
            read_frames(data, species=species),
            backbone,
            labels,
            tolerance=tolerance,
            risk=risk,
            confidence=confidence,
            exclude=exclude or (),
        )
        out().print(str(uqcalc.Promise.from_dict(promised.card.promise or {})))
        out().print(f"wrote {promised.save(target)}")
