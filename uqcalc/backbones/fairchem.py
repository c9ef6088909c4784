"""fairchem (UMA, eSEN): features are the invariant part of the node embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, final

import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, Capture, Prediction, one_at_a_time
from uqcalc.backbones.batching import once_each
from uqcalc.backbones.fingerprint import CONVERTED, fingerprint
from uqcalc.backbones.hooks import listen_to_output
from uqcalc.backbones.passmemory import Costs
from uqcalc.backbones.prediction import geometry
from uqcalc.errors import BackboneError


_READ = ("charge", "spin")
# Parts of a model whose weights change when the experts are merged, or when another
# execution mode stores them in blocks.
_CONVERTIBLE = ("so2_conv", "routing_mlp", "composition_embedding", "output_heads")


@final
class FAIRChemBackbone(Backbone):
    """A ``FAIRChemCalculator`` of fairchem-core 2 around a UMA or an eSEN model.

    Features are the l = 0 part of ``node_embedding``, from which the energy head
    computes the energy of each atom: (atoms, channels). Vectors are its l = 1 part.

    A model with direct forces gives conservative forces on demand (and a conservative
    stress, if it has a direct one): positions and cell are made differentiable before
    the forward pass, and one backward pass follows.

    fairchem may replace its model: it merges the experts of a UMA in the first pass,
    and loads the unmerged model again when the composition, charge or spin changes. The
    tap is set at each pass on the model that runs then.

    Charge and spin come from ``atoms.info``. Without them fairchem writes its defaults
    (charge 0; spin 1 for the task "omol", else 0) into the user's ``info``; here, a
    copy of the structure gets them.
    """

    name = "fairchem"
    by_autograd = True
    batches_stress = True
    changes_process = True  # a pass sets the precision of matrix products for a while

    def __init__(self, calculator: Any, model_calculator: Any | None = None) -> None:
        owner = calculator if model_calculator is None else model_calculator
        _check(owner)
        network = owner.predictor.model.module
        embedder = network.backbone
        self.conservative = not embedder.regress_config.direct_forces
        super().__init__(
            calculator,
            owner,
            feature_dim=int(embedder.sphere_channels),
            fingerprint=_fingerprint(owner),
            elements=frozenset(range(1, int(embedder.max_num_elements))),
        )
        self.cutoff = float(embedder.cutoff)
        self.reads = self.parses = frozenset(_READ)
        self.costs = Costs()
        if embedder.lmax > 0:
            self.provides |= {"vectors"}
        if not self.conservative:
            extra = {"conservative_forces"}
            self.provides |= {"direct_forces"}
            if "stress" in self.provides:
                extra |= {"conservative_stress"}
                self.provides |= {"direct_stress"}
            self.provides |= extra
            self.on_demand = frozenset(extra)

    @property
    def network(self) -> torch.nn.Module:
        """The model with its heads, as it is now (fairchem may replace it)."""
        network: torch.nn.Module = self.model_calculator.predictor.model.module
        return network

    def armed(self) -> AbstractContextManager[Capture]:
        """Listen to the model that runs in one call."""
        return self.armed_for(frozenset())

    @contextmanager
    def armed_for(self, extras: frozenset[str]) -> Iterator[Capture]:
        """Make the forward pass differentiable if there are ``extras``."""
        captured = Capture([], [])
        owner = self.model_calculator
        predictor = owner.predictor
        original: Callable[..., dict[str, torch.Tensor]] = predictor._run_inference

        def run(data: Any, undo: bool) -> dict[str, torch.Tensor]:  # noqa: FBT001
            with _embeddings(predictor, owner.task_name) as found:
                if extras:
                    output = _with_gradient(owner, data, captured, undo=undo)
                else:
                    output = original(data, undo)
            for embedding in found.features:  # (atoms, (lmax + 1)^2, channels)
                captured.features.append(embedding[:, 0].contiguous())
                if "vectors" in self.provides:
                    vectors = embedding[:, 1:4].transpose(1, 2).contiguous()
                    captured.more["vectors"] = vectors
            return output

        # into the dictionary: torchtnt checks what is set as an attribute
        vars(predictor)["_run_inference"] = run
        try:
            yield captured
        finally:
            del vars(predictor)["_run_inference"]  # the class's method is used again

    def check_structure(self, atoms: Atoms) -> None:
        """Refuse a lone atom, too, if fairchem reads its energy from a table."""
        super().check_structure(atoms)
        lone = len(atoms) == 1 and not atoms.pbc.any()
        if lone and not self.network.supports_single_atoms:
            msg = (
                "structure must have at least two atoms or a periodic cell for this "
                f"{self.name} model, got one atom: fairchem takes its energy from a "
                "table, and no descriptors exist; leave it out"
            )
            raise BackboneError(msg)

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:
        """Return charge and spin."""
        return {key: atoms.info.get(key) for key in _READ}

    def prepared(self, atoms: Atoms) -> Atoms:
        """Return a copy with charge and spin, as integers, where fairchem sets them."""
        from fairchem.core.units.mlip_unit.api import inference

        molecules = self.model_calculator.task_name == inference.UMATask.OMOL.value
        spin = inference.DEFAULT_SPIN_OMOL if molecules else inference.DEFAULT_SPIN
        copy: Atoms = atoms.copy()
        for key, usual in zip(_READ, (inference.DEFAULT_CHARGE, spin), strict=True):
            given = atoms.info.get(key)
            copy.info[key] = usual if given is None else int(given)
        return copy

    def _prediction(self, atoms: Atoms, captured: Capture) -> Prediction:
        own = self.model_calculator.results
        if not self.conservative:
            captured.more["direct_forces"] = own["forces"]
            stresses = captured.more.pop("conservative_stress", None)
            if atoms.pbc.all() and "direct_stress" in self.provides:
                captured.more["direct_stress"] = own["stress"]
                if stresses is not None:
                    captured.more["conservative_stress"] = stresses[0]
        return super()._prediction(atoms, captured)

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate all frames in one native batch.

        With merged experts the frames are evaluated one by one: for a batch of several
        compositions fairchem would drop the merged model.
        """
        owner = self.model_calculator
        merged = owner.predictor.inference_settings.merge_mole
        if merged or not self.may_batch(frames, wanted):
            return super().predict_many(frames, wanted)
        from fairchem.core.datasets.atomic_data import atomicdata_list_to_batch

        data = once_each(frames, lambda frame: owner.a2g(self._checked(frame)))
        with self.armed_for(self.on_demand & {*wanted}) as captured:
            output = owner.predictor.predict(atomicdata_list_to_batch(data))
        self.passes += len(captured.features)
        return self._split(frames, output, captured)

    def _checked(self, atoms: Atoms) -> Atoms:
        """Return the prepared structure, after fairchem's own checks of it."""
        owner, given = self.model_calculator, self.prepared(atoms)
        owner.predictor.validate_atoms_data(given, owner.task_name)
        return given

    def _split(
        self, frames: Sequence[Atoms], output: dict[str, Any], captured: Capture
    ) -> list[Prediction]:
        """Split a batch into one `Prediction` for each frame."""
        sizes = [len(frame) for frame in frames]
        kept = {name: value.detach().cpu() for name, value in output.items()}
        rows = {"features": self.feature_rows(captured, sum(sizes)), **captured.more}
        strained = rows.pop("conservative_stress", None)
        stresses = (
            _voigt(kept["stress"].reshape(-1, 3, 3)) if "stress" in kept else None
        )
        predictions = []
        forces = kept["forces"].split(sizes)
        split = {name: torch.as_tensor(r).split(sizes) for name, r in rows.items()}
        for index, frame in enumerate(frames):
            own = forces[index].numpy()
            energy = float(kept["energy"][index])
            results: dict[str, Any] = {"energy": energy, "forces": own}
            more: dict[str, Any] = {name: r[index] for name, r in split.items()}
            more["conservative_forces" if self.conservative else "direct_forces"] = own
            if stresses is not None:
                results["stress"] = stresses[index].numpy()
            if "direct_stress" in self.provides and frame.pbc.all():
                more["direct_stress"] = results["stress"]
                if strained is not None:
                    more["conservative_stress"] = strained[index]
            predictions.append(
                Prediction(
                    **geometry(frame),
                    results=results,
                    energy=energy,
                    forces=own,
                    **more,
                )
            )
        return predictions


@contextmanager
def _embeddings(predictor: Any, task: str) -> Iterator[Capture]:
    """Record the node embeddings of the next pass of the present model.

    A compiled model runs no hooks of its layers. There, the embedding that fairchem's
    energy head returns with the energy is read.
    """
    if not hasattr(predictor.model, "_orig_mod"):
        network = predictor.model.module
        with listen_to_output(network.backbone, lambda o: o["node_embedding"]) as found:
            yield found
        return
    found = Capture([], [])
    original = predictor._process_outputs

    def process(data: Any, output: dict[str, Any], undo: bool) -> dict[str, Any]:  # noqa: FBT001
        found.features.extend(_returned(output, task))
        processed: dict[str, Any] = original(data, output, undo)
        return processed

    vars(predictor)["_process_outputs"] = process
    try:
        yield found
    finally:
        del vars(predictor)["_process_outputs"]


def _returned(output: dict[str, Any], task: str) -> list[torch.Tensor]:
    """Return the embeddings that the heads of a model return: one, or none."""
    flat = dict(output)
    for value in output.values():
        flat |= value if isinstance(value, dict) else {}
    for name in (f"{task}_embeddings", "embeddings"):
        value = flat.get(name)
        rows = value.get("embeddings") if isinstance(value, dict) else value
        if isinstance(rows, torch.Tensor):
            return [rows.detach()]
    return []


def _with_gradient(
    owner: Any, data: Any, captured: Capture, *, undo: bool
) -> dict[str, torch.Tensor]:
    """Run the pass of a direct model with a graph, then a backward pass.

    The stress is the derivative of the energy by a symmetric strain of positions and
    cell, over the volume.
    """
    from fairchem.core.units.mlip_unit.utils import tf32_context_manager

    predictor = owner.predictor
    tasks = predictor.dataset_to_tasks[owner.task_name]
    [energy] = [task.name for task in tasks if task.property == "energy"]
    with torch.enable_grad(), tf32_context_manager(predictor.inference_settings.tf32):
        inputs = [data[key].requires_grad_() for key in ("pos", "cell")]
        given = predictor._process_outputs(data, predictor.model(data), undo)
        total = given[energy].sum()
        if total.requires_grad:  # False for an atom without neighbours
            by_place, by_cell = torch.autograd.grad(
                total, inputs, materialize_grads=True
            )
        else:
            by_place, by_cell = (torch.zeros_like(value) for value in inputs)
    places, cells = (value.detach() for value in inputs)
    virials = cells.mT @ by_cell
    virials.index_add_(0, data["batch"], places[:, :, None] * by_place[:, None, :])
    volumes = torch.linalg.det(cells).abs().view(-1, 1, 1)
    captured.more["conservative_forces"] = -by_place
    if any(task.property == "stress" for task in tasks):
        stresses = (virials + virials.mT) / (2 * volumes)
        captured.more["conservative_stress"] = _voigt(stresses)
    return {name: value.detach() for name, value in given.items()}


def _voigt(stresses: torch.Tensor) -> torch.Tensor:
    """Return (structures, 6) from symmetric (structures, 3, 3), in ASE's order."""
    rows, columns = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
    return stresses[..., rows, columns]


def _check(owner: Any) -> None:
    """Raise an error for a calculator that cannot be tapped."""
    predictor = owner.predictor
    if not (hasattr(predictor, "model") and hasattr(predictor, "_run_inference")):
        msg = (
            "fairchem calculator must run its model in this process to be tapped, got "
            f"a {type(predictor).__name__}; load it with workers=1"
        )
        raise BackboneError(msg)
    if predictor.inference_settings.nitro:
        msg = (
            "fairchem calculator must not run UMA Nitro to be tapped, whose kernels "
            'return no descriptors; load it with inference_settings="multigpu" '
            '(compiled) or "batch"'
        )
        raise BackboneError(msg)
    embedder = predictor.model.module.backbone
    known = ("sphere_channels", "lmax", "max_num_elements", "cutoff", "regress_config")
    if not all(hasattr(embedder, name) for name in known):
        msg = (
            "fairchem model must be a UMA or an eSEN to have an invariant embedding of "
            f"each atom, got {type(embedder).__name__}; choose such a model, or name "
            'the layer: uqcalc.tap(calculator, module="predictor.model.module...")'
        )
        raise BackboneError(msg)
    if "forces" not in owner.implemented_properties:
        task = owner.task_name
        msg = (
            f"fairchem model must give forces for the task {task!r}, got "
            f"{owner.implemented_properties}; choose another task, or load it with "
            f"InferenceSettings(predict_untrained_forces={{{task!r}}})"
        )
        raise BackboneError(msg)


def _fingerprint(owner: Any) -> str:
    """Hash the weights; those that fairchem may store in another form separately."""
    predictor = owner.predictor
    network, settings = predictor.model.module, predictor.inference_settings
    embedder = network.backbone
    constants = [round(float(embedder.cutoff), 6), int(embedder.max_neighbors)]
    constants.append(owner.task_name)
    kept: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    for name, value in network.named_parameters():
        (others if any(part in name for part in _CONVERTIBLE) else kept).append(value)
    core = fingerprint("fairchem", kept, constants)
    ordinary = settings.execution_mode in (None, "general")
    if predictor.lazy_model_intialized and (settings.merge_mole or not ordinary):
        return f"{core}-{CONVERTED}"
    rest = fingerprint("fairchem", others).partition(":")[2]
    return f"{core}-{rest}"
