"""`uqcalc evaluate`: score a probe on labelled frames that it was not fitted on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uqcalc.cli.console import Report, reporting
from uqcalc.cli.options import (
    CacheOption,
    DeviceOption,
    EnergyKey,
    ExcludeOption,
    ForcesKey,
    GroupOption,
    JsonOption,
    LabelledFrames,
    ModelOfProbe,
    QuietOption,
    SpeciesOption,
    StressKey,
    creatable,
)
from uqcalc.cli.probes import ProbeArgument, labels_of, load_probe, model_of
from uqcalc.cli.streams import input_file, is_standard


if TYPE_CHECKING:
    from uqcalc.evaluation.evaluation import Evaluation

OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="STEM",
        callback=creatable,
        help="Path of the files without ending; by default PROBE-DATA. With - no file "
        "is written, and JSON goes to standard output.",
    ),
]


BoundaryOption = Annotated[
    str | None,
    typer.Option(
        metavar="ERROR",
        help='Errors up to it are right: "50 meV/angstrom", or a number in the unit of '
        "the probe. By default the probe's boundary.",
    ),
]


def evaluate(  # noqa: PLR0913  (one option each)
    probe: ProbeArgument,
    data: LabelledFrames,
    output: OutputOption = None,
    *,
    model: ModelOfProbe = None,
    boundary: BoundaryOption = None,
    group: GroupOption = None,
    forces_key: ForcesKey = "REF_forces",
    energy_key: EnergyKey = "REF_energy",
    stress_key: StressKey = "REF_stress",
    exclude: ExcludeOption = None,
    cache: CacheOption = None,
    species: SpeciesOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Score a probe on labelled frames that it was not fitted on.

    Prints the scores and writes three files: .json (scores, and the probability and
    the error of each frame), .png (figures) and .html (a page with both).
    """
    with reporting(quiet=quiet) as report, input_file(data) as source:
        import uqcalc
        from uqcalc.files.structures import read_frames

        name = model_of(probe, model)
        stem = output or creatable(Path(f"{Path(probe).stem}-{source.stem}"))
        frames = read_frames(source, species=species)
        loaded = load_probe(probe)
        result = uqcalc.evaluate(
            loaded,
            frames,
            uqcalc.open_model(name, device=device),
            labels_of(loaded, (forces_key, energy_key, stress_key), group),
            boundary=boundary,
            exclude=exclude or (),
            cache=cache,
        )
        _write(result, stem, report, as_json=as_json)


def _write(
    result: Evaluation, stem: Path | None, report: Report, *, as_json: bool
) -> None:
    """Write the files, then print the scores.

    In this order a closed pipe on standard output does not stop the files.
    """
    from uqcalc.files.writing import strict_json

    written: list[str] = []
    if stem is not None and not is_standard(stem):
        written = [str(path) for path in result.write(stem, report.warnings)]
    if as_json or is_standard(stem):
        content = result.to_dict(report.warnings) | {"files": written}
        typer.echo(json.dumps(strict_json(content), indent=1))
    else:
        report.result(str(result))
        report.result(f"wrote {', '.join(written)}")
