"""What the layers of a network give, by name."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from mien.errors import MienError


@contextmanager
def record(network: nn.Module, layer: str | None = None) -> Iterator[dict[str, Tensor]]:
    """The maps (B, K, H, W) of every module in every forward within the context, in the order of it; with a `layer`,
    what that one gives: maps, or tokens (B, N, K).

    Raises MienError for a layer that is not there; the error lists some that are.
    """
    modules = {name: part for name, part in network.named_modules() if name}
    if layer is not None and layer not in modules:
        near = [name for name in modules if name.count(".") <= 1][:12]
        raise MienError(
            f"{layer}: no layer of {type(network).__name__} has such a name; there are {', '.join(near)}, …"
        )
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return
            if is_maps(output) or (layer is not None and output.ndim == 3 and squares(output.shape[1])[0]):
                seen.pop(name, None)
                seen[name] = output

        return hook

    wanted = modules if layer is None else {layer: modules[layer]}
    handles = [part.register_forward_hook(keep(name)) for name, part in wanted.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def is_maps(output: Tensor) -> bool:
    return output.ndim == 4 and min(output.shape[2:]) > 1


def squares(count: int) -> tuple[int, int, int]:
    """How many squares so many tokens make, those that stand before them (0 or 1) and a square's side; zeros if none.

    The fewest squares are taken, and no prefix where there need not be one.
    """
    for prefix in (0, 1):
        for number in range(1, 5):
            side = math.isqrt((count - prefix) // number)
            if side > 1 and number * side * side == count - prefix:
                return number, prefix, side
    return 0, 0, 0
