"""CaiT's class attention: a class token attends to the tokens, which stay as they are."""

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads, split_heads
from mien.nn.block import LayerScale, Mlp
from mien.nn.observe import Layout


class ClassAttention(nn.Module):
    """The first token attends to itself and all others: tokens u (B, 1 + N, dim) -> (B, 1, dim).

        proj(softmax(q(u_0) k(u)ᵀ · head_dim^-1/2) v(u))

    attn is (B, heads, 1, 1 + N), so time grows with N, not with N². Names as in timm.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        qkv_bias: bool, whether q, k and v have biases; True.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: Touvron et al., Going deeper with Image Transformers, 2021. Reference: huggingface/pytorch-image-models
    1.0.31.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.q, self.k, self.v = (nn.Linear(dim, dim, bias=qkv_bias) for _ in range(3))
        self.attend = Attend(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor) -> Tensor:
        qkv = (self.q(tokens[:, :1]), self.k(tokens), self.v(tokens))
        q, k, v = (split_heads(x, self.num_heads) for x in qkv)
        heads = self.attend(q, k, v, layout=Layout("class", prefix=1))
        return self.proj_drop(self.proj(merge_heads(heads)))


class ClassBlock(nn.Module):
    """Class attention in a pre-norm block that updates the class token alone: (B, 1, D), (B, N, D) -> (B, 1, D).

        c += ls1(attn(norm1([c; tokens])));   c += ls2(mlp(norm2(c)))

    Without dropout and stochastic depth, as published.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        mlp_ratio: float, hidden width of the mlp over dim; 4.
        init_values: float at which layer scales start, or None: there are none; 1e-5.
        qkv_bias: bool, whether q, k and v have biases; True.

    Paper and reference: `ClassAttention`.
    """

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, init_values: float | None = 1e-5, qkv_bias: bool = True
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ClassAttention(dim, num_heads, qkv_bias)
        self.ls1 = nn.Identity() if init_values is None else LayerScale(dim, init_values)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = nn.Identity() if init_values is None else LayerScale(dim, init_values)

    def forward(self, c: Tensor, tokens: Tensor) -> Tensor:
        c = c + self.ls1(self.attn(self.norm1(torch.cat([c, tokens], dim=1))))
        return c + self.ls2(self.mlp(self.norm2(c)))


class ClassAttentionPool(nn.Module):
    """A class token after `depth` blocks of class attention, normalised: tokens (B, N, dim) -> (B, dim).

    The tokens may be those of any network, and of any number. `init_values` starts the layer scales: 0.1 is the paper's
    for networks of up to 18 blocks; `CaiT` passes its own. Paper and reference: `ClassAttention`.

    Args:
        dim, num_heads: int, width of the tokens and number of heads; 8 heads.
        depth: int from 1 on, blocks; 2.
        mlp_ratio: float, hidden width of the mlp over dim; 4.
        init_values: float at which layer scales start; 0.1.
        qkv_bias: bool, whether q, k and v have biases; True.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        depth: int = 2,
        mlp_ratio: float = 4.0,
        init_values: float = 0.1,
        qkv_bias: bool = True,
    ):
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be 1 at least, not {depth}")
        self.cls_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.blocks = nn.ModuleList(ClassBlock(dim, num_heads, mlp_ratio, init_values, qkv_bias) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def class_token(self, tokens: Tensor) -> Tensor:
        """The class token before the norm: (B, N, dim) -> (B, 1, dim)."""
        c = self.cls_token.repeat(tokens.shape[0], 1, 1)  # no view: FlopCounterMode stumbles over a parameter's
        for block in self.blocks:
            c = block(c, tokens)
        return c

    def forward(self, tokens: Tensor) -> Tensor:
        return self.norm(self.class_token(tokens)[:, 0])
