"""MACE: features are the invariant part of the last product block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import numpy as np
import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, Capture, Prediction, one_at_a_time
from uqcalc.backbones.batching import once_each
from uqcalc.backbones.differentiable import Differentiable, Trainable, strained
from uqcalc.backbones.fingerprint import CONVERTED, fingerprint
from uqcalc.backbones.passmemory import Costs
from uqcalc.backbones.prediction import NO_FORCES, geometry
from uqcalc.chargespin import NAMES
from uqcalc.errors import BackboneError


def model_inputs(
    owner: Any, frames: Sequence[Atoms], copies: int = 1
) -> dict[str, torch.Tensor]:
    """Return the input of a model for ``copies`` of several frames in one batch."""
    from mace import data
    from mace.tools import torch_geometric, torch_tools

    keys = data.KeySpecification(
        info_keys=owner.info_keys,
        arrays_keys=owner.arrays_keys | {owner.charges_key: "charges"},
    )

    def graph(frame: Atoms) -> Any:
        return data.AtomicData.from_config(
            data.config_from_atoms(frame, key_specification=keys, head_name=owner.head),
            z_table=owner.z_table,
            cutoff=owner.r_max,
            heads=owner.available_heads,
        )

    with torch_tools.default_dtype(owner.default_dtype):
        graphs = once_each(frames, graph)
    batch = torch_geometric.Batch.from_data_list(graphs * copies).to(owner.device)
    inputs: dict[str, torch.Tensor] = batch.to_dict()
    return inputs


def split_predictions(
    frames: Sequence[Atoms],
    energies: np.ndarray,
    members: np.ndarray | None,
    rows_of: tuple[torch.Tensor, torch.Tensor | np.ndarray | None],
) -> list[Prediction]:
    """Split a batch into one `Prediction` per frame.

    ``energies`` are (members, frames) in eV, the forces ``members`` (members, atoms, 3)
    in eV/Å, or None without forces; ``rows_of`` are the features and the vectors (or
    None).
    """
    several = len(energies) > 1
    energy = energies.mean(0)
    features, vectors = rows_of
    sizes = [len(frame) for frame in frames]
    starts = np.cumsum([0, *sizes[:-1]])
    predictions = []
    for index, (frame, start, size) in enumerate(
        zip(frames, starts, sizes, strict=True)
    ):
        rows = slice(int(start), int(start) + size)
        results: dict[str, Any] = {"energy": float(energy[index])}
        of_members = None if members is None else members[:, rows]
        if of_members is not None:
            results["forces"] = of_members.mean(0)
        predictions.append(
            Prediction(
                **geometry(frame),
                results=results,
                energy=float(energy[index]),
                forces=results.get("forces", NO_FORCES),
                conservative_forces=results.get("forces"),
                features=features[rows],
                committee_forces=of_members if several else None,
                committee_energies=energies[:, index] if several else None,
                vectors=None if vectors is None else torch.as_tensor(vectors)[rows],
            )
        )
    return predictions


class _Listener:
    """Replaces a model during one call, and passes its output to ``sink``, too.

    This works where hooks do not: TorchScript refuses hooks, and compiled or converted
    models skip hooks that are registered late.
    """

    def __init__(
        self, model: torch.nn.Module, sink: Callable[[dict[str, Any]], None]
    ) -> None:
        self._model = model
        self._sink = sink

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        output: dict[str, Any] = self._model(*args, **kwargs)
        self._sink(output)
        return output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _last_irreps(model: torch.nn.Module) -> list[tuple[int, int, int]]:
    """Return (multiplicity, l, parity) of the last product block's output."""
    blocks = list(model.products.children())  # type: ignore[union-attr]
    irreps: Any = blocks[-1].linear.irreps_out
    # e3nn and cuequivariance irreps have attributes l and p; scripted are tuples.
    return [
        (int(mul), *((ir.l, ir.p) if hasattr(ir, "l") else ir)) for mul, ir in irreps
    ]


@final
class MACEBackbone(Backbone):
    """A ``MACECalculator`` with one model or a committee.

    Features are the scalars of the last product block, shape (atoms, multiplicity), as
    PROBE uses them (arXiv:2605.00640, section 4.4); of a committee, the first member's.
    """

    name = "mace"
    by_autograd = True
    changes_process = True  # it sets torch's default dtype for a while
    perturbable = ("interactions.*.linear",)

    def __init__(self, calculator: Any, model_calculator: Any | None = None) -> None:
        owner = calculator if model_calculator is None else model_calculator
        if owner.model_type not in {"MACE", "EnergyDipoleMACE", "PolarMACE"}:
            msg = (
                "MACE model_type must be one that predicts an energy, got "
                f"{owner.model_type!r}; wrap a MACE energy model"
            )
            raise BackboneError(msg)
        irreps = _last_irreps(owner.models[0])
        if irreps[0][1:] != (0, 1):
            msg = f"last product block must start with 0e scalars, got {irreps}"
            raise BackboneError(msg)
        self._width = sum(mul * (2 * degree + 1) for mul, degree, _ in irreps)
        elements = frozenset(int(z) for z in owner.z_table.zs)
        super().__init__(
            calculator,
            owner,
            feature_dim=irreps[0][0],
            fingerprint=_fingerprint(owner),
            elements=elements,
        )
        self.cutoff = float(owner.r_max)
        self.costs = Costs(bins=5.0)
        self.passes_per_geometry = len(owner.models)
        self.reads = _charge_and_spin(owner)
        self.parses = frozenset(owner.info_keys.values()) & {*NAMES}
        if len(owner.models) > 1:
            self.provides |= {"committee_forces", "committee_energies"}
            if "stress" in self.provides:
                self.provides |= {"committee_stresses"}
        if _has_vectors(owner):
            self.provides |= {"vectors"}
        self.on_demand = self.provides & {"vectors", "committee_stresses"}

    @property
    def network(self) -> torch.nn.Module | None:
        """The single model, neither compiled nor converted; None if there is none."""
        owner = self.model_calculator
        model: torch.nn.Module = owner.models[0]
        plain = not (owner.use_compile or isinstance(model, torch.jit.ScriptModule))
        return model if plain and len(owner.models) == 1 else None

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Replace the models by listeners during one call."""
        captured = Capture([], [])
        models = self.model_calculator.models

        def sink(output: dict[str, Any]) -> None:
            captured.features.append(self.scalars(output))

        self.model_calculator.models = [_Listener(model, sink) for model in models]
        try:
            yield captured
        finally:
            self.model_calculator.models = models

    @contextmanager
    def armed_for(self, extras: frozenset[str]) -> Iterator[Capture]:
        """Record the last messages, too, if vectors are requested."""
        with self.armed() as captured:
            if "vectors" not in extras:
                yield captured
                return
            # the models are listeners now; they pass on the model's attributes
            with _last_messages(self.model_calculator.models[0]) as messages:
                yield captured
            if messages:  # empty if a sum used its cache: there was no pass
                captured.more["vectors"] = messages[0].detach()

    def scalars(self, output: Mapping[str, Any]) -> torch.Tensor:
        """Return the features, (atoms, dim), from the output of a model."""
        last: torch.Tensor = output["node_feats"].detach()[:, -self._width :]
        return last[:, : self.feature_dim]

    def feature_rows(self, captured: Capture, atoms: int) -> torch.Tensor:
        """Remove the rows that compiled models append as padding."""
        captured.features[:] = [rows[:atoms] for rows in captured.features]
        return super().feature_rows(captured, atoms)

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:
        """Return what MACE reads of ``info`` and arrays: charge, spin and field."""
        owner = self.model_calculator
        state = {key: atoms.info.get(key) for key in owner.info_keys.values()}
        for key in (*owner.arrays_keys.values(), "charges"):
            state[f"array {key}"] = atoms.arrays.get(key)
        return state

    @one_at_a_time
    def differentiable(self, atoms: Atoms) -> Differentiable:
        """Evaluate ``atoms`` and keep the graph (of a committee: the first member).

        Raises
        ------
        BackboneError
            If the structure cannot be evaluated, or the model is compiled or converted.
        """
        self.check_structure(atoms)
        if "vectors" not in self.provides:
            msg = (
                "MACE model must be neither compiled nor converted for second "
                "derivatives, got a compiled or converted model; load it without "
                "compile_mode or enable_cueq"
            )
            raise BackboneError(msg)
        owner = self.model_calculator
        inputs = model_inputs(owner, [atoms])
        positions = inputs["positions"].detach().requires_grad_()
        strain = torch.zeros(3, 3).to(positions).requires_grad_()
        inputs["positions"], inputs["shifts"] = strained(
            positions, strain, inputs["shifts"]
        )
        with _last_messages(owner.models[0]) as messages:
            output = owner.models[0](inputs, training=True, compute_force=False)
        energy = output["energy"].sum() * owner.energy_units_to_eV
        last = output["node_feats"][:, -self._width :]
        # by strained positions: these are the forces of the strained structure
        (gradient,) = torch.autograd.grad(
            energy, [inputs["positions"]], create_graph=True
        )
        return Differentiable(
            positions=positions,
            strain=strain,
            energy=energy,
            features=last[:, : self.feature_dim],
            conservative_forces=-gradient / owner.length_units_to_A,
            vectors=messages[-1],
        )

    @property
    def skips_forces(self) -> bool:
        """Not for compiled models, sums and converted models without hooks."""
        owner = self.model_calculator
        return self.calculator is owner and not owner.use_compile

    @one_at_a_time
    def trainable(
        self, frames: Sequence[Atoms], *, copies: int = 1, stress: bool = False
    ) -> Trainable:
        """Evaluate copies of ``frames`` in one batch of the first model."""
        owner = self.model_calculator
        inputs = model_inputs(owner, frames, copies)
        output = owner.models[0](inputs, training=True, compute_stress=stress)
        scale, length = owner.energy_units_to_eV, owner.length_units_to_A
        return Trainable(
            energies=(output["energy"] * scale).view(copies, -1),
            forces=(output["forces"] * (scale / length)).view(copies, -1, 3),
            stresses=(output["stress"] * (scale / length**3)).view(copies, -1, 3, 3)
            if stress
            else None,
        )

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate all frames in one native batch (one pass of each model).

        Compiled models and sums evaluate the frames one by one. So do all models if
        committee stresses are requested, because batches compute no stress.
        """
        owner = self.model_calculator
        alone = owner.use_compile or "committee_stresses" in wanted
        forces = "forces" in wanted or not self.skips_forces
        if forces and (alone or not self.may_batch(frames, wanted)):
            return super().predict_many(frames, wanted)
        with (
            self.armed_for(self.on_demand & {*wanted}) as captured,
            torch.set_grad_enabled(forces),
        ):
            outputs = [
                model(
                    model_inputs(owner, frames),
                    compute_force=forces,
                    compute_stress=False,
                )
                for model in owner.models
            ]
        self.passes += len(outputs)
        energies = torch.stack([out["energy"].detach() for out in outputs])
        scale = owner.energy_units_to_eV
        energy = (energies * scale).cpu().numpy()
        members = None
        if forces:
            found = torch.stack([out["forces"].detach() for out in outputs])
            members = (found * (scale / owner.length_units_to_A)).cpu().numpy()
        features = self.scalars(outputs[0])
        vectors = captured.more.get("vectors")
        return split_predictions(frames, energy, members, (features, vectors))


@contextmanager
def _last_messages(model: Any) -> Iterator[list[torch.Tensor]]:
    """Collect the l = 1 part of the last messages, (atoms, channels, 3) per pass."""
    found: list[torch.Tensor] = []

    def keep(_module: Any, _args: Any, output: Any) -> None:
        found.append(output[0][..., 1:4])

    handle = list(model.interactions.children())[-1].register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


def _fingerprint(owner: Any) -> str:
    """Hash all weights, with a separate hash for the symmetric contractions.

    cuequivariance stores the contractions in another basis, all other weights only in
    another shape. So a converted model and its original have the same first hash.
    """
    constants: list[object] = [
        tuple(int(z) for z in owner.z_table.zs),
        round(float(owner.r_max), 6),
        len(owner.models),
    ]
    if len(owner.available_heads) > 1:
        constants.append(owner.head)
    core: list[torch.Tensor] = []
    contractions: list[torch.Tensor] = []
    for model in owner.models:
        for name, value in model.named_parameters():
            apart = "symmetric_contractions" in name
            (contractions if apart else core).append(value)
        core.extend(
            value
            for name, value in model.named_buffers()
            if name.endswith(("atomic_energies", "scale_shift.scale", ".shift"))
        )
    rest = CONVERTED if _is_converted(owner) else fingerprint("", contractions)[1:9]
    return f"{fingerprint('mace', core, constants)}-{rest}"


def _charge_and_spin(owner: Any) -> frozenset[str]:
    """Return the keys of ``info`` from which this model reads charge and spin.

    The calculator passes both to every model, but only some models use them.
    """
    names = {"total_charge", "total_spin"}
    if owner.model_type != "PolarMACE":
        names &= set(getattr(owner.models[0], "embedding_specs", None) or ())
    keys = owner.info_keys
    return frozenset(keys[name] for name in names if name in keys)


def _has_vectors(owner: Any) -> bool:
    """Return whether a hook gets the last messages, with l = 1 in the usual place.

    Compiled and scripted models skip hooks; converted models have another layout.
    """
    model = owner.models[0]
    if owner.use_compile or isinstance(model, torch.jit.ScriptModule):
        return False
    if _is_converted(owner) or not hasattr(model, "interactions"):
        return False
    target = list(model.interactions.children())[-1].target_irreps
    return target.lmax >= 1 and len({mul for mul, _ in target}) == 1


def _is_converted(owner: Any) -> bool:
    return any(
        type(part).__module__.startswith("cuequivariance")
        for model in owner.models
        for part in model.modules()
    )
