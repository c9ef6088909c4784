"""Self-attention and the attention each atom receives, in linear memory."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


_BLOCK = 2**17  # weights of one block of rows, over all heads: they stay in the cache


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
    matrix A over real queries; padded queries count for nothing. A is never held
    whole: the memory is linear in the number of atoms.

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
    """Return output and column sums from blocks of rows of A that fit the cache.

    On CPUs the fused kernel's backward pass costs three to five times its forward
    pass, which makes this route the faster one there.
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
    """Return output and column sums from one fused call and its own backward pass.

    Because ``out = A V``, the gradient of ``sum_i out[i, 0]`` with respect to
    ``V[j, 0]`` *is* the column sum, so the fused kernel of accelerators gives it
    without A ever being formed.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        # clones where needed: tensors of inference mode cannot enter autograd
        query, key = (t.clone() if t.is_inference() else t for t in (query, key))
        leaf = value.detach().clone().requires_grad_()
        output = attend(query.detach(), key.detach(), leaf, mask)
        upstream = torch.zeros_like(output)
        upstream[..., 0] = 1.0 if mask is None else mask[:, None, :].to(output.dtype)
        (gradient,) = torch.autograd.grad(output, leaf, upstream)
    received = gradient[..., 0].sum(dim=1)
    return output.detach(), received if mask is None else received * mask
