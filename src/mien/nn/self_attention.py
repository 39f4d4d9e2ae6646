"""Multi-head self-attention."""

from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads
from mien.nn.base import Grid


class SelfAttention(nn.Module):
    """Every token attends to every token: `proj(softmax(q kᵀ · head_dim^-1/2) v)`, (B, N, dim) -> (B, N, dim).

    `grid` is ignored. Names as in timm, so that published ViT weights fit.

    Paper: Dosovitskiy et al., An Image is Worth 16x16 Words, 2021. Reference: huggingface/pytorch-image-models.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attend = Attend(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, d)
        return self.proj_drop(self.proj(merge_heads(self.attend(q, k, v))))
