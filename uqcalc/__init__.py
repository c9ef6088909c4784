"""uqcalc: know when to stop believing a machine-learned interatomic potential."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from uqcalc.annotating.copies import annotated_copy, read_assessment
    from uqcalc.annotating.file import annotate_file
    from uqcalc.annotating.tally import AnnotationSummary
    from uqcalc.annotating.trajectory import annotate
    from uqcalc.attacking.ascent import AttackSettings
    from uqcalc.attacking.attack import attack
    from uqcalc.attacking.path import AttackPath
    from uqcalc.backbones import Backbone, Prediction, tap
    from uqcalc.backbones.committee import Committee
    from uqcalc.backbones.rotation import RotationAverage
    from uqcalc.calculator import ReliableCalculator, default_calculator
    from uqcalc.distillation import DistilledHead, distill
    from uqcalc.errors import (
        BackboneError,
        FileWarning,
        LabelError,
        LabelWarning,
        MissingExtraError,
        ModelError,
        ProbeError,
        RecordError,
        RunFileError,
        SignalError,
        SourceError,
        UnreliableError,
        UqcalcError,
    )
    from uqcalc.evaluation.evaluation import Evaluation, evaluate
    from uqcalc.evaluation.guarantee import certify
    from uqcalc.fitting.recipe import Recipe
    from uqcalc.fitting.training import fit
    from uqcalc.labels.labels import Labels
    from uqcalc.limits.runlimits import RunLimits
    from uqcalc.limits.thresholds import ErrorCurve, calibrate_threshold, error_curve
    from uqcalc.models.named import open_model
    from uqcalc.models.safemace import save_safe_mace
    from uqcalc.policy import Policy, Threshold
    from uqcalc.probe.card import Guarantee
    from uqcalc.probe.probe import Probe
    from uqcalc.records import Assessment, Level, Reading, Verdict
    from uqcalc.runfile.running import RunOutcome, run_file
    from uqcalc.signals import (
        ConformalInterval,
        EnergySpread,
        ForceDelta,
        ForceSpread,
        LatentDistance,
        MaxForce,
        OrbConfidence,
        PredictionRigidity,
        ProbeSignal,
        Sanity,
        Signal,
        Split,
        StressSpread,
        load_signal,
    )
    from uqcalc.watching.eventlog import read_log
    from uqcalc.watching.monitor import Monitor
    from uqcalc.watching.relaxation import Outcome, Relaxation, relax

# Public name -> module. Loaded on first use, so that `import uqcalc` is cheap and
# pulls in neither torch nor matplotlib.
_HOME = {
    "AnnotationSummary": "annotating.tally",
    "Assessment": "records",
    "AttackPath": "attacking.path",
    "AttackSettings": "attacking.ascent",
    "Backbone": "backbones",
    "BackboneError": "errors",
    "Committee": "backbones.committee",
    "ConformalInterval": "signals",
    "DistilledHead": "distillation",
    "EnergySpread": "signals",
    "ErrorCurve": "limits.thresholds",
    "Evaluation": "evaluation.evaluation",
    "FileWarning": "errors",
    "ForceDelta": "signals",
    "ForceSpread": "signals",
    "LabelError": "errors",
    "LabelWarning": "errors",
    "Labels": "labels.labels",
    "LatentDistance": "signals",
    "Level": "records",
    "MaxForce": "signals",
    "MissingExtraError": "errors",
    "ModelError": "errors",
    "Monitor": "watching.monitor",
    "OrbConfidence": "signals",
    "Outcome": "watching.relaxation",
    "Policy": "policy",
    "Prediction": "backbones",
    "PredictionRigidity": "signals",
    "Probe": "probe.probe",
    "ProbeError": "errors",
    "ProbeSignal": "signals",
    "Sanity": "signals",
    "Guarantee": "probe.card",
    "Reading": "records",
    "Recipe": "fitting.recipe",
    "RecordError": "errors",
    "Relaxation": "watching.relaxation",
    "ReliableCalculator": "calculator",
    "RotationAverage": "backbones.rotation",
    "RunFileError": "errors",
    "RunLimits": "limits.runlimits",
    "RunOutcome": "runfile.running",
    "Signal": "signals",
    "SignalError": "errors",
    "SourceError": "errors",
    "Split": "signals",
    "StressSpread": "signals",
    "Threshold": "policy",
    "UnreliableError": "errors",
    "UqcalcError": "errors",
    "Verdict": "records",
    "annotate": "annotating.trajectory",
    "annotate_file": "annotating.file",
    "annotated_copy": "annotating.copies",
    "attack": "attacking.attack",
    "certify": "evaluation.guarantee",
    "calibrate_threshold": "limits.thresholds",
    "default_calculator": "calculator",
    "distill": "distillation",
    "error_curve": "limits.thresholds",
    "evaluate": "evaluation.evaluation",
    "fit": "fitting.training",
    "load_signal": "signals",
    "open_model": "models.named",
    "read_assessment": "annotating.copies",
    "read_log": "watching.eventlog",
    "relax": "watching.relaxation",
    "run_file": "runfile.running",
    "save_safe_mace": "models.safemace",
    "tap": "backbones",
}

__all__ = [
    "AnnotationSummary",
    "Assessment",
    "AttackPath",
    "AttackSettings",
    "Backbone",
    "BackboneError",
    "Committee",
    "ConformalInterval",
    "DistilledHead",
    "EnergySpread",
    "ErrorCurve",
    "Evaluation",
    "FileWarning",
    "ForceDelta",
    "ForceSpread",
    "Guarantee",
    "LabelError",
    "LabelWarning",
    "Labels",
    "LatentDistance",
    "Level",
    "MaxForce",
    "MissingExtraError",
    "ModelError",
    "Monitor",
    "OrbConfidence",
    "Outcome",
    "Policy",
    "Prediction",
    "PredictionRigidity",
    "Probe",
    "ProbeError",
    "ProbeSignal",
    "Reading",
    "Recipe",
    "RecordError",
    "Relaxation",
    "ReliableCalculator",
    "RotationAverage",
    "RunFileError",
    "RunLimits",
    "RunOutcome",
    "Sanity",
    "Signal",
    "SignalError",
    "SourceError",
    "Split",
    "StressSpread",
    "Threshold",
    "UnreliableError",
    "UqcalcError",
    "Verdict",
    "annotate",
    "annotate_file",
    "annotated_copy",
    "attack",
    "calibrate_threshold",
    "certify",
    "default_calculator",
    "distill",
    "error_curve",
    "evaluate",
    "fit",
    "load_signal",
    "open_model",
    "read_assessment",
    "read_log",
    "relax",
    "run_file",
    "save_safe_mace",
    "tap",
]
__version__ = "0.1.0"


# Names of version 0.1; 0.3 drops them.
_FORMER = {"Promise": "Guarantee", "calibrate": "certify"}


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        msg = f"uqcalc.{name} is now uqcalc.{_FORMER[name]}; the old name goes with 0.3"
        warnings.warn(msg, DeprecationWarning, stacklevel=2)
        name = _FORMER[name]
    if name not in _HOME:
        msg = f"module 'uqcalc' has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"uqcalc.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
