"""Several processes that train together, started by torchrun; run as a script this is what each of them does."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F

from nas import AdaBreg, LinBreg, param_groups, sparse_start
from nas.models import DagNet, separable_autoencoder
from nas.search import search, thin_out
from nas.search.training import ranks
from nas.search.training.retrain import Retraining

ROOT = Path(__file__).resolve().parents[1]
OPTIMIZERS = {"adabreg": (AdaBreg, 0.2, 0.01), "linbreg": (LinBreg, 0.001, 0.5)}
STEPS, EPOCHS, BATCH = 10, 5, 6


def torchrun(num: int, *words: str) -> list[str]:
    """The command that starts so many processes on this machine, on ports that are free."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={num}", *words]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run_together(num: int, *words: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
    """What came of it."""
    return subprocess.run(torchrun(num, *words), env=environment(), capture_output=True, text=True, timeout=seconds)


def batches(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of noisy pictures (6, 1, 12, 12), and these without the noise."""
    generator = torch.Generator().manual_seed(epoch)
    for _ in range(STEPS):
        clean = torch.rand(BATCH, 1, 1, 1, generator=generator) * torch.ones(BATCH, 1, 12, 12)
        yield (clean + 0.1 * torch.randn(clean.shape, generator=generator)), clean


def supernet() -> DagNet:
    torch.manual_seed(0)
    net = separable_autoencoder(depth=2, width=6, hidden=6, kernel=5)
    sparse_start(net, 0.3, seed=0, batch=next(batches(0))[0])
    return net


def grown(name: str) -> dict[str, object]:
    """Weights, duals, losses and numbers of units, after 50 steps and in each epoch."""
    make, lam, lr = OPTIMIZERS[name]
    net = supernet()
    optimizer = make(param_groups(net, lam=lam, lr=lr))
    snapshots = list(islice(search(net, batches, optimizer, F.mse_loss), EPOCHS))
    duals = [optimizer.state[p]["dual"] for p in net.parameters() if "dual" in optimizer.state[p]]
    losses = torch.tensor([snapshot.loss for snapshot in snapshots], dtype=torch.float64)
    units = torch.tensor([snapshot.num_units for snapshot in snapshots])
    return {"weights": dict(net.state_dict()), "duals": duals, "losses": losses, "units": units}


def retrained() -> dict[str, torch.Tensor]:
    net = supernet()
    Retraining(net, batches, F.mse_loss, epochs=EPOCHS, steps=STEPS).run()
    return dict(net.state_dict())


def thinned() -> dict[str, torch.Tensor]:
    """Without fits, so that there is no round-off."""
    return dict(thin_out(supernet(), 200, lambda net: None, F.mse_loss, next(batches(0))).state_dict())


def all_of_it() -> dict[str, object]:
    return {**{name: grown(name) for name in OPTIMIZERS}, "retrained": retrained(), "thinned": thinned()}


def caught(do: Callable[[], object]) -> str:
    try:
        return f"returned {do()}"
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"


def facts() -> dict[str, object]:
    """What one rank sees of what they do together."""
    rank = 0 if ranks.is_first() else 1

    def refuse():
        raise ValueError(f"rank {rank} cannot")

    return {
        "size": ranks.size(),
        "agreed": ranks.agreed(False, rank == 1),
        "on_first": ranks.on_first(lambda: (rank, ranks.size())),
        "refused": caught(lambda: ranks.on_first(refuse)),
        "spread": ranks.spread(lambda items: [(item, rank, ranks.size()) for item in items], range(5)),
        "apart": ranks.spread_apart(lambda item: (item, rank, ranks.size(), ranks.is_first()), range(5)),
        "one_refuses": caught(lambda: ranks.spread(lambda items: refuse() if 4 in items else items, range(5))),
        "same": caught(lambda: ranks.check_same("now", lambda: {"a": [torch.zeros(2)]})),
        "different": caught(
            lambda: ranks.check_same("now", lambda: {"a": [torch.zeros(2), torch.full((), 1e-9 * rank)]})
        ),
    }


def main(words: Sequence[str]) -> None:
    with ranks.joined():
        torch.save([facts(), all_of_it()], Path(words[0]) / f"{0 if ranks.is_first() else 1}.pt")
    assert ranks.size() == 1


if __name__ == "__main__":
    main(sys.argv[1:])
