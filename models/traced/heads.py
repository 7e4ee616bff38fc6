"""Products of tensors that a forward computes, such as those of attention, as sums over indices."""

from dataclasses import dataclass
from string import ascii_letters, ascii_lowercase
from typing import Any

from torch import fx

from nas.models.traced.graph import operation, shape

ATTENTION = "scaled_dot_product_attention"
PRODUCTS_OF_TENSORS = {"matmul", "bmm", "baddbmm", "einsum", ATTENTION}


@dataclass(frozen=True)
class Product:
    """A product of tensors, as `torch.einsum` writes it.

    Attributes:
        factors: the tensors.
        letters: for each of them one for each axis.
        result: the letters of the axes of the product.
    """

    factors: tuple[fx.Node, ...]
    letters: tuple[str, ...]
    result: str

    @classmethod
    def of(cls, node: fx.Node) -> "Product | None":
        """What an operation computes; None if it is no product, or one that is not known."""
        args: Any = node.args
        match operation(node):
            case "einsum":
                return cls._written(args[0].replace(" ", ""), tuple(args[1]))
            case "matmul" | "bmm":
                return cls._of_matrices(args[:2], ("ik", "kj"), "ij")
            case "scaled_dot_product_attention":
                return cls._of_matrices(args[:3], ("ik", "jk", "jl"), "il")
        return None

    @classmethod
    def _written(cls, equation: str, factors: tuple[fx.Node, ...]) -> "Product | None":
        inputs, arrow, result = equation.partition("->")
        letters = tuple(inputs.split(","))
        hidden = {len(shape(x)) - len(each) + 3 for x, each in zip(factors, letters, strict=True) if "..." in each}
        if not arrow or len(hidden) > 1:
            return None
        spare = [each for each in ascii_letters if each not in equation][: sum(hidden)]
        *plain, result = (each.replace("...", "".join(spare)) for each in (*letters, result))
        once = all(len(set(each)) == len(each) for each in plain)
        return cls(factors, tuple(plain), result) if once else None

    @classmethod
    def _of_matrices(cls, factors: tuple[fx.Node, ...], letters: tuple[str, ...], result: str) -> "Product | None":
        """Of matrices in as many axes before them."""
        ranks = {len(shape(each)) for each in factors}
        if len(ranks) > 1 or min(ranks) < 3:
            return None
        batch = ascii_lowercase[: min(ranks) - 2].upper()
        return cls(factors, tuple(batch + each for each in letters), batch + result)

    @property
    def apart(self) -> set[str]:
        """The letters of what is multiplied apart from each other: examples, heads."""
        return set(self.result).intersection(*self.letters)
