"""Demonstration (three minutes): heat a molecule until its potential fails."""

from __future__ import annotations

from pathlib import Path

from uqcalc.demo.runs import DemoRun, true_errors, watch_aspirin, watch_crystal
from uqcalc.demo.story import (
    describe_crystal,
    describe_molecule,
    picture,
    report_line,
)
from uqcalc.plotting import save_figure


__all__ = [
    "DemoRun",
    "describe_crystal",
    "describe_molecule",
    "picture",
    "report_line",
    "run_demo",
    "true_errors",
    "watch_aspirin",
    "watch_crystal",
]


def run_demo(output: Path, *, crystal: bool = True, seed: int = 1) -> str:
    """Run the demonstration, write files into ``output``, and return its text.

    Raises
    ------
    MissingExtraError
        Without mace-torch, tblite or (for the crystal) chgnet.
    FileExistsError
        If ``output`` holds an earlier demonstration.
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        msg = (
            f"output must be a new or empty folder, got {output}; choose another name "
            "with --output, or remove this folder first"
        )
        raise FileExistsError(msg)
    output.mkdir(parents=True, exist_ok=True)
    molecule = watch_aspirin(output, seed=seed)
    save_figure(
        picture(molecule, "Aspirin, heated until its potential breaks"),
        output / "aspirin.png",
    )
    lines = describe_molecule(molecule, output)
    pages = [report_line(molecule, output / "aspirin.html")]
    if crystal:
        solid = watch_crystal(output, seed=seed)
        save_figure(
            picture(solid, "Rutile TiO₂ with CHGNet, compressed"),
            output / "crystal.png",
        )
        lines += describe_crystal(solid, output)
        pages.append(report_line(solid, output / "crystal.html"))
    return "\n".join([*lines, *dict.fromkeys(pages)])
