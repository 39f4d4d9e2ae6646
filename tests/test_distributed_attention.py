"""Attention that processes share over gloo, in fp64, against one process that has all of it.

As a script it is four processes, forked of one: `test_distributed_attention.py FOLDER`.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from published import GOLDEN, rng
from torch import distributed

import mien.nn.distributed_attention as module
from mien.nn import (
    DistributedAttention,
    LookError,
    SelfAttention,
    ShareError,
    join_tokens,
    observe,
    share_tokens,
)
from mien.nn.partial_attention import merge, part

METHODS = ("ring", "all_gather", "ulysses", "head_parallel")
DIM, HEADS, TOKENS, BATCH = 16, 4, 24, 2


def noise(name, *shape):
    return torch.from_numpy(rng(name).standard_normal(shape).astype(np.float32)).double()


def causal_by_hand(attention: SelfAttention, tokens: torch.Tensor) -> torch.Tensor:
    q, k, v = attention.split(tokens)
    scores = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).masked_fill(torch.ones(TOKENS, TOKENS).triu(1) > 0, -1e300)
    return attention.join(scores.softmax(-1) @ v)


def shared(method: str, causal: bool, group) -> dict[str, float]:
    """How far the processes of a group are from one: outputs, gradients of tokens and of parameters."""
    torch.manual_seed(0)
    attention = SelfAttention(DIM, HEADS).double()
    tokens, probe = torch.randn(2, BATCH, TOKENS, DIM, dtype=torch.float64)
    given = tokens.clone().requires_grad_()
    out = causal_by_hand(attention, given) if causal else attention(given)
    (out * probe).sum().backward()
    wanted = {name: p.grad for name, p in attention.named_parameters()}

    rank, count = distributed.get_rank(group), distributed.get_world_size(group)
    mixer = DistributedAttention.of(attention, method, causal, group)
    own, sent = method == "head_parallel", counted(mixer)
    take = (lambda x: x) if own else (lambda x: share_tokens(x, group, balanced=causal))
    mine = take(tokens).clone().requires_grad_()
    got = mixer(mine)
    found = {"sent": sent() / mine.numel()}
    (got * take(probe)).sum().backward()
    found["out"] = (got - take(out)).abs().max().item()
    found["tokens"] = (mine.grad - take(given.grad)).abs().max().item()
    for name, p in mixer.named_parameters():
        grad, full = p.grad, wanted[name]
        if not own:
            distributed.all_reduce(grad, group=group)
        elif name.startswith("qkv"):
            full = full.unflatten(0, (3, count, -1))[:, rank].flatten(0, 1)
        elif name == "proj.weight":
            full = full.unflatten(1, (count, -1))[:, rank]
        found[name] = (grad - full).abs().max().item()
    if not own:
        joined = join_tokens(got.detach(), group, balanced=causal)
        found["joined"] = (joined - out).abs().max().item()
    return found


def counted(mixer):
    """Numbers that this process sends to others from now on, small ones of whole numbers left out."""
    sent, real = [0], {}

    def wrap(owner, name, share):
        real[name] = getattr(owner, name)

        def call(*args, **kwargs):
            sent[0] += share(*args)
            return real[name](*args, **kwargs)

        setattr(owner, name, call)

    count = distributed.get_world_size(mixer.group)
    wrap(distributed, "batch_isend_irecv", lambda ops: ops[0].tensor.numel())
    wrap(distributed, "all_gather", lambda _, x: x.numel() * (count - 1) * x.is_floating_point())
    wrap(distributed, "all_to_all_single", lambda _, x: x.numel() * (count - 1) // count)
    wrap(distributed, "all_reduce", lambda x: 2 * x.numel() * (count - 1) // count)

    def stop():
        for name, function in real.items():
            setattr(distributed, name, function)
        return sent[0]

    return stop


def message(call) -> str:
    try:
        call()
    except (ShareError, LookError) as error:
        return str(error)
    return ""


def one_of_four(rank: int, folder: Path) -> None:
    module.ROWS = 5  # blocks that end somewhere within a part
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    pairs = [distributed.new_group([0, 1]), distributed.new_group([2, 3])]
    pair, told = pairs[rank // 2], {}
    for group, count in ((None, 4), (pair, 2)):
        for method in METHODS:
            for causal in (False, True):
                told[count, method, causal] = shared(method, causal, group)
    q, k, v = (share_tokens(noise(f"dist.{name}", 2, 32, 8))[None] for name in "qkv")
    told["golden"] = join_tokens(module._Ring.apply(q, k, v, 8**-0.5, False, None)[0])
    q, k, v = (share_tokens(noise(f"dist.{name}", 2, 32, 8), balanced=True)[None] for name in "qkv")
    told["golden causal"] = join_tokens(module._Ring.apply(q, k, v, 8**-0.5, True, None)[0], balanced=True)
    mixer, uneven = DistributedAttention(8, 4, causal=True), torch.zeros(1, 6 if rank == 2 else 4, 8)
    with observe(mixer):
        look = message(lambda: mixer(uneven))
    told["errors"] = [
        message(lambda: share_tokens(torch.zeros(1, 33, 8))),
        message(lambda: share_tokens(torch.zeros(1, 36, 8), balanced=True)),
        message(lambda: mixer(uneven)),
        message(lambda: join_tokens(uneven)),
        message(lambda: mixer(uneven[:, :3])),
        message(lambda: DistributedAttention(12, 6, "ulysses")),
        message(lambda: DistributedAttention(12, 6, "head_parallel")),
        message(lambda: DistributedAttention(8, 4, group=pairs[1 - rank // 2])(uneven)),
        look,
    ]
    torch.save(told, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """What each of four processes found."""
    folder = tmp_path_factory.mktemp("four")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, __file__, folder], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return [torch.load(folder / f"{rank}.pt") for rank in range(4)]


@pytest.mark.parametrize("method", METHODS)
def test_shared_attention_is_that_of_one_process(four, method):
    """Forward within 1e-12, gradients within 1e-10, and as much is sent as is said."""
    for told in four:
        for count in (2, 4):
            for causal in (False, True):
                found = dict(told[count, method, causal])
                expected = {
                    "ring": 2 * (count - 1),
                    "all_gather": 2 * (count - 1),
                    "ulysses": 4 * (count - 1) / count,
                    "head_parallel": 2 * (count - 1) / count,  # of all tokens, which are count · d
                }
                assert found.pop("sent") == expected[method], (count, causal)
                assert found.pop("out") < 1e-12 and found.pop("joined", 0) < 1e-12
                assert found.keys() >= {"tokens", "qkv.weight", "proj.bias"} and max(found.values()) < 1e-10, found


def test_a_ring_is_the_golden_attention(four):
    with np.load(GOLDEN / "sequence.npz") as file:
        golden = {name: torch.from_numpy(file[f"dist_attn.{name}"]) for name in ("full", "causal")}
    for told in four:
        torch.testing.assert_close(told["golden"], golden["full"], atol=1e-12, rtol=0)
        torch.testing.assert_close(told["golden causal"], golden["causal"], atol=1e-12, rtol=0)


def test_parts_are_merged_as_in_the_golden_numbers():
    with np.load(GOLDEN / "sequence.npz") as file:
        outs, totals, full, lse = (
            torch.from_numpy(file[f"dist_attn.{name}"]) for name in ("part_o", "part_lse", "full", "lse")
        )
    q, k, v = (noise(f"dist.{name}", 2, 32, 8) for name in "qkv")
    out, total = torch.zeros_like(full), torch.full_like(lse, -1e300)
    for i in range(4):
        found = part(q, k[:, 8 * i : 8 * i + 8], v[:, 8 * i : 8 * i + 8], 8**-0.5)
        for ours, theirs in zip(found, (outs[i], totals[i]), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
        out, total = merge(out, total, *found)
    torch.testing.assert_close(out, full, atol=1e-12, rtol=0)
    torch.testing.assert_close(total, lse, atol=1e-12, rtol=0)


def test_what_cannot_be_shared_is_one_line_in_every_process(four):
    for rank, told in enumerate(four):
        assert told["errors"] == [
            "33 tokens do not divide into 4 equal parts",
            "36 tokens do not divide into 8 equal parts",
            "the processes that share a sequence were given tokens of different shapes: "
            "(1, 4, 8), (1, 4, 8), (1, 6, 8), (1, 4, 8)",
            "the processes that share a sequence were given tokens of different shapes: "
            "(1, 4, 8), (1, 4, 8), (1, 6, 8), (1, 4, 8)",
            "3 tokens of a process do not divide into 2 equal parts",
            "6 heads do not divide into 4 equal parts",
            "6 heads do not divide into 4 equal parts",
            "this process is not in the group that shares the attention",
            "attention that processes share cannot be seen or moved: look at it in one process",
        ], rank


@pytest.mark.parametrize("method", METHODS)
def test_one_process_needs_no_group(method):
    torch.manual_seed(0)
    assert not distributed.is_initialized()
    attention, tokens = SelfAttention(DIM, HEADS, scale=0.3).double(), torch.randn(2, 7, DIM, dtype=torch.float64)
    mixer = DistributedAttention.of(attention, method)
    assert torch.equal(share_tokens(tokens), tokens) and torch.equal(join_tokens(tokens), tokens)
    torch.testing.assert_close(mixer(tokens), attention(tokens), atol=1e-12, rtol=0)
    causal = DistributedAttention.of(attention, method, causal=True)
    with observe(causal) as seen:
        causal(tokens)
    assert torch.equal(seen["attend"].attn, seen["attend"].attn.tril())
    with pytest.raises(ValueError, match="method must be ring, all_gather, ulysses, head_parallel, not 'star'"):
        DistributedAttention(8, 2, "star")


if __name__ == "__main__":
    torch.set_num_threads(1)
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            one_of_four(number, Path(sys.argv[1]))
            os._exit(0)
        children.append(child)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
