"""Everything that determines a search."""

import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import nn

from nas.models.build import Factory
from nas.models.price import CHEAPEST, Currency
from nas.registry import Unknown
from nas.search.data.dataset import Pictures
from nas.search.data.formats.values import parse_range
from nas.search.data.sources import SOURCES
from nas.search.runs.learnt import TASKS, UNKNOWN, check_learnt, find_task, make_task
from nas.search.runs.options import AUTO, NONE, ROOTS, check_options, check_seed, parse_size
from nas.search.tasks.noise import parse_sigma
from nas.search.tasks.task import Metric, Task
from nas.search.training.optimizers import OPTIMIZERS, Kind
from nas.steering import EARLIEST

MOST_COARSE = 99
# options that there were not always; runs without can be read
LATER = ("patience", "clean", "val_root", "test_root", "range", "coarse")


@dataclass(frozen=True)
class SearchConfig:
    """Options of a search. The same options and threads give the same run, bit for bit, on the same machine.

    Args:
        task: what the network is to learn: denoise, deblur, inpaint, superresolve, classify.
        task_options: options of the task, such as border (all but classify), peak (denoise), blur and kernel (deblur),
            missing and mask (inpaint), scale (superresolve), flip and shift (classify).
        data: source of pictures: pictures (ships with scikit-image), folder, pairs (folders noisy and clean),
            noisy_pairs (folders noisy and noisy2), mnist, fashion_mnist, cifar10, class_folder (pictures of one size, a
            folder for each class).
        data_root: folder of the pictures or of the data set.
        val_root: folder to validate on (folder, pairs, noisy_pairs); by default a tenth of data_root is held out.
        test_root: likewise to test on.
        range: pixel values that are black and white in files that do not say so, such as 0:4095 (folder, pairs,
            noisy_pairs).
        clean: given: the pictures are clean, and noise is added; none: they are noisy, and nothing else is known. Then
            sigma says how much: a number, auto (estimated), or unknown (noise is only independent between pixels).
        model: supernet: separable_autoencoder, mixed_autoencoder, conv_skip_autoencoder, skip_autoencoder, dense_mlp,
            dense_conv, mlp; or what makes a module in a file of yours (--import).
        model_options: options of the supernet, such as depth, width and patch.
        channels: 1 searches on grey pictures, 3 on colour.
        sigma: standard deviation of the noise on the 0..255 scale, or a range such as 5:55 that one network is trained
            for, which is then told the level (denoise, deblur).
        epochs: number of epochs; the learning rate falls to 0 along a cosine.
        patience: stop growing after so many epochs without a better validation score; never by default.
        steps: optimiser steps per epoch.
        batch: crops, or pictures to classify, per step.
        crop: side of the training crops in pixels (denoise, deblur); a module of yours is traced on such pictures.
        density: part of each layer's units that is alive at the start, at least one unit.
        optimizer: adabreg, linbreg, momentum (linbreg with a momentum of 0.9), proxsgd, splitlbi, xrda; the last two
            start from the dense network.
        lr: how far weights and biases move per step, roughly; by default 0.002, of linbreg, proxsgd and xrda
            0.0002.
        second_moment: what adabreg divides the gradients by: one number per entry (as Adam), group or tensor. With one
            per tensor the groups with large gradients wake first.
        entry_time: steps until units of the mean price can wake; larger keeps the network smaller. By default 40 full
            steps, of splitlbi 60; proxsgd and xrda have none. auto chooses it by a trial of 200 full steps, so that a
            tenth of the units would wake within them (adabreg, linbreg, momentum).
        coarse: after every full step so many, 0 to 99, in which only what is alive is computed and moves; what sleeps
            can wake in full steps alone, so that entry_time counts coarse + 1 steps for each (adabreg, linbreg,
            momentum).
        price: the dearer a group, the later it wakes: lam grows with the square root of what it adds in params, or in
            flops (multiply-adds per pixel); the front is ranked by loss per price, too. none: all alike.
        gate_scale: learning rate and strength of the skip gates, as multiples of those of the units.
        sizes: parameters (with price flops: multiply-adds per pixel) of the networks of the front, such as 4k,14k,27k;
            each is thinned out from a larger one, refitted and measured. auto: what has grown, a half and a quarter of
            it. none: no front.
        target_params: instead of sizes: steer the growth to half as much again as so many parameters, such as 14k, and
            make one network of at most so many, and at most 5 % fewer.
        target_flops: the same for so many multiply-adds per pixel.
        fit: steps between two removals on the way to a smaller network.
        refit: epochs for which each network of the front is trained.
        tolerance: the search recommends its smallest network whose validation score is within this much of its best: dB
            of PSNR, percentage points of accuracy.
        seed: of the weights, the training data and the noise.
    """

    task: str = "denoise"
    task_options: dict[str, bool | int | float | str] = field(default_factory=dict)
    data: str = "pictures"
    data_root: Path | None = None
    val_root: Path | None = None
    test_root: Path | None = None
    range: str | None = None
    clean: Literal["given", "none"] = "given"
    model: str = "separable_autoencoder"
    model_options: dict[str, bool | int | float | list[int] | None] = field(default_factory=dict)
    channels: int = 1
    sigma: str | float = 25.0
    epochs: int = 20
    patience: int | None = None
    steps: int = 128
    batch: int = 8
    crop: int = 48
    density: float = 0.1
    optimizer: str = "adabreg"
    lr: float | None = None
    second_moment: Literal["entry", "group", "tensor"] = "tensor"
    entry_time: float | Literal["auto"] | None = None
    coarse: int = 0
    price: Literal["params", "flops", "none"] = "params"
    gate_scale: float = 5.0
    sizes: str = AUTO
    target_params: str | None = None
    target_flops: str | None = None
    fit: int = 200
    refit: int = 40
    tolerance: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for option in fields(self):
            if getattr(self, option.name) is None and option.default is not None:
                raise ValueError(f"{option.name} must have a value, got null")
        TASKS.find(self.task)
        SOURCES.find(self.data)
        check_learnt(self.task, self.data, self.clean, self.sigma)
        if isinstance(self.sigma, str) and self.sigma not in (AUTO, UNKNOWN):
            sigma = parse_sigma(self.sigma)
            if not isinstance(sigma, tuple):
                object.__setattr__(self, "sigma", sigma)  # so that 25 is 25.0
        _ = self.black_and_white
        Factory.find(self.model)
        for name in ("epochs", "patience", "steps", "batch", "crop", "fit", "refit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        for name, value in (("lr", self.learning_rate), ("gate_scale", self.gate_scale)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be > 0, got {value}")
        check_seed(self.seed)
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be >= 0 {self.headline.unit}, got {self.tolerance}")
        given = [name for name in ("target_params", "target_flops") if getattr(self, name) is not None]
        if len(given) > 1 or (given and self.sizes != AUTO):
            raise ValueError(
                f"sizes, target_params and target_flops exclude each other, got {' and '.join([*given, 'sizes'][:2])}"
            )
        _ = self.front_sizes
        if not 0 <= self.coarse <= MOST_COARSE:
            raise ValueError(f"coarse must lie between 0 and {MOST_COARSE} steps, got {self.coarse}")
        if self.coarse and not self.kind.restricts:
            raise ValueError(f"{self.optimizer} has no exact restriction to what is alive, and takes no coarse steps")
        self._check_entry_time()

    @property
    def task_class(self) -> type[Task]:
        """What is learnt: the task; of denoising that for the kind of pictures that there are."""
        return find_task(self.task, self.data, self.clean, self.sigma)

    @property
    def black_and_white(self) -> tuple[float, float] | None:
        """The two numbers of ``range``."""
        return None if self.range is None else parse_range(self.range)

    def _check_entry_time(self) -> None:
        if self.entry_time is not None and self.kind.entry_time is None:
            raise ValueError(f"{self.optimizer} has no duals, so that there is no entry_time; leave it out")
        if isinstance(self.entry_time, str):
            if self.entry_time != AUTO:
                raise ValueError(f"entry_time must be a number of steps or {AUTO}, got {self.entry_time!r}")
            if not self.kind.calibrates:
                raise ValueError(f"{self.optimizer} takes no entry_time {AUTO}, only a number of steps")
        elif self.entry_time is not None and not self._earliest <= self.entry_time < math.inf:
            coarse = f" and coarse {self.coarse}" if self.coarse else ""
            raise ValueError(
                f"entry_time must be at least {self._earliest:g} steps with price {self.price}{coarse} (below, "
                f"everything wakes at once), got {self.entry_time:g}"
            )

    @property
    def _earliest(self) -> float:
        return EARLIEST / self.cheapest * (self.coarse + 1)

    @property
    def currency(self) -> Currency | None:
        """What prices are counted in."""
        return None if self.price == "none" else self.price

    @property
    def sizes_in(self) -> Currency:
        """What sizes are counted in."""
        if self.target is not None:
            return "params" if self.target_flops is None else "flops"
        return self.currency or "params"

    @property
    def target(self) -> int | None:
        """What the growth is steered to, in `sizes_in`; None where it is free."""
        text = self.target_params or self.target_flops
        return None if text is None else parse_size(text)

    @property
    def kind(self) -> Kind:
        """The optimiser."""
        return OPTIMIZERS.find(self.optimizer)

    @property
    def learning_rate(self) -> float:
        """``lr``, or the default of the optimiser."""
        return self.kind.lr if self.lr is None else self.lr

    @property
    def cheapest(self) -> float:
        """The least factor on lam."""
        return 1.0 if self.currency is None else CHEAPEST

    @property
    def front_sizes(self) -> list[int] | None:
        """What the networks of the front may cost, the largest first; None if the search is to choose that.

        Raises:
            ValueError: ``sizes`` is no list of numbers.
        """
        if self.target is not None:
            return [self.target]
        if self.sizes in (AUTO, NONE):
            return None if self.sizes == AUTO else []
        return sorted({parse_size(size) for size in self.sizes.split(",")}, reverse=True)

    def to_yaml(self) -> str:
        """Text for ``nas search --config``."""
        roots = {name: None if getattr(self, name) is None else str(getattr(self, name)) for name in ROOTS}
        return yaml.safe_dump({**asdict(self), **roots}, sort_keys=False)

    @property
    def identity(self) -> str:
        """All that determines the run, as text; not where the data lie, nor the outputs, which follow from the data."""
        options = {name: value for name, value in self.model_options.items() if name != "outputs"}
        given, usual = asdict(replace(self, model_options=options)), {each.name: each.default for each in fields(self)}
        left_out = {*ROOTS, *(name for name in LATER if given[name] == usual[name])}
        return json.dumps(_as_floats({name: value for name, value in given.items() if name not in left_out}))

    def difference(self, other: "SearchConfig") -> str:
        """The first option in which the two differ: "lr 0.1, not 0.2"; empty if there is none."""
        mine, theirs = (_as_floats(asdict(each)) for each in (self, other))
        for name in mine:
            if name not in ROOTS and mine[name] != theirs[name]:
                return f"{name} {getattr(self, name)}, not {getattr(other, name)}"
        return ""

    def grows_like(self, other: "SearchConfig") -> bool:
        """Whether the two differ at most in what is done after the growth: the front."""
        front = {name: getattr(other, name) for name in ("sizes", "fit", "refit", "tolerance")}
        return replace(self, **front).identity == other.identity

    @classmethod
    def from_yaml(cls, text: str) -> "SearchConfig":
        """The inverse of `to_yaml`.

        Raises:
            ValueError: the text is not the configuration of a search; `nas.registry.Unknown` if it names something that
                is not registered.
        """
        from jsonargparse import ArgumentError, ArgumentParser

        parser = ArgumentParser(exit_on_error=False)
        parser.add_class_arguments(cls)
        try:
            if missing := {option.name for option in fields(cls)} - {*(yaml.safe_load(text) or ()), *LATER}:
                raise ValueError(f"it lacks {min(missing)}")
            return cls(**parser.parse_string(text).as_dict())
        except Unknown:
            raise
        except (ArgumentError, TypeError, ValueError, RecursionError, yaml.YAMLError) as problem:
            raise ValueError(f"not the configuration of a search: {' '.join(str(problem).split())}") from None

    @property
    def headline(self) -> Metric:
        """What the search picks its network by."""
        return self.task_class.metrics[0]

    def make_task(self, data: Pictures | None) -> Task:
        """The task for a data set, which gives it the fields that are no options (`Task.from_data`), if it has such.

        Raises:
            ValueError: unknown or missing options, options out of range, or data that do not suit the task.
        """
        return make_task(self.task, self.task_class, self.task_options, self.sigma, data)

    def at_absolute_roots(self) -> "SearchConfig":
        """The same with `ROOTS` that hold in every working folder."""
        given = {name: getattr(self, name) for name in ROOTS}
        return replace(self, **{name: root.resolve() for name, root in given.items() if root is not None})

    def with_outputs(self, num_outputs: int | None) -> "SearchConfig":
        """The same with the option ``outputs`` of the supernet, where it has one that is not set."""
        if num_outputs is None or "outputs" in self.model_options or "outputs" not in self._known_options():
            return self
        return replace(self, model_options={**self.model_options, "outputs": num_outputs})

    def _known_options(self) -> list[str]:
        """Names of the options of the supernet."""
        return Factory.find(self.model).options

    def build(self) -> nn.Module:
        """The supernet, before its sparse start: a `DagNet` or a `TracedNet`.

        Raises:
            ValueError: the supernet does not take the ``model_options``, or cannot be made or traced.
        """
        check_options(self.model, self.model_options, self._known_options())
        return Factory.find(self.model).build(self.channels, self.num_extra, self.model_options, self.crop)

    @property
    def num_extra(self) -> int:
        """Channels of the input beside the picture (`Task.num_extra`)."""
        return 0 if self.task_class.from_data or self.sigma in (AUTO, UNKNOWN) else self.make_task(None).num_extra


def _as_floats(value: Any) -> Any:
    """The same with floats for integers, which may stand for them."""
    if isinstance(value, dict):
        return {name: _as_floats(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_floats(each) for each in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
