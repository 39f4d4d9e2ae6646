"""A sequence in equal parts, one for each process of a group, and what these tell one another."""

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, distributed

from mien.errors import MienError

Group: TypeAlias = "distributed.ProcessGroup | None"


class ShareError(MienError, ValueError):
    """What processes cannot share, or about which they disagree; its text is one line, the same in each of them."""


def place(group: Group = None) -> tuple[int, int]:
    """This process's number in the group (None: all), and how many it has; (0, 1) where no group was initialised."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    rank = distributed.get_rank(group)
    if rank < 0:
        raise ShareError("this process is not in the group that shares the attention")
    return rank, distributed.get_world_size(group)


def divided(count: int, parts: int, what: str) -> int:
    """`count / parts`; ShareError where that is no whole number."""
    if count % parts:
        raise ShareError(f"{count} {what} do not divide into {parts} equal parts")
    return count // parts


def agree(x: Tensor, group: Group = None) -> None:
    """ShareError, in every process, where the shapes of their tensors differ: a few bytes from each to all."""
    _, processes = place(group)
    mine = torch.tensor(x.shape, device=x.device)
    all_ = [torch.empty_like(mine) for _ in range(processes)]
    distributed.all_gather(all_, mine, group=group)
    shapes = [tuple(each.tolist()) for each in all_]
    if len(set(shapes)) > 1:
        shown = ", ".join(str(shape) for shape in shapes)
        raise ShareError(f"the processes that share a sequence were given tokens of different shapes: {shown}")


def to_parts(whole: Tensor, parts: int, balanced: bool = False) -> Tensor:
    """(…, L, d) -> (parts, …, L / parts, d): neighbours; `balanced`: piece i and piece 2 · parts - 1 - i of as many.

    Among processes that know only what came before, balanced parts all have as much to do.
    """
    pieces = whole.unflatten(-2, (2 * parts if balanced else parts, -1)).movedim(-3, 0)
    return torch.cat([pieces[:parts], pieces[parts:].flip(0)], -2) if balanced else pieces


def from_parts(parts: Tensor, balanced: bool = False) -> Tensor:
    """The inverse of `to_parts`."""
    if balanced:
        early, late = parts.chunk(2, -2)
        parts = torch.cat([early, late.flip(0)])
    return parts.movedim(0, -3).flatten(-3, -2)


def share_tokens(tokens: Tensor, group: Group = None, balanced: bool = False) -> Tensor:
    """This process's part of a sequence that all have: (B, L, D) -> (B, L / processes, D).

    tokens: (B, L, D), the same in every process.
    group: of the processes, or None: all.
    balanced: bool, two pieces of it, one early and one late, as causal attention wants it; False.

    Raises ShareError where L is no multiple of the processes, or of twice as many, and in a process outside the group.
    """
    rank, processes = place(group)
    divided(tokens.shape[1], 2 * processes if balanced else processes, "tokens")
    return to_parts(tokens, processes, balanced)[rank]


def join_tokens(part: Tensor, group: Group = None, balanced: bool = False) -> Tensor:
    """The inverse of `share_tokens`: every process has all of the sequence. Gradients of all come back, added.

    part: (B, L / processes, D), this process's own.
    group, balanced: as for `share_tokens`.

    Raises ShareError where the shapes of the parts differ, and in a process outside the group.
    """
    if place(group)[1] == 1:
        return part
    agree(part, group)
    return from_parts(Gather.apply(part, group), balanced)


class Gather(torch.autograd.Function):
    """`x` of all processes, (processes, …), in each; gradients come back to where x was, added."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(place(group)[1])]
        distributed.all_gather(parts, x.contiguous(), group=group)
        return torch.stack(parts)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return exchanged(grads[0], ctx.group).sum(0), None


class Exchange(torch.autograd.Function):
    """x[i] goes to process i, and what came from process i is [i]: (processes, …) -> (processes, …)."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return exchanged(x, group)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return exchanged(grads[0], ctx.group), None


class Copy(torch.autograd.Function):
    """x, which all processes have; gradients are those of all, added."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return added(grads[0], ctx.group), None


class Add(torch.autograd.Function):
    """The x of all processes, added; each goes on with the same gradient."""

    @staticmethod
    def forward(ctx, x: Tensor, group: Group) -> Tensor:
        return added(x, group)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def exchanged(x: Tensor, group: Group) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    distributed.all_to_all_single(out, x, group=group)
    return out


def added(x: Tensor, group: Group) -> Tensor:
    x = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(x, group=group)
    return x


def shift(x: Tensor, group: Group, tag: int) -> Callable[[], Tensor]:
    """Send x to the next process of the ring; a function that waits for what comes from the one before."""
    rank, processes = place(group)
    after, before = ((rank + step) % processes for step in (1, -1))
    if group is not None:
        after, before = (distributed.get_global_rank(group, each) for each in (after, before))
    x = x.contiguous()
    incoming = torch.empty_like(x)
    send = distributed.P2POp(distributed.isend, x, after, group, tag)
    receive = distributed.P2POp(distributed.irecv, incoming, before, group, tag)
    works = distributed.batch_isend_irecv([send, receive])

    def arrived() -> Tensor:
        for work in works:
            work.wait()
        return incoming

    return arrived


def travel(x: Tensor, group: Group) -> Iterator[tuple[int, Tensor]]:
    """The x of every process, and whose it is, own first; the next is under way while this one is used."""
    rank, processes = place(group)
    for step in range(processes):
        arrived = shift(x, group, tag=0) if step < processes - 1 else None
        yield (rank - step) % processes, x
        if arrived is not None:
            x = arrived()
