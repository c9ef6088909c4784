"""`uqcalc fit`: fit a probe to labelled frames."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uqcalc.cli.console import reporting, usage_errors
from uqcalc.cli.options import (
    BoundaryOption,
    CacheOption,
    DeviceOption,
    EnergyKey,
    ExcludeOption,
    FittedModel,
    ForcesKey,
    GpusOption,
    GroupOption,
    OffsetsOption,
    OptionalFrames,
    QuietOption,
    RayOption,
    SeedOption,
    ShippedOption,
    SpeciesOption,
    StressKey,
    TargetOption,
    WorkersOption,
    creatable,
    existing,
    on_ray,
)
from uqcalc.cli.probes import PriorOption, load_probe, model_of
from uqcalc.cli.streams import input_file


if TYPE_CHECKING:
    from collections.abc import Mapping

    from ase import Atoms

    from uqcalc.fitting.recipe import Recipe
    from uqcalc.labels.labels import Labels

OutputOption = Annotated[
    Path,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        callback=creatable,
        help="File of the probe to write.",
    ),
]
TestOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=existing,
        help="Labelled frames for the test; a share of DATA by default.",
    ),
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        callback=existing,
        help="Labelled frames for the calibration; a share of DATA by default.",
    ),
]
EpochsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Maximum number of passes over the data; by default that of the recipe.",
    ),
]
PublishedOption = Annotated[
    bool,
    typer.Option(
        "--published",
        help=(
            "Use the architecture and recipe of the PROBE paper in place of uqcalc's "
            "own."
        ),
    ),
]


def fit(  # noqa: PLR0913  (one option each)
    data: OptionalFrames = None,
    output: OutputOption = Path("my.probe"),
    *,
    shipped: ShippedOption = None,
    model: FittedModel = None,
    prior: PriorOption = None,
    target: TargetOption = "forces",
    boundary: BoundaryOption = None,
    group: GroupOption = None,
    fit_offsets: OffsetsOption = False,
    test: TestOption = None,
    calibration: CalibrationOption = None,
    forces_key: ForcesKey = "REF_forces",
    energy_key: EnergyKey = "REF_energy",
    stress_key: StressKey = "REF_stress",
    exclude: ExcludeOption = None,
    epochs: EpochsOption = None,
    cache: CacheOption = None,
    ray: RayOption = None,
    workers: WorkersOption = 1,
    gpus_per_worker: GpusOption = 0.0,
    seed: SeedOption = 0,
    published: PublishedOption = False,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
    quiet: QuietOption = False,
) -> None:
    """Fit a probe for a potential on frames with reference labels.

    Writes the probe, and beside it the scores (my.probe.json), their pictures
    (my.probe.png) and a page with both (my.probe.html).

    With --prior DATA are about 50 to some hundred labelled frames of one system (at
    least 30). They are added to the probe of the option. The option --group names the
    info entry that identifies the run. With fewer labels use uqcalc adapt.

    With --labels no labels of your own are needed.
    """
    own = {
        "--prior": prior,
        "--test": test,
        "--calibration": calibration,
        "--species": species,
    }
    _check_source(data, shipped, model, own)
    opened = nullcontext() if data is None else input_file(data)
    with reporting(quiet=quiet) as report, opened as source:
        import uqcalc
        from uqcalc.evaluation.sidefiles import side_files
        from uqcalc.fitting.shipped import fit_shipped
        from uqcalc.probe.card import FILE

        FILE.target(output)
        side_files(output)
        known = None if prior is None else load_probe(prior)
        name = "default" if model is None else model
        if prior is not None:
            name = model_of(prior, model)
        keys = (forces_key, energy_key, stress_key)
        labels = _labels(target, boundary, group, keys, offsets=fit_offsets)
        recipe = _recipe(seed, epochs, published=published)
        make = partial(uqcalc.open_model, name, device=device)
        options: dict[str, Any] = {
            "exclude": exclude or (),
            "cache": cache,
            "workers": on_ray(make, ray, workers, gpus_per_worker),
        }
        if shipped is not None:
            result = fit_shipped(shipped, make(), labels, recipe, **options)
        else:
            sets = [_frames(path, species) for path in (source, calibration, test)]
            options |= {"calibration": sets[1], "test": sets[2], "prior": known}
            result = uqcalc.fit(sets[0] or [], make(), labels, recipe, **options)
        written = [result.probe.save(output), *result.write(output, report.warnings)]
        report.result(str(result))
        if known is not None:
            report.result(result.probe.card.training["prior"]["statement"])
        if shipped is not None:
            report.result(result.probe.card.description)
        report.result(f"wrote {', '.join(map(str, written))}")


def _check_source(
    data: Path | None,
    shipped: str | None,
    model: str | None,
    own: Mapping[str, object],
) -> None:
    """Refuse frames and labels of the package together, and neither of them."""
    if (data is None) == (shipped is None):
        got = "neither" if data is None else f"{data} and {shipped}"
        msg = f"labels must be given either by DATA or by --labels, got {got}"
        raise typer.BadParameter(msg)
    if shipped is None:
        return
    if given := [name for name, value in own.items() if value is not None]:
        msg = f"{', '.join(own)} must be left out with --labels, got {', '.join(given)}"
        raise typer.BadParameter(msg)
    if model is None:
        msg = "--labels must be used with --model, the name of your potential, got none"
        raise typer.BadParameter(msg)


def _labels(
    target: str,
    boundary: str | None,
    group: str | None,
    keys: tuple[str, str, str],
    *,
    offsets: bool,
) -> Labels:
    from uqcalc.labels.labels import Labels

    forces_key, energy_key, stress_key = keys
    with usage_errors():
        return Labels(
            target,
            energy_key=energy_key,
            forces_key=forces_key,
            stress_key=stress_key,
            group_key=group,
            boundary=boundary,
            offsets=offsets,
        )


def _frames(path: Path | None, species: str | None) -> list[Atoms] | None:
    from uqcalc.files.structures import read_frames

    return None if path is None else read_frames(path, species=species)


def _recipe(seed: int, epochs: int | None, *, published: bool) -> Recipe:
    from uqcalc.fitting.recipe import Recipe

    recipe = (Recipe.published if published else Recipe)(seed=seed)
    return recipe if epochs is None else replace(recipe, epochs=epochs)
