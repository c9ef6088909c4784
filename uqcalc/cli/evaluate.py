"""`uqcalc evaluate`: score a probe on labelled frames that it was not fitted on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
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
    MembersOption,
    ModelOfProbe,
    PerturbationOption,
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
    from uqcalc.evaluation.members import MemberScores
    from uqcalc.probe.probe import Probe

_MEMBERS_BEGIN = '{\n "members": ['  # of the file of `_write_members`

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
        help='Largest error of a right structure: "50 meV/angstrom", or a number in '
        "the unit of the probe. By default the probe's boundary.",
    ),
]


def evaluate(  # noqa: PLR0913  (one option each)
    probes: ProbesArgument = None,
    *,
    data: LabelledFrames,
    output: OutputOption = None,
    model: ModelOfProbe = None,
    boundary: BoundaryOption = None,
    perturbation: PerturbationOption = None,
    members: MembersOption = 16,
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

    The members of a committee, or with --perturbation those of the perturbation, are
    scored, too: CRPS, ratio of spread to skill, and likelihood.
    """
    with reporting(quiet=quiet) as report, input_file(data) as source:
        given = probes or []
        _refuse(given, boundary)
        if not given and perturbation is None:
            msg = "a probe or --perturbation FILE must be given, got neither"
            raise typer.BadParameter(msg, param_hint="'PROBE...'")
        import uqcalc
        from uqcalc.files.structures import read_frames

        name = model_of(given[0], model) if given else model or "default"
        stem = output or _stem(given, perturbation, source)
        stems = _stems(stem, [card_of(probe).target for probe in given])
        frames = read_frames(source, species=species)
        calculator = uqcalc.tap(uqcalc.open_model(name, device=device))
        if perturbation is not None:
            spread = uqcalc.FunctionalSpread(perturbation, members)
            calculator = spread.extend(calculator)
        keys = (forces_key, energy_key, stress_key)
        if not given:
            labels = uqcalc.Labels("forces", energy_key, forces_key, group)
            labels = replace(labels, stress_key=stress_key)
            found = uqcalc.evaluate_members(frames, calculator, labels)
            _write_members(found, stems.get(""), report, as_json=as_json)
            return
        score = partial(
            uqcalc.evaluate,
            frames=frames,
            calculator=calculator,
            boundary=boundary,
            exclude=exclude or (),
            cache=cache,
        )
        scored = {}
        for loaded in _stress_first(map(load_probe, given)):
            labels = labels_of(loaded, keys, group)
            scored[loaded.card.target] = score(loaded, labels=labels)
        _write(scored, stems, report, as_json=as_json)


def _stem(probes: list[str], perturbation: Path | None, source: Path) -> Path | None:
    """Return the path of the files without ending: the first input, and the data."""
    first = probes[0] if probes else str(perturbation)
    return creatable(Path(f"{Path(first).stem}-{source.stem}"))


def _stems(stem: Path | None, targets: Sequence[str]) -> dict[str, Path]:
    """Return the path of the files of each target without ending; of "" without one.

    With several targets the names of the files end with them. Nothing is returned if no
    file is to be written.

    Raises
    ------
    RecordError
        If a file of scores would replace something else, such as the labelled frames.
    """
    from uqcalc.evaluation.sidefiles import side_files
    from uqcalc.files.writing import replaceable

    if stem is None or is_standard(stem):
        return {}
    if not targets:
        target = stem.with_name(f"{stem.name}.json")
        return {"": replaceable(target, _MEMBERS_BEGIN, "scores of members")}
    alone = len(targets) == 1
    found = {t: stem if alone else stem.with_name(f"{stem.name}-{t}") for t in targets}
    for one in found.values():
        side_files(one)
    return found


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


def _write_members(
    found: Sequence[MemberScores],
    target: Path | None,
    report: Report,
    *,
    as_json: bool,
) -> None:
    """Write the scores of members as JSON, and print them."""
    from uqcalc.evaluation.report import members_lines
    from uqcalc.files.writing import strict_json, whole

    rows = [row.to_dict() for row in found]
    content = {"members": rows, "warnings": report.warnings}
    text = json.dumps(strict_json(content), indent=1, ensure_ascii=False)
    if target is not None:
        with whole(target) as partial_file:
            partial_file.write_text(text + "\n", encoding="utf-8")
    if as_json or target is None:
        typer.echo(text)
        return
    for line in [*members_lines(rows), f"wrote {target}"]:
        report.result(line)


def _write(
    found: Mapping[str, Evaluation],
    stems: Mapping[str, Path],
    report: Report,
    *,
    as_json: bool,
) -> None:
    """Write the files, then print the scores of each target.

    In this order a closed pipe on standard output does not stop the files. With several
    targets the JSON on standard output has one entry for each.
    """
    from uqcalc.files.writing import strict_json

    content, texts = {}, []
    for target, result in found.items():
        written: list[str] = []
        if target in stems:
            paths = result.write(stems[target], report.warnings)
            written = [str(path) for path in paths]
        content[target] = result.to_dict(report.warnings) | {"files": written}
        texts += [str(result), f"wrote {', '.join(written)}"]
    if as_json or not stems:
        only = next(iter(content.values())) if len(content) == 1 else content
        typer.echo(json.dumps(strict_json(only), indent=1))
    else:
        for text in texts:
            report.result(text)
