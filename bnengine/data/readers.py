"""Readers of npz, npy and IDX files.

A file may come from anybody: nothing in it is run, and nothing that it claims about itself is believed. What its
headers announce is held against the size of the file before memory is taken for it.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

HostArray = np.ndarray[Any, Any]

LIMIT = 2**32
"""Bytes that a compressed file may hold. One that is not compressed is as large as it is."""

DEFLATE = 1032
"""Deflate makes nothing smaller than by this factor: a file that claims more is lying."""


class DataError(ValueError):
    """Data that cannot be used; the message names the file and the place in it."""


def read_npz(path: Path) -> dict[str, HostArray]:
    """The arrays of an npz file; pickled objects are refused, and so is a header that claims too much."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            _check_sizes(path, members)
            return _rename(
                {member.filename.removesuffix(".npy"): _read_npy(path, archive, member) for member in members}
            )
    except DataError:
        raise
    except Exception as error:  # whatever zipfile, zlib and NumPy's parser of headers make of damaged bytes
        raise DataError(f"{path}: cannot be read as npz: {str(error) or type(error).__name__}") from error


def _rename(arrays: dict[str, HostArray]) -> dict[str, HostArray]:
    """Keras' names, x_train and y_train, as x and y."""
    return {name if (short := name.removesuffix("_train")) in arrays else short: a for name, a in arrays.items()}


def _check_sizes(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse members that are larger than what is there of them."""
    if sum(member.compress_size for member in members) > path.stat().st_size:
        raise DataError(f"{path}: cannot be read as npz: its parts are larger than the file, which is damaged")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(f"{path}: cannot be read as npz: expected {member.filename} stored or deflated")
    _check_unpacked(path, sum(m.file_size for m in members if m.file_size > m.compress_size))
    for member in members:
        if member.file_size > DEFLATE * member.compress_size + 64:
            raise DataError(f"{path}: cannot be read as npz: {member.filename} claims {member.file_size} bytes")


def _check_unpacked(path: Path, size: int) -> None:
    if size > LIMIT:
        raise DataError(
            f"{path}: claims {size} bytes unpacked, and what is compressed may hold {LIMIT}; store it uncompressed"
        )


def _read_npy(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> HostArray:
    with archive.open(member) as file:
        shape, dtype = _npy_header(file)
        claimed, there = math.prod(shape) * dtype.itemsize, member.file_size - file.tell()
    if dtype.hasobject:
        raise DataError(f"{path}: cannot be read as npz: {member.filename} holds Python objects, which are not read")
    if min(shape, default=0) < 0 or claimed != there:
        raise DataError(
            f"{path}: cannot be read as npz: {member.filename} claims {dtype} of shape {shape} in {there} bytes"
        )
    with archive.open(member) as file:
        array: HostArray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _npy_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """(shape, dtype); NumPy reads the header as a literal of at most 10,000 characters."""
    version = np.lib.format.read_magic(file)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"expected an array in format 1.0 or 2.0, got {version}")
    shape, _, dtype = readers[version](file)
    return shape, dtype


def read_npy(directory: Path) -> dict[str, HostArray]:
    """The arrays of the .npy files in a directory by their names, left on the disk until they are used."""
    return _rename({path.stem: open_array(path) for path in sorted(directory.glob("*.npy"))})


def open_array(path: Path) -> HostArray:
    """The array of an .npy or IDX file; left on the disk where that is not compressed."""
    if path.suffix != ".npy":
        return read_idx(path)
    try:
        array: HostArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as npy: {error}") from error
    return array


def read_idx(path: Path) -> HostArray:
    """The array of unsigned bytes of an IDX file: unpacked from gzip, or left on the disk until it is used."""
    try:
        with path.open("rb") as file:
            if path.suffix == ".gz":
                return _unpack_idx(path, gzip.GzipFile(fileobj=file))
            shape = _idx_shape(path, file)
            start, there = file.tell(), path.stat().st_size
            if there != start + math.prod(shape):
                raise DataError(f"{path}: expected {start + math.prod(shape)} bytes for shape {shape}, got {there}")
        return np.memmap(path, np.uint8, "r", start, shape)
    except (OSError, EOFError, zlib.error, MemoryError) as error:
        raise DataError(f"{path}: cannot be read: {str(error) or type(error).__name__}") from error


def idx_digest(array: HostArray) -> str:
    """SHA-256 of the unpacked IDX file that holds the array."""
    header = struct.pack(f">2xBB{array.ndim}I", 8, array.ndim, *array.shape)
    return hashlib.sha256(header + array.tobytes()).hexdigest()


def _unpack_idx(path: Path, file: gzip.GzipFile) -> HostArray:
    shape = _idx_shape(path, file)
    start, size, there = file.tell(), math.prod(shape), path.stat().st_size
    _check_unpacked(path, size)
    if size > DEFLATE * there:
        raise DataError(f"{path}: expected {start + size} bytes for shape {shape}, and the file has {there}")
    content = file.read(size + 1)
    if len(content) != size:
        got = start + len(content) if len(content) < size else "more"
        raise DataError(f"{path}: expected {start + size} bytes for shape {shape}, got {got}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _idx_shape(path: Path, file: IO[bytes] | gzip.GzipFile) -> tuple[int, ...]:
    """The shape that the header announces."""
    magic = file.read(4)
    if len(magic) < 4 or magic[:3] != b"\x00\x00\x08":
        raise DataError(f"{path}: expected an IDX file of unsigned bytes, which begins 00 00 08, got {magic.hex(' ')}")
    if not 1 <= magic[3] <= 8:
        raise DataError(f"{path}: expected an IDX file of 1 to 8 dimensions, got {magic[3]}")
    sizes = file.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataError(f"{path}: expected {4 + 4 * magic[3]} bytes of header, got {4 + len(sizes)}")
    return struct.unpack(f">{magic[3]}I", sizes)
