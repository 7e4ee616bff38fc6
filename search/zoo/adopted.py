"""A run of a network that comes with the package, so that it can be retrained, shown and exported as a found one."""

from nas.models.network import cost, num_params
from nas.search.data.dataset import Pictures
from nas.search.runs.path import Point, save_sparse, write_points
from nas.search.runs.run import PATH, SNAPSHOTS, Run, begun
from nas.search.tasks.noise import Denoise
from nas.search.tasks.task import evaluate
from nas.search.training.loop import snapshot
from nas.search.zoo.shipped import find_shipped


def adopt(run: Run, data: Pictures, *, force: bool = False) -> None:
    """Make the folder of a run whose model is a shipped network: the front of its path is that network.

    Args:
        run: its configuration says which network, and what is to be learnt: noise of a range of levels.
        data: its pictures.
        force: replace a run that the folder holds.

    Raises:
        ValueError: there is no such network, it does not suit the task or the data, or the folder is in use.
    """
    config = run.config
    net = find_shipped(config.model).load()
    if config.num_extra != net.plan.extra:
        problem = f"sigma must be a range, got {config.sigma}"
        if config.task_class is not Denoise:
            problem = f"it learns from clean pictures alone, got data {config.data} with clean {config.clean}"
        raise ValueError(f"{config.model} is told the level of the noise: {problem}")
    scores = evaluate(net, run.validation(data), run.task(data))
    run.test(data)  # what is wrong with the pictures is said before anything is written
    with begun(run, force):
        folder = run.folder / SNAPSHOTS
        folder.mkdir()
        files = [folder / f"{epoch:04}.safetensors" for epoch in (0, 1)]  # a start, and the network of the front
        points = [
            Point(snapshot(net, epoch), scores, num_params(net), cost(net, "flops"), 0.0, save_sparse(net, file))
            for epoch, file in enumerate(files)
        ]
        write_points(run.folder / PATH, points, config.identity)
