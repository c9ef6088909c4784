"""`ReliableModel`: a TorchSim model that judges every system of each batch."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch_sim.models.interface import ModelInterface

from uqcalc.backbones.prediction import Prediction
from uqcalc.defaults import (
    AUTO,
    Probes,
    choose_policy,
    choose_signals,
    description,
)
from uqcalc.judging import judged
from uqcalc.policy import Policy
from uqcalc.probe.batch import BatchPass
from uqcalc.probe.reading import ProbeReading
from uqcalc.records import Assessment, checked_interval
from uqcalc.signals.base import Signal, fetch, to_host
from uqcalc.signals.flags import Flags
from uqcalc.signals.probe import ProbeSignal, share
from uqcalc.signals.sanity import Sanity
from uqcalc.torchsim.layout import Layout
from uqcalc.torchsim.tapping import Heard, Tap


NOT_JUDGED = -1  # ``reliability_level`` of a pass that is not read
LEVEL = "reliability_level"
# What a pass of TorchSim gives, if the model has it (`Backbone.provides`).
_GIVEN = frozenset({
    "energy", "forces", "stress", "features", "expected_errors", "direct_forces",
    "conservative_forces", "direct_stress", "conservative_stress",
})  # fmt: skip
_VOIGT = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
_STATED = ("charge", "spin")  # extras of a state that models read


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """The verdicts of one pass.

    Attributes
    ----------
    layout : Layout
    assessments : tuple of Assessment
        One for each system, in the order of the batch.
    predictions : tuple of Prediction
        Geometry and results of each system on the host.
    momenta : list of array or None
        (atoms, 3) of each system when the model ran: in a velocity Verlet scheme those
        in the middle of the step. None without momenta.
    positions : tensor (atoms, 3)
        That of the state that was judged.
    """

    layout: Layout
    assessments: tuple[Assessment, ...]
    predictions: tuple[Prediction, ...]
    momenta: list[np.ndarray] | None
    positions: torch.Tensor

    def atoms(self, index: int) -> Atoms:
        """Return a system as it was judged, without results."""
        given = self.predictions[index]
        atoms = Atoms(given.numbers, given.positions, cell=given.cell, pbc=given.pbc)
        if self.momenta is not None:
            atoms.set_momenta(self.momenta[index])
        atoms.info.update(given.charge_spin)
        return atoms


class ReliableModel(ModelInterface):  # type: ignore[misc]  # not typed where absent
    """Wrap a TorchSim model; its output gains the readings and levels of each system.

    The model runs once for the whole batch, and its energies, forces and stresses stay
    unchanged. The further entries have the names of the results of
    `uqcalc.ReliableCalculator` and the same values: ``reliability_level`` (0 RELIABLE,
    1 SUSPECT, 2 UNRELIABLE), ``probe_reliability``, ``probe_novelty``, ``force_delta``
    and so on, one for each system, and ``probe_reliabilities``, ``force_deltas``, one
    for each atom. Integrators and optimisers of TorchSim store them in
    ``state.system_extras`` and ``state.atom_extras``. Where each system of a batch has
    a single atom TorchSim stores all of them in ``state.atom_extras``;
    ``state.probe_reliability`` finds them there, too.

    The probes of all systems are evaluated together on the device. Then one transfer
    brings all readings to the host, where each system gets its verdict. `Sanity` and
    `Flags` are computed there, system by system: with thousands of systems set
    ``interval``, or leave them out.

    Parameters
    ----------
    model : torch_sim ModelInterface
        A ``MaceModel``, ``MaceTorchSimModel`` or ``OrbModel``, or a ``SumModel`` with
        one of them.
    probe : path, Probe, sequence of these, None or "auto"
        As for `uqcalc.ReliableCalculator`.
    signals : sequence of Signal
        Additional signals, computed from the same pass.
    policy : Policy, optional
        By default the cutoffs stored in the probe.
    sanity, flags : bool
        As for `uqcalc.ReliableCalculator`.
    interval : int
        Judge only every ``interval``-th pass of a batch, from the first one on. At the
        others nothing is read and nothing waits for the device: the extras are NaN,
        and ``reliability_level`` is -1.
    enabled : bool
        With False nothing is judged. This attribute may be changed at any time; once
        there were extras, they are those of a pass that is not read.

    Attributes
    ----------
    last : Judged or None
        The verdicts of the last pass; None if it was not judged.

    Raises
    ------
    BackboneError
        If the model cannot be tapped.
    ProbeError
        If the probe belongs to another model.
    ValueError
        As for `uqcalc.ReliableCalculator`; also for signals that need further passes,
        or that are about chosen atoms.
    """

    def __init__(  # noqa: PLR0913  (what a user writes in one line of a script)
        self,
        model: ModelInterface,
        probe: Probes | None = AUTO,
        signals: Sequence[Signal] = (),
        policy: Policy | None = None,
        *,
        sanity: bool = True,
        flags: bool | None = None,
        interval: int = 1,
        enabled: bool = True,
    ) -> None:
        super().__init__()
        self.model = model
        self.interval = checked_interval(interval, "interval")
        self.enabled = enabled
        self._tap = Tap(model)
        self.backbone = self._tap.backbone
        self.signals = choose_signals(
            self.backbone, probe, signals, "flagged", sanity=sanity, flags=flags
        )
        _check_signals(self.signals, self.backbone.provides, stress=self.compute_stress)
        auto = probe == AUTO and not signals
        self.policy = choose_policy(self.signals, policy, auto=auto)
        self.last: Judged | None = None
        self._layout: Layout | None = None
        self._passes = 0
        self._own: list[dict[str, Signal]] = []
        self._kinds: dict[str, tuple[bool, tuple[int, ...], bool]] = {}

    @property
    def device(self) -> torch.device:
        """The device of the wrapped model."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the wrapped model."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def compute_stress(self) -> bool:
        """Whether the wrapped model computes the stress."""
        return bool(self.model.compute_stress)

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self.model.compute_stress = value

    @property
    def compute_forces(self) -> bool:
        """Whether the wrapped model computes forces; signals need them."""
        return bool(self.model.compute_forces)

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self.model.compute_forces = value

    @property
    def memory_scales_with(self) -> Any:
        """As for the wrapped model; for autobatchers."""
        return self.model.memory_scales_with

    def describe(self) -> dict[str, Any]:
        """Return backbone, signals, policy and cards of the probes, for logs."""
        return description(self.backbone, self.signals, self.policy)

    def forward(self, state: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """Run the model once, and judge every system if judging is due.

        Raises
        ------
        BackboneError
            If the pass gave no features.
        """
        if not (self.enabled or self._kinds):
            self.last = None
            return dict(self.model(state, **kwargs))
        if self._layout is None or not self._layout.fits(state):
            self._layout, self._passes = Layout(state), 0
        due = self.enabled and self._passes % self.interval == 0
        self._passes += 1
        return self._evaluate(state, kwargs, self._layout, due=due)

    def look(self, state: Any) -> Judged:
        """Return the verdicts on a state; it costs a pass unless it was judged last."""
        last = self.last
        if last is not None and last.positions is state.positions:
            return last
        if self._layout is None or not self._layout.fits(state):
            self._layout, self._passes = Layout(state), 0
        self._evaluate(state, {}, self._layout, due=True)
        if self.last is None:
            msg = "a state must be judged when it is asked for, got no verdict"
            raise RuntimeError(msg)
        return self.last

    @property
    def system_keys(self) -> frozenset[str]:
        """Names of the extras with one entry for each system."""
        return frozenset(
            key for key, (of_atoms, *_) in self._kinds.items() if not of_atoms
        )

    def signals_of(self, index: int) -> list[Signal]:
        """Return the signals of a system: `Sanity` and `Flags` remember neighbours."""
        while len(self._own) <= index:
            kept = [s for s in self.signals if isinstance(s, Sanity | Flags)]
            self._own.append({s.name: deepcopy(s) for s in kept})
        own = self._own[index]
        return [own.get(signal.name, signal) for signal in self.signals]

    def _evaluate(
        self, state: Any, kwargs: dict[str, Any], layout: Layout, *, due: bool
    ) -> dict[str, torch.Tensor]:
        self.last = None
        if not due:
            return {**self.model(state, **kwargs), **self._blank(layout)}
        needed = {name for s in self._due() for name in s.requires}
        extras = self.backbone.on_demand & needed
        with self.backbone.alone(), self._tap.listening(extras) as heard:
            output = dict(self.model(state, **kwargs))
        self.last = self._judge(state, layout, output, heard)
        return output | self._extras(layout, self.last.assessments)

    def _due(self) -> list[Signal]:
        """Return the signals due now: some run only at every k-th pass."""
        count = max(0, self._passes - 1)
        return [s for s in self.signals if count % getattr(s, "interval", 1) == 0]

    def _judge(
        self,
        state: Any,
        layout: Layout,
        output: dict[str, torch.Tensor],
        heard: Heard,
    ) -> Judged:
        """Bring everything that signals read to the host, and judge each system."""
        features = self.backbone.feature_rows(heard.capture, layout.atoms)
        due = self._due()
        probes = [s for s in due if isinstance(s, ProbeSignal)]
        given = _pass_of(state, layout, heard.output, features)
        probed = {
            s.name: s.probe.read_batch(s.probe.batch_of(given), other=s.other_boundary)
            for s in probes
        }
        on_host = any("features" in s.requires for s in due if s not in probes)
        asked = self._asked(state, layout, output, heard)
        asked["finite"] = torch.isfinite(features).all(dim=1)
        if on_host:
            asked["features"] = features
        names = {
            f"{name} {key}": value
            for name, reading in probed.items()
            for key, value in reading._asdict().items()
            if value is not None
        }
        both = asked | names
        host = dict(zip(both, fetch(list(both.values())), strict=True))
        if on_host:
            features = torch.from_numpy(host["features"]).to(features.dtype)
        predictions = self._predictions(layout, host, features, heard)
        readings = {s.name: _of_probe(host, s.name) for s in probes}
        assessments = []
        for k, (prediction, rows) in enumerate(
            zip(predictions, layout.rows, strict=True)
        ):
            own = {name: share(found, k, rows) for name, found in readings.items()}
            finite = bool(host["finite"][rows].all())
            assessments.append(self._assess(k, prediction, own, finite=finite))
        momenta = None
        if "momenta" in host:
            momenta = [host["momenta"][rows] for rows in layout.rows]
        return Judged(layout, tuple(assessments), predictions, momenta, state.positions)

    def _asked(
        self,
        state: Any,
        layout: Layout,
        output: dict[str, torch.Tensor],
        heard: Heard,
    ) -> dict[str, torch.Tensor]:
        """Return the tensors that predictions on the host need, by name."""
        asked = {"positions": state.positions, "cell": state.row_vector_cell}
        momenta = getattr(state, "momenta", None)
        if momenta is not None:
            asked["momenta"] = momenta
        names = ["energy", "forces"]
        if layout.pbc.all() and "stress" in output:
            names.append("stress")
        for name in names:
            asked[name] = heard.output[name].detach()
            asked[f"whole {name}"] = output[name].detach()
        for name in _STATED:
            value = state.system_extras.get(name)
            if value is not None:
                asked[name] = value
        more = {k: torch.as_tensor(v) for k, v in heard.capture.more.items()}
        return asked | {f"more {name}": value for name, value in more.items()}

    def _predictions(
        self,
        layout: Layout,
        host: dict[str, np.ndarray],
        features: torch.Tensor,
        heard: Heard,
    ) -> tuple[Prediction, ...]:
        """Return what the signals read of each system."""
        stresses = {
            name: value[:, *_VOIGT]
            for name, value in host.items()
            if name.removeprefix("whole ") == "stress"
        }
        predictions = []
        for k, rows in enumerate(layout.rows):
            forces = host["forces"][rows]
            results = {
                "energy": float(host["whole energy"][k]),
                "forces": host["whole forces"][rows],
            }
            if "whole stress" in stresses:
                results["stress"] = stresses["whole stress"][k]
            more: dict[str, Any] = {}
            for name in heard.capture.more:
                value = host[f"more {name}"]
                if not name.endswith("stress"):
                    more[name] = value[rows]
                elif layout.pbc.all():
                    more[name] = value.reshape(len(layout), 6)[k]
            if "expected_errors" in more:
                more["expected_errors"] = torch.from_numpy(more["expected_errors"])
            if self.backbone.conservative:
                more["conservative_forces"] = forces
            predictions.append(
                Prediction(
                    numbers=layout.elements[k],
                    positions=host["positions"][rows],
                    cell=host["cell"][k],
                    pbc=layout.pbc,
                    results=results,
                    energy=float(host["energy"][k]),
                    forces=forces,
                    features=features[rows],
                    projected=self.backbone.projected,
                    fixed=layout.fixed[k],
                    charge_spin={n: float(host[n][k]) for n in _STATED if n in host},
                    **more,
                )
            )
        return tuple(predictions)

    def _assess(
        self,
        index: int,
        prediction: Prediction,
        probes: dict[str, ProbeReading],
        *,
        finite: bool,
    ) -> Assessment:
        """Return the assessment of one system from arrays on the host.

        ``probes`` are the outputs of the probes that are due; ``finite`` says whether
        the features are.
        """
        due = {signal.name for signal in self._due()}
        given = []
        for signal in self.signals_of(index):
            if isinstance(signal, ProbeSignal) and signal.name in probes:
                given.append(signal.reading_of(probes[signal.name], prediction))
            elif signal.name in due and (reading := signal(prediction)) is not None:
                given.append(reading)
        broken = prediction.broken()
        if not finite and "features" not in broken:
            broken = (*broken, "features")
        return Assessment(*judged(to_host(given), broken, self.policy))

    def _extras(
        self, layout: Layout, assessments: Sequence[Assessment]
    ) -> dict[str, torch.Tensor]:
        """Return the results of all systems as tensors on the device.

        A signal that is not due has NaN: a state would keep its older values.
        """
        results = [assessment.results() for assessment in assessments]
        extras = self._blank(layout)
        for key in dict.fromkeys(key for own in results for key in own):
            known = next(np.asarray(own[key]) for own in results if key in own)
            of_atoms, flag = known.ndim > 0, known.dtype == bool
            self._kinds[key] = (of_atoms, known.shape[1:], flag)
            nothing = False if flag else np.nan
            columns = [
                np.asarray(
                    own[key]
                    if key in own
                    else np.full((size, *known.shape[1:])[: known.ndim], nothing)
                )
                for own, size in zip(results, layout.sizes, strict=True)
            ]
            joined = np.concatenate(columns) if of_atoms else np.stack(columns)
            extras[key] = self._there(joined, key)
        return extras

    def _blank(self, layout: Layout) -> dict[str, torch.Tensor]:
        """Return the extras of a pass that is not read: NaN, and no level."""
        extras = {}
        for key, (of_atoms, shape, flag) in self._kinds.items():
            rows = layout.atoms if of_atoms else len(layout)
            kind, value = (torch.bool, 0.0) if flag else (self.dtype, np.nan)
            if key == LEVEL:
                kind, value = torch.int64, NOT_JUDGED
            size = (rows, *shape) if of_atoms else (rows,)
            extras[key] = torch.full(size, value, dtype=kind, device=self.device)
        return extras

    def _there(self, array: np.ndarray, key: str) -> torch.Tensor:
        """Copy an array to the device, without waiting for it."""
        kind = torch.int64 if key == LEVEL else self.dtype
        kind = torch.bool if array.dtype == bool else kind
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(kind)
        return tensor.to(self.device, non_blocking=True)


def _pass_of(
    state: Any, layout: Layout, output: dict[str, torch.Tensor], features: torch.Tensor
) -> BatchPass:
    """Return what the probes read."""
    stresses = output.get("stress")
    return BatchPass(
        layout.numbers,
        layout.system,
        layout.sizes,
        features,
        output["energy"].detach(),
        output["forces"].detach(),
        None if stresses is None else stresses.detach(),
        torch.linalg.det(state.cell).abs(),
        periodic=bool(layout.pbc.any()),
        solid=bool(layout.pbc.all()),
    )


def _of_probe(host: dict[str, np.ndarray], name: str) -> ProbeReading:
    """Return the outputs of a probe for the whole batch, on the host."""
    found: dict[str, Any] = {
        key: torch.from_numpy(host[f"{name} {key}"]).float()
        if f"{name} {key}" in host
        else None
        for key in ProbeReading._fields
    }
    return ProbeReading(**found)


def _check_signals(
    signals: Sequence[Signal], provides: frozenset[str], *, stress: bool
) -> None:
    """Refuse signals that a batch cannot give (ValueError)."""
    given = (_GIVEN & provides) - (frozenset() if stress else {"stress"})
    for signal in signals:
        if hasattr(signal, "extend") or signal.requires - given:
            lacking = sorted(signal.requires - given) or ["further passes"]
            msg = (
                f"signal {signal.name!r} must be computed from one pass of TorchSim, "
                f"got one that needs {', '.join(lacking)}; leave it out, give the "
                "model compute_stress=True if it needs the stress, or use "
                "uqcalc.ReliableCalculator"
            )
            raise ValueError(msg)
        if isinstance(signal, ProbeSignal) and signal.region is not None:
            msg = (
                "probe must be about all atoms of each system in TorchSim, got chosen "
                f"atoms {list(signal.region.atoms)[:5]}; leave out atoms"
            )
            raise ValueError(msg)
