"""Superlinear attention: a search among √t anchors decides which stretches of a long sequence a token attends to."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from mien.nn.attend import merge_heads
from mien.nn.base import Grid
from mien.nn.observe import Layout, Stages
from mien.nn.partial_attention import attend_ranges, merge

CHUNK = 1024
"""Queries whose anchors are searched at once."""


class Superlinear(nn.Module):
    """Attention to a window and to a few stretches of the past that a search finds: (B, N, dim) -> (B, N, dim).

        anchors of token t:  a_i = t - i² + 1, i² > window        about √t of them
        search:  s_i = q1_t · k_{a_i}, not scaled;   the top_k greatest are taken
        span of a:  from a - ⌈backward_factor · √(t + 1)⌉ to a + ⌈forward_factor · √(t + 1)⌉, but before the window
        o_j = softmax(head_dim^-1/2 · q2_t kᵀ) v over span j and the window, the last `window` tokens up to t
        out = proj(Σ_j softmax_j(s) o_j)

    Where there are fewer than top_k anchors the gate knows of these alone; without any the window is all there is.
    The search learns through the gate only. With backward_factor ≥ 2 the spans of all anchors and the window cover the
    whole past: a_i and a_{i+1} lie 2i + 1 ≤ 2 √(t + 1) + 1 apart. Less would leave tokens that nobody can find, and is
    an error. A window as long as the sequence is causal attention.

    With direction 'both', ours, for sequences that are known to their end: anchors, spans and window of what is ahead
    mirror those of the past, √(N - t) taking the place of √(t + 1), and the search is among all of them. 'future' has
    them alone. Tokens lie in a row; `grid` is ignored.

    How: up to `dense_tokens`, and where somebody looks or a program is compiled, all pairs under a mask. Above, every
    span is a query of its own, sorted by where it lies, so that neighbours share keys: time grows with N^1.5 and
    memory with N, in the backward pass, too. Beside fused causal attention it is cheaper from about 25,000 tokens on
    (docs/sequences.md). `scores` that are seen are those of q2, -inf outside of every span; attn is `Σ_j softmax_j(s)
    softmax(scores of j)`.

    Args:
        dim, num_heads: int, width of the tokens and number of heads, which divides it.
        window: int from 0 on, tokens that are always attended to, t itself among them; raised to the next whole square
            less 1; 63.
        top_k: int from 1 on, anchors that are taken; 3.
        backward_factor: float from 2 on, length of a span away from t, over √(t + 1); 2.
        forward_factor: float from 0 on, the same towards t; 0.
        direction: "past", "future" or "both"; past.
        qkv_bias: bool, whether q1, q2, k and v have biases; True.
        proj_drop: float in [0, 1], fraction of outputs that training drops; 0.
        dense_tokens: int, tokens up to which all pairs are computed; 256.

    Paper: Superlinear Multi-Step Attention, arXiv 2601.18401, of which this is the attention alone, without the layers
    before it. Reference: superlinear 0.1.0 (Apache-2.0).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int = 63,
        top_k: int = 3,
        backward_factor: float = 2.0,
        forward_factor: float = 0.0,
        direction: Literal["past", "future", "both"] = "past",
        qkv_bias: bool = True,
        proj_drop: float = 0.0,
        dense_tokens: int = 256,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if window < 0 or top_k < 1:
            raise ValueError(f"window must be from 0 on, and top_k from 1 on: not {window} and {top_k}")
        if not backward_factor >= 2:
            raise ValueError(f"backward_factor must be from 2 on, or spans leave gaps: not {backward_factor}")
        if not forward_factor >= 0:
            raise ValueError(f"forward_factor must be from 0 on, not {forward_factor}")
        if direction not in ("past", "future", "both"):
            raise ValueError(f"direction must be 'past', 'future' or 'both', not {direction!r}")
        if direction == "both" and not window:
            raise ValueError("looking both ways needs a window from 1 on: without it t is its own anchor on both sides")
        self.num_heads, self.top_k, self.direction, self.dense_tokens = num_heads, top_k, direction, dense_tokens
        self.first_root = math.isqrt(window) + 1 if window else 1
        self.window = self.first_root**2 - 1
        self.backward_factor, self.forward_factor = backward_factor, forward_factor
        self.search = nn.Linear(dim, dim, bias=qkv_bias)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attend = Stages()
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        q1 = self.search(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        q2, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        heads = self.mixed(q1, q2, k, v, Layout.of_tokens(tokens.shape[1], grid))
        return self.proj_drop(self.proj(merge_heads(heads)))

    def mixed(self, q1: Tensor, q2: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout("token")) -> Tensor:  # noqa: B008 a tuple
        """Between the projections: queries of the search and of attention, k and v, each (B, heads, N, head_dim)."""
        if torch.compiler.is_compiling() or self.attend.open or q1.shape[2] <= self.dense_tokens:
            return self.dense(q1, q2, k, v, layout)
        return self.sparse(q1, q2, k, v)

    @property
    def sides(self) -> tuple[int, ...]:
        """Which way anchors lie."""
        return {"past": (-1,), "future": (1,), "both": (-1, 1)}[self.direction]

    def bounds(self, t: Tensor, anchor: Tensor, side: int | Tensor, n: int) -> tuple[Tensor, Tensor]:
        """First and last token of the span of an anchor that lies before (-1) or behind (1) token t of n."""
        known = torch.where(side < 0, t + 1, n - t) if isinstance(side, Tensor) else t + 1 if side < 0 else n - t
        root = known.double().sqrt()  # whole numbers' are exact
        away, near = ((factor * root).ceil().long() for factor in (self.backward_factor, self.forward_factor))
        past = anchor - away, torch.minimum(anchor + near, t - self.window)
        future = torch.maximum(anchor - near, t + self.window), anchor + away
        if isinstance(side, Tensor):
            first, last = (torch.where(side < 0, a, b) for a, b in zip(past, future, strict=True))
        else:
            first, last = past if side < 0 else future
        return first.clamp_min(0), last.clamp_max(n - 1)

    def window_bounds(self, t: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """First and last token of the window around token t of n."""
        behind, ahead = (max(0, self.window - 1) * (side in self.sides) for side in (-1, 1))
        return (t - behind).clamp_min(0), (t + ahead).clamp_max(n - 1)

    def dense(self, q1: Tensor, q2: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """The formula, with N · N scores for each of top_k spans."""
        n = k.shape[2]
        place = torch.arange(n, device=k.device)
        t, key = place[:, None], place[None]
        wide = torch.promote_types(q1.dtype, torch.float32)
        of_search = (q1 @ k.transpose(-2, -1)).to(wide)
        found, starts, ends = [], [], []
        for side in self.sides:
            square = (key - t) * side + 1
            root = square.clamp_min(0).double().sqrt()
            candidate = (root == root.round()) & (root >= self.first_root)
            found.append(of_search.masked_fill(~candidate, -math.inf))
            for each, bound in zip((starts, ends), self.bounds(t, key.expand(n, n), side, n), strict=True):
                each.append(bound)
        score, index = torch.cat(found, -1).topk(min(self.top_k, len(found) * n), -1)  # (B, heads, N, top_k)
        first, last = (
            torch.cat(each, -1).expand(*index.shape[:2], -1, -1).gather(-1, index) for each in (starts, ends)
        )
        missing = score == -math.inf
        gate = score.masked_fill(missing, torch.finfo(wide).min).softmax(-1)
        a, b = self.window_bounds(t, n)
        inside = (key >= a) & (key <= b) if self.window else torch.zeros_like(key > t)
        in_span = (key >= first[..., None]) & (key <= last[..., None]) & ~missing[..., None]
        seen = inside[:, None] | in_span  # (B, heads, N, top_k, N)
        scores = q2 @ k.transpose(-2, -1) * q2.shape[-1] ** -0.5
        scores = self.attend.stage("scores", scores.masked_fill(~seen.any(-2), -math.inf), layout)
        each = scores.to(wide)[..., None, :].masked_fill(~seen, torch.finfo(wide).min).softmax(-1) * seen
        attn = (gate[..., None] * each).sum(-2).to(v.dtype)
        return self.attend.stage("heads", self.attend.stage("attn", attn, layout) @ v, layout)

    def sparse(self, q1: Tensor, q2: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The same with memory that grows with N."""
        shape, n, scale = v.shape, v.shape[2], q2.shape[-1] ** -0.5
        q1, q2, k, v = (x.flatten(0, 1) for x in (q1, q2, k, v))  # (Z, N, head_dim)
        wide = torch.promote_types(q1.dtype, torch.float32)
        root, side = self.searched(q1.detach().to(wide), k.detach().to(wide))  # (Z, N, top_k), root 0: none
        place = torch.arange(n, device=k.device)
        t = place[:, None]
        anchor = (t + side * (root.square() - 1)).clamp(0, n - 1)
        first, last = self.bounds(t, anchor, side, n)
        last = last.masked_fill(root == 0, -1)
        at_anchor = k.gather(1, anchor.flatten(1)[..., None].expand(-1, -1, k.shape[2])).unflatten(1, (n, -1))
        score = (q1[:, :, None] * at_anchor).sum(-1).to(wide)
        gate = score.masked_fill(root == 0, torch.finfo(wide).min).softmax(-1)
        query = q2.repeat_interleave(root.shape[2], 1).to(wide)
        k, v = k.to(wide), v.to(wide)
        out, total = attend_ranges(query, k, v, first.flatten(1), last.flatten(1), scale)
        out, total = out.unflatten(1, (n, -1)), total.unflatten(1, (n, -1))
        if self.window:
            first, last = (x.expand(len(k), n) for x in self.window_bounds(place, n))
            near, near_total = attend_ranges(q2.to(wide), k, v, first, last, scale)
            out, _ = merge(near[:, :, None], near_total[:, :, None], out, total)
        return (gate[..., None] * out).sum(2).view(shape).to(q2.dtype)

    @torch.no_grad()
    def searched(self, q1: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """The top_k greatest anchors: their roots i, 0 where there are fewer, and sides, (Z, N, top_k) each."""
        n = k.shape[1]
        roots = range(self.first_root, math.isqrt(n) + 1)
        both = [(i, side) for side in self.sides for i in roots]
        table = torch.tensor(both + [(0, -1)] * self.top_k, device=k.device)  # (anchors, 2)
        found = []
        for start in range(0, n, CHUNK):
            end = min(n, start + CHUNK)
            score = q1.new_full((len(table), len(k), end - start), -math.inf)
            for j, (i, side) in enumerate(both):
                offset = side * (i * i - 1)
                a, b = max(start, -offset), min(end, n - offset)
                if a < b:
                    torch.sum(q1[:, a:b] * k[:, a + offset : b + offset], -1, out=score[j, :, a - start : b - start])
            best, index = score.topk(self.top_k, 0)
            found.append(index.masked_fill(best == -math.inf, len(both)).permute(1, 2, 0))
        root, side = table[torch.cat(found, 1)].unbind(-1)
        return root, side
