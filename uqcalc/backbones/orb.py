"""Orb: node features, direct and conservative forces from one forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final

import torch
from ase import Atoms

from uqcalc.backbones.base import Backbone, one_at_a_time
from uqcalc.backbones.batching import once_each
from uqcalc.backbones.differentiable import Differentiable, Trainable, strained
from uqcalc.backbones.fingerprint import fingerprint
from uqcalc.backbones.hooks import listen_to_forward
from uqcalc.backbones.orb_release import orb_batch, orb_graph, orb_reach
from uqcalc.backbones.prediction import Capture, Prediction, geometry
from uqcalc.backbones.structure import check_pbc_alike
from uqcalc.chargespin import plain_numbers
from uqcalc.errors import BackboneError


def with_gradient(
    original: Callable[..., dict[str, torch.Tensor]],
    energy: str,
    captured: Capture,
    batch: Any,
    **options: Any,
) -> dict[str, torch.Tensor]:
    """Run the forward pass with differentiable edge vectors, then a backward pass."""
    with torch.enable_grad():
        vectors, displacement, _ = batch.compute_differentiable_edge_vectors(
            use_stress_displacement=True, use_rotation=False
        )
        batch.edge_features["vectors"] = vectors
        output = original(batch, **options)
        inputs = [batch.node_features["positions"], displacement]
        gradient, virial = torch.autograd.grad(output[energy].sum(), inputs)
    volumes = torch.linalg.det(batch.system_features["cell"]).abs().view(-1, 1, 1)
    stress = torch.where(volumes > 0, virial / volumes, torch.zeros_like(virial))
    captured.more["conservative_forces"] = -gradient
    captured.more["conservative_stress"] = _voigt(stress)
    return {name: value.detach() for name, value in output.items()}


def _voigt(stress: torch.Tensor) -> torch.Tensor:
    """Return (..., 6) from symmetric (..., 3, 3): xx, yy, zz, yz, xz, xy."""
    rows, columns = (0, 1, 2, 1, 0, 0), (0, 1, 2, 2, 2, 1)
    return stress[..., rows, columns]


def differentiable_pass(
    regressor: Any,
    graph: Any,
    given: torch.Tensor,
    heads: tuple[str, str | None],
) -> Differentiable:
    """Evaluate one graph of atoms and keep the graph of operations.

    ``given`` are the positions, (atoms, 3) in Å; the graph holds them wrapped into the
    cell. ``heads`` are the names of the energy head and of the force head (or None).
    """
    energy_head, force_head = heads
    wrapped = graph.node_features["positions"]
    positions = given.to(wrapped).requires_grad_()
    strain = torch.zeros(3, 3).to(wrapped).requires_grad_()
    offset = (wrapped - positions).detach()
    cell = graph.system_features["cell"]
    moved, stretched = strained(positions + offset, strain, cell)
    shifts = graph.edge_features["unit_shifts"] @ stretched.squeeze(0)
    graph.node_features["positions"] = moved
    graph.system_features["cell"] = stretched
    vectors = moved[graph.receivers] - moved[graph.senders] + shifts
    graph.edge_features["vectors"] = vectors
    # no compiled call: compiled graphs cannot be differentiated twice
    features = regressor.model.forward(graph)["node_features"]
    energy = regressor.heads[energy_head].predict(features, graph).sum()
    direct = None
    if force_head is not None:
        direct = regressor.heads[force_head].predict(features, graph)
    if regressor.pair_repulsion:
        repulsion = regressor.pair_repulsion_fn(graph)
        energy = energy + repulsion["energy"].sum()
        if direct is not None and "forces" in repulsion:
            direct = direct + repulsion["forces"]
    # by strained positions: these are the forces of the strained structure
    (gradient,) = torch.autograd.grad(energy, [moved], create_graph=True)
    return Differentiable(positions, strain, energy, features, -gradient, direct)


@final
class OrbBackbone(Backbone):
    """An ``ORBCalculator``: direct or conservative, v2 or v3, compiled or not.

    Features are the node features that the energy head reads, (atoms, latent). Orb is
    not invariant to rotation: features, and so the output of a probe, change when a
    structure is rotated. `uqcalc.RotationAverage` reduces this at n times the cost.

    A direct model gives conservative forces and stress on demand: its edge vectors are
    made differentiable before the forward pass, and one backward pass follows. A
    conservative model with a direct head always gives both.
    """

    name = "orb"
    perturbable = (
        "model.gnn_stacks.*._node_mlp.mlp.NN-0",
        "model.gnn_stacks.*._edge_mlp.mlp.NN-0",
    )
    perturbable_atoms = perturbable[:1]
    by_autograd = True
    invariant_features = False

    def __init__(self, calculator: Any, model_calculator: Any | None = None) -> None:
        owner = calculator if model_calculator is None else model_calculator
        # in a D3SumModel, only the regressor is tapped
        self._regressor: Any = getattr(owner.model, "xc_model", owner.model)
        self._energy = _head(self._regressor, "energy") or "energy"
        self._direct = _head(self._regressor, "forces")
        self._stress = _head(self._regressor, "stress")
        self._confidence = _head(self._regressor, "confidence")
        self.projected = _projection(self._regressor, self._direct)
        gradient = hasattr(self._regressor, "grad_forces_name")
        self.conservative = bool(owner.conservative)
        if not self.conservative and self._direct is None:
            msg = (
                "Orb calculator must give forces, got conservative=False for a model "
                "without a head for them; leave conservative at its default"
            )
            raise BackboneError(msg)
        super().__init__(
            calculator,
            owner,
            feature_dim=_feature_dim(self._regressor, self._energy),
            fingerprint=_fingerprint(owner, self._regressor),
        )
        self.cutoff, _ = orb_reach(owner)
        conditioned = getattr(self._regressor.model, "conditioner", None) is not None
        self.reads = frozenset({"charge", "spin"} if conditioned else ())
        self.parses = frozenset({"charge", "spin"})
        self.provides |= {"conservative_forces"}
        if self._direct is not None:
            self.provides |= {"direct_forces"}
        if self._confidence is not None:
            self.provides |= {"expected_errors"}
        if "stress" in self.provides:
            self.provides |= {"conservative_stress"}
            if self._stress is not None:
                self.provides |= {"direct_stress"}
        self._by_gradient = gradient
        if not gradient:
            extra = {"conservative_forces", "conservative_stress"}
            self.on_demand = frozenset(extra & self.provides)

    @property
    def network(self) -> torch.nn.Module:
        """The regressor: the model with its heads."""
        regressor: torch.nn.Module = self._regressor
        return regressor

    @contextmanager
    def armed(self) -> Iterator[Capture]:
        """Listen to the input of the energy head and to the prediction."""
        with self._listening(differentiably=False) as captured:
            yield captured

    @contextmanager
    def armed_for(self, extras: frozenset[str]) -> Iterator[Capture]:
        """Make the forward pass differentiable if there are ``extras``."""
        with self._listening(differentiably=bool(extras)) as captured:
            yield captured

    @contextmanager
    def _listening(self, *, differentiably: bool) -> Iterator[Capture]:
        regressor = self._regressor
        original: Callable[..., dict[str, torch.Tensor]] = regressor.predict

        with listen_to_forward(regressor.heads[self._energy]) as captured:

            def predict(batch: Any, **options: Any) -> dict[str, torch.Tensor]:
                if differentiably:
                    output = with_gradient(
                        original, self._energy, captured, batch, **options
                    )
                else:
                    output = original(batch, **options)
                captured.more.update(self._forces(output))
                return output

            regressor.predict = predict
            try:
                yield captured
            finally:
                del regressor.predict  # the method of the class is used again

    def _forces(self, output: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the model's own outputs, by name in a `Prediction`."""
        names = {"direct_forces": self._direct, "direct_stress": self._stress}
        if self._by_gradient:
            names["conservative_forces"] = self._regressor.grad_forces_name
            names["conservative_stress"] = self._regressor.grad_stress_name
        found = {}
        for name, key in names.items():
            if key is not None and key in output and name in self.provides:
                value = output[key].detach()
                found[name] = value.squeeze(0) if value.ndim > 2 else value
        if self._confidence is not None:
            shares = output[self._confidence].detach()  # (atoms, bins), sum 1
            edges = self._regressor.heads[self._confidence].bin_edges.to(shares)
            found["expected_errors"] = shares @ (edges[:-1] + edges[1:]).div(2)
        return found

    def _prediction(self, atoms: Atoms, captured: Capture) -> Prediction:
        for name in ("direct_stress", "conservative_stress"):
            if name in captured.more:
                captured.more[name] = captured.more[name].reshape(6)
                if not atoms.pbc.all():
                    del captured.more[name]
        prediction = super()._prediction(atoms, captured)
        return replace(prediction, projected=self.projected)

    def check_structure(self, atoms: Atoms) -> None:
        """Refuse films, wires, and charge or spin without the other one, too."""
        super().check_structure(atoms)
        check_pbc_alike(atoms, "Orb")
        given = {"charge", "spin"} & set(atoms.info)
        if len(given) == 1:
            msg = (
                "charge and spin must be given together for Orb, got only "
                f"{sorted(given)}; set both or neither in atoms.info"
            )
            raise BackboneError(msg)

    def prepared(self, atoms: Atoms) -> Atoms:
        """Return charge and spin as Python integers, which Orb requires."""
        return plain_numbers(atoms, self.parses)

    def extra_state(self, atoms: Atoms) -> dict[str, Any]:
        """Return charge and spin, which Orb's own cache does not compare."""
        return {key: atoms.info.get(key) for key in ("charge", "spin")}

    @one_at_a_time
    def predict_many(
        self, frames: Sequence[Atoms], wanted: Sequence[str] = ("energy", "forces")
    ) -> list[Prediction]:
        """Evaluate all frames in one native batch."""
        owner = self.model_calculator
        whole = self._regressor is owner.model
        alike = len({frozenset({"charge", "spin"} & set(f.info)) for f in frames}) == 1
        if not whole or not alike or not self.may_batch(frames, wanted):
            return super().predict_many(frames, wanted)
        batch = orb_batch(self._graphs(frames))
        with self.armed_for(self.on_demand & {*wanted}) as captured:
            output = self._regressor.predict(batch)
        self.passes += len(captured.features)
        by_gradient = self.conservative
        forces = self._regressor.grad_forces_name if by_gradient else self._direct
        own = (output[self._energy].detach(), output[forces].detach())
        return [
            replace(prediction, projected=self.projected)
            for prediction in _split(frames, own, captured)
        ]

    def _graphs(self, frames: Sequence[Atoms]) -> list[Any]:
        owner = self.model_calculator
        return once_each(frames, lambda frame: orb_graph(owner, self.prepared(frame)))

    @one_at_a_time
    def trainable(
        self, frames: Sequence[Atoms], *, copies: int = 1, stress: bool = False
    ) -> Trainable:
        """Evaluate copies of ``frames`` in one batch and keep the graph.

        The forces are those of the calculator: direct or conservative.
        """
        regressor = self._regressor
        batch = orb_batch(self._graphs(frames) * copies)
        before = regressor.training
        # of this module alone: its derivatives then keep their graph
        regressor.training = True
        try:
            output = regressor.predict(batch)
        finally:
            regressor.training = before
        gradient = self.conservative
        forces = regressor.grad_forces_name if gradient else self._direct
        name = regressor.grad_stress_name if gradient else self._stress
        stresses = _matrices(output[name]).view(copies, -1, 3, 3) if stress else None
        return Trainable(
            energies=output[self._energy].view(copies, -1),
            forces=output[forces].view(copies, -1, 3),
            stresses=stresses,
        )

    @one_at_a_time
    def differentiable(self, atoms: Atoms) -> Differentiable:
        """Evaluate ``atoms`` and keep the graph of both forces.

        Raises
        ------
        BackboneError
            If the structure cannot be evaluated, or the model adds Coulomb energies of
            predicted charges.
        """
        self.check_structure(atoms)
        if _charged(self._regressor):
            msg = (
                "Orb model must have no Coulomb term for gradients of a probe or an "
                "attack, got one with latent charges; choose an Orb v3 model"
            )
            raise BackboneError(msg)
        graph = differentiable_pass(
            self._regressor,
            orb_graph(self.model_calculator, self.prepared(atoms)),
            torch.as_tensor(atoms.positions),
            (self._energy, self._direct),
        )
        return replace(graph, projected=self.projected)


def _matrices(stresses: torch.Tensor) -> torch.Tensor:
    """Return (structures, 3, 3) from Voigt components (structures, 6)."""
    if stresses.shape[-1] != 6:
        return stresses.reshape(-1, 3, 3)
    order = [[0, 5, 4], [5, 1, 3], [4, 3, 2]]
    return stresses.reshape(-1, 6)[:, torch.tensor(order)]


def _head(regressor: Any, kind: str) -> str | None:
    """Return the head for ``kind``; its name may end in a level of theory."""
    names = [n for n in regressor.heads if n == kind or n.startswith(f"{kind}-")]
    if len(names) > 1 or (kind == "energy" and not names):
        msg = (
            f"Orb model must have one head for {kind}, got {names} among "
            f"{list(regressor.heads)}; choose a model of energies and forces"
        )
        raise BackboneError(msg)
    return names[0] if names else None


def _projection(regressor: Any, force_head: str | None) -> frozenset[str]:
    """Return the parts that the force head removes from its forces."""
    if force_head is None:
        return frozenset()
    head = regressor.heads[force_head]
    switches = {
        "net_force": head.remove_mean,
        "net_torque": head.remove_torque_for_nonpbc_systems,
    }
    return frozenset(name for name, on in switches.items() if on)


def _split(
    frames: Sequence[Atoms],
    own: tuple[torch.Tensor, torch.Tensor],
    captured: Capture,
) -> list[Prediction]:
    """Split a batch of (energies, forces) into one `Prediction` per frame."""
    sizes = [len(frame) for frame in frames]
    energies = own[0].reshape(-1).tolist()
    forces = own[1].split(sizes)
    features = captured.features[0].split(sizes)
    more: list[dict[str, Any]] = [{} for _ in frames]
    for name, given in captured.more.items():
        value = torch.as_tensor(given)
        per_atom = not name.endswith("stress")
        by_frame = value.split(sizes) if per_atom else value
        for entry, frame, rows in zip(more, frames, by_frame, strict=True):
            if per_atom or frame.pbc.all():
                entry[name] = rows
    predictions = []
    for frame, energy, rows, kept, extra in zip(
        frames, energies, forces, features, more, strict=True
    ):
        array = rows.cpu().numpy()
        predictions.append(
            Prediction(
                **geometry(frame),
                results={"energy": energy, "forces": array},
                energy=energy,
                forces=array,
                features=kept,
                **extra,
            )
        )
    return predictions


def _feature_dim(regressor: Any, energy: str) -> int:
    """Return the width of node features; with charges the energy head reads more."""
    head = regressor.heads["latent_charges" if _charged(regressor) else energy]
    first = next(m for m in head.modules() if isinstance(m, torch.nn.Linear))
    return int(first.in_features)


def _charged(regressor: Any) -> bool:
    """Return whether the energy also uses charges made from features (OrbMol)."""
    return "latent_charges" in regressor.heads


def _fingerprint(owner: Any, regressor: Any) -> str:
    """Hash the weights of the regressor and the settings of its graphs."""
    radius, neighbours = orb_reach(owner)
    constants = [round(radius, 6), neighbours]
    constants.append(int(owner.max_num_neighbors or neighbours))
    statistics = [
        value
        for name, value in regressor.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    ]
    weights = [*regressor.parameters(), *statistics]
    kind = "conservative" if owner.conservative else "direct"
    return fingerprint("orb", weights, [*constants, kind])
