"""What a file claims about itself is not believed; what is in it is not run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bnengine import data
from bnengine.data import labels, readers
from bnengine.data.layout import Wanted
from bnengine.data.readers import DataError, read_idx, read_npz
from bnengine.data.tables import read_table

TERABYTES = 2**43


def npy(shape, dtype="<f8", content=b""):
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode().ljust(118) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def npz(members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile("data.npz", "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return Path("data.npz")


def peak_of(call, *arguments):
    """Bytes that the call, which is refused, took at most; and the reason."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as refusal:
            call(*arguments)
        return tracemalloc.get_traced_memory()[1], str(refusal.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("shape", [(TERABYTES,), (2**22, 2**21), (TERABYTES, 0), (3,), (-2, -1), (0,), ()])
def test_an_npz_header_must_say_what_the_file_holds(shape, method):
    path = npz({"x.npy": npy(shape, content=bytes(16))}, method)
    peak, reason = peak_of(read_npz, path)
    assert f"x.npy claims float64 of shape {shape} in 16 bytes" in reason
    assert peak < 2**20


def test_an_npz_directory_that_claims_terabytes_is_refused():
    raw = bytearray(npz({"x.npy": npy((TERABYTES // 8,), content=bytes(16))}, zipfile.ZIP_DEFLATED).read_bytes())
    at = raw.index(b"PK\x01\x02") + 24  # the unpacked size in the central directory
    raw[at : at + 4] = struct.pack("<I", 2**32 - 2)
    Path("data.npz").write_bytes(raw)
    peak, reason = peak_of(read_npz, Path("data.npz"))
    assert "x.npy claims 4294967294 bytes" in reason
    assert peak < 2**20
    raw[at - 4 : at] = struct.pack("<I", 2**31)  # and the packed one
    Path("data.npz").write_bytes(raw)
    assert "its parts are larger than the file" in peak_of(read_npz, Path("data.npz"))[1]


def test_what_unpacks_to_more_than_the_limit_is_refused(monkeypatch):
    content = bytes(2**22)
    path = npz({"x.npy": npy((2**19,), content=content)}, zipfile.ZIP_DEFLATED)
    assert read_npz(path)["x"].shape == (2**19,)
    Path("zeros.gz").write_bytes(gzip.compress(b"\0\0\x08\x01" + struct.pack(">I", 2**22) + content))
    assert read_idx(Path("zeros.gz")).shape == (2**22,)
    monkeypatch.setattr(readers, "LIMIT", 2**20)
    for call, file in ((read_npz, path), (read_idx, Path("zeros.gz"))):
        peak, reason = peak_of(call, file)
        assert "bytes unpacked, and what is compressed may hold 1048576; store it uncompressed" in reason
        assert peak < 2**20
    assert read_npz(npz({"x.npy": npy((2**19,), content=content)}))["x"].shape == (2**19,)  # is what it is


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compression_is_refused(method):
    with pytest.raises(DataError, match=r"expected x.npy stored or deflated"):
        read_npz(npz({"x.npy": npy((2,), content=bytes(16))}, method))


class Malice:
    def __reduce__(self):
        return os.mkdir, ("ran",)


def test_pickles_are_not_loaded():
    objects = np.asarray([Malice()] * 3, object)
    np.savez("data.npz", x=objects)
    with pytest.raises(DataError, match=r"x.npy holds Python objects, which are not read"):
        read_npz(Path("data.npz"))
    Path("data.npz").write_bytes(pickle.dumps(Malice()))
    with pytest.raises(DataError, match="File is not a zip file"):
        read_npz(Path("data.npz"))
    header = io.BytesIO()
    np.lib.format.write_array(header, objects)
    with pytest.raises(DataError, match="holds Python objects"):
        read_npz(npz({"x.npy": header.getvalue()}))
    assert not Path("ran").exists()
    pickle.loads(pickle.dumps(Malice()))
    assert Path("ran").exists()  # it would have


def test_members_of_an_npz_write_nothing():
    path = npz({"../../escaped.npy": npy((2,), content=bytes(16)), "notes.txt": b"not an array"})
    assert list(read_npz(path)) == ["../../escaped"]
    assert os.listdir() == ["data.npz"]
    assert not Path("../../escaped.npy").exists()


@pytest.mark.parametrize("name", ["images", "images.gz"])
@pytest.mark.parametrize("shape", [(TERABYTES >> 20, 2**20), (2**32 - 1,) * 8, (17,), (15,)])
def test_an_idx_header_must_say_what_the_file_holds(name, shape):
    raw = b"\0\0\x08" + bytes([len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + bytes(16)
    Path(name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    peak, reason = peak_of(read_idx, Path(name))
    assert reason.startswith(name)
    assert peak < 2**20


def test_an_idx_file_of_too_many_dimensions_is_refused():
    for dimensions in (0, 9, 255):
        Path("images").write_bytes(b"\0\0\x08" + bytes([dimensions]) + b"\0\0\0\x01" * dimensions + b"\x07")
        with pytest.raises(DataError, match=f"expected an IDX file of 1 to 8 dimensions, got {dimensions}"):
            read_idx(Path("images"))


def test_one_long_label_does_not_cost_every_row_its_length():
    Path("data.csv").write_text("a,y\n" + "1,x\n2,z\n" * 5000 + f"3,{'long' * 30_000}\n")
    tracemalloc.start()
    table = read_table(Path("data.csv"), Wanted())
    assert tracemalloc.get_traced_memory()[1] < 2**23  # as NumPy's text it would be 4.8 GB
    tracemalloc.stop()
    assert (table.y[0], len(table.y[-1]), table.lines[-1]) == ("x", 120_000, 10_002)
    Path("data.csv").write_text(f"a,y\n1,{'x' * 200_000}\n")
    with pytest.raises(DataError, match="field larger than field limit"):
        read_table(Path("data.csv"), Wanted())


def test_a_row_that_spans_lines_is_named_by_its_last():
    Path("data.csv").write_text('a,y\n1,"two\nlines"\n\n2,x\n')
    table = read_table(Path("data.csv"), Wanted())
    assert list(table.lines) == [3, 5]
    with pytest.raises(DataError, match=r"data.csv, line 5: label 'x' is none of the classes two"):
        labels.class_numbers(table.y, ["two\nlines"], "data.csv", table.lines)


@pytest.mark.parametrize("name", ["pipe.csv", "pipe.npz"])
def test_pipes_and_devices_are_refused_at_once(name):
    os.mkfifo(name)
    with pytest.raises(DataError, match=f"data: expected a regular file or a directory, {name} is neither"):
        data.load(name)
    Path(f"endless{name}").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="is neither"):
        data.load(f"endless{name}")


def test_an_empty_name_is_no_directory():
    with pytest.raises(DataError, match="data: expected a name or a path, got ''"):
        data.load("")
