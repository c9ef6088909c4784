"""Metatomic: features and direct forces are outputs of the usual evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import numpy as np
import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, Capture, Prediction, one_at_a_time
from uqcalc.backbones.fingerprint import fingerprint
from uqcalc.backbones.prediction import geometry
from uqcalc.errors import BackboneError


# Name in a `Prediction` -> name in metatomic (plus "s" in older models), unit, and
# whether one value belongs to an atom or to a system.
_OUTPUTS = {
    "features": ("feature", "", "atom"),
    "direct_forces": ("non_conservative_force", "eV/Angstrom", "atom"),
    "direct_stress": ("non_conservative_stress", "eV/Angstrom^3", "system"),
    "energy_uncertainties": ("energy_uncertainty", "eV", "atom"),
    "committee_energies": ("energy_ensemble", "eV", "system"),
}
_DIRECT = frozenset({"direct_forces", "direct_stress"})
_AUXILIARY = {"energy_uncertainties": "uncertainty", "committee_energies": "ensemble"}

# Arrays that a model may read, but whose changes ASE does not check.
_ARRAYS = {
    "momentum": "momenta",
    "velocity": "momenta",
    "mass": "masses",
    "ase::tags": "tags",
}


class _Listener:
    """Replaces the model during one call, and requests additional outputs."""

    def __init__(self, model: Any, requests: dict[str, Any], captured: Capture) -> None:
        self._model = model
        self._requests = requests  # ModelOutput by name in a `Prediction`
        self._captured = captured

    def __call__(
        self,
        systems: list[Any],
        options: Any,
        check_consistency: bool,  # noqa: FBT001  # as metatomic calls it
    ) -> dict[str, Any]:
        from metatomic.torch import ModelEvaluationOptions

        requests = dict(self._requests)
        if not all(bool(system.pbc.all()) for system in systems):
            requests.pop("direct_stress", None)
        more = ModelEvaluationOptions(
            length_unit=options.length_unit,
            outputs=dict(options.outputs) | dict(requests.values()),
            selected_atoms=options.selected_atoms,
        )
        outputs: dict[str, Any] = self._model(systems, more, check_consistency)
        starts = torch.tensor([0, *(len(s) for s in systems[:-1])]).cumsum(0)
        for name, (key, _) in requests.items():
            rows = _rows(outputs[key].block(), starts)
            if name == "features":
                self._captured.features.append(rows)
            else:
                self._captured.more[name] = _shaped(name, rows)
        return outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@final
class MetatomicBackbone(Backbone):
    """A ``MetatomicCalculator`` or ``UPETCalculator`` with a feature output.

    The first class is in the package ``metatomic_ase``; the second, in ``upet``, holds
    one of the first with a PET model, such as PET-MAD.

    Features are the model's output ``feature``. Their number depends on the model, and
    so does their invariance to rotation (PET's features change); it is not assumed.
    Features and, if the model has them, direct ("non-conservative") forces and stress
    come from the same evaluation as energy and -dE/dr.

    So do, on demand, the model's own uncertainties, if it has them (PET-MAD: LLPR, Bigi
    et al. 2024, doi:10.1088/2632-2153/ad805f): ``energy_uncertainty`` of each atom, for
    `uqcalc.EnergyUncertainty`, and the energies of an ensemble of last layers,
    ``energy_ensemble``, for `uqcalc.EnergySpread`.

    With ``non_conservative=True`` or ``"forces"`` the calculator's forces are the
    direct forces minus their mean, and conservative forces are not available. With
    ``True`` or ``"stress"`` its stress is the direct one, and conservative stress is
    not available. ``direct_forces`` are the model's own output, with the net force.

    Import ``metatomic.torch`` (or ``metatomic_ase``) before packages that import
    torch_geometric, such as MatGL and SevenNet: TorchScript refuses it afterwards.
    """

    name = "metatomic"
    by_autograd = True
    invariant_features = False

    def __init__(self, calculator: Any, model_calculator: Any | None = None) -> None:
        given = calculator if model_calculator is None else model_calculator
        self._inner = owner = _inner(given)
        if owner._energy_key is None:
            msg = (
                "metatomic model must have an energy, got outputs "
                f"{sorted(owner._model.capabilities().outputs)}; wrap a potential"
            )
            raise BackboneError(msg)
        self._names = _names(owner)
        self.conservative = not owner._nc_forces
        super().__init__(
            calculator,
            given,
            feature_dim=None,
            fingerprint=_fingerprint(owner, self._names["features"]),
            elements=frozenset(owner._model.capabilities().atomic_types),
        )
        watched = owner._system_info_watch
        self.reads = frozenset(key for key, _ in watched)
        self._inputs = dict(owner._model.requested_inputs(use_new_names=True))
        always = {"features"}
        always |= {"direct_forces"} if owner._nc_forces else set()
        always |= {"direct_stress"} if owner._nc_stress else set()
        self.provides |= frozenset(self._names)
        if not owner._nc_stress:
            self.provides |= {"conservative_stress"}
        self.on_demand = frozenset(self._names) - always

    def armed(self) -> AbstractContextManager[Capture]:
        """Request the features from the model, too, during one call."""
        return self.armed_for(frozenset())

    @contextmanager
    def armed_for(self, extras: frozenset[str]) -> Iterator[Capture]:
        """Request ``extras``, too, and the direct stress with direct forces."""
        captured = Capture([], [])
        owner = self._inner
        model = owner._model
        asked = extras | (_DIRECT if extras & _DIRECT else frozenset())
        left_out = self.on_demand - asked
        names = {name: key for name, key in self._names.items() if name not in left_out}
        owner._model = _Listener(model, _requests(names), captured)
        try:
            yield captured
        finally:
            owner._model = model

    def feature_rows(self, captured: Capture, atoms: int) -> torch.Tensor:
        """Take the width from the first pass; later passes must have the same."""
        if self.feature_dim is None and captured.features:
            self.feature_dim = int(captured.features[0].shape[-1])
        return super().feature_rows(captured, atoms)

    def _prediction(self, atoms: Atoms, captured: Capture) -> Prediction:
        for name in {"direct_stress", "committee_energies"} & {*captured.more}:
            captured.more[name] = captured.more[name][0]
        stress = self.model_calculator.results.get("stress")
        promised = "conservative_stress" in self.provides and atoms.pbc.all()
        if promised and stress is not None:
            captured.more["conservative_stress"] = stress
        return super()._prediction(atoms, captured)

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:
        """Return what the model reads of ``info`` and arrays; usually nothing."""
        watched = self._inner._system_info_watch
        state = {key: atoms.info.get(key, default) for key, default in watched}
        for name in self._inputs.keys() & _ARRAYS.keys():
            state[f"array {_ARRAYS[name]}"] = atoms.arrays.get(_ARRAYS[name])
        return state

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate all frames in one native batch.

        Models with requested inputs evaluate the frames one by one: the calculator's
        own batches leave these inputs out.
        """
        owner = self._inner
        if self._inputs or not self.may_batch(frames, wanted):
            return super().predict_many(frames, wanted)
        with self.armed_for(self.on_demand & {*wanted}) as captured:
            output = owner.compute_energy(list(frames), True)  # noqa: FBT003
        self.passes += len(captured.features)
        sizes = [len(frame) for frame in frames]
        rows: dict[str, Any] = {
            "features": self.feature_rows(captured, sum(sizes)).split(sizes),
            "forces": [np.asarray(f, dtype=float) for f in output["forces"]],
        }
        if self.conservative:
            rows["conservative_forces"] = rows["forces"]
        for name, value in captured.more.items():
            by_atom = _OUTPUTS[name][2] == "atom"
            rows[name] = torch.as_tensor(value).split(sizes) if by_atom else value
        return [
            _prediction(frame, float(energy), dict(zip(rows, own, strict=True)))
            for frame, energy, *own in zip(
                frames, output["energy"], *rows.values(), strict=True
            )
        ]


def _inner(given: Any) -> Any:
    """Return the ``MetatomicCalculator``: ``given``, or the one in a UPET calculator.

    Raises
    ------
    BackboneError
        If UPET averages over rotations: its evaluations are then many.
    """
    if hasattr(given, "_energy_key"):
        return given
    if not hasattr(given.calculator, "_energy_key"):
        msg = (
            "UPET calculator must not average over rotations to be tapped, got a "
            f"{type(given.calculator).__name__} in it; leave rotational_average_order "
            "out, and average with uqcalc.RotationAverage(calculator, n)"
        )
        raise BackboneError(msg)
    return given.calculator


def _prediction(frame: Atoms, energy: float, rows: dict[str, Any]) -> Prediction:
    results = {"energy": energy, "forces": rows["forces"]}
    return Prediction(**geometry(frame), results=results, energy=energy, **rows)


def _names(owner: Any) -> dict[str, str]:
    """Return the model's names of its outputs, by name in a `Prediction`.

    Direct forces and stress must belong to the same variant (level of theory) as the
    energy, or to the user's choice. Features may be common to all variants.
    """
    outputs = dict(owner._model.capabilities().outputs)
    asked = owner._additional_output_requests
    # a model accepts one of two spellings: first the user's, then the new one
    outputs = dict(sorted(outputs.items(), key=lambda o: (o[0] not in asked, o[0])))
    chosen = owner.parameters["variants"] or {}
    variant = owner._energy_key.partition("/")[2] or None
    found = {
        name: _first(outputs, key, chosen.get(key, chosen.get(f"{key}s", variant)))
        for name, (key, *_) in _OUTPUTS.items()
    }
    found["features"] = found["features"] or _first(outputs, "feature")
    for name, ending in _AUXILIARY.items():
        found[name] = found[name] or _auxiliary(outputs, variant, ending)
    uncertainty = found["energy_uncertainties"]
    if uncertainty and outputs[uncertainty].sample_kind != "atom":
        found["energy_uncertainties"] = None
    found["direct_forces"] = owner._nc_forces_key or found["direct_forces"]
    found["direct_stress"] = owner._nc_stress_key or found["direct_stress"]
    _require_feature(outputs, found["features"])
    names = {name: key for name, key in found.items() if key is not None}
    _require_alike(asked, names)
    return names


def _first(outputs: dict[str, Any], key: str, variant: str | None = None) -> str | None:
    """Return the name of an output as the model spells it, or None."""
    ending = "" if variant is None else f"/{variant}"
    names = {f"{key}{ending}", f"{key}s{ending}"}
    return next((name for name in outputs if name in names), None)


def _auxiliary(outputs: dict[str, Any], variant: str | None, of: str) -> str | None:
    """Return the name that metatrain gives to such an output of a variant, or None."""
    name = f"mtt::aux::energy/{variant}_{of}"
    return name if name in outputs else None


def _require_feature(outputs: dict[str, Any], name: str | None) -> None:
    if name is not None and outputs[name].sample_kind == "atom":
        return
    given = f"{name!r} of each {outputs[name].sample_kind}" if name else sorted(outputs)
    msg = (
        "metatomic model must have an output 'feature' of each atom, got "
        f"{given}; export the model with one, or name a variant that has it: "
        'MetatomicCalculator(..., variants={"feature": ...})'
    )
    raise BackboneError(msg)


def _require_alike(asked: dict[str, Any], names: dict[str, str]) -> None:
    """Raise an error if the user requests an output with another unit or kind."""
    for name, key in names.items():
        _, unit, kind = _OUTPUTS[name]
        if key in asked and (asked[key].unit, asked[key].sample_kind) != (unit, kind):
            msg = (
                f"additional_outputs[{key!r}] must have unit={unit!r}, "
                f"sample_kind={kind!r} to be tapped, got unit={asked[key].unit!r}, "
                f"sample_kind={asked[key].sample_kind!r}; request it with these, or "
                "leave it out"
            )
            raise BackboneError(msg)


def _requests(names: dict[str, str]) -> dict[str, Any]:
    """Return (name, ModelOutput) to request, by name in a `Prediction`."""
    from metatomic.torch import ModelOutput

    return {
        name: (key, ModelOutput(unit=_OUTPUTS[name][1], sample_kind=_OUTPUTS[name][2]))
        for name, key in names.items()
    }


def _rows(block: Any, starts: torch.Tensor) -> torch.Tensor:
    """Return detached values, ordered by system and by atom."""
    order = block.samples.column("system").long()
    if "atom" in block.samples.names:
        offset = starts.to(order.device)[order]
        order = offset + block.samples.column("atom")
    values: torch.Tensor = block.values.detach()
    return values[order.argsort()]


def _shaped(name: str, rows: torch.Tensor) -> torch.Tensor | np.ndarray:
    """Return rows of an output as a `Prediction` holds them, system by system."""
    if name == "committee_energies":
        members: np.ndarray = rows.cpu().numpy()  # (systems, members)
        return members
    if name == "direct_stress":
        return _voigt(rows.squeeze(-1))
    return rows.squeeze(-1)


def _voigt(stress: torch.Tensor) -> torch.Tensor:
    """Return (systems, 6) from (systems, 3, 3), after making it symmetric."""
    rows, columns = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
    return (0.5 * (stress + stress.transpose(-1, -2)))[..., rows, columns]


def _fingerprint(owner: Any, feature: str) -> str:
    """Hash all weights, and the names of the energy and features in use."""
    model = owner._model
    capabilities = model.capabilities()
    constants = [
        sorted(capabilities.atomic_types),
        round(float(capabilities.interaction_range), 6),
        owner._energy_key,
        feature.removeprefix("features").removeprefix("feature"),
    ]
    # models store reference energies as serialised buffers
    weights = [*model.parameters(), *model.buffers()]
    return fingerprint("metatomic", weights or [torch.zeros(0)], constants)
