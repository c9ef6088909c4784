"""Small Orbs with random weights, of the released architectures."""

from __future__ import annotations

from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

from uqcalc.backbones.orb_release import calculator_class


SMALL = {
    "latent_dim": 16,
    "base_mlp_hidden_dim": 32,
    "head_mlp_hidden_dim": 16,
    "base_mlp_depth": 1,
    "num_message_passing_steps": 2,
}
CHARGED = {
    "has_charge_spin_cond": True,
    "has_electrostatics": True,
    "has_stress": False,
}


# graphs are made by an adapter, no longer by the model's configuration
NEW = find_spec("orb_models") is not None and (
    find_spec("orb_models.forcefield.forcefield_adapter") is not None
)


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

    options = {}
    if not NEW:
        from orb_models.forcefield.atomic_system import SystemConfig

        options["system_config"] = SystemConfig(radius=6.0, max_num_neighbors=120)
    builders = {
        "v2": (pretrained.orb_v2_architecture, {"num_message_passing_steps": 2}),
        "v3-direct": (pretrained.orb_v3_direct_architecture, SMALL),
        "v3-conservative": (pretrained.orb_v3_conservative_architecture, SMALL),
        "orbmol-v2": (pretrained.orb_v3_conservative_architecture, SMALL | CHARGED),
    }
    build, size = builders[kind]
    with torch.random.fork_rng(), default_dtype(dtype):
        torch.manual_seed(seed)
        model = build(device="cpu", **options, **size)
    return model.to(dtype).eval().requires_grad_(requires_grad=False)


@cache
def both_heads(dtype=torch.float64):
    """A conservative model that carries direct heads too."""
    place = "forcefield.models" if NEW else "forcefield"
    module = import_module(f"orb_models.{place}.conservative_regressor")

    direct = orb_model("v3-direct", dtype)
    with default_dtype(dtype):
        model = module.ConservativeForcefieldRegressor(
            heads=dict(direct.heads.items()),
            model=direct.model,
            ensure_grad_loss_weights=False,
            pair_repulsion=True,
            **({} if NEW else {"system_config": direct.system_config}),
        )
    return model.to(dtype).eval()


def orb_made(model=None):
    """What a loader returns: the model, and in newer releases an adapter with it."""
    model = model or orb_model()
    if not NEW:
        return model
    from orb_models.forcefield.forcefield_adapter import ForcefieldAtomsAdapter

    return model, ForcefieldAtomsAdapter(6.0, 120)


def orb_calculator(model=None, **options):
    made = orb_made(model)
    parts = made if NEW else (made,)
    return calculator_class()(*parts, device="cpu", **options)


class _Shift(torch.nn.Module):
    def predict(self, batch, **options):
        return {"energy": -1.0}


class _Sum(torch.nn.Module):
    """What orb-models 0.7 calls a D3SumModel, as 0.5's calculator takes one."""

    def __init__(self, regressor):
        super().__init__()
        self.xc_model = regressor
        self.heads, self.model = regressor.heads, regressor.model
        self.system_config = regressor.system_config
        self.properties = regressor.properties
        self.has_stress = regressor.has_stress

    def predict(self, batch, **options):
        output = self.xc_model.predict(batch, **options)
        return output | {"energy": output["energy"] - 1.0}


def with_dispersion(regressor):
    """A regressor and a correction of -1 eV."""
    if not NEW:
        return _Sum(regressor)
    from orb_models.forcefield.inference.d3_model import D3SumModel

    return D3SumModel(regressor, _Shift())
