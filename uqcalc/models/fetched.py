"""Potentials whose packages download the weights: functions that open them.

Each function takes the part of the name after the colon, the device and the precision.
It uses the network only if the weights are not in the cache of the package.
`uqcalc.models.named.MODELS` lists them by name.
"""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uqcalc.errors import FileWarning, MissingExtraError, ModelError


if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

# Where to get access to the weights of fairchem, by the start of a model's name.
_HUBS = {"uma": "facebook/UMA"}
_OTHER_HUB = "facebook/OMol25"
_MATTERSIM = (
    "https://raw.githubusercontent.com/microsoft/mattersim/main/pretrained_models"
)
_MATTERSIM_SIZES = ("1M", "5M")
_ANI = "https://github.com/roitberg-group/torchani_model_zoo/releases/download/v0.1"
_NETWORK = "on a machine with a network run"


def open_fairchem(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    """Open ``NAME`` or ``NAME:TASK``; a name of fairchem's, or a checkpoint file.

    The experts are not merged and nothing is compiled (``inference_settings="batch"``):
    structures of any composition may follow one another.
    """
    with _needs("uma", "fairchem-core", "fairchem"):
        from fairchem.core import FAIRChemCalculator
        from fairchem.core.calculate import pretrained_mlip
        from fairchem.core.units.mlip_unit.api import inference
    name, _, task = detail.partition(":")
    names = pretrained_mlip.available_models
    if name not in names and not Path(name).is_file():
        msg = (
            f"name of uma must be one of {sorted(names)} or a checkpoint file, got "
            f"{name!r}; write uma:uma-s-1p1:omat"
        )
        raise ModelError(msg)
    if name not in names:
        _say_pickle("fairchem", name)
    settings = inference.guess_inference_settings("batch")
    if dtype is not None:
        settings = replace(settings, base_precision_dtype=dtype)
    hub = next((hub for k, hub in _HUBS.items() if name.startswith(k)), _OTHER_HUB)
    command = (
        f"accept the licence at https://huggingface.co/{hub}, make a token at "
        "https://huggingface.co/settings/tokens, run hf auth login, and then, "
        f"{_NETWORK} the same command again"
    )
    with _fetched(f"uma:{name}", command), _seeds_kept():
        unit = pretrained_mlip.get_predict_unit(
            name, inference_settings=settings, device=device.partition(":")[0]
        )
    tasks = sorted(unit.dataset_to_tasks)
    if task not in tasks and (task or len(tasks) > 1):
        msg = (
            f"task of uma:{name} must be one of {tasks}, got {task!r}; write "
            f"uma:{name}:{tasks[0]}"
        )
        raise ModelError(msg)
    calculator: BaseCalculator = FAIRChemCalculator(unit, task_name=task or tasks[0])
    return calculator


def open_mattersim(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    """Open ``1M``, ``5M`` or a checkpoint file."""
    _only_float32("mattersim", dtype)
    with _needs("mattersim", "mattersim", "mattersim"):
        from mattersim.forcefield.potential import MatterSimCalculator
    size = {s.upper(): s for s in _MATTERSIM_SIZES}.get((detail or "1M").upper())
    if size is None and not Path(detail).is_file():
        msg = (
            f"size of mattersim must be one of {_MATTERSIM_SIZES} or a checkpoint "
            f"file, got {detail!r}; write mattersim:1M"
        )
        raise ModelError(msg)
    file = detail if size is None else f"mattersim-v1.0.0-{size}.pth"
    folder = "~/.local/mattersim/pretrained_models"
    command = f"{_NETWORK} curl -L --create-dirs -o {folder}/{file} {_MATTERSIM}/{file}"
    with _fetched(f"mattersim:{size or file}", command):
        found: BaseCalculator = MatterSimCalculator.from_checkpoint(
            file, device=device, load_training_state=False
        )
    return found


def open_aimnet(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    """Open a name of AIMNet's registry (default ``aimnet2``), or a file."""
    _only_float32("aimnet", dtype)
    with _needs("aimnet", "aimnet[ase]", "aimnet2"):
        from aimnet.calculators import AIMNet2ASE, AIMNet2Calculator
        from aimnet.calculators.model_registry import load_model_registry
    name = detail or "aimnet2"
    registry = load_model_registry()
    models, aliases = registry["models"], registry.get("aliases", {})
    if name not in {*models, *aliases} and not Path(name).is_file():
        msg = (
            f"name of aimnet must be one of {sorted({*models, *aliases})} or a model "
            f"file, got {name!r}; write aimnet:aimnet2"
        )
        raise ModelError(msg)
    url = models.get(aliases.get(name, name), {}).get("url", "")
    command = f"{_NETWORK} curl -LO {url} and pass aimnet:{url.rpartition('/')[2]}"
    with _fetched(f"aimnet:{name}", command):
        base = AIMNet2Calculator(name, device=device)
    calculator: BaseCalculator = AIMNet2ASE(base)
    return calculator


def open_ani(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    """Open an ANI by the end of its name in torchani: ``2x`` for ANI2x."""
    import torch

    with _needs("ani", "torchani", "torchani"):
        from torchani import models
        from torchani.paths import state_dicts_dir
    known = {
        name.removeprefix("ANI").lower(): getattr(models, name)
        for name in vars(models)
        if name.startswith("ANI") and callable(getattr(models, name))
    }
    known = {name: build for name, build in known.items() if name not in {"", "q"}}
    kind = (detail or "2x").lower()
    if kind not in known:
        msg = (
            f"name of ani must be one of {sorted(known)}, got {detail!r}; write ani:2x"
        )
        raise ModelError(msg)
    file = f"ani{kind}_state_dict.pt"
    command = (
        f"{_NETWORK} curl -L --create-dirs -o {state_dicts_dir() / file} {_ANI}/{file}"
    )
    with _fetched(f"ani:{kind}", command):
        model = known[kind](
            device=device, dtype=None if dtype is None else getattr(torch, dtype)
        )
    calculator: BaseCalculator = model.ase()
    return calculator


def open_matgl(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    """Open a potential by its name in MatGL's collection, or from its folder."""
    _only_float32("matgl", dtype)
    with _needs("matgl", "matgl", "matgl"):
        import matgl
        from matgl.apps.pes import Potential
        from matgl.ext.ase import PESCalculator
    if not detail:
        msg = (
            "model 'matgl:NAME' must name a potential, got no name; write "
            "matgl:TensorNet-PES-MatPES-PBE-2025.2"
        )
        raise ModelError(msg)
    repository = detail if "/" in detail else f"materialyze/{detail}"
    command = f"{_NETWORK} hf download {repository}"
    with _fetched(f"matgl:{detail}", command):
        potential = matgl.load_model(detail)
    if not isinstance(potential, Potential):
        msg = (
            f"model matgl:{detail} must be a potential, got a "
            f"{type(potential).__name__}; choose a name with PES in it"
        )
        raise ModelError(msg)
    calculator: BaseCalculator = PESCalculator(
        potential.to(device), stress_unit="eV/A3"
    )
    return calculator


def open_metatomic(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    """Open a model that metatomic exported; its precision is that of the file."""
    with _needs("metatomic", "metatomic-torch", "metatomic"):
        from metatomic_ase import MetatomicCalculator
    if not Path(detail).is_file():
        msg = f"model 'metatomic:FILE' must name a file that exists, got {detail!r}"
        raise ModelError(msg)
    if dtype is not None:
        msg = (
            f"dtype must be that of the exported model for metatomic, got {dtype!r}; "
            "leave it out"
        )
        raise ModelError(msg)
    calculator: BaseCalculator = MetatomicCalculator(detail, device=device)
    return calculator


def open_pet_mad(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    """Open PET-MAD in the size that ``detail`` names, ``s`` by default."""
    return open_upet(f"pet-mad-{detail or 's'}", device, dtype)


def open_upet(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    """Open a PET model by its name with its size (``pet-mad-s``), or a checkpoint."""
    with _needs(f"upet:{detail}", "upet", "upet"):
        from upet._version import UPET_AVAILABLE_MODELS as names
        from upet.ase import UPETCalculator
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    if Path(detail).is_file():
        _say_pickle("PET", detail)
        options["checkpoint_path"] = detail
    elif detail in names:
        options["model"] = detail
    else:
        msg = (
            f"name of upet must be one of {sorted(names)} or a checkpoint file, got "
            f"{detail!r}; write pet-mad, or upet:pet-mad-s"
        )
        raise ModelError(msg)
    command = (
        f"{_NETWORK} hf download lab-cosmo/upet --include 'models/{detail}-*.ckpt' "
        "--local-dir . and pass upet:models/... with the name of the file"
    )
    with _fetched(f"upet:{detail}", command):
        calculator: BaseCalculator = UPETCalculator(**options)
    return calculator


@contextmanager
def _needs(model: str, package: str, extra: str) -> Iterator[None]:
    """Name the extra that brings ``package`` if an import fails."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"the model {model!r}", package, extra) from error


@contextmanager
def _fetched(what: str, command: str) -> Iterator[None]:
    """Say how to get the weights if a package has none and cannot download them."""
    failures: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError)
    if "httpx" in sys.modules:  # its errors have a base class of their own
        failures += (sys.modules["httpx"].HTTPError,)
    try:
        yield
    except failures as error:
        first = (str(error).strip().splitlines() or [""])[0][:200]
        msg = (
            f"weights of {what} must be in the cache of its package or downloadable, "
            f"got {type(error).__name__}: {first}; {command}"
        )
        raise ModelError(msg) from error


@contextmanager
def _seeds_kept() -> Iterator[None]:
    """Restore the random states that fairchem seeds when it loads a model."""
    import numpy as np

    plain, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(plain)
        np.random.set_state(legacy)  # noqa: NPY002


def _only_float32(model: str, dtype: str | None) -> None:
    if dtype == "float64":
        msg = f"dtype must be 'float32' for {model}, got 'float64'; leave it out"
        raise ModelError(msg)


def _say_pickle(kind: str, file: str) -> None:
    text = (
        f"a {kind} checkpoint file can run code; open only files you trust, got {file}"
    )
    warnings.warn(text, FileWarning, stacklevel=5)
