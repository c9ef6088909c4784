"""MACE models without pickle: a configuration in JSON, weights in safetensors.

MACE saves its models as Python pickles, and a pickle can run any code when it is
opened. This form cannot: `save_safe_mace` writes it once from a trusted model, and
``mace:my.json`` opens it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from uqcalc.errors import ModelError
from uqcalc.files.writing import whole, writable
from uqcalc.models.bundled import build_model, import_mace


if TYPE_CHECKING:
    from ase import Atoms

ARCHITECTURE = "ScaleShiftMACE"
_IRREPS = ("hidden_irreps", "MLP_irreps", "edge_irreps")
_CLASSES = ("interaction_cls", "interaction_cls_first", "readout_cls")
# Largest difference of original and rebuilt model, relative to the compared values.
_SAME = 1e-4


def save_safe_mace(
    source: str | os.PathLike[str] | torch.nn.Module, target: str | os.PathLike[str]
) -> tuple[Path, Path]:
    """Write a MACE model in the form that can be opened without running code.

    Parameters
    ----------
    source : path or module
        A model that MACE saved, which is unpickled here: it can run code, so it must
        be one that you trust. Or the model itself, such as ``calculator.models[0]``.
    target : path
        Ends in .json; the weights go beside it, into a file that ends in .safetensors.

    Returns
    -------
    (configuration, weights) : paths
        ``mace:CONFIGURATION`` opens both.

    Raises
    ------
    ModelError
        If the model is no `ScaleShiftMACE`, or cannot be rebuilt from numbers alone so
        that it gives the same energies and forces.
    """
    import_mace("the model 'mace'")
    output = writable(target, "target")
    if output.suffix != ".json":
        msg = f"target must end in .json, got {output.name}"
        raise ModelError(msg)
    model = source if isinstance(source, torch.nn.Module) else _unpickled(source)
    config = _configuration(model)
    state = {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    rebuilt = _filled(config, state, str(source))
    _check_same(model, rebuilt, config["model"]["r_max"])
    return _written(output, config, state)


def load_safe_mace(path: str | os.PathLike[str]) -> torch.nn.Module:
    """Build the model of a configuration and the weights beside it.

    Raises
    ------
    ModelError
        If one of the files is missing or damaged, or does not fit the other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config, weights = Path(path), Path(path).with_suffix(".safetensors")
    for file in (config, weights):
        if not file.is_file():
            msg = (
                "model 'mace:FILE.json' must have a configuration and, beside it, its "
                f"weights in .safetensors, got no file {file}; make both with "
                "uqcalc.models.safemace.save_safe_mace"
            )
            raise ModelError(msg)
    try:
        entries = json.loads(config.read_text(encoding="utf-8"))
        state = load_file(weights)
    except (ValueError, RecursionError, SafetensorError) as error:
        raise _unfit(str(config), error) from error
    if not isinstance(entries, Mapping) or not isinstance(entries.get("model"), dict):
        raise _unfit(str(config), "its configuration has no entry 'model'")
    return _filled(entries, state, str(config))


def _filled(
    config: Mapping[str, Any], state: Mapping[str, torch.Tensor], origin: str
) -> torch.nn.Module:
    """Return the model of a configuration with these weights."""
    if config.get("architecture") != ARCHITECTURE:
        architecture = config.get("architecture")
        raise _unfit(origin, f"its architecture is {architecture!r}")
    try:
        model = build_model(dict(config))
        model.load_state_dict(state)
    except (
        RuntimeError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        MemoryError,
    ) as error:
        raise _unfit(origin, f"{type(error).__name__}: {error}") from error
    return model


def _unfit(origin: str, why: object) -> ModelError:
    return ModelError(
        f"a MACE model without pickle must be a {ARCHITECTURE} whose configuration and "
        f"weights fit each other, got {origin} ({why}); write it again with "
        "uqcalc.models.safemace.save_safe_mace, or open the file that MACE saved, if "
        "you trust it, as mace:FILE"
    )


def _unpickled(source: str | os.PathLike[str]) -> torch.nn.Module:
    from uqcalc.models.named import open_model

    calculator: Any = open_model(f"mace:{os.fspath(source)}", device="cpu", dtype=None)
    model: torch.nn.Module = calculator.models[0]
    return model


def _configuration(model: torch.nn.Module) -> dict[str, Any]:
    """Return the configuration for `uqcalc.models.bundled.build_model`."""
    from mace import modules
    from mace.tools.scripts_utils import extract_config_mace_model

    name = type(model).__name__
    if name != ARCHITECTURE:
        raise _unfit(f"a {name}", "other architectures are not rebuilt")
    try:
        options = extract_config_mace_model(model)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise _unfit(f"a {name}", f"{type(error).__name__}: {error}") from error
    if options.get("cueq_config") is not None:
        raise _unfit(f"a {name}", "it was converted for cuequivariance")
    gates = {function: key for key, function in modules.gate_dict.items()}
    options["gate"] = gates.get(options["gate"], "silu")
    options |= {key: str(options[key]) for key in _IRREPS if options.get(key)}
    options |= {key: options[key].__name__ for key in _CLASSES}
    options["dtype"] = str(next(model.parameters()).dtype).removeprefix("torch.")
    del options["num_elements"]
    plain = {key: _plain(value) for key, value in options.items()}
    try:
        json.dumps(plain, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _unfit(f"a {name}", error) from error
    return {"architecture": ARCHITECTURE, "model": plain}


def _plain(value: Any) -> Any:
    """Return arrays and tensors as lists and numbers."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _check_same(model: torch.nn.Module, rebuilt: torch.nn.Module, reach: float) -> None:
    """Compare energies and forces of both, for all elements together and one by one."""
    from mace.calculators import MACECalculator

    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    one, other = (
        MACECalculator(models=m, device="cpu", default_dtype=dtype)
        for m in (model.cpu(), rebuilt)
    )
    atoms = _probe_structure(model, reach)
    known, found = (_numbers(calculator, atoms) for calculator in (one, other))
    gap, size = np.abs(known - found).max(), np.abs(known).max()
    if not gap <= _SAME * size:
        raise _unfit(
            "a model",
            f"the rebuilt model gives energies and forces that differ by {gap:.3g}",
        )


def _numbers(calculator: Any, atoms: Atoms) -> NDArray[np.float64]:
    calculator.calculate(atoms, ["energy", "forces"])
    results = calculator.results
    return np.append(np.asarray(results["forces"], float).ravel(), results["energy"])


def _probe_structure(model: torch.nn.Module, reach: float) -> Atoms:
    """Return a chain in which each element has neighbours within the cutoff."""
    from ase import Atoms

    numbers = [int(z) for z in model.atomic_numbers]  # type: ignore[union-attr]
    count = max(3, len(numbers))
    rng = np.random.default_rng(0)
    positions = rng.normal(0.0, 0.1, (count, 3))
    positions[:, 0] += np.arange(count) * 0.4 * reach
    return Atoms(np.resize(numbers, count), positions)


def _written(
    output: Path, config: Mapping[str, Any], state: Mapping[str, torch.Tensor]
) -> tuple[Path, Path]:
    from safetensors.torch import save

    weights = output.with_suffix(".safetensors")
    with whole(weights) as partial:
        partial.write_bytes(save(dict(state)))
    with whole(output) as partial:
        text = json.dumps(config, ensure_ascii=False, indent=1) + "\n"
        partial.write_text(text, encoding="utf-8")
    return output, weights
