"""A learned perturbation of a potential: noise network and card in one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.fingerprint import same_model
from uqcalc.errors import ModelError
from uqcalc.files.tensorfile import load_state
from uqcalc.perturbation.card import PerturbationCard
from uqcalc.perturbation.layers import Layer, find_layers
from uqcalc.perturbation.noise import Noise, draw


MODEL = "model."  # prefix of the parameters of the model in a file


class Perturbation:
    """Noise in the layers of one potential; made by `uqcalc.perturb`.

    One vector of normal numbers turns the potential into another function of the
    geometry, a member (arXiv:2605.19939). The same vector is used for a whole
    structure, so that a member is a smooth potential, with forces that are the
    gradient of its energy where the potential has such forces. The zero vector gives
    the potential itself.

    Parameters
    ----------
    card : PerturbationCard
    noise : Noise
    model : dict, optional
        Parameters of the model by name, if they were trained, too.

    Attributes
    ----------
    card : PerturbationCard
    noise : Noise
    """

    def __init__(
        self,
        card: PerturbationCard,
        noise: Noise,
        model: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.card = card
        self.noise = noise.requires_grad_(requires_grad=False)
        self.model = dict(model or {})

    def __repr__(self) -> str:
        return f"Perturbation({self.card})"

    def layers(self, backbone: Backbone) -> list[Layer]:
        """Return the layers of ``backbone`` that take noise.

        Raises
        ------
        ModelError
            If the backbone is not the potential of this perturbation; the message
            gives both fingerprints.
        """
        self.check(backbone)
        return find_layers(backbone, self.card.layers)

    def draws(self, members: int, seed: int, atoms: int) -> torch.Tensor:
        """Return the normal numbers of the members, for a structure of ``atoms``.

        Shape (members, dimension), or (members, atoms, dimension) with noise for each
        atom. The same seed gives the same members.
        """
        each = atoms if self.card.noise == "atom" else None
        return draw(members, self.card.dimension, seed, each)

    @contextmanager
    def applied(self, backbone: Backbone, draws: torch.Tensor) -> Iterator[None]:
        """Perturb every pass of the context; nothing stays on the model.

        Parameters
        ----------
        backbone : Backbone
        draws : tensor
            As `draws` gives them; a pass evaluates these members together.
        """
        with (
            self.own_parameters(backbone),
            self.noise.added(self.layers(backbone), draws),
        ):
            yield

    @contextmanager
    def own_parameters(self, backbone: Backbone) -> Iterator[None]:
        """Use the trained parameters of the model, if any, in the context."""
        network = backbone.network
        if not self.model or network is None:
            yield
            return
        own = dict(network.named_parameters())
        before = {name: own[name].data for name in self.model}
        try:
            for name, value in self.model.items():
                own[name].data = value.to(own[name])
            yield
        finally:
            for name, value in before.items():
                own[name].data = value

    def check(self, backbone: Backbone) -> None:
        """Refuse a backbone that this perturbation was not trained for.

        Raises
        ------
        ModelError
            With both fingerprints.
        """
        if not same_model(backbone.fingerprint, self.card.fingerprint):
            msg = (
                "perturbation must belong to this backbone, got a perturbation of "
                f"{self.card.fingerprint} and the backbone {backbone.fingerprint}; "
                "load the model it was trained for, or train another one"
            )
            raise ModelError(msg)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all.

        Raises
        ------
        RecordError, ModelError
            If the folder does not exist, or the file is something else.
        """
        model = {f"{MODEL}{name}": value for name, value in self.model.items()}
        return self.card.write(path, self.noise.state_dict() | model)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Perturbation:
        """Read the file of a perturbation.

        Raises
        ------
        ModelError
            If it is something else, or damaged.
        """
        card, tensors = PerturbationCard.read(path)
        model = {
            name.removeprefix(MODEL): tensors.pop(name)
            for name in list(tensors)
            if name.startswith(MODEL)
        }
        noise = Noise(card.dimension, card.widths)
        load_state(noise, tensors, str(path), ModelError)
        return cls(card, noise, model)
