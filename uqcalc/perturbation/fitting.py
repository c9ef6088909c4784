"""`perturb`: train the noise of a potential on labelled frames, with the CRPS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Literal, get_args

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import BaseCalculator
from rich.progress import Progress, TaskID

from uqcalc.agreement import same_result
from uqcalc.backbones.base import Backbone
from uqcalc.backbones.batching import batches
from uqcalc.backbones.differentiable import CanTrain, Trainable
from uqcalc.backbones.registry import tap
from uqcalc.errors import ModelError
from uqcalc.labels.defects import check_frames
from uqcalc.labels.groups import divide, group_names
from uqcalc.labels.labels import Labels
from uqcalc.labels.offsets import fit_offsets, offset_energies, warn_of_offsets
from uqcalc.labels.ownresults import refuse_own_results
from uqcalc.perturbation.card import NOISE, PerturbationCard
from uqcalc.perturbation.layers import Layer, find_layers
from uqcalc.perturbation.noise import Noise, draw
from uqcalc.perturbation.perturbation import Perturbation
from uqcalc.perturbation.targets import Targets, check_structures, targets_of
from uqcalc.progress import progress_bar
from uqcalc.statistics.crps import fair_crps


Trained = Literal["perturbation", "all"]
HELD_OUT = 0.1  # share of the frames for early stopping, in whole groups ...
FEWEST_HELD_OUT = 10  # ... and at least so many of a small set, up to half of it
VALIDATION_MEMBERS = 16
WARM_UP = 0.1  # share of the steps in which the learning rates rise
_UNITS = {
    "energy": "energy_eV_per_atom",
    "forces": "forces_eV_per_A",
    "stress": "stress_eV_per_A3",
}


@dataclass(frozen=True, slots=True)
class PerturbationSettings:
    """Settings of the training.

    Attributes
    ----------
    train : {"perturbation", "all"}
        What is trained: the noise alone, so that the potential's own results stay as
        they are, or the noise and all parameters of the model.
    members : int
        Members of each frame in a step (10 in arXiv:2605.19939).
    dimension : int
        Length of the noise vector.
    noise : {"structure", "atom"}
        One noise vector for a whole structure, or one for each atom.
    epochs : int
        Largest number of passes over the frames.
    patience : int
        The training stops after so many epochs without a better held-out score.
    batch : int
        Frames in a step.
    noise_rate, model_rate : float
        Peak learning rates of Adam for the noise and for the model.
    seed : int
        Seed of the split, the order of the frames and the noise.

    Raises
    ------
    ModelError
        If a setting is impossible.
    """

    train: Trained = "perturbation"
    members: int = 10
    dimension: int = 32
    noise: Literal["structure", "atom"] = "structure"
    epochs: int = 40
    patience: int = 8
    batch: int = 8
    noise_rate: float = 1e-3
    model_rate: float = 1e-4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train not in get_args(Trained):
            msg = (
                f"train must be one of {list(get_args(Trained))}, got {self.train!r}; "
                "'perturbation' leaves the potential as it is"
            )
            raise ModelError(msg)
        if self.noise not in NOISE:
            msg = (
                f"noise must be one of {list(NOISE)}, got {self.noise!r}; 'structure' "
                "makes each member a smooth potential"
            )
            raise ModelError(msg)
        for name in ("noise_rate", "model_rate"):
            if not 0 < getattr(self, name) < math.inf:
                msg = f"{name} must be a number above 0, got {getattr(self, name)}"
                raise ModelError(msg)
        least = {"members": 2, "dimension": 1, "epochs": 1, "patience": 1, "batch": 1}
        for name, limit in least.items():
            if getattr(self, name) < limit:
                msg = f"{name} must be at least {limit}, got {getattr(self, name)}"
                raise ModelError(msg)


def perturb(
    calculator: BaseCalculator | Backbone,
    frames: Sequence[Atoms],
    labels: Labels | None = None,
    *,
    layers: Sequence[str] = (),
    settings: PerturbationSettings | None = None,
) -> Perturbation:
    """Train the noise of a potential, so that the spread has the size of the error.

    The loss is the fair CRPS of the forces and, if the frames have references for them,
    of the energy per atom and of the stress (arXiv:2605.19939). Each is divided by the
    mean absolute error of the potential without noise. So the loss starts at the number
    of these quantities, and the score on the held-out groups says how much of the error
    the distribution explains.

    Parameters
    ----------
    calculator : ase calculator or Backbone
        A potential whose passes can be differentiated: MACE, CHGNet, Orb, or another
        torch module (``uqcalc.tap(calculator, module=..., energy=...)``).
    frames : sequence of Atoms
        Frames with reference forces and, in all of them or in none, energies. The
        potential should not have seen them in its training; otherwise its errors on
        them are too small.
    labels : Labels, optional
        Keys of the references and of the groups. With ``offsets=True`` an energy for
        each element is fitted to the errors and subtracted.
    layers : sequence of str, optional
        Names of the layers that take noise, with ``*`` for any text; by default those
        of the backbone.
    settings : PerturbationSettings, optional

    Raises
    ------
    ModelError
        If the potential cannot be differentiated, a setting is impossible, or no epoch
        lowers the CRPS of the held-out frames: members that do not differ would give
        a spread of zero.
    BackboneError
        If a layer does not exist.
    LabelError
        If there are no frames, if the potential cannot evaluate a frame, if one
        has no reference forces, if some frames have a reference energy and others have
        none, or if there are fewer than two groups.

    Warns
    -----
    LabelWarning
        If the reference energies seem to have another zero than the potential's.
    """
    options = settings or PerturbationSettings()
    check_frames(frames, ())
    backbone = tap(calculator)
    if not isinstance(backbone, CanTrain):
        msg = (
            "potential to perturb must be one whose passes can be differentiated by "
            "its parameters (MACE, CHGNet, Orb, or uqcalc.tap(calculator, module=..., "
            f"energy=...)), got {backbone.name}; use a committee or a probe for it"
        )
        raise ModelError(msg)
    by_atom = backbone.perturbable_atoms if options.noise == "atom" else ()
    named = (layers,) if isinstance(layers, str) else tuple(layers)
    found = find_layers(backbone, named or by_atom)
    check_structures(backbone, frames)
    keys = labels or Labels()
    targets = targets_of(frames, keys)
    groups = group_names(frames, keys.group_key)
    share = max(HELD_OUT, min(0.5, FEWEST_HELD_OUT / max(1, len(groups))))
    fit, held = divide(groups, (1 - share, share), options.seed)
    with backbone.alone():
        return _Fit(backbone, found, frames, targets, options).run(fit, held, keys)


def _share_of_rate(step: int, steps: int) -> float:
    """Return the share of the peak rate: a linear rise, then a cosine down to zero.

    Without the rise the first steps of Adam, which all have the size of the rate, add
    more noise to the energy than the rest of the training removes.
    """
    rise = min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))


class _Fit:
    """One training: the noise, the labels and the scales of the errors."""

    def __init__(
        self,
        backbone: Backbone,
        layers: Sequence[Layer],
        frames: Sequence[Atoms],
        targets: Targets,
        options: PerturbationSettings,
    ) -> None:
        self.backbone = backbone
        self.layers = layers
        self.frames = frames
        self.targets = targets
        self.options = options
        self.noise = Noise(options.dimension, [layer.width for layer in layers])
        network = backbone.network
        self.model = dict(network.named_parameters()) if network else {}
        self.stress = targets.stresses is not None and "stress" in backbone.provides
        self.offsets = torch.zeros(len(frames), dtype=torch.float64)
        self.with_offsets = False
        self.scales: dict[str, float] = {}
        self.rng = np.random.default_rng(options.seed)

    def run(self, fit: list[int], held: list[int], labels: Labels) -> Perturbation:
        """Train on the rows ``fit``, stop by the rows ``held``."""
        whole = self.options.train == "all"
        start = {name: value.detach().clone() for name, value in self.model.items()}
        flags = {name: value.requires_grad for name, value in self.model.items()}
        for value in self.model.values():
            value.requires_grad = whole
        try:
            self._measure(fit, labels)
            errors = self._report(held, "mae")  # without noise the CRPS is the MAE
            best = self._optimise(fit, held)
            report = errors | self._report(held, "crps")
            trained = {n: v.detach().cpu().clone() for n, v in self.model.items()}
        finally:
            for name, value in self.model.items():
                value.data = start[name]
                value.requires_grad = flags[name]
        card = self._card(len(fit), len(held), report | best)
        return Perturbation(card, self.noise, trained if whole else None)

    def _card(self, fit: int, held: int, report: dict[str, float]) -> PerturbationCard:
        options = self.options
        numbers = np.concatenate([frame.numbers for frame in self.frames])
        return PerturbationCard(
            fingerprint=self.backbone.fingerprint,
            elements=sorted({int(z) for z in numbers}),
            layers=[layer.name for layer in self.layers],
            widths=[layer.width for layer in self.layers],
            dimension=options.dimension,
            noise=options.noise,
            changes_model=options.train == "all",
            training={
                "frames": fit,
                "held_out": held,
                "members": options.members,
                "seed": options.seed,
                "stress": self.stress,
                "offsets": self.with_offsets,
            },
            report=report,
            uqcalc_version=version("uqcalc"),
        )

    def _measure(self, rows: Sequence[int], labels: Labels) -> None:
        """Set the scales: mean absolute errors of the potential without noise."""
        energies, errors = [], []
        stresses = []
        own: list[int] = []
        for batch in self._batches(rows, 1):
            out = self._pass(batch, 1)
            parts = (
                out.forces[0].detach().cpu().split([len(self.frames[i]) for i in batch])
            )
            own += [
                i
                for i, part in zip(batch, parts, strict=True)
                if same_result("forces", part.numpy(), self.targets.forces[i].numpy())
            ]
            energies.append(out.energies[0].detach().cpu().double())
            forces = torch.cat([self.targets.forces[i] for i in batch])
            errors.append((out.forces[0].detach().cpu().double() - forces).abs())
            if out.stresses is not None and self.targets.stresses is not None:
                truth = self.targets.stresses[list(batch)]
                stresses.append((out.stresses[0].detach().cpu().double() - truth).abs())
        of_forces = replace(labels, target="forces", offsets=False)
        refuse_own_results(sorted(own), len(rows), of_forces)
        found = {"forces": float(torch.cat(errors).mean())}
        if self.targets.energies is not None:
            residuals = self.targets.energies[list(rows)] - torch.cat(energies)
            found["energy"] = self._energy_scale(rows, residuals, labels)
        if stresses:
            found["stress"] = float(torch.cat(stresses).mean())
        self.scales = {name: max(value, 1e-12) for name, value in found.items()}

    def _energy_scale(
        self, rows: Sequence[int], residuals: torch.Tensor, labels: Labels
    ) -> float:
        """Fit offsets if they are wanted; return the mean |error| in eV per atom."""
        self.with_offsets = labels.offsets
        if labels.offsets:
            numbers = [self.frames[i].numbers for i in rows]
            offsets = fit_offsets(numbers, residuals.numpy())
            every = [frame.numbers for frame in self.frames]
            self.offsets = torch.as_tensor(offset_energies(every, offsets))
            residuals = residuals - self.offsets[list(rows)]
        else:
            warn_of_offsets([self.frames[i].numbers for i in rows], residuals.numpy())
        sizes = torch.tensor([len(self.frames[i]) for i in rows])
        return float((residuals / sizes).abs().mean())

    def _batches(self, rows: Sequence[int], members: int) -> list[list[int]]:
        """Return batches of rows: twice `most_batch_atoms`, with all members."""
        limit = max(1, 2 * self.backbone.most_batch_atoms // members)
        several: list[list[int]] = []
        for batch in batches(rows, lambda row: len(self.frames[row]), limit):
            size = self.options.batch
            several += [batch[i : i + size] for i in range(0, len(batch), size)]
        return several

    def _pass(self, rows: Sequence[int], copies: int) -> Trainable:
        frames = [self.frames[row] for row in rows]
        backbone = self.backbone
        assert isinstance(backbone, CanTrain)  # noqa: S101  (checked by perturb)
        return backbone.trainable(frames, copies=copies, stress=self.stress)

    def _members(
        self, rows: Sequence[int], members: int, seed: int, *, graph: bool
    ) -> Trainable:
        """Evaluate members of some frames: in one pass, or one after another.

        Without ``graph`` the results cannot be differentiated, and no pass has more
        than twice `most_batch_atoms`: the graphs of 16 members of a dense cell need 13
        GB.
        """
        sizes = [len(self.frames[row]) for row in rows]
        by_atom = self.options.noise == "atom"
        every = sum(sizes) if by_atom else None
        draws = draw(members, self.options.dimension, seed, every)
        together = self.backbone.trains_in_batches
        most = members if graph else 2 * self.backbone.most_batch_atoms // sum(sizes)
        passes = []
        for some in draws.split(max(1, most) if together else 1):
            parts = [some], [[*rows]]
            if not together:
                each = some.split(sizes, dim=1) if by_atom else [some] * len(rows)
                parts = [*each], [[row] for row in rows]
            found = []
            for part, own in zip(*parts, strict=True):
                with self.noise.added(self.layers, part):
                    out = self._pass(own, len(part))
                found.append(out if graph else out.detached())
            passes.append(Trainable.joined(found, of="structures"))
        return Trainable.joined(passes, of="copies")

    def _crps(
        self, rows: Sequence[int], members: int, seed: int, *, graph: bool
    ) -> dict[str, torch.Tensor]:
        """Return the mean CRPS of each quantity over its scale."""
        out = self._members(rows, members, seed, graph=graph)
        forces = torch.cat([self.targets.forces[row] for row in rows]).to(out.forces)
        found = {"forces": fair_crps(out.forces, forces)}
        if self.targets.energies is not None:
            sizes = torch.tensor([len(self.frames[row]) for row in rows])
            energies = (self.targets.energies - self.offsets)[list(rows)]
            # differences: float32 would lose digits of large total energies
            away = (out.energies - energies.to(out.energies)) / sizes.to(out.energies)
            found["energy"] = fair_crps(away, torch.zeros_like(away[0]))
        if out.stresses is not None and self.targets.stresses is not None:
            truth = self.targets.stresses[list(rows)].to(out.stresses)
            found["stress"] = fair_crps(out.stresses, truth)
        return {name: part.mean() / self.scales[name] for name, part in found.items()}

    def _optimise(self, fit: list[int], held: list[int]) -> dict[str, float]:
        """Train until the held-out score stops falling; keep the best parameters."""
        options = self.options
        groups = [{"params": [*self.noise.parameters()], "lr": options.noise_rate}]
        if options.train == "all":
            own = {"params": [*self.model.values()], "lr": options.model_rate}
            groups.append(own)
        optimiser = torch.optim.Adam(groups)
        steps = options.epochs * len(self._batches(fit, options.members))
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimiser, lambda step: _share_of_rate(step, steps)
        )
        best, since, epoch = self._score(held), 0, 0
        first, kept = best, self._state()
        with progress_bar() as progress:
            task = progress.add_task("perturbation", total=options.epochs)
            for epoch in range(1, options.epochs + 1):
                self._epoch(fit, optimiser, schedule, (progress, task))
                score = self._score(held)
                since += 1
                if score < best:
                    best, since, kept = score, 0, self._state()
                title = f"perturbation, CRPS {score / len(self.scales):.3f}"
                progress.update(task, completed=epoch, description=title)
                if since >= options.patience:
                    break
        self._restore(kept)
        count = len(self.scales)
        if not best < first:
            msg = (
                "the CRPS of held-out frames must fall in the training, got none below "
                f"that without noise ({first / count:.3g}) in {epoch} epochs; lower "
                "noise_rate, or add frames on which the potential errs"
            )
            raise ModelError(msg)
        return {
            "epochs": float(epoch),
            "score": best / count,
            "score_at_start": first / count,
        }

    def _epoch(
        self,
        fit: Sequence[int],
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LambdaLR,
        bar: tuple[Progress, TaskID],
    ) -> None:
        order = [fit[i] for i in self.rng.permutation(len(fit))]
        several = self._batches(order, self.options.members)
        for batch in several:
            seed = int(self.rng.integers(2**31))
            losses = self._crps(batch, self.options.members, seed, graph=True)
            loss = torch.stack([*losses.values()]).sum()
            if not bool(loss.isfinite()):
                msg = (
                    "the loss must stay finite in the training, got "
                    f"{float(loss.detach())}; lower the learning rates, or leave out "
                    "frames with extreme labels"
                )
                raise ModelError(msg)
            optimiser.zero_grad()
            loss.backward()
            parameters = [p for g in optimiser.param_groups for p in g["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, 10.0)
            optimiser.step()
            schedule.step()
            bar[0].advance(bar[1], 1 / len(several))

    def _score(self, rows: Sequence[int]) -> float:
        """Return the sum of the mean CRPS over the scales, with fixed members."""
        return sum(self._mean_scores(rows).values())

    def _mean_scores(self, rows: Sequence[int]) -> dict[str, float]:
        totals: dict[str, float] = dict.fromkeys(self.scales, 0.0)
        for batch in self._batches(rows, VALIDATION_MEMBERS):
            found = self._crps(
                batch, VALIDATION_MEMBERS, self.options.seed, graph=False
            )
            atoms = sum(len(self.frames[row]) for row in batch)
            for name, value in found.items():
                weight = atoms if name == "forces" else len(batch)
                totals[name] += float(value.detach()) * weight
        atoms = sum(len(self.frames[row]) for row in rows)
        counts = {name: len(rows) for name in totals} | {"forces": atoms}
        return {name: total / counts[name] for name, total in totals.items()}

    def _report(self, held: Sequence[int], score: str) -> dict[str, float]:
        """Return the mean scores of held-out frames, with units in the names."""
        found = self._mean_scores(held)
        return {
            f"{score}_{_UNITS[name]}": value * self.scales[name]
            for name, value in found.items()
        }

    def _state(self) -> list[torch.Tensor]:
        return [value.detach().clone() for value in self._parameters()]

    def _restore(self, state: list[torch.Tensor]) -> None:
        for value, kept in zip(self._parameters(), state, strict=True):
            value.data = kept

    def _parameters(self) -> list[torch.Tensor]:
        own = [*self.model.values()] if self.options.train == "all" else []
        return [*self.noise.parameters(), *own]
