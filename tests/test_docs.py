"""Every code block of the documentation and of the README is run, parsed or named.

Python blocks of one page run in order in one namespace, on files made here; runs are
cut to a few steps. Shell blocks go through the commands' own parser, YAML blocks
through that of run files. A comment above a block gives its conditions:
``<!-- test: slow -->``, ``weights`` (it needs files from the network: it is compiled,
and what it imports must exist), ``needs PACKAGE``, ``if FEATURE``; several are joined
by semicolons. Blocks that are not run are listed below, page by page.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import textwrap
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import typer
from ase import units
from ase.build import molecule
from ase.io import write
from ase.md.verlet import VelocityVerlet
from builders import import_mace

import uqcalc
from uqcalc.cli import app
from uqcalc.learning.loopfile import LoopFile
from uqcalc.runfile.file import RunFile, read_run_file


ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
# Blocks that need weights from the network, by page.
WEIGHTS = {
    "README.md": 1,
    "docs/start/ten-lines.md": 1,
    "docs/howto/attack.md": 2,
    "docs/howto/force-delta.md": 1,
    "docs/howto/ipi.md": 1,
    "docs/howto/perturb.md": 1,
    "docs/howto/stress.md": 1,
}
# Blocks that take more than some seconds, by page: run by `make test-slow`.
SLOW = {
    "README.md": 1,
    "docs/howto/adapt.md": 2,
    "docs/howto/certify.md": 1,
    "docs/howto/fit.md": 2,
    "docs/howto/force-delta.md": 1,
    "docs/howto/perturb.md": 2,
}
# Other programs in shell blocks.
FOREIGN = {"cd", "git", "python", ".venv/bin/pip", "pip"}
MOST_STEPS = 10


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    code: str
    marks: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


_MARK = re.compile(r"^<!-- test: (.*) -->$")
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>[\w+-]*)")


def blocks_of(page: str) -> Iterator[Block]:
    lines = PAGES[page].read_text(encoding="utf-8").splitlines()
    marks: tuple[str, ...] = ()
    inside: tuple[int, str] | None = None
    for number, line in enumerate(lines, start=1):
        fence = _FENCE.match(line)
        if inside is None and fence:
            inside = number, fence["language"]
        elif inside is not None and fence:
            start, language = inside
            code = textwrap.dedent("\n".join(lines[start : number - 1]))
            yield Block(page, start, language, code + "\n", marks)
            inside, marks = None, ()
        elif inside is None and (mark := _MARK.match(line)):
            marks = tuple(part.strip() for part in mark[1].split(";"))
        elif inside is None and line.strip():
            assert not marks, f"{page}:{number} no block follows the mark"
    assert inside is None, f"{page} ends within a block"


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]


def _has_quick(page: str) -> bool:
    return any(b.page == page and not _is(b, "slow", "weights") for b in PYTHON)


def _is(block: Block, *marks: str) -> bool:
    return any(mark in block.marks for mark in marks)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files that the pages need: frames, a trajectory, the log of a run."""
    import_mace()
    folder = tmp_path_factory.mktemp("docs")
    rng = np.random.default_rng(0)
    frames = [rattled_frame(rng) for _ in range(110)]
    write(folder / "frames.xyz", frames)
    write(folder / "md.traj", frames[:3])
    shutil.copy(ROOT / "examples" / "ethanol.xyz", folder)
    atoms = molecule("CH3OH")
    atoms.calc = uqcalc.default_calculator()
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    # not run.jsonl, which pages start again
    monitor = uqcalc.Monitor(dynamics, log=folder / "a_run.jsonl")
    dynamics.run(3)
    monitor.close()
    return folder


@pytest.fixture(scope="module")
def labelled(files):
    """The same with labelled frames of 330 groups."""
    model = uqcalc.open_model("default")
    rng = np.random.default_rng(1)
    sets = {"labelled": 120, "test": 40, "held_out": 120, "mine": 50}
    for name, count in sets.items():
        frames = [labelled_frame(model, rng, f"{name} {k}") for k in range(count)]
        write(files / f"{name}.xyz", frames)
    return files


def rattled_frame(rng):
    atoms = molecule(["CH3OH", "CH3CH2OH", "CH4"][rng.integers(3)])
    atoms.rattle(0.02 + 0.1 * rng.random(), rng=rng)
    return atoms


def labelled_frame(model, rng, group):
    """A frame whose error grows with the displacement of its atoms."""
    atoms = molecule(["CH3OH", "CH3CH2OH"][rng.integers(2)])
    far = rng.random() < 0.5
    atoms.rattle(0.15 if far else 0.02, rng=rng)
    atoms.calc = model
    error = rng.normal(0, 0.3 if far else 0.01, (len(atoms), 3))
    atoms.arrays["REF_forces"] = atoms.get_forces() + error
    atoms.calc = None
    atoms.info["molecule"] = atoms.info["run"] = group
    return atoms


def run(page, folder, skipped):
    """Run the Python blocks of a page in order, but for those with these marks."""
    namespace = {"__name__": "docs"}
    for block in PYTHON:
        if block.page != page or _is(block, *skipped):
            continue
        for mark in block.marks:
            if mark.startswith("needs "):
                pytest.importorskip(mark.removeprefix("needs "))
        shorter = re.sub(
            r"\.run\((\d+)\)",
            lambda call: f".run({min(int(call[1]), MOST_STEPS)})",
            block.code,
        )
        padded = "\n" * block.line + shorter  # tracebacks name the line of the page
        exec(compile(padded, str(PAGES[page]), "exec"), namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if _has_quick(page)])
def test_python_blocks_run(page, files, tmp_path, monkeypatch):
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    if page == "docs/howto/watch-a-run.md":
        shutil.copy(tmp_path / "a_run.jsonl", tmp_path / "run.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    run(page, tmp_path, ("slow", "weights"))


# the labels are made here, and few
@pytest.mark.filterwarnings("ignore::uqcalc.errors.LabelWarning")
@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_slow_python_blocks_run(page, labelled, tmp_path, monkeypatch):
    shutil.copytree(labelled, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if page in {"docs/howto/adapt.md", "docs/howto/certify.md"}:  # after that page
        run("docs/howto/fit.md", tmp_path, ("weights",))
    run(page, tmp_path, ("weights",))


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_what_python_blocks_import_of_uqcalc_exists(block):
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
            "uqcalc"
        ):
            module = import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_blocks_that_are_not_run_by_default_are_these():
    for mark, expected in (("weights", WEIGHTS), ("slow", SLOW)):
        found = Counter(b.page for b in BLOCKS if _is(b, mark))
        assert dict(found) == expected, mark
    known = {"slow", "weights"}
    for block in BLOCKS:
        for mark in block.marks:
            kind, _, name = mark.partition(" ")
            assert mark in known or (kind == "needs" and name)


def commands_of(block):
    joined = block.code.replace("\\\n", " ")
    for line in joined.splitlines():
        words = shlex.split(line, comments=True)
        if ">" in words:
            words = words[: words.index(">")]
        if words:
            yield words


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "bash"], ids=str)
def test_shell_blocks_name_commands_options_targets_and_extras_that_exist(
    block, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    group = typer.main.get_command(app)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for words in commands_of(block):
        program, *arguments = words
        if program == "uqcalc":
            name, *rest = arguments
            for before, word in pairwise(arguments):
                file = word.removeprefix("mace:")
                if before != "-o" and re.fullmatch(r"[\w*-]+\.\w+", file):
                    Path(file).touch()  # some commands check their inputs at once
            with suppress(typer.Exit):  # --template prints and ends
                group.commands[name].make_context(
                    name, rest
                )  # raises where it is wrong
        elif program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.MULTILINE)
        else:
            assert program in FOREIGN, words
        for extras in re.findall(r"uqcalc\[([\w,]+)\]", " ".join(words)):
            known = project["project"]["optional-dependencies"]
            assert set(extras.split(",")) <= known.keys()


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=str)
def test_run_files_are_valid(block, tmp_path):
    shutil.copy(ROOT / "examples" / "ethanol.xyz", tmp_path)
    for name in re.findall(r"[\w-]+\.(?:cif|probe)\b", block.code):
        (tmp_path / name).touch()
    (tmp_path / "run.yaml").write_text(block.code, encoding="utf-8")
    read_run_file(tmp_path / "run.yaml")


def test_blocks_are_of_known_languages():
    assert {b.language for b in BLOCKS} <= {"python", "bash", "yaml", "text"}


def test_the_page_of_run_files_has_every_key_and_default():
    page = PAGES["docs/reference/run-file.md"].read_text(encoding="utf-8")
    rows = {
        (section, row[1]): row[2]
        for section, text in re.findall(
            r"^## `?([\w ]+?)`?\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL
        )
        for row in re.finditer(r"^\| `(\w+)` \| .*? \| (.*?) \|", text, re.MULTILINE)
    }
    schema = RunFile.model_json_schema()
    for name, entries in {"Top level": schema, **_sections(schema)}.items():
        documented = {key for section, key in rows if section == name}
        assert documented == set(entries["properties"]), name
        for key, entry in entries["properties"].items():
            default = entry.get("default")
            if isinstance(default, (int, float, str)) and not isinstance(default, bool):
                shown = rows[name, key].strip("`")
                same = shown == default if isinstance(default, str) else None
                assert same or float(shown) == default, (name, key)


def test_the_page_of_loops_has_every_key_and_the_file_of_the_example():
    page = PAGES["docs/howto/loop.md"].read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", page, re.MULTILINE))
    assert set(rows) == set(LoopFile.model_fields)
    for key, field in LoopFile.model_fields.items():
        if not field.is_required() and field.default is not None:
            assert rows[key].strip("`") == str(field.default), key
    example = ROOT / "examples" / "loop" / "loop.yaml"
    assert example.read_text(encoding="utf-8") in page


def _sections(schema):
    kinds = {
        "md": "MdSection",
        "relax": "RelaxSection",
        "force_delta": "ForceDeltaSection",
        "policy": "PolicySection",
        "ask": "AskSection",
        "rewind": "RewindSection",
        "outputs": "OutputSection",
    }
    return {name: schema["$defs"][kind] for name, kind in kinds.items()}


def test_the_page_of_results_has_every_key():
    page = PAGES["docs/reference/results.md"].read_text(encoding="utf-8")
    documented = set(re.findall(r"`(\w+)`", page))
    calculator = uqcalc.default_calculator()
    found = calculator.assess(molecule("CH3OH")).results()
    assert set(found) <= documented


def test_figures_of_the_bundled_probe_in_the_text_are_those_of_its_file():
    path = ROOT / "benchmarks" / "results" / "fit_default_probe.json"
    result = json.loads(path.read_text(encoding="utf-8"))
    report = result["report"]
    readme = PAGES["README.md"].read_text(encoding="utf-8")
    for key in ("auroc", "ece", "ece_noise_floor"):
        assert f"{report[key]:.3f}" in readme, key
    assert f"{report['structures']} unseen frames" in readme
    [row] = [r for r in result["rows"] if (r["probe"], r["kind"]) == ("shipped", "all")]
    verdict = PAGES["docs/start/verdict.md"].read_text(encoding="utf-8")
    for key in ("frames", "reliable", "reliable_wrong"):
        assert re.search(rf"\b{row[key]}\b", verdict), key


def test_variables_in_tables_of_symbols_are_in_the_code():
    sources = [p.read_text(encoding="utf-8") for p in (ROOT / "uqcalc").rglob("*.py")]
    for page in (p for name, p in PAGES.items() if name.startswith("docs/understand")):
        text = page.read_text(encoding="utf-8")
        for owner, variable in re.findall(r"`([A-Z]\w+)\.(\w+)`", text):
            homes = [s for s in sources if re.search(rf"^class {owner}\b", s, re.M)]
            word = re.compile(rf"\b{variable}\b")
            assert any(map(word.search, homes)), f"{page.name}: {owner}.{variable}"


def test_pictures_in_the_text_exist():
    for page, path in PAGES.items():
        text = path.read_text(encoding="utf-8")
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text):
            name = Path(target).name
            known = [*ROOT.glob(f"examples/{name}")]
            known += ROOT.glob(f"benchmarks/results/{name}")
            assert known, f"{page} shows {target}"


def test_the_readme_is_short_and_its_pictures_are_absolute():
    text = PAGES["README.md"].read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert all(
        target.startswith("https://")
        for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    )
