"""`bnengine export`: what another program computes from the file is what `bnengine predict` says."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from libraries import need
from networks import evaluated, outputs, trained

import bnengine as bn
from bnengine.cli import main
from bnengine.data.encoding import PLAIN
from bnengine.exchange import numpy_file
from bnengine.functional import ACTIVATIONS

QUICK = ["--epochs", "2", "--hidden", "16,16", "--batch-size", "20", "--learning-rate", "0.02"]


def run(*arguments):
    assert main([str(a) for a in arguments]) == 0


def written(capsys, *arguments):
    run(*arguments)
    return capsys.readouterr().out


def table(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs with what can differ in a file: classes, values, encoded columns, a network that keeps norms, float64."""
    place, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(5)
    x = rng.standard_normal((80, 4)) * [1, 1e3, 1, 1e-3] + [0, 5, 2000, 0]
    kind = np.where(x[:, 0] > 0, "right", "left µ")
    table(place / "kinds.csv", ["a", "b", "year", "d", "kind"], [[*row, k] for row, k in zip(x, kind, strict=True)])
    np.savez(place / "values.npz", x=x, y=3000 + 40 * x[:, 0] + rng.standard_normal(80))
    ages = ["" if i % 9 == 2 else 20 + i % 41 for i in range(80)]
    towns = ["?" if i % 11 == 3 else ["Aba", "Bern", "Çeşme"][i % 3] for i in range(80)]
    table(place / "people.csv", ["age", "town", "kind"], zip(ages, towns, kind, strict=True))
    options = {
        "kinds": [],
        "values": ["--task", "regression", "--activation", "gelu", "--norm-position", "post", "--residual"],
        "people": ["--missing", "impute", "--text", "onehot", "--dropout", "0.2", "--activation", "silu"],
        "plain": ["--norm", "none", "--no-standardize", "--dtype", "float64", "--hidden", "0"],
    }
    data = {"kinds": "kinds.csv", "values": "values.npz", "people": "people.csv", "plain": "kinds.csv"}
    for name, more in options.items():
        run("train", "--data", place / data[name], "--out", place / name, *QUICK, *more)
    table(place / "new.csv", ["town", "age"], [["Bern", 35], ["Çeşme", ""], ["Delft", " 41 "], ["n/a", "NA"]])
    return place


def predictions(capsys, runs, name, rows):
    """(labels, probabilities) or values, as `bnengine predict` prints them."""
    capsys.readouterr()
    header, *lines = csv.reader(io.StringIO(written(capsys, "predict", runs / name, "--data", runs / rows)))
    if len(header) == 1:
        return np.asarray(lines, float)[:, 0]
    return [line[0] for line in lines], np.asarray([line[1:] for line in lines], float)


def assert_same(found, wanted):
    if isinstance(wanted, tuple):
        assert list(found[0]) == wanted[0]
        np.testing.assert_allclose(found[1], wanted[1], atol=2e-6)  # printed with six digits
    else:
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


ALONE = """
import json, sys
scope = {}
exec(open(sys.argv[1]).read(), scope)
model, rows = scope["load"](sys.argv[2]), json.load(open(sys.argv[3]))
given = scope["encode"](model, rows) if "encode" in scope else rows
found = scope["predict"](model, given)
found = [part.tolist() for part in found] if isinstance(found, tuple) else found.tolist()
for name in ("bnengine", "array_api_compat", "safetensors"):
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} could be imported")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def numpy_alone(tmp_path_factory):
    """The Python of an environment in which NumPy is installed and nothing else."""
    place = tmp_path_factory.mktemp("alone")
    venv.create(place, symlinks=os.name != "nt", with_pip=False)
    (packages,) = [path for path in place.glob("[Ll]ib*/**/site-packages") if not path.parent.parent.is_symlink()]
    ours = Path(np.__file__).parent
    for folder in (ours, ours.with_name("numpy.libs")):
        if folder.exists():
            shutil.copytree(folder, packages / folder.name, copy_function=os.link if os.name != "nt" else shutil.copy2)
    return next(place.glob("[bS]*/python*"))


@pytest.mark.parametrize(
    ("name", "rows"), [("kinds", "kinds.csv"), ("values", "values.npz"), ("people", "new.csv"), ("plain", "kinds.csv")]
)
def test_a_numpy_file_where_there_is_numpy_alone(name, rows, runs, capsys, numpy_alone):
    wanted = predictions(capsys, runs, name, rows)
    text = written(capsys, "export", runs / name, "--numpy", "model.npz")
    assert sum(map(bool, text.splitlines())) < (38 if name == "people" else 26)
    Path("loader.py").write_text(text, encoding="utf-8")
    columns = list(np.load("model.npz")["columns"]) if name != "values" else []
    if rows.endswith("csv"):
        lines = list(csv.DictReader((runs / rows).read_text(encoding="utf-8").splitlines()))
        cells = [[line[column] for column in columns] for line in lines]
        given = cells if name == "people" else np.asarray(cells, float).tolist()
    else:
        given = np.load(runs / rows)["x"].tolist()
    Path("rows.json").write_text(json.dumps(given))
    command = [numpy_alone, "-I", "-c", ALONE, "loader.py", "model.npz", "rows.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert_same(tuple(found) if isinstance(wanted, tuple) else found, wanted)


def test_the_loader_of_the_page_is_the_one_that_is_printed():
    net = bn.mlp([4, 3, 2], standardize=True)
    params, state = net.init(0, backend="numpy")
    state["0"]["mean"][:] = 9
    description = {"classes": ["a", "b"], "target": (0.0, 1.0), "columns": [], "encoding": PLAIN}
    text = numpy_file.loader(numpy_file.packed(net, params, state, **description))
    page = Path(__file__).parents[1] / "docs" / "shipping.md"
    assert f"```python\n{text}```" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_a_numpy_file(activation, dtype, rng):
    net = bn.mlp([5, 8, 8, 8, 3], activation=activation, norm_position="post", residual=True, standardize=True)
    params, state = trained(net, rng, dtype)
    state["0"]["mean"][0] = 1e5  # Standardize stays
    description = {"classes": ["a", "b", "c"], "target": (0.0, 1.0), "columns": [], "encoding": PLAIN}
    arrays = numpy_file.packed(net, params, state, **description)
    scope = {}
    exec(numpy_file.loader(arrays), scope)
    x = (rng.standard_normal((40, 5)) + np.asarray([1e5, 0, 0, 0, 0])).astype(dtype)
    wanted = outputs(net, params, state, x)
    found = scope["outputs"](scope["load"](io.BytesIO(numpy_file.to_bytes(arrays))), x)
    assert found.dtype == dtype
    assert np.abs(found - wanted).max() <= (2e-6 if dtype == "float32" else 1e-12) * np.abs(wanted).max()


@pytest.mark.parametrize(("name", "rows"), [("kinds", "kinds.csv"), ("values", "values.npz")])
def test_a_torch_file_in_the_module_that_is_printed(name, rows, runs, capsys):
    torch = need("torch")
    wanted = predictions(capsys, runs, name, rows)
    scope = {}
    exec(written(capsys, "export", runs / name, "--torch", "model.safetensors"), scope)
    with torch.no_grad():  # in float64: PyTorch's normalisation of float32 loses what a year has behind its 2000
        found = scope["net"].double()(torch.from_numpy(features(runs / rows).astype(np.float32)).double())
    if name == "values":
        assert_same(found[:, 0].numpy(), wanted)
        return
    with need("safetensors").safe_open("model.safetensors", "numpy") as file:
        metadata = {name: json.loads(text) for name, text in file.metadata().items() if name != "format"}
    assert metadata == {"classes": ["left µ", "right"], "columns": ["a", "b", "year", "d"]}
    labels = [metadata["classes"][i] for i in found.argmax(dim=1)]
    assert_same((labels, torch.softmax(found, dim=1).numpy()), wanted)


@pytest.mark.parametrize("runtime", ["reference", "onnxruntime"])
@pytest.mark.parametrize(
    ("name", "rows", "more"),
    [
        ("kinds", "kinds.csv", []),
        ("kinds", "kinds.csv", ["--keep-norms"]),
        ("values", "values.npz", []),
        ("values", "values.npz", ["--keep-norms"]),
        ("plain", "kinds.csv", []),
    ],
)
def test_an_onnx_model_in_a_runtime(name, rows, more, runtime, runs, capsys):
    onnx = pytest.importorskip("onnx")
    wanted = predictions(capsys, runs, name, rows)
    said = written(capsys, "export", runs / name, "--onnx", "model.onnx", *more)
    dtype = np.float64 if name == "plain" else np.float32
    width = "label and probabilities (rows, 2)" if isinstance(wanted, tuple) else "prediction (rows, 1)"
    assert said == f"model.onnx: opset 20, input x (rows, 4) of {np.dtype(dtype)}, output {width}\n"
    model = onnx.load("model.onnx")
    found = evaluated(model, features(runs / rows).astype(dtype), runtime)
    assert_same(tuple(found) if isinstance(wanted, tuple) else found[0][:, 0], wanted)
    metadata = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
    assert metadata == {
        "classes": ["left µ", "right"] if isinstance(wanted, tuple) else [],
        "columns": ["a", "b", "year", "d"] if rows.endswith("csv") else [],
    }
    net = bn.from_onnx("model.onnx")[0]
    kinds = [type(layer).__name__ for _, layer in net.named()]
    assert kinds.count("BatchNorm") == (2 if more or name == "values" else 0)


def features(path):
    """The numbers of a data file's rows."""
    if path.suffix == ".npz":
        return np.load(path)["x"]
    return np.asarray([line.split(",")[:4] for line in path.read_text(encoding="utf-8").splitlines()[1:]], float)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["people", "--torch", "a"],
            "bnengine: --torch: cannot hold how the run encodes text and fills missing values: age, town",
        ),
        (["people", "--onnx", "a"], "bnengine: --onnx: cannot hold how the run encodes text"),
        (["kinds", "--numpy", "kinds/config.toml"], "bnengine: --numpy: {}/kinds/config.toml is a file of the run"),
        (
            ["kinds", "--numpy", "no/a.npz"],
            "bnengine: --numpy: cannot write {}/no/a.npz: its parent is not a directory",
        ),
        (["kinds", "--numpy", "a.npz", "--keep-norms"], "bnengine: --keep-norms: says how --onnx is written"),
        (["kinds"], "bnengine: one of the arguments --numpy --torch --onnx is required"),
        (["nowhere", "--numpy", "a.npz"], "bnengine: {}/nowhere: expected the directory of a finished run"),
    ],
)
def test_what_is_refused(arguments, words, runs, capsys):
    given = [runs / a if "--" not in a and i != 1 else a for i, a in enumerate(arguments)]
    with pytest.raises(SystemExit) as stop:
        sys.exit(main(["export", *map(str, given)]))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(words.format(runs))
