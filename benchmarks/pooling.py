"""What attentive pooling saves: APViT with and without it, forward and training step, side by side in one run.

    OMP_WAIT_POLICY=PASSIVE python benchmarks/pooling.py [--rounds 7] [--batch 8] [--train-rounds 5] [--train-batch 8]

Every round runs each setting (patches, rate) once, in turn, on the very same weights and images, so that a slow moment
of the machine meets all of them. Printed are processor time (all threads, the median over rounds) and its ratio to the
unpooled network's in the same round (again the median), beside the ratio of operations that the paper counts. Weights
do not matter for time: they are untrained here. The extractor computes in channels last. OMP_WAIT_POLICY keeps threads
that wait from working, which would be counted. Training holds on to freed memory, as `mien train` does, and with
`--keep-memory` so does the forward pass.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F

from mien.networks import APViT, apvit
from mien.training.run import keep_memory

GFLOPS = {(None, 1.0): 15.3021, (160, 0.9): 12.6665, (80, 0.6): 8.2740}  # fvcore's, held by tests/test_apvit.py


def time_settings(title: str, network: APViT, run: Callable[[], object], rounds: int) -> None:
    cpu: dict[tuple, list[float]] = {setting: [] for setting in GFLOPS}
    clock: dict[tuple, list[float]] = {setting: [] for setting in GFLOPS}
    for turn in range(rounds + 1):  # the first is to get warm
        for setting in GFLOPS:
            network.keep_patches, network.keep_rate = setting
            begin, worked = time.perf_counter(), time.process_time()
            run()
            if turn:
                cpu[setting].append(time.process_time() - worked)
                clock[setting].append(time.perf_counter() - begin)
    whole = (None, 1.0)
    print(f"\n| {title} | s, clock | s, CPU | CPU, ratio | lowest to highest | FLOPs, ratio |")
    print("|---|---:|---:|---:|---:|---:|")
    for setting, flops in GFLOPS.items():
        name = "unpooled" if setting == whole else "{} patches, rate {}".format(*setting)
        ratios = [a / b for a, b in zip(cpu[setting], cpu[whole], strict=True)]
        cells = [f"{statistics.median(clock[setting]):.3f}", f"{statistics.median(cpu[setting]):.3f}"]
        cells += [f"{statistics.median(ratios):.3f}", f"{min(ratios):.3f} to {max(ratios):.3f}"]
        print(f"| {name} | {' | '.join(cells)} | {flops / GFLOPS[whole]:.3f} |", flush=True)


def forward(network: APViT, images: torch.Tensor) -> None:
    with torch.inference_mode():
        network(images)


def training_step(network: APViT, optimizer: torch.optim.Optimizer, images: torch.Tensor, bf16: bool) -> None:
    """Forward, backward and SGD, the gradient clipped as in the recipes."""
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        logits = network.training_logits(images)["logits"]
    F.cross_entropy(logits.float(), torch.arange(len(images)) % logits.shape[1]).backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description="Time attentive pooling, side by side.")
    parser.add_argument("--rounds", type=int, default=7, help="of the forward pass")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--train-rounds", type=int, default=5, help="of the training step; 0: none")
    parser.add_argument("--train-batch", type=int, default=8)
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--keep-memory", action="store_true", help="in the forward pass as well")
    parser.add_argument("--only", choices=("fp32", "bf16"))
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.keep_memory:
        keep_memory()
    torch.manual_seed(0)
    threads = f"torch {torch.__version__} on {torch.get_num_threads()} threads"
    print(f"{os.cpu_count()} cores, {threads}; medians of {args.rounds} rounds, {args.train_rounds} in training")
    network = apvit().to(memory_format=torch.channels_last)
    images = torch.randn(max(args.batch, args.train_batch), 3, 112, 112).contiguous(memory_format=torch.channels_last)
    precisions = {"fp32": torch.float32, "bf16": torch.bfloat16}
    precisions = {name: dtype for name, dtype in precisions.items() if args.only in (None, name)}
    network.eval()
    for name, dtype in precisions.items():
        network.to(dtype)
        run = partial(forward, network, images[: args.batch].to(dtype))
        time_settings(f"forward, {name}, batch {args.batch}", network, run, args.rounds)
    if args.train_rounds:
        keep_memory()
        network.float()
        optimizer = torch.optim.SGD(network.train().parameters(), lr=1e-3, momentum=0.9)
        batch = images[: args.train_batch]
        for name in precisions:
            step = partial(training_step, network, optimizer, batch, name == "bf16")
            autocast = " autocast" * (name == "bf16")
            time_settings(f"training step, {name}{autocast}, batch {len(batch)}", network, step, args.train_rounds)


if __name__ == "__main__":
    main()
