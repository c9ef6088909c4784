"""`uqcalc adapt`: fit a probe's probabilities to one system with a few labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import reporting
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
from uqcalc.cli.probes import ProbeArgument, labels_of, load_probe, model_of
from uqcalc.cli.streams import input_file


OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=creatable,
        help="Adapted probe to write.",
    ),
]


def adapt(  # noqa: PLR0913  (one option each)
    probe: ProbeArgument,
    data: LabelledFrames,
    output: OutputOption,
    *,
    model: ModelOfProbe = None,
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
    """Adapt a probe to one system: a molecule, a material or an alloy.

    DATA are ten to a hundred labelled frames of that system (at least five). The probe
    must not be fitted on them. The option --group names the info entry that identifies
    the run: frames of one run count less than independent ones. A guarantee of the
    probe is dropped.
    """
    with reporting(quiet=quiet) as report, input_file(data) as source:
        import uqcalc
        from uqcalc.files.structures import read_frames
        from uqcalc.probe.card import FILE

        target = FILE.target(output)
        name = model_of(probe, model)
        frames = read_frames(source, species=species)
        loaded = load_probe(probe)
        adapted = uqcalc.adapt(
            loaded,
            frames,
            uqcalc.open_model(name, device=device),
            labels_of(loaded, (forces_key, energy_key, stress_key), group),
            exclude=exclude or (),
            cache=cache,
        )
        written = adapted.save(target)
        report.result(adapted.card.training["adapted"]["statement"])
        report.result(f"wrote {written}")
