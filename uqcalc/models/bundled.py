"""The bundled backbone: a small MACE for organic molecules of H, C, N and O.

The weights are a safetensors file and the configuration is plain JSON, so nothing
is unpickled. `mace-torch` is imported only when a model is built.
"""

import copy
import json
import warnings
from contextlib import redirect_stdout
from functools import lru_cache
from importlib.resources import files
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from uqcalc.errors import MissingExtraError


if TYPE_CHECKING:
    from mace.calculators import MACECalculator

__all__ = [
    "bare_calculator",
    "build_model",
    "import_mace",
    "load_model",
]

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def import_mace(what: str = "the bundled potential") -> None:
    """Import mace without its import-time warnings, or say how to install it."""
    # mace also prints that cuequivariance is absent, which does not matter here
    with warnings.catch_warnings(), redirect_stdout(StringIO()):
        warnings.filterwarnings("ignore", message=".*weights_only.*")
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        try:
            # before e3nn: mace prepares torch for reading e3nn's own constants
            import mace.calculators
            import mace.modules  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtraError(what, "mace-torch", "mace") from error


def build_model(config: dict[str, Any]) -> torch.nn.Module:
    """Build the untrained model that a configuration describes.

    Parameters
    ----------
    config : dict
        Configuration as stored in `backbone.json`; only its `model` entry is read.

    Returns
    -------
    torch.nn.Module
        A `mace.modules.ScaleShiftMACE` in evaluation mode. The random state and the
        default dtype of torch are left as they were.
    """
    import_mace()
    from e3nn import o3
    from mace import modules

    options = dict(config["model"])
    dtype = _DTYPES[options.pop("dtype")]
    for name in {"hidden_irreps", "MLP_irreps", "edge_irreps"} & set(options):
        if options[name] is not None:
            options[name] = o3.Irreps(options[name])
    for name in ("interaction_cls", "interaction_cls_first"):
        options[name] = modules.interaction_classes[options[name]]
    if "readout_cls" in options:
        options["readout_cls"] = modules.readout_classes[options["readout_cls"]]
    options["gate"] = modules.gate_dict[options.get("gate", "silu")]
    options["atomic_energies"] = np.asarray(options["atomic_energies"])
    options["num_elements"] = len(options["atomic_numbers"])
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.jit.*")
            torch.manual_seed(int(config.get("seed", 0)))
            model = modules.ScaleShiftMACE(**options)
    finally:
        torch.set_default_dtype(previous)
    module: torch.nn.Module = model.to(dtype).eval()
    return module


def load_model() -> torch.nn.Module:
    """Load the bundled backbone with its trained weights.

    The model is built once in a process; each call returns a copy of its own.

    Returns
    -------
    torch.nn.Module
        The trained `mace.modules.ScaleShiftMACE` in evaluation mode, on the CPU.
    """
    model = _trained_model()
    with warnings.catch_warnings():  # torch copies TorchScript by saving and loading
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        return copy.deepcopy(model)


@lru_cache(maxsize=1)
def _trained_model() -> torch.nn.Module:
    from safetensors.torch import load

    data = files("uqcalc") / "data"
    config = json.loads((data / "backbone.json").read_text(encoding="utf-8"))
    model = build_model(config)
    model.load_state_dict(load((data / "backbone.safetensors").read_bytes()))
    return model


def bare_calculator(device: str = "cpu", dtype: str = "float32") -> "MACECalculator":
    """Return the bundled backbone as an ASE calculator without reliability.

    Parameters
    ----------
    device : str, default: "cpu"
        Torch device of the model.
    dtype : str, default: "float32"
        Precision of the evaluation, `"float32"` or `"float64"`.

    Returns
    -------
    MACECalculator
        Calculator for neutral molecules of H, C, N and O.
    """
    if dtype not in _DTYPES:
        message = f'dtype must be "float32" or "float64", got {dtype!r}; give one'
        raise ValueError(message)
    model = load_model().to(device=device, dtype=_DTYPES[dtype])
    from mace.calculators import MACECalculator

    return MACECalculator(models=model, device=device, default_dtype=dtype)
