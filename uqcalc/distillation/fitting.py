"""`distill`: fit a head to the potential's own forces on ordinary structures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator

from uqcalc.backbones.base import Backbone, Prediction
from uqcalc.backbones.batching import batches, evaluate_each
from uqcalc.backbones.registry import tap
from uqcalc.distillation.card import HeadCard
from uqcalc.distillation.head import (
    DirectNetwork,
    DistilledHead,
    make_network,
    neighbours,
)
from uqcalc.errors import LabelWarning, ModelError
from uqcalc.files.emptyweights import EmptyWeights
from uqcalc.progress import progress_bar


LARGEST_BATCH = 600  # atoms
STEPS_AN_EPOCH = 20  # at least, unless batches would have fewer than about 50 atoms
PEAK_LEARNING_RATE = 3e-3
FEWEST = 20
POOR = 0.5  # held-out R² below which U is mostly the head's own error


@dataclass(frozen=True)
class _Sample:
    """One structure: inputs of the head, and the forces that it should give."""

    features: torch.Tensor
    vectors: torch.Tensor | None
    receivers: torch.Tensor
    senders: torch.Tensor
    bonds: torch.Tensor
    forces: torch.Tensor


def distill(
    frames: Sequence[Atoms],
    calculator: BaseCalculator | Backbone,
    *,
    cutoff: float = 5.0,
    hidden: int = 64,
    epochs: int = 60,
    seed: int = 0,
) -> DistilledHead:
    """Fit a direct-force head to a potential's own conservative forces.

    No labels are needed: the reference is the potential itself, so ``frames`` should be
    structures on which it is trusted. Use displaced structures, because vanishing
    forces contain no information. If head and potential disagree on a new structure,
    this structure is unlike ``frames``: ``ForceDelta(head=...)``.

    Parameters
    ----------
    frames : sequence of Atoms
        Ordinary structures; a tenth of them, drawn at random, is held out and reported.
    calculator : ase calculator or Backbone
        Any that `uqcalc.tap` knows and whose forces are conservative.
    cutoff : float
        Reach of the pair terms in Å.
    hidden, epochs, seed : int
        Width of the networks, passes over the frames, and seed of all random numbers.

    Raises
    ------
    ModelError
        If the potential gives no conservative forces, or too few frames can be
        evaluated.

    Warns
    -----
    LabelWarning
        If frames are left out because they cannot be evaluated (the message names
        them), or if the held-out R² of the head is below 0.5.
    """
    backbone = tap(calculator)
    if not backbone.conservative:
        msg = (
            f"potential to distil must give conservative forces, got {backbone.name} "
            "with direct forces; use ForceDelta() without a head"
        )
        raise ModelError(msg)
    predictions, left_out = _evaluate(frames, backbone)
    rng = np.random.default_rng(seed)
    samples = [_sample(prediction, cutoff) for prediction in predictions]
    order = rng.permutation(len(samples))
    held_out = [samples[i] for i in order[: max(1, len(order) // 10)]]
    fitting = [samples[i] for i in order[len(held_out) :]]
    card = _card(backbone, predictions, cutoff, hidden)
    card.training.update(
        frames=len(fitting),
        held_out=len(held_out),
        left_out=left_out,
        epochs=epochs,
        seed=seed,
    )
    network = _initial(card, fitting, torch.Generator().manual_seed(seed))
    _optimise(network, fitting, rng, epochs)
    card.report.update(_report(network, held_out))
    _warn_if_poor(card.report["r2"])
    return DistilledHead(card, network)


def _warn_if_poor(share: float) -> None:
    if not share >= POOR:  # NaN counts as poor
        text = (
            "the head should reproduce the forces of its potential, got a held-out "
            f"R² of {share:.2f}; distil it on more structures, displaced rather than "
            "relaxed"
        )
        warnings.warn(text, LabelWarning, stacklevel=3)


def _card(
    backbone: Backbone, predictions: Sequence[Prediction], cutoff: float, hidden: int
) -> HeadCard:
    vectors = predictions[0].vectors
    numbers = np.concatenate([p.numbers for p in predictions])
    return HeadCard(
        fingerprint=backbone.fingerprint,
        features=predictions[0].features.shape[1],
        vectors=0 if vectors is None else vectors.shape[1],
        cutoff=cutoff,
        hidden=hidden,
        elements=sorted({int(z) for z in numbers}),
        uqcalc_version=version("uqcalc"),
    )


def _evaluate(
    frames: Sequence[Atoms], backbone: Backbone
) -> tuple[list[Prediction], int]:
    wanted = ["energy", "forces", *sorted(backbone.provides & {"vectors"})]
    predictions: list[Prediction] = []
    reasons: list[str] = []
    with progress_bar() as progress:
        task = progress.add_task("teacher", total=len(frames))
        for _, outcome in evaluate_each(backbone, frames, wanted):
            if isinstance(outcome, str):
                reasons.append(outcome)
            else:
                predictions.append(outcome)
            progress.advance(task)
    if len(predictions) < FEWEST:
        why = f"; the first reason: {reasons[0]}" if reasons else ""
        msg = (
            f"the potential must be able to evaluate at least {FEWEST} frames, got "
            f"{len(predictions)} of {len(frames)}; give more frames{why}"
        )
        raise ModelError(msg)
    if reasons:
        text = f"{len(reasons)} of {len(frames)} frames were left out: {reasons[0]}"
        warnings.warn(text, LabelWarning, stacklevel=3)
    return predictions, len(reasons)


def _sample(prediction: Prediction, cutoff: float) -> _Sample:
    geometry = (prediction.positions, prediction.cell, prediction.pbc)
    receivers, senders, shifts = neighbours(*geometry, cutoff)
    positions, cell, _ = geometry
    bonds = positions[senders] - positions[receivers] + shifts @ cell
    return _Sample(
        _own(prediction.features),
        None if prediction.vectors is None else _own(prediction.vectors),
        torch.as_tensor(receivers),
        torch.as_tensor(senders),
        _own(bonds),
        _own(prediction.conservative_forces),
    )


def _own(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).detach().cpu().float().clone()


def _initial(
    card: HeadCard, samples: Sequence[_Sample], generator: torch.Generator
) -> DirectNetwork:
    with EmptyWeights():  # biases start at zero, weights follow from the seed
        network = make_network(card)
    for parameter in network.parameters():
        if parameter.ndim == 2:
            bound = parameter.shape[1] ** -0.5
            torch.nn.init.uniform_(parameter, -bound, bound, generator=generator)
    network.standardise(
        torch.cat([s.features for s in samples]),
        torch.cat([s.vectors for s in samples if s.vectors is not None])
        if card.vectors
        else None,
        torch.cat([s.forces for s in samples]),
    )
    return network


def _optimise(
    network: DirectNetwork,
    samples: Sequence[_Sample],
    rng: np.random.Generator,
    epochs: int,
) -> None:
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=1e-4
    )
    atoms = sum(len(sample.forces) for sample in samples)
    size = min(LARGEST_BATCH, max(50, atoms // STEPS_AN_EPOCH))
    with progress_bar() as progress:
        task = progress.add_task("head", total=epochs)
        for epoch in range(epochs):
            shuffled = list(_shuffled(samples, rng, size))
            for count, batch in enumerate(shuffled):
                done = (epoch + count / len(shuffled)) / epochs
                optimiser.param_groups[0]["lr"] = _learning_rate(done)
                merged = _merged(batch)
                difference = _forces(network, merged) - merged.forces
                loss = difference.norm(dim=1).mean() / network.force_scale
                optimiser.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
                optimiser.step()
            progress.update(task, advance=1, description=f"head, {loss.item():.4f}")


def _learning_rate(done: float) -> float:
    """Return the learning rate: a rise over the first tenth, then a cosine to zero."""
    if done < 0.1:
        return PEAK_LEARNING_RATE * (0.04 + 9.6 * done)
    return PEAK_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (done - 0.1) / 0.9))


def _shuffled(
    samples: Sequence[_Sample], rng: np.random.Generator, size: int
) -> Iterator[list[_Sample]]:
    shuffled = [samples[i] for i in rng.permutation(len(samples))]
    return batches(shuffled, lambda sample: len(sample.forces), size)


def _merged(samples: Sequence[_Sample]) -> _Sample:
    starts = np.cumsum([0, *(len(s.forces) for s in samples[:-1])]).tolist()
    pairs = list(zip(samples, starts, strict=True))
    vectors = [s.vectors for s in samples if s.vectors is not None]
    return _Sample(
        torch.cat([s.features for s in samples]),
        torch.cat(vectors) if vectors else None,
        torch.cat([s.receivers + start for s, start in pairs]),
        torch.cat([s.senders + start for s, start in pairs]),
        torch.cat([s.bonds for s in samples]),
        torch.cat([s.forces for s in samples]),
    )


def _forces(network: DirectNetwork, sample: _Sample) -> torch.Tensor:
    edges = (sample.receivers, sample.senders)
    forces: torch.Tensor = network(sample.features, sample.vectors, edges, sample.bonds)
    return forces


def _report(network: DirectNetwork, samples: Sequence[_Sample]) -> dict[str, float]:
    with torch.no_grad():
        merged = _merged(samples)
        squares = (_forces(network, merged) - merged.forces).square().mean()
    power = merged.forces.square().mean()
    return {
        "rmse_ev_per_angstrom": float(squares.sqrt()),
        "force_rms_ev_per_angstrom": float(power.sqrt()),
        "r2": float(1 - squares / power),
    }
