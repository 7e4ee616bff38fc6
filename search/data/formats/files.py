"""Reading and writing picture files of any format."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import IO

from nas.files import replacing
from nas.search.data.formats import reading, reading_tiff, writing, writing_tiff
from nas.search.data.formats.sheet import Sheet


def read_sheet(source: Path | bytes, name: str | None = None, given: tuple[float, float] | None = None) -> Sheet:
    """What a picture file holds; its first bytes, not its name, say in which format.

    Args:
        source: the file, or its contents.
        name: what it is called in sentences; by default its path.
        given: values that are black and white, where the file does not say so.

    Raises:
        NotAPictureError: it is not a picture.
        UnusableError: it is one, but what it holds cannot be restored; the sentence says what and why.
        ValueError: it is truncated, damaged or too large.
        OSError: it is missing or cannot be read.
    """
    name = str(source) if name is None and isinstance(source, Path) else name or "the input"
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as stream:
        return reading_tiff.read(stream, name, given) if _is_tiff(stream) else reading.read(stream, name, given)


def read_size(path: Path) -> tuple[int, int]:
    """Height and width of a picture file, upright, from its header: pixels are not decoded. Errors as of `read_sheet`,
    but for what only the pixels show."""
    with path.open("rb") as stream:
        read = reading_tiff.read_size if _is_tiff(stream) else reading.read_size
        return read(stream, str(path))


def _is_tiff(stream: IO[bytes]) -> bool:
    magic = stream.read(4)
    stream.seek(0)
    return magic in reading_tiff.MAGIC


def check_sheet(sheet: Sheet, path: Path) -> None:
    """Raise ValueError if the suffix of ``path`` names no format that can be written and can hold such a picture."""
    if path.suffix.lower() not in writing_tiff.SUFFIXES:
        try:
            writing.check(sheet, path.suffix)
        except ValueError as problem:
            raise ValueError(f"cannot write {path}: {problem}") from None


def write_sheet(sheet: Sheet, path: Path) -> list[str]:
    """Write a picture file in the format that the suffix of ``path`` names; whole, or not at all.

    Returns:
        What this format could not hold, in words.

    Raises:
        ValueError: the suffix names no format that can be written, or none that can hold this picture.
        OSError: the file cannot be written.
    """
    notes: list[str] = []

    def write(temporary: Path) -> None:
        try:
            with temporary.open("wb") as stream:
                notes.extend(_encode(sheet, stream, path.suffix))
        except ValueError as problem:
            raise ValueError(f"cannot write {path}: {problem}") from None
        except OSError as problem:  # numpy, which tifffile writes with, does not say what the system said
            code, text = problem.errno or errno.EIO, problem.strerror or "it was not written whole; is the disk full?"
            raise OSError(code, text, str(path)) from None

    replacing(path, write)
    return notes


def encoded(sheet: Sheet, suffix: str) -> tuple[bytes, list[str]]:
    """The bytes of a picture file, and what its format could not hold, in words; errors as of `write_sheet`."""
    stream = io.BytesIO()
    notes = _encode(sheet, stream, suffix)
    return stream.getvalue(), notes


def _encode(sheet: Sheet, stream: IO[bytes], suffix: str) -> list[str]:
    if suffix.lower() in writing_tiff.SUFFIXES:
        return writing_tiff.write(sheet, stream)
    return writing.write(sheet, stream, suffix)
