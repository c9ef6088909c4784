"""Train several attention networks in step, as one stack of weights on one device.

A network of the table is small: on an accelerator its steps are all launches, and on a
CPU the published recipe takes minutes. Here the seeds of a cell (and the refits that
calibrate it) share every launch. Loss, batches, optimiser, schedule and patience are
those of `uqcalc.fitting.network`; the weights go back into ordinary probes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from discriminating.labelled import Labelled
from discriminating.rows import BACKBONE, NETWORKS, Risk, folds, refitted
from discriminating.tasks import SHIFTED, Task, datasets, run
from uqcalc.fitting.batches import Feed
from uqcalc.fitting.network import margins, new_probe, validation_split
from uqcalc.fitting.recipe import Recipe
from uqcalc.labels.dataset import Dataset
from uqcalc.labels.labels import Labels
from uqcalc.labels.shards import like_sized
from uqcalc.probe.network import ProbeNetwork
from uqcalc.probe.probe import Probe


Rows = list[dict[str, Any]]
BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's AdamW


def run_together(
    tasks: Sequence[Task], data: Labelled, kind: str, device: str
) -> Iterator[tuple[Task, Rows]]:
    """Judge the networks on tasks that differ in their seed alone."""
    torch.set_float32_matmul_precision("high")
    sets = [datasets(task, data)[0] for task in tasks]
    own = tasks[0].block in SHIFTED
    rows = {}
    for name, recipe in NETWORKS[kind].items():
        jobs: list[tuple[Dataset, float]] = []
        for train in sets:
            boundary = float(np.median(train.errors))
            jobs.append((train, boundary))
            if not own and refitted(kind, len(train)):
                kept = [train.subset(rest) for rest, _ in folds(train)]
                jobs += [(part, boundary) for part in kept]
        found = fit_together(jobs, tasks[0].target, recipe, torch.device(device))
        rows[name] = _Fitted(
            {_key(part): probe for (part, _), probe in zip(jobs, found, strict=True)}
        )
    for task in tasks:
        yield task, run(task, data, kind, rows)


@dataclass(frozen=True)
class _Fitted:
    """A row whose networks have been trained already."""

    probes: Mapping[Any, Probe]

    def __call__(self, data: Dataset, _target: str, _boundary: float) -> Risk:
        probe = self.probes[_key(data)]
        return lambda d: -margins(probe, d)


def _key(data: Dataset) -> tuple[int, bytes]:
    return len(data), data.errors.tobytes()


@dataclass(frozen=True, eq=False)
class _Job:
    """One network's labels: features of all atoms, and which belong to a structure."""

    probe: Probe
    features: torch.Tensor
    scalars: torch.Tensor
    sizes: np.ndarray
    starts: np.ndarray
    targets: np.ndarray
    fitting: np.ndarray
    watching: np.ndarray


def fit_together(
    jobs: Sequence[tuple[Dataset, float]],
    target: str,
    recipe: Recipe,
    device: torch.device,
) -> list[Probe]:
    """Return a probe for each (dataset, boundary), not calibrated."""
    members = [_job(data, target, recipe, boundary) for data, boundary in jobs]
    stack = _Stack(members, recipe, device)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)  # of the dropout
        stack.train()
    for member, state in zip(members, stack.states(), strict=True):
        member.probe.network.load_state_dict(state)
        member.probe.network.eval().requires_grad_(requires_grad=False)
    return [member.probe for member in members]


def _job(data: Dataset, target: str, recipe: Recipe, boundary: float) -> _Job:
    label = "forces" if target == "atoms" else target
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        labels = Labels(label, boundary=boundary)
        probe = new_probe(data, BACKBONE, labels, recipe, boundary)
    feed = Feed(probe, data.predictions)
    whole = feed.batch(np.arange(len(data)))
    sizes = data.sizes
    fitting, watching = validation_split(data, np.random.default_rng(recipe.seed))
    return _Job(
        probe,
        whole.features,
        whole.scalars,
        sizes,
        np.cumsum(sizes) - sizes,
        (data.errors > boundary).astype(np.int64),
        fitting,
        watching,
    )


class _Stack:
    """The weights of all members, (members, parameters), and what moves them."""

    def __init__(
        self, jobs: Sequence[_Job], recipe: Recipe, device: torch.device
    ) -> None:
        self.jobs, self.recipe, self.device = jobs, recipe, device
        self.network = jobs[0].probe.network
        self.names = [name for name, _ in self.network.named_parameters()]
        self.shapes = [p.shape for p in self.network.parameters()]
        flat = [_flat(job.probe.network) for job in jobs]
        self.weights = torch.stack(flat).to(device).requires_grad_()
        self.first = torch.zeros_like(self.weights)
        self.second = torch.zeros_like(self.weights)
        self.steps = torch.zeros(len(jobs), 1, device=device)
        self.best = self.weights.detach().clone()
        self.features = torch.cat([job.features for job in jobs]).to(device)
        self.scalars = torch.cat([job.scalars for job in jobs]).to(device)
        atoms = np.cumsum([0] + [len(job.features) for job in jobs])
        rows = np.cumsum([0] + [len(job.sizes) for job in jobs])
        self.starts = [job.starts + a for job, a in zip(jobs, atoms, strict=False)]
        self.rows = rows[:-1]
        self.targets = torch.from_numpy(np.concatenate([j.targets for j in jobs]))
        self.targets = self.targets.to(device)
        counts = np.array([np.bincount(j.targets, minlength=2) for j in jobs])
        weight = counts.sum(axis=1, keepdims=True) / (2 * counts)
        self.class_weight = torch.tensor(weight, dtype=torch.float32, device=device)

    def train(self) -> None:
        """Train every member until its patience ends, back to its best epoch."""
        recipe = self.recipe
        rng = np.random.default_rng([recipe.seed, 1])
        schedules = [_Schedule(recipe) for _ in self.jobs]
        watched = [
            like_sized(job.watching, job.sizes, recipe.batch_size) for job in self.jobs
        ]
        for _ in range(recipe.epochs):
            rate = torch.tensor([[s.rate] for s in schedules], device=self.device)
            batches = [
                like_sized(rng.permutation(j.fitting), j.sizes, recipe.batch_size)
                for j in self.jobs
            ]
            for batch in self._batches(batches, rng):
                self._step(batch, rate)
            with torch.no_grad():
                sums = [self._losses(b, training=False) for b in self._batches(watched)]
                losses = torch.stack(sums).sum(dim=0).cpu().numpy()
            losses = losses / [len(job.watching) for job in self.jobs]
            better = [s.see(float(x)) for s, x in zip(schedules, losses, strict=True)]
            chosen = torch.tensor(better, device=self.device)[:, None]
            self.best = torch.where(chosen, self.weights.detach(), self.best)
            if all(schedule.finished for schedule in schedules):
                break
        if not all(schedule.learnt for schedule in schedules):
            msg = (
                "validation losses of all members must become finite, got NaN for some"
            )
            raise SystemExit(msg)

    def states(self) -> list[dict[str, torch.Tensor]]:
        """Return the best weights of each member."""
        pieces = self._pieces(self.best.cpu())
        return [
            {name: piece[i].clone() for name, piece in pieces.items()}
            for i in range(len(self.jobs))
        ]

    def _pieces(self, weights: torch.Tensor) -> dict[str, torch.Tensor]:
        parts = weights.split([shape.numel() for shape in self.shapes], dim=1)
        return {
            name: part.view(len(part), *shape)
            for name, part, shape in zip(self.names, parts, self.shapes, strict=True)
        }

    def _batches(
        self, batches: list[list[np.ndarray]], rng: np.random.Generator | None = None
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield (atoms, real, structures, counted); like-sized members side by side."""
        most = max(len(of_member) for of_member in batches)
        for member, of_member in zip(self.jobs, batches, strict=True):
            of_member.sort(key=lambda b, j=member: (j.sizes[b].max(initial=0), len(b)))
            of_member[:0] = [np.zeros(0, int)] * (most - len(of_member))
        order = np.arange(most) if rng is None else rng.permutation(most)
        for step in order:
            yield self._batch([of_member[step] for of_member in batches])

    def _batch(self, chosen: list[np.ndarray]) -> tuple[torch.Tensor, ...]:
        width = max(len(b) for b in chosen)
        sizes = np.zeros((len(chosen), width), int)
        starts, rows = np.zeros_like(sizes), np.zeros_like(sizes)
        for i, b in enumerate(chosen):
            sizes[i, : len(b)] = self.jobs[i].sizes[b]
            starts[i, : len(b)] = self.starts[i][b]
            rows[i, : len(b)] = self.rows[i] + b
        place = np.arange(sizes.max())
        counted = sizes > 0
        real = place < np.maximum(sizes, 1)[..., None]  # softmax needs one
        atoms = np.where(real, starts[..., None] + place, 0)
        parts = (atoms, real, rows, counted, sizes)
        return tuple(
            torch.from_numpy(x).to(self.device, non_blocking=True) for x in parts
        )

    def _losses(
        self, batch: tuple[torch.Tensor, ...], *, training: bool
    ) -> torch.Tensor:
        """Return the summed loss of each member, (members,)."""
        atoms, real, rows, counted, sizes = batch
        logits = self.forward(
            self.features[atoms], real, self.scalars[rows], training=training
        )
        target = self.targets[rows]
        chosen = logits.log_softmax(-1).gather(-1, target[..., None])[..., 0]
        losses = -chosen * self.class_weight.gather(1, target)
        if self.recipe.size_normalised:
            losses = losses / sizes.clamp(min=1).sqrt()
        return (losses * counted).sum(dim=1)

    def _step(self, batch: tuple[torch.Tensor, ...], rate: torch.Tensor) -> None:
        counts = batch[3].sum(dim=1)
        losses = self._losses(batch, training=True) / counts.clamp(min=1)
        (slope,) = torch.autograd.grad(losses.sum(), self.weights)
        with torch.no_grad():
            norm = slope.norm(dim=1, keepdim=True)
            slope = slope * (1.0 / (norm + 1e-6)).clamp(max=1.0)
            active = (counts > 0)[:, None]
            self.steps += active
            one, two = BETAS
            self.first.lerp_(slope, active * (1 - one))
            self.second.lerp_(slope.square(), active * (1 - two))
            taken = self.steps.clamp(min=1)  # one that waits has taken none
            mean = self.first / (1 - one**taken)
            spread = (self.second / (1 - two**taken)).sqrt() + EPSILON
            moved = mean / spread + self.recipe.weight_decay * self.weights
            self.weights -= active * rate * moved

    def forward(
        self,
        features: torch.Tensor,
        real: torch.Tensor,
        scalars: torch.Tensor,
        *,
        training: bool,
    ) -> torch.Tensor:
        """Return logits (members, batch, 2) of padded (members, batch, atoms, dim)."""
        network, shape = self.network, self.network.shape
        weights = self._pieces(self.weights)
        members, batch, atoms, _ = features.shape

        def layers(prefix: str, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
            for name, layer in module.named_children():
                x = _layer(weights, f"{prefix}.{name}", layer, x, training=training)
            return x

        def linear(prefix: str, x: torch.Tensor) -> torch.Tensor:
            bias = weights[f"{prefix}.bias"][:, None]
            return torch.baddbmm(bias, x, weights[f"{prefix}.weight"].transpose(1, 2))

        encoded = layers("atom_encoder", network.atom_encoder, features.flatten(1, 2))
        packed = linear("mol_attention.qkv", encoded)
        heads = (members * batch, atoms, 3, shape.heads, shape.width // shape.heads)
        query, key, value = packed.view(heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=real.flatten(0, 1)[:, None, None, :],
            dropout_p=shape.dropout if training else 0.0,
        )  # fmt: skip
        merged = mixed.transpose(1, 2).reshape(members, batch * atoms, shape.width)
        out = linear("mol_attention.out_proj", merged) + encoded
        norm = network.mol_attention_norm
        attended = _layer(weights, "mol_attention_norm", norm, out, training=training)
        attended = attended.view(members, batch, atoms, shape.width)
        there = real[..., None]
        mean = (attended * there).sum(dim=2) / there.sum(dim=2)
        largest = attended.masked_fill(~there, -torch.inf).amax(dim=2)
        embedding = linear("proj", torch.cat([mean, largest, scalars], dim=2))
        return layers("classifier", network.classifier, embedding)


def _flat(network: ProbeNetwork) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def _layer(
    weights: Mapping[str, torch.Tensor],
    name: str,
    layer: nn.Module,
    x: torch.Tensor,
    *,
    training: bool,
) -> torch.Tensor:
    """Apply one layer of every member to (members, rows, width)."""
    if isinstance(layer, nn.Linear):
        slope = weights[f"{name}.weight"].transpose(1, 2)
        return torch.baddbmm(weights[f"{name}.bias"][:, None], x, slope)
    if isinstance(layer, nn.LayerNorm):
        normal = functional.layer_norm(x, layer.normalized_shape, eps=layer.eps)
        return torch.addcmul(
            weights[f"{name}.bias"][:, None], normal, weights[f"{name}.weight"][:, None]
        )
    if isinstance(layer, nn.Dropout):
        return functional.dropout(x, layer.p, training)
    return layer(x)


class _Schedule:
    """One member's learning rate and patience."""

    def __init__(self, recipe: Recipe) -> None:
        self._patience = recipe.patience
        nothing = torch.nn.Parameter(torch.zeros(1))
        self._optimiser = torch.optim.SGD([nothing], lr=recipe.learning_rate)
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimiser, factor=0.9, patience=5, min_lr=recipe.learning_rate / 10
        )
        self._best, self._since = np.inf, 0

    @property
    def rate(self) -> float:
        """The learning rate."""
        return float(self._optimiser.param_groups[0]["lr"])

    @property
    def learnt(self) -> bool:
        """Whether any epoch had a finite loss."""
        return bool(np.isfinite(self._best))

    @property
    def finished(self) -> bool:
        """Whether so many epochs brought nothing."""
        return self._since >= self._patience

    def see(self, loss: float) -> bool:
        """Take the watched loss of an epoch; return whether its weights are to keep."""
        if self.finished:
            return False
        self._plateau.step(loss)
        self._since += 1
        better = loss < self._best
        if better:
            self._best, self._since = loss, 0
        return better
