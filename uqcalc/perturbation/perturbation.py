"""A learned perturbation of a potential: noise network and card in one file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from uqcalc.backbones.base import Backbone
from uqcalc.backbones.fingerprint import same_model
from uqcalc.backbones.registry import tap
from uqcalc.errors import ModelError
from uqcalc.files.tensorfile import load_state
from uqcalc.perturbation.card import PerturbationCard
from uqcalc.perturbation.layers import Layer, find_layers
from uqcalc.perturbation.noise import Noise, draw


if TYPE_CHECKING:
    from uqcalc.perturbation.members import Members


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

    def sample(
        self,
        atoms: Atoms,
        members: int,
        calculator: BaseCalculator | Backbone | None = None,
        *,
        seed: int = 0,
        stress: bool = False,
    ) -> Members:
        """Return ``members`` draws of energy and forces for one structure.

        Each draw is one potential, a member. The same seed gives the same members for
        every structure. So an uncertainty can be propagated into an average over the
        frames of a run: average with each member, then take the standard deviation
        over the members. The cost is one pass for each member.

        Parameters
        ----------
        atoms : Atoms
        members : int
            At least 1.
        calculator : ase calculator or Backbone, optional
            The potential of the perturbation; by default ``atoms.calc``.
        seed : int
        stress : bool
            Whether to return the stress of the members, too, for a structure that is
            periodic in three directions.

        Returns
        -------
        Members
            ``energies`` (members,) in eV, ``forces`` (members, atoms, 3) in eV/Å, and
            ``stresses`` (members, 6) in eV/Å³ or None.

        Raises
        ------
        TypeError
            If ``atoms`` is no structure.
        ModelError
            If there is no member or no calculator, or if it is another potential.
        BackboneError
            If the potential cannot evaluate the structure.
        """
        from uqcalc.perturbation.members import PerturbedBackbone

        refused: object = atoms
        if not isinstance(refused, Atoms):
            msg = (
                f"atoms must be one structure (Atoms), got {type(refused).__name__}; "
                "read a file with ase.io.read first"
            )
            raise TypeError(msg)
        if isinstance(members, bool) or not isinstance(members, int) or members < 1:
            msg = f"members must be a whole number of at least 1, got {members!r}"
            raise ModelError(msg)
        given: Any = atoms.calc if calculator is None else calculator
        if given is None:
            msg = (
                "calculator must be given for atoms without one, got None; set "
                "atoms.calc, or pass calculator="
            )
            raise ModelError(msg)
        # a ReliableCalculator has a backbone
        inner = tap(getattr(given, "backbone", given))
        if isinstance(inner, PerturbedBackbone):
            inner = inner.inner
        sampled = PerturbedBackbone(inner, self, members, seed)
        return sampled.evaluate_members(atoms, stress=stress)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write one safetensors file, whole or not at all.

        Raises
        ------
        RecordError, ModelError
            If the folder does not exist, or the file is something else.
        """
        return self.card.write(path, self.tensors())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the weights of the noise and, if they were trained, of the model."""
        model = {f"{MODEL}{name}": value for name, value in self.model.items()}
        return self.noise.state_dict() | model

    def same_as(self, other: Perturbation) -> bool:
        """Return whether both give the same members."""
        own, theirs = self.tensors(), other.tensors()
        return self.card == other.card and all(
            torch.equal(value, theirs[name]) for name, value in own.items()
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Perturbation:
        """Read the file of a perturbation.

        Raises
        ------
        ModelError
            If it is something else, or damaged.
        """
        return cls.rebuild(*PerturbationCard.read(path), str(path))

    @classmethod
    def rebuild(
        cls, card: PerturbationCard, tensors: dict[str, torch.Tensor], name: str
    ) -> Perturbation:
        """Build the perturbation from a card and `tensors`; ``name`` is for errors.

        Raises
        ------
        ModelError
            If tensors are missing or have another shape.
        """
        model = {
            key.removeprefix(MODEL): value
            for key, value in tensors.items()
            if key.startswith(MODEL)
        }
        own = {k: v for k, v in tensors.items() if not k.startswith(MODEL)}
        noise = Noise(card.dimension, card.widths)
        load_state(noise, own, name, ModelError)
        return cls(card, noise, model)
