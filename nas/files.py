"""Writing files and folders so that a reader never sees half of one."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def replacing(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in its place; on failure nothing changes."""
    with _naming(path):
        handle, name = tempfile.mkstemp(prefix=".", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        with _naming(path):
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def replacing_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """The same for a folder: ``write`` fills an empty one, which then takes the place of ``folder``."""
    with _naming(folder):
        place = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        new, old = place / "new", place / "old"
        new.mkdir()
        write(new)
        if folder.exists():
            folder.replace(old)
        try:
            new.replace(folder)
        except OSError:
            if old.exists():
                old.replace(folder)
            raise
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """An error of the system names ``path``, not the temporary file."""
    try:
        yield
    except OSError as problem:
        raise type(problem)(problem.errno, problem.strerror, str(path)) from None


def write_text(path: Path, text: str) -> None:
    replacing(path, lambda temporary: _write(temporary, text))


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
