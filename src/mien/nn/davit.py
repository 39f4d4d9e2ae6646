"""DaViT's two attentions: between the tokens of a window, and between channels."""

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend
from mien.nn.base import Grid
from mien.nn.grid import from_windows, to_windows
from mien.nn.local_attention import LocalAttention
from mien.nn.observe import Layout


class WindowAttention(LocalAttention):
    """Every token attends to its window: `proj(softmax(head_dim^-1/2 · q kᵀ) v)`, (B, N, dim), grid -> (B, N, dim).

    Windows of `window_size`² tokens lie beside one another, never shifted, without a position bias. Where they do not
    divide the grid it is padded below and to the right. Departure: padding has no mass. With `mask_padding=False`, as
    published, it takes part as tokens of 0, whose k and v are the biases. The prefix is seen by and sees all (ours).

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        window_size: int from 1 on, tokens along the side of a window; 7.
        mask_padding: bool, padding has no mass; True.
        qkv_bias: bool, whether q, k and v have biases; True.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: Ding et al., DaViT: Dual Attention Vision Transformers, arXiv 2204.03645.
    Reference: huggingface/pytorch-image-models 1.0.31; dingmyu/davit, fc79470.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int = 7,
        mask_padding: bool = True,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        if window_size < 1:
            raise ValueError(f"window_size must be at least 1, not {window_size}")
        self.window_size, self.mask_padding = window_size, mask_padding

    def window(self, grid: Grid) -> Grid:
        """Where padding is masked, no larger than the grid."""
        height, width = grid if self.mask_padding else (self.window_size,) * 2
        return min(height, self.window_size), min(width, self.window_size)

    def queries(self, planes: Tensor, grid: Grid) -> Tensor:
        return to_windows(planes, grid, self.window(grid))[0]

    def cells(self, grid: Grid, device: torch.device) -> tuple[Tensor, Tensor]:
        queries = super().cells(grid, device)[0]
        return queries, queries

    def keys(self, planes: Tensor, grid: Grid) -> Tensor:
        windows, inside = to_windows(planes, grid, self.window(grid))
        bias = getattr(self.qkv, "bias", None)
        if self.mask_padding or inside is None or bias is None:
            return windows
        of_padding = bias[-windows.shape[-1] :].to(windows.dtype)
        return torch.where(inside.repeat(planes.shape[0], 1)[..., None], windows, of_padding)

    def padding_value(self) -> Tensor | None:
        bias = getattr(self.qkv, "bias", None)
        return None if bias is None else bias[-self.widths[2] :].unflatten(0, (self.num_heads, -1))

    def join(self, windows: Tensor, grid: Grid) -> Tensor:
        return from_windows(windows, grid, self.window(grid))

    def bias(self, q: Tensor, grid: Grid) -> Tensor | None:
        inside = to_windows(q.new_ones(1, grid[0] * grid[1], 1), grid, self.window(grid))[1]
        if inside is None or not self.mask_padding:
            return None
        return torch.where(inside, 0.0, float("-inf"))[None, :, None, None]  # (1, C, 1, 1, m)


class ChannelAttention(nn.Module):
    """In every head channels attend to channels, with q as the values: (B, N, dim) -> (B, N, dim).

        A = softmax(head_dim^-1/2 · kᵀ v)          (B, heads, head_dim, head_dim), summed over the N tokens
        out = proj((A qᵀ)ᵀ)

    `v2`, as in Florence-2: `A = softmax(N^-1/2 · qᵀ k)`, `out = proj((A vᵀ)ᵀ)`; the first form's scores grow with N,
    the second's do not. The roles of q, k and v are those of the published code, so that its weights fit. It needs no
    grid: all tokens, of the prefix and of every plane, contribute to A, and A is applied to each.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        v2: bool, Florence-2's form; False.
        qkv_bias: bool, whether q, k and v have biases; True.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: Ding et al., DaViT: Dual Attention Vision Transformers, arXiv 2204.03645.
    Reference: huggingface/pytorch-image-models 1.0.31; dingmyu/davit, fc79470.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        v2: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads, self.v2 = num_heads, v2
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attend = Attend(attn_drop, None if v2 else (dim // num_heads) ** -0.5)  # None: of the last axis, here N
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 4, 1)  # (B, heads, d, N)
        mixed = self.attend(*((q, k, v) if self.v2 else (k, v, q)), layout=Layout("channel"))
        return self.proj_drop(self.proj(mixed.flatten(1, 2).mT))
