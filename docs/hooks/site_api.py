"""The Python reference: which public names stand on which page.

The names themselves come from ``uqcalc.__all__``: a name that no page claims stands on
the page of types, and a name that is gone is left out.
"""

from __future__ import annotations

import importlib.util

import uqcalc


PAGES: dict[str, tuple[str, ...]] = {
    "judge": (
        "default_calculator", "ReliableCalculator", "open_model", "tap",
        "Policy", "Threshold", "annotate", "annotate_file", "annotated_copy",
        "write_tables", "write_features", "RayWorkers", "read_assessment", "Committee",
        "RotationAverage", "save_safe_mace",
    ),
    "run": (
        "Monitor", "Rewind", "Ask", "relax", "run_file", "read_log", "reliable_frames",
        "write_report", "LammpsPotential", "IpiClient", "ReliableDriver",
        "ReliabilityReporter",
        "attack", "AttackSettings",
        "select", "Selection", "label", "LabelSummary", "run_loop", "LoopReport",
    ),
    "probe": (
        "Labels", "Recipe", "fit", "fit_targets", "adapt", "evaluate", "certify",
        "Guarantee", "Probe", "attention_entropy",
    ),
    "signals": (
        "ProbeSignal", "Sanity", "Flags", "ForceDelta", "distill", "DistilledHead",
        "calibrate_threshold", "error_curve", "ForceSpread", "EnergySpread",
        "StressSpread", "LatentDistance", "PredictionRigidity",
        "ConformalInterval", "OrbConfidence", "EnergyUncertainty",
        "MaxForce", "load_signal",
        "FunctionalSpread", "perturb", "Perturbation", "evaluate_members",
    ),
    "torchsim": (
        "ReliableModel", "numbered", "guard", "Guard", "Left", "reliable_convergence",
        "ReliableConvergence", "Ended",
    ),
}  # fmt: skip
ERRORS = "uqcalc.errors"
TYPES = "uqcalc.types"  # a module of re-exports
MODULES = {"errors", "types"}
OTHERS = {
    "save_safe_mace": "uqcalc.models.safemace.save_safe_mace",
    "LammpsPotential": "uqcalc.lammps.LammpsPotential",
    "IpiClient": "uqcalc.ipi.client.IpiClient",
    "ReliableDriver": "uqcalc.ipi.driver.ReliableDriver",
    "ReliabilityReporter": "uqcalc.openmm.ReliabilityReporter",
    "ReliableModel": "uqcalc.torchsim.model.ReliableModel",
    "numbered": "uqcalc.torchsim.systems.numbered",
    "Left": "uqcalc.torchsim.systems.Left",
    "guard": "uqcalc.torchsim.guarding.guard",
    "Guard": "uqcalc.torchsim.guarding.Guard",
    "reliable_convergence": "uqcalc.torchsim.converging.reliable_convergence",
    "ReliableConvergence": "uqcalc.torchsim.converging.ReliableConvergence",
    "Ended": "uqcalc.torchsim.converging.Ended",
}


def api_page(page: str) -> str:
    """Return the directives of mkdocstrings for one page of the reference."""
    return "\n\n".join(f"::: {name}" for name in names_on(page))


def names_on(page: str) -> list[str]:
    """Return the dotted names that ``page`` documents, in order."""
    public = set(uqcalc.__all__)
    if page in PAGES:
        return [_place(name) for name in PAGES[page]]
    if page == "errors":
        module = importlib.import_module(ERRORS)
        kinds = [k for k in vars(module).values() if isinstance(k, type)]
        own = [k.__name__ for k in kinds if k.__module__ == ERRORS]
        return [f"{ERRORS}.{name}" for name in own]
    if page == "types":
        claimed = {name for names in PAGES.values() for name in names}
        claimed |= {name.rpartition(".")[2] for name in names_on("errors")}
        rest = {name: f"uqcalc.{name}" for name in public - claimed - MODULES}
        for name in _exported_types():
            if name not in claimed:
                rest.setdefault(name, f"{TYPES}.{name}")
        return [rest[name] for name in sorted(rest)]
    msg = f"page must be one of {[*PAGES, 'errors', 'types']}, got {page!r}"
    raise ValueError(msg)


def _place(name: str) -> str:
    """Return the dotted name under which users import ``name``."""
    for module in (uqcalc, importlib.import_module(TYPES)):
        if name in module.__all__:
            return f"{module.__name__}.{name}"
    return OTHERS[name]


def _exported_types() -> list[str]:
    if importlib.util.find_spec(TYPES) is None:
        return []
    return list(importlib.import_module(TYPES).__all__)
