"""Self-attention over a sequence, or over heads, that the processes of a group share."""

from collections.abc import Callable, Iterator
from typing import Literal, Self, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.nn.attend import Attend, merge_heads
from mien.nn.base import Grid
from mien.nn.observe import Layout, LookError
from mien.nn.partial_attention import NEVER, ROWS, attend_ranges, least, merge, part, part_grad
from mien.nn.self_attention import SelfAttention
from mien.nn.shares import (
    Add,
    Copy,
    Exchange,
    Gather,
    Group,
    agree,
    divided,
    from_parts,
    place,
    shift,
    to_parts,
    travel,
)

Method = Literal["ring", "all_gather", "ulysses", "head_parallel"]


class DistributedAttention(nn.Module):
    """Self-attention of tokens that P processes share: (B, N / P, dim) -> (B, N / P, dim) in each of them.

    What all give together, `mien.nn.shares.join_tokens`, is `SelfAttention` of the whole sequence. So are gradients,
    where the loss is the sum of all processes' losses; those of parameters are of the own tokens, to be added over the
    processes. With `causal` no token sees a later one, and a process has two pieces of the sequence, an early and a
    late one, so that all have as much to do: `mien.nn.shares.share_tokens(…, balanced=True)`.

        ring           k and v go round, P - 1 times, while what has come is attended to. Parts are merged by (out,
                       lse): lse = log(e^lse_a + e^lse_b), out = out_a e^(lse_a - lse) + out_b e^(lse_b - lse).
                       In the backward pass they go round again, and their gradients with them.
        all_gather     every process gets all k and v, and attends with its own queries.
        ulysses        every process exchanges its tokens for a P-th of the heads, attends, and exchanges back.
        head_parallel  every process has all tokens (B, N, dim), and a P-th of the heads with their columns of proj;
                       what they give is added. Parameters are this process's own.

    Numbers that one process sends in a forward pass, d = B · N · dim / P being those of its tokens: ring and all_gather
    2 (P - 1) d, ulysses 4 (P - 1) / P d, head_parallel 2 (P - 1) d (a sum over all tokens). Besides its own tokens
    it keeps a block of k and v (ring), or all of them (all_gather), or all tokens of its heads (the others).

    Without an initialised group, or in a group of one, it is SelfAttention, and may be looked at; among several it may
    not. Every forward pass asks whether all were given the same shape, a few bytes. Only gloo was tried, in fp64, fp32.

    Args:
        dim, num_heads: int, width of the tokens and number of heads of all processes, which divides it.
        method: "ring", "all_gather", "ulysses" or "head_parallel"; ring.
        causal: bool, no token sees a later one; False.
        group: torch.distributed.ProcessGroup, or None: all processes.
        qkv_bias: bool, whether q, k and v have biases; True.
        scale: float above 0, of the scores; head_dim^-1/2.

    Raises `mien.nn.shares.ShareError`: heads or tokens that do not divide, processes that disagree about a shape.

    Paper: Hè and Kabić, A Unified View of Long-Sequence Models towards Modeling Million-Scale Dependencies, arXiv
    2302.06218, whose own algorithm was not to be had: these four are *inferred*, and as in Liu et al., Ring Attention,
    2023; Jacobs et al., DeepSpeed Ulysses, 2023; Shoeybi et al., Megatron-LM, 2019.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        method: Method = "ring",
        causal: bool = False,
        group: Group = None,
        qkv_bias: bool = True,
        scale: float | None = None,
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"dim {dim} is not a multiple of num_heads {num_heads}")
        if method not in get_args(Method):
            raise ValueError(f"method must be {', '.join(get_args(Method))}, not {method!r}")
        self.head_dim, self.method, self.causal, self.group = dim // num_heads, method, causal, group
        self.num_heads = num_heads
        if method in ("ulysses", "head_parallel"):
            own = divided(num_heads, place(group)[1], "heads")
            self.num_heads = own if method == "head_parallel" else num_heads
        inner = self.num_heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.attend = Attend(scale=scale)
        self.proj = nn.Linear(inner, dim)

    @classmethod
    def of(cls, attention: SelfAttention, method: Method = "ring", causal: bool = False, group: Group = None) -> Self:
        """This process's module with the weights of a whole one; of head_parallel those of its own heads."""
        dim, heads, bias = attention.proj.out_features, attention.num_heads, attention.qkv.bias is not None
        made = cls(dim, heads, method, causal, group, bias, attention.attend.scale).to(attention.proj.weight)
        state = attention.state_dict()
        if method == "head_parallel":
            rank, inner = place(group)[0], made.proj.in_features
            own = slice(rank * inner, (rank + 1) * inner)
            for name in [name for name in state if name.startswith("qkv.")]:
                state[name] = state[name].unflatten(0, (3, -1))[:, own].flatten(0, 1)
            state["proj.weight"] = state["proj.weight"][:, own]
        made.load_state_dict(state)
        return made

    def forward(self, tokens: Tensor, grid: Grid | None = None) -> Tensor:
        processes = place(self.group)[1]
        if processes == 1:
            return self.proj(merge_heads(self.local(*self.split(tokens), Layout.of_tokens(tokens.shape[1], grid))))
        if self.attend.open:
            raise LookError("attention that processes share cannot be seen or moved: look at it in one process")
        agree(tokens, self.group)
        if self.method == "head_parallel":
            heads = merge_heads(self.local(*self.split(Copy.apply(tokens, self.group))))
            return Add.apply(F.linear(heads, self.proj.weight), self.group) + self.proj.bias
        if self.causal:
            divided(tokens.shape[1], 2, "tokens of a process")
        q, k, v = self.split(tokens)
        if self.method == "ring":
            scale = self.head_dim**-0.5 if self.attend.scale is None else self.attend.scale
            heads = _Ring.apply(q, k, v, scale, self.causal, self.group)
        else:
            heads = self.gathering(q, k, v) if self.method == "all_gather" else self.exchanging(q, k, v, processes)
        return self.proj(merge_heads(heads))

    def split(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, n, dim) -> q, k, v, each (B, heads, n, head_dim)."""
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def local(self, q: Tensor, k: Tensor, v: Tensor, layout: Layout = Layout("token")) -> Tensor:  # noqa: B008 a tuple
        """Attention of whole sequences, in this process."""
        if self.causal and not self.attend.open:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.attend.scale)
        bias = q.new_full((q.shape[2],) * 2, -torch.inf).triu(1) if self.causal else None
        return self.attend(q, k, v, bias, layout)

    def gathering(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        rank, processes = place(self.group)
        k, v = from_parts(Gather.apply(torch.stack([k, v]), self.group), self.causal)
        if not self.causal:
            return self.attend(q, k, v)
        order = torch.arange(k.shape[2], device=q.device)[:, None]
        last = to_parts(order, processes, balanced=True)[rank].T.expand(q.shape[0] * q.shape[1], -1)
        scale = self.head_dim**-0.5 if self.attend.scale is None else self.attend.scale
        flat = [x.flatten(0, 1) for x in (q, k, v)]
        return attend_ranges(flat[0], flat[1], flat[2], torch.zeros_like(last), last, scale)[0].view_as(q)

    def exchanging(self, q: Tensor, k: Tensor, v: Tensor, processes: int) -> Tensor:
        pieces = torch.stack([q, k, v]).unflatten(2, (processes, -1)).movedim(2, 0)  # (P, 3, B, heads / P, n, head_dim)
        q, k, v = from_parts(Exchange.apply(pieces, self.group), self.causal)  # (B, heads / P, N, head_dim)
        back = Exchange.apply(to_parts(self.local(q, k, v), processes, self.causal), self.group)
        return back.movedim(0, 1).flatten(1, 2)


class _Ring(torch.autograd.Function):
    """Attention of own queries to the k and v of all processes, (B, heads, n, head_dim), as they come round."""

    @staticmethod
    def forward(ctx, q, k, v, scale, causal, group):
        rank, _ = place(group)
        out, total = torch.zeros_like(v), q.new_full(q.shape[:-1], least(q))
        for source, (k_, v_) in travel(torch.stack([k, v]), group):
            for rows, keys, bias in _blocks(rank, source, q, causal):
                found = part(q[..., rows, :], k_[..., keys, :], v_[..., keys, :], scale, bias)
                out[..., rows, :], total[..., rows] = merge(out[..., rows, :], total[..., rows], *found)
        ctx.save_for_backward(q, k, v, out, total)
        ctx.rest = scale, causal, group
        return out

    @staticmethod
    def backward(ctx, *grads):
        q, k, v, out, total = ctx.saved_tensors
        scale, causal, group = ctx.rest
        rank, _ = place(group)
        shares = (grads[0] * out).sum(-1)
        of_q, arrived = torch.zeros_like(q), None
        for source, block in travel(torch.stack([k, v]), group):
            of_block = torch.zeros_like(block)
            for rows, keys, bias in _blocks(rank, source, q, causal):
                given = total[..., rows], grads[0][..., rows, :], shares[..., rows]
                k_, v_ = block[..., keys, :]
                a, b, c = part_grad(q[..., rows, :], k_, v_, scale, bias, *given)
                of_q[..., rows, :] += a
                of_block[0][..., keys, :] += b
                of_block[1][..., keys, :] += c
            arrived = shift(of_block if arrived is None else of_block + arrived(), group, tag=1)
        of_k, of_v = cast(Callable[[], Tensor], arrived)()  # they have come round
        return of_q, of_k, of_v, None, None, None


def _blocks(rank: int, source: int, q: Tensor, causal: bool) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Own queries, `ROWS` at once, the keys of a source that they see, and the bias that hides some of these."""
    n, heads = q.shape[-2], q.shape[:-2].numel()
    half, step = n // 2, min(ROWS, max(32, ROWS // heads))  # so that memory is that of one head
    if not causal:
        areas = [(0, n, 0, n, False)]
    elif source == rank:
        areas = [(0, half, 0, half, True), (half, n, 0, half, False), (half, n, half, n, True)]
    elif source < rank:  # the early half of it is before, and its late half behind all of ours
        areas = [(0, n, 0, half, False)]
    else:
        areas = [(half, n, 0, n, False)]
    for top, bottom, left, right, triangle in areas:
        for a in range(top, bottom, step):
            b = min(bottom, a + step)
            bias = q.new_full((b - a, b - left), NEVER).triu(a - left + 1) if triangle else None
            yield slice(a, b), slice(left, b if triangle else right), bias
