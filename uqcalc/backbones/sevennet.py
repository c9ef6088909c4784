"""SevenNet: features are the input of the energy readout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, Capture, Prediction, one_at_a_time
from uqcalc.backbones.fingerprint import fingerprint
from uqcalc.backbones.hooks import listen_to_output
from uqcalc.backbones.passmemory import Costs
from uqcalc.backbones.prediction import geometry
from uqcalc.errors import BackboneError


@final
class SevenNetBackbone(Backbone):
    """A ``SevenNetCalculator``; features of shape (atoms, 64) for SevenNet-0.

    Vectors are the l = 1 features of the last interaction block that has any, 64
    channels in SevenNet-0. The calculator gives molecules a stress, too, which has no
    meaning without a volume.
    """

    name = "sevennet"
    by_autograd = True
    batches_stress = True

    def __init__(self, calculator: Any, model_calculator: Any | None = None) -> None:
        owner = calculator if model_calculator is None else model_calculator
        super().__init__(
            calculator,
            owner,
            feature_dim=_readout(owner.model).irreps_in.dim,
            fingerprint=_fingerprint(owner),
            elements=frozenset(owner.type_map),
        )
        self.cutoff = float(owner.cutoff)
        self.reads = frozenset()
        self.costs = Costs()
        self._vectors = _last_vectors(owner.model)
        if self._vectors is not None:
            self.provides |= {"vectors"}

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Listen to the model and its last block with vectors during one call."""
        model = self.model_calculator.model
        with listen_to_output(model, lambda output: output["x"]) as captured:
            if self._vectors is None:
                yield captured
                return
            block, columns = self._vectors
            with listen_to_output(block, lambda output: output["x"][:, columns]) as l1:
                yield captured
            if l1.features:
                captured.more["vectors"] = l1.features[-1].unflatten(1, (-1, 3))

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:  # noqa: ARG002
        """Return an empty dict: SevenNet reads only the geometry."""
        return {}

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate all frames in one native batch."""
        owner = self.model_calculator
        if not self.may_batch(frames, wanted):
            return super().predict_many(frames, wanted)
        with self.armed() as captured:
            output = _batched_output(owner, frames)
        self.passes += len(captured.features)
        sizes = [len(frame) for frame in frames]
        rows = {
            "features": self.feature_rows(captured, sum(sizes)),
            "forces": output["inferred_force"].detach().cpu(),
            **captured.more,
        }
        energies = output["inferred_total_energy"].detach().cpu().tolist()
        # the order and the sign of SevenNetCalculator
        stresses = -output["inferred_stress"].detach().cpu()[:, [0, 1, 2, 4, 5, 3]]
        per_frame = zip(*(value.split(sizes) for value in rows.values()), strict=True)
        return [
            _prediction(
                frame,
                {"energy": energy, "stress": stress.numpy()},
                dict(zip(rows, own, strict=True)),
            )
            for frame, energy, stress, own in zip(
                frames, energies, stresses, per_frame, strict=True
            )
        ]


def _prediction(
    frame: Atoms, results: dict[str, Any], rows: dict[str, torch.Tensor]
) -> Prediction:
    forces, energy = rows["forces"].numpy(), results["energy"]
    return Prediction(
        **geometry(frame),
        results=results | {"forces": forces},
        energy=energy,
        forces=forces,
        conservative_forces=forces,
        features=rows["features"],
        vectors=rows.get("vectors"),
    )


def _batched_output(owner: Any, frames: Sequence[Atoms]) -> Any:
    from sevenn.atom_graph_data import AtomGraphData
    from sevenn.train.dataload import unlabeled_atoms_to_graph
    from torch_geometric.data import Batch

    graphs = [
        AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(frame, owner.cutoff))
        for frame in frames
    ]
    for graph in graphs:
        if owner.modal:
            graph["data_modality"] = owner.modal
    batch = Batch.from_data_list(graphs).to(owner.device)
    owner.model.set_is_batch_data(True)
    try:
        return owner.model(batch)
    finally:
        owner.model.set_is_batch_data(False)


def _readout(model: Any) -> Any:
    """Return the module that computes the energy of each atom from features."""
    for part in model:
        if getattr(part, "key_output", None) == "scaled_atomic_energy":
            return part
    msg = (
        "SevenNet model must have a layer that gives scaled_atomic_energy, got "
        f"{[name for name, _ in model.named_children()]}; use a released model"
    )
    raise BackboneError(msg)


def _last_vectors(model: Any) -> tuple[torch.nn.Module, slice] | None:
    """Return the last block with l = 1 features, and the columns of these features.

    In models without parity all features are even; otherwise only odd ones are vectors.
    """
    [(_, (_, parity))] = model.edge_embedding.spherical.irreps_in
    for name, block in reversed([*model.named_children()]):
        if not name.endswith("equivariant_gate"):
            continue
        irreps = block.gate.irreps_out
        for (_, (degree, p)), columns in zip(irreps, irreps.slices(), strict=True):
            if (degree, p) == (1, parity):
                return block, columns
    return None


def _fingerprint(owner: Any) -> str:
    constants: list[object] = [sorted(owner.type_map.items()), float(owner.cutoff)]
    if owner.modal:
        constants.append(owner.modal)
    return fingerprint("sevennet", owner.model.parameters(), constants)
