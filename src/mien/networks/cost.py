"""What a mixer or a network costs: parameters, multiplications, processor time and memory, side by side in one run."""

import inspect
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mien.files import silence
from mien.nn.base import Grid, MakeMixer

MEASURES = ("parameters", "macs", "forward_ms", "training_ms", "forward_mb", "training_mb")
"""Of one grid; `training` is a forward and a backward pass, in train mode."""


def fourier(shape: Sequence[int], axes: Sequence[int], *_, out_shape: Sequence[int], real: bool = True, **__) -> int:
    """Operations of a Fourier transform, `5 n log2 n` for n complex numbers and half of them for real ones."""
    whole = max(math.prod(shape), math.prod(out_shape)) if real else math.prod(shape)
    return round((2.5 if real else 5) * whole * math.log2(max(2, math.prod(max(shape[a], out_shape[a]) for a in axes))))


def product(a: Any, b: Any, *_, out_shape: Sequence[int], **__) -> int:
    """Operations of a product number by number; that with a constant, such as the scale of scores, is none."""
    return 2 * math.prod(out_shape) if isinstance(a, Sequence) and isinstance(b, Sequence) else 0


def attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *_, **__) -> int:
    """Operations of fused attention: those of its two products of matrices."""
    return 2 * math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1])


ALSO_COUNTED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention,
    torch.ops.aten._fft_r2c: fourier,
    torch.ops.aten._fft_c2r: fourier,
    torch.ops.aten._fft_c2c: lambda *a, **options: fourier(*a, real=False, **options),
    torch.ops.aten.mul: product,
}


def macs(module: nn.Module, *inputs: Any) -> int:
    """Multiplications of a forward pass in eval mode, each with its addition: half of what torch's counter counts.

    Counted are products of matrices, those of attention among them, convolutions, products of two tensors number by
    number (as one where numbers are complex) and Fourier transforms (half of `5 n log2 n`); not norms and softmax.
    """
    learned = [p for p in module.parameters() if p.requires_grad]
    module.eval().requires_grad_(False)  # under no_grad the counter fails where a parameter is an argument of a part
    try:
        with FlopCounterMode(display=False, custom_mapping=ALSO_COUNTED) as counter:
            module(*inputs)
    finally:
        for parameter in learned:
            parameter.requires_grad_()
    return counter.get_total_flops() // 2


def peak_bytes(run: Callable[[], object]) -> int:
    """The most that `run` has in memory at once beside what was there, of all that torch's allocator gives out.

    As torch's profiler saw it: every allocation and every release on the CPU, in order.
    """
    options = {"activities": [torch.profiler.ProfilerActivity.CPU], "profile_memory": True}
    with silence(), torch.profiler.profile(**options) as profiler:  # its C++ writes to stderr
        run()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_bytes())["traceEvents"] if event.get("name") == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        live += event["args"]["Bytes"]
        peak = max(peak, live)
    return peak


def passes(module: nn.Module, tokens: Tensor, grid: Grid) -> dict[str, Callable[[], None]]:
    """A forward pass in eval mode, and one with its backward pass in train mode, with whatever loss the mixer adds."""

    def forward() -> None:
        module.eval()
        with torch.no_grad():
            module(tokens, grid)

    def training() -> None:
        module.train().zero_grad()
        loss = module(tokens.requires_grad_(), grid).sum()
        loss = loss if getattr(module, "aux_loss", None) is None else loss + module.aux_loss
        loss.backward()
        tokens.grad = None

    return {"forward": forward, "training": training}


def milliseconds(run: Callable[[], object], calls: int) -> float:
    """Processor time of a call, over all threads."""
    before = time.process_time()
    for _ in range(calls):
        run()
    return (time.process_time() - before) / calls * 1e3


def fitted(make: MakeMixer, grid: Grid) -> MakeMixer:
    """The same maker, given the size of a grid without a prefix, where a mixer is made for one size."""
    tokens = grid[0] * grid[1]
    sizes = {"num_tokens": tokens, "num_prefix": 0, "max_length": tokens, "grid": grid}
    takes = inspect.signature(make).parameters
    return partial(make, **{name: size for name, size in sizes.items() if name in takes})


def compare(
    makers: Mapping[str, MakeMixer],
    grids: Sequence[Grid],
    dim: int,
    num_heads: int,
    batch: int,
    rounds: int,
    most_gb: float = 4.0,
) -> dict[str, dict[str, Any]]:
    """What each mixer costs on each grid: by name `grids` ("14,14": its measures) and `slopes`.

    A measure is `{"value", "ratio"}`, the ratio being that to the first mixer. Every round times each of them once, in
    turn, so that a slow moment meets all of them; times and their ratios are medians over the rounds. A slope is the
    exponent with which a measure grows with the tokens, from the grid of the fewest to that of the most. Parameters are
    those of a mixer made for the grid, MACs those of one face, everything else is that of the batch. Skipped is what
    would take more than `most_gb`, were its memory to grow with N² from the grid before.
    """
    costs: dict[str, dict[str, Any]] = {name: {"grids": {}, "slopes": {}} for name in makers}
    before: dict[str, tuple[int, float]] = {}  # tokens, and bytes in training
    first = next(iter(makers))
    for grid in sorted(grids, key=math.prod):
        torch.manual_seed(0)
        size, found = math.prod(grid), {}
        runs: dict[str, dict[str, Callable[[], None]]] = {}
        for name, make in makers.items():
            tokens, peak = before.get(name, (1, 0.0))
            if name != first and peak * (size / tokens) ** 2 > most_gb * 1e9:
                continue
            module = fitted(make, grid)(dim, num_heads)
            runs[name] = passes(module, torch.randn(batch, size, dim), grid)
            parameters = sum(p.numel() for p in module.parameters())
            found[name] = {"parameters": parameters, "macs": macs(module, torch.randn(1, size, dim), grid)}
            found[name] |= {f"{what}_mb": peak_bytes(run) / 1e6 for what, run in runs[name].items()}
            before[name] = size, found[name]["training_mb"] * 1e6
        for name, measures in timed(found, runs, rounds).items():
            costs[name]["grids"][f"{grid[0]},{grid[1]}"] = {"tokens": size, **measures}
    for mixer in costs.values():
        ends = list(mixer["grids"].values())
        if len(ends) > 1 and ends[0]["tokens"] < ends[-1]["tokens"]:
            mixer["slopes"] = {measure: slope(ends[0], ends[-1], measure) for measure in MEASURES}
    return costs


def timed(
    found: Mapping[str, dict[str, float]], runs: Mapping[str, Mapping[str, Callable[[], object]]], rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """`{"value", "ratio"}` of every measure by name: those that were found, and the times of the runs."""
    times = side_by_side({(name, what): run for name in runs for what, run in runs[name].items()}, rounds)
    first = next(iter(found))
    for name, measures in found.items():
        measures |= {f"{what}_ms": statistics.median(times[name, what]) for what in runs[name]}
    return {
        name: {
            measure: {
                "value": value,
                "ratio": statistics.median(a / b for a, b in zip(times[name, what], times[first, what], strict=True))
                if (what := measure.removesuffix("_ms")) != measure
                else value / found[first][measure],
            }
            for measure, value in measures.items()
        }
        for name, measures in found.items()
    }


def compare_networks(
    makers: Mapping[str, Callable[[], nn.Module]], batch: int, rounds: int, most_gb: float = 4.0
) -> dict[str, dict[str, Any]]:
    """What each network costs, by name: `size`, the side of its images in pixels, and its measures, as for `compare`.

    The ratio is that to the first network. MACs are those of one face, times and memory those of the batch; training is
    of all its logits. Skipped, with None for its measures, is what would take more than `most_gb` for its weights,
    their gradients and the optimizer's two moments.
    """
    sizes: dict[str, int | None] = {}
    found: dict[str, dict[str, float]] = {}
    runs: dict[str, dict[str, Callable[[], None]]] = {}
    for name, make in makers.items():
        torch.manual_seed(0)
        network: Any = make()
        parameters = sum(p.numel() for p in network.parameters())
        side = sizes[name] = getattr(network, "img_size", 112)
        if found and 4 * 4 * parameters > most_gb * 1e9:
            continue
        images = network.example(batch) if hasattr(network, "example") else torch.randn(batch, 3, side, side)
        runs[name] = network_passes(network, images)
        found[name] = {"parameters": parameters, "macs": macs(network, images[:1])}
        found[name] |= {f"{what}_mb": peak_bytes(run) / 1e6 for what, run in runs[name].items()}
    costs = timed(found, runs, rounds)
    return {name: {"size": size, **costs.get(name, dict.fromkeys(MEASURES))} for name, size in sizes.items()}


def network_passes(network: Any, images: Tensor) -> dict[str, Callable[[], None]]:
    """A forward pass in eval mode, and one with its backward pass in train mode."""

    def forward() -> None:
        with torch.no_grad():
            network.eval()(images)

    def training() -> None:
        network.train().zero_grad()
        sets = network.training_logits(images) if hasattr(network, "training_logits") else {"logits": network(images)}
        torch.stack([logits.sum() for logits in sets.values()]).sum().backward()
        network.zero_grad()

    return {"forward": forward, "training": training}


def side_by_side(runs: Mapping[Any, Callable[[], object]], rounds: int) -> dict[Any, list[float]]:
    """Milliseconds of each, once a round; a measurement is of as many calls as fill a fiftieth of a second."""
    calls = {key: max(1, min(100, int(20 / max(1e-3, milliseconds(run, 1))))) for key, run in runs.items()}
    times: dict[Any, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            times[key].append(milliseconds(run, calls[key]))
    return times


def slope(small: dict[str, Any], large: dict[str, Any], measure: str) -> float:
    """b in `measure ~ tokensᵇ`."""
    values = [max(1e-9, grid[measure]["value"]) for grid in (small, large)]
    return math.log(values[1] / values[0]) / math.log(large["tokens"] / small["tokens"])
