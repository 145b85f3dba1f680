from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from bnengine import data
from bnengine.data import DataError, labels, sets, sources
from bnengine.data.layout import Wanted
from bnengine.data.tables import read_table


def write_idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    Path(path).write_bytes(gzip.compress(raw) if str(path).endswith(".gz") else raw)


@pytest.fixture
def idx_directory(tmp_path, rng):
    """A directory in the format of the MNIST family, with digits in it."""
    directory = tmp_path / "images"
    directory.mkdir()
    digits = data.load("digits")
    for stem, x, y in (("train", digits.x_train, digits.y_train), ("t10k", digits.x_test, digits.y_test)):
        write_idx(directory / f"{stem}-images-idx3-ubyte.gz", x.reshape(-1, 8, 8))
        write_idx(directory / f"{stem}-labels-idx1-ubyte", y)
    return directory


def test_digits_are_split_by_class_and_seed():
    one, again, other = data.load("digits"), data.load("digits"), data.load("digits", seed=1)
    np.testing.assert_array_equal(one.x_test, again.x_test)
    assert not np.array_equal(one.y_test, other.y_test)
    for dataset in (one, other):
        assert np.bincount(dataset.y_test).min() >= 34
        assert len(dataset.y_train) + len(dataset.y_test) == 1797


def test_breast_cancer():
    dataset = data.load("breast-cancer")
    assert dataset.features == 30
    assert dataset.classes == ("malignant", "benign")
    assert dataset.outputs == 2


def test_idx_files_give_the_images_back(idx_directory):
    dataset, digits = data.load(str(idx_directory)), data.load("digits")
    np.testing.assert_allclose(dataset.x_train * 255, digits.x_train, rtol=1e-6)
    np.testing.assert_array_equal(dataset.y_test, digits.y_test)
    assert dataset.classes == tuple("0123456789")


def test_fashion_mnist_is_checked_by_its_contents(idx_directory, monkeypatch):
    monkeypatch.setenv("BNENGINE_FASHION_MNIST", str(idx_directory))
    with pytest.raises(DataError, match="not the published Fashion-MNIST file: SHA-256 of its contents is"):
        data.load("fashion-mnist")
    monkeypatch.setenv("BNENGINE_FASHION_MNIST", "nowhere")
    with pytest.raises(DataError, match="apt install dataset-fashion-mnist"):
        data.load("fashion-mnist")


@pytest.mark.skipif(not Path(sources.FASHION_MNIST_DIRECTORY).is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_fashion_mnist():
    dataset = data.load("fashion-mnist")
    assert dataset.x_train.shape == (60000, 784)
    assert dataset.x_test.shape == (10000, 784)
    assert (dataset.x_train.min(), dataset.x_train.max()) == (0, 1)
    assert np.bincount(dataset.y_test).tolist() == [1000] * 10
    assert dataset.classes[9] == "ankle-boot"


BAD_IDX = [
    (lambda raw: raw[:-5], "expected .* bytes for shape"),
    (lambda raw: raw + b"\0", "expected .* bytes for shape"),
    (lambda raw: b"\0\0\x0d" + raw[3:], "expected an IDX file of unsigned bytes"),
    (lambda raw: b"", "expected an IDX file of unsigned bytes"),
    (lambda raw: raw[:6], "expected 8 bytes of header, got 6"),
    (lambda raw: raw[:4] + b"\xff" * 4 + raw[8:], "expected .* bytes for shape"),
]


@pytest.mark.parametrize(("change", "message"), BAD_IDX, ids=range(len(BAD_IDX)))
def test_damaged_idx_files_are_refused(idx_directory, change, message):
    path = idx_directory / "train-labels-idx1-ubyte"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        data.load(str(idx_directory))


def test_other_idx_refusals(idx_directory):
    (idx_directory / "t10k-images-idx3-ubyte.gz").write_bytes(b"not gzip")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz: cannot be read"):
        data.load(str(idx_directory))
    (idx_directory / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"expected t10k-images-idx3-ubyte or t10k-images-idx3-ubyte.gz, found neither"):
        data.load(str(idx_directory))
    write_idx(idx_directory / "t10k-images-idx3-ubyte", np.zeros((3, 8, 8)))
    with pytest.raises(DataError, match=r"t10k has images \(3, 8, 8\) but labels \(360,\)"):
        data.load(str(idx_directory))
    write_idx(idx_directory / "t10k-images-idx3-ubyte", np.zeros((0, 8, 8)))
    write_idx(idx_directory / "t10k-labels-idx1-ubyte", np.zeros(0))
    with pytest.raises(DataError, match=r"t10k has images \(0, 8, 8\) but labels \(0,\)"):
        data.load(str(idx_directory))


# ---- CSV


def write_csv(text):
    Path("data.csv").write_text(text)
    return "data.csv"


def rows_of(n, label):
    return "".join(f"{i},{i * i % 7},{label(i)}\n" for i in range(n))


def test_csv_classes_by_text():
    dataset = data.load(write_csv("a,b,kind\n" + rows_of(40, lambda i: "cat" if i % 2 else "dog")))
    assert dataset.task == "classification"
    assert dataset.classes == ("cat", "dog")
    assert dataset.columns == ("a", "b")
    assert len(dataset.y_test) == 8
    for x, y in ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test)):
        np.testing.assert_array_equal(y, 1 - x[:, 0] % 2)


def test_csv_classes_keep_the_order_of_their_numbers():
    dataset = data.load(write_csv("a,b,y\n" + rows_of(60, lambda i: [2, 10, 1][i % 3])))
    assert dataset.classes == ("1", "2", "10")


def test_csv_regression_and_task():
    text = "a,b,y\n" + rows_of(60, lambda i: i / 3 + 0.5)
    assert data.load(write_csv(text)).task == "regression"
    text = "a,b,y\n" + rows_of(60, lambda i: i % 5)
    assert data.load(write_csv(text)).task == "classification"
    assert data.load("data.csv", task="regression").y_train.dtype == np.float64
    text = "a,b,y\n" + rows_of(60, lambda i: i)
    assert data.load(write_csv(text)).task == "regression"  # 60 different whole numbers are values


@pytest.mark.parametrize("label", ["kind", "0", "-3"])
def test_csv_label_by_name_or_position(label):
    dataset = data.load(write_csv("kind,a,b\n" + "x,1,2\ny,3,4\n" * 20), label=label)
    assert dataset.columns == ("a", "b")
    assert dataset.classes == ("x", "y")


def test_csv_with_quotes_and_byte_order_mark():
    Path("data.csv").write_bytes('\ufeff"a, first",y\r\n'.encode() + b'"1",x\r\n"2",y\r\n' * 10)
    assert data.load("data.csv").columns == ("a, first",)


BAD_CSV = [
    ("a,y\n1,x\n,x\n", "line 3, column a: missing value; fill it or leave the row out, or --missing impute"),
    ("a,y\n1,x\nNA,x\n", "data.csv, line 3, column a: missing value 'NA'; fill it"),
    ("a,y\n1,x\nnan,x\n", "data.csv, line 3, column a: missing value 'nan'; fill it"),
    ("a,y\n1,x\n-inf,x\n", "data.csv, line 3, column a: expected a finite number, got '-inf'"),
    ("a,b,y\n1,2,x\n2, two,x\n", "line 3, column b: expected a number, got 'two'; --text onehot takes columns of text"),
    ("a,y\n1,x\n2, \n", "data.csv, line 3, column y: missing label"),
    ("a,y\n1,x\n2\n", "data.csv, line 3: expected 2 columns, got 1"),
    ("a,a\n1,x\n", "a header with a different name for each column"),
    ("1,2\n3,4\n", "expected a header in the first line, got numbers: 1, 2"),
    ("a,y\n", "expected rows below the header, got none"),
    ("", "expected a header in the first line, got an empty file"),
    ("-1.63,-0.75,cat\n1,2,dog\n", "expected a header in the first line, got numbers: -1.63, -0.75"),
    ("a|b|y\n1|2|x\n", r"expected columns separated by ',', but '\|' separates them: --delimiter"),
    ('a,y\n1,"x\n2,z\n', "cannot be read as CSV: unexpected end of data"),
    ("y\nx\n", "expected a label and at least one feature column"),
    ("a,y\n1,x\n2,x\n3,x\n4,x\n5,x\n6,x\n", "expected at least 2 classes, got only 'x'"),
    ("a,y\n1,x\n2,z\n", "2 rows are too few to hold out"),
]


@pytest.mark.parametrize(("text", "message"), BAD_CSV, ids=range(len(BAD_CSV)))
def test_bad_csv_is_refused_by_line_and_column(text, message):
    with pytest.raises(DataError, match=message):
        data.load(write_csv(text))


def test_other_csv_refusals():
    path = write_csv("a,b\n1,2\n")
    with pytest.raises(DataError, match="no column 'c'; its columns are a, b"):
        data.load(path, label="c")
    with pytest.raises(DataError, match="no column '7'"):
        data.load(path, label="7")
    Path("data.csv").write_bytes(b"a,b\n\xff\xfe,2\n")
    with pytest.raises(
        DataError, match=r"data.csv, line 2, character 1: the byte ff is no UTF-8 text; save the file as"
    ):
        data.load(path)
    with pytest.raises(DataError, match="task: regression needs finite numbers as targets, got 'x' in row 1"):
        data.load(write_csv("a,y\n" + "1,x\n2,z\n" * 9), task="regression")


@pytest.mark.parametrize("stray", ["nan", "inf", "1.2x"])
def test_a_label_that_is_no_number_among_numbers_is_refused_by_its_line(stray):
    path = write_csv("a,y\n" + "".join(f"{i},{i / 10}\n" for i in range(60)) + f'1,"{stray}"\n')
    with pytest.raises(DataError, match=f"line 62: label '{stray}' is no finite number, others are"):
        data.load(path)
    assert stray in data.load(path, task="classification").classes


def test_names_beside_a_few_whole_numbers_are_classes():
    assert data.load(write_csv("a,y\n" + "1,0\n2,1\n3,none\n" * 9)).classes == ("0", "1", "none")
    with pytest.raises(DataError, match="line 5: label 'nan' is no finite number, others are"):
        data.load(write_csv("a,y\n1,0\n2,1\n3,0\n4,nan\n" + "1,0\n2,1\n" * 9))


def test_the_fingerprint_of_parts_adds_up_and_sees_any_change(rng):
    x, y = rng.standard_normal((5000, 3)).astype(np.float32), rng.integers(0, 3, 5000)
    whole = sets.fingerprint(x, y)
    assert (sets.fingerprint(x[:4100], y[:4100]) + sets.fingerprint(x[4100:], y[4100:], 4100)) % 2**64 == whole
    for change in (lambda a, b: (a[::-1], b[::-1]), lambda a, b: (a[:, ::-1], b), lambda a, b: (a, (b + 1) % 3)):
        assert sets.fingerprint(*change(x, y)) != whole
    x[4999, 2] = np.nextafter(x[4999, 2], np.float32(9))
    assert sets.fingerprint(x, y) != whole


# ---- npz


def test_npz_with_and_without_a_test_part(rng):
    x, y = rng.standard_normal((50, 2, 3)), np.arange(50) % 2
    np.savez("own.npz", x=x, y=y, x_test=x[:5], y_test=y[:5])
    dataset = data.load("own.npz")
    np.testing.assert_array_equal(dataset.x_train, x.reshape(50, 6))
    np.testing.assert_array_equal(dataset.y_test, y[:5])
    np.savez("own.npz", x=x, y=rng.standard_normal((50, 1)))
    dataset = data.load("own.npz")
    assert dataset.task == "regression"
    assert dataset.x_test.shape == (10, 6)


def test_npz_with_the_names_of_keras(rng):
    x, y = rng.standard_normal((50, 3)), np.arange(50) % 2
    np.savez("keras.npz", x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    dataset = data.load("keras.npz")
    np.testing.assert_array_equal(dataset.x_train, x)
    np.testing.assert_array_equal(dataset.x_test, x[:5])
    np.savez("both.npz", x_train=x + 1, x=x, y=y)  # its own x is not taken for the other
    np.testing.assert_array_equal(data.load("both.npz", test=0).x_train, x)


def test_a_second_npz_file_is_the_test_part(rng):
    x, y = rng.standard_normal((50, 3)), np.arange(50) % 2
    np.savez("train.npz", x=x, y=y)
    np.savez("test.npz", x_train=x[:7], y_train=y[:7])
    dataset = data.load("train.npz", test_data="test.npz")
    assert (len(dataset.y_train), len(dataset.y_test)) == (50, 7)
    np.savez("train.npz", x=x, y=y, x_test=x, y_test=y)
    with pytest.raises(DataError, match=r"test_data: train.npz has a test part of its own, x_test"):
        data.load("train.npz", test_data="test.npz")
    with pytest.raises(DataError, match=r"test_data: expected a .npz file as train.npz is, got nowhere.npz"):
        data.load("train.npz", test_data="nowhere.npz")


def test_all_rows_can_be_for_training():
    for source in ("digits", write_csv("a,b,y\n" + rows_of(60, lambda i: i / 3 + 0.5))):
        part, whole = data.load(source), data.load(source, test=0)
        assert len(whole.y_train) == len(part.y_train) + len(part.y_test)
        assert whole.x_test.shape == (0, whole.features)


def test_a_second_csv_file_is_the_test_part():
    path = write_csv("a,b,kind\n" + rows_of(40, lambda i: "cat" if i % 2 else "dog"))
    Path("test.csv").write_text("kind,b,a,more\ncat,1,2,x\ndog,3,4,y\n")  # other order, one column more
    dataset = data.load(path, test_data="test.csv")
    assert len(dataset.y_train) == 40
    np.testing.assert_array_equal(dataset.x_test, [[2, 1], [4, 3]])
    np.testing.assert_array_equal(dataset.y_test, [0, 1])
    for text, message in (
        ("kind,a\ncat,1\n", "test.csv: no column b; its columns are kind, a"),
        ("a,b\n1,2\n", "test.csv: no column 'kind'; its columns are a, b"),
        ("a,b,kind\n1,2,cow\n", "test.csv, line 2: label 'cow' is none of the classes cat, dog"),
    ):
        Path("test.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            data.load(path, test_data="test.csv")


def test_bad_npz_is_refused(rng):
    x, y = np.ones((6, 2)), np.arange(6) % 2
    holed = x.copy()
    holed[4, 1] = np.inf
    cases = [
        ({"x": x}, "expected the arrays x and y, and optionally x_test and y_test, got x"),
        ({"x": x, "y": y, "x_test": x}, "expected the arrays x and y"),
        ({"x": x[0], "y": y}, r"expected x of shape \(rows, features\), got \(2,\)"),
        ({"x": x.astype(str), "y": y}, "expected numbers in x, got dtype"),
        (
            {"x": holed, "y": y},
            "bad.npz, x: expected finite numbers, got inf in row 4, column 1",
        ),
        ({"x": x, "y": y[:3]}, r"expected y of shape \(6,\), got \(3,\)"),
        ({"x": x, "y": (y + 1) * np.inf}, "expected finite numbers or text in y"),
        ({"x": x, "y": y, "x_test": x[:, :1], "y_test": y}, "x has 2 features but x_test has 1"),
        ({"x": np.asarray([{}] * 6), "y": y}, "cannot be read as npz"),
    ]
    for arrays, message in cases:
        with np.errstate(invalid="ignore"):
            np.savez("bad.npz", **arrays)
        with pytest.raises(DataError, match=message):
            data.load("bad.npz")
    Path("bad.npz").write_bytes(b"PK\x03\x04 not a zip")
    with pytest.raises(DataError, match=r"bad.npz: cannot be read as npz"):
        data.load("bad.npz")


def test_other_sources_are_refused():
    with pytest.raises(DataError, match="no file or directory mnist; the data sets by name are digits, breast-cancer"):
        data.load("mnist")
    Path("data.xlsx").write_text("")
    with pytest.raises(
        DataError,
        match=r"expected .npz, .csv, .tsv, .gz of these, .parquet, or a directory of .npy or IDX files, got data.xlsx",
    ):
        data.load("data.xlsx")
    with pytest.raises(
        DataError, match="label: only a CSV, TSV or Parquet file has columns to choose, and data is digits"
    ):
        data.load("digits", label="y")


X, Y = np.arange(12.0).reshape(6, 2), np.arange(6) % 2
REFUSED = [
    (lambda: data.hold_out(X.tolist(), Y, 0.5, seed=0, stratify=True), "x: expected a NumPy array, got"),
    (lambda: data.hold_out(X * 1j, Y, 0.5, seed=0, stratify=True), "x: expected numbers or text, got an array"),
    (lambda: data.hold_out(X, Y[:3], 0.5, seed=0, stratify=True), "x, y: expected rows and a label for each"),
    (lambda: data.hold_out(X, X, 0.5, seed=0, stratify=True), "x, y: expected rows and a label for each"),
    (lambda: data.hold_out(X[:0], Y[:0], 0.5, seed=0, stratify=True), "x, y: expected rows and a label for each"),
    (lambda: data.hold_out(X, Y, 1, seed=0, stratify=True), "part: expected a part between 0 and 1, got 1"),
    (lambda: data.hold_out(X, Y, 0, seed=0, stratify=True), "part: expected a part between 0 and 1, got 0"),
    (lambda: data.hold_out(X, Y, 0.5, seed=-1, stratify=True), "seed: expected an int of at least 0, got -1"),
    (lambda: data.hold_out(X, Y, 0.5, seed=0, stratify=1), "stratify: expected True or False, got 1"),
    (lambda: data.hold_out(X[:2], Y[:2], 0.3, seed=0, stratify=False), "2 rows are too few to hold out 0.3"),
    (
        lambda: data.batches(1, 2, np.random.default_rng(0)),
        "batch_size: expected at least 2 rows in batches of at least 1",
    ),
    (
        lambda: data.batches(4, 0, np.random.default_rng(0)),
        "batch_size: expected at least 2 rows in batches of at least 1",
    ),
    (lambda: data.batches(4, 2.0, np.random.default_rng(0)), "in batches of at least 1, got 4 rows, size 2.0"),
    (lambda: data.batches(4, 2, 0), "rng: expected a NumPy random Generator, got 0"),
    (lambda: data.load("digits", test=1), "test: expected a part between 0 and 1, got 1"),
    (lambda: data.load("digits", test=-0.1), "test: expected a part between 0 and 1, got -0.1"),
    (lambda: data.load("digits", test_data="a.csv"), "test_data: only a CSV or npz file takes another of its kind"),
    (lambda: data.load("digits", seed=1.5), "seed: expected an int of at least 0, got 1.5"),
    (lambda: data.load("digits", task="clustering"), "task: expected 'auto', 'classification' or 'regression', got"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=range(len(REFUSED)))
def test_arguments_of_another_kind_are_refused(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_as_many_rows_as_there_must_be_are_enough():
    x, held, y, _ = data.hold_out(X[:3], Y[:3], 0.3, seed=0, stratify=False)
    assert (len(x), len(held), len(y)) == (2, 1, 2)
    assert [len(batch) for batch in data.batches(2, 2, np.random.default_rng(0))] == [2]


def test_whole_numbers_are_classes_as_far_as_float64_holds_them():
    x = np.random.default_rng(0).standard_normal((40, 2))
    np.savez("own.npz", x=x, y=np.where(np.arange(40) % 2, 2**53, 1))
    assert data.load("own.npz").classes == ("1", str(2**53))
    np.savez("own.npz", x=x, y=np.where(np.arange(40) % 2, 2.0**54, 1))
    assert data.load("own.npz").task == "regression"


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="no column c, d; its columns are a, b"):
        read_table(Path(write_csv("a,b\n1,2\n")), Wanted(columns=["c", "a", "d"], labelled=False))


def test_labels_as_numbers_of_known_classes():
    numbers = labels.class_numbers(np.asarray(["b", "a"]), ("a", "b"), "here")
    np.testing.assert_array_equal(numbers, [1, 0])
    np.testing.assert_array_equal(labels.class_numbers(np.asarray(["1.0", "2"]), ("1", "2"), "here"), [0, 1])
    with pytest.raises(DataError, match="here, row 1: label 'c' is none of the classes a, b"):
        labels.class_numbers(np.asarray(["a", "c"]), ("a", "b"), "here")


def test_a_class_of_one_row_does_not_stop_the_split():
    dataset = data.load(write_csv("a,b,y\n" + rows_of(30, lambda i: "rare" if i == 7 else "common")))
    assert len(dataset.y_train) + len(dataset.y_test) == 30
