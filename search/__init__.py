"""What happens over time: data and tasks, the search loop and its path, runs, retraining."""

from nas.search.batches import Batches, random_crops, random_samples
from nas.search.classification import Classify
from nas.search.config import SearchConfig, register_task
from nas.search.data import folder, load_data, pictures, register_data
from nas.search.labelled import cifar10, class_folder, fashion_mnist, mnist
from nas.search.loop import Snapshot, search, snapshot
from nas.search.path import Choice, Point, births, deaths, pick
from nas.search.polish import Polished, polish
from nas.search.restoration import Deblur, Denoise, Restoration, restore
from nas.search.retrain import retrain
from nas.search.run import Run, Search
from nas.search.stack import Picture, Pictures, Stack
from nas.search.tasks import Example, Metric, Task, evaluate, held_out, predict, score

__all__ = [
    "Batches",
    "Choice",
    "Classify",
    "Deblur",
    "Denoise",
    "Example",
    "Metric",
    "Picture",
    "Pictures",
    "Point",
    "Polished",
    "Restoration",
    "Run",
    "Search",
    "SearchConfig",
    "Snapshot",
    "Stack",
    "Task",
    "births",
    "cifar10",
    "class_folder",
    "deaths",
    "evaluate",
    "fashion_mnist",
    "folder",
    "held_out",
    "load_data",
    "mnist",
    "pick",
    "pictures",
    "polish",
    "predict",
    "random_crops",
    "random_samples",
    "register_data",
    "register_task",
    "restore",
    "retrain",
    "score",
    "search",
    "snapshot",
]
