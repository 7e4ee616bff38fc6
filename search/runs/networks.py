"""The networks that later steps leave in the folder of a run: extracted, and retrained."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nas.files import replacing_folder, write_json
from nas.models.network import alike, compacted, load_like
from nas.models.network import save as save_network
from nas.models.store import fingerprint
from nas.search.runs.path import Choice
from nas.search.runs.run import COMPACT, RETRAINED, SNAPSHOTS, Run

CERTIFICATE, RESULT = "certificate.json", "result.json"  # beside the network, in the folder of each


@dataclass(frozen=True)
class Record:
    """What a certificate.json says: the epoch, and the hashes of the "supernet" and the "compact" network."""

    epoch: int
    hashes: dict[str, str]


def read_record(run: Run) -> Record:
    """What the certificate of the extracted network of a run says.

    Raises:
        ValueError: it is damaged.
        OSError: it is missing or cannot be read.
    """
    file = run.folder / COMPACT / CERTIFICATE
    text = file.read_bytes()
    try:
        data = json.loads(text)
        epoch, hashes = data["epoch"], data["certificate"]["hashes"]
        if not isinstance(epoch, int) or not all(isinstance(hashes[name], str) for name in ("supernet", "compact")):
            raise ValueError("its epoch or its hashes are of the wrong kind")
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise ValueError(f"the certificate {file} is damaged, or of an earlier version: {problem}") from None
    return Record(epoch, {name: hashes[name] for name in ("supernet", "compact")})


def stored_compact(run: Run) -> tuple[nn.Module, Record]:
    """The extracted network of a run and what its certificate says, whether they belong together or not.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    folder = run.folder / COMPACT
    if not folder.is_dir():
        raise ValueError(f"there is no network in {folder}; make it with nas extract {run.folder}")
    return load_like(run.blank, folder), read_record(run)


def load_compact(run: Run) -> nn.Module:
    """The extracted network of a run.

    Raises:
        ValueError: there is none, it is damaged, or not the one that its certificate is of.
    """
    net, record = stored_compact(run)
    if fingerprint(net) != record.hashes["compact"]:
        raise ValueError(
            f"the network in {run.folder / COMPACT} is not the one that its certificate is of; see nas verify "
            f"{run.folder}, and make it anew with nas extract"
        )
    return net


def load_retrained(run: Run) -> tuple[nn.Module, dict[str, Any]]:
    """The retrained network of a run and its result.json.

    Raises:
        ValueError: it is damaged, or not the one that was written.
        OSError: there is none.
    """
    net = load_like(run.blank, run.folder / RETRAINED)
    return net, _result_of(net, run)


def load_last(run: Run) -> tuple[Path, nn.Module]:
    """The retrained network with its folder; the compact one if there is none of the present extraction.

    Raises:
        ValueError: there is no compact network, or one is damaged.
    """
    extracted, folder = load_compact(run), run.folder / RETRAINED
    if folder.is_dir():
        retrained = load_like(run.blank, folder)
        if alike(retrained, extracted):
            _result_of(retrained, run)
            return folder, retrained
        warnings.warn(f"{folder} is of an earlier extraction and not used", stacklevel=1)
    return run.folder / COMPACT, extracted


def load_chosen(run: Run, choice: Choice) -> tuple[Path, nn.Module]:
    """The network that is chosen, as the search left it, with its file; if nothing is chosen that of `load_last`.

    Raises:
        ValueError: there is none such, or a file is damaged.
    """
    if choice == Choice():
        return load_last(run)
    epoch = run.choose(choice).snapshot.epoch
    return run.folder / SNAPSHOTS / f"{epoch:04}.safetensors", compacted(run.supernet(epoch))


def damages(run: Run) -> list[Exception]:
    """What is wrong with the networks of the path, and with the retrained one if there is one: those that cannot be
    read, or are not what was written.

    Raises:
        ValueError: there is no path, or a damaged one.
    """
    loads: list[Callable[[], Any]] = [partial(run.supernet, point.snapshot.epoch) for point in run.points()]
    if (run.folder / RETRAINED).is_dir():
        loads.append(partial(load_retrained, run))
    found: list[Exception] = []
    for load in loads:
        try:
            load()
        except (ValueError, OSError) as problem:
            found.append(problem)
    return found


def save(net: nn.Module, folder: Path, name: str, result: dict[str, Any]) -> None:
    """Replace ``folder`` by one with ``net`` and, in the file ``name``, what is to be known about it."""

    def write(place: Path) -> None:
        save_network(net, place)
        write_json(place / name, result)

    replacing_folder(folder, write)


def _result_of(net: nn.Module, run: Run) -> dict[str, Any]:
    """The result.json of the retrained network of a run.

    Raises:
        ValueError: it is damaged, or of another network.
        OSError: there is none.
    """
    folder = run.folder / RETRAINED
    try:
        result: dict[str, Any] = json.loads((folder / RESULT).read_bytes())
        sha256 = result["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as problem:
        raise ValueError(f"{folder / RESULT} is damaged, or of an earlier version: {problem}") from None
    if fingerprint(net) != sha256:
        raise ValueError(
            f"the network in {folder} is not the one that its {RESULT} is of; make it anew with nas retrain"
        )
    return result
