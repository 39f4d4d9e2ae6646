"""Multi-head self-attention."""

import math

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads
from mien.nn.base import Grid
from mien.nn.observe import Layout


class SelfAttention(nn.Module):
    """Every token attends to every token: `proj(softmax(scale · q kᵀ) v)`, (B, N, dim) -> (B, N, dim).

    `scale` is head_dim^-1/2 unless another is given. With `causal` no token attends to a later one. `grid` is ignored.
    Names as in timm, so that published ViT weights fit.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        qkv_bias: bool, whether q, k and v have biases; True.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.
        scale: float above 0, of the scores; head_dim^-1/2.
        causal: bool, no token attends to a later one; False.

    Paper: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021. Reference: huggingface/pytorch-image-models.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        scale: float | None = None,
        causal: bool = False,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if scale is not None and not scale > 0:
            raise ValueError(f"the scale of scores must be above 0, not {scale!r}")
        self.num_heads, self.causal = num_heads, causal
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attend = Attend(attn_drop, scale)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        layout = Layout.of_tokens(tokens.shape[1], grid)
        q, k, v = self.split(tokens)
        return self.join(self.attend(q, k, v, later(q) if self.causal else None, layout))

    def with_class_scores(self, tokens: Tensor, grid: Grid | None = None) -> tuple[Tensor, Tensor]:
        """What `forward` gives, and the first token's scores `scale · q_0 kᵀ` (B, heads, N), before the softmax.

        Only this one row of the scores is computed; the output is as fused as ever.
        """
        if self.causal:
            raise ValueError("a class token in the first place sees no other where attention is causal")
        layout = Layout.of_tokens(tokens.shape[1], grid)
        mixed, scores = self.attend.with_class_scores(*self.split(tokens), layout)
        return self.join(mixed), scores

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, dim) -> q, k, v, each (B, heads, N, head_dim)."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def join(self, heads: Tensor) -> Tensor:
        return self.proj_drop(self.proj(merge_heads(heads)))


def later(q: Tensor) -> Tensor:
    """What hides later tokens from each: (N, N), -inf where column > row and else 0, for q (B, heads, N, head_dim)."""
    place = torch.arange(q.shape[2], device=q.device)
    hidden = place > place[:, None]
    return torch.zeros_like(hidden, dtype=q.dtype).masked_fill(hidden, -math.inf)
