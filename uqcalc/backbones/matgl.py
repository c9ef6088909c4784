"""MatGL: features are the last stored layer with one row for each atom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any, NamedTuple, final

import numpy as np
import torch
from ase import Atoms, units
from ase.data import atomic_numbers
from ase.stress import full_3x3_to_voigt_6_stress

from uqcalc.backbones.base import Backbone, Capture, Prediction, one_at_a_time
from uqcalc.backbones.fingerprint import fingerprint
from uqcalc.backbones.hooks import listen_to_output
from uqcalc.backbones.passmemory import Costs
from uqcalc.backbones.prediction import geometry
from uqcalc.backbones.structure import check_pbc_alike
from uqcalc.chargespin import INITIAL
from uqcalc.errors import BackboneError


class _Layer(NamedTuple):
    """Key and part of the features in ``model.feature_dict``; attribute for width."""

    key: str
    part: str | None
    width: str


# Input of the readout of atomic energies. M3GNet's "readout" holds the energies.
_LAYERS = {
    "TensorNet": _Layer("readout", None, "linear.out_features"),
    "QET": _Layer("readout", None, "linear.out_features"),
    "M3GNet": _Layer(
        "gc_{n_blocks}", "node_feat", "embedding.layer_node_embedding.embedding_dim"
    ),
    "CHGNet": _Layer("gc_{n_blocks}", "atom_feat", "atom_embedding.embedding_dim"),
    "SO3Net": _Layer("scalar_representation", None, "dim_node_embedding"),
}


@final
class MatGLBackbone(Backbone):
    """A ``PESCalculator`` around a TensorNet, QET, M3GNet, CHGNet or SO3Net of MatGL.

    Features are the invariants from which the energy of each atom is computed:
    (atoms, 64) in released models. A QET also gives charges.

    ``PESCalculator`` gives its stress in GPa unless it was built with
    ``stress_unit="eV/A3"``. ASE expects eV/Å³, so the stress is 160 times too large and
    cells relax wrongly. ``results["stress"]`` stays as it is, in GPa. But "stress" is
    in ``provides`` only if the unit is eV/Å³; the ``conservative_stress`` of a
    `Prediction` is always in eV/Å³.

    For molecules the calculator gives a stress without meaning, for a cell of 1 Å³. If
    metatomic is used in the same process, import it first: MatGL imports
    torch_geometric, and then ``metatomic.torch`` cannot be imported.
    """

    name = "matgl"
    by_autograd = True

    def __init__(self, calculator: Any, model_calculator: Any | None = None) -> None:
        owner = calculator if model_calculator is None else model_calculator
        potential = owner.potential
        self._model: Any = potential.model
        if hasattr(self._model, "_orig_mod"):
            msg = (
                "MatGL potential must have compile_model=False to be tapped, got a "
                "compiled model, whose layers may be missing; build it with "
                "compile_model=False"
            )
            raise BackboneError(msg)
        self._kind, self._layer = _layer(self._model)
        if not potential.calc_forces or potential.debug_mode:
            msg = (
                "MatGL potential must give forces, got "
                f"calc_forces={potential.calc_forces}, debug_mode="
                f"{potential.debug_mode}; build it with calc_forces=True and "
                "debug_mode=False"
            )
            raise BackboneError(msg)
        super().__init__(
            calculator,
            owner,
            feature_dim=int(attrgetter(self._layer.width)(self._model)),
            fingerprint=_fingerprint(owner, self._model, self._kind),
            elements=frozenset(atomic_numbers[e] for e in owner.element_types),
        )
        self.cutoff = float(self._model.cutoff)
        self.reads = frozenset({INITIAL} if self._kind == "QET" else ())
        if angles := float(getattr(self._model, "threebody_cutoff", 0.0) or 0.0):
            self.costs = Costs(triple=5e3, angles=angles)
        else:
            self.costs = Costs()
        if self._kind == "QET":
            self.provides |= {"charges"}
        if owner.compute_stress:
            self.provides |= {"conservative_stress"}
        if not owner.compute_stress or not np.isclose(_to_ase_unit(owner), 1.0):
            self.provides -= {"stress"}

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Listen to the model during one call, and read the layers that it stored."""
        with listen_to_output(self._model, lambda _: self._features()) as captured:
            yield captured
        if captured.features and "charges" in self.provides:
            captured.charges.append(self._model.feature_dict["charge"].detach())
        # stored layers would keep the graph alive and could not be copied
        self._model.feature_dict = _detached(self._model.feature_dict)

    def _features(self) -> torch.Tensor:
        layer = self._layer
        kept = self._model.feature_dict[layer.key.format_map(vars(self._model))]
        rows: torch.Tensor = kept if layer.part is None else kept[layer.part]
        return rows

    def _prediction(self, atoms: Atoms, captured: Capture) -> Prediction:
        owner = self.model_calculator
        if owner.compute_stress and atoms.pbc.all():
            stress = owner.results["stress"] * _to_ase_unit(owner)
            captured.more["conservative_stress"] = _voigt(stress)
        return super()._prediction(atoms, captured)

    def check_structure(self, atoms: Atoms) -> None:
        """Refuse films and wires, too: MatGL treats them as molecules, or fails."""
        super().check_structure(atoms)
        check_pbc_alike(atoms, "MatGL")

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:  # noqa: ARG002
        """Return an empty dict: ASE itself compares the initial charges QET reads."""
        return {}

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate all frames in one native batch.

        Calculators with a state, a total charge, an external potential or Hessians
        evaluate the frames one by one.
        """
        owner = self.model_calculator
        given = owner.state_attr, owner.total_charge, owner.ext_pot
        single = owner.compute_hessian or any(value is not None for value in given)
        if single or not self.may_batch(frames, wanted):
            return super().predict_many(frames, wanted)
        with self.armed() as captured:
            output = _batched_output(owner, frames)
        self.passes += len(captured.features)
        sizes = [len(frame) for frame in frames]
        rows = {
            "features": self.feature_rows(captured, sum(sizes)).split(sizes),
            "forces": [f.cpu().numpy() for f in output[1].detach().split(sizes)],
        }
        rows["conservative_forces"] = rows["forces"]
        if captured.charges:
            rows["charges"] = captured.charges[0].split(sizes)
        energies = output[0].detach().reshape(-1).tolist()
        return [
            _prediction(frame, energy, dict(zip(rows, own, strict=True)))
            for frame, energy, *own in zip(
                frames, energies, *rows.values(), strict=True
            )
        ]


def _prediction(frame: Atoms, energy: float, rows: dict[str, Any]) -> Prediction:
    results = {"energy": energy, "forces": rows["forces"]}
    return Prediction(**geometry(frame), results=results, energy=energy, **rows)


def _batched_output(owner: Any, frames: Sequence[Atoms]) -> Any:
    from torch_geometric.data import Batch

    graphs, lattices, states = zip(
        *(owner._atoms2graph.get_graph(frame) for frame in frames), strict=True
    )
    extra = {}
    if owner.compute_charge:
        charges = [frame.get_initial_charges().sum() for frame in frames]
        extra["total_charge"] = torch.tensor(charges).to(lattices[0])
    return owner.potential(
        Batch.from_data_list(list(graphs)),
        torch.cat([lattice.reshape(1, 3, 3) for lattice in lattices]),
        torch.as_tensor(np.array(states)),
        **extra,
    )


def _layer(model: Any) -> tuple[str, _Layer]:
    """Return the kind of model and the place of its features."""
    for cls in type(model).__mro__:
        if cls.__name__ in _LAYERS and cls.__module__.startswith("matgl."):
            return cls.__name__, _LAYERS[cls.__name__]
    msg = (
        f"MatGL model must be one of {sorted(_LAYERS)} to have features of each atom, "
        f"got {type(model).__name__}; choose such a potential, or name the layer: "
        'uqcalc.tap(calculator, module="potential.model.<layer>")'
    )
    raise BackboneError(msg)


def _to_ase_unit(owner: Any) -> float:
    """Return the factor from the calculator's unit of stress to eV/Å³."""
    return float(units.GPa / owner.conversion_factor)


def _voigt(stress: np.ndarray) -> np.ndarray:
    if stress.shape == (6,):
        return stress
    six: np.ndarray = full_3x3_to_voigt_6_stress(stress)
    return six


def _detached(layers: Any) -> Any:
    if isinstance(layers, dict):
        return {name: _detached(value) for name, value in layers.items()}
    return layers.detach() if isinstance(layers, torch.Tensor) else layers


def _fingerprint(owner: Any, model: Any, kind: str) -> str:
    """Hash the weights, and the scale, shift and atomic references of the energy."""
    potential = owner.potential
    constants: list[object] = [
        kind,
        tuple(owner.element_types),
        round(float(model.cutoff), 6),
        bool(potential.calc_repuls),
    ]
    if owner.state_attr is not None:  # selects one of several levels of theory
        constants.append(np.asarray(owner.state_attr).tolist())
    values = [*potential.parameters(), *potential.buffers()]
    floats = [value for value in values if value.is_floating_point()]
    return fingerprint("matgl", floats, constants)
