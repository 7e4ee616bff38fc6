"""What happens over time: data and tasks, the search loop and its path, runs, retraining."""

from nas.search.baselines import baselines
from nas.search.config import SearchConfig
from nas.search.data import Picture, Pictures, folder, load_data, mnist, pictures
from nas.search.loop import Snapshot, search, snapshot
from nas.search.path import Point, births, deaths, pick
from nas.search.retrain import retrain
from nas.search.run import Run, Search
from nas.search.tasks import Denoise, Example, Score, evaluate, held_out, random_crops, restore

__all__ = [
    "Denoise",
    "Example",
    "Picture",
    "Pictures",
    "Point",
    "Run",
    "Score",
    "Search",
    "SearchConfig",
    "Snapshot",
    "baselines",
    "births",
    "deaths",
    "evaluate",
    "folder",
    "held_out",
    "load_data",
    "mnist",
    "pick",
    "pictures",
    "random_crops",
    "restore",
    "retrain",
    "search",
    "snapshot",
]
