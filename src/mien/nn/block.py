"""The residual block around any mixer, and its parts."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from mien.nn.base import Grid, MakeMixer, Select
from mien.nn.self_attention import SelfAttention


class Mlp(nn.Module):
    """`W2 gelu(W1 x)` with the exact (erf) GELU: (…, dim) -> (…, dim).

    Args:
        dim, hidden: int, width of the tokens and of the layer between.
    """

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class DropPath(nn.Module):
    """Stochastic depth: in training a residual branch is dropped for a whole sample with probability `rate`.

    What is kept is divided by `1 - rate`. Paper: Huang et al., Deep Networks with Stochastic Depth, 2016.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path must be in [0, 1), not {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * keep.to(x.dtype) / (1 - self.rate)


class LayerScale(nn.Module):
    """A learnable factor a channel, last axis.

    Args:
        dim: int, width of the tokens.
        init: float at which all factors start; 1e-5.

    Paper: Touvron et al., Going deeper with Image Transformers, 2021.
    """

    def __init__(self, dim: int, init: float = 1e-5):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """`x += ls1(mixer(norm1(x))); x += ls2(mlp(norm2(x)))`, each under stochastic depth: (B, N, D), grid -> (B, N, D).

    `ls1` and `ls2` are a LayerScale that starts at `init_values`; without it there is none.

    With `select` tokens leave between the two: the first, the class token, stays, and the others are judged by its
    scores in the mixer, one a head, before the softmax. All of them are attended to; the mlp sees those that are left:
    (B, 1 + N, D) -> (B, 1 + K, D). The mixer then needs `with_class_scores`.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        mlp_ratio: float, hidden width of the mlp over dim; 4.
        drop_path: float in [0, 1), rate of stochastic depth; 0.
        mixer: makes the mixer of a width and a number of heads; `SelfAttention`.
        eps: float, of the norms; 1e-6.
        init_values: float at which layer scales start, or None: there are none.
        select: keeps some of the tokens, or None: all.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        mixer: MakeMixer = SelfAttention,
        eps: float = 1e-6,
        init_values: float | None = None,
        select: Select | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = mixer(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.drop_path = DropPath(drop_path)
        if select is not None and not hasattr(self.attn, "with_class_scores"):
            raise ValueError(f"{type(self.attn).__name__} has no class scores by which tokens could be selected")
        self.select = select

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        if self.select is not None and not self.select.idle(tokens.shape[1] - 1):
            return self.selecting(tokens, grid)[0]
        tokens = tokens + self.drop_path(self.ls1(self.attn(self.norm1(tokens), grid)))
        return tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens))))

    def selecting(self, tokens: Tensor, grid: Grid | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The block step by step: tokens (B, 1 + N, D) -> (B, 1 + K, D), index (B, K), scores (B, heads, 1 + N).

        The index counts from the token behind the class token; scores are those of the class token.
        """
        if self.select is None:
            raise ValueError("this block drops no tokens: it has no select")
        mixed, scores = cast(Any, self.attn).with_class_scores(self.norm1(tokens), grid)
        tokens = tokens + self.drop_path(self.ls1(mixed))
        tokens, index = self.select(tokens, scores[:, :, 1:].transpose(1, 2))
        return tokens + self.drop_path(self.ls2(self.mlp(self.norm2(tokens)))), index, scores
