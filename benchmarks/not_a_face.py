"""An output that says how likely a crop is no face: learned behind a network at rest, and judged.

    python benchmarks/not_a_face.py MODEL --data PARQUET --without-people FOLDER [--out FOLDER] [--faces 1500]

MODEL is a folder with model.onnx and model.safetensors. PARQUET is FER2013 with FER+'s votes, FOLDER pictures that show
nobody. A linear layer on the network's features learns, by logistic regression with both classes weighing the same, to
tell faces from what is none; the network itself stays as it is, and so does what it says of expressions.

What is no face: whatever the detector finds, from a score of 0.2 up and in all four turns, in the pictures without
people and in copies of them; squares cut out of them at random; and faces of FER+ that two of ten voters or more called
none. Every second picture without people is for learning, and of the others every second one is in either half of the
judges. Faces: FER2013's training faces for learning, its validation faces by the parity of `fer_row` for the judges, as
they are and found and aligned. One half chooses the cut, above which at most 1 % of its faces lie; the other says how
many of its faces are lost at that, and how much else is left out; then the halves change places. Intervals are of 2,000
resamples, of pictures and of faces.

--out writes model.safetensors with the output `not_a_face` beside the expression, whose answers stay the same:
`mien export` makes the rest of it.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import pyarrow.parquet
import torch

from mien.checkpoint import read_header
from mien.engines import open_model
from mien.errors import MienError
from mien.faces import YuNet, crop, find_faces, find_known, find_pictures, open_picture
from mien.faces.search import turn_image
from mien.networks import load_network, save_network
from mien.outputs import Output

NAME = "not_a_face"
LOST = 0.01
"""The share of the faces of the half that chooses that may lie above its cut."""

SQUARES = 16  # cut out of a picture at random
SCALES = (1.0, 0.5)
TURNS = (0, 90, 180, 270)
KINDS = ("faces as they are", "faces found and aligned", "found where nobody is", "squares", "called none")


def nobody(folder: str, preprocess: dict) -> Iterator[tuple[int, int, np.ndarray]]:
    """The number of a picture, the kind and the crop, of what is no face."""
    eager, rng = YuNet(threshold=0.2), np.random.default_rng(0)
    for number, path in enumerate(sorted(find_pictures(folder))):
        image = open_picture(path)
        for scale in SCALES:
            height, width = (max(32, round(side * scale)) for side in image.shape[:2])
            if max(height, width) > 1600:
                continue
            sized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
            for degrees in TURNS:
                turned = np.ascontiguousarray(turn_image(sized, degrees))
                for face in find_faces(eager, turned, turn=False, confirm=False):
                    yield number, 2, crop(turned, preprocess, face.landmarks, face.box)
        least = min(image.shape[:2])
        for _ in range(SQUARES):
            side = round(np.exp(rng.uniform(np.log(min(48, least)), np.log(least))))
            y, x = rng.integers(0, image.shape[0] - side + 1), rng.integers(0, image.shape[1] - side + 1)
            yield number, 3, crop(np.ascontiguousarray(image[y : y + side, x : x + side]), preprocess)


def faces(table: list[dict], count: int, preprocess: dict) -> Iterator[tuple[int, int, np.ndarray]]:
    """The number of a row, the kind and the crop, of `count` faces that nobody called none, a third of them found."""
    yunet = YuNet()
    called = [
        row for row in table if row["not_a_face"] == 0 and row["unknown"] < 5 and not row["duplicate_of_validation"]
    ]
    for i, k in enumerate(np.random.default_rng(0).permutation(len(called))[:count]):
        image = open_picture(called[k]["image"])
        yield called[k]["fer_row"], 0, crop(image, preprocess)
        if i % 3 == 0 and (found := find_known(yunet, image)):
            yield called[k]["fer_row"], 1, crop(image, preprocess, found[0].landmarks, found[0].box)


def features(path: Path, crops: list[np.ndarray]) -> np.ndarray:
    """(N, D): what the expression's linear layer reads."""
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "Gemm" and "logits" in node.output)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None))
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(model, cut := Path(folder, "features.onnx"))
        engine = open_model(cut, precision="fp32", cache=False)
    return np.concatenate([next(iter(engine(np.stack(crops[i : i + 32])).values())) for i in range(0, len(crops), 32)])


def fit(x: np.ndarray, y: np.ndarray, decay: float = 1e-2) -> tuple[np.ndarray, float]:
    """w (D,) and b of σ(w·x + b), both classes of y weighing the same, w of standardized features decayed."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    inputs, target = torch.from_numpy((x - mean) / std).double(), torch.from_numpy(y).double()
    weight = torch.where(target > 0, 0.5 / target.sum(), 0.5 / (1 - target).sum())
    w, b = (
        torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True),
        torch.zeros(1, dtype=torch.float64, requires_grad=True),
    )
    optimizer = torch.optim.LBFGS([w, b], max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        found = torch.nn.functional.binary_cross_entropy_with_logits(inputs @ w + b, target, weight, reduction="sum")
        (total := found + decay * (w**2).sum() / 2).backward()
        return total

    optimizer.step(loss)
    scaled = w.detach().numpy() / std
    return scaled, float(b.detach()) - float(scaled @ mean)


def auroc(scores: np.ndarray, y: np.ndarray, weight: np.ndarray | None = None) -> float:
    """The chance that one of y = 1 scores higher than one of y = 0, ties half; weight: how often each counts."""
    weight = np.ones(len(y)) if weight is None else weight
    order = np.argsort(scores, kind="stable")
    values, inverse = np.unique(scores[order], return_inverse=True)
    ups, downs = (np.bincount(inverse, (weight * side)[order], len(values)) for side in (y, 1 - y))
    pairs = ups.sum() * downs.sum()
    return float((ups * (downs.cumsum() - downs / 2)).sum() / pairs) if pairs else np.nan


def resampled(groups: np.ndarray, statistic, draws: int = 2000) -> tuple[float, float]:
    """95 % of a statistic of how often each crop counts, where groups (pictures, rows) are drawn anew."""
    names, inverse = np.unique(groups, return_inverse=True)
    rng = np.random.default_rng(0)
    found = [statistic(rng.multinomial(len(names), np.ones(len(names)) / len(names))[inverse]) for _ in range(draws)]
    low, high = np.nanquantile(found, (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learn and judge the output not_a_face.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--without-people", required=True)
    parser.add_argument("--faces", type=int, default=1500, help="of either split")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    header = read_header(args.model / "model.safetensors")
    preprocess = header["preprocess"]
    table = pyarrow.parquet.read_table(args.data).to_pylist()
    made = []  # part (0 learns, 1 and 2 judge), group, kind, crop
    for number, kind, shown in nobody(args.without_people, preprocess):
        made.append(((0, 1, 0, 2)[number % 4], f"picture {number}", kind, shown))
    for split in ("train", "validation"):
        rows = [row for row in table if row["split"] == split]
        called = [
            (row["fer_row"], 4, crop(open_picture(row["image"]), preprocess)) for row in rows if row["not_a_face"] > 1
        ]
        for number, kind, shown in (*called, *faces(rows, args.faces, preprocess)):
            made.append((0 if split == "train" else 1 + number % 2, f"row {number}", kind, shown))
    part, group, kind = (np.array([one[i] for one in made]) for i in range(3))
    x = features(args.model / "model.onnx", [one[3] for one in made])
    y = (kind > 1).astype(np.float64)
    w, b = fit(x[part == 0], y[part == 0])
    scores = 1 / (1 + np.exp(-(x @ w + b)))
    report(part, group, kind, y, scores)
    if args.out:
        write(args.model / "model.safetensors", args.out / "model.safetensors", w, b)


def report(part: np.ndarray, group: np.ndarray, kind: np.ndarray, y: np.ndarray, scores: np.ndarray) -> None:
    print("| n | learning | even half | odd half |\n|---|---:|---:|---:|")
    for k, name in enumerate(KINDS):
        print(f"| {name} | " + " | ".join(f"{((kind == k) & (part == p)).sum():,}" for p in range(3)) + " |")
    judged = part > 0
    for name, chosen in (("all", judged), ("found by the detector", judged & np.isin(kind, (1, 2)))):
        s, t, g = scores[chosen], y[chosen], group[chosen]
        low, high = resampled(g, lambda times, s=s, t=t: auroc(s, t, times))
        print(f"AUROC, {name}: {auroc(s, t):.4f} (95 % {low:.4f} to {high:.4f})")
    cuts = {p: float(np.quantile(scores[(part == p) & (y == 0)], 1 - LOST)) for p in (1, 2)}
    over = np.where(part == 1, scores > cuts[2], scores > cuts[1])  # each half by the cut of the other
    half = scores > 0.5
    print(f"cuts: {cuts[1]:.3f} of the even half, {cuts[2]:.3f} of the odd half")
    print("| | n | above the other half's cut (95 %) | above 0.5 |\n|---|---:|---:|---:|")
    for k, name in enumerate(KINDS):
        if (mine := judged & (kind == k)).any():
            low, high = resampled(
                group[mine], lambda times, o=over[mine]: float((o * times).sum() / max(times.sum(), 1))
            )
            shares = f"{over[mine].mean():.3f} ({low:.3f} to {high:.3f}) | {half[mine].mean():.3f}"
            print(f"| {name} | {mine.sum():,} | {shares} |")


def write(source: Path, out: Path, w: np.ndarray, b: float) -> None:
    """The checkpoint with the head beside its own."""
    header, network = read_header(source), load_network(source)
    output = Output(NAME, "binary", (NAME,))
    if NAME in network.head_names:
        raise MienError(f"{source}: has an output {NAME} already")
    network.add_heads([output])
    with torch.no_grad():
        network.heads[NAME].weight.copy_(torch.from_numpy(w)[None])
        network.heads[NAME].bias.fill_(b)
    out.parent.mkdir(parents=True, exist_ok=True)
    header["outputs"] = [*header.get("outputs", []), output.to_json()]
    save_network(out, network, header, torch.float16)


if __name__ == "__main__":
    main()
