"""Linear attention: a matrix remembers which value goes with which key, by Hebb's rule or the delta rule."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import merge_heads
from mien.nn.base import Grid
from mien.nn.observe import Layout, Stages

Update = Literal["hebb", "delta"]
CHUNK = 64
"""Tokens whose pairs are formed at once."""


class LinearAttention(nn.Module):
    """What a memory says to every token's query, after the token is written into it: (B, N, dim) -> (B, N, dim).

        S_t = S_{t-1} + b_t k_t v_tᵀ                       'hebb':  what was there stays, and all of it is added
        S_t = S_{t-1} + b_t k_t (v_t - S_{t-1}ᵀ k_t)ᵀ      'delta': what the key gave before makes room for v_t
        out_t = proj(norm(S_tᵀ q_t))                       S (d_k, d_v) in every head, 0 at first

    No token sees a later one, and there is no softmax. Of n random keys Hebb's rule reads each with an error of
    (n - 1) / d_k, over the square of its value; the delta rule with b = 1 reads the last that was written without any.

    Ours: `norm`, which divides a head's answer by its root mean square, as Hebb's memory grows with the sequence; q and
    k of length 1, without which the delta rule need not be stable, and b_t = sigmoid(rate(x_t)), one a head, unless a
    number is given, are those of DeltaNet.

    How: in chunks of 64 tokens, of which `out = Q S + P (V - K S)` with P = `tril(Q Kᵀ) (I + diag(b) tril(K Kᵀ, -1))⁻¹
    diag(b)`, lower triangular; by Hebb's rule `Q S + P V` without the inverse. Time and memory grow with N; a compiled
    or exported program has one chunk of all its tokens. `stream` takes tokens as they come, one at a time or many, and
    equals `forward` on all of them together; one at a time it goes into ONNX, where the inverse cannot. Of the stages
    of `mien.nn.observe` there are attn, which is P of the whole sequence, may be negative and does not sum to 1, and
    heads. Computed in at least fp32, outside of autocast. Tokens lie in a row; `grid` is ignored.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        update: "hebb" or "delta", the rule by which the memory is written; delta.
        rate: float above 0 to 1, b for all tokens, or None: learned; None.
        norm: bool, whether answers are divided by their root mean square; True.
        qkv_bias: bool, whether q, k and v have biases; True.
        proj_drop: float in [0, 1], fraction of outputs that training drops; 0.

    Papers: Qiao, Understanding Transformers through the Lens of Pavlovian Conditioning, arXiv 2508.08289 (the rules are
    *inferred* from its abstract); Yang et al., Parallelizing Linear Transformers with the Delta Rule over Sequence
    Length, 2024.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        update: Update = "delta",
        rate: float | None = None,
        norm: bool = True,
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if update not in ("hebb", "delta"):
            raise ValueError(f"update must be 'hebb' or 'delta', not {update!r}")
        if rate is not None and not 0 < rate <= 1:
            raise ValueError(f"rate must be above 0 and at most 1, not {rate}")
        self.num_heads, self.constant, self.norm = num_heads, rate, norm
        self.update: Update = update
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.rate = nn.Linear(dim, num_heads) if rate is None else None
        self.attend = Stages(("attn", "heads"))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        return self.stream(tokens, layout=Layout.of_tokens(tokens.shape[1], grid))[0]

    def stream(
        self,
        tokens: Tensor,
        state: Tensor | None = None,
        layout: Layout = Layout("token"),  # noqa: B008 a tuple
    ) -> tuple[Tensor, Tensor]:
        """Go on from where another call ended: tokens (B, n, dim), its state (B, heads, d_k, d_v) or None -> both.

        n is 1 or more. The state is in at least fp32.
        """
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        wide = torch.promote_types(q.dtype, torch.float32)
        q, k, v = F.normalize(q.to(wide), dim=-1), F.normalize(k.to(wide), dim=-1), v.to(wide)
        if self.rate is None:
            rate = q.new_full((*q.shape[:3], 1), self.constant or 0)
        else:
            rate = self.rate(tokens).to(wide).sigmoid().transpose(1, 2)[..., None]  # (B, heads, n, 1)
        if state is None:
            state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
        if self.attend.open:
            attn = self.attend.stage("attn", mixing(q, k, rate, self.update), layout)
            heads = read(q, k, v, attn, state, self.update)
            heads, state = self.attend.stage("heads", heads, layout), remember(q, k, v, rate, state, self.update)[1]
        else:
            heads, state = remember(q, k, v, rate, state, self.update)
        if self.norm:
            heads = F.rms_norm(heads, heads.shape[-1:], eps=1e-6)
        return self.proj_drop(self.proj(merge_heads(heads).to(tokens.dtype))), state


def remember(q: Tensor, k: Tensor, v: Tensor, rate: Tensor, state: Tensor, update: Update) -> tuple[Tensor, Tensor]:
    """Write every key and value into the memory, and ask it: answers (…, N, d_v), and the memory that is left.

    q and k (…, N, d_k), v (…, N, d_v), rate (…, N, 1), state (…, d_k, d_v).
    """
    out, size = [], q.shape[-2] if torch.compiler.is_compiling() else CHUNK
    for q_, k_, v_, rate_ in zip(*(x.split(size, -2) for x in (q, k, v, rate)), strict=True):
        out.append(read(q_, k_, v_, mixing(q_, k_, rate_, update), state, update))
        new = rate_ * v_
        if update == "delta":
            new = solved(k_, rate_, rate_ * (v_ - k_ @ state))
        state = state + k_.transpose(-2, -1) @ new
    return torch.cat(out, -2), state


def read(q: Tensor, k: Tensor, v: Tensor, mix: Tensor, state: Tensor, update: Update) -> Tensor:
    """What the memory answers to queries between which it takes in their own tokens: (…, N, d_v)."""
    return q @ state + mix @ (v - k @ state if update == "delta" else v)


def mixing(q: Tensor, k: Tensor, rate: Tensor, update: Update) -> Tensor:
    """P: how much of every token's value every query reads from a memory that was empty before, (…, N, N)."""
    seen = (q @ k.transpose(-2, -1)).tril()
    if update == "hebb":
        return seen * rate.transpose(-2, -1)
    return seen @ solved(k, rate, torch.diag_embed(rate[..., 0]))


def solved(k: Tensor, rate: Tensor, given: Tensor) -> Tensor:
    """`(I + diag(rate) tril(k kᵀ, -1))⁻¹ given`: what each token writes, those before it being known to the memory."""
    if k.shape[-2] == 1:
        return given
    below = (rate * (k @ k.transpose(-2, -1))).tril(-1)
    return torch.linalg.solve_triangular(below, given, upper=False, unitriangular=True)
