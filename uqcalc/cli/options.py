"""Arguments and options that several commands share, and their checks.

The checks run while the command line is read. A failed check is a usage error (status
2), which is reported before torch or a potential is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uqcalc.cli.console import usage_errors
from uqcalc.cli.streams import is_standard
from uqcalc.targets import TARGETS as KNOWN_TARGETS


if TYPE_CHECKING:
    from uqcalc.cluster import RayWorkers

TARGETS = tuple(KNOWN_TARGETS)
DEFECTS = (
    "missing",
    "not finite",
    "duplicate",
    "unknown elements",
    "empty",
    "not computable",
    "no information",
    "no stress",
)
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_MODELS = (
    "default, chgnet, sevennet, mace:FILE, mace_off:SIZE, mace_mp:SIZE, orb:NAME "
    "such as orb:orb-v3-direct-20-mpa, uma:NAME:TASK such as uma:uma-s-1p1:omat, "
    "mattersim:1M, pet-mad, upet:NAME, metatomic:FILE, aimnet:NAME, ani:2x, or "
    "matgl:NAME. A MACE model file can run code: open only "
    "files you trust. mace:FILE.json cannot run code (see uqcalc.models.safemace)."
)


def _one_of(value: str, name: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        msg = f"{name} must be one of {', '.join(allowed)}, got {value!r}"
        raise typer.BadParameter(msg)
    return value


def _target(value: str) -> str:
    return _one_of(value, "target", TARGETS)


def _defects(values: list[str] | None) -> list[str] | None:
    for value in values or ():
        _one_of(value, "defect to leave out", DEFECTS)
    return values


def _model(value: str | None) -> str | None:
    from uqcalc.models.named import check_model_name

    if value is not None:
        with usage_errors("--model"):
            check_model_name(value)
    return value


def _shipped(value: str | None) -> str | None:
    if value is not None:
        from uqcalc.labels.shipped import shipped_labels

        with usage_errors("--labels"):
            shipped_labels(value)
    return value


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        msg = f"device must be auto, cpu, mps, cuda or cuda:N, got {value!r}"
        raise typer.BadParameter(msg)
    return value


def _species(value: str | None) -> str | None:
    if value is not None:
        from uqcalc.files.lammps import checked_species

        with usage_errors("--species"):
            checked_species(value)
    return value


def _limits(
    context: typer.Context,
    parameter: typer.CallbackParam,
    value: tuple[float, float] | None,
) -> tuple[float, float] | None:
    del context
    from uqcalc.policy import Threshold

    if value is not None:
        with usage_errors(parameter.opts[0]):
            Threshold(str(parameter.name), *value)
    return value


def existing(value: Path | None) -> Path | None:
    """Refuse a path to read that does not exist (some formats of ASE are folders)."""
    if value is not None and not is_standard(value) and not value.exists():
        msg = f"file must exist, got {value}; check its name and folder"
        raise typer.BadParameter(msg)
    return value


def creatable(value: Path | None) -> Path | None:
    """Refuse a path to write that is a folder, or whose folder does not exist."""
    from uqcalc.errors import RecordError
    from uqcalc.files.writing import writable

    if value is not None and not is_standard(value):
        try:
            writable(value, "output")
        except RecordError as error:
            raise typer.BadParameter(str(error)) from error
    return value


def annotated(value: Path) -> Path:
    """Refuse a path to write without an ending of `annotate_file`."""
    if not is_standard(value):
        from uqcalc.annotating.names import checked_target

        with usage_errors("--output"):
            checked_target(value)
    return value


def extended_xyz(value: Path) -> Path:
    """Refuse a path to write that does not end in .xyz or .extxyz."""
    if not is_standard(value) and value.suffix not in {".xyz", ".extxyz"}:
        msg = (
            f"output must end in .xyz or .extxyz, got {value.name}; other formats "
            "lose the values of single atoms"
        )
        raise typer.BadParameter(msg)
    creatable(value)
    return value


def new_extended_xyz(value: Path) -> Path:
    """Refuse a path to write as `extended_xyz`, and a file that exists."""
    extended_xyz(value)
    if is_standard(value) or value.exists():
        msg = f"output must be a new file, got {value}; choose another name"
        raise typer.BadParameter(msg)
    return value


def on_ray(
    make: Callable[[], Any], address: str | None, workers: int, gpus: float
) -> RayWorkers | None:
    """Return workers with calculators from ``make``; None without an address."""
    from uqcalc.cluster import RayWorkers

    return None if address is None else RayWorkers(make, workers, address, gpus)


LabelledFrames = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        callback=existing,
        help=(
            "Labelled frames, in any format that ASE reads; - is extended XYZ on "
            "standard input."
        ),
    ),
]
OptionalFrames = Annotated[
    Path | None,
    typer.Argument(
        metavar="DATA",
        callback=existing,
        help=(
            "Labelled frames, in any format that ASE reads; - is extended XYZ on "
            "standard input. Leave it out with --labels."
        ),
    ),
]
ShippedOption = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="NAME",
        callback=_shipped,
        help=(
            "Labels that ship with uqcalc, instead of DATA: pbe-crystals are crystals "
            "with PBE(+U) energies, forces and stresses, for potentials of the "
            "Materials Project kind. By default frames are grouped by formula, the "
            "boundary is 0.2 eV/angstrom, 0.5 GPa or 30 meV/atom, and frames that the "
            "potential cannot evaluate are left out and counted."
        ),
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME", callback=_model, help=f"Potential: {_MODELS}"
    ),
]
FittedModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        callback=_model,
        help=(
            "Potential; by default the bundled one, or that of the option --prior. "
            f"Names: {_MODELS}"
        ),
    ),
]
ModelOfProbe = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        callback=_model,
        help=(
            "Potential; by default that of the probe, if this is default, chgnet or "
            f"sevennet. Names: {_MODELS}"
        ),
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="DEVICE",
        callback=_device,
        help="cpu, cuda, cuda:N or mps; auto is cuda if there is a CUDA GPU, else cpu.",
    ),
]
SpeciesOption = Annotated[
    str | None,
    typer.Option(
        "--species",
        metavar="SYMBOLS",
        callback=_species,
        help="For LAMMPS files: element of each type in order, such as Na,Cl.",
    ),
]
SeedOption = Annotated[
    int, typer.Option(min=0, help="Seed of the split and of the network.")
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        help=(
            "Evaluate with workers of a Ray cluster at this address; 'local' starts "
            'one on this machine. Needs "uqcalc[ray]".'
        ),
    ),
]
WorkersOption = Annotated[int, typer.Option(min=1, help="Number of workers on Ray.")]
GpusOption = Annotated[
    float, typer.Option("--gpus-per-worker", min=0.0, help="GPUs for each worker.")
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet", "-q", help="Print warnings and errors only; show no progress."
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON on standard output, and no text.")
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache",
        metavar="FOLDER",
        help=(
            "Folder for the features of this potential, so that no frame is "
            "evaluated twice and an interrupted command can be repeated; none by "
            "default."
        ),
    ),
]
HeadOption = Annotated[
    Path | None,
    typer.Option(
        "--head",
        metavar="FILE",
        callback=existing,
        help=(
            "File of a distilled head: Force Delta for a potential without direct "
            "forces."
        ),
    ),
]
LimitsOption = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--limits",
        metavar="SUSPECT UNRELIABLE",
        callback=_limits,
        help=(
            "Limits of Force Delta in eV/angstrom: SUSPECT above the first, "
            "UNRELIABLE above the second. Without limits, Force Delta does not "
            "change the level."
        ),
    ),
]
PerturbationOption = Annotated[
    Path | None,
    typer.Option(
        "--perturbation",
        metavar="FILE",
        callback=existing,
        help=(
            "File of uqcalc perturb: compute the spread of the forces over its "
            "members, at the cost of one pass of the potential for each member."
        ),
    ),
]
SpreadLimitsOption = Annotated[
    tuple[float, float] | None,
    typer.Option(
        "--spread-limits",
        metavar="SUSPECT UNRELIABLE",
        callback=_limits,
        help=(
            "Limits of the spread of the forces in eV/angstrom: SUSPECT above the "
            "first, UNRELIABLE above the second. Without limits, the spread does not "
            "change the level."
        ),
    ),
]
MembersOption = Annotated[
    int,
    typer.Option(
        "--members", min=2, help="Members of the perturbation for each frame."
    ),
]
TargetOption = Annotated[
    str,
    typer.Option(
        "--target",
        metavar="TARGET",
        callback=_target,
        help=f"Kind of error that the probe predicts: {', '.join(TARGETS)}.",
    ),
]
BoundaryOption = Annotated[
    str | None,
    typer.Option(
        "--boundary",
        metavar="ERROR",
        help=(
            'Largest error of a reliable result, such as "50 meV/angstrom", "1 '
            'kcal/mol", "1 meV/atom" or "0.5 GPa"; a number without unit is in '
            "eV/angstrom, eV, eV/atom or eV/angstrom^3. Choose the largest error that "
            "you accept. The default is three times the median error, but at most the "
            "error that one frame in ten exceeds."
        ),
    ),
]
GroupOption = Annotated[
    str | None,
    typer.Option(
        "--group",
        metavar="ENTRY",
        help=(
            "Info entry that names the group of a frame (such as one molecule or one "
            "run): frames of one group are never split between fitting and testing. "
            "'formula' groups by reduced formula and needs no entry. By default each "
            "frame is its own group."
        ),
    ),
]
OffsetsOption = Annotated[
    bool,
    typer.Option(
        "--fit-offsets",
        help=(
            "First fit an energy offset for each element and subtract it: for labels "
            "of another level of theory than that of the potential."
        ),
    ),
]
ForcesKey = Annotated[
    str,
    typer.Option(
        "--forces-key",
        metavar="ENTRY",
        help=(
            'Array with the reference forces (eV/angstrom); "forces" for the forces '
            "that ASE reads."
        ),
    ),
]
EnergyKey = Annotated[
    str,
    typer.Option(
        "--energy-key",
        metavar="ENTRY",
        help=(
            'Info entry with the reference energy (eV); "energy" for the energy that '
            "ASE reads."
        ),
    ),
]
StressKey = Annotated[
    str,
    typer.Option(
        "--stress-key",
        metavar="ENTRY",
        help=(
            "Info entry with the reference stress (eV/angstrom^3, negative in a "
            'compressed cell); "stress" for the stress that ASE reads.'
        ),
    ),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude",
        metavar="DEFECT",
        callback=_defects,
        help=(
            "Leave out frames with this defect and count them; by default they are "
            "an error: missing, 'not finite', duplicate, 'unknown elements', empty, "
            "'not computable' (the potential fails on it), 'no stress' (not periodic "
            "in three directions) or 'no information' (all forces vanish by symmetry, "
            "or the only frame of its composition for relative energies). Repeatable."
        ),
    ),
]
