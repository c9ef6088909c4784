"""Small Orbs with random weights, of the released architectures."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache

import torch


SMALL = {
    "latent_dim": 16,
    "base_mlp_hidden_dim": 32,
    "head_mlp_hidden_dim": 16,
    "base_mlp_depth": 1,
    "num_message_passing_steps": 2,
}


@contextmanager
def default_dtype(dtype):
    """Orb builds its graphs in the process's default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@cache
def orb_model(kind="v3-direct", dtype=torch.float64, seed=0):
    from orb_models.forcefield import pretrained
    from orb_models.forcefield.atomic_system import SystemConfig

    config = SystemConfig(radius=6.0, max_num_neighbors=120)
    builders = {
        "v2": (pretrained.orb_v2_architecture, {"num_message_passing_steps": 2}),
        "v3-direct": (pretrained.orb_v3_direct_architecture, SMALL),
        "v3-conservative": (pretrained.orb_v3_conservative_architecture, SMALL),
    }
    build, size = builders[kind]
    with torch.random.fork_rng(), default_dtype(dtype):
        torch.manual_seed(seed)
        model = build(device="cpu", system_config=config, **size)
    return model.to(dtype).eval().requires_grad_(requires_grad=False)


@cache
def both_heads(dtype=torch.float64):
    """A conservative model that carries direct heads too."""
    from orb_models.forcefield.conservative_regressor import (
        ConservativeForcefieldRegressor,
    )

    direct = orb_model("v3-direct", dtype)
    with default_dtype(dtype):
        model = ConservativeForcefieldRegressor(
            heads=dict(direct.heads.items()),
            model=direct.model,
            ensure_grad_loss_weights=False,
            pair_repulsion=True,
            system_config=direct.system_config,
        )
    return model.to(dtype).eval()


def orb_calculator(model=None, **options):
    from orb_models.forcefield.calculator import ORBCalculator

    return ORBCalculator(model or orb_model(), device="cpu", **options)
