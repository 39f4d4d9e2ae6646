"""CaiT's talking heads: self-attention whose heads are mixed before and after the softmax."""

import torch
from torch import Tensor, nn

from mien.nn.attend import merge_heads
from mien.nn.base import Grid
from mien.nn.observe import Layout, Stages


class TalkingHeads(nn.Module):
    """Self-attention whose heads are mixed by two matrices: (B, N, dim) -> (B, N, dim).

        scores = proj_l(head_dim^-1/2 · q kᵀ)                   (B, heads, N, N)
        attn = proj_w(softmax(scores));   out = proj(attn v)

    proj_l and proj_w are linear over the heads, with a bias each, so rows of attn need not sum to 1. The softmax does
    not see proj_l's bias, which is here for the published weights. No fused attention can do this. `grid` is ignored.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        qkv_bias: bool, whether q, k and v have biases; True.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: Shazeer et al., Talking-Heads Attention, 2020; Touvron et al., Going deeper with Image Transformers, 2021.
    Reference: huggingface/pytorch-image-models 1.0.31.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj_l = nn.Linear(num_heads, num_heads)
        self.proj_w = nn.Linear(num_heads, num_heads)
        self.attend = Stages()
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
        layout = Layout.of_tokens(tokens.shape[1], grid)
        show = self.attend.stage
        scores = show("scores", over_heads(self.proj_l, q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)), layout)
        at_least_fp32 = torch.promote_types(scores.dtype, torch.float32)
        attn = show("attn", over_heads(self.proj_w, scores.softmax(dim=-1, dtype=at_least_fp32).to(v.dtype)), layout)
        return self.proj_drop(self.proj(merge_heads(show("heads", self.attn_drop(attn) @ v, layout))))


def over_heads(linear: nn.Linear, x: Tensor) -> Tensor:
    """`linear` along the axis of the heads, without moving it to the end: (B, heads, N, M) -> the same."""
    weight = linear.weight.expand(x.shape[0], -1, -1)
    return torch.baddbmm(linear.bias[:, None], weight, x.flatten(2)).view_as(x)
