"""Position and channel attention modules (PAM, CAM): the positions of a map, or its channels, attend to one another."""

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.base import Grid
from mien.nn.grid import to_map, to_tokens
from mien.nn.observe import Layout


class DualAttention(nn.Module):
    """What PAM and CAM share: `x + gamma · attention(x)`, on maps (B, dim, H, W) or tokens (B, N, dim).

    `gamma` starts at `init_values`: at 0, as published, the module starts as the identity.
    """

    def __init__(self, dim: int, num_heads: int, init_values: float):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.attend = Attend(scale=1.0)
        self.gamma = nn.Parameter(torch.full((1,), init_values))

    def mix(self, tokens: Tensor, grid: Grid | None) -> Tensor:
        """The output of attention: (B, N, dim) -> the same."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        if tokens.ndim == 3:
            return tokens + self.gamma * self.mix(tokens, grid)
        maps, size = tokens, (tokens.shape[2], tokens.shape[3])
        return maps + self.gamma * to_map(self.mix(to_tokens(maps), size), size)


class PAM(DualAttention):
    """Every position attends to every position: `x + gamma · softmax(q kᵀ) v`, shapes as they came.

    q and k are dim / 8 wide (`reduction`), v is dim wide; scores are *not* scaled, as published. A refiner of maps
    (B, dim, H, W); as a mixer of tokens (B, N, dim) it treats a prefix as tokens like others, ignores `grid`, and keeps
    its residual, which a block then adds to its own. More than one head is ours.

    Args:
        dim, num_heads: int, width of the tokens and number of heads; 1 head.
        reduction: int from 1 on, dim over the width of q and k; 8.
        init_values: float at which gamma starts; 0.

    Paper: Sinha and Dolz, Multi-scale self-guided attention, arXiv 1906.02849; after Fu et al., Dual Attention Network,
    arXiv 1809.02983. Reference: sinAshish/Multi-Scale-Attention, 96d76f2.
    """

    def __init__(self, dim: int, num_heads: int = 1, reduction: int = 8, init_values: float = 0.0):
        super().__init__(dim, num_heads, init_values)
        narrow = num_heads * max(1, dim // (reduction * num_heads))
        self.q, self.k = nn.Linear(dim, narrow), nn.Linear(dim, narrow)
        self.v = nn.Linear(dim, dim)

    def mix(self, tokens: Tensor, grid: Grid | None) -> Tensor:
        q, k, v = (split_heads(layer(tokens), self.num_heads) for layer in (self.q, self.k, self.v))
        return merge_heads(self.attend(q, k, v, layout=Layout.of_tokens(tokens.shape[1], grid)))


class CAM(DualAttention):
    """Every channel attends to those *unlike* it: `x + gamma · softmax(-N^-power · f fᵀ) f`, shapes as they came.

    f (B, dim, N) are the channels over all N positions. Published is `softmax(rowmax(E) - E)` of `E = f fᵀ`: the row's
    maximum changes nothing, so this is `softmax(-E)`. E grows with N, and with `power` 0, as published, attention is
    nearly one-hot on larger maps; ½ or 1, ours, keep it soft. Several heads, ours, are groups of dim / num_heads
    channels that attend among themselves. On tokens (B, N, dim) a prefix is one more position; `grid` is ignored.

    Args:
        dim, num_heads: int, width of the tokens and number of heads; 1 head.
        power: float, of N in the scores; 0.
        init_values: float at which gamma starts; 0.

    Paper and reference: `PAM`.
    """

    def __init__(self, dim: int, num_heads: int = 1, power: float = 0.0, init_values: float = 0.0):
        super().__init__(dim, num_heads, init_values)
        self.power = power

    def mix(self, tokens: Tensor, grid: Grid | None) -> Tensor:
        f = split_heads(tokens, self.num_heads).transpose(2, 3)  # (B, heads, dim / heads, N)
        heads = self.attend(f * -(tokens.shape[1] ** -self.power), f, f, layout=Layout("channel"))
        return merge_heads(heads.transpose(2, 3))
