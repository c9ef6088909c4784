"""`uqcalc certify`: add a guarantee to a probe, from frames that are new to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import notice, reporting, usage_errors
from uqcalc.cli.options import (
    CacheOption,
    DeviceOption,
    EnergyKey,
    ExcludeOption,
    ForcesKey,
    GroupOption,
    LabelledFrames,
    ModelOfProbe,
    QuietOption,
    SpeciesOption,
    StressKey,
    creatable,
)
from uqcalc.cli.probes import (
    ProbeArgument,
    card_of,
    is_shipped,
    labels_of,
    load_probe,
    model_of,
)
from uqcalc.cli.streams import input_file


FORMER = "calibrate"  # the name of the command until version 0.1


def share(value: float) -> float:
    """Refuse a value that is not between 0 and 1."""
    if not 0 < value < 1:
        msg = f"must be above 0 and below 1, got {value:g}"
        raise typer.BadParameter(msg)
    return value


OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=creatable,
        help="Probe to write; by default it replaces PROBE.",
    ),
]
ToleranceOption = Annotated[
    str | None,
    typer.Option(
        metavar="ERROR",
        help='Largest error of a right structure: "1 kcal/mol", "50 meV/angstrom", or '
        "a number in the unit of the probe. By default the probe's boundary.",
    ),
]
RiskOption = Annotated[
    float,
    typer.Option(
        callback=share,
        help="Largest share of wrong structures among the accepted ones; one "
        "structure of each group counts.",
    ),
]
ConfidenceOption = Annotated[
    float,
    typer.Option(
        callback=share, help="Probability with which the guarantee is to hold."
    ),
]


def certify(  # noqa: PLR0913  (one option each)
    context: typer.Context,
    probe: ProbeArgument,
    data: LabelledFrames,
    output: OutputOption = None,
    *,
    model: ModelOfProbe = None,
    tolerance: ToleranceOption = None,
    risk: RiskOption = 0.05,
    confidence: ConfidenceOption = 0.95,
    group: GroupOption = None,
    forces_key: ForcesKey = "REF_forces",
    energy_key: EnergyKey = "REF_energy",
    stress_key: StressKey = "REF_stress",
    exclude: ExcludeOption = None,
    cache: CacheOption = None,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Find the cutoff above which a guarantee holds, and put both on the probe's card.

    Draw one structure from each new group: of the accepted ones, at most a share RISK
    has an error above TOLERANCE. One frame of each group counts, because frames of one
    run are not independent. DATA are frames that the probe was neither fitted nor
    tested on.
    """
    if context.info_name == FORMER:
        notice(
            "uqcalc calibrate is now uqcalc certify; version 0.3 removes the old name"
        )
    with reporting(quiet=quiet) as report, input_file(data) as source:
        import uqcalc
        from uqcalc.files.structures import read_frames
        from uqcalc.probe.validity import validity

        target = _target(probe, output)
        name = model_of(probe, model)
        _check_tolerance(probe, tolerance)
        frames = read_frames(source, species=species)
        loaded = load_probe(probe)
        certified = uqcalc.certify(
            loaded,
            frames,
            uqcalc.open_model(name, device=device),
            labels_of(loaded, (forces_key, energy_key, stress_key), group),
            tolerance=tolerance,
            risk=risk,
            confidence=confidence,
            exclude=exclude or (),
            cache=cache,
        )
        written = certified.save(target)
        report.result(str(certified.card.guarantee))
        report.result(validity(certified.card))
        report.result(f"wrote {written}")


def _target(probe: str, output: Path | None) -> Path:
    """Return the path of the probe to write; refuse files that must not be replaced."""
    from uqcalc.probe.card import FILE

    if output is None and is_shipped(probe):
        msg = (
            f"a file must be given for the probe that ships for {probe}, got none; add "
            "-o FILE"
        )
        raise typer.BadParameter(msg, param_hint="'--output'")
    return FILE.target(output or probe)


def _check_tolerance(probe: str, tolerance: str | None) -> None:
    from uqcalc.quantities import parse_quantity

    if tolerance is not None:
        with usage_errors("--tolerance"):
            parse_quantity(tolerance, card_of(probe).target, "tolerance")
