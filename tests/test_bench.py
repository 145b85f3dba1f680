"""The benchmark's bookkeeping: figures follow from samples, wrong results are not timed. No test asserts a time."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path

import numpy as np
import pytest
from libraries import need

from bnengine import bench, kernels, provenance
from bnengine.bench import networks, normalization, scaling, settings, steps, timing
from bnengine.bench.normalization import Case, Shape
from bnengine.bench.timing import Contender
from bnengine.cli import main

TINY = ["--kernels", "--shapes", "8x3,2x3x4x4", "--repeats", "3", "--contenders", "bnengine,numpy"]


def run(capsys, *arguments):
    """(exit status, standard output, standard error) without the line that tells of a busy machine."""
    try:
        status = main(["bench", *map(str, arguments)])
    except SystemExit as stop:  # argparse
        status = stop.code
    out, err = capsys.readouterr()
    return status, out, "".join(line for line in err.splitlines(keepends=True) if "busy" not in line)


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    """Samples and pauses that are too short to measure anything."""
    monkeypatch.setattr(timing, "SAMPLE", 1e-4)
    monkeypatch.setattr(bench, "PAUSE", 0.0)
    monkeypatch.setattr(steps, "PAUSE", 0.0)


@pytest.fixture
def record(capsys):
    status, _, _ = run(capsys, *TINY, "--out", "record.json")
    assert status == 0
    return json.loads(Path("record.json").read_text())


# ---- a record


def test_figures_follow_from_the_samples(record):
    assert len(record["rows"]) >= 2 * 3
    for row in record["rows"]:
        assert len(row["samples"]) == record["repeats"] == 3
        assert min(row["samples"]) > 0
        assert row["seconds"]["median"] == pytest.approx(statistics.median(row["samples"]), rel=1e-4)
        assert row["seconds"]["p20"] <= row["seconds"]["median"] <= row["seconds"]["p80"]
        assert row["calls"] >= 1


def test_ratios_are_taken_repeat_by_repeat_against_the_fastest_variant(record):
    for row in record["rows"]:
        case = [other for other in record["rows"] if other["case"] == row["case"]]
        for family, speed in row["speed_over"].items():
            rivals = [other for other in case if other["family"] == family]
            fastest = min(rivals, key=lambda other: other["seconds"]["median"])
            assert speed["over"] == fastest["contender"]
            ratios = [b / a for a, b in zip(row["samples"], fastest["samples"], strict=True)]
            assert speed["median"] == pytest.approx(statistics.median(ratios), rel=1e-4)
    ours = [row for row in record["rows"] if row["family"] == "bnengine"]
    assert [row["case"] for row in ours] == ["8x3 rows", "2x3x4x4 nchw"]
    assert set(ours[0]["speed_over"]) == {"NumPy", "copy"}
    for row in ours:
        assert row["of_limit"]["median"] == pytest.approx(2.5 * row["speed_over"]["copy"]["median"], rel=1e-4)


def test_geometric_means_follow_from_the_rows(record):
    (mean,) = [entry for entry in record["summary"] if (entry["family"], entry["over"]) == ("bnengine", "NumPy")]
    speeds = [row["speed_over"]["NumPy"]["median"] for row in record["rows"] if row["family"] == "bnengine"]
    assert mean["geometric_mean"] == pytest.approx(statistics.geometric_mean(speeds), rel=1e-4)
    assert (mean["lowest"], mean["cases"], mean["group"]) == (min(speeds), 2, "shapes")


def test_a_record_says_where_and_how_it_was_made(record):
    assert record["command"] == (
        "bnengine bench --kernels --shapes 8x3,2x3x4x4 --contenders bnengine,numpy --repeats 3"
    )
    assert {"date", "processor", "cores", "caches", "versions", "blas", "environment", "commit"} <= set(record)
    assert set(record["load"]) == {"start", "end"}
    assert {"python", "bnengine", "numpy"} <= set(record["versions"])
    assert record["seed"] == 0


def test_the_table_is_printed_and_the_plot_drawn(capsys):
    pytest.importorskip("matplotlib")
    status, out, err = run(capsys, *TINY, "--plot", "speeds.png")
    assert (status, err) == (0, "")
    assert "8x3 rows" in out
    assert "2x3x4x4 nchw" in out
    assert out.rstrip().endswith("seed 0")
    assert Path("speeds.png").read_bytes().startswith(b"\x89PNG")


def test_drawn_shapes_repeat_with_the_seed():
    shapes = normalization.draw_shapes(40, seed=5)
    assert shapes == normalization.draw_shapes(40, seed=5) != normalization.draw_shapes(40, seed=6)
    assert {shape.name.split()[1] for shape in shapes} == {"rows", "nchw", "nhwc"}
    assert max(np.prod(shape.sizes) for shape in shapes) <= normalization.LARGEST_DRAWN
    assert bench.Options(draw=2, seed=7).groups()["drawn"] == normalization.draw_shapes(2, 7)
    assert "--draw 2 --seed 7" in bench.Options(draw=2, seed=7).command()


# ---- contenders


PAIRS = [
    (family, dtype)
    for family in normalization.BUILDERS
    for dtype in ("float32", "float64")
    if not (family.startswith("jax") and dtype == "float64")  # JAX as it starts has no float64
]


@pytest.mark.parametrize(("family", "dtype"), PAIRS)
@pytest.mark.parametrize("shape", [Shape((30, 7)), Shape((4, 3, 3, 5), -1)])
def test_every_contender_is_right(family, dtype, shape):
    try:
        contenders = list(normalization.BUILDERS[family](Case(shape, dtype)))
    except (ImportError, ValueError) as reason:
        pytest.skip(str(reason))
    assert contenders
    for contender in contenders:
        contender.prepare()
        assert contender.error() <= contender.tolerance, contender.name


def spoiled(name, calls):
    """NumPy's contender with one result that is wrong in the way that mistakes are."""

    def build(case):
        def call():
            values, z = normalization.equations(case.x, case.gamma, case.beta, case.dy, case.axis)
            wide = [1] * case.x.ndim
            wide[case.axis] = -1
            wrong = {
                "y": z,  # no ReLU
                "dx": (case.gamma / np.sqrt(1 + normalization.EPS)).reshape(wide) * case.dy * (z > 0),  # frozen mean
                "dgamma": values.dgamma * 0.999,
                "dbeta": values.dbeta * np.nan,
            }
            calls.append(name)
            return values._replace(**{name: wrong[name]})

        yield case.contender("spoiled", call)

    return build


@pytest.mark.parametrize("name", ["y", "dx", "dgamma", "dbeta"])
def test_wrong_results_are_not_timed(monkeypatch, capsys, name):
    calls = []
    monkeypatch.setitem(normalization.BUILDERS, "spoiled", spoiled(name, calls))
    status, _, err = run(capsys, *TINY[:-1], "spoiled,numpy", "--out", "record.json")
    assert status == 1
    assert err.startswith("bnengine: not timed: spoiled, 8x3 rows: wrong by ")
    assert err.count("\n") == 1
    assert calls == [name] * 2  # looked at once for each shape
    record = json.loads(Path("record.json").read_text())
    assert "spoiled" not in {row["family"] for row in record["rows"]}
    assert [left["kind"] for left in record["left_out"]] == ["wrong", "wrong"]


@pytest.mark.parametrize(("errors", "left"), [((1.0, 1e-9), []), ((np.nan, 1e-9), []), ((1.0, 1.0), ["wrong"])])
def test_a_step_is_left_out_if_it_is_wrong_on_other_data_too(errors, left):
    def build(case):
        yield Contender("spoiled", lambda: None, lambda: errors[case.seed], networks.TOLERANCE)

    case = networks.Case(networks.Network((3, 4, 2), 8), "float32")
    found, left_out = timing.check(case, {"spoiled": build})
    assert [one["kind"] for one in left_out] == left
    assert list(found.values()) == ([] if left else [1e-9])
    assert (case.redraw().batches[0][0] != case.batches[0][0]).any()


def test_a_library_that_is_not_installed_is_named(monkeypatch, capsys):
    def build(case):
        raise ImportError("No module named 'abacus'")

    monkeypatch.setitem(normalization.BUILDERS, "Abacus", build)
    status, out, _ = run(capsys, *TINY[:-1], "abacus,bnengine")
    assert status == 0
    assert "not measured: Abacus: No module named 'abacus'\n" in out


def test_a_contender_that_raises_is_named_and_the_others_are_timed(monkeypatch, capsys):
    def build(case):
        yield case.contender("broken", lambda: 1 / 0)

    monkeypatch.setitem(normalization.BUILDERS, "broken", build)
    status, _, err = run(capsys, *TINY[:-1], "broken,numpy", "--out", "record.json")
    assert status == 1
    assert err.startswith(
        "bnengine: not timed: broken, 8x3 rows: ZeroDivisionError: division by zero; broken, 2x3x4x4 "
    )
    record = json.loads(Path("record.json").read_text())
    assert {"bnengine", "NumPy"} <= {row["family"] for row in record["rows"]}


def test_what_does_not_fit_into_the_minutes_is_left_out(capsys):
    status, out, _ = run(capsys, *TINY, "--minutes", "0", "--out", "record.json")
    assert status == 0
    assert "8x3 rows              not measured" in out
    assert out.count("not measured: all: no time was left of --minutes 0\n") == 1
    record = json.loads(Path("record.json").read_text())
    assert record["rows"] == []
    assert [left["case"] for left in record["left_out"]] == ["8x3 rows", "2x3x4x4 nchw"]


def test_jax_without_float64_is_named():
    jax = pytest.importorskip("jax")
    if jax.config.jax_enable_x64:
        pytest.skip("JAX has float64 here")
    outcome = timing.measure(
        Case(Shape((4, 3)), "float64"), normalization.BUILDERS, wants="jax.jit".__eq__, repeats=2, pause=0.0
    )
    assert outcome.rows == []
    assert "JAX_ENABLE_X64" in outcome.left_out[0]["reason"]


def test_the_order_rotates_and_threads_are_set_before_each_sample():
    seen = []

    def contender(name):
        return Contender(name, lambda: seen.append(name), lambda: 0.0, 0.0, prepare=lambda: seen.append(name.lower()))

    calls, samples = timing.take_samples([contender("A"), contender("B"), contender("C")], 3, 0.0)
    turns = [name for name in seen[seen.index("c") :] if name.islower()][1:]
    assert turns == list("abcbcacab")
    assert all(len(values) == 3 for values in samples.values())
    assert min(calls.values()) > 1  # a call of nothing is repeated until a sample can be told from the clock


# ---- training steps

SMALL = (
    networks.Network((12, 9, 8, 5), 16),
    networks.Network((12, 9, 5), 10, "sigmoid", "sgd"),
    networks.Network((12, 9, 5), 10, as_trained=True),
    networks.Network((12, 9, 5), 10, "relu", "adam", norm=False),
)
QUICK_STEPS = ["--steps", "--repeats", "2", "--contenders"]


@pytest.mark.parametrize(
    ("network", "dtype"),
    [*((network, "float32") for network in SMALL), (SMALL[0], "float64")],
)
def test_every_step_follows_the_float64_network(network, dtype):
    case = networks.Case(network, dtype)
    families = steps.builders(network)
    families.pop("torch.compile", None)  # compiles for a minute
    assert ("scikit-learn" in families) != network.norm
    with settings.restore_at_end():
        for build in families.values():
            try:
                contenders = list(build(case))
            except (ImportError, ValueError):
                continue
            for contender in contenders:
                contender.prepare()
                assert contender.error() <= contender.tolerance, contender.name


@pytest.mark.parametrize("part", ["gamma", "beta", "weight", "bias"])
def test_a_step_that_forgets_a_gradient_is_seen(part):
    class Forgetful(networks.NumpyStep):
        def _update(self, grads):
            super()._update([{name: g * (name != part) for name, g in grad.items()} for grad in grads])

    case = networks.Case(networks.FIXED[0], "float32")
    contender = case.contender("forgetful", Forgetful(case, "float32"))
    assert contender.error() > 2 * contender.tolerance


def test_steps_are_compared_and_their_page_faults_counted(monkeypatch, capsys):
    monkeypatch.setattr(networks, "FIXED", SMALL[:1])
    names = "bnengine,bnengine compiled,bnengine without numba,matrix products,numpy"
    status, out, _ = run(capsys, *QUICK_STEPS, names, "--out", "record.json")
    assert status == 0
    assert "bnengine takes " in out
    assert "bnengine compiled takes " in out
    record = json.loads(Path("record.json").read_text())
    assert {row["family"].lower() for row in record["rows"]} == set(names.split(","))
    assert {row["case"] for row in record["rows"]} == {SMALL[0].name}
    for row in record["rows"]:
        assert "of_limit" not in row
        assert row["page_faults"] is None or row["page_faults"] >= 0


def test_kernels_and_threads_are_put_back(rng):
    fast = kernels.FAST["numpy"]
    x = rng.standard_normal((4, 3))
    before = kernels.select(x)
    with settings.restore_at_end():
        settings.use(("plain",))
        assert kernels.select(x).__name__.endswith("plain")
    assert kernels.FAST["numpy"] == fast
    assert kernels.select(x) is before


def test_scaling_varies_one_size_at_a_time(monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    for name, values in (("ROWS", (8, 16)), ("CHANNELS", (2, 4)), ("DEPTHS", (1,)), ("BATCHES", (8, 16))):
        monkeypatch.setattr(scaling, name, values)
    options = ["--scaling", "--repeats", "2", "--contenders", "bnengine", "--out", "record.json", "--plot", "cost.png"]
    status, out, _ = run(capsys, *options)
    assert status == 0
    assert "rows 16, 256 channels" in out
    rows = json.loads(Path("record.json").read_text())["rows"]
    found = [(row["varies"], row["value"]) for row in rows]
    expected = [("rows", 8), ("rows", 16), ("channels", 2), ("channels", 4), ("hidden layers", 1), ("batch", 8)]
    assert list(dict.fromkeys(found)) == [*expected, ("batch", 16)]
    assert {row["group"] for row in rows} == {"scaling"}
    assert Path("cost.png").read_bytes().startswith(b"\x89PNG")


def test_the_plot_compares_with_pytorch(record):
    report = pytest.importorskip("bnengine.bench.pictures")
    ours = {"median": 4.0, "p20": 3.0, "p80": 5.0}
    slower = {"median": 0.5, "p20": 0.4, "p80": 0.6}

    def row(family, seconds, over):
        figures = {"seconds": {"median": seconds}, "speed_over": {"PyTorch": over} if over else {}}
        return {"group": "fixed", "case": "8x3 rows", "family": family, **figures}

    rows = [row("bnengine", 2.0, slower), row("bnengine", 1.0, ours), row("jax.jit", 8.0, slower), row("PyTorch", 4, 0)]
    assert report._speed_bars(rows, "PyTorch") == [("8x3 rows", ours, {"jax.jit": 0.5})]  # the faster variant
    assert report.speeds({**record, "rows": rows}).startswith(b"\x89PNG")


# ---- requests that are refused


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--repeats", "1"], "repeats: expected at least 2, got 1"),
        (["--draw", "-1"], "draw: expected at least 1, got -1"),
        (["--draw", "0"], "draw: expected at least 1, got 0"),
        (["--steps", "--draw", "3"], "draw: is for kernels; add --kernels or leave it out"),
        (["--scaling", "--shapes", "8x3"], "shapes: is for kernels; add --kernels or leave it out"),
        (["--contenders", ""], "contenders: expected some of bnengine, bnengine without Numba, "),
        (["--kernels", "--contenders", "scikit-learn"], "contenders: expected some of bnengine, "),
        (["--plot", "a.pdf"], "plot: expected a name that ends in .png, got a.pdf"),
        (["--out", "a.png", "--plot", "a.png"], "plot: a.png is the file of --out too; choose another"),
        (["--contenders", "bnengine", "--plot", "a.png"], "plot: shows speeds relative to another contender; add"),
        (["--contenders", "bnengine,abacus"], "contenders: expected some of bnengine, bnengine without Numba, "),
        (["--shapes", "4096"], "shapes: expected two positive sizes or more, got '4096'"),
        (["--shapes", "8x"], "shapes: expected sizes such as 4096x512, got '8x'"),
        (["--shapes", "1x5"], "shapes: expected two values or more for each channel, got '1x5'"),
        (["--layout", "nhwc"], "layout: says what shapes are, but shapes is not given"),
        (["--shapes", "2x3x4x4", "--layout", "rows"], "layout: rows have two sizes, but shapes has '2x3x4x4'"),
        (["--minutes", "-1"], "minutes: expected at least 0, got -1"),
        (["--minutes", "nan"], "minutes: expected at least 0, got nan"),
        (["--dtype", "float16"], "dtype: expected float32 or float64, got 'float16'"),
        (["--backend", "torch"], "backend: "),
        (["--backend", "cupy"], "backend: "),
        (["--out", "nowhere/record.json"], "out: cannot write nowhere/record.json: its parent is not a directory"),
        (["--plot", "."], "plot: cannot write .: it is a directory"),
    ],
)
def test_requests_that_cannot_be_met(capsys, arguments, reason):
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"bnengine: --{reason}")
    assert err.count("\n") == 1


def test_no_record_is_written_for_a_backend_that_is_not_measured(capsys):
    assert run(capsys, *TINY, "--backend", "cupy", "--out", "record.json")[0] == 2
    assert not Path("record.json").exists()


def test_a_layout_says_where_the_channels_are():
    groups = bench.Options(shapes="6x5,2x4x4x3", layout="nhwc").groups()
    assert groups["shapes"] == [Shape((6, 5)), Shape((2, 4, 4, 3), -1)]


def test_a_busy_machine_is_told(monkeypatch, capsys):
    monkeypatch.setattr(provenance, "load", lambda: 1000.0)
    assert main(["bench", *TINY]) == 0
    assert "the machine is busy (load 1000.0" in capsys.readouterr().err


def test_each_case_is_on_the_disk_when_it_is_measured(monkeypatch, capsys):
    """What was measured stays where the next case never ends."""
    measure, cases = bench.measure, []

    def measured(case, *rest, **more):
        if cases:
            raise KeyboardInterrupt
        cases.append(case)
        return measure(case, *rest, **more)

    monkeypatch.setattr(bench, "measure", measured)
    assert run(capsys, *TINY, "--shapes", "8x4,8x5", "--out", "record.json")[0] == 130
    assert {row["case"] for row in json.loads(Path("record.json").read_text())["rows"]} == {"8x4 rows"}


# ---- warm-up


def test_warmup_says_how_long_it_took_and_where_the_kernels_are(capsys):
    need("numba")
    assert main(["warmup", "--dtype", "float64"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("cpu, float64: ")
    assert "kept in " in out


def test_warmup_without_numba_names_the_extra(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "_load", lambda name: ImportError("No module named 'numba'"))
    assert main(["warmup"]) == 2
    assert "Install the extra cpu" in capsys.readouterr().err


def test_the_largest_error_is_of_any_result_and_refuses_another_shape():
    right = np.array([1.0, -4.0]), np.array([[10.0]])
    assert normalization.largest_error(right, (np.array([1.0, -4.0]), np.array([[9.0]]))) == pytest.approx(0.1)
    assert normalization.largest_error(right, (np.array([3.0, -4.0]),)) == pytest.approx(0.5)
    assert normalization.largest_error(right, (np.array([3.0, -4.0]),), but=np.array([True, False])) == 0
    assert np.isnan(normalization.largest_error(right, (np.array([np.nan, -4.0]), np.array([[10.0]]))))
    with pytest.raises(ValueError, match=r"expected a result of shape \(2,\), got \(1, 2\)"):
        normalization.largest_error(right, (np.array([[1.0, -4.0]]),))


def test_a_record_knows_the_commit_of_its_checkout():
    git = ["git", "-C", str(Path(__file__).parents[1])]
    found = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("not in a checkout")
    assert provenance.commit().removesuffix("+") == found.stdout.strip()
