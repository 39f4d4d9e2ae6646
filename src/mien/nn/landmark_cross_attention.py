"""POSTER++'s cross attention from landmarks to image, at one level."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.block import DropPath, LayerScale, Mlp
from mien.nn.grid import offset_index, to_map, to_tokens
from mien.nn.observe import Layout


class LandmarkCrossAttention(nn.Module):
    """Landmark features attend to image features: maps (B, dim, size, size) twice -> (B, dim, size, size).

    With `x = norm(image)` and `f` the landmark map, both as tokens (B, size², dim):

        a = softmax(head_dim^-1/2 · f kᵀ + R) v,   k, v = kv(pool(x))
        y = x + drop_path(ls1(proj(a)))
        z = y + drop_path(ls2(mlp(norm2(y))))

    The query has no projection and no norm, and the residual is the *normalised* image, as published. R is a relative
    position bias; its table counts offsets from key to query. The published code cuts windows of `size`; at 112 pixels
    every level is one window, so there are none here. `key_stride` is ours: `pool` averages the image over squares of
    that side before keys and values are made (1: not at all). All queries stay, and the cost is divided by its square.

    Args:
        dim, num_heads: int, width of the maps and number of heads, which divides it.
        size: int, rows and columns of the maps.
        mlp_ratio: float, hidden width of the mlp over dim; 4.
        drop_path: float in [0, 1), rate of stochastic depth; 0.
        key_stride: int from 1 on; 1.
        init_values: float at which the layer scales ls1 and ls2 start; 1e-5, as published.

    Paper: Mao et al., POSTER++, arXiv 2301.12149. Reference: Talented-Q/POSTER_V2, 18de559.
    """

    relative_index: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        size: int,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        key_stride: int = 1,
        init_values: float = 1e-5,
    ):
        super().__init__()
        self.num_heads, self.size, self.key_stride = num_heads, size, key_stride
        self.norm1 = nn.LayerNorm(dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.relative_bias = nn.Parameter(torch.empty((2 * size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_bias, std=0.02)
        index = offset_index((size, size), (size, size)).T.contiguous()
        index = index.unflatten(1, (size, size))[:, ::key_stride, ::key_stride].flatten(1)
        self.register_buffer("relative_index", index, persistent=False)  # (size², keys)
        self.attend = Attend()
        self.proj = nn.Linear(dim, dim)
        self.ls1 = LayerScale(dim, init_values)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = LayerScale(dim, init_values)
        self.drop_path = DropPath(drop_path)

    def bias(self) -> Tensor:
        """R (heads, size², keys)."""
        return self.relative_bias[self.relative_index].permute(2, 0, 1)

    def forward(self, image: Tensor, landmarks: Tensor) -> Tensor:
        x = self.norm1(to_tokens(image))
        seen = x
        if self.key_stride > 1:
            seen = to_tokens(F.avg_pool2d(to_map(x, (self.size, self.size)), self.key_stride))
        k, v = (split_heads(t, self.num_heads) for t in self.kv(seen).chunk(2, dim=-1))
        q = split_heads(to_tokens(landmarks), self.num_heads).to(k.dtype)
        side = -(-self.size // self.key_stride) if self.key_stride > 1 else self.size
        a = self.attend(q, k, v, self.bias(), Layout("cross", grid=(side, side)))
        y = x + self.drop_path(self.ls1(self.proj(merge_heads(a))))
        z = y + self.drop_path(self.ls2(self.mlp(self.norm2(y))))
        return to_map(z, (self.size, self.size))
