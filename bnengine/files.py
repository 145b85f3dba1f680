"""Files that are whole or not there, and a lock on a directory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .arguments import ConfigError


def write(path: str | os.PathLike[str], content: bytes | str, *, keep: Path | None = None) -> None:
    """Replace a file by new content that is complete on the disk first; the old file goes to `keep`, if given."""
    raw = content.encode() if isinstance(content, str) else content
    target = Path(path).resolve()  # a link stays, what it points to is replaced
    try:
        if target.exists() and not target.is_file():  # a device or a pipe is written to; a directory refuses
            target.write_bytes(raw)
        else:
            _replace(target, raw, keep)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def writable(name: str, file: str) -> Path:
    """Where a result will go, refused before the work and not after it; `name` is the option that says so."""
    path = Path(file)
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(
            f"{name}: cannot write {file}: {'it is' if path.is_dir() else 'its parent is not'} a directory"
        )
    if not os.access(path if path.exists() and not path.is_file() else path.parent, os.W_OK):
        raise ConfigError(f"{name}: cannot write {file}: permission denied")
    return path


def leftovers(directory: Path, names: tuple[str, ...]) -> list[Path]:
    """What a process that was killed while it wrote these files has left beside them."""
    starts = tuple(map(_beside, names))
    return [path for path in directory.iterdir() if path.name.startswith(starts)]


def flush_directory(path: Path) -> None:
    """New names in a directory are on the disk only once it is flushed itself; Windows has no way to ask for it."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the lock that a file stands for.

    The system gives it back when the process ends, however it ends, so no lock is ever stale. The file stays:
    two processes could otherwise hold a lock each, on a file of the same name.

    Raises
    ------
    FileExistsError
        Where another process holds it; the message names that process.
    """
    try:
        from filelock import FileLock, Timeout
    except ImportError as error:
        raise ImportError("out: the lock on a directory needs filelock; install the extra train") from error
    held = FileLock(path, blocking=False, preserve_lock_file=True)
    try:
        held.acquire()
    except Timeout:
        raise FileExistsError(f"out: {path.parent} is in use by {_holder(path)}") from None
    try:
        with suppress(PermissionError):  # of Windows, which lets nobody write to what is locked
            path.write_text(f"process {os.getpid()}\n", encoding="utf-8")
        yield
    finally:
        held.release()


def _holder(path: Path) -> str:
    """The process that holds a lock, as it has written itself."""
    try:
        return path.read_text(encoding="utf-8")[:100].strip() or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"


def _replace(path: Path, content: bytes, keep: Path | None) -> None:
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=_beside(path.name))
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o666 & ~_umask())  # mkstemp makes a file that only its owner can read
        if keep is not None and path.exists():
            _keep(path, keep)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    flush_directory(path.parent)


def _keep(path: Path, keep: Path) -> None:
    """Let a file have the other name too, so that it is never without its own."""
    second = path.with_name(f"{_beside(path.name)}kept")
    try:
        second.hardlink_to(path)
    except OSError:  # of a file system without hard links: there one of the two names stays
        path.replace(keep)
        return
    try:
        second.replace(keep)
    finally:
        second.unlink(missing_ok=True)  # renaming does nothing where both names are of one file already


def _beside(name: str) -> str:
    """How the names of files begin that will take the place of this one."""
    return f".{name[:100]}."


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
