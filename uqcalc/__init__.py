"""uqcalc: know when to stop believing a machine-learned interatomic potential."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import lazy_loader


# `__init__.pyi` is the table of public names. Each is imported on first use, so that
# `import uqcalc` is cheap and loads neither torch nor matplotlib.
_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"

# Names of version 0.1 -> their place now; 0.3 drops them.
_FORMER = {
    "Promise": "types.Guarantee",
    "calibrate": "certify",
    "save_safe_mace": "models.safemace.save_safe_mace",
    "AnnotationSummary": "types.AnnotationSummary",
    "Assessment": "types.Assessment",
    "AttackPath": "types.AttackPath",
    "AttackSettings": "types.AttackSettings",
    "Backbone": "types.Backbone",
    "BackboneError": "errors.BackboneError",
    "DistilledHead": "types.DistilledHead",
    "ErrorCurve": "types.ErrorCurve",
    "Evaluation": "types.Evaluation",
    "FileWarning": "errors.FileWarning",
    "Guarantee": "types.Guarantee",
    "LabelError": "errors.LabelError",
    "MissingExtraError": "errors.MissingExtraError",
    "ModelError": "errors.ModelError",
    "Outcome": "types.Outcome",
    "Prediction": "types.Prediction",
    "ProbeError": "errors.ProbeError",
    "Reading": "types.Reading",
    "RecordError": "errors.RecordError",
    "Relaxation": "types.Relaxation",
    "RunFileError": "errors.RunFileError",
    "RunLimits": "types.RunLimits",
    "RunOutcome": "types.RunOutcome",
    "Signal": "types.Signal",
    "SignalError": "errors.SignalError",
    "SourceError": "errors.SourceError",
    "Split": "types.Split",
    "Verdict": "types.Verdict",
}


def __getattr__(name: str) -> Any:
    if name not in _FORMER:
        return _public(name)
    place = _FORMER[name]
    msg = f"uqcalc.{name} is now uqcalc.{place}; version 0.3 removes the old name"
    warnings.warn(msg, DeprecationWarning, stacklevel=2)
    module, _, new = f"uqcalc.{place}".rpartition(".")
    return getattr(import_module(module), new)
