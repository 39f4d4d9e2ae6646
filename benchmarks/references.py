"""Mechanisms of mien.nn beside the published code that installs: the same sizes, in turn, in one process.

    pip install --no-deps axial_attention halonet_pytorch einops
    python benchmarks/references.py --rounds 9

axial_attention 0.6.1 and halonet_pytorch 0.0.5 take maps (B, D, H, W), ours tokens: neither is timed on the way from
one to the other. Printed are processor milliseconds, medians, one thread, and the median of the ratios of ours to
theirs. The last row has no reference: neighborhood attention beside attention to all tokens, of the same width.
"""

import argparse
import statistics
import time
from functools import partial

import torch
from axial_attention import AxialAttention
from halonet_pytorch import HaloAttention

from mien.nn import Axial, Halo, Neighborhood, SelfAttention

DIM, HEADS, BATCH = 192, 6, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| 14×14 tokens, 192 wide, 8 faces | ours, ms | theirs, ms | ratio | with backward: ours | theirs | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, ours, theirs, on_tokens in (
        ("axial, sum", Axial(DIM, HEADS), AxialAttention(DIM, 2, HEADS, dim_index=1, sum_axial_out=True), False),
        ("axial, sequential", Axial(DIM, HEADS, combine="sequential"),
         AxialAttention(DIM, 2, HEADS, dim_index=1, sum_axial_out=False), False),
        ("halo, block 7, halo 3", Halo(DIM, HEADS), HaloAttention(dim=DIM, block_size=7, halo_size=3,
                                                                 dim_head=DIM // HEADS, heads=HEADS), False),
        ("neighborhood 7×7, beside self-attention", Neighborhood(DIM, HEADS), SelfAttention(DIM, HEADS), True),
    ):  # fmt: skip
        tokens = torch.randn(BATCH, 196, DIM, requires_grad=True)
        maps = torch.randn(BATCH, DIM, 14, 14, requires_grad=True)
        calls = partial(ours, tokens, (14, 14)), partial(theirs, tokens if on_tokens else maps)
        cells = []
        for backward in (False, True):
            times = [[measure(call, backward) for call in calls] for _ in range(args.rounds + 1)]
            a, b = zip(*times[1:], strict=True)
            ratio = statistics.median(x / y for x, y in times[1:])
            cells += [f"{1e3 * statistics.median(a):.1f}", f"{1e3 * statistics.median(b):.1f}", f"{ratio:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def measure(run, backward: bool) -> float:
    begin = time.process_time()
    if backward:
        run().sum().backward()
    else:
        with torch.inference_mode():
            run()
    return time.process_time() - begin


if __name__ == "__main__":
    main()
