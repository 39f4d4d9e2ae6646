"""How many faces a second the Reader classifies, beside eager torch in fp32, in one run.

    python benchmarks/reader.py [--models mobilefacenet_ferplus …] [--faces 256] [--rounds 9] [--batch-size 32]

Eager torch is the model's network alone, from uint8 crops to probabilities in batches, on as many threads as there are
cores; the Reader has the same crops as pictures, opens, shrinks and batches them, and gives faces with expressions.
Every round lets each case read all faces once, in turn, so that a slow moment of the machine meets all of them. Printed
are faces a second (the median over rounds), the median of the rounds' ratios to eager torch, on the clock and in
processor time, and a line a model with what the Reader is held to: 1.8 times as many faces a second in fp32, and 3.5
times in bf16 where the CPU has it.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mien import Reader
from mien.checkpoint import read_header
from mien.classifier import Classifier, find_checkpoint
from mien.engines import computes_bf16
from mien.networks import deploy, load_network
from mien.networks.deploy import to_float

HELD_TO = {"fp32": 1.8, "bf16": 3.5}
EAGER = "torch, eager, fp32"


def pictures(count: int, size: int) -> list[np.ndarray]:
    """Faces: cuts of the photograph in examples/, each shifted a little."""
    face = Image.open(Path(__file__).parent.parent / "examples" / "astronaut.png").convert("RGB")
    draw = np.random.default_rng(0)
    corners = draw.integers((150, 40), (190, 80), (count, 2))
    return [np.asarray(face.crop((x, y, x + 130, y + 130)).resize((size, size))) for x, y in corners]


def torch_cases(model: str, crops: np.ndarray, batch_size: int) -> dict[str, Callable[[], object]]:
    """The network in torch, as it is written and with channels last in memory."""
    path = find_checkpoint(model)
    header = read_header(path)

    def case(layout: torch.memory_format) -> Callable[[], object]:
        deployed = deploy(load_network(path), header)
        deployed = deployed.to(memory_format=layout).eval()

        @torch.inference_mode()
        def run() -> None:
            for batch in torch.from_numpy(crops).split(batch_size):
                images = deployed.normalize(to_float(batch).contiguous(memory_format=layout))
                (deployed.network(images) / deployed.temperature).softmax(-1).numpy()

        return run

    return {EAGER: case(torch.contiguous_format), "torch, channels last": case(torch.channels_last)}


def reader_cases(model: str, faces: list[np.ndarray], batch_size: int) -> dict[str, Callable[[], object]]:
    cases = {}
    for precision in ("fp32", *(["bf16"] if computes_bf16() else []), "auto"):
        reader = Reader.from_pretrained(model, aligned=True, precision=precision)
        chosen = f", which is {reader.classifier.engine.precision}" if precision == "auto" else ""
        cases[f"Reader, {precision}{chosen}"] = lambda reader=reader: list(
            reader.read_many(faces, batch_size=batch_size)
        )
    return cases


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the Reader beside eager torch.")
    parser.add_argument("--models", nargs="+", default=["mobilefacenet_ferplus", "btn_mobile_ferplus"])
    parser.add_argument("--faces", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch-size", type=int, default=32)
    args = parser.parse_args()
    threads = f"torch {torch.__version__} on {torch.get_num_threads()} threads"
    print(f"{os.cpu_count()} cores, {threads}, {args.faces} faces, {args.batch_size} at a time, {args.rounds} rounds")
    for model in args.models:
        classifier = Classifier.from_pretrained(model)
        faces = pictures(args.faces, classifier.header["preprocess"]["input_size"])
        crops = np.stack([classifier.crop(face) for face in faces])
        cases = torch_cases(model, crops, args.batch_size) | reader_cases(model, faces, args.batch_size)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for number in range(args.rounds + 1):  # the first does not count
            for name, run in cases.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                took = time.perf_counter() - wall, time.process_time() - cpu
                times[name] += [took] if number else []
        print(f"\n| {model} | faces a second | ratio, clock | ratio, CPU |\n|---|---:|---:|---:|")
        ratios = {}
        for name, found in times.items():
            each = [(a / b, c / d) for (a, c), (b, d) in zip(times[EAGER], found, strict=True)]
            ratios[name], cpu = (statistics.median(column) for column in zip(*each, strict=True))
            speed = args.faces / statistics.median(wall for wall, _ in found)
            print(f"| {name} | {speed:.0f} | {ratios[name]:.2f} | {cpu:.2f} |")
        told = [
            f"{precision} {ratios[name]:.2f}× (held to {least}×: {'yes' if ratios[name] >= least else 'NO'})"
            for precision, least in HELD_TO.items()
            if (name := f"Reader, {precision}") in ratios
        ]
        last = list(ratios)[-1]
        print(f"\n{model}: " + ", ".join([*told, f"{last.removeprefix('Reader, ')}: {ratios[last]:.2f}×"]))


if __name__ == "__main__":
    main()
