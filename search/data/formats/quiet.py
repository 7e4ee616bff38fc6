"""What the libraries say about odd files while they read them is not passed on."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock

MAX_PIXELS = 2**31  # of one frame; beyond it a file is taken for a trap


class _Shared(AbstractContextManager[None]):
    """A context that changes the whole process: the first thread that comes enters it, the last that goes leaves it."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self._make, self._lock, self._inside = make, Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._context = self._make()
                self._context.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._context.__exit__(None, None, None)


@contextmanager
def _settings() -> Iterator[None]:
    from PIL import Image

    log, limit = logging.getLogger("tifffile"), Image.MAX_IMAGE_PIXELS
    before, log.disabled = log.disabled, True  # where tifffile writes what it finds odd
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow takes files of more than 0.18 gigapixels for traps
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of EXIF data that Pillow does not understand: they stay as they are
        try:
            yield
        finally:
            log.disabled, Image.MAX_IMAGE_PIXELS = before, limit


QUIET = _Shared(_settings)
