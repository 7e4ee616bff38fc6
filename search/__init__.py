"""What happens over time: data and tasks, the search loop and its path, runs, retraining."""

from nas.search.callbacks.callback import Callback
from nas.search.callbacks.loggers import LOGGERS, Logger
from nas.search.data.batches import Batches, random_crops, random_samples
from nas.search.data.dataset import Pictures, estimate_sigma
from nas.search.data.formats.files import read_sheet, write_sheet
from nas.search.data.labelled import cifar10, class_folder, fashion_mnist, mnist
from nas.search.data.sources import folder, load_data, pictures, register_data
from nas.search.data.stack import Picture, Stack
from nas.search.engine.repeat import recommended, repetitions
from nas.search.engine.search import Search
from nas.search.engine.thinning import thin_out
from nas.search.retraining.config import RetrainConfig
from nas.search.retraining.retraining import RunRetraining
from nas.search.runs.config import SearchConfig
from nas.search.runs.learnt import register_task
from nas.search.runs.path import Choice, Point, births, deaths, pick
from nas.search.runs.run import Run
from nas.search.sweep.sweep import Sweep
from nas.search.sweep.trials import Sweeping
from nas.search.tasks.classification import Classify
from nas.search.tasks.degradations import Deblur, Inpaint, SuperResolve
from nas.search.tasks.noise import Denoise
from nas.search.tasks.restoration import Restoration, restore
from nas.search.tasks.task import Example, Metric, Task, evaluate, held_out, predict, score
from nas.search.tasks.use import Noise, denoise_pixels, denoise_sheet
from nas.search.training.compute import Compute
from nas.search.training.loop import Snapshot, search, snapshot
from nas.search.training.retrain import retrain
from nas.search.zoo.shipped import shipped

__all__ = [
    "LOGGERS",
    "Batches",
    "Callback",
    "Choice",
    "Classify",
    "Compute",
    "Deblur",
    "Denoise",
    "Example",
    "Logger",
    "Inpaint",
    "Metric",
    "Noise",
    "Picture",
    "Pictures",
    "Point",
    "Restoration",
    "RetrainConfig",
    "Run",
    "RunRetraining",
    "Search",
    "SearchConfig",
    "Snapshot",
    "Stack",
    "SuperResolve",
    "Sweep",
    "Sweeping",
    "Task",
    "births",
    "cifar10",
    "class_folder",
    "deaths",
    "denoise_pixels",
    "denoise_sheet",
    "estimate_sigma",
    "evaluate",
    "fashion_mnist",
    "folder",
    "held_out",
    "load_data",
    "mnist",
    "pick",
    "pictures",
    "predict",
    "random_crops",
    "random_samples",
    "recommended",
    "read_sheet",
    "register_data",
    "register_task",
    "repetitions",
    "restore",
    "retrain",
    "score",
    "search",
    "shipped",
    "snapshot",
    "thin_out",
    "write_sheet",
]
