"""Potentials by name: the opened potential, or the message."""

import json
import logging
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from builders import import_mace, tiny_mace

from uqcalc import open_model, tap
from uqcalc.defaults import shipped_probe
from uqcalc.errors import FileWarning, MissingExtraError, ModelError
from uqcalc.models.bundled import bare_calculator
from uqcalc.models.safemace import save_safe_mace


import_mace()
from mace.calculators import MACECalculator  # noqa: E402


def test_default_is_the_bundled_potential():
    water = molecule("H2O")
    ours, theirs = open_model("default", device="cpu"), bare_calculator()
    assert ours.get_potential_energy(water) == theirs.get_potential_energy(water)


def test_bundled_potentials_share_no_weights():
    """The model is built once; a change of one copy does not change others."""
    water = molecule("H2O")
    before = bare_calculator().get_potential_energy(water)
    changed = bare_calculator()
    with torch.no_grad():
        for parameter in changed.models[0].parameters():
            parameter.mul_(1.1)
    assert changed.get_potential_energy(water) != before
    assert bare_calculator().get_potential_energy(water) == before


def test_chgnet_opens_and_its_probe_fits():
    pytest.importorskip("chgnet")
    from uqcalc import tap

    backbone = tap(open_model("chgnet", device="cpu"))
    shipped_probe("chgnet").check(backbone)
    assert backbone(bulk("NaCl", "rocksalt", a=5.64), ["energy"]).energy < -6


@contextmanager
def told_to_trust():
    """Expect uqcalc's warning about pickles, and torch's own, if it gives one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    words = [str(w.message) for w in caught if w.category is FileWarning]
    assert len(words) == 1
    assert words[0].startswith("a MACE model file can run code; open only files you")
    # NumPy's warnings about other packages are not meant
    expected = (FileWarning, DeprecationWarning)
    others = [w for w in caught if not issubclass(w.category, expected)]
    assert all("weights_only" in str(w.message) for w in others)


def saved(path, hidden="4x0e + 4x1o", **options):
    model = tiny_mace(hidden, **options)
    torch.save(model, path)
    return model


def test_mace_file_opens_with_a_warning_and_only_with_its_prefix(tmp_path):
    path = tmp_path / "my.model"
    saved(path)
    with told_to_trust():
        opened = open_model(f"mace:{path}", device="cpu")
    assert opened.get_potential_energy(molecule("CH4")) < 0
    with pytest.raises(ModelError, match=f"a file; .* trust it, write mace:{path};"):
        open_model(str(path), device="cpu")


class Trap:
    """An object that runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_written_as_numbers_is_the_same_and_runs_no_code(tmp_path, dtype):
    model = saved(tmp_path / "my.model", dtype=dtype)
    with told_to_trust():
        written = save_safe_mace(tmp_path / "my.model", tmp_path / "safe.json")
    assert [path.name for path in written] == ["safe.json", "safe.safetensors"]
    opened = open_model(f"mace:{tmp_path / 'safe.json'}", device="cpu")
    original = MACECalculator(models=model, device="cpu", default_dtype="")
    atoms = molecule("CH3Cl")
    atoms.rattle(0.1, seed=0)
    tolerance = 1e-5 if dtype is torch.float32 else 1e-9
    forces = original.get_forces(atoms)
    close = {"rtol": tolerance, "atol": tolerance * np.abs(forces).max()}
    np.testing.assert_allclose(opened.get_forces(atoms), forces, **close)
    # a probe of the one is a probe of the other
    assert tap(opened).fingerprint == tap(original).fingerprint
    trap = tmp_path / "sprung"
    torch.save(Trap(trap), tmp_path / "safe.safetensors")
    with pytest.raises(
        ModelError, match="must be a ScaleShiftMACE whose configuration"
    ):
        open_model(f"mace:{tmp_path / 'safe.json'}", device="cpu")
    assert not trap.exists()


def test_model_that_cannot_be_rebuilt_is_not_written(tmp_path):
    class Other(type(tiny_mace("4x0e"))):
        """An architecture of a user."""

    model = tiny_mace("4x0e")
    model.__class__ = Other
    with pytest.raises(ModelError, match=r"got a Other .*other architectures"):
        save_safe_mace(model, tmp_path / "my.json")
    model = tiny_mace("4x0e")
    readout = model.readouts[-1]
    plain = type(readout).forward
    model.readouts[-1].forward = lambda *args: 2 * plain(readout, *args)
    with pytest.raises(ModelError, match=r"the rebuilt model gives .* differ by"):
        save_safe_mace(model, tmp_path / "my.json")
    with pytest.raises(ModelError, match=r"target must end in .json"):
        save_safe_mace(model, tmp_path / "my.model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["model"].update(r_max="far"), "must be a ScaleShiftMACE whose"),
        (lambda c: c["model"].update(hidden_irreps="8x0e"), "size mismatch"),
        (lambda c: c["model"].update(interaction_cls="os.system"), "KeyError"),
        (lambda c: c["model"].update(gate="print"), "KeyError"),
        (lambda c: c.update(architecture="MACE"), "its architecture is 'MACE'"),
        (lambda c: c.pop("model"), "has no entry 'model'"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(tmp_path, change, words):
    path, _ = save_safe_mace(tiny_mace("4x0e"), tmp_path / "my.json")
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=words):
        open_model(f"mace:{path}", device="cpu")
    path.with_suffix(".safetensors").unlink()
    with pytest.raises(ModelError, match=r"weights in .safetensors, got no file"):
        open_model(f"mace:{path}", device="cpu")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("mase", "must be one of default, chgnet, sevennet, mace:FILE.* got 'mase'"),
        ("default:2", "model must be one of"),
        ("mace:not/there.model", "must name a file that exists, got 'not/there"),
        ("mace_off:tiny", r"size of mace_off must be one of \['large'.* got 'tiny'"),
    ],
)
def test_unknown_names_are_refused(name, words):
    with pytest.raises(ModelError, match=words):
        open_model(name, device="cpu")


def test_precision_is_checked():
    with pytest.raises(ModelError, match=r"dtype must be one of .* got 'float16'"):
        open_model("default", dtype="float16")


def test_absent_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "chgnet.model.dynamics", None)
    with pytest.raises(MissingExtraError, match=r'pip install "uqcalc\[chgnet\]"'):
        open_model("chgnet")


def test_missing_weights_are_reported_with_the_download_command(monkeypatch):
    from mace.calculators import foundations_models

    def unreachable(**_):
        raise RuntimeError("Model download failed and no local model found")

    monkeypatch.setattr(foundations_models, "mace_off", unreachable)
    with pytest.raises(ModelError, match=r"curl -LO https\S+small\S+ and pass --model"):
        open_model("mace_off:small", device="cpu")


def test_only_some_models_have_a_shipped_probe():
    with pytest.raises(ModelError, match=r"uqcalc fit labelled.xyz --model mace_mp"):
        shipped_probe("mace_mp:small")


# ----------------------------------------------------------------- Orb


URL = "https://weights.example/orb-v2-20241011.ckpt"


def orb_loader(monkeypatch, act):
    pretrained = pytest.importorskip("orb_models.forcefield.pretrained")

    def load(weights_path=URL, device=None, compile=None):  # noqa: A002
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("high")
        torch.rand(3)
        warnings.warn("Setting global torch default dtype to float32.", stacklevel=1)
        logging.getLogger("cached_path").error("nothing there")
        return act(weights_path)

    monkeypatch.setitem(pretrained.ORB_PRETRAINED_MODELS, "orb-v2", load)


def test_an_orb_opens_and_leaves_torch_as_it_was(monkeypatch, caplog, tmp_path):
    pytest.importorskip("orb_models")
    from backbones.orbs import default_dtype, orb_made, orb_model

    given = []
    made = orb_made(orb_model(dtype=torch.float32))
    orb_loader(monkeypatch, lambda at: given.append(at) or made)
    (tmp_path / "my.ckpt").touch()
    with default_dtype(torch.float64):
        before = torch.get_rng_state()
        for name in ("orb:orb-v2", f"orb:orb-v2:{tmp_path / 'my.ckpt'}"):
            calculator = open_model(name, device="cpu")
        assert torch.get_default_dtype() == torch.float64
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_float32_matmul_precision() == "highest"
    assert given == [URL, str(tmp_path / "my.ckpt")]
    assert caplog.records == []
    assert calculator.get_forces(molecule("H2O")).shape == (3, 3)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ConnectionError("HTTPSConnectionPool(...): Max retries exceeded"),
            rf"got ConnectionError; on a .* run curl -LO {URL} and pass --model "
            r"orb:orb-v2:orb-v2-20241011.ckpt$",
        ),
        (
            RuntimeError("size mismatch"),
            rf"must belong to this model, got {URL} \(Runtime",
        ),
    ],
)
def test_missing_orb_weights_give_a_one_line_message(monkeypatch, caplog, error, words):
    def act(_):
        raise error

    orb_loader(monkeypatch, act)
    with pytest.raises(ModelError, match=words) as raised:
        open_model("orb:orb-v2", device="cpu")
    assert "\n" not in str(raised.value)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("name", "dtype", "words"),
    [
        ("orb", None, r"name of orb must be one of \['orb-d3.* got ''"),
        ("orb:orb-v1", None, "got 'orb-v1'"),  # withdrawn
        ("orb:orb-v2:no.ckpt", None, "must name a file that exists, got 'no.ckpt'"),
        ("orb:orb-v2", "float64", "dtype must be 'float32' for orb"),
    ],
)
def test_invalid_orbs_are_refused(name, dtype, words):
    pytest.importorskip("orb_models")
    with pytest.raises(ModelError, match=words):
        open_model(name, device="cpu", dtype=dtype)


# ------------------------------------- names whose packages fetch the weights


def offline(*_, **__):
    raise ConnectionError("no network\nand a second line")


@pytest.mark.parametrize(
    ("package", "place", "name", "words"),
    [
        (
            "aimnet",
            "aimnet.calculators.AIMNet2Calculator",
            "aimnet:aimnet2",
            r"aimnet:aimnet2 must be .* got ConnectionError: no network; on a machine "
            r"with a network run curl -LO https\S+ and pass aimnet:\S+$",
        ),
        (
            "torchani",
            "torchani.models.ANI2x",
            "ani:2x",
            r"run curl -L --create-dirs -o \S+ani2x_state_dict.pt https\S+$",
        ),
        (
            "matgl",
            "matgl.load_model",
            "matgl:TensorNet-PES",
            r"run hf download materialyze/TensorNet-PES$",
        ),
    ],
)
def test_missing_weights_are_reported_with_a_command(
    monkeypatch, package, place, name, words
):
    pytest.importorskip(package)
    if package == "matgl":
        pytest.importorskip("matgl.ext.ase")
    monkeypatch.setattr(place, offline)
    with pytest.raises(ModelError, match=words):
        open_model(name, device="cpu")


@pytest.mark.parametrize(
    ("package", "name", "words"),
    [
        ("aimnet", "aimnet:aimnet9", r"name of aimnet must be one of .*'aimnet2'"),
        ("torchani", "ani:9x", r"name of ani must be one of .*'2x'.* got '9x'"),
        ("matgl.ext.ase", "matgl", "must name a potential, got no name"),
        ("metatomic_ase", "metatomic:no.pt", "must name a file that exists, got 'no"),
        ("aimnet", "aimnet:aimnet2", "dtype must be 'float32' for aimnet"),
    ],
)
def test_unknown_names_of_downloaded_potentials_are_refused(package, name, words):
    pytest.importorskip(package)
    dtype = "float64" if "dtype" in words else None
    with pytest.raises(ModelError, match=words):
        open_model(name, device="cpu", dtype=dtype)


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [
        ("uma:uma-s-1p1:omat", "fairchem.core", "fairchem"),
        ("mattersim:1M", "mattersim.forcefield.potential", "mattersim"),
        ("pet-mad", "upet._version", "upet"),
        ("upet:pet-omat-s", "upet._version", "upet"),
        ("metatomic:my.pt", "metatomic_ase", "metatomic"),
        ("aimnet:aimnet2", "aimnet.calculators", "aimnet2"),
        ("ani:2x", "torchani", "torchani"),
        ("matgl:TensorNet", "matgl", "matgl"),
    ],
)
def test_each_name_has_an_extra(monkeypatch, name, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    with pytest.raises(MissingExtraError, match=rf'pip install "uqcalc\[{extra}\]"'):
        open_model(name, device="cpu")


def test_an_ani_opens_with_its_precision(monkeypatch):
    pytest.importorskip("torchani")
    from backbones.anis import ani_2x

    given = []

    def build(device, dtype):
        given.append((device, dtype))
        return ani_2x()

    monkeypatch.setattr("torchani.models.ANI2x", build)
    calculator = open_model("ani:2x", device="cpu", dtype="float64")
    assert given == [("cpu", torch.float64)]
    assert tap(calculator).name == "torchani"


def test_a_potential_of_matgl_gives_stress_in_the_unit_of_ase(monkeypatch):
    pytest.importorskip("matgl.ext.ase")
    from backbones.matgls import potential

    made = potential()
    monkeypatch.setattr("matgl.load_model", lambda _: made)
    assert "stress" in tap(open_model("matgl:TensorNet-PES", device="cpu")).provides
    monkeypatch.setattr("matgl.load_model", lambda _: made.model)
    with pytest.raises(ModelError, match="must be a potential, got a TensorNet"):
        open_model("matgl:TensorNet-Eform", device="cpu")


def test_an_exported_model_of_metatomic_opens(tmp_path):
    pytest.importorskip("metatomic_ase")
    from backbones.metatomics import model

    model().save(tmp_path / "toy.pt")
    opened = open_model(f"metatomic:{tmp_path / 'toy.pt'}", device="cpu")
    assert tap(opened).name == "metatomic"
