"""A direct-force head for potentials that have none, learnt without labels."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from uqcalc.distillation.card import HeadCard
    from uqcalc.distillation.fitting import distill
    from uqcalc.distillation.head import DistilledHead

# Public name -> module, loaded on first use: cards are read without torch.
_HOME = {
    "DistilledHead": "head",
    "HeadCard": "card",
    "distill": "fitting",
}

__all__ = ["DistilledHead", "HeadCard", "distill"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
