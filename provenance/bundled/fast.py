"""Faster training modules for a scalar MACE with harmonics up to degree 2.

They compute the same functions from the same parameters as the modules of MACE, with
fewer and smaller intermediate arrays. The trained parameters are used in the unchanged
model.
"""

from typing import Any

import numpy as np
import torch


CHANNELS_MARK = "x0e"


class FusedConvolution(torch.nn.Module):
    """Tensor product and sum over neighbours of scalar features as matrix products.

    It replaces `conv_tp` of MACE during training (`conv_fusion` marks this). It needs
    the same number of edges for each receiver, in order of the receivers.
    """

    def __init__(self, degrees: int, channels: int) -> None:
        super().__init__()
        self.dimensions = [2 * degree + 1 for degree in range(degrees + 1)]
        self.channels = channels

    def forward(
        self,
        features: torch.Tensor,
        harmonics: torch.Tensor,
        weights: torch.Tensor,
        edges: torch.Tensor,
    ) -> torch.Tensor:
        """Return the summed messages in e3nn's layout."""
        nodes, width = len(features), len(harmonics) // len(features)
        sent = features[edges[0]]
        messages = []
        for weight, harmonic in zip(
            weights.split(self.channels, dim=1),
            harmonics.split(self.dimensions, dim=1),
            strict=True,
        ):
            left = harmonic.reshape(nodes, width, -1).transpose(1, 2)
            message = left @ (sent * weight).view(nodes, width, -1)
            messages.append(message.transpose(1, 2).reshape(nodes, -1))
        return torch.cat(messages, dim=1)


class PairRadial(torch.nn.Module):
    """Radial network evaluated once per pair of atoms instead of once per edge.

    `pairs` has the number of the pair of each edge, counted from one, and zero for
    edges beyond the cutoff. `first` has one edge of each pair. Both are set for each
    batch before the model is called.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network
        self.pairs = torch.zeros(0, dtype=torch.int64)
        self.first = torch.zeros(0, dtype=torch.int64)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the weights of every edge from its radial features."""
        weights = self.network(features[self.first])
        padded = torch.cat([weights.new_zeros(1, weights.shape[1]), weights])
        return padded[self.pairs]


def invariants(features: torch.Tensor, tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return all invariants of scalar, vector and tensor up to third order.

    `features` has nine rows; `tensor` maps the last five to the entries
    xx, yy, zz, xy, xz, yz of a symmetric traceless matrix.
    """
    s, x, y, z = features[:4].unbind(0)
    a, b, c, d, e, f = (tensor @ features[4:]).unbind(0)
    x2, y2, z2 = x * x, y * y, z * z
    d2, e2, f2 = d * d, e * e, f * f
    vector = x2 + y2 + z2
    square = a * a + b * b + c * c + 2 * (d2 + e2 + f2)
    mixed = a * x2 + b * y2 + c * z2 + 2 * (x * (d * y + e * z) + f * y * z)
    cubic = a * (b * c - f2) - b * e2 - c * d2 + 2 * d * e * f
    s2 = s * s
    return [s, s2, vector, square, s2 * s, s * vector, s * square, mixed, cubic]


def tensor_entries() -> torch.Tensor:
    """Return the map from degree-2 components to the six matrix entries."""
    from e3nn import o3  # after mace, which prepares torch for it

    coupling = o3.wigner_3j(1, 1, 2)
    rows = [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]
    return torch.stack([coupling[i, j] for i, j in rows])


def fit_order(order: int, basis: torch.Tensor) -> torch.Tensor:
    """Express MACE's coupling paths of one order in the invariants.

    The result has one row per invariant and one column per path.
    """
    generator = np.random.default_rng(order)
    points = torch.tensor(generator.normal(size=(400, 9)))
    paths = basis.double()
    for _ in range(order):
        if paths.dim() == order + 1 and paths.shape[0] == 9:
            paths = torch.einsum("ba,a...->b...", points, paths)
        else:
            paths = torch.einsum("ba,ba...->b...", points, paths)
    known = torch.stack(invariants(points.T, tensor_entries().double()), dim=1)
    solution = torch.linalg.lstsq(known, paths).solution
    residual = float((known @ solution - paths).abs().max())
    if residual > 1e-4:
        message = f"paths of order {order} must be invariants, got error {residual}"
        raise ValueError(message)
    return solution.float()


class FastContraction(torch.nn.Module):
    """Symmetric contraction to scalars of correlation 3 through explicit invariants."""

    def __init__(self, contraction: torch.nn.Module) -> None:
        super().__init__()
        self.weights = contraction.weights
        self.weights_max = contraction.weights_max
        self.register_buffer("tensor", tensor_entries().float())
        orders = [contraction.U_tensors(order) for order in (3, 2, 1)]
        for order, basis in zip((3, 2, 1), orders, strict=True):
            self.register_buffer(f"mix_{order}", fit_order(order, basis))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Contract features `x` with the weights of the elements in `y`."""
        nodes, channels, _ = x.shape
        weights = (
            torch.einsum("ik,ekc->eic", self.mix_3, self.weights_max)
            + torch.einsum("ik,ekc->eic", self.mix_2, self.weights[0])
            + torch.einsum("ik,ekc->eic", self.mix_1, self.weights[1])
        )
        factors = (y @ weights.flatten(1)).view(nodes, -1, channels)
        terms = invariants(x.permute(2, 0, 1).reshape(9, -1), self.tensor)
        out = torch.stack(terms).view(-1, nodes, channels) * factors.transpose(0, 1)
        return out.sum(0)


def accelerate(model: torch.nn.Module, config: dict[str, Any]) -> torch.nn.Module:
    """Replace the slow modules of a model by the faster ones."""
    channels = int(config["model"]["hidden_irreps"].removesuffix(CHANNELS_MARK))
    for interaction in model.interactions:
        interaction.conv_tp = FusedConvolution(config["model"]["max_ell"], channels)
        interaction.conv_fusion = True
        interaction.conv_tp_weights = PairRadial(interaction.conv_tp_weights)
    for product in model.products:
        contractions = product.symmetric_contractions.contractions
        contractions[0] = FastContraction(contractions[0])
    return model


def set_pairs(model: torch.nn.Module, pairs: torch.Tensor, first: torch.Tensor) -> None:
    """Set the pair of atoms of each edge in an accelerated model."""
    for interaction in model.interactions:
        if isinstance(interaction.conv_tp_weights, PairRadial):
            interaction.conv_tp_weights.pairs = pairs
            interaction.conv_tp_weights.first = first
