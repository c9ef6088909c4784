"""The probe's network: from features of a ragged batch to two logits a structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from uqcalc.errors import ProbeError
from uqcalc.files.entries import checked
from uqcalc.probe.inputs import lengths


_BLOCK = 2**17  # attention weights in one block of rows, all heads: fits the CPU cache


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return softmax(QKᵀ/√D)V; all of shape (batch, heads, atoms, D).

    ``mask`` (batch, atoms) is True at real atoms, None where all are real.
    """
    keys = None if mask is None else mask[:, None, None, :]
    return scaled_dot_product_attention(
        query, key, value, attn_mask=keys, dropout_p=dropout
    )


def attend_and_explain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (attention output, attention received by each atom).

    The attention that atom j receives in one head is the column sum of the weight
    matrix A over real queries; padded queries are ignored. A is never stored as a
    whole, so memory is linear in the number of atoms.

    Returns
    -------
    output : tensor (batch, heads, atoms, D)
    received : tensor (batch, atoms)
        Summed over queries and heads, normalised to sum 1 over real atoms.
    """
    route = explain_in_blocks if query.device.type == "cpu" else explain_by_gradient
    output, received = route(query, key, value, mask)
    return output, received / received.sum(dim=1, keepdim=True)


def explain_in_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output and column sums, computed in blocks of rows that fit the cache.

    This is the faster method on CPUs: there, the backward pass of the fused kernel
    costs three to five times its forward pass.
    """
    batch, heads, atoms, width = query.shape
    rows_at_once = max(16, _BLOCK // (batch * heads * atoms))
    keys = (key * width**-0.5).transpose(-1, -2).contiguous()
    output = torch.empty_like(query)
    received = query.new_zeros(batch, atoms)
    for start in range(0, atoms, rows_at_once):
        rows = slice(start, start + rows_at_once)
        scores = query[:, :, rows] @ keys
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], -torch.inf)
        weights = scores.softmax(dim=-1)
        output[:, :, rows] = weights @ value
        if mask is not None:
            weights = weights * mask[:, None, rows, None]
        received += weights.sum(dim=(1, 2))
    return output, received


def explain_by_gradient(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return output and column sums from one fused call and its backward pass.

    As ``out = A V``, the gradient of ``sum_i out[i, 0]`` with respect to ``V[j, 0]``
    equals the column sum. The fused kernel of accelerators computes it without
    storing A.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        # clone tensors of inference mode: they cannot enter autograd
        query, key = (t.clone() if t.is_inference() else t for t in (query, key))
        leaf = value.detach().clone().requires_grad_()
        output = attend(query.detach(), key.detach(), leaf, mask)
        upstream = torch.zeros_like(output)
        upstream[..., 0] = 1.0 if mask is None else mask[:, None, :].to(output.dtype)
        (gradient,) = torch.autograd.grad(output, leaf, upstream)
    received = gradient[..., 0].sum(dim=1)
    return output.detach(), received if mask is None else received * mask


LARGEST = 100_000  # width of a layer; a larger number means a damaged file


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a `ProbeNetwork`.

    Attributes
    ----------
    features : int
        Width of the backbone's per-atom features.
    scalars : int
        Numbers per structure that are appended to the pooled atoms.
    width, heads : int
        Width and number of heads of the attention.
    encoder, classifier : tuples of int
        Hidden widths.
    embedding : int
        Width of the structure's embedding.
    charges : bool
        Whether an embedding of the atomic charges is added after the encoder.
    dropout : float
    """

    features: int
    scalars: int = 2
    width: int = 256
    heads: int = 32
    encoder: tuple[int, ...] = (256, 128)
    classifier: tuple[int, ...] = (128, 32)
    embedding: int = 256
    charges: bool = False
    dropout: float = 0.1

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-able form; `from_dict` reads it back."""
        lists = {"encoder": list(self.encoder), "classifier": list(self.classifier)}
        return asdict(self) | lists

    @classmethod
    def from_dict(cls, data: object) -> Shape:
        """Rebuild from `to_dict`.

        Raises
        ------
        ProbeError
            If an entry is missing, unknown, of another type or not a valid size; the
            message names it.
        """
        shape = cls(**checked(cls, data, "shape of a probe", ProbeError))
        sizes = asdict(shape)
        sizes = {k: v for k, v in sizes.items() if k not in {"charges", "dropout"}}
        check_sizes(sizes, "shape of a probe")
        if shape.width % shape.heads or not 0 <= shape.dropout < 1:
            msg = (
                "shape of a probe must have a width that is a multiple of its heads, "
                f"and a dropout from 0 to below 1, got width {shape.width}, "
                f"{shape.heads} heads and dropout {shape.dropout}; the file is "
                "damaged, make it again"
            )
            raise ProbeError(msg)
        return shape


def check_sizes(sizes: Mapping[str, Any], what: str, least: int = 1) -> None:
    """Check the sizes in a file before memory is allocated for them.

    Raises
    ------
    ProbeError
        If a size is below ``least`` or above `LARGEST`.
    """
    for name, given in sizes.items():
        each = given if isinstance(given, tuple) else (given,)
        if not all(least <= size <= LARGEST for size in each):
            msg = (
                f"entry {name!r} of {what} must be from {least} to {LARGEST}, got "
                f"{given}; the file is damaged, make it again"
            )
            raise ProbeError(msg)


class ProbeOutput(NamedTuple):
    """Output of one pass of the probe for ``batch`` structures.

    Attributes
    ----------
    logits : tensor (batch, 2)
        Class 0 is reliable.
    embedding : tensor (batch, embedding)
    importance : tensor (atoms of all structures,) or None
        Attention received, summing to 1 over each structure.
    """

    logits: torch.Tensor
    embedding: torch.Tensor
    importance: torch.Tensor | None


def _mlp(sizes: Sequence[int], dropout: float) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes[:-1]):
        layers += [nn.Linear(fan_in, fan_out), nn.LayerNorm(fan_out), nn.GELU()]
        layers.append(nn.Dropout(dropout))
    return [*layers, nn.Linear(sizes[-2], sizes[-1])]


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)

    def forward(
        self, atoms: torch.Tensor, mask: torch.Tensor | None, *, explain: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        batch, rows, width = atoms.shape
        packed = self.qkv(atoms).view(batch, rows, 3, self.heads, width // self.heads)
        query, key, value = packed.permute(2, 0, 3, 1, 4)
        received = None
        if explain:
            mixed, received = attend_and_explain(query, key, value, mask)
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = attend(query, key, value, mask, dropout)
        merged = mixed.transpose(1, 2).reshape(batch, rows, width)
        return self.out_proj(merged), received


class ProbeNetwork(nn.Module):
    """Atom encoder, attention with residual, pooling, classifier (arXiv:2605.00640).

    With the default `Shape` this is the published network, with the same layers and
    names: 566 434 parameters at 256 features.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        width, dropout = shape.width, shape.dropout
        encoder = _mlp((shape.features, *shape.encoder, width), dropout)
        self.atom_encoder = nn.Sequential(*encoder, nn.LayerNorm(width))
        if shape.charges:
            self.charge_proj = nn.Sequential(
                nn.Linear(1, width), nn.LayerNorm(width), nn.GELU()
            )
        self.mol_attention = _Attention(width, shape.heads, dropout)
        self.mol_attention_norm = nn.LayerNorm(width)
        self.proj = nn.Linear(2 * width + shape.scalars, shape.embedding)
        self.classifier = nn.Sequential(
            nn.LayerNorm(shape.embedding),
            nn.GELU(),
            nn.Dropout(dropout),
            *_mlp((shape.embedding, *shape.classifier, 2), dropout),
        )

    def forward(
        self,
        features: torch.Tensor,
        sizes: Sequence[int],
        scalars: torch.Tensor,
        charges: torch.Tensor | None = None,
        *,
        explain: bool = False,
    ) -> ProbeOutput:
        """Classify a ragged batch.

        Parameters
        ----------
        features : tensor (atoms of all structures, features)
        sizes : sequence of int
            Atoms of each structure, in order.
        scalars : tensor (batch, scalars)
        charges : tensor (atoms of all structures,), optional
            Required if the shape has ``charges``, else not used.
        explain : bool
            Whether to compute the importance too; this about doubles the time.
        """
        encoded = self.atom_encoder(features)
        if self.shape.charges:
            if charges is None:
                msg = "charges must be given to a probe with a charge layer, got None"
                raise ValueError(msg)
            encoded = encoded + self.charge_proj(charges[:, None])
        atoms, mask = pad(encoded, sizes)
        mixed, received = self.mol_attention(atoms, mask, explain=explain)
        attended = self.mol_attention_norm(mixed + atoms)
        pooled = torch.cat([*_pool(attended, mask), scalars], dim=1)
        embedding = self.proj(pooled)
        importance = None
        if received is not None:
            importance = received.reshape(-1) if mask is None else received[mask]
        return ProbeOutput(self.classifier(embedding), embedding, importance)


def pad(
    rows: torch.Tensor, sizes: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return (batch, longest, dim) and the mask of real rows; None without padding."""
    longest = max(sizes)
    if min(sizes) == longest:
        return rows.view(len(sizes), longest, rows.shape[1]), None
    real = lengths(sizes, rows.device)[:, None]
    mask = torch.arange(longest, device=rows.device)[None, :] < real
    padded = rows.new_zeros(len(sizes), longest, rows.shape[1])
    return padded.masked_scatter(mask[:, :, None], rows), mask


def _pool(
    atoms: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and maximum over real atoms, each (batch, dim)."""
    if mask is None:
        return atoms.mean(dim=1), atoms.amax(dim=1)
    real = mask[:, :, None]
    mean = (atoms * real).sum(dim=1) / real.sum(dim=1)
    return mean, atoms.masked_fill(~real, -torch.inf).amax(dim=1)
