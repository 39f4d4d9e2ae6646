"""The faces of all processes, for attention across a batch that is spread over several."""

import torch
from torch import Tensor, distributed


class _Gather(torch.autograd.Function):
    """What a process gives comes to all; the gradients of all come back to it, added."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, x)
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        grad = grad_outputs[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(grad)
        return grad[distributed.get_rank() :: distributed.get_world_size()]


def gather_faces(x: Tensor) -> Tensor:
    """(B, …) of every process -> (processes · B, …), the same in all; in a single process x as it is.

    The first face of each process comes first, as in the batch of which each has every so-many-th.

    Gradients flow back: where each process's loss is a mean over its own B faces, and gradients are averaged over
    processes (as DDP does), they are those of one process with all the faces. B must be the same everywhere.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return x
    return _Gather.apply(x.contiguous())
