"""The network compared with explicit attention, and its invariances."""

import subprocess
import sys

import pytest
import torch
from closeness import FLOAT32, FLOAT64, NETWORK, close
from probe.toys import dense_network

from uqcalc.probe import network as attention
from uqcalc.probe.network import ProbeNetwork, Shape


SIZES = [5, 1, 9, 3]
KEYS = [
    *(f"atom_encoder.{i}" for i in (0, 1, 4, 5, 8, 9)),
    "mol_attention.qkv",
    "mol_attention.out_proj",
    "mol_attention_norm",
    "proj",
    *(f"classifier.{i}" for i in (0, 3, 4, 7, 8, 11)),
]


def network(*, features=256, charges=False, dtype=torch.float64, seed=0):
    """Random weights large enough that attention is far from uniform."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = ProbeNetwork(Shape(features, charges=charges)).to(dtype).eval()
        for name, parameter in net.named_parameters():
            if name == "mol_attention.qkv.weight":
                parameter.data *= 4
            elif parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
    return net.requires_grad_(requires_grad=False)


def batch(sizes, *, features=256, charges=False, dtype=torch.float64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    atoms = sum(sizes)
    rows = torch.randn(atoms, features, generator=generator, dtype=dtype)
    scalars = torch.randn(len(sizes), 2, generator=generator, dtype=dtype)
    extra = torch.randn(atoms, generator=generator, dtype=dtype) if charges else None
    return rows, scalars, extra


@pytest.mark.parametrize(("charges", "count"), [(False, 566_434), (True, 567_458)])
def test_published_layout(charges, count):
    state = network(charges=charges).state_dict()
    names = [*KEYS, *(["charge_proj.0", "charge_proj.1"] if charges else [])]
    assert set(state) == {f"{n}.{end}" for n in names for end in ("weight", "bias")}
    assert sum(tensor.numel() for tensor in state.values()) == count


@pytest.mark.parametrize("charges", [False, True])
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, NETWORK), (torch.float64, FLOAT64)]
)
def test_ragged_batch_equals_dense_attention_one_by_one(charges, dtype, bound):
    net = network(charges=charges, dtype=dtype)
    rows, scalars, extra = batch(SIZES, charges=charges, dtype=dtype)
    output = net(rows, SIZES, scalars, extra, explain=True)
    silent = net(rows, SIZES, scalars, extra)
    assert silent.importance is None
    close(silent.logits, output.logits, bound)
    state = {k: v.double() for k, v in net.state_dict().items()}
    pieces = rows.double().split(SIZES)
    shares = [None] * len(SIZES) if extra is None else extra.double().split(SIZES)
    received = output.importance.split(SIZES)
    for i, piece in enumerate(pieces):
        logits, importance = dense_network(state, piece, scalars[i].double(), shares[i])
        close(output.logits[i], logits, bound)
        close(received[i], importance, bound)
        close(received[i].sum(), 1.0, FLOAT32)
    # far from uniform, so that the comparison has a meaning
    assert received[2].max() > 1.5 * received[2].min()


def test_structures_do_not_affect_each_other():
    net = network(features=7)
    rows, scalars, _ = batch(SIZES, features=7)
    together = net(rows, SIZES, scalars, explain=True)
    starts = [0, 5, 6, 15]
    for order in ([2], [2, 0], [1, 2], [3, 2, 1, 0]):
        chosen = torch.cat([rows[starts[i] : starts[i] + SIZES[i]] for i in order])
        sizes = [SIZES[i] for i in order]
        alone = net(chosen, sizes, scalars[order], explain=True)
        here = order.index(2)
        close(alone.logits[here], together.logits[2], FLOAT64)
        close(alone.embedding[here], together.embedding[2], FLOAT64)
        ours = alone.importance.split(sizes)[here]
        close(ours, together.importance[6:15], FLOAT64)


def test_permuting_atoms_permutes_importance():
    net = network(features=7, charges=True)
    rows, scalars, charges = batch([9], features=7, charges=True)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    before = net(rows, [9], scalars, charges, explain=True)
    after = net(rows[order], [9], scalars, charges[order], explain=True)
    close(after.importance, before.importance[order], FLOAT64)
    close(after.logits, before.logits, FLOAT64)


def test_importance_is_of_the_attention_behind_the_logits():
    net = network(features=7, charges=True)
    rows, scalars, charges = batch([9], features=7, charges=True)
    before = net(rows, [9], scalars, charges, explain=True)
    after = net(rows, [9], scalars, charges.flip(0), explain=True)
    assert (after.importance - before.importance).abs().max() > 1e-3
    assert (after.logits - before.logits).abs().max() > 1e-3
    with pytest.raises(ValueError, match="charges must be given"):
        net(rows, [9], scalars)


@pytest.mark.parametrize("explain", [False, True])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_atom_affects_only_its_own_structure(explain, value):
    net = network(features=7)
    rows, scalars, _ = batch(SIZES, features=7)
    whole = net(rows, SIZES, scalars, explain=explain)
    rows[8, 4] = value  # an atom of the third structure
    output = net(rows, SIZES, scalars, explain=explain)
    assert output.logits[2].isnan().all()
    others = [0, 1, 3]
    close(output.logits[others], whole.logits[others], FLOAT64)
    if explain:
        close(output.importance[:6], whole.importance[:6], FLOAT64)
        assert output.importance[6:15].isnan().all()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("sizes", [SIZES, [1], [4, 4]])
def test_without_autograd(context, sizes):
    net = network(features=7)
    rows, scalars, _ = batch(sizes, features=7)
    expected = net(rows, sizes, scalars, explain=True)
    with context():
        output = net(rows.clone(), sizes, scalars.clone(), explain=True)
    torch.testing.assert_close(output, expected)
    assert not output.importance.requires_grad
    if sizes == [1]:
        assert output.importance.item() == pytest.approx(1, rel=FLOAT64)


MEASURE = """
import resource, sys, torch
from uqcalc.probe.network import ProbeNetwork, Shape
torch.set_num_threads(1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
atoms = int(sys.argv[1])
net, scalars = ProbeNetwork(Shape(256)).eval(), torch.zeros(1, 2)
with torch.no_grad():
    net(torch.randn(8, 256), [8], scalars, explain=True)
    before = peak()
    output = net(torch.randn(atoms, 256), [atoms], scalars, explain=True)
assert abs(output.importance.sum().item() - 1) < 1e-4
print(peak() - before)
"""


@pytest.mark.parametrize(
    ("atoms", "limit_mib"),
    [(1500, 100), pytest.param(4000, 300, marks=pytest.mark.slow)],
)
def test_memory_is_linear_in_atoms(atoms, limit_mib):
    """Dense attention holds 128 N² bytes: 275 MiB at 1 500 atoms, 2 GiB at 4 000."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(atoms)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < limit_mib


@pytest.mark.parametrize("masked", [False, True])
def test_both_routes_to_the_importance_agree(masked):
    rng = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 300, 8, generator=rng, dtype=torch.double)
    mask = None
    if masked:
        mask = torch.arange(300) < torch.tensor([[300], [211]])
    blocks = attention.explain_in_blocks(query, key, value, mask)
    gradient = attention.explain_by_gradient(query, key, value, mask)
    real = torch.ones(2, 300, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(blocks[1], gradient[1])
    torch.testing.assert_close(
        blocks[0].transpose(1, 2)[real], gradient[0].transpose(1, 2)[real]
    )
