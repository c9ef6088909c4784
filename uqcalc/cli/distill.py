"""`uqcalc distill`: fit a direct-force head to a potential."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uqcalc.cli.console import reporting
from uqcalc.cli.options import (
    DeviceOption,
    ModelOption,
    QuietOption,
    SeedOption,
    SpeciesOption,
    creatable,
    existing,
)
from uqcalc.cli.streams import input_file


FramesArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FRAMES",
        callback=existing,
        help=(
            "Structures on which you trust the potential, in any format that ASE "
            "reads; no labels needed. - is extended XYZ on standard input."
        ),
    ),
]
OutputOption = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FILE", callback=creatable, help="Head to write."
    ),
]
CutoffOption = Annotated[
    float, typer.Option(min=1.0, help="Cutoff radius of the head, in angstrom.")
]
EpochsOption = Annotated[
    int, typer.Option(min=1, help="Number of passes over the frames.")
]


def distill(  # noqa: PLR0913  (one option each)
    frames: FramesArgument,
    output: OutputOption = Path("head.safetensors"),
    *,
    model: ModelOption = "default",
    cutoff: CutoffOption = 5.0,
    epochs: EpochsOption = 60,
    seed: SeedOption = 0,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Fit a direct-force head to a potential without one (experimental).

    The head is trained on the forces of the potential. ForceDelta(head=...) measures
    how much the forces of head and potential differ.
    """
    with reporting(quiet=quiet) as report, input_file(frames) as source:
        import uqcalc
        from uqcalc.distillation.card import FILE
        from uqcalc.files.structures import read_frames

        FILE.target(output)
        structures = read_frames(source, species=species)
        head = uqcalc.distill(
            structures,
            uqcalc.open_model(model, device=device),
            cutoff=cutoff,
            epochs=epochs,
            seed=seed,
        )
        written = head.save(output)
        scores, training = head.card.report, head.card.training
        report.result(
            f"trained on {training['frames']} frames, tested on "
            f"{training['held_out']}: RMSE "
            f"{1000 * scores['rmse_ev_per_angstrom']:.0f} meV/Å (RMS force "
            f"{1000 * scores['force_rms_ev_per_angstrom']:.0f} meV/Å), R² "
            f"{scores['r2']:.3f}"
        )
        report.result(f"wrote {written}")
