"""The rooms of the package: each imports lower rooms only, so there is no cycle.

A room is a folder of `uqcalc`, or a module beside the folders. `ROOMS` lists them from
the lowest to the highest with the rooms that each may import. An arrow is an import of
one room by another. Imports inside functions and under ``TYPE_CHECKING`` count.
"""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

import uqcalc


PACKAGE = Path(uqcalc.__file__).parent
BASE = {"errors", "former", "records", "htmltable", "showing", "chargespin"}
STEP = BASE | {"backbones", "files", "policy", "quantities", "statistics", "targets"}
STEP |= {"geometry", "uses", "agreement"}
ROOMS = {
    "former": set(),
    "htmltable": set(),
    "showing": set(),
    "records": {"htmltable", "showing"},
    "errors": {"records"},
    "chargespin": {"errors"},
    "progress": set(),
    "cluster": BASE,
    "targets": {"errors"},
    "quantities": {"errors", "targets"},
    "agreement": {"targets"},
    "policy": BASE,
    "uses": BASE | {"policy"},
    "statistics": BASE,
    "files": BASE,
    "geometry": BASE,
    "references": BASE,
    "asking": BASE | {"policy", "uses"},
    "plotting": BASE | {"files", "geometry"},
    "backbones": BASE,
    "models": BASE | {"files", "backbones"},
    # fitted to labels: the probe, its labels, its scores, its fit
    "probe": STEP,
    "labels": STEP | {"probe", "progress", "cluster"},
    "evaluation": STEP | {"probe", "labels", "plotting", "progress"},
    "fitting": STEP | {"probe", "labels", "evaluation", "progress", "cluster"},
    # verdicts on a geometry, and runs with verdicts
    "distillation": STEP | {"progress"},
    "perturbation": STEP | {"labels", "progress"},
    "signals": STEP | {"probe", "labels", "distillation", "perturbation", "progress"},
    "defaults": STEP | {"models", "probe", "labels", "signals"},
    "resultcache": BASE,
    "judging": BASE | {"policy"},
    "calculator": STEP
    | {"models", "probe", "signals", "defaults", "resultcache", "judging"},
    "annotating": STEP | {"asking", "calculator", "progress", "cluster"},
    "attacking": STEP | {"calculator", "annotating"},
    "watching": STEP | {"annotating", "asking", "references", "resultcache"},
    "torchsim": STEP
    | {"models", "probe", "signals", "defaults", "judging", "annotating", "watching"},
    "limits": STEP | {"labels", "calculator", "annotating", "watching", "progress"},
    "info": STEP
    | {"asking", "probe", "evaluation", "distillation", "signals", "watching"}
    | {"perturbation"},
    "testing": BASE | {"backbones", "signals"},
}
# The highest rooms, which may import all rooms except each other.
PUBLIC = {
    "lammps": set(ROOMS),
    "ipi": set(ROOMS),
    "openmm": set(ROOMS),
    "runfile": set(ROOMS),
    "learning": {*ROOMS, "runfile"},
    "viewing": {*ROOMS, "learning"},
    "demo": {*ROOMS, "viewing"},
    "types": {*ROOMS, "runfile", "learning"},
    "__init__": {*ROOMS, "runfile", "learning", "viewing"},
    "cli": {*ROOMS, "runfile", "learning", "viewing", "demo", "__init__"},
    "__main__": {"cli"},
}
ALLOWED = ROOMS | PUBLIC


def room_of(module: str) -> str:
    """Return the room of a dotted module, ``uqcalc.probe.card`` for example."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def imported(path: Path) -> set[str]:
    """Return the modules of `uqcalc` that a file imports, at any place in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} must import by full names"
            inside = PACKAGE.parent / (node.module or "").replace(".", "/")
            for alias in node.names:  # `from uqcalc import errors` names a module
                name = f"{node.module}.{alias.name}"
                module = (inside / alias.name).is_dir() or (
                    inside / f"{alias.name}.py"
                ).is_file()
                found.add(name if module else str(node.module))
    return {name for name in found if name.split(".")[0] == "uqcalc"}


def arrows() -> dict[tuple[str, str], list[str]]:
    """Return (room, imported room) -> the files with such an import."""
    found = defaultdict(list)
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE)
        here = place.parts[0].removesuffix(".py")
        for module in imported(path):
            if (there := room_of(module)) != here:
                found[here, there].append(str(place))
    return found


def test_every_room_is_in_the_table():
    present = {path.relative_to(PACKAGE).parts[0] for path in PACKAGE.rglob("*.py")}
    assert {name.removesuffix(".py") for name in present} == set(ALLOWED)


def test_no_room_imports_a_higher_one():
    order = list(ALLOWED)
    back = [
        f"{room} -> {lower}"
        for room, rooms in ALLOWED.items()
        for lower in rooms
        if order.index(lower) >= order.index(room)
    ]
    assert not back, "the table itself must go from the lowest room to the highest"
    wrong = {
        f"{here} -> {there}": files
        for (here, there), files in arrows().items()
        if there not in ALLOWED[here]
    }
    assert not wrong


@pytest.mark.parametrize("line", ["from uqcalc.cli import app", "import uqcalc.cli"])
def test_import_of_a_higher_room_is_found(tmp_path, line):
    path = tmp_path / "module.py"
    path.write_text(
        f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    {line}\n"
    )
    assert {room_of(name) for name in imported(path)} == {"cli"}
    assert "cli" not in set().union(*ROOMS.values())
