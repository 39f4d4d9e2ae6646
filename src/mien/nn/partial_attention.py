"""Softmax attention of some of the keys, and what parts have to say together: for what never sees all keys at once."""

from collections.abc import Iterator

import torch
from torch import Tensor

ROWS = 256
"""Queries whose scores are formed at once."""

HIGHEST = torch.iinfo(torch.int64).max
NEVER = -1e30
"""The bias of a key that is not seen: beside any other its share is 0."""


def least(x: Tensor) -> float:
    """The log of the sum of no scores: it outweighs nothing, and differences of it are finite."""
    return torch.finfo(x.dtype).min / 4


def part(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`softmax(scale · q kᵀ + bias) v`, and the log of the softmax's sum.

    q (…, n, d), k (…, m, d), v (…, m, e), bias (n, m) -> (…, n, e), (…, n).
    """
    scores = (q * scale) @ k.transpose(-2, -1)
    scores = scores if bias is None else scores.add_(bias)
    most = scores.amax(-1, keepdim=True)
    shares = scores.sub_(most).exp_()
    total = shares.sum(-1, keepdim=True)
    return (shares @ v).div_(total), (most + total.log()).squeeze(-1)


def part_grad(
    q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None, total: Tensor, grad: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v from this part of the keys, of attention to all of its parts.

    total: (…, n), the log of the softmax's sum over all parts. grad: (…, n, e), of what they give together. shift:
    (…, n), `Σ grad · out` less the gradient of `total`.
    """
    scores = (q * scale) @ k.transpose(-2, -1)
    scores = scores if bias is None else scores.add_(bias)
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
        out, total = v.new_zeros(*q.shape[:2], v.shape[2]), torch.zeros_like(q[..., 0])
        for z, rows, keys, bias in _blocks(first, last, q.dtype):
            out[z, rows], total[z, rows] = part(q[z, rows], k[z, keys], v[z, keys], scale, bias)
        none = first > last
        out.masked_fill_(none[..., None], 0)
        ctx.save_for_backward(q, k, v, first, last, out, total.masked_fill(none, 0))
        ctx.scale = scale
        return out, total.masked_fill_(none, least(total))

    @staticmethod
    def backward(ctx, *grads):
        q, k, v, first, last, out, total = ctx.saved_tensors
        shift = (grads[0] * out).sum(-1) - grads[1]
        of_q, of_k, of_v = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for z, rows, keys, bias in _blocks(first, last, q.dtype):
            given = total[z, rows], grads[0][z, rows], shift[z, rows]
            of_q[z, rows], a, b = part_grad(q[z, rows], k[z, keys], v[z, keys], ctx.scale, bias, *given)
            of_k[z, keys] += a
            of_v[z, keys] += b
        return of_q, of_k, of_v, None, None, None


def _blocks(first: Tensor, last: Tensor, dtype: torch.dtype) -> Iterator[tuple[int, slice, slice, Tensor]]:
    """Some queries, the keys from the first to the last that any of them sees, and the bias that hides the others."""
    none = first > last
    rows = [slice(i, i + ROWS) for i in range(0, first.shape[1], ROWS)]
    lows, highs = first.masked_fill(none, HIGHEST), last.masked_fill(none, -1)
    lows = torch.stack([lows[:, each].amin(1) for each in rows], 1).tolist()
    highs = torch.stack([highs[:, each].amax(1) for each in rows], 1).tolist()
    for z, (low, high) in enumerate(zip(lows, highs, strict=True)):
        for each, a, b in zip(rows, low, high, strict=True):
            if a <= b:
                place = torch.arange(b - a + 1, dtype=dtype, device=first.device)
                start, end = (x[z, each, None].sub(a).to(dtype) for x in (first, last))
                outside = (place - (start + end) / 2).abs_().sub_((end - start) / 2)  # tokens beyond either end
                yield z, each, slice(a, b + 1), outside.clamp_min_(0).mul_(NEVER)


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
