"""A small Orb for all-silica zeolites: direct forces and an energy, 274 k parameters.

    from small_orb.model import small_orb_calculator
    atoms.calc = small_orb_calculator()

What it was trained on and how good it is stands in README.md beside this file.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file


try:
    from orb_models.common.models.angular import SphericalHarmonics
    from orb_models.common.models.gns import MoleculeGNS
    from orb_models.common.models.rbf import BesselBasis
    from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter
    from orb_models.forcefield.inference.calculator import ORBCalculator
    from orb_models.forcefield.models.direct_regressor import DirectForcefieldRegressor
    from orb_models.forcefield.models.forcefield_heads import EnergyHead, ForceHead
except ModuleNotFoundError:  # orb-models 0.5, for Python 3.11
    from orb_models.forcefield.angular import SphericalHarmonics
    from orb_models.forcefield.atomic_system import SystemConfig
    from orb_models.forcefield.calculator import ORBCalculator
    from orb_models.forcefield.direct_regressor import DirectForcefieldRegressor
    from orb_models.forcefield.forcefield_heads import EnergyHead, ForceHead
    from orb_models.forcefield.gns import MoleculeGNS
    from orb_models.forcefield.rbf import BesselBasis

    ForcefieldAtomsAdapter = None

HERE = Path(__file__).parent
# 6 Å: Orb's cutoff function ends there, whatever the graph's radius
GRAPHS = {"radius": 6.0, "max_num_neighbors": 120}


def architecture(
    *, latent: int = 64, hidden: int = 128, steps: int = 3
) -> DirectForcefieldRegressor:
    """Return an untrained Orb v3 with direct forces, of this size."""
    heads = {
        "latent_dim": latent,
        "num_mlp_layers": 1,
        "mlp_hidden_dim": hidden,
        "activation": "silu",
        "online_normalisation": False,
    }
    graphs = {}
    if ForcefieldAtomsAdapter is None:
        graphs["system_config"] = SystemConfig(**GRAPHS)
    return DirectForcefieldRegressor(
        heads={"energy": EnergyHead(**heads), "forces": ForceHead(**heads)},
        model=MoleculeGNS(
            latent_dim=latent,
            num_message_passing_steps=steps,
            num_mlp_layers=1,
            mlp_hidden_dim=hidden,
            rbf_transform=BesselBasis(r_max=6.0, num_bases=8),
            angular_transform=SphericalHarmonics(
                lmax=3, normalize=True, normalization="component"
            ),
            outer_product_with_cutoff=True,
            use_embedding=True,
            interaction_params={"distance_cutoff": True, "attention_gate": "sigmoid"},
            node_feature_names=["feat"],
            edge_feature_names=["feat"],
            activation="silu",
            mlp_norm="rms_norm",
        ),
        pair_repulsion=True,
        **graphs,
    )


def small_orb(
    path: str | Path = HERE / "weights.safetensors",
) -> DirectForcefieldRegressor:
    """Return the trained model, frozen, in float32."""
    with safe_open(path, framework="pt") as file:
        size = json.loads(file.metadata()["architecture"])
    model = architecture(**size)
    model.load_state_dict(load_file(path))
    return model.eval().requires_grad_(requires_grad=False)


def small_orb_calculator(
    path: str | Path = HERE / "weights.safetensors",
) -> ORBCalculator:
    """Return the trained model as an ASE calculator, on the CPU."""
    if ForcefieldAtomsAdapter is None:
        return ORBCalculator(small_orb(path), device="cpu")
    adapter = ForcefieldAtomsAdapter(**GRAPHS)
    return ORBCalculator(small_orb(path), adapter, device="cpu")


def save_orb(
    path: str | Path, model: DirectForcefieldRegressor, size: dict[str, int]
) -> None:
    """Write the weights and the size that `small_orb` rebuilds the model from."""
    tensors: dict[str, torch.Tensor] = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }
    save_file(tensors, path, metadata={"architecture": json.dumps(size)})
