"""What the network does to held-out pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas.analysis.report.front import tested
from nas.analysis.report.pixels import png_uri
from nas.models.network import alike, compacted, load_like
from nas.search.data.dataset import Pictures
from nas.search.data.images import to_array
from nas.search.runs.run import COMPACT, RETRAINED, Run
from nas.search.tasks.classification import Classify
from nas.search.tasks.restoration import Restoration, restore
from nas.search.tasks.task import Example, predict

SIDE = 320  # of the detail that is shown, in pixels
MOST = 4  # pictures
MOST_BYTES = 2_500_000  # of all of them
MOST_MISTAKES, MOST_CLASSIFIED, MOST_CLASSES = 24, 2000, 50
BATCH = 64


def final_network(run: Run) -> tuple[str, nn.Module]:
    """The network that a run ends with, and what it is: retrained, if it is, else as the search left it.

    Raises:
        ValueError: a file is missing or damaged.
    """
    extracted, retrained = run.folder / COMPACT, run.folder / RETRAINED
    if retrained.is_dir():
        net = load_like(run.blank, retrained)
        if not extracted.is_dir() or alike(load_like(run.blank, extracted), net):
            return "the retrained network", net
    epoch = run.choose().snapshot.epoch
    return f"the network of epoch {epoch}, as the search left it", compacted(run.supernet(epoch))


def held_out_pictures(run: Run, data: Pictures) -> dict[str, Any]:
    """Restored pictures, or what a classifier takes for what.

    Raises:
        ValueError: the task is of another kind, or a network is damaged.
    """
    task, test = run.task(data), run.test(data)
    title, net = final_network(run)
    if isinstance(task, Restoration):
        return {"title": title, "restored": restored(net, test, task, _strengths(run))}
    if isinstance(task, Classify):
        return {"title": title, "classified": classified(net, test, task)}
    raise ValueError(f"The task {run.config.task} has no pictures that this report knows how to show.")


def _strengths(run: Run) -> dict[str, float]:
    """Of the classical methods that nas retrain measured, the best first."""
    try:
        measured = tested(run)
    except ValueError:
        return {}
    lines, strengths = measured["lines"], measured["strengths"]
    return {name: strengths[name] for name in sorted(strengths, key=lambda name: -lines[name])}


def restored(
    net: nn.Module, test: Sequence[Example], task: Restoration, strengths: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """The first pictures, restored by the network and by classical methods.

    Args:
        net: the network.
        test: the pictures.
        task: how they are scored.
        strengths: of the classical methods; the pictures of the first one are shown, of the others the scores.

    Returns:
        Of each picture its name; "scores" of the whole by title; "views", each with a title and the middle as a data
        URI; "pairs" of views to compare, by index; and the "side" of the middle (height, width).
    """
    found: list[dict[str, Any]] = []
    size = 0
    for example in test[:MOST]:
        (output,) = restore(net, [example.observed])
        pictures = task.views(example, output)
        observed, mine, clean = pictures["observed"], pictures["restored"], pictures.get("clean")
        classical = {
            name.replace("_", " "): task.methods[name][0](example.observed, strength)
            for name, strength in (strengths or {}).items()
            if name in task.methods
        }
        scored = {task.observed_name: observed, **classical, "restored": mine}
        views = {task.observed_name: observed, **dict(list(classical.items())[:1]), "restored": mine}
        views |= {} if clean is None else {"clean": clean}
        uris = [png_uri(to_array(_detail(view))) for view in views.values()]
        size += sum(map(len, uris))
        if found and size > MOST_BYTES:
            break
        titles = list(views)
        found.append(
            {
                "name": f"{example.name} {example.condition}".strip(),
                "views": [{"title": title, "uri": uri} for title, uri in zip(titles, uris, strict=True)],
                "pairs": _pairs(len(titles), titles.index("restored")),
                "scores": {title: _score(task, view, example) for title, view in scored.items()},
                "side": list(_detail(output).shape[-2:]),
            }
        )
    return found


def _pairs(count: int, restored: int) -> list[tuple[int, int]]:
    """Each view before the restored one with it, then all with the clean one, if there is one behind it."""
    pairs = [(k, restored) for k in range(restored)]
    return pairs + [(k, last) for last in range(restored + 1, count) for k in range(restored, -1, -1)]


def _score(task: Restoration, picture: Tensor, example: Example) -> str:
    """Such as "PSNR 30.12 dB, SSIM 0.812"."""
    scores = task.score(picture, example.target)
    return ", ".join(metric.text(scores[metric.key]) for metric in task.metrics)


def _detail(picture: Tensor) -> Tensor:
    """The middle of a picture."""
    top, left = (max(0, (side - SIDE) // 2) for side in picture.shape[-2:])
    return picture[..., top : top + SIDE, left : left + SIDE]


@torch.no_grad()
def classified(net: nn.Module, test: Sequence[Example], task: Classify) -> dict[str, Any]:
    """A confusion matrix and the mistakes of which the network is surest.

    Returns:
        "classes"; "counts", rows by the true class, columns by the found one (None for more than `MOST_CLASSES`
        classes); "right" of "total"; "mistakes": name, uri, true and found class, and the probability of the latter.
    """
    examples = list(test[:: max(1, -(-len(test) // MOST_CLASSIFIED))])
    logits = torch.stack(predict(net, [example.observed for example in examples]))
    probabilities, guesses = logits.softmax(dim=1).max(dim=1)
    truths = torch.stack([example.target for example in examples])
    n = len(task.classes)
    counts = (truths * n + guesses).bincount(minlength=n * n).reshape(n, n)
    wrong = (guesses != truths).nonzero()[:, 0]
    worst = wrong[probabilities[wrong].argsort(descending=True)][:MOST_MISTAKES].tolist()
    mean, std = (torch.tensor(each)[:, None, None] for each in (task.mean, task.std))
    return {
        "classes": list(task.classes),
        "counts": counts.tolist() if n <= MOST_CLASSES else None,
        "right": int((guesses == truths).sum()),
        "total": len(examples),
        "mistakes": [
            {
                "name": examples[k].name,
                "uri": png_uri(to_array(_detail(examples[k].observed * std + mean))),
                "true": task.classes[int(truths[k])],
                "found": task.classes[int(guesses[k])],
                "probability": float(probabilities[k]),
            }
            for k in worst
        ],
    }
