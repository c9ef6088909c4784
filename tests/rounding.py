"""Imitate the rounding of another processor: a plugin, `pytest -p rounding`.

Two routes to one result may agree to the last bit on one processor, but not on another,
whose kernels sum in another order. With this plugin each sum and product of torch has
an error of up to one unit of rounding of its terms, which depends only on the shapes of
the operands. So one route that runs twice gives the same bits, but a batch and its
frames, or a graph and its part, do not. A test that fails here requires more than
floating-point arithmetic gives.
"""

from __future__ import annotations

import zlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode


aten = torch.ops.aten
PATTERN = torch.rand(8191, generator=torch.Generator().manual_seed(0)) * 2 - 1
PRODUCTS = {aten.mm: (0, 1), aten.bmm: (0, 1), aten.mv: (0, 1), aten.addmm: (1, 2)}
PRODUCTS |= {aten.baddbmm: (1, 2), aten.addmv: (1, 2), aten.dot: (0, 1)}
SUMS = {aten.sum, aten.mean, aten.cumsum, aten.index_add, aten.scatter_add}
ROUNDED = {
    aten._softmax,
    aten._log_softmax,
    aten.native_layer_norm,
    aten._scaled_dot_product_flash_attention_for_cpu,
    aten.linalg_vector_norm,
    aten.gelu,
    aten.silu,
    aten.exp,
    aten.tanh,
    aten.sigmoid,
    aten.std,
    aten.var,
    aten._linalg_eigh,
    aten.linalg_cholesky_ex,
    aten.linalg_solve_triangular,
    aten._linalg_solve_ex,
    aten.linalg_inv_ex,
}


def spread_over(out, shapes):
    """A number from -1 to 1 for each element of ``out``, fixed by the shapes."""
    start = zlib.crc32(repr(shapes).encode())
    index = (torch.arange(out.numel()) * 7 + start) % len(PATTERN)
    return PATTERN[index].view(out.shape).to(out.dtype)


class OtherRounding(TorchDispatchMode):
    """Adds an error as from another order of summation."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        kind = func.overloadpacket
        if kind not in PRODUCTS and kind not in SUMS and kind not in ROUNDED:
            return out
        shapes = [tuple(a.shape) for a in args if isinstance(a, torch.Tensor)]
        first = out[0] if isinstance(out, tuple | list) else out
        if not first.is_floating_point():
            return out
        terms = first.abs()
        if kind in PRODUCTS:
            one, other = (args[i].abs() for i in PRODUCTS[kind])
            terms = one @ other
        elif kind in SUMS:
            terms = func(args[0].abs(), *(self.size(a) for a in args[1:]), **kwargs)
        terms = terms.nan_to_num(0, 0, 0)
        unit = 2 * torch.finfo(first.dtype).eps
        noise = unit * spread_over(first, (str(kind), shapes)) * terms
        with torch.no_grad():
            first.add_(noise)
        return out

    @staticmethod
    def size(argument):
        floating = isinstance(argument, torch.Tensor) and argument.is_floating_point()
        return argument.abs() if floating else argument


def pytest_sessionstart(session):
    session.config.rounding = OtherRounding()
    session.config.rounding.__enter__()


def pytest_collection_modifyitems(items):
    """Leave out tests in which torch compares a trace bitwise with its module."""
    for item in items:
        if "torchscript" in item.name:
            item.add_marker(pytest.mark.skip(reason="torch checks its own trace"))
