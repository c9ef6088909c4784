"""TorchSim: judge every system of a batch, in the pass that runs anyway.

TorchSim (`torch_sim`, Python 3.12 and newer) is imported with the first use of one of
the public names; without it they raise `MissingExtraError`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from uqcalc.errors import MissingExtraError


if TYPE_CHECKING:
    from uqcalc.torchsim.converging import (
        Ended as Ended,
        ReliableConvergence as ReliableConvergence,
        reliable_convergence as reliable_convergence,
    )
    from uqcalc.torchsim.guarding import Guard as Guard, guard as guard
    from uqcalc.torchsim.model import ReliableModel as ReliableModel
    from uqcalc.torchsim.systems import Left as Left, numbered as numbered

_PLACES = {
    "Ended": "converging",
    "Guard": "guarding",
    "Left": "systems",
    "ReliableConvergence": "converging",
    "ReliableModel": "model",
    "guard": "guarding",
    "numbered": "systems",
    "reliable_convergence": "converging",
}
__all__ = [*_PLACES]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    try:
        import torch_sim  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "torch_sim":
            raise
        raise MissingExtraError(
            f"uqcalc.torchsim.{name}", "torch-sim-atomistic", "torchsim"
        ) from error
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
