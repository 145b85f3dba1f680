"""Tables as people have them: what separates the columns, which of them are taken, missing values, text."""

from __future__ import annotations

import gzip
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from libraries import need

import bnengine as bn
from bnengine import checkpoints, cli, data
from bnengine.cli import main
from bnengine.data import DataError, careful, fast, inputs, tables
from bnengine.data.encoding import Encoding
from bnengine.data.layout import Wanted
from bnengine.data.tables import read_table

QUICK = ["--epochs", "2", "--hidden", "8", "--learning-rate", "0.02", "--out", "run"]


def write(text, name="data.csv"):
    content = text.encode()
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return name


def points(n=60, row=lambda i: f"{i * i % 7},{i % 5}", header="a,b"):
    """Rows with a class of two."""
    return f"{header},kind\n" + "".join(f"{row(i)},{'cat' if i % 2 else 'dog'}\n" for i in range(n))


def run(capsys, *arguments):
    """(exit status, standard output, standard error)."""
    return main([str(a) for a in arguments]), *capsys.readouterr()


def piped(monkeypatch, text):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))


# ---- what is predicted


def test_the_label_is_named_with_its_classes_or_values():
    assert data.load(write(points())).predicts == "'kind' (classification, 2 classes: cat, dog)"
    write("a,price\n" + "".join(f"{i % 7},{12.5 + i}\n" for i in range(60)))
    assert data.load("data.csv").predicts == "'price' (regression, 12.5 to 71.5)"
    assert data.load("digits").predicts == "the label (classification, 10 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9)"
    write("a,y\n" + "".join(f"{i % 7},c{i % 12:02}\n" for i in range(60)))
    assert data.load("data.csv").predicts.endswith("12 classes: c00, c01, c02, c03, c04, c05, c06, c07, c08, c09, ...)")


DOUBTS = [
    (points(row=lambda i: f"{i},{i % 5}", header=",b"), "column 0 has no name, as the index of a data frame has none"),
    (points(row=lambda i: f"{i},{i % 5}"), "the first column, a, counts the rows, as an index does: --drop 0 leaves"),
    (points(row=lambda i: f"{i + 1},{i % 5}"), "the first column, a, counts the rows"),
    (points() + "3,4,bird\n5,6,cow\n", "the label kind has 2 classes with one row: bird, cow"),
    ("a,age\n" + "".join(f"{i % 7},{i % 40}\n" for i in range(80)), "age has 40 different whole numbers, taken as cl"),
    ("a,id\n" + "".join(f"{i % 7},x{i}\n" for i in range(50)), "the label id has another value in each row"),
    ("a,id\n" + "".join(f"{i % 7},{i + 100}\n" for i in range(60)), "the label id numbers the rows, as an identifier"),
]


@pytest.mark.parametrize(("text", "words"), DOUBTS, ids=range(len(DOUBTS)))
def test_what_may_be_wrong_with_a_table_is_said_in_a_line(text, words):
    (line,) = data.load(write(text), test=0).warnings
    assert line.startswith("data.csv: ")
    assert words in line


def test_nothing_is_said_of_what_is_right():
    assert data.load(write(points())).warnings == ()
    assert data.load(write(points(row=lambda i: f"{i},{i % 5}")), drop=["0"]).warnings == ()
    write("a,age\n" + "".join(f"{i % 7},{i % 40}\n" for i in range(80)))
    assert (
        data.load("data.csv", task="classification").warnings == data.load("data.csv", task="regression").warnings == ()
    )
    write("a,price\n" + "".join(f"{i % 7},{i * i}\n" for i in range(80)))
    assert data.load("data.csv").warnings == ()


def test_train_names_the_label_first_and_warns_on_standard_error(capsys):
    write(points(row=lambda i: f"{i},{i * i % 7}", header=",b"))
    status, out, err = run(capsys, "train", "--data", "data.csv", *QUICK)
    assert status == 0
    assert out.startswith("predicting 'kind' (classification, 2 classes: cat, dog)\n")
    (line,) = [line for line in err.splitlines() if "data.csv" in line]
    assert line.startswith("bnengine: warning: data.csv: column 0 has no name")


# ---- columns


def test_columns_are_chosen_by_name_or_position():
    write("id,a,b,kind,c\n" + "".join(f"{i},{i % 3},{i % 5},{'xy'[i % 2]},{i % 7}\n" for i in range(40)))
    assert data.load("data.csv", label="kind", drop=["0"]).columns == ("a", "b", "c")
    assert data.load("data.csv", label="kind", drop=["id", "-1"]).columns == ("a", "b")
    found = data.load("data.csv", label="kind", features=["c", "1"], test=0)
    assert found.columns == ("c", "a")
    np.testing.assert_array_equal(found.x_train[:3], [[0, 0], [1, 1], [2, 2]])
    for options, message in (
        ({"drop": ["d"]}, "drop: data.csv has no column 'd'; its columns are id, a, b, kind, c"),
        ({"features": ["9"]}, "features: data.csv has no column '9'"),
        ({"features": ["kind"]}, "features: 'kind' is the column to predict; --label names another"),
        ({"drop": ["3"]}, "drop: 'kind' is the column to predict"),
        ({"drop": "id"}, "drop: expected a sequence of names of columns, got 'id'"),
        ({"drop": ["id", "a", "b", "c"]}, "expected a label and at least one feature column"),
    ):
        with pytest.raises(DataError, match=message):
            data.load("data.csv", label="kind", **options)
    for name in ("drop", "features"):
        with pytest.raises(
            DataError, match=f"{name}: only a CSV, TSV or Parquet file has columns to choose, and data is digits"
        ):
            data.load("digits", **{name: ["0"]})


def test_a_run_keeps_its_columns_by_name(capsys):
    write(points(row=lambda i: f"{i},{i % 3},{i % 5}", header="id,a,b"))
    assert run(capsys, "train", "--data", "data.csv", "--drop", "0", *QUICK)[0] == 0
    assert run(capsys, "evaluate", "run")[0] == 0
    write("b,other,a\n1,x,2\n", "new.csv")
    status, out, err = run(capsys, "predict", "run", "--data", "new.csv")
    write("0,b,a\n9,1,2\n", "new.csv")
    assert run(capsys, "predict", "run", "--data", "new.csv") == (status, out, err)
    assert (status, err) == (0, "")
    assert run(capsys, "train", "--config", "run/config.toml", "--out", "again")[0] == 0
    assert run(capsys, "train", "--out", "run", "--resume")[0] == 0


# ---- what separates them, and where they come from


@pytest.mark.parametrize(
    ("name", "delimiter"),
    [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", " "), ("a.tsv", "\t"), ("a.csv.gz", ","), ("a.tsv.gz", "\t")],
)
def test_what_separates_the_columns_is_found_and_said(name, delimiter):
    text = points()
    expected = data.load(write(text))
    found = data.load(write(text.replace(",", delimiter), name))
    np.testing.assert_array_equal(found.x_train, expected.x_train)
    assert (found.columns, found.label, found.classes, found.name) == (("a", "b"), "kind", ("cat", "dog"), "a")
    said = () if delimiter == "," or ".tsv" in name else (f"{name}: columns separated by {delimiter!r}",)
    assert found.notes == said


def test_predict_and_evaluate_say_what_separates_the_columns(capsys):
    text = points().replace(",", ";")
    assert run(capsys, "train", "--data", write(text), *QUICK)[1].startswith("data.csv: columns separated by ';'\n")
    assert run(capsys, "evaluate", "run")[::2] == (0, "")  # as training has said
    said = "bnengine: data.csv: columns separated by ';'\n"
    assert run(capsys, "evaluate", "run", "--data", "data.csv")[::2] == (0, said)
    assert run(capsys, "predict", "run", "--data", "data.csv")[::2] == (0, said)
    assert run(capsys, "predict", "run", "--data", "data.csv", "--delimiter", ";")[::2] == (0, "")


def test_predict_and_evaluate_show_how_far_the_reading_is(capsys, monkeypatch):
    write(points())
    assert run(capsys, "train", "--data", "data.csv", *QUICK)[0] == 0
    whole = "\r              \r"
    for command in (
        ["evaluate", "run"],
        ["evaluate", "run", "--data", "data.csv"],
        ["predict", "run", "--data", "data.csv"],
    ):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        assert run(capsys, *command)[2].endswith(whole)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
        assert run(capsys, *command)[2] == ""


def test_a_delimiter_can_be_named(capsys):
    write("a|b|kind\n" + "1|2|x\n3|4|y\n" * 20)
    assert data.load("data.csv", delimiter="|").columns == ("a", "b")
    write("a b;c,kind\n" + "1;2,x\n3;4,y\n" * 20)
    for delimiter in (";", "semicolon"):
        with pytest.raises(DataError, match=r"data.csv, line 2, column a b: expected a number|column c,kind"):
            data.load("data.csv", delimiter=delimiter, label="0")
    for delimiter in (";;", "x", '"'):
        with pytest.raises(DataError, match="delimiter: expected one character, or comma, semicolon, tab, space, got"):
            data.load("data.csv", delimiter=delimiter)
    write(points().replace(",", "|"))
    assert run(capsys, "train", "--data", "data.csv", "--delimiter", "|", *QUICK)[0] == 0
    assert run(capsys, "evaluate", "run")[0] == 0
    write("b|a\n1|2\n", "new.csv")
    assert run(capsys, "predict", "run", "--data", "new.csv", "--delimiter", "|")[0] == 0
    assert run(capsys, "predict", "run", "--data", "new.csv")[0] == 2


def test_a_decimal_comma_is_not_what_separates():
    write("a;y\n1,5;x\n2,5;z\n")
    with pytest.raises(DataError, match=r"data.csv, line 2, column a: expected a number, got '1,5'"):
        data.load("data.csv")


def test_standard_input_trains_and_is_predicted(capsys, monkeypatch):
    piped(monkeypatch, points())
    status, out, _ = run(capsys, "train", "--data", "-", *QUICK)
    assert (status, "\nstdin: 43 training" in out) == (0, True)
    piped(monkeypatch, "a,b\n1,2\n")
    status, out, _ = run(capsys, "predict", "run", "--data", "-")
    assert (status, len(out.splitlines())) == (0, 2)
    reason = "data: the run read its rows by standard input; name other rows with --data"
    assert run(capsys, "evaluate", "run") == (2, "", f"bnengine: {reason}\n")
    piped(monkeypatch, "a,b\n1,x\n")
    assert run(capsys, "predict", "run", "--data", "-")[2] == (
        "bnengine: standard input, line 2, column b: expected a number, got 'x'\n"
    )


def test_damaged_gzip_files_are_refused(monkeypatch):
    packed = gzip.compress(points(2000).encode())
    for content in (packed[:-20], packed[:100] + b"\0\0\0" + packed[103:], b"a,b\n1,2\n"):
        Path("data.csv.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"data.csv.gz: cannot be read"):
            data.load("data.csv.gz")
    Path("data.csv.gz").write_bytes(gzip.compress(b"a,b\n" + b"1" * 2**26))
    with pytest.raises(DataError, match="no line ends within 16777216 bytes, so it is no table"):
        data.load("data.csv.gz")
    monkeypatch.setattr(inputs, "LIMIT", 2**10)
    with pytest.raises(DataError, match="unpacks to more than 1024 bytes; store it uncompressed"):
        data.load(write(points(2000), "data.csv.gz"))
    assert data.load(write(points(2000))).features == 2


def test_what_is_no_utf8_is_named_by_its_place():
    Path("data.csv").write_bytes("a,kind\n1,x\n2,caf\u00e9\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"data.csv, line 3, character 6: the byte e9 is no UTF-8 text; save the file"):
        data.load("data.csv")
    Path("data.csv").write_bytes("a,kind\n1,x\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"data.csv, line 1: the text is UTF-16; save it as UTF-8"):
        data.load("data.csv")


# ---- missing values


@pytest.mark.parametrize("spelling", ["", " ", "NA", "N/A", "nan", "NaN", "null", "NULL", "None", "?"])
def test_spellings_of_a_missing_value(spelling):
    write("a,b,kind\n" + f"1,{spelling},x\n2,5,y\n" * 20)
    with pytest.raises(DataError, match=r"data.csv, line 2, column b: missing value"):
        data.load("data.csv")
    found = data.load("data.csv", missing="impute", test=0)
    np.testing.assert_array_equal(found.x_train, [[1, 5, 1], [2, 5, 0]] * 20)
    assert found.columns == ("a", "b", "b missing")
    assert found.notes == ("data.csv: missing values filled, 20 in all: b 20",)


def test_the_median_is_that_of_the_training_rows():
    values = [i * i for i in range(50)]
    write("a,b,y\n" + "".join(f"{'?' if i % 7 == 0 else v},{i},{v / 3}\n" for i, v in enumerate(values)))
    found = data.load("data.csv", missing="impute")
    known = {int(i): i % 7 for i in found.x_train[:, 2]}
    expected = np.median([values[i] for i, rest in known.items() if rest])
    assert found.encoding.columns[0].fill == expected != np.median([v for i, v in enumerate(values) if i % 7])
    for x in (found.x_train, found.x_test):
        gone = x[:, 2] % 7 == 0
        np.testing.assert_array_equal(x[:, 1], gone)
        assert set(x[gone, 0]) == {expected}
    with pytest.raises(DataError, match=r"data.csv, column b: all values of the training rows are missing; --drop it"):
        data.load(write("a,b,kind\n" + "1,NA,x\n2,,y\n" * 20), missing="impute")
    with pytest.raises(DataError, match=r"data.csv, line 2, column kind: missing label"):
        data.load(write("a,b,kind\n" + "1,NA,\n2,,y\n" * 20), missing="impute")


def test_missing_values_are_filled_in_predict_and_evaluate_as_in_training(capsys):
    write(points(row=lambda i: f"{'' if i % 9 == 0 else i % 7},{i % 5}"))
    status, out, err = run(capsys, "train", "--data", "data.csv", "--missing", "impute", *QUICK)
    assert (status, err) == (0, "")
    assert out.startswith("data.csv: missing values filled, 7 in all: a 7\npredicting 'kind'")
    assert run(capsys, "evaluate", "run")[::2] == (0, "")
    assert run(capsys, "evaluate", "run", "--data", "data.csv")[::2] == (
        0,
        "bnengine: warning: data.csv: missing values filled, 7 in all: a 7\n",
    )
    write("a,b\n1,2\n,NA\n", "new.csv")
    status, out, err = run(capsys, "predict", "run", "--data", "new.csv")
    assert (status, len(out.splitlines())) == (0, 3)
    assert err == "bnengine: warning: new.csv: missing values filled, 2 in all: a 1, b 1\n"
    loaded = bn.load("run/model.safetensors")
    fills = {column["name"]: column["fill"] for column in loaded.metadata["encoding"]["columns"]}
    row = np.asarray([[fills["a"], 1, fills["b"]]], np.float32)  # features: a, whether it is missing, b
    logits = bn.predict(loaded.net, loaded.params, loaded.state, row)[0]
    expected = np.exp(logits[0]) / np.exp(logits).sum()
    assert float(out.splitlines()[2].split(",")[1]) == pytest.approx(expected, abs=1e-6)


def test_a_run_without_it_refuses_missing_values_and_text_in_predict(capsys):
    write(points())
    assert run(capsys, "train", "--data", "data.csv", *QUICK)[0] == 0
    write("a,b\n1,2\nNA,3\n", "new.csv")
    reason = "new.csv, line 3, column a: missing value 'NA'; fill it or leave the row out"
    assert run(capsys, "predict", "run", "--data", "new.csv") == (2, "", f"bnengine: {reason}\n")


# ---- text


def test_text_becomes_a_feature_for_each_category(capsys):
    write(points(row=lambda i: f"{['red', 'green', ' 1'][i % 3]},{i % 5}", header="colour,b"))
    with pytest.raises(DataError, match="line 2, column colour: expected a number, got 'red'; --text onehot takes"):
        data.load("data.csv")
    found = data.load("data.csv", text="onehot", test=0)
    assert found.columns == ("colour=1", "colour=green", "colour=red", "b")
    np.testing.assert_array_equal(found.x_train[:4], [[0, 0, 1, 0], [0, 1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]])
    assert run(capsys, "train", "--data", "data.csv", "--text", "onehot", *QUICK)[::2] == (0, "")
    assert run(capsys, "evaluate", "run")[::2] == (0, "")
    write("b,colour\n2,red\n2,mauve\n2,mauve\n2,pink\n", "new.csv")
    status, out, err = run(capsys, "predict", "run", "--data", "new.csv")
    lines = out.splitlines()
    assert (status, len(lines)) == (0, 5)
    assert lines[1] != lines[2] == lines[3] == lines[4]  # zeros, whatever the text
    words = "texts that the training file has not, taken as none of its categories, 3 in all: colour 3"
    assert err == f"bnengine: warning: new.csv: {words}\n"


def test_a_column_that_proves_to_be_text_late_is_text_from_the_start():
    write(points(3000, row=lambda i: f"{'late' if i == 2900 else i % 3},{i % 5}"))
    found = data.load("data.csv", text="onehot", test=0)
    assert found.columns == ("a=0", "a=1", "a=2", "a=late", "b")
    np.testing.assert_array_equal(found.x_train[:3, :3], np.eye(3))
    np.testing.assert_array_equal(found.x_train.sum(axis=0)[:4], [1000, 1000, 999, 1])


def test_text_can_be_missing():
    write(points(row=lambda i: f"{['red', '', 'None'][i % 3]},{i % 5}"))
    with pytest.raises(DataError, match=r"data.csv, line 3, column a: missing value; fill it"):
        data.load("data.csv", text="onehot")
    found = data.load("data.csv", text="onehot", missing="impute", test=0)
    assert found.columns == ("a=red", "a missing", "b")
    np.testing.assert_array_equal(found.x_train[:3, :2], [[1, 0], [0, 1], [0, 1]])


def test_a_column_of_too_many_texts_is_refused(monkeypatch):
    monkeypatch.setattr(careful, "MOST_CATEGORIES", 20)
    write(points(row=lambda i: f"t{i},{i % 5}"))
    with pytest.raises(DataError, match="line 22, column a: more than 20 different texts, too many for --text onehot"):
        data.load("data.csv", text="onehot")


def test_a_test_file_is_encoded_as_the_training_file():
    write(points(row=lambda i: f"{['red', 'green'][i % 2]},{i % 5}"))
    write("b,a,kind\n,red,cat\n3,blue,dog\n", "test.csv")
    found = data.load("data.csv", test_data="test.csv", text="onehot", missing="impute")
    np.testing.assert_array_equal(found.x_test, [[0, 1, 2], [0, 0, 3]])
    assert found.notes == (
        "test.csv: missing values filled, 1 in all: b 1",
        "test.csv: texts that the training file has not, taken as none of its categories, 1 in all: a 1",
    )


def test_a_damaged_encoding_is_refused(capsys):
    write(points(row=lambda i: f"{['red', 'green'][i % 2]},{i % 5}"))
    assert run(capsys, "train", "--data", "data.csv", "--text", "onehot", *QUICK)[0] == 0
    loaded = bn.load("run/model.safetensors")
    encoding = json.loads(json.dumps(loaded.metadata["encoding"]))
    assert Encoding.from_metadata(encoding).to_metadata()["columns"][0]["categories"] == ("green", "red")
    for damage in ([1], {"columns": 3, "impute": True}, {"columns": [{"name": 3}], "impute": True}, {"columns": []}):
        parts = loaded.net, loaded.params, loaded.state
        checkpoints.save("run/model.safetensors", *parts, metadata={**loaded.metadata, "encoding": damage})
        status, out, err = run(capsys, "predict", "run", "--data", "data.csv")
        assert (status, out) == (1, "") or status == 2
        assert "encoding in its metadata: expected columns with name" in err
    for damage in ({}, {**encoding, "columns": encoding["columns"][:1]}):
        checkpoints.save("run/model.safetensors", *parts, metadata={**loaded.metadata, "encoding": damage})
        assert run(capsys, "predict", "run", "--data", "data.csv")[0] != 0


def test_a_run_of_before_has_no_encoding(capsys):
    write(points())
    assert run(capsys, "train", "--data", "data.csv", *QUICK)[0] == 0
    expected = run(capsys, "predict", "run", "--data", "data.csv")
    loaded = bn.load("run/model.safetensors")
    metadata = {name: value for name, value in loaded.metadata.items() if name != "encoding"}
    checkpoints.save("run/model.safetensors", loaded.net, loaded.params, loaded.state, metadata=metadata)
    assert run(capsys, "predict", "run", "--data", "data.csv") == expected


def test_a_directory_may_be_called_as_a_table_is(rng):
    Path("rows.csv").mkdir()
    np.save("rows.csv/x.npy", rng.standard_normal((20, 2)))
    np.save("rows.csv/y.npy", np.arange(20) % 2)
    assert data.load("rows.csv").features == 2


def test_a_terminal_shows_how_far_the_reading_is(capsys):
    for read in (3, 10):
        cli._reading(read, 10)
    assert capsys.readouterr().err == "\rreading:  30%\r\r              \r"


def test_reading_says_how_far_it_is():
    told = []
    write(points(20_000))
    read_table(Path("data.csv"), Wanted(watch=lambda read, size: told.append((read, size))))
    size = Path("data.csv").stat().st_size
    assert told[-1] == (size, size)
    assert all(0 < read <= size for read, _ in told)


# ---- the fast reader


def both(monkeypatch, text, wanted=None, name="big.csv"):
    """What the fast reader makes of it, None where it leaves it; and what the careful one makes, or its refusal."""
    need("pyarrow")
    Path(name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    found = []
    monkeypatch.setattr(fast, "LARGE", 0)
    monkeypatch.setattr(tables, "read_fast", lambda *args: found.append(fast.read_fast(*args)))
    try:
        careful_table = read_table(Path(name), wanted or Wanted())
    except DataError as error:
        careful_table = str(error)
    return (found or [None])[0], careful_table


def same(one, other):
    np.testing.assert_array_equal(one.x, other.x)
    assert one.x.dtype == other.x.dtype
    assert one.y.tolist() == other.y.tolist()
    assert list(one.lines) == list(other.lines)
    return (one.columns, one.label, one.header, one.delimiter, one.texts) == (
        *(other.columns, other.label, other.header, other.delimiter, other.texts),
    )


WHOLE = [
    (b"a,b,y\n1,2.5,x\n-3e-5,.5, z \n", {}),
    (b"a,b,y\r\n1,2.5,x\r\n3,4,z", {}),
    (b'\xef\xbb\xbf"a","b",y\n1,2,caf\xc3\xa9\n0.1,1e22,z\n', {}),
    (b"a;b;y\n1;2;x\n3;4;z\n", {}),
    (b"a,b,y\n1,,x\nNA,n/a,z\n?,NaN,z\nnone,4,x\n", {"impute": True}),
    (b"a,b,y\n1,red,x\n2,green,z\n3,red,z\n", {"one_hot": True}),
    (b"a,b,y\n1,red,x\n2,,z\n3,None,z\n", {"one_hot": True, "impute": True}),
    (b"a,b,y\n1,7,x\n2,8,z\n", {"one_hot": frozenset("b")}),
    (b"a,b,y\n1,7,x\n2,8,z\n", {"label": "a", "drop": ["b"], "one_hot": True}),
    (b"a,b,y\n1,7,x\n2,8,z\n", {"labelled": False, "columns": ["b", "a"]}),
]


@pytest.mark.parametrize("name", ["big.csv", "big.csv.gz"])
@pytest.mark.parametrize(("text", "wanted"), WHOLE, ids=range(len(WHOLE)))
def test_the_fast_reader_reads_what_the_careful_one_reads(monkeypatch, text, wanted, name):
    found, expected = both(monkeypatch, text, Wanted(**wanted), name)
    assert same(found, expected)


LEFT = [
    *(
        b"a,b,y\n1,2,x\n" + row + b"\n3,4,x\n"
        for row in (b"1_0,2,z", b'1,2,"z"', b"1,2,", b"1,2", b"1,2,3,z", b"inf,1,z")
    ),
    *(
        b"a,b,y\n1,2,x\n" + row + b"\n3,4,x\n"
        for row in (b"", b"nan,2,z", b",2,z", b"1,2,\xe9", b"1,2,z\r4,5,z", b"0x1,2,z")
    ),
    *(b"a,b,y\n1,2,x\n" + row + b"\n3,4,x\n" for row in (b"1e999,2,z", b"1,two,z", "\u0661,2,z".encode(), b"1,2,z\0")),
    b"a,b,y\r1,2,x\r3,4,z\r",
    b'a,"b\nc",y\n1,2,x\n3,4,z\n',
    b"a,b,y\n",
    b"a b y\n1 2 x\n3 4 z\n",
    b"a,b,y\n1,2,x\r3,4,z\n\n5,6,x\n",
]


@pytest.mark.parametrize("text", LEFT, ids=range(len(LEFT)))
def test_the_fast_reader_leaves_the_rest_to_the_careful_one(monkeypatch, text):
    assert both(monkeypatch, text)[0] is None


CELLS = st.one_of(
    st.floats().map(repr),
    st.integers(-(10**30), 10**30).map(str),
    st.text(" \t\r\n+-.,;\"'_01eEnaNAinf?x\u00e9\u0661\0", max_size=6),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(CELLS, min_size=2, max_size=3), max_size=5),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["\n", "\r\n"]),
)
def test_whatever_the_fast_reader_takes_the_careful_one_takes_too(monkeypatch, rows, impute, one_hot, end):
    text = end.join(["a,b,y", "1,2,x", *(",".join(row) for row in rows), ""]).encode()
    with monkeypatch.context() as patch:
        found, expected = both(patch, text, Wanted(impute=impute, one_hot=one_hot))
    assert found is None or same(found, expected)


def test_a_large_file_trains_by_the_fast_reader_and_names_lines(capsys, monkeypatch):
    need("pyarrow")
    monkeypatch.setattr(fast, "LARGE", 2**12)
    write(points(2000))
    assert type(read_table(Path("data.csv"), Wanted()).lines) is range
    assert run(capsys, "train", "--data", "data.csv", *QUICK)[0] == 0
    write(points(2000) + "1,two,cat\n")
    with pytest.raises(DataError, match=r"data.csv, line 2002, column b: expected a number, got 'two'"):
        data.load("data.csv")
    write("a,b,kind\n" + "1,2,cat\n3,4,dog\n" * 900 + "1,2,cow\n", "new.csv")
    assert run(capsys, "evaluate", "run", "--data", "new.csv")[2] == (
        "bnengine: new.csv, line 1802: label 'cow' is none of the classes cat, dog\n"
    )


# ---- Parquet


def test_a_parquet_file_is_read_as_the_csv_file_of_the_same_rows(capsys):
    pa, parquet = need("pyarrow"), need("pyarrow.parquet")
    columns = {
        "a": pa.array([i * i % 7 if i % 9 else None for i in range(60)]),
        "b": pa.array([i / 5 for i in range(60)], pa.float32()),
        "colour": pa.array([["red", "green", None][i % 3] for i in range(60)]).dictionary_encode(),
        "old": pa.array([i % 4 == 0 for i in range(60)]),
        "kind": pa.array(["dog", "cat"] * 30),
    }
    parquet.write_table(pa.table(columns), "data.parquet")
    rows = zip(*(column.to_pylist() for column in columns.values()), strict=True)
    cells = ([int(cell) if isinstance(cell, bool) else "" if cell is None else cell for cell in row] for row in rows)
    write("\n".join([",".join(columns), *(",".join(map(str, row)) for row in cells), ""]))
    found, expected = (data.load(name, missing="impute", text="onehot") for name in ("data.parquet", "data.csv"))
    np.testing.assert_array_equal(found.x_train, expected.x_train)
    np.testing.assert_array_equal(found.y_test, expected.y_test)
    assert (found.columns, found.encoding, found.classes) == (expected.columns, expected.encoding, expected.classes)
    options = ["--missing", "impute", "--text", "onehot", *QUICK]
    assert run(capsys, "train", "--data", "data.csv", *options)[0] == 0
    assert (
        run(capsys, "predict", "run", "--data", "data.csv")[1]
        == run(capsys, "predict", "run", "--data", "data.parquet")[1]
    )


def test_bad_parquet_files_are_refused(monkeypatch):
    pa, parquet = need("pyarrow"), need("pyarrow.parquet")
    kind = pa.array(["x", "y"] * 10)
    for values, message in (
        ([1.0, None] * 10, "data.parquet, row 1, column a: missing value; fill it or leave the row out, or --missing"),
        ([1.0, float("inf")] * 10, "data.parquet, row 1, column a: expected a finite number, got inf"),
        ([None, "red"] * 10, "data.parquet, row 1, column a: expected a number, got 'red'; --text onehot takes"),
        ([[1, 2]] * 20, "data.parquet, row 0, column a: expected numbers or text, got list"),
    ):
        parquet.write_table(pa.table({"a": pa.array(values), "kind": kind}), "data.parquet")
        with pytest.raises(DataError, match=message):
            data.load("data.parquet")
    parquet.write_table(pa.table({"a": pa.array([1.5] * 20), "kind": pa.array(["x", None] * 10)}), "data.parquet")
    with pytest.raises(DataError, match=r"data.parquet, row 1, column kind: missing label"):
        data.load("data.parquet")
    Path("data.parquet").write_bytes(Path("data.parquet").read_bytes()[:-30])
    with pytest.raises(DataError, match=r"data.parquet: cannot be read as Parquet"):
        data.load("data.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"data: reading data.parquet needs pyarrow; install the extra data"):
        data.load("data.parquet")
