"""Build modules without random weights, before saved weights are loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


# A mode intercepts the functions of torch.nn.init, not the calls inside them.
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
    """Lets modules be built without random numbers: their weights start at zero.

    The state of torch's generator does not change. To save and restore this state would
    not be safe: another thread may draw numbers in between.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Fill with zeros instead of random numbers."""
        del types
        given = kwargs or {}
        if func in _DRAWS:
            with torch.no_grad():
                return (args[0] if args else given["tensor"]).zero_()
        return func(*args, **given)
