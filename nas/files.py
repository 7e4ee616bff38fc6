"""Writing files and folders so that a reader never sees half of one, whenever the process is killed."""

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

UNFINISHED = ".unfinished-"  # how temporary files begin
LOCK = ".lock"


def replacing(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in its place; on failure nothing changes."""
    with _shared(path.parent):
        with naming(path):
            handle, name = tempfile.mkstemp(prefix=UNFINISHED, suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            write(temporary)
            temporary.chmod(0o666 & ~_umask())
            with naming(path):
                _to_disk(temporary)
                temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def replacing_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """The same for a folder: ``write`` fills an empty one, which then takes the place of ``folder``.

    Of a process that is killed between the two the old folder is left beside it; `tidy` puts it back.
    """
    new, old = _beside(folder)
    try:
        with naming(folder):
            _settle(folder)
            new.mkdir()
        write(new)
        if folder.exists():
            folder.replace(old)
        new.replace(folder)
    finally:
        _settle(folder)


def tidy(folder: Path) -> None:
    """Remove from a folder what processes that were killed have left there, and put back what they had moved aside."""
    for leftover in _leftovers(folder):
        if leftover.name.startswith(UNFINISHED):
            leftover.unlink(missing_ok=True)
        else:
            _settle(leftover.with_name(leftover.name[1:].removesuffix(leftover.suffix)))


def remove_unfinished(folder: Path) -> None:
    """Remove from a folder of the user's what killed processes had begun to write there; nothing while others write."""
    with suppress(OSError, ImportError), _flocked(folder, exclusive=True):
        for file in folder.glob(f"{UNFINISHED}*"):
            file.unlink(missing_ok=True)


def is_tidy(folder: Path) -> bool:
    """Whether no process that was killed has left anything there."""
    return not _leftovers(folder)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else may change ``folder`` meanwhile; when a process ends, however it ends, others may. Tidies up first.

    Raises:
        ValueError: another process is changing it.
        OSError: it cannot be written.
    """
    from filelock import FileLock, Timeout  # on the operating system's locks, which end with their process

    if not os.access(folder, os.W_OK):
        raise PermissionError(errno.EACCES, "no permission to write", str(folder))
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"{folder} is in use by another process; wait until it has ended") from None
    try:
        tidy(folder)
        for inner in filter(Path.is_dir, list(folder.iterdir())):
            remove_unfinished(inner)
        yield
    finally:
        lock.release()


def write_bytes(path: Path, data: bytes) -> None:
    replacing(path, lambda temporary: _write(path, temporary, data))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; lines that are damaged or not finished are left out. None if there is no file."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    found = []
    for line in lines:
        with suppress(ValueError):
            found.append(json.loads(line))
    return [each for each in found if isinstance(each, dict)]


def _write(path: Path, temporary: Path, data: bytes) -> None:
    with naming(path):
        temporary.write_bytes(data)


def _to_disk(file: Path) -> None:
    """Let the system write what it still holds in memory, so that no power failure makes the file empty."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _beside(folder: Path) -> tuple[Path, Path]:
    """Where a new folder is filled, and where the old one is kept until the new one is in its place."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _settle(folder: Path) -> None:
    """The new folder if it is in its place, else the old one; nothing beside it."""
    new, old = _beside(folder)
    if old.exists() and not folder.exists():
        old.replace(folder)
    for place in (new, old):
        remove(place)


def _leftovers(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [
        path
        for path in folder.iterdir()
        if path.name.startswith(UNFINISHED) or (path.name.startswith(".") and path.suffix in (".new", ".old"))
    ]


@contextmanager
def _shared(folder: Path) -> Iterator[None]:
    """Meanwhile `remove_unfinished` leaves ``folder`` alone, where the file system has such locks."""
    with ExitStack() as held:
        with suppress(OSError, ImportError):
            held.enter_context(_flocked(folder, exclusive=False))
        yield


@contextmanager
def _flocked(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold a lock on a folder itself, which leaves no file; an exclusive one only if nobody else holds one.

    Raises:
        OSError: others do, or there is no folder, or the file system has no such locks.
        ImportError: the system has none.
    """
    import fcntl  # POSIX alone has it

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An error of the system names ``path``, not the temporary file."""
    try:
        yield
    except OSError as problem:
        raise type(problem)(problem.errno, problem.strerror, str(path)) from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
