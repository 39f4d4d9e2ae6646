"""How long a face takes: networks, engines, detector and the whole way, side by side in one run.

    python benchmarks/speed.py [--rounds 7] [--only mobilefacenet_ferplus …]

The models that come with mien are timed as they are; POSTER++ and BTN at their published size are untrained, which does
not matter for time. bf16 is left out where the processor does not compute in it, int8 where a model has no such file.

Every round times each case once, in turn, so that a slow moment of the machine meets all of them. Printed are medians:
milliseconds a face on the clock and of processor time, and processor time as a ratio to the first row of the table.
"""

import argparse
import copy
import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mien import Reader
from mien.classifier import MODELS, Classifier, find_checkpoint
from mien.engines import computes_bf16, open_model
from mien.export import export_onnx
from mien.faces.detect import YuNet
from mien.faces.picture import open_picture
from mien.networks import Deployed, btn, load_network, poster
from mien.networks.deploy import to_float

EXAMPLES = Path(__file__).parent.parent / "examples"
PREPROCESS = {
    "align": "none",
    "resize": [{"size": 112, "interpolation": "auto"}],
    "input_size": 112,
    "color": "rgb",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}

NETWORKS: dict[str, Callable[[], torch.nn.Module]] = {
    "mobilefacenet_ferplus": lambda: load_network(find_checkpoint("mobilefacenet_ferplus")),
    "btn_mobile_ferplus": lambda: load_network(find_checkpoint("btn_mobile_ferplus")),
    "btn": partial(btn, num_classes=8),
    "poster": partial(poster, num_classes=8),
}

Cases = dict[str, tuple[Callable[[], object], int]]  # what to time, and how many faces it answers for


def network_cases(name: str, network: torch.nn.Module, batch: int, folder: Path) -> Cases:
    """One network in torch (eager, channels last, bf16) and in OpenVINO (fp32, bf16, int8)."""
    faces = np.random.default_rng(0).integers(0, 255, (batch, 112, 112, 3), dtype=np.uint8)
    tensor = torch.from_numpy(faces)
    plain = Deployed(copy.deepcopy(network), PREPROCESS).to(memory_format=torch.contiguous_format).eval()
    last = Deployed(network, PREPROCESS).to(memory_format=torch.channels_last).eval()

    def eager() -> None:
        with torch.inference_mode():
            plain.network(plain.normalize(to_float(tensor).contiguous()))

    def channels_last() -> None:
        with torch.inference_mode():
            last(tensor)

    def bf16() -> None:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            last(tensor)

    cases: Cases = {"torch, eager": (eager, batch), "torch, channels last": (channels_last, batch)}
    if computes_bf16():
        cases["torch, bf16"] = (bf16, batch)
    for precision in ("fp32", *(["bf16"] if computes_bf16() else []), "int8"):
        if (MODELS / name).is_dir():
            if precision == "int8" and not (MODELS / name / "model.int8.onnx").exists():
                continue
            engine = Classifier.from_pretrained(name, precision=precision).engine
        elif precision == "int8":
            continue
        else:
            engine = open_model(exported(name, network, folder), precision=precision, cache=False)
        cases[f"OpenVINO, {precision}"] = (lambda engine=engine: engine(faces), batch)
    return cases


def exported(name: str, network: torch.nn.Module, folder: Path) -> Path:
    path = folder / f"{name}.onnx"
    if not path.exists():
        header = {
            "mien": 1,
            "model": {"class_path": f"mien.networks.{name}", "init_args": {}},
            "id2label": {str(i): str(i) for i in range(8)},
            "preprocess": PREPROCESS,
        }
        export_onnx(path, network, header)
    return path


def photograph(size: tuple[int, int], folder: Path) -> Path:
    """A photograph with one face, of width and height `size`."""
    path = folder / f"{size[0]}x{size[1]}.jpg"
    Image.open(EXAMPLES / "astronaut.png").convert("RGB").resize(size).save(path, quality=92)
    return path


def detector_cases(folder: Path) -> Cases:
    cases: Cases = {}
    for side in (320, 640):
        image = open_picture(photograph((side, side * 3 // 4), folder))
        detector = YuNet()
        cases[f"detector, {side} px"] = (lambda detector=detector, image=image: detector(image), 1)
    return cases


def pipeline_cases(folder: Path) -> Cases:
    path = photograph((640, 480), folder)
    reader = Reader.from_pretrained()
    return {
        "decode alone, 640×480 JPEG": (lambda: open_picture(path), 1),
        "photograph to answer, 640×480, one face": (lambda: reader(path), 1),
    }


def time_cases(title: str, cases: Cases, rounds: int) -> None:
    for run, _ in cases.values():
        run()
    walls: dict[str, list[float]] = {name: [] for name in cases}
    cpus: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, (run, faces) in cases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            walls[name].append((time.perf_counter() - wall) / faces * 1e3)
            cpus[name].append((time.process_time() - cpu) / faces * 1e3)
    first = next(iter(cases))
    print(f"\n| {title} | ms, clock | ms, CPU | CPU, ratio |\n|---|---:|---:|---:|")
    for name in cases:
        ratio = statistics.median(a / b for a, b in zip(cpus[name], cpus[first], strict=True))
        print(f"| {name} | {statistics.median(walls[name]):.1f} | {statistics.median(cpus[name]):.1f} | {ratio:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="Time mien, side by side.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=[*NETWORKS, "detector", "pipeline"])
    args = parser.parse_args()
    torch.manual_seed(0)
    threads = f"torch {torch.__version__} on {torch.get_num_threads()} threads"
    print(f"{datetime.date.today()}: {os.cpu_count()} cores, {threads}, medians of {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for network_name, make in NETWORKS.items():
            if args.only and network_name not in args.only:
                continue
            network = make().eval()
            for batch in (1, 32):
                cases = network_cases(network_name, network, batch, folder)
                time_cases(f"{network_name}, batch {batch}: a face", cases, args.rounds)
        for title, make_cases in (("detector: a picture", detector_cases), ("all of it: a picture", pipeline_cases)):
            if not args.only or title.partition(":")[0].replace("all of it", "pipeline") in args.only:
                time_cases(title, make_cases(folder), args.rounds)


if __name__ == "__main__":
    main()
