"""`uqcalc perturb`: train the noise of a potential on labelled frames."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import reporting
from uqcalc.cli.options import (
    DeviceOption,
    EnergyKey,
    ForcesKey,
    GroupOption,
    LabelledFrames,
    ModelOption,
    OffsetsOption,
    QuietOption,
    SeedOption,
    SpeciesOption,
    StressKey,
    creatable,
)
from uqcalc.cli.streams import input_file


class Trained(StrEnum):
    """What is trained."""

    PERTURBATION = "perturbation"
    ALL = "all"


OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=creatable,
        help="File of the perturbation to write.",
    ),
]
LayersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        metavar="NAME",
        help=(
            "Name of a layer that takes noise, with * for any text; repeatable. By "
            "default those chosen for the potential."
        ),
    ),
]
AtomsOption = Annotated[
    bool,
    typer.Option(
        "--noise-per-atom",
        help="One noise vector for each atom, in place of one for the structure.",
    ),
]
TrainOption = Annotated[
    Trained,
    typer.Option(
        help=(
            "perturbation: train the noise alone; the potential's own results stay as "
            "they are. all: train the potential, too; FILE then holds its weights."
        ),
    ),
]
EpochsOption = Annotated[
    int, typer.Option(min=1, help="Largest number of passes over the frames.")
]
MembersOption = Annotated[
    int, typer.Option(min=2, help="Members of each frame in a step of the training.")
]


def perturb(  # noqa: PLR0913  (one option each)
    data: LabelledFrames,
    output: OutputOption = Path("my.perturbation"),
    *,
    model: ModelOption = "default",
    group: GroupOption = None,
    layer: LayersOption = None,
    noise_per_atom: AtomsOption = False,
    train: TrainOption = Trained.PERTURBATION,
    fit_offsets: OffsetsOption = False,
    epochs: EpochsOption = 40,
    members: MembersOption = 10,
    forces_key: ForcesKey = "REF_forces",
    energy_key: EnergyKey = "REF_energy",
    stress_key: StressKey = "REF_stress",
    seed: SeedOption = 0,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Train noise in the layers of a potential on frames with reference labels.

    The potential itself stays as it is. FunctionalSpread(FILE) and uqcalc annotate
    --perturbation FILE then measure the spread of its forces over several draws of the
    noise, its members. A reading costs one pass of the potential for each member.
    """
    with reporting(quiet=quiet) as report, input_file(data) as source:
        import uqcalc
        from uqcalc.files.structures import read_frames
        from uqcalc.perturbation.card import FILE
        from uqcalc.perturbation.fitting import PerturbationSettings

        FILE.target(output)
        perturbation = uqcalc.perturb(
            uqcalc.open_model(model, device=device),
            read_frames(source, species=species),
            uqcalc.Labels(
                "energy" if fit_offsets else "forces",
                offsets=fit_offsets,
                energy_key=energy_key,
                forces_key=forces_key,
                stress_key=stress_key,
                group_key=group,
            ),
            layers=tuple(layer or ()),
            settings=PerturbationSettings(
                epochs=epochs,
                members=members,
                train="all" if train is Trained.ALL else "perturbation",
                noise="atom" if noise_per_atom else "structure",
                seed=seed,
            ),
        )
        written = perturbation.save(output)
        scores, training = perturbation.card.report, perturbation.card.training
        report.result(
            f"trained on {training['frames']} frames, tested on "
            f"{training['held_out']}: CRPS of the forces "
            f"{1000 * scores['crps_forces_eV_per_A']:.1f} meV/Å, mean absolute error "
            f"of the potential {1000 * scores['mae_forces_eV_per_A']:.1f} meV/Å"
        )
        report.result(f"wrote {written}")
