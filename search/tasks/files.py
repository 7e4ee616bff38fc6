"""Many picture files at a time: which ones, where to, and what became of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.files import remove_unfinished
from nas.search.data.formats.files import check_sheet, read_sheet, write_sheet
from nas.search.data.formats.sheet import NotAPictureError, Sheet
from nas.search.data.formats.writing import known_suffixes
from nas.search.data.images import files_below

DONE, EARLIER, NO_PICTURE, FAILED = "done", "earlier", "no picture", "failed"  # what became of a file


@dataclass(frozen=True)
class Job:
    """A file to be cleaned, and the one to write.

    ``named``: the user asked for this file; otherwise it was found in a folder.
    """

    source: Path
    target: Path
    named: bool = True


@dataclass(frozen=True)
class Outcome:
    """What became of a job: DONE, EARLIER (it was there already), NO_PICTURE (a file of a folder) or FAILED.

    Attributes:
        notes: what was assumed or lost, in words.
        problem: why it failed.
    """

    job: Job
    state: str
    notes: tuple[str, ...] = ()
    problem: Exception | None = None


def find_jobs(sources: Sequence[Path], out: Path) -> list[Job]:
    """Every file, and every file below every folder but hidden ones, with a place of the same name in ``out``.

    Raises:
        ValueError: a source is missing, two have the same place, or an output would overwrite an input.
    """
    jobs: list[Job] = []
    for source in sources:
        if source.is_dir():
            jobs += [Job(file, out / file.relative_to(source), named=False) for file in _files_below(source, out)]
        elif source.exists():
            jobs.append(Job(source, out / source.name))
        else:
            raise ValueError(f"there is no file or folder {source}")
    jobs = list(dict.fromkeys(jobs))  # what was named twice is cleaned once
    _check_targets(jobs)
    return jobs


def _files_below(folder: Path, out: Path) -> Iterator[Path]:
    """In the order of their names, without hidden ones, and without what lies in ``out``."""
    inside = out.resolve() if out.resolve() != folder.resolve() else None
    for file in files_below(folder):
        if not (inside and inside in file.resolve().parents):
            yield file


def _check_targets(jobs: Iterable[Job]) -> None:
    jobs = list(jobs)
    sources, targets = {job.source.resolve() for job in jobs}, dict[Path, Path]()
    for job in jobs:
        if job.target.resolve() in sources:
            raise ValueError(f"{job.target} is a picture to be cleaned; choose another -o")
        other = targets.setdefault(job.target, job.source)
        if other != job.source:
            raise ValueError(
                f"{other} and {job.source} would both become {job.target}; clean them into different folders"
            )


def denoise_files(
    clean: Callable[[Sheet], Sheet],
    jobs: Sequence[Job],
    *,
    given: tuple[float, float] | None = None,
    force: bool = False,
) -> Iterator[Outcome]:
    """Clean one file after the other. One that fails does not stop the others; each is written whole or not at all, and
    what a killed process had begun to write beside it is removed.

    Args:
        clean: such as `denoise_sheet` of a network.
        jobs: of `find_jobs`. Folders of their targets are made.
        given: values that are black and white, where files do not say so.
        force: clean those, too, whose target is there already.

    Raises:
        OSError: a target cannot be written (full disk, no permission); what is finished stays.
    """
    for folder in {job.target.parent for job in jobs}:
        remove_unfinished(folder)
    for job in jobs:
        if job.target.exists() and not force:
            yield Outcome(job, EARLIER)
            continue
        try:
            notes = _denoise_file(clean, job, given)
        except NotAPictureError as problem:
            is_other = not job.named and job.source.suffix.lower() not in known_suffixes()
            yield Outcome(job, NO_PICTURE) if is_other else Outcome(job, FAILED, problem=problem)
        except (ValueError, _ReadError, MemoryError) as problem:
            yield Outcome(job, FAILED, problem=problem)
        else:
            yield Outcome(job, DONE, notes)


class _ReadError(Exception):
    """An input cannot be read; other inputs may."""


def _denoise_file(clean: Callable[[Sheet], Sheet], job: Job, given: tuple[float, float] | None) -> tuple[str, ...]:
    """What was assumed or lost."""
    try:
        sheet = read_sheet(job.source, given=given)
    except OSError as problem:
        raise _ReadError(f"{job.source}: {problem.strerror}") from None
    check_sheet(sheet, job.target)
    cleaned = clean(sheet)
    job.target.parent.mkdir(parents=True, exist_ok=True)
    return *cleaned.notes, *write_sheet(cleaned, job.target)
