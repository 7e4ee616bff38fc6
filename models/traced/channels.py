"""The channels of any module, from its graph: which of them live and die together."""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor, fx, nn

from nas.models.traced.graph import Example, Graph, called, lies_in, operation, shape, trace, written
from nas.models.traced.heads import ATTENTION, PRODUCTS_OF_TENSORS, Product

ZEROED, SHIFTED = {"dropout", "feature_dropout"}, {"alpha_dropout", "feature_alpha_dropout"}
ENTRYWISE = {  # beside what torch tags as pointwise
    *("hardswish", "log_sigmoid", "where", "rsub", "true_divide", "multiply", "subtract", "divide", "prelu"),
    *("contiguous", "clone", "to", "_to_copy", "type_as", "detach", "alias", "lift_fresh_copy", "masked_fill"),
    *ZEROED,
    *SHIFTED,
}
MOVES = {
    *("view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "t", "mT", "numpy_T"),
    *("squeeze", "unsqueeze", "expand", "expand_as", "repeat", "cat", "concat", "concatenate", "stack", "select"),
    *("slice", "narrow", "chunk", "split", "split_with_sizes", "tensor_split", "unbind", "pad", "constant_pad_nd"),
    *(
        "pixel_shuffle",
        "pixel_unshuffle",
        "channel_shuffle",
        "repeat_interleave",
        "view_as",
        "reshape_as",
        "_unsafe_view",
        "swapdims",
    ),
}
PARTS = {"slice", "narrow", "select", "chunk", "split", "split_with_sizes", "tensor_split", "unbind"}
ALONG = {  # what mixes along the axes that it is given
    *("mean", "sum", "amax", "amin", "var", "std", "softmax", "log_softmax", "logsumexp", "cumsum", "prod"),
    *("linalg_vector_norm", "roll", "flip", "max", "min", "argmax", "_softmax", "_log_softmax"),
}
ACROSS_CHANNELS = {  # beside norms over channels, what needs all channels where it mixes along their axis
    *("mean", "sum", "amax", "amin", "var", "std", "softmax", "log_softmax", "logsumexp", "linalg_vector_norm"),
    *("layer_norm", "group_norm", "rms_norm", "grid_sampler"),
}
TRANSPOSITIONS = {"t", "transpose", "permute", "mT", "numpy_T", "swapaxes", "swapdims"}  # of a matrix
INDEXED = {"index", "index_select"}
POSITIONS = (
    *("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool"),
    *("upsample", "reflection_pad", "replication_pad"),
)
CONVOLUTIONS = {"conv1d", "conv2d", "conv3d"}
TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
MATRIX_PRODUCTS = {"matmul", "mm", "addmm"}
LAYERS = {"linear", *CONVOLUTIONS, *TRANSPOSED}
DENSE = {torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default}  # refuse what is expanded
# What makes a tensor like another one, whatever that holds
LIKE = {"new_empty", "new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like", "empty_like"}


class Kind(Enum):
    """What an operation does to channels."""

    UNKNOWN = auto()  # anything
    MIX = auto()  # every output channel is a sum over all input channels, weighted by a stored tensor
    GROUPED = auto()  # likewise of some input channels, such as one in a depthwise convolution
    NORM = auto()  # an affine function of each channel by itself: batch and instance normalisation
    ENTRYWISE = auto()  # a function of the entries of one or several tensors
    ALONG = auto()  # something with all positions of a channel, such as pooling, a mean or a softmax
    MOVE = auto()  # entries go elsewhere
    HEADS = auto()  # products of matrices, for each channel by itself: the heads of attention
    ACROSS = auto()  # something with all channels at once, so that none can go: normalisation over channels, attention


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kind: what it does to the channels of ``sources`` to give ``node``.
        weight, bias: what a layer or normalisation stores.
        axes: of the output and of the input channels in ``weight``.
        groups: of a convolution.
        along: the axis of what a layer reads that has its input channels; None for that of its output channels.
    """

    kind: Kind
    node: fx.Node
    sources: tuple[fx.Node, ...] = ()
    weight: fx.Node | None = None
    bias: fx.Node | None = None
    axes: tuple[int, int] = (0, 1)
    groups: int = 1
    along: int | None = None

    @property
    def name(self) -> str:
        return called(self.node)


class Channels:
    """Numbers for the channels along one axis of every tensor, and along all axes of stored tensors.

    Attributes:
        graph: of the module.
        steps: by node what it does, in order; without what has no channels.
        axis: by node along which axis its channels lie.
        roots: by node the number of each channel; channels of one number live and die together.
        stored: by node of a stored tensor the numbers along each of its axes.
        fixed: by number whether it has to stay.
        unknown: operations that are not understood, with the numbers of the channels that they see.
        across: operations that need all channels, likewise.
        pure: what is computed from stored tensors alone.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.steps: dict[fx.Node, Step] = {}
        self.axis: dict[fx.Node, int] = {}
        self.stored: dict[fx.Node, list[Tensor]] = {}
        self.unknown: dict[fx.Node, Tensor] = {}
        self.across: dict[fx.Node, Tensor] = {}
        self.pure: set[fx.Node] = set()
        self._labels: dict[fx.Node, Tensor] = {}
        self._parts: dict[fx.Node, list[tuple[int, Tensor] | None]] = {}
        self._count = 1
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._fixed = [torch.zeros(1, dtype=torch.long)]
        self._heads = _find_heads(graph)
        self._store()
        for node in graph.nodes:
            if node.op == "call_function":
                self._visit(node)
        for node in graph.outputs:
            self._fix(self._seen([node]))
        self._solve()

    # Numbers

    def _fresh(self, count: int) -> Tensor:
        self._count += count
        return torch.arange(self._count - count, self._count)

    def _join(self, a: Tensor, b: Tensor) -> None:
        a, b = torch.broadcast_tensors(a, b)
        self._pairs.append((a.reshape(-1), b.reshape(-1)))

    def _fix(self, labels: Tensor) -> None:
        self._fixed.append(labels.reshape(-1))

    def _seen(self, nodes: Iterable[fx.Node]) -> Tensor:
        """The numbers of all channels of these tensors."""
        found = [self._fixed[0][:0]]
        for node in nodes:
            found += self.stored.get(node, [])
            found += [self._labels[node]] if node in self._labels else []
            found += [part[1] for part in self._parts.get(node, []) if part is not None]
        return torch.cat(found)

    def _solve(self) -> None:
        """Give channels that are tied to each other the smallest of their numbers."""
        root = torch.arange(self._count)
        if self._pairs:
            a, b = (torch.cat(side) for side in zip(*self._pairs, strict=True))
            while True:
                before = root.clone()
                least = torch.minimum(root[a], root[b])
                root.scatter_reduce_(0, root[a], least, "amin").scatter_reduce_(0, root[b], least, "amin")
                root = root[root]
                if torch.equal(root, before):
                    break
        self.fixed = torch.zeros(self._count, dtype=torch.bool)
        self.fixed[root[torch.cat(self._fixed)]] = True
        self.roots = {node: root[labels] for node, labels in self._labels.items()}
        self.parts = {
            node: [None if part is None else (part[0], root[part[1]]) for part in parts]
            for node, parts in self._parts.items()
        }
        self.stored = {node: [root[labels] for labels in axes] for node, axes in self.stored.items()}
        heads = {step.node: self._labels[step.node] for step in self.steps.values() if step.kind is Kind.HEADS}
        self.across |= {node: labels for node, labels in heads.items() if self.fixed[root[labels]].any()}
        self.unknown, self.across = (
            {node: root[labels] for node, labels in found.items()} for found in (self.unknown, self.across)
        )

    def follow(self, training: "Channels") -> None:
        """Let tensors that only the graph of training mode reads lose what they have of channels that go."""
        names, read = self.graph.names, {name for node, name in self.graph.names.items() if node.users}
        known: dict[int, set[int]] = {}  # by number in training the numbers here
        trained = {name: training.stored[node] for node, name in training.graph.names.items() if node.users}
        for node, name in names.items():
            if name in read and name in trained:
                for ours, theirs in zip(self.stored[node], trained[name], strict=True):
                    for number, other in zip(ours.tolist(), theirs.tolist(), strict=True):
                        known.setdefault(other, set()).add(number)
        for node, name in names.items():
            if name not in read and name in trained:
                self.stored[node] = [
                    torch.tensor([min(known.get(other, {0})) for other in theirs.tolist()], dtype=torch.long)
                    for theirs in trained[name]
                ]  # the number 0 always stays
        for numbers in known.values():  # what lives and dies together in training does so here
            if len(numbers) > 1:
                self._join(torch.tensor(sorted(numbers)), torch.tensor(min(numbers)))
        self._solve()

    # The graph

    def _store(self) -> None:
        """Number the axes of stored tensors; what a name stands for twice is one tensor."""
        by_name: dict[str, list[Tensor]] = {}
        read = {self.graph.names.get(node) for node in self.graph.stored if node.users}
        for node, tensor in self.graph.stored.items():
            name = self.graph.names.get(node)
            axes = by_name.get(name or "") or [self._fresh(size) for size in tensor.shape]
            if name is None or name not in read or not tensor.is_floating_point():  # made in forward, or not trained
                self._fix(torch.cat([*axes, self._fixed[0][:0]]))
            else:
                by_name[name] = axes
            self.stored[node] = axes
            self.pure.add(node)
            long = [axis for axis, size in enumerate(tensor.shape) if size > 1] or list(range(tensor.ndim))
            if len(long) == 1:
                self.axis[node], self._labels[node] = long[0], axes[long[0]]

    def _visit(self, node: fx.Node) -> None:
        tensors = node.all_input_nodes
        if not isinstance(node.meta.get("val"), Tensor | tuple | list):
            return  # a check, or a number
        if not _is_random(node) and node not in self.graph.changed and all(each in self.pure for each in tensors):
            self.pure.add(node)
        if node in self.graph.changed and operation(node) in LAYERS and self._understand(node):
            self.unknown[node] = self._labels[node]  # what it reads is known, if not what it puts out in the end
            self._fix(self._labels[node])
        elif node in self.graph.changed or not self._understand(node):
            self._labels.pop(node, None)
            self.axis.pop(node, None)
            known = node not in self.graph.changed and self._needs_all(node)
            self.steps[node] = Step(Kind.ACROSS if known else Kind.UNKNOWN, node, tuple(tensors))
            seen = self._seen(tensors)
            if len(seen):
                (self.across if known else self.unknown)[node] = seen
                self._fix(seen)

    def _understand(self, node: fx.Node) -> bool:
        """Whether the operation is one of those below, and its channels where they are expected."""
        name = operation(node)
        if name == "getitem":
            return self._take_part(node)
        if name in LAYERS:
            return self._layer(node, name)
        if name in MATRIX_PRODUCTS:
            return self._product(node) or self._attend(node)
        if name == "embedding":
            return self._look_up(node)
        if name == "einsum" and self._sum(node):
            return True
        if name in PRODUCTS_OF_TENSORS and self._attend(node):
            return True
        if name in ("batch_norm", "instance_norm"):
            return self._norm(node)
        if self._is_turned(node):
            return True
        if name in MOVES and not (name in ("pad", "constant_pad_nd") and not self._pads_channels(node)):
            return self._move(node)
        if (axes := self._mixed_axes(node, name)) is not None:
            return self._along(node, axes)
        if name in INDEXED:
            return self._index(node)
        if name in LIKE:
            return self._like(node)
        if name in ENTRYWISE or torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return self._entrywise(node)
        return not len(self._seen(node.all_input_nodes))

    def _needs_all(self, node: fx.Node) -> bool:
        """Whether an operation, on what is no stored tensor, needs all channels."""
        name, tensors = operation(node), node.all_input_nodes
        if name in PRODUCTS_OF_TENSORS:
            return name == ATTENTION or not any(each in self.pure for each in tensors)
        return name in ACROSS_CHANNELS and tensors[0] not in self.pure

    def _put(self, step: Step, axis: int, labels: Tensor) -> bool:
        if shape(step.node)[axis] != len(labels):  # nothing to compute with: a layer without inputs
            return False
        self.steps[step.node], self.axis[step.node], self._labels[step.node] = step, axis, labels
        if step.kind in (Kind.MIX, Kind.GROUPED):  # it has channels that can go, whatever it reads
            self.pure.discard(step.node)
        return True

    # Layers

    def _layer(self, node: fx.Node, name: str) -> bool:
        x, weight, bias, *_ = (*arguments(node), None)
        groups = argument(node, "groups") or 1
        if name == "linear":
            axis, out, into = len(shape(node)) - 1, 0, 1
        else:
            axis = len(shape(node)) - int(name[-2]) - 1
            out, into = (1, 0) if name in TRANSPOSED else (0, 1)
        if weight not in self.graph.names or len(shape(weight)) < 2:
            return False
        labels = self.stored[weight]
        for k, each in enumerate(labels):
            if k not in (out, into):
                self._fix(each)
        if groups > 1:
            return self._grouped(Step(Kind.GROUPED, node, (x,), weight, bias, (out, into), groups), axis)
        self._shift(node, bias, labels[out])
        self._feed(x, axis, labels[into])
        return self._put(Step(Kind.MIX, node, (x,), weight, bias, (out, into)), axis, labels[out])

    def _shift(self, node: fx.Node, bias: fx.Node | None, labels: Tensor) -> None:
        """Tie the bias of a layer to the channels that it puts out."""
        if bias in self.graph.names:
            self._join(self.stored[bias][0], labels)
        elif bias is not None:  # computed, so that nobody says what a part of it would be
            self._fix(torch.cat([labels, self._seen([bias])]))
            self.across[node] = labels

    def _product(self, node: fx.Node) -> bool:
        """A matrix product with a stored matrix on the right, perhaps transposed; with a bias if it is a sum."""
        *first, x, weight = arguments(node)
        bias = first[0] if first else None
        out, into = 1, 0
        while weight not in self.graph.names and operation(weight) in TRANSPOSITIONS and len(shape(weight)) == 2:
            weight, out, into = weight.all_input_nodes[0], into, out
        if weight not in self.graph.names or len(self.stored[weight]) != 2:
            return False
        if bias is not None and (shape(bias) != shape(node)[-1:] or node.kwargs):  # factors of both summands
            return False
        axis = len(shape(node)) - 1
        self._shift(node, bias, self.stored[weight][out])
        self._feed(x, axis, self.stored[weight][into])
        return self._put(Step(Kind.MIX, node, (x,), weight, bias, (out, into)), axis, self.stored[weight][out])

    def _sum(self, node: fx.Node) -> bool:
        """A product with a stored matrix along any axis, as a sum over one index."""
        product = Product.of(node)
        if product is None or len(product.factors) != 2:
            return False
        pairs = zip(product.factors, product.letters, strict=True)
        (x, read), (weight, held) = sorted(pairs, key=lambda pair: pair[0] in self.graph.names)
        if x in self.graph.names or weight not in self.graph.names or len(held) != 2:
            return False
        into, out = (0, 1) if held[0] in read else (1, 0)
        before, after = set(read), set(product.result)
        if before - after != {held[into]} or after - before != {held[out]}:
            return False
        numbers, along = self.stored[weight], read.index(held[into])
        if shape(x)[along] != len(numbers[into]) or self.axis.get(x, along) != along:  # one number for all; positions
            return False
        self._feed(x, along, numbers[into])
        step = Step(Kind.MIX, node, (x,), weight, None, (out, into), along=along)
        return self._put(step, product.result.index(held[out]), numbers[out])

    def _look_up(self, node: fx.Node) -> bool:
        """Rows of a stored matrix, chosen by numbers: a layer that all of them are fed to."""
        weight, places, *_ = arguments(node)
        if weight not in self.graph.names or (places in self.axis and places not in self.pure):
            return False
        rows, columns = self.stored[weight]
        self._fix(torch.cat([rows, self._seen([places])]))
        return self._put(Step(Kind.MIX, node, (places,), weight, None, (1, 0)), len(shape(node)) - 1, columns)

    def _attend(self, node: fx.Node) -> bool:
        """A product whose factors all have their channels along an axis of what is multiplied apart: the heads."""
        product = Product.of(node)
        if product is None or lies_in(node, nn.MultiheadAttention):  # whose forward knows one number of heads alone
            return False
        factors, size = product.factors, shape(node)
        if any(each not in self.axis or each in self.pure for each in factors):
            return False
        letters = {letters[self.axis[each]] for each, letters in zip(factors, product.letters, strict=True)}
        if len(letters) > 1 or not letters <= product.apart:
            return False
        [axis] = map(product.result.index, letters)
        masks = [each for each in node.all_input_nodes if each not in factors]
        if any(len(shape(each)) >= len(size) - axis and shape(each)[axis - len(size)] != 1 for each in masks):
            return False  # of each head another one
        if any(len(self._labels[each]) != size[axis] for each in factors):
            return False
        self._fix(self._seen(masks))
        for each in factors[1:]:
            self._join(self._labels[each], self._labels[factors[0]])
        return self._put(Step(Kind.HEADS, node, factors), axis, self._labels[factors[0]])

    def _is_turned(self, node: fx.Node) -> bool:
        """Whether a node is a stored matrix, transposed for products."""
        [x, *_] = node.all_input_nodes or [node]
        turned = x in self.graph.names and operation(node) in TRANSPOSITIONS and len(shape(x)) == 2
        return turned and all(operation(user) in MATRIX_PRODUCTS for user in node.users)

    def _feed(self, x: fx.Node, axis: int, labels: Tensor) -> None:
        """Tie the channels of ``x`` to those that a layer reads along this axis."""
        if self.axis.get(x) == axis and x not in self.pure:
            self._join(self._labels[x], labels)
        else:  # positions are mixed, or what the model takes in or holds
            self._fix(labels)
            self._fix(self._seen([x]))

    def _grouped(self, step: Step, axis: int) -> bool:
        """Groups go as a whole, with what they read and what they put out."""
        x, weight = step.sources[0], self.stored[step.weight]  # type: ignore[index]
        self._fix(weight[1])
        groups = weight[0].reshape(step.groups, -1)  # of the output channels, of transposed layers the input channels
        self._join(groups, groups[:, :1])
        if self.axis.get(x) == axis and x not in self.pure:
            self._join(self._labels[x].reshape(step.groups, -1), groups[:, :1])
        else:
            self._fix(weight[0])
            self._fix(self._seen([x]))
        out = weight[0] if step.axes == (0, 1) else groups[:, 0].repeat_interleave(len(weight[1]))
        self._shift(step.node, step.bias, out)
        return self._put(step, axis, out)

    def _norm(self, node: fx.Node) -> bool:
        x, *stored = arguments(node)[:5]
        held = [each for each in stored if each is not None]
        if x in self.pure or not all(each in self.graph.names for each in held):
            return False
        if self.axis.get(x) != 1:
            self._fix(self._seen([x, *held]))
            return not len(self._seen([x]))
        for each in held:
            self._join(self.stored[each][0], self._labels[x])
        return self._put(Step(Kind.NORM, node, (x,), stored[0], stored[1]), 1, self._labels[x])

    # Anything else

    def _entrywise(self, node: fx.Node) -> bool:
        sources = list(dict.fromkeys(node.all_input_nodes))
        if operation(node) == "prelu":
            return self._rectify(node)
        if operation(node) in ("to", "type_as"):
            sources = sources[:1]
        rank = len(shape(node))
        axes = {each: self.axis[each] + rank - len(shape(each)) for each in sources if each in self.axis}
        leading = [each for each in axes if each not in self.pure] or list(axes)
        if not leading:
            self._fix(self._seen(sources))
            return True
        wide = [each for each in leading if len(self._labels[each]) > 1] or leading
        axis, labels = axes[wide[0]], self._labels[wide[0]]
        if shape(node)[axis] != len(labels):
            return False
        for each in sources:
            own, size = axis - rank + len(shape(each)), shape(each)
            if each is wide[0] or own < 0 or size[own] == 1:
                self._fix(self._seen([each]) if each is not wide[0] else labels[:0])
            elif each in self.stored:
                for k, numbers in enumerate(self.stored[each]):
                    self._join(numbers, labels) if k == own else self._fix(numbers)
            elif axes.get(each) == axis:
                self._join(self._labels[each], labels)
            else:
                self._fix(self._seen([each]))
                self._fix(labels)
        return self._put(Step(Kind.ENTRYWISE, node, tuple(sources)), axis, labels)

    def _like(self, node: fx.Node) -> bool:
        """Numbers that are the same for all channels: a mask for each example, for instance."""
        x, size = node.all_input_nodes[0], shape(node)
        if x in self.axis and size == shape(x) and operation(node) != "empty_like":
            return self._put(Step(Kind.ENTRYWISE, node, (x,)), self.axis[x], self._labels[x])
        own = operation(node).startswith("new_")  # of a size that is given
        return x not in self.axis or own or len(size) < len(shape(x)) or size[self.axis[x]] == 1

    def _rectify(self, node: fx.Node) -> bool:
        x, weight = node.all_input_nodes
        if x not in self.axis or weight not in self.stored or len(self.stored[weight]) != 1:
            return False
        if shape(weight) == (1,):
            self._fix(self.stored[weight][0])
        elif self.axis[x] == 1:
            self._join(self.stored[weight][0], self._labels[x])
        else:
            return False
        return self._put(Step(Kind.ENTRYWISE, node, (x, weight)), self.axis[x], self._labels[x])

    def _mixed_axes(self, node: fx.Node, name: str) -> set[int] | None:
        """The axes of its first input along which an operation mixes; None if that is not known."""
        if not node.all_input_nodes:
            return None
        rank = len(shape(node.all_input_nodes[0]))
        if name.startswith(POSITIONS):
            dims = next((int(k) for k in "123" if f"{k}d" in name), 0)
            return set(range(rank - dims, rank)) if dims else None
        if name in ("pad", "constant_pad_nd"):
            return _padded(node, rank)
        if name in ("layer_norm", "rms_norm"):
            normalised: Any = node.args[1]
            return set(range(rank - len(normalised), rank))
        if name in ALONG and len(node.all_input_nodes) == 1:
            axes: Any = next((given for key in ("dim", "dims") if (given := argument(node, key)) is not None), ())
            axes = (axes,) if isinstance(axes, int) else axes
            return {axis % rank for axis in axes} if axes else set(range(rank))
        return None

    def _along(self, node: fx.Node, mixed: set[int]) -> bool:
        x = node.all_input_nodes[0]
        if x not in self.axis:
            return not len(self._seen(node.all_input_nodes))
        axis = self.axis[x]
        others = [each for each in node.all_input_nodes[1:] if len(self._seen([each]))]
        if axis in mixed or not all(each in self.stored for each in others):
            return False
        self._fix(self._seen(others))  # scales and shifts of what is mixed
        step = Step(Kind.ALONG, node, (x, *others))
        if isinstance(node.meta["val"], Tensor):
            kept = len(shape(node)) == len(shape(x))
            return self._put(step, axis if kept else axis - sum(k < axis for k in mixed), self._labels[x])
        kept = node.meta["val"][0].ndim == len(shape(x))
        self.steps[node] = step
        self._parts[node] = [(axis if kept else axis - sum(k < axis for k in mixed), self._labels[x])]
        return True

    def _index(self, node: fx.Node) -> bool:
        """Positions that are chosen by stored numbers."""
        x, *choice = node.all_input_nodes
        if x not in self.axis or not all(each in self.pure for each in choice):
            return not len(self._seen([x]))
        axis, given = self.axis[x], node.args[1]
        if operation(node) == "index_select":
            chosen = [int(given) % len(shape(x))]  # type: ignore[arg-type]
        else:
            chosen = [k for k, each in enumerate(given) if each is not None]  # type: ignore[arg-type]
        if axis in chosen or chosen != list(range(chosen[0], chosen[-1] + 1)):
            return False
        added = len(shape(node)) - len(shape(x))
        step = Step(Kind.ALONG, node, (x, *choice))
        return self._put(step, axis if axis < chosen[0] else axis + added, self._labels[x])

    # Entries that move

    def _pads_channels(self, node: fx.Node) -> bool:
        x: Any = node.args[0]
        return self.axis.get(x) in _padded(node, len(shape(x)))

    def _move(self, node: fx.Node) -> bool:
        """Do the same with the numbers of the channels."""
        sources = moved(node)
        if any(each in self.stored and each not in self.axis for each in sources):
            return False
        if not any(each in self.axis for each in sources):
            return True
        result = run(node, _numbered(sources, self._labels, self.axis), fill=0.0)
        parts = list(result) if isinstance(result, tuple | list) else [result]
        [labelled, *_] = [each for each in sources if each in self.axis]
        axis, rank = self.axis[labelled], len(shape(labelled))
        heads = self._heads.get(node, set())
        found = [self._compress(part, axis, heads, stays=part.ndim == rank) for part in parts]
        if operation(node) in PARTS:
            self._cut(node, self._labels[labelled], found)
        if operation(node) == "channel_shuffle" and self.axis[labelled] == 1:  # as many of each group go
            rows = self._labels[labelled].reshape(argument(node, "groups"), -1)
            self._join(rows, rows[:1])
        step = Step(Kind.MOVE, node, tuple(sources))
        if isinstance(result, Tensor):
            return found[0] is not None and self._put(step, *found[0])
        self.steps[node], self._parts[node] = step, found
        return True

    def _compress(self, numbers: Tensor, axis: int, heads: set[int], *, stays: bool) -> tuple[int, Tensor] | None:
        """The axis along which the numbers in a tensor differ, and the numbers along it; of several rather the one
        of the heads of attention, or along which they did before, if that ``stays``, else the last."""
        if not numbers.ndim or not numbers.numel():
            self._fix(numbers.long())
            return None
        sizes, varying = numbers.shape, []
        for k in range(numbers.ndim):
            first = numbers.narrow(k, 0, 1)
            if numbers.stride(k) and (numbers != first).any():
                varying.append(k)
            else:
                numbers = first
        same = axis if axis < numbers.ndim else numbers.ndim - 1
        best = same if not varying or (stays and axis in varying) else varying[-1]
        if len(among := [k for k in varying if k in heads]) == 1:
            [best] = among
        rows = rows_along(numbers.long(), best)
        if len(varying) > 1:  # what is left has to be a box
            self._join(rows, rows[:, :1])
        return best, rows[:, 0].expand(sizes[best])

    def _cut(self, node: fx.Node, whole: Tensor, parts: Sequence[tuple[int, Tensor] | None]) -> None:
        """Pieces of the channels: equal ones lose the same, of others nothing may go."""
        pieces = [part[1] for part in parts if part is not None]
        size = len(pieces[0]) if pieces else 0
        if all(torch.equal(piece, whole) for piece in pieces):
            return  # along another axis
        start = int((whole == pieces[0][0]).nonzero()[0]) if pieces and bool((whole == pieces[0][0]).any()) else 1
        even = size > 0 and len(whole) % size == 0 and start % size == 0 and operation(node) != "select"
        if even and all(len(piece) == size for piece in pieces) and argument(node, "step") in (None, 1):
            rows = whole.reshape(-1, size)
            self._join(rows, rows[:1])
        else:
            self._fix(whole)
            self.across[node] = whole

    def _take_part(self, node: fx.Node) -> bool:
        source, index = arguments(node)
        parts = self._parts.get(source)
        if parts is None or not isinstance(index, int):
            return not len(self._seen([source]))
        part = parts[index] if index < len(parts) else None
        if part is None:
            return False
        return self._put(Step(Kind.MOVE, node, (source,)), *part)


def channels_behind(channels: Channels, step: Step, mask: Tensor) -> dict[fx.Node, Tensor]:
    """By source of an operation that is no layer, of what moves entries by the ones before, the channels that some of
    its channels are computed from."""
    whole, _ = _whole_of(channels, step.node)
    sources = [each for each in whole.sources if each in channels.roots]
    if whole.kind is Kind.MOVE:
        return _moved_from(channels, step, mask)
    if step.kind is Kind.GROUPED:
        groups = mask.reshape(step.groups, -1).any(dim=1)
        return {x: groups.repeat_interleave(len(channels.roots[x]) // step.groups) for x in sources}
    found = {}
    for each in sources:
        count = len(channels.roots[each])
        found[each] = mask if count == len(mask) else mask.any().expand(count)
    return found


def _find_heads(graph: Graph) -> dict[fx.Node, set[int]]:
    """By tensor the axes that lie apart in a product further on: one of them has the heads of attention, where
    channels are laid out along several axes."""
    found: dict[fx.Node, set[int]] = {}
    for node in reversed(graph.nodes):
        if (product := Product.of(node)) is not None:
            for each, letters in zip(product.factors, product.letters, strict=True):
                found.setdefault(each, set()).update(letters.index(letter) for letter in product.apart)
        elif found.get(node) and operation(node) not in LAYERS:
            for each in node.all_input_nodes:
                found.setdefault(each, set()).update(_axes_before(node, each, found[node]))
    return found


def _axes_before(node: fx.Node, source: fx.Node, axes: Iterable[int]) -> set[int]:
    """The axes of a tensor that steps along these axes of what an operation makes of it go along; of several results
    those of the first one."""
    size = shape(source)
    if operation(node) == "getitem":
        return set(axes)
    if operation(node) not in MOVES or node.all_input_nodes != [source] or not size:
        added = len(shape(node)) - len(size)
        same = [axis for axis in axes if added <= axis < len(shape(node)) and size[axis - added] == shape(node)[axis]]
        return {axis - added for axis in same}
    result = run(node, {source: torch.arange(float(math.prod(size)), dtype=torch.float64).reshape(size)}, fill=0.0)
    result, found = result if isinstance(result, Tensor) else result[0], set()
    for axis in axes if result.numel() else ():
        places = torch.unravel_index(result.movedim(axis, 0).flatten(1)[:, 0].long(), size)
        found |= {k for k, place in enumerate(places) if (place != place[0]).any()}
    return found


def _moved_from(channels: Channels, step: Step, mask: Tensor) -> dict[fx.Node, Tensor]:
    counted: dict[fx.Node, Tensor] = {}

    def numbers(node: fx.Node) -> Tensor:
        """Another one for each channel; 0 where there is none."""
        if node in channels.roots and node not in counted:
            before = sum(map(len, counted.values()))
            counted[node] = torch.arange(before + 1, before + 1 + len(channels.roots[node]))
        return _numbered([node], counted, channels.axis)[node]

    result = laid_out(channels, step.node, numbers, fill=0.0)
    seen = rows_along(result, channels.axis[step.node])[mask].unique()
    return {each: torch.isin(own, seen.long()) for each, own in counted.items()}


def laid_out(channels: Channels, node: fx.Node, given: Callable[[fx.Node], Tensor], fill: float | None = None) -> Any:
    """What an operation that moves entries makes, with those before it, of other tensors, which are ``given``; ``fill``
    as in `run`."""
    step, part = _whole_of(channels, node)
    sources = {
        each: laid_out(channels, each, given, fill)
        if each in channels.steps
        and _whole_of(channels, each)[0].kind is Kind.MOVE
        and each not in channels.graph.changed
        else given(each)
        for each in step.sources
    }
    result = run(step.node, sources, fill=fill)
    return result if part is None else result[part]


def _whole_of(channels: Channels, node: fx.Node) -> tuple[Step, Any]:
    """The operation that makes a tensor, and which of its results this is; None for the only one."""
    step = channels.steps[node]
    return (channels.steps[step.sources[0]], node.args[1]) if operation(node) == "getitem" else (step, None)


def _numbered(
    sources: Iterable[fx.Node], numbers: dict[fx.Node, Tensor], axis: dict[fx.Node, int]
) -> dict[fx.Node, Tensor]:
    """By tensor one that has the numbers of its channels as entries; 0 where it has no channels."""
    return {
        each: spread(numbers[each].double(), axis[each], shape(each))
        if each in numbers
        else torch.zeros((), dtype=torch.float64).expand(shape(each))
        for each in sources
    }


def moved(node: fx.Node) -> list[fx.Node]:
    """The tensors whose entries an operation moves; others only say where."""
    first: Any = node.args[0]
    return [each for each in first if isinstance(each, fx.Node)] if isinstance(first, list | tuple) else [first]


def run(node: fx.Node, values: dict[fx.Node, Tensor], *, fill: float | None = None) -> Any:
    """What an operation makes of other tensors, of which it changes only copies.

    Args:
        node: the operation.
        values: by node what it is to read; a tensor of ones in its shape where there is none.
        fill: what it is to pad with instead.
    """
    target: Any = torch.ops.aten.reshape.default if node.target in DENSE else node.target
    copies = written(node) or operation(node) == "view_as"

    def value(each: fx.Node) -> Tensor:
        given = values.get(each, torch.ones(()).expand(shape(each)))
        return given.clone() if copies else given

    args: list[Any] = list(fx.node.map_arg(node.args, value))
    if fill is not None and operation(node) in ("pad", "constant_pad_nd"):
        args = [*args[:2], *(["constant"] if operation(node) == "pad" else []), fill]
    return target(*args, **fx.node.map_arg(node.kwargs, value))


def spread(vector: Tensor, axis: int, size: Sequence[int]) -> Tensor:
    """A tensor of this size that has the entries of a vector along an axis."""
    return vector.reshape([-1 if k == axis else 1 for k in range(len(size))]).expand(tuple(size))


def rows_along(tensor: Tensor, axis: int) -> Tensor:
    """A matrix with a row for each place along an axis, and a column for each other place, of those that a tensor
    repeats by expansion only the first; the tensor has an entry at least."""
    for k, stride in enumerate(tensor.stride()):
        tensor = tensor if stride or k == axis else tensor.narrow(k, 0, 1)
    return tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """What an operation is given by position."""
    return node.args


def argument(node: fx.Node, name: str) -> Any:
    """What is given for an argument of a primitive operation, None if nothing is."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given: dict[str, Any] = {each.name: v for each, v in zip(schema, node.args, strict=False)} | node.kwargs
    return given.get(name)


def _padded(node: fx.Node, rank: int) -> set[int]:
    sizes: Any = node.args[1]
    return {rank - 1 - k // 2 for k, size in enumerate(sizes) if size != 0}


def _is_random(node: fx.Node) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def channels_of(model: nn.Module, example: Example) -> Channels:
    """The channels of a module from its graph in evaluation mode, and of layers that it has for training alone.

    Raises:
        ValueError: the module cannot be copied, run or traced.
    """
    channels = Channels(trace(model, example))
    read = {name for node, name in channels.graph.names.items() if node.users}
    if any(name not in read for name, _ in model.named_parameters() if name in channels.graph.names.values()):
        one = all(x.ndim and len(x) == 1 for x in example.tensors())  # in training a normalisation wants two
        with suppress(ValueError):
            batch = example.map(lambda x: torch.cat([x, x])) if one else example
            channels.follow(Channels(trace(model, batch, training=True)))
    return channels
