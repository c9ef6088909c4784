"""Modules built without random numbers, for weights that are loaded next."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class NoDraws(TorchFunctionMode):
    """Lets modules be built without a random number: their weights begin at zero.

    torch's generator stays as it was. Saving its state and setting it back would not
    promise that: another thread may draw in between.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Fill with zeros what would be drawn."""
        del types
        if func in {torch.Tensor.uniform_, torch.Tensor.normal_}:
            return args[0].zero_()
        return func(*args, **(kwargs or {}))
