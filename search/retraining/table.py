"""What became of competitors: summaries, ranks, a table."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from nas.search.retraining.compete import Trained
from nas.search.retraining.competitors import RANDOM
from nas.search.tasks.task import Metric, Scores


def random_ones(trained: Sequence[Trained]) -> list[Trained]:
    """Those of `random_networks`."""
    return [each for each in trained if each.title.startswith(RANDOM)]


def summarised(trained: Sequence[Trained], key: str) -> list[Trained]:
    """The same, but of several random networks the best and the median alone, by the mean of a test score."""
    drawn = sorted(random_ones(trained), key=lambda each: each.mean(key), reverse=True)
    if len(drawn) < 2:
        return list(trained)
    places = {"best": 0, "median": len(drawn) // 2}
    chosen = [replace(drawn[k], title=f"{RANDOM}, {what} of {len(drawn)}") for what, k in places.items()]
    return [*(each for each in trained if each not in drawn), *chosen]


def rank(found: Trained, others: Sequence[Trained], key: str) -> int:
    """1 + the number of networks that are better than ``found``, on the seeds that all were trained with."""
    count = min((len(each.test) for each in (found, *others) if each.test), default=0)

    def mean(each: Trained) -> float:
        return replace(each, test=each.test[:count]).mean(key)

    return 1 + sum(mean(each) > mean(found) for each in others)


def table(
    title: str, untrained: Mapping[str, Scores], trained: Sequence[Trained], metrics: Sequence[Metric]
) -> list[str]:
    """Lines of text: what needs no training, then the competitors: mean over the seeds; spread: best minus worst."""
    headline, *others = metrics
    rest = "".join(f"{metric.title:>10}" for metric in others)
    lines = [f"{title:<46}{'parameters':>11}{'rate':>8}{headline.title:>11}{'spread':>8}{rest}"]
    for name, scores in untrained.items():
        cells = [f"{headline.number(scores[headline.key]):>11}", " " * 8]
        lines.append(f"  {name:<44}{'':>19}" + "".join([*cells, *_cells(scores, others)]).rstrip())
    for each in trained:
        if each.rate is None:
            lines.append(f"  {each.title:<44}{each.params:>11,}  does not train")
            continue
        means = {metric.key: each.mean(metric.key) for metric in metrics}
        spread = f"{each.spread(headline.key):>8.{headline.decimals}f}" if len(each.test) > 1 else " " * 8
        cells = [f"{each.rate:>8g}", f"{headline.number(means[headline.key]):>11}", spread]
        lines.append(f"  {each.title:<44}{each.params:>11,}" + "".join([*cells, *_cells(means, others)]).rstrip())
    return lines


def _cells(scores: Scores, metrics: Sequence[Metric]) -> list[str]:
    return [f"{metric.number(scores[metric.key]):>10}" for metric in metrics]
