"""`uqcalc evaluate`: score a probe on labelled frames that it was not fitted on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
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
from uqcalc.cli.probes import (
    ProbesArgument,
    card_of,
    labels_of,
    load_probe,
    model_of,
)
from uqcalc.cli.streams import input_file, is_standard


if TYPE_CHECKING:
    from uqcalc.evaluation.evaluation import Evaluation
    from uqcalc.probe.probe import Probe

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
    probes: ProbesArgument,
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
    """Score probes on labelled frames that they were not fitted on.

    Prints the scores and writes three files for each probe: .json (scores, and the
    probability and the error of each frame), .png (figures) and .html (a page with
    both). With several probes the names of the files have the target at the end.
    """
    with reporting(quiet=quiet) as report, input_file(data) as source:
        _refuse(probes, boundary)
        import uqcalc
        from uqcalc.files.structures import read_frames

        name = model_of(probes[0], model)
        stem = output or creatable(Path(f"{Path(probes[0]).stem}-{source.stem}"))
        frames = read_frames(source, species=species)
        calculator = uqcalc.open_model(name, device=device)
        keys = (forces_key, energy_key, stress_key)
        score = partial(
            uqcalc.evaluate,
            frames=frames,
            calculator=calculator,
            boundary=boundary,
            exclude=exclude or (),
            cache=cache,
        )
        found = {}
        for loaded in _stress_first(map(load_probe, probes)):
            labels = labels_of(loaded, keys, group)
            found[loaded.card.target] = score(loaded, labels=labels)
        _write(found, stem, report, as_json=as_json)


def _refuse(probes: list[str], boundary: str | None) -> None:
    """Refuse several probes of one target, or with one boundary for all of them."""
    targets = [card_of(probe).target for probe in probes]
    if len(set(targets)) < len(targets):
        msg = f"probes must have different targets, got {targets}; leave one out"
        raise typer.BadParameter(msg, param_hint="'PROBE...'")
    if boundary is not None and len(probes) > 1:
        msg = (
            f"--boundary must be left out with several probes, got {boundary!r} for "
            f"{targets}; evaluate one probe"
        )
        raise typer.BadParameter(msg, param_hint="'--boundary'")


def _stress_first(probes: Iterable[Probe]) -> list[Probe]:
    """Return the probes of the stress first.

    Features that a cache has without the stress would be computed again.
    """
    return sorted(probes, key=lambda probe: probe.card.target != "stress")


def _write(
    found: Mapping[str, Evaluation],
    stem: Path | None,
    report: Report,
    *,
    as_json: bool,
) -> None:
    """Write the files, then print the scores of each target.

    In this order a closed pipe on standard output does not stop the files. With several
    targets the names of the files end with them, and the JSON has one entry for each.
    """
    from uqcalc.files.writing import strict_json

    content, texts = {}, []
    for target, result in found.items():
        written: list[str] = []
        if stem is not None and not is_standard(stem):
            own = stem if len(found) == 1 else stem.with_name(f"{stem.name}-{target}")
            written = [str(path) for path in result.write(own, report.warnings)]
        content[target] = result.to_dict(report.warnings) | {"files": written}
        texts += [str(result), f"wrote {', '.join(written)}"]
    if as_json or is_standard(stem):
        only = next(iter(content.values())) if len(content) == 1 else content
        typer.echo(json.dumps(strict_json(only), indent=1))
    else:
        for text in texts:
            report.result(text)
