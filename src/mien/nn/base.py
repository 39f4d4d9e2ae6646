"""The contracts that let one mechanism take another's place.

Shapes, everywhere in `mien.nn` and `mien.networks`:

    B batch   N tokens   D width (`dim` of a layer, `embed_dim` of a network)   (H, W) grid   C classes
    images (B, 3, H, W)   maps (B, D, H, W)   tokens (B, N, D), row-major over the grid
    q k v (B, heads, N, head_dim)   scores before the softmax, attn after it   logits never softmaxed
"""

import inspect
from collections.abc import Sequence
from typing import Any, Protocol, Self

from torch import Tensor, nn

Grid = tuple[int, int]


class MakeMixer(Protocol):
    """Builds a mixer for a width and a number of heads; a mixer's class is one.

    dim: int, width of the tokens. num_heads: int, which divides dim. Most mixers also have qkv_bias: bool, whether q, k
    and v have biases; attn_drop, proj_drop: float in [0, 1], what fraction of attn and of outputs training drops, 0.

    A mixer mixes tokens with one another: `(B, N, D), grid -> (B, N, D)`. One that cannot do without the grid has
    `needs_grid = True`. N may then be several planes of H · W tokens behind P prefix tokens
    (`mien.nn.grid.split_planes`): every plane is mixed alone, and the prefix with all.

    One that attends may also have `with_class_scores`, which takes the same and also gives the scores of the first
    token (B, heads, N) before the softmax: a block can only drop tokens behind such a mixer. Its attention passes three
    stages in a `mien.nn.observe.Stages`, of which `mien.nn.Attend` is one.

    One with a loss of its own keeps that of its last forward in training as `aux_loss`: see `OwnLoss`.
    """

    def __call__(self, dim: int, num_heads: int) -> nn.Module: ...


MakeMixers = MakeMixer | Sequence[MakeMixer]
"""One maker for all blocks of a network, or a list with one for each."""


def is_mixer(made: Any) -> bool:
    """Whether a class is built and called as a mixer is (`MakeMixer`); a block around one is none."""
    if not (inspect.isclass(made) and issubclass(made, nn.Module)):
        return False
    build, call = (list(inspect.signature(what).parameters.values()) for what in (made, made.forward))
    return (
        [p.name for p in build[:2]] == ["dim", "num_heads"]
        and all(p.default is not p.empty and p.name != "mixer" for p in build[2:])
        and [p.name for p in call[1:3]] == ["tokens", "grid"]
        and all(p.default is not p.empty for p in call[2:])
    )


class Select(Protocol):
    """Keeps some of the tokens: `(B, P + N, D), evidence (B, N, E) -> (B, P + K, D), index (B, K)`, ascending.

    The first P tokens, such as a class token, have no evidence: they stay, and the index does not count them.
    Evidence is what tokens are judged by: the channels of a map, or the class token's score in each head.
    """

    def __call__(self, tokens: Tensor, evidence: Tensor) -> tuple[Tensor, Tensor]: ...

    def idle(self, num_tokens: int) -> bool:
        """Whether so many tokens would pass unchanged, so that nobody need gather evidence."""
        ...


class MakePool(Protocol):
    """Builds a pool for a width; a pool's class is one. A pool gives one vector a face: `(B, N, D) -> (B, D)`."""

    def __call__(self, dim: int) -> nn.Module: ...


class Refiner(Protocol):
    """Looks over a map before the next layer reads it: `maps (B, D, H, W) -> maps`, of the same shape."""

    def __call__(self, maps: Tensor) -> Tensor: ...


class MakeRefiner(Protocol):
    """Builds a refiner for a width; a refiner's class is one."""

    def __call__(self, dim: int) -> nn.Module: ...


class OwnLoss(nn.Module):
    """A mixer, pool or head with a loss of its own, `aux_loss`: a scalar, of its last forward in training.

    It is None before, in eval mode, and in copies: what hangs in a graph can be neither copied nor pickled.
    """

    aux_loss: Tensor | None = None

    def train(self, mode: bool = True) -> Self:
        self.aux_loss = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"aux_loss": None}


class MakeBatchBranch(Protocol):
    """Builds a batch branch for a width of maps and a number of classes; `mien.nn.BatchTransformer` is one.

    A branch attends across the batch, in training only: `features, logits (B, C) -> further logits for the loss`, by
    name.
    """

    def __call__(self, dim: int, num_classes: int) -> nn.Module: ...
