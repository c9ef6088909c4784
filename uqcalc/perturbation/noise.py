"""The noise network: from normal numbers to shifts of the outputs of layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from uqcalc.errors import BackboneError
from uqcalc.perturbation.layers import Layer


class Noise(nn.Module):
    """Shifts of the outputs of some layers: ``W_l z`` with ``z = W_z eps``.

    Zaghen et al. 2026, arXiv:2605.19939. All ``W_l`` start at zero, so that a new noise
    network changes nothing.

    ========  =========================================================
    symbol    variable
    ========  =========================================================
    eps       ``draws``, normal numbers, (members, dimension)
    W_z       ``mix``, (dimension, dimension)
    W_l       ``weights[l]``, (channels of layer l, dimension)
    ========  =========================================================

    Parameters
    ----------
    dimension : int
        Length of eps and z.
    widths : sequence of int
        Number of channels that take noise, for each layer.
    """

    def __init__(self, dimension: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.eye(dimension))
        self.weights = nn.ParameterList(
            [nn.Parameter(torch.zeros(width, dimension)) for width in widths]
        )

    @contextmanager
    def added(self, layers: Sequence[Layer], draws: torch.Tensor) -> Iterator[None]:
        """Add the shifts to the outputs of ``layers`` in every pass of the context.

        One pass must evaluate the members together, each on the same structures: the
        rows of a layer's output are then those of the first member, of the second
        member, and so on.

        Parameters
        ----------
        layers : sequence of Layer
            In the order of ``weights``.
        draws : tensor (members, dimension) or (members, atoms, dimension)
            One eps for each member, or one for each atom of each member. The second
            form is for layers with one row for each atom.

        Raises
        ------
        BackboneError
            In the pass, if the rows of a layer do not divide among the members; at the
            end of the context, if a layer was not evaluated, as those of compiled
            models are not.
        """
        fired = dict.fromkeys((layer.name for layer in layers), 0)
        handles = [
            layer.module.register_forward_hook(
                self._hook(layer, weights, draws, fired), prepend=True
            )
            for layer, weights in zip(layers, self.weights, strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if unused := [name for name, count in fired.items() if not count]:
            msg = (
                f"layers to perturb must be evaluated in a pass, got none for {unused};"
                " load the model uncompiled, or choose other layers"
            )
            raise BackboneError(msg)

    def _hook(
        self,
        layer: Layer,
        weights: torch.Tensor,
        draws: torch.Tensor,
        fired: dict[str, int],
    ) -> Any:
        def shift(_module: nn.Module, _args: Any, output: Any) -> torch.Tensor:
            fired[layer.name] += 1
            rows: torch.Tensor = _tensor(layer, output)
            own = weights.to(rows) @ self.mix.to(rows)
            shifts = draws.to(rows) @ own.mT
            return _plus(rows, _for_rows(shifts, len(rows), layer), layer.channels)

        return shift


def _tensor(layer: Layer, output: Any) -> torch.Tensor:
    if isinstance(output, torch.Tensor) and output.ndim == 2:
        return output
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else None
    msg = (
        f"output of the layer {layer.name!r} must be a tensor (rows, channels), got "
        f"{type(output).__name__}{'' if shape is None else f' of shape {shape}'}; "
        "choose another layer"
    )
    raise BackboneError(msg)


def _for_rows(shifts: torch.Tensor, rows: int, layer: Layer) -> torch.Tensor:
    """Return one shift for each row, (rows, channels)."""
    members = shifts.shape[0]
    if shifts.ndim == 3:
        if members * shifts.shape[1] == rows:
            return shifts.flatten(0, 1)
        msg = (
            f"layer {layer.name!r} must have one row for each atom to take noise for "
            f"each atom, got {rows} rows for {members} x {shifts.shape[1]} atoms; "
            "choose layers of atoms, or noise for each structure"
        )
        raise BackboneError(msg)
    if rows % members == 0:
        return shifts.repeat_interleave(rows // members, dim=0)
    msg = (
        f"rows of the layer {layer.name!r} must be a multiple of the {members} members "
        f"of the pass, got {rows}; choose another layer"
    )
    raise BackboneError(msg)


def _plus(rows: torch.Tensor, shifts: torch.Tensor, channels: slice) -> torch.Tensor:
    if channels.stop - channels.start == rows.shape[1]:
        return rows + shifts
    right = rows.shape[1] - channels.stop
    return rows + nn.functional.pad(shifts, (channels.start, right))


def draw(
    members: int, dimension: int, seed: int, atoms: int | None = None
) -> torch.Tensor:
    """Return normal numbers, (members, dimension) or (members, atoms, dimension).

    The same seed gives the same numbers. Those of an atom do not depend on the number
    of atoms after it.
    """
    rng = np.random.default_rng(seed)
    if atoms is None:
        return torch.as_tensor(rng.standard_normal((members, dimension)))
    rows = rng.standard_normal((atoms, members, dimension))
    return torch.as_tensor(rows).transpose(0, 1).contiguous()
