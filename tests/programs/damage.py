"""Random damage to files: to their bytes, to the numbers in their text, and to what their containers hold."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable

EXTREME = [0, 1, 0x7F, 0x80, 0xFF, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
WORDS = [b"", b"-1", b"1e999", b"nan", b"-inf", b"9" * 400, b"1e308", b"0x10", b"1_0", b"''", b"[[", b"{}", b"null",
         b"true", b"|O", b"<f4", b"..", b"/etc/passwd", b"\x00", b"\xff\xfe", b"\n", b",", b'"', b"\x1b[2J", b"[" * 50_000,
         b"a" * 200_000, "ü".encode()]  # fmt: skip


def damaged(raw: bytes, rng: random.Random) -> bytes:
    """One to four random edits."""
    for _ in range(rng.choice([1, 1, 2, 4])):
        raw = rng.choice(EDITS)(raw, rng)
    return raw


def _place(raw: bytes, rng: random.Random) -> int:
    """Half the time near the beginning, where headers are."""
    return rng.randrange(min(len(raw), 128) + 1 if rng.random() < 0.5 else len(raw) + 1)


def _bit(raw: bytes, rng: random.Random) -> bytes:
    at = _place(raw, rng)
    return raw[:at] + bytes([raw[at] ^ 1 << rng.randrange(8)]) + raw[at + 1 :] if at < len(raw) else raw


def _overwritten(raw: bytes, rng: random.Random) -> bytes:
    at, size = _place(raw, rng), rng.choice([1, 2, 4, 8])
    value = rng.choice(EXTREME) % 256**size
    return raw[:at] + value.to_bytes(size, rng.choice(["big", "little"])) + raw[at + size :]


def _inserted(raw: bytes, rng: random.Random) -> bytes:
    at = _place(raw, rng)
    return raw[:at] + rng.choice([rng.randbytes(rng.randrange(1, 20)), rng.choice(WORDS)]) + raw[at:]


def _deleted(raw: bytes, rng: random.Random) -> bytes:
    at = _place(raw, rng)
    return raw[:at] + raw[at + rng.choice([1, 2, 8, 100]) :]


def _repeated(raw: bytes, rng: random.Random) -> bytes:
    at, size = _place(raw, rng), rng.choice([1, 8, 100])
    return raw[:at] + raw[at : at + size] * rng.choice([2, 3, 50]) + raw[at + size :]


def _cut(raw: bytes, rng: random.Random) -> bytes:
    return raw[: _place(raw, rng)]


def _word(raw: bytes, rng: random.Random) -> bytes:
    """Another word or number in place of one in the text."""
    found = list(re.finditer(rb"[\w.+-]+", raw[:4000]))
    if not found:
        return raw
    match = rng.choice(found)
    new = rng.choice([rng.choice(WORDS), str(rng.choice(EXTREME)).encode()])
    return raw[: match.start()] + new + raw[match.end() :]


EDITS = [_bit, _overwritten, _inserted, _deleted, _repeated, _cut, _word]


# ---- inside containers, which are then whole again


def in_zip(raw: bytes, rng: random.Random) -> bytes:
    """One member damaged, its checksum right."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(members))
    members[name] = damaged(members[name], rng)
    packed = io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(packed, "w", method) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    return packed.getvalue()


def in_gzip(raw: bytes, rng: random.Random) -> bytes:
    return gzip.compress(damaged(gzip.decompress(raw), rng), 1)


def in_safetensors(raw: bytes, rng: random.Random) -> bytes:
    """The JSON header damaged, its length right."""
    (size,) = struct.unpack("<Q", raw[:8])
    header = damaged(raw[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + raw[8 + size :]


def in_metadata(raw: bytes, rng: random.Random) -> bytes:
    """A text inside the header damaged: the header is JSON, and so are the texts in it."""
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + size])
    name = rng.choice(sorted(header["__metadata__"]))
    text = damaged(header["__metadata__"][name].encode(), rng)
    header["__metadata__"][name] = text.decode("utf-8", "replace")
    changed = json.dumps(header).encode()
    return struct.pack("<Q", len(changed)) + changed + raw[8 + size :]


Damage = Callable[[bytes, random.Random], bytes]
