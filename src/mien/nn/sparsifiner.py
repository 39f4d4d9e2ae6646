"""Sparsifiner: a cheap predictor chooses which tokens each token attends to, before they are compared."""

import math

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads
from mien.nn.base import Grid, OwnLoss
from mien.nn.observe import Layout


class Sparsifiner(OwnLoss):
    """Self-attention to the tokens where a low-rank guess S of attn is greatest: (B, N, dim) -> (B, N, dim).

        coef = softmax(heads^-1/2 · W_q q (W_k k)ᵀ P) (B, heads, N, r);   S = coef Uᵀ (B, heads, N, N)
        mask[i] = the ⌈keep · N⌉ greatest of S[i];   out = proj(softmax(head_dim^-1/2 · q kᵀ within the mask) v)

    W_q, W_k: head_dim -> head_dim / 2, shared by the heads; P, U: (N, r), `rank` r = N // 6 (2 at least) unless given.
    For the mask only the `coef_top_k` greatest of coef count, and of |U| what is above `basis_threshold`. The first
    `num_prefix` tokens, such as a class token, attend to all. N is fixed. A forward hook on `mask` sees (and may
    replace) the mask (B, heads, N, N), bool. Attention is computed in full and then masked, as in the published code:
    what is sparse here is the answer, not the cost. `grid` is ignored.

    The loss of the task does not train the predictor. `aux_loss` does, in training: `Σ (S - A)²`, with S before the
    thresholds. A (B, heads, N, N) is the attn of a dense teacher if one was put into `teacher_attn`, which is used
    once, or else of this layer itself without the mask. As published, the layer's own A has a gradient, too;
    `detach_attn` takes it away. Published: with the weight 0.01 and the mean of all layers, summed over the batch; ours
    is the mean over it. `dense` keeps attention full in training, as in the published first phase, where S without
    thresholds makes the mask; published code trains S in that phase alone.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        num_tokens: int, N; 197.
        keep: float in (0, 1], fraction of the tokens that each attends to; 0.25.
        rank: int, of the guess; num_tokens // 6, 2 at least.
        num_prefix: int, tokens that attend to all; 1.
        basis_threshold: float, of |U|; 0.02.
        coef_top_k: int, coefficients of a token that count; 8.
        dense: bool, full attention in training; False.
        detach_attn: bool, no gradient through the layer's own A; False.
        qkv_bias: bool, whether q, k and v have biases; True.
        attn_drop, proj_drop: float in [0, 1], fraction of attn and of outputs that training drops; 0.

    Paper: Wei et al., Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision Transformers,
    2023. Reference: lim142857/Sparsifiner, 9a11e26.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_tokens: int = 197,
        keep: float = 0.25,
        rank: int | None = None,
        num_prefix: int = 1,
        basis_threshold: float = 0.02,
        coef_top_k: int = 8,
        dense: bool = False,
        detach_attn: bool = False,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, not {keep!r}")
        rank = max(2, num_tokens // 6) if rank is None else rank
        if min(num_tokens - num_prefix, rank, coef_top_k) < 1 or num_prefix < 0:
            raise ValueError("num_tokens beyond num_prefix, rank and coef_top_k must be above 0")
        head_dim = dim // num_heads
        self.num_heads, self.num_tokens, self.num_prefix = num_heads, num_tokens, num_prefix
        self.dense, self.detach_attn = dense, detach_attn
        self.budget, self.coef_top_k = math.ceil(keep * num_tokens), min(rank, coef_top_k)
        self.basis_threshold = basis_threshold
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.reduce_q, self.reduce_k = (nn.Linear(head_dim, max(1, head_dim // 2)) for _ in range(2))
        self.reduce_tokens, self.basis = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(num_tokens, rank), std=0.02)) for _ in range(2)
        )
        self.mask = nn.Identity()
        self.attend = Attend(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.teacher_attn: Tensor | None = None

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        if tokens.shape[1] != self.num_tokens:
            raise ValueError(f"Sparsifiner(num_tokens={self.num_tokens}) was given {tokens.shape[1]} tokens")
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        dense, guess = self.training and self.dense, None
        if self.training:
            guess = self.guess(q, k, exact=True)
            self.aux_loss = self.reconstruction_loss(guess, self.dense_attn(q, k))
        with torch.no_grad():
            mask = self.mask(self.choose(guess if dense and guess is not None else self.guess(q, k)))
        bias = None if dense else torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(~mask, -math.inf)
        return self.proj_drop(self.proj(merge_heads(self.attend(q, k, v, bias, Layout.of_tokens(q.shape[2], grid)))))

    def guess(self, q: Tensor, k: Tensor, exact: bool = False) -> Tensor:
        """S of all tokens behind the prefix (B, heads, N - num_prefix, N), in at least fp32; `exact`: no thresholds."""
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast("cpu" if q.is_meta else q.device.type, enabled=False):  # it knows no meta device
            # (B, heads, N, c)
            q, k = (
                nn.functional.linear(x.to(dtype), part.weight.to(dtype), part.bias.to(dtype))
                for x, part in ((q[:, :, self.num_prefix :], self.reduce_q), (k, self.reduce_k))
            )
            coef = (q @ (k.transpose(-2, -1) @ self.reduce_tokens.to(dtype)) * self.num_heads**-0.5).softmax(dim=-1)
            basis = self.basis.to(dtype)
            if not exact:
                greatest = coef.topk(self.coef_top_k, dim=-1)
                coef = torch.zeros_like(coef).scatter(-1, greatest.indices, greatest.values)
                basis = basis.abs()
                basis = basis.masked_fill(basis <= self.basis_threshold, 0)
            return coef @ basis.T

    def choose(self, guess: Tensor) -> Tensor:
        """S -> mask (B, heads, N, N), bool."""
        mask = torch.zeros_like(guess, dtype=torch.bool).scatter(-1, guess.topk(self.budget, dim=-1).indices, True)
        return nn.functional.pad(mask, (0, 0, self.num_prefix, 0), value=True)

    def dense_attn(self, q: Tensor, k: Tensor) -> Tensor:
        """The target of S: (B, heads, N, N)."""
        teacher, self.teacher_attn = self.teacher_attn, None
        if teacher is not None:
            return teacher.detach()
        scores = self.attend.scores(q, k)
        attn = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        return attn.detach() if self.detach_attn else attn

    def reconstruction_loss(self, guess: Tensor, attn: Tensor) -> Tensor:
        return (guess - attn[:, :, self.num_prefix :]).square().sum() / guess.shape[0]
