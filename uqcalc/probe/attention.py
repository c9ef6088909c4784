"""Self-attention and the attention each atom receives, in linear memory."""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention


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
    matrix A. Because ``out = A V``, the gradient of ``sum_i out[i, 0]`` with respect
    to ``V[j, 0]`` *is* that sum, so the fused kernel's own backward pass gives it
    without A ever being formed. Padded queries attend to nothing that counts.

    Returns
    -------
    output : tensor (batch, heads, atoms, D)
    received : tensor (batch, atoms)
        Summed over queries and heads, normalised to sum 1 over real atoms.
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
    if mask is not None:
        received = received * mask
    return output.detach(), received / received.sum(dim=1, keepdim=True)
