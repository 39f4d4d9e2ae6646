"""Softmax attention of some of the keys, and what parts have to say together: for what never sees all keys at once."""

import math

import torch
from torch import Tensor

ROWS = 256
"""Queries whose scores are formed at once."""


def least(x: Tensor) -> float:
    """The log of the sum of no scores: it outweighs nothing, and differences of it are finite."""
    return torch.finfo(x.dtype).min / 4


def part(q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`softmax(scale · q kᵀ) v` and the log of the softmax's sum: (…, n, d), (…, m, d), (…, m, e) -> (…, n, e), (…, n).

    hidden: (n, m), keys that a query does not see; who sees none has 0 and `least`.
    """
    scores = q @ k.transpose(-2, -1) * scale
    if hidden is not None:
        scores.masked_fill_(hidden, -math.inf)
    total = scores.logsumexp(-1).clamp_min(least(scores))
    return scores.sub_(total[..., None]).exp_() @ v, total


def part_grad(
    q: Tensor, k: Tensor, v: Tensor, scale: float, hidden: Tensor | None, total: Tensor, grad: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from this part of the keys, of attention to all of its parts.

    total: (…, n), the log of the softmax's sum over all parts. grad: (…, n, e), of what they give together. shift:
    (…, n), `Σ grad · out` less the gradient of `total`.
    """
    scores = q @ k.transpose(-2, -1) * scale
    if hidden is not None:
        scores.masked_fill_(hidden, -math.inf)
    attn = scores.sub_(total[..., None]).exp_()
    of_scores = (grad @ v.transpose(-2, -1)).sub_(shift[..., None]).mul_(attn).mul_(scale)
    return of_scores @ k, of_scores.transpose(-2, -1) @ q, attn.transpose(-2, -1) @ grad


def merge(out: Tensor, total: Tensor, other: Tensor, other_total: Tensor) -> tuple[Tensor, Tensor]:
    """What two parts give together: `(out + w · (other - out), log(e^total + e^other_total))`, (…, n, e) and (…, n)."""
    share = torch.sigmoid(other_total - total)[..., None]
    return out + share * (other - out), torch.logaddexp(total, other_total)


class _Ranges(torch.autograd.Function):
    """`attend_ranges` of queries that are sorted; scores are formed anew for the backward pass."""

    @staticmethod
    def forward(ctx, q, k, v, first, last, scale):
        out, total = v.new_zeros(*q.shape[:2], v.shape[2]), q.new_full(q.shape[:2], least(q))
        for z, rows, keys, hidden in _blocks(first, last):
            out[z, rows], total[z, rows] = part(q[z, rows], k[z, keys], v[z, keys], scale, hidden)
        ctx.save_for_backward(q, k, v, first, last, out, total)
        ctx.scale = scale
        return out, total

    @staticmethod
    def backward(ctx, *grads):
        q, k, v, first, last, out, total = ctx.saved_tensors
        shift = (grads[0] * out).sum(-1) - grads[1]
        of_q, of_k, of_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for z, rows, keys, hidden in _blocks(first, last):
            given = total[z, rows], grads[0][z, rows], shift[z, rows]
            a, b, c = part_grad(q[z, rows], k[z, keys], v[z, keys], ctx.scale, hidden, *given)
            of_q[z, rows] = a
            of_k[z, keys] += b
            of_v[z, keys] += c
        return of_q, of_k, of_v, None, None, None


def _blocks(first: Tensor, last: Tensor):
    """Some queries and the keys from the first to the last that any of them sees, and which of these each does not."""
    none, n = first > last, first.shape[1]
    lows = first.masked_fill(none, torch.iinfo(first.dtype).max).split(ROWS, 1)
    highs = last.masked_fill(none, -1).split(ROWS, 1)
    low = torch.stack([x.amin(1) for x in lows], 1).tolist()
    high = torch.stack([x.amax(1) for x in highs], 1).tolist()
    for z in range(first.shape[0]):
        for i, (a, b) in enumerate(zip(low[z], high[z], strict=True)):
            if a <= b:
                rows = slice(i * ROWS, min(n, (i + 1) * ROWS))
                place = torch.arange(a, b + 1, device=first.device)
                hidden = (place < first[z, rows, None]) | (place > last[z, rows, None])
                yield z, rows, slice(a, b + 1), hidden


def attend_ranges(q: Tensor, k: Tensor, v: Tensor, first: Tensor, last: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Every query attends to the keys from its first to its last; who has none (first > last) has 0 and `least`.

    q (Z, P, d), k (Z, L, d), v (Z, L, e), first and last (Z, P), int, from 0 to L - 1 where there are keys
    -> out (Z, P, e), and the log of the softmax's sum (Z, P).

    Queries are sorted by where their keys lie, so that `ROWS` of them together see few more keys than one does: for
    ranges of up to m keys time grows with P · m + ROWS · L, and memory with P + L, in the backward pass, too.
    """
    none = first > last
    order = (first + last).masked_fill(none, 2 * k.shape[1]).argsort(1)  # (Z, P)
    first, last = (x.gather(1, order) for x in (first, last))
    sorted_q = q.gather(1, order[..., None].expand_as(q))
    out, total = _Ranges.apply(sorted_q, k, v, first, last, scale)
    back = order.argsort(1)
    return out.gather(1, back[..., None].expand(*back.shape, v.shape[2])), total.gather(1, back)
