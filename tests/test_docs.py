"""The README and the documentation: their Python blocks run, and every public name has a place in the reference."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import bnengine
from bnengine import backends, optimizers

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OPTIONAL = ("torch", "jax", "dask", "cupy", "onnx")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def needs(block: str) -> list[str]:
    """Optional libraries that the block imports."""
    return [name for name in OPTIONAL if re.search(rf"^\s*(import|from) {name}\b", block, re.MULTILINE)]


def blocks(path: Path) -> list[str]:
    return [match.group(1) for match in BLOCK.finditer(path.read_text(encoding="utf-8"))]


def run(block: str, path: Path, namespace: dict[str, object]) -> None:
    exec(compile(block, str(path), "exec"), namespace)


WITH_LIBRARY = [
    pytest.param(
        path, block, id=f"{path.name}-{i}-{needs(block)[0]}", marks=[pytest.mark.gpu] if "cupy" in needs(block) else []
    )
    for path in PAGES
    for i, block in enumerate(blocks(path))
    if needs(block)
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_blocks_of_a_page_run_in_order(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in blocks(path):
        if not needs(block):
            run(block, path, namespace)


@pytest.mark.parametrize(("path", "block"), WITH_LIBRARY)
def test_a_block_for_an_optional_library_runs_by_itself(path: Path, block: str) -> None:
    for name in needs(block):
        reason = backends.unusable(name) if name in backends.NAMES else None
        if reason is not None or find_spec(name) is None:
            pytest.skip(f"{name}: {reason}")
    run(block, path, {})


def test_every_public_name_is_in_the_reference() -> None:
    public = {
        f"bnengine.{name}"
        for name, value in vars(bnengine).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    public |= {
        f"bnengine.optimizers.{name}"
        for name, value in vars(optimizers).items()
        if inspect.isfunction(value) and value.__module__.startswith(optimizers.__name__) and not name.startswith("_")
    }
    pages = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    documented = set(re.findall(r"^\.\. auto(?:function|class|exception|data):: (\S+)", pages, re.MULTILINE))
    documented |= {name.replace(".optimizers.Optimizer", ".Optimizer") for name in documented}
    assert public - documented == set()


LECTURE = ROOT / "docs" / "lecture.md"
STATEMENT = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)


def resolved(name: str) -> object:
    """The object behind `bn.layers.Linear` or `bnengine.study.summary.sentences`."""
    module, _, attribute = name.replace("bn.", "bnengine.", 1).rpartition(".")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(("statement", "text"), STATEMENT.findall(LECTURE.read_text(encoding="utf-8")))
def test_each_statement_of_the_lecture_has_equation_function_tests_and_figure(statement: str, text: str) -> None:
    rows = dict(re.findall(r"^\| (equation|function|tests|figure) \| (.+) \|$", text, re.MULTILINE))
    assert set(rows) == {"equation", "function", "tests", "figure"}
    functions = re.findall(r"`((?:bn|bnengine)\.[\w.]+)", rows["function"])
    assert functions
    assert all(callable(resolved(name)) for name in functions)
    tests = re.findall(r"`(tests/\w+\.py)::(\w+)`", rows["tests"])
    assert tests
    for file, name in tests:
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (file, name)
    figures = re.findall(r"\]\(([\w-]+\.\w+)#", rows["figure"])
    assert figures
    assert all((LECTURE.parent / file).is_file() for file in figures)


@pytest.mark.parametrize("page", ["README.md", "docs/benchmarks.md"])
def test_figures_of_speed_are_those_of_the_records(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    names = {"fixed": "cpu-epyc-2-cores", "drawn": "cpu-xeon-2-cores-drawn"}
    records = {
        group: json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
        for group, name in names.items()
    }
    for group, record in records.items():
        ours = ("bnengine", "bnengine without Numba", "bnengine with weights") if group == "fixed" else ("bnengine",)
        for mean in record["summary"]:
            if (mean["group"], mean["over"]) == (group, "PyTorch") and mean["family"] in ours:
                assert f"{mean['geometric_mean']:.2f}" in text
        assert record["commit"][:7] in text
    steps = [
        row for row in records["fixed"]["rows"] if row["group"] == "steps" and row["family"] == "bnengine compiled"
    ]
    best = {row["case"]: row for row in sorted(steps, key=lambda row: -row["seconds"]["median"])}
    assert len(best) == 5
    for row in best.values():
        assert f"{row['speed_over']['PyTorch']['median']:.2f}" in text
