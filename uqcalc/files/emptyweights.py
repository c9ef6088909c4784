"""Build modules without random weights, before saved weights are loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


# torch.nn.init is not entered by a mode: its functions are intercepted themselves.
_DRAWS = {
    torch.Tensor.uniform_,
    torch.Tensor.normal_,
    nn.init.uniform_,
    nn.init.normal_,
    nn.init.kaiming_uniform_,
    nn.init.kaiming_normal_,
    nn.init.xavier_uniform_,
    nn.init.xavier_normal_,
    nn.init.trunc_normal_,
}


class EmptyWeights(TorchFunctionMode):
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
        given = kwargs or {}
        if func in _DRAWS:
            with torch.no_grad():
                return (args[0] if args else given["tensor"]).zero_()
        return func(*args, **given)
