"""What mixers of long sequences cost from 1,024 to 65,536 tokens, beside fused causal attention, in one run.

    OMP_NUM_THREADS=1 python benchmarks/sequences.py --rounds 3

Every round runs each mixer once, in turn, so that a slow moment of the machine meets all of them. Printed are the
processor's seconds of a forward pass, medians over rounds, projections included; the most memory that torch's profiler
saw allocated at once beside tokens and parameters, forward and with the backward pass; and the exponents with which
they grow, fitted by least squares to the logarithms, over all lengths and over the last half of them. Tokens and
weights are random.
"""

import argparse
import math
import statistics
import time
from functools import partial

import torch

from mien.networks.cost import peak_bytes
from mien.nn import DistributedAttention, LinearAttention, Superlinear

MIXERS = {
    "fused causal attention": lambda dim, heads: DistributedAttention(dim, heads, causal=True),  # in one process
    "Superlinear": Superlinear,
    "LinearAttention, delta": LinearAttention,
    "LinearAttention, hebb": lambda dim, heads: LinearAttention(dim, heads, "hebb"),
}

WARM = 4096  # tokens up to which the first round is not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--least", type=int, default=1024, help="tokens")
    parser.add_argument("--longest", type=int, default=65536, help="tokens")
    parser.add_argument("--training", type=int, default=16384, help="tokens up to which a backward pass is measured")
    parser.add_argument("--only", choices=("seconds", "forward", "training"), help="one of the three tables")
    args = parser.parse_args()
    torch.manual_seed(0)
    mixers = {name: make(args.dim, args.heads) for name, make in MIXERS.items()}
    lengths = [args.least * 2**i for i in range(int(math.log2(args.longest / args.least)) + 1)]
    print(f"{args.dim} wide, heads: {args.heads}, fp32, torch {torch.__version__}, threads: {torch.get_num_threads()},")
    print(f"medians of {args.rounds} rounds; in brackets the ratio to fused causal attention\n", flush=True)
    if args.only in (None, "seconds"):
        seconds = timed(mixers, lengths, args.dim, args.rounds)
        dense = seconds["fused causal attention"]
        show("seconds, forward", seconds, dense)
        for name, each in seconds.items():
            if each is not dense:
                print(f"{name}: {crossing(each, dense)}", flush=True)
        print()
    for kind, run, most in (("forward", forward, args.longest), ("training", training, args.training)):
        if args.only in (None, kind):
            found = {name: {} for name in mixers}
            for n in (n for n in lengths if n <= most):
                tokens = torch.randn(1, n, args.dim)
                for name, mixer in mixers.items():
                    found[name][n] = peak_bytes(partial(run, mixer, tokens)) / 1e6
            show(f"MB, {kind}", found, found["fused causal attention"])


def timed(mixers: dict[str, torch.nn.Module], lengths: list[int], dim: int, rounds: int) -> dict[str, dict[int, float]]:
    """Seconds of each mixer at each length, all of them in turn in every round."""
    seconds = {name: {} for name in mixers}
    for n in lengths:
        tokens, runs = torch.randn(1, n, dim), {name: [] for name in mixers}
        for turn in range(rounds + (n <= WARM)):
            for name, mixer in mixers.items():
                begin = time.process_time()
                forward(mixer, tokens)
                if turn or n > WARM:
                    runs[name].append(time.process_time() - begin)
        for name in mixers:
            seconds[name][n] = statistics.median(runs[name])
    return seconds


def forward(mixer: torch.nn.Module, tokens: torch.Tensor) -> None:
    with torch.no_grad():
        mixer(tokens)


def training(mixer: torch.nn.Module, tokens: torch.Tensor) -> None:
    mixer.zero_grad()
    mixer(tokens.requires_grad_()).sum().backward()
    tokens.grad = None


def show(title: str, found: dict[str, dict[int, float]], dense: dict[int, float]) -> None:
    lengths = list(dense)
    late = lengths[min(len(lengths) // 2, len(lengths) - 2) :]
    print(f"| {title} | {' | '.join(f'{n:,}' for n in lengths)} | exponent | from {late[0]:,} |")
    print("|---" * (len(lengths) + 3) + "|")
    for name, each in found.items():
        cells = [f"{x:.3g}" + ("" if each is dense else f" ({x / dense[n]:.2f})") for n, x in each.items()]
        slopes = [f"{slope({n: each[n] for n in some}):.2f}" for some in (lengths, late)]
        print(f"| {name} | {' | '.join(cells + slopes)} |")
    print(flush=True)


def slope(found: dict[int, float]) -> float:
    x, y = ([math.log(value) for value in values] for values in (found, found.values()))
    return statistics.linear_regression(x, y).slope


def crossing(each: dict[int, float], dense: dict[int, float]) -> str:
    """From which length on it is cheaper, between two of those measured by a straight line of logarithms."""
    ratio = {n: math.log(each[n] / dense[n]) for n in dense}
    lengths = list(ratio)
    if ratio[lengths[-1]] >= 0:
        return f"not cheaper up to {lengths[-1]:,} tokens"
    last = max((i for i, n in enumerate(lengths) if ratio[n] >= 0), default=None)
    if last is None:
        return f"cheaper from {lengths[0]:,} tokens on, the shortest that was measured"
    a, b = lengths[last : last + 2]
    return f"cheaper from about {a * 2 ** (ratio[a] / (ratio[a] - ratio[b])):,.0f} tokens on"


if __name__ == "__main__":
    main()
