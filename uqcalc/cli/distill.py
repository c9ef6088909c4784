"""`uqcalc distill`: ordinary structures in, a direct-force head out."""

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


def distill(  # noqa: PLR0913  (one option each)
    frames: Annotated[
        Path,
        typer.Argument(
            help="Structures on which the potential is trusted; no labels needed."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The head to write.")
    ] = Path("head.safetensors"),
    *,
    model: ModelOption = "default",
    cutoff: Annotated[
        float, typer.Option(min=1.0, help="Reach of its pair terms in Å.")
    ] = 5.0,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the frames.")] = 60,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is drawn.")] = 0,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Teach a potential without direct forces a head for them (experimental).

    The head repeats the potential's own forces; where it cannot, ForceDelta(head=...)
    says so.
    """
    with errors_as_messages():
        import uqcalc
        from uqcalc.distillation.card import FILE
        from uqcalc.files.structures import read_frames

        FILE.target(output)
        head = uqcalc.distill(
            read_frames(frames, species=species),
            uqcalc.open_model(model, device=device),
            cutoff=cutoff,
            epochs=epochs,
            seed=seed,
        )
        report, training = head.card.report, head.card.training
        out().print(
            f"{training['frames']} frames, {training['held_out']} more held out: RMSE "
            f"{1000 * report['rmse_ev_per_angstrom']:.0f} meV/Å of "
            f"{1000 * report['force_rms_ev_per_angstrom']:.0f}, R² {report['r2']:.3f}"
        )
        out().print(f"wrote {head.save(output)}")
