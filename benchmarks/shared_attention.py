"""What attention that processes share sends and keeps, a process, over gloo; and torch's own beside it.

    OMP_NUM_THREADS=1 python benchmarks/shared_attention.py

Processes are forked on this machine, one thread each. Printed are, of the first process: MB handed over to be sent to
others, in a forward pass and in its backward pass besides; the most memory that torch's profiler saw allocated at once,
beside tokens and parameters; processor seconds, which say little where processes share the cores; and how far the
outputs of all are from one process's. `--check` instead compares `ring` with `torch.distributed.tensor.experimental
.context_parallel`, where it can: attention that is not causal on a CPU, whose ring knows no other there. Its first call
takes about a minute of each processor.
"""

import argparse
import os
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import distributed

from mien.networks.cost import peak_bytes
from mien.nn import DistributedAttention, SelfAttention, join_tokens, share_tokens
from mien.nn.distributed_attention import _Ring
from mien.nn.shares import Gather, from_parts, to_parts

METHODS = ("ring", "all_gather", "ulysses", "head_parallel")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--check", action="store_true", help="compare with torch's context_parallel instead")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{args.tokens:,} tokens, {args.dim} wide, {args.heads} heads, batch 1, fp32, torch {torch.__version__}, gloo\n"
    )
    print("| processes | method | causal | MB sent, forward | MB sent, backward | MB kept, forward | MB kept, training "
          "| s, training | from one process |\n|---|---|---|---|---|---|---|---|---|", flush=True)  # fmt: skip
    for count in [1, *args.processes]:
        with tempfile.TemporaryDirectory() as folder:
            children = []
            for rank in range(count):
                child = os.fork()
                if child == 0:
                    try:
                        one(rank, count, Path(folder), args)
                    except BaseException:
                        traceback.print_exc()
                        os._exit(1)
                    os._exit(0)
                children.append(child)
            for child in children:
                os.waitpid(child, 0)


def one(rank: int, count: int, folder: Path, args: argparse.Namespace) -> None:
    say = print if rank == 0 else lambda *_, **__: None
    if count > 1:
        distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    if args.check:
        if count > 1:
            cross_check(count, args, say)
        return
    torch.manual_seed(0)
    attention, tokens = SelfAttention(args.dim, args.heads), torch.randn(1, args.tokens, args.dim)
    for causal in (False, True):
        with torch.no_grad():
            q, k, v = attention.split(tokens)
            whole = attention.join(F.scaled_dot_product_attention(q, k, v, is_causal=causal))
        for method in METHODS if count > 1 else ("ring",):
            mixer = DistributedAttention.of(attention, method, causal)
            share = method != "head_parallel" and count > 1
            mine = share_tokens(tokens, balanced=causal).clone() if share else tokens.clone()

            def forward(mixer=mixer, mine=mine):
                return mixer(mine.requires_grad_())

            sent = [count_sent(count, run) for run in (forward, lambda: forward().sum().backward())]
            begin = time.process_time()
            forward().sum().backward()
            seconds = time.process_time() - begin
            with torch.no_grad():
                kept = [peak_bytes(lambda: mixer(mine)) / 1e6]  # noqa: B023 called here
                out = join_tokens(mixer(mine), balanced=causal) if share else mixer(mine)
            kept.append(peak_bytes(lambda: forward().sum().backward()) / 1e6)
            cells = [count, method if count > 1 else "one process", "yes" if causal else "no", f"{sent[0]:.2f}"]
            cells += [f"{sent[1] - sent[0]:.2f}", *(f"{each:.1f}" for each in kept), f"{seconds:.2f}"]
            say(f"| {' | '.join(map(str, cells))} | {(out - whole).abs().max().item():.1e} |", flush=True)
    if count > 1:
        distributed.destroy_process_group()


def count_sent(count: int, run) -> float:
    """MB that this process gives to be sent to others while it runs."""
    sent, real = [0], {}
    shares = {
        "batch_isend_irecv": lambda ops: ops[0].tensor.nbytes,
        "all_gather": lambda _, x: x.nbytes * (count - 1),
        "all_to_all_single": lambda _, x: x.nbytes * (count - 1) // count,
        "all_reduce": lambda x: 2 * x.nbytes * (count - 1) // count,  # as a ring does it
    }
    for name, share in shares.items():
        real[name] = getattr(distributed, name)

        def call(*args, name=name, share=share, **kwargs):
            sent[0] += share(*args)
            return real[name](*args, **kwargs)

        setattr(distributed, name, call)
    try:
        run()
    finally:
        for name, function in real.items():
            setattr(distributed, name, function)
    return sent[0] / 1e6


def cross_check(count: int, args: argparse.Namespace, say) -> None:
    """Beside torch's context_parallel, which shards its buffers in place."""
    warnings.simplefilter("ignore")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.experimental import context_parallel
    from torch.distributed.tensor.experimental._attention import context_parallel_unshard

    mesh = init_device_mesh("cpu", (count,))
    for causal in (False, True):
        torch.manual_seed(0)
        q, k, v = (torch.randn(1, args.heads, args.tokens, args.dim // args.heads) for _ in range(3))
        parts = [to_parts(x, count, causal)[distributed.get_rank()] for x in (q, k, v)]
        ours = _Ring.apply(*parts, q.shape[-1] ** -0.5, causal, None)
        ours = from_parts(Gather.apply(ours, None), causal)
        name = f"context_parallel, {count} processes, {'causal' if causal else 'not causal'}"
        try:
            with torch.no_grad(), context_parallel(mesh, buffers=[q, k, v], buffer_seq_dims=[2, 2, 2]):
                out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
                (out,) = context_parallel_unshard(mesh, [out], [2])
            say(f"{name}: ring is within {(ours - out).abs().max().item():.1e} of it", flush=True)
        except NotImplementedError as error:
            say(f"{name}: it cannot: {str(error).splitlines()[0]}", flush=True)


if __name__ == "__main__":
    main()
