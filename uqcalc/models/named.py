"""Potentials by name: the values of `--model`, and of `model` in a run file.

The network is used only for weights that are not in a package, and only if they are not
in the cache of their package.
"""

from __future__ import annotations

import inspect
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from uqcalc.errors import FileWarning, MissingExtraError, ModelError
from uqcalc.models import fetched


if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator


DTYPES = ("float32", "float64")
# Errors of unpickling a file that holds something else.
_NO_MODEL = (
    pickle.UnpicklingError,
    RuntimeError,
    EOFError,
    AttributeError,
    LookupError,
    ImportError,
    TypeError,
    ValueError,
)


def open_model(
    name: str, *, device: str = "auto", dtype: str | None = None
) -> BaseCalculator:
    """Return the ASE calculator that ``name`` stands for, without reliability.

    Parameters
    ----------
    name : str
        ``"default"`` (the bundled MACE), ``"chgnet"``, ``"mace:FILE"``,
        ``"mace_off:SIZE"`` or ``"mace_mp:SIZE"`` with a size that MACE knows;
        ``"orb:NAME"`` with a name of Orb's (``"orb:orb-v3-direct-20-mpa"``), and
        ``"orb:NAME:FILE"`` for its weights in a file, which torch reads as numbers;
        ``"uma:NAME:TASK"`` with a name of fairchem's and a task that the model has
        (``"uma:uma-s-1p1:omat"``); ``"mattersim:1M"`` or ``"mattersim:5M"``;
        ``"pet-mad"`` or ``"pet-mad:SIZE"``, and ``"upet:NAME"`` for other PET models;
        ``"metatomic:FILE"`` for any model that metatomic exported; ``"aimnet:NAME"``;
        ``"ani:2x"`` and other ANIs; ``"matgl:NAME"``.
        A file that MACE saved is a Python pickle and can run code: open only files
        you trust. ``"mace:FILE.json"`` opens the form without code that
        `uqcalc.models.safemace.save_safe_mace` writes.
    device : str
        Torch device; "auto" is "cuda" where there is one, else "cpu".
    dtype : {"float32", "float64"}, optional
        Precision; by default the one that the potential's package chooses.

    Raises
    ------
    ModelError
        For an unknown name, a missing file, or weights that cannot be fetched.
    MissingExtraError
        If the package of the potential is not installed.

    Warns
    -----
    FileWarning
        Before a MACE file is unpickled.
    """
    if dtype is not None and dtype not in DTYPES:
        msg = f"dtype must be one of {DTYPES}, got {dtype!r}"
        raise ModelError(msg)
    check_model_name(name)
    kind, _, detail = name.partition(":")
    import torch

    with torch.random.fork_rng(devices=[]):  # building a network draws random weights
        return MODELS[kind].open(detail, _device(device), dtype)


def check_model_name(name: str) -> None:
    """Refuse a name that `open_model` does not know, without importing torch.

    Raises
    ------
    ModelError
        If the name is unknown (the message lists all names), or if its file does not
        exist.
    """
    kind, _, detail = name.partition(":")
    if kind not in MODELS or (kind in SHIPPED_PROBES and detail):
        usage = ", ".join(text for model in MODELS.values() for text in model.usage)
        msg = f"model must be one of {usage}, got {name!r}"
        if kind not in MODELS and Path(name).is_file():
            msg += (
                ", which is a file; if MACE saved this file and you trust it, write "
                f"mace:{name}; pass a probe with --probe"
            )
        raise ModelError(msg)
    if kind == "mace" and not Path(detail).is_file():
        msg = (
            f"model 'mace:FILE' must name a file that exists, got {detail!r}; give its "
            "path, such as mace:/home/me/my.model"
        )
        raise ModelError(msg)


def _device(device: str) -> str:
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available()}
    there["mps"] = torch.backends.mps.is_available()
    if device == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there.get(device.partition(":")[0], False):
        usable = ", ".join(name for name, usable in there.items() if usable)
        msg = f"device must be auto or one of {usable} on this machine, got {device!r}"
        raise ModelError(msg)
    return device


def _default(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    del detail
    from uqcalc.models.bundled import bare_calculator

    return bare_calculator(device, dtype or "float32")


def _sevennet(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    del detail
    if dtype == "float64":
        msg = "dtype must be 'float32' for sevennet, got 'float64'; leave it out"
        raise ModelError(msg)
    try:
        from sevenn.calculator import SevenNetCalculator
    except ModuleNotFoundError as error:
        raise MissingExtraError("the model 'sevennet'", "sevenn", "sevennet") from error
    found: BaseCalculator = SevenNetCalculator("7net-0", device=device)
    return found


def _chgnet(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    del detail
    if dtype == "float64":
        msg = "dtype must be 'float32' for chgnet, got 'float64'; leave it out"
        raise ModelError(msg)
    try:
        from chgnet.model.dynamics import CHGNetCalculator
    except ModuleNotFoundError as error:
        raise MissingExtraError("the model 'chgnet'", "chgnet", "chgnet") from error
    with redirect_stdout(StringIO()):  # it prints its device
        return CHGNetCalculator(use_device=device)


def _mace_file(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    from uqcalc.models.bundled import import_mace

    import_mace("the model 'mace'")
    from mace.calculators import MACECalculator

    if Path(detail).suffix == ".json":
        from uqcalc.models.safemace import load_safe_mace

        model = load_safe_mace(detail).to(device)
        # MACE logs a warning if it has to find out the precision by itself
        own = str(next(model.parameters()).dtype).removeprefix("torch.")
        return MACECalculator(models=model, device=device, default_dtype=dtype or own)
    text = (
        f"a MACE model file can run code; open only files you trust, got {detail}; "
        "uqcalc.models.safemace.save_safe_mace writes a file that cannot run code"
    )
    warnings.warn(text, FileWarning, stacklevel=4)
    try:
        with _quiet():
            return MACECalculator(
                model_paths=detail, device=device, default_dtype=dtype or ""
            )
    except _NO_MODEL as error:
        msg = (
            f"model 'mace:FILE' must be a file that MACE saved, got {detail} "
            f"({type(error).__name__}: {error}); pass a probe with --probe; chgnet "
            "and default need no file"
        )
        raise ModelError(msg) from error


def _mace_foundation(family: str) -> Callable[[str, str, str | None], BaseCalculator]:
    def open_it(detail: str, device: str, dtype: str | None) -> BaseCalculator:
        from uqcalc.models.bundled import import_mace

        import_mace(f"the model {family!r}")
        from mace.calculators import foundations_models as foundations

        sizes: dict[str, str] = getattr(foundations, f"{family}_urls")
        size = detail or "medium"
        if size not in sizes:
            msg = f"size of {family} must be one of {sorted(sizes)}, got {size!r}"
            raise ModelError(msg)
        options: dict[str, Any] = {"model": size, "device": device}
        if dtype is not None:
            options["default_dtype"] = dtype
        try:
            with _quiet():
                calculator: BaseCalculator = getattr(foundations, family)(**options)
        except (OSError, RuntimeError) as error:
            url = sizes[size]
            msg = (
                f"weights of {family}:{size} must be in MACE's cache or downloadable, "
                f"got: {error}; on a machine with a network run curl -LO {url} and "
                f"pass --model mace:{url.rpartition('/')[2]}"
            )
            raise ModelError(msg) from error
        return calculator

    return open_it


def _orb(detail: str, device: str, dtype: str | None) -> BaseCalculator:
    if dtype == "float64":
        msg = "dtype must be 'float32' for orb, got 'float64'; leave it out"
        raise ModelError(msg)
    try:
        with _quiet():
            from orb_models.forcefield import pretrained

            from uqcalc.backbones.orb_release import orb_calculator
    except ModuleNotFoundError as error:
        raise MissingExtraError("the model 'orb'", "orb-models", "orb") from error
    name, _, file = detail.partition(":")
    urls = _orb_urls(pretrained.ORB_PRETRAINED_MODELS)
    if name not in urls:
        msg = f"name of orb must be one of {sorted(urls)}, got {name!r}"
        raise ModelError(msg)
    if file and not Path(file).is_file():
        msg = f"model 'orb:NAME:FILE' must name a file that exists, got {file!r}"
        raise ModelError(msg)
    load = pretrained.ORB_PRETRAINED_MODELS[name]
    try:
        with _orb_manners():
            made = load(file or urls[name], device=device, compile=False)
    except _NO_MODEL as error:  # also after an incomplete download
        msg = (
            f"weights of orb:{name} must belong to this model, got "
            f"{file or urls[name]} ({type(error).__name__}); download them again, or "
            "name the model they belong to"
        )
        raise ModelError(msg) from error
    except OSError as error:
        url = urls[name]
        msg = (
            f"weights of orb:{name} must be in Orb's cache or downloadable, got "
            f"{type(error).__name__}; on a machine with a network run curl -LO {url} "
            f"and pass --model orb:{name}:{url.rpartition('/')[2]}"
        )
        raise ModelError(msg) from error
    with _quiet():
        return orb_calculator(made, device)


def _orb_urls(loaders: dict[str, Callable[..., Any]]) -> dict[str, str]:
    """Return where the weights of each potential are; withdrawn ones have none."""
    paths = {
        name: inspect.signature(load).parameters["weights_path"].default
        for name, load in loaders.items()
        if not name.startswith("separate")  # dispersion alone
    }
    return {name: path for name, path in paths.items() if path is not None}


@contextmanager
def _orb_manners() -> Iterator[None]:
    """Restore torch's settings and random state, which loading an Orb changes."""
    import torch

    dtype, matmul = torch.get_default_dtype(), torch.get_float32_matmul_precision()
    logger = logging.getLogger("cached_path")
    level = logger.level
    torch.set_default_dtype(torch.float32)
    logger.setLevel(logging.CRITICAL)  # uqcalc reports a failed download, once
    try:
        with torch.random.fork_rng(devices=[]), _quiet():
            warnings.filterwarnings("ignore", message="Setting global torch default")
            yield
    finally:
        logger.setLevel(level)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(matmul)


class _quiet(warnings.catch_warnings):
    """Hide what MACE and Orb print about TorchScript at every start.

    Torch's warning about pickles that can run code is not hidden.
    """

    def __enter__(self) -> None:
        super().__enter__()
        warnings.filterwarnings("ignore", message=".*torch.jit.*")


class NamedModel(NamedTuple):
    """A potential that has a name.

    Attributes
    ----------
    open : callable
        Takes the part of the name after the colon, the device and the precision;
        returns a calculator.
    usage : tuple of str
        How the name is written.
    probes : tuple of str
        Files among the package's data with the probes that ship for it, that of the
        forces first.
    """

    open: Callable[[str, str, str | None], BaseCalculator]
    usage: tuple[str, ...]
    probes: tuple[str, ...] = ()


# The one list of names: `open_model`, the probes that ship and every message read it.
MODELS = {
    "default": NamedModel(_default, ("default",), ("default.probe",)),
    "chgnet": NamedModel(_chgnet, ("chgnet",), ("chgnet.probe", "chgnet.stress.probe")),
    "sevennet": NamedModel(
        _sevennet,
        ("sevennet",),
        (
            "sevennet.probe",
            "sevennet.stress.probe",
            "sevennet.energy_per_atom.probe",
        ),
    ),
    "mace": NamedModel(
        _mace_file,
        ("mace:FILE (trusted: it can run code)", "mace:FILE.json (which cannot)"),
    ),
    "mace_off": NamedModel(_mace_foundation("mace_off"), ("mace_off:SIZE",)),
    "mace_mp": NamedModel(_mace_foundation("mace_mp"), ("mace_mp:SIZE",)),
    "orb": NamedModel(_orb, ("orb:NAME",)),
    "uma": NamedModel(fetched.open_fairchem, ("uma:NAME:TASK",)),
    "mattersim": NamedModel(fetched.open_mattersim, ("mattersim:1M", "mattersim:5M")),
    "pet-mad": NamedModel(fetched.open_pet_mad, ("pet-mad", "pet-mad:SIZE")),
    "upet": NamedModel(fetched.open_upet, ("upet:NAME",)),
    "metatomic": NamedModel(fetched.open_metatomic, ("metatomic:FILE",)),
    "aimnet": NamedModel(fetched.open_aimnet, ("aimnet:NAME",)),
    "ani": NamedModel(fetched.open_ani, ("ani:2x",)),
    "matgl": NamedModel(fetched.open_matgl, ("matgl:NAME",)),
}
SHIPPED_PROBES = {name: m.probes for name, m in MODELS.items() if m.probes}
# Names: "chgnet" for all probes of CHGNet, "chgnet.stress" for one of them.
PROBE_FILES = {
    file.removesuffix(".probe"): file
    for files in SHIPPED_PROBES.values()
    for file in files
}
