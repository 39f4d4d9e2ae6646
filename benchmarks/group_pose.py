"""Group Pose trained on made scenes, and its boxes and landmarks beside YuNet's on scenes held out.

    mien convert mobilefacenet mobilefacenet.pt weights/mobilefacenet.safetensors
    python benchmarks/group_pose.py train DATA LANDMARKS weights/mobilefacenet.safetensors OUT [--minutes 4] [--seed 0]
    python benchmarks/group_pose.py judge DATA OUT [--scenes 200] [--every 10]

A scene is 128×128 pixels: a texture made by code (noise of several scales, stripes, discs; no picture of anybody) and
one to five faces of FER2013+ (DATA, its parquet file), 28 to 64 pixels wide, tinted, turned up to 20°, with soft
elliptic edges. LANDMARKS is a recipe's `landmarks_cache`, made where there is none: YuNet's on the whole 48×48 face, so
the truth is YuNet's own, on a face without a scene around it, and favours it. A box is a square around the five
points, 2.2 times as wide as they spread. Held-out scenes are of faces of the validation split.

`judge` prints, for both: the share of faces found (a point mean within half the box of the truth's, each once), false
alarms a scene, and the mean error of the five points of faces that both found, as a fraction of the distance of the
eyes, with 95 % intervals over scenes (1,000 bootstrap draws).
"""

import argparse
import json
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mien.data import FERPlus
from mien.faces import YuNet
from mien.networks import GroupPose
from mien.networks.checkpoint import load_tensors
from mien.networks.group_pose import normalized
from mien.training.landmarks import find_landmarks

SIDE = 128
FROZEN = ("image.stem", "image.stem_dw", "image.stages.0")


def texture(draw: np.random.Generator) -> np.ndarray:
    """(128, 128, 3) float32 in [0, 255], without a face."""
    field = np.zeros((SIDE, SIDE, 3), np.float32)
    for cells in (2, 4, 8, 16, 32, 64):
        small = draw.normal(size=(cells, cells, 3)).astype(np.float32) * draw.uniform(0, 60) / math.sqrt(cells)
        field += cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:SIDE, :SIDE]
    if draw.random() < 0.4:
        angle, wave = draw.uniform(0, math.pi), draw.uniform(4, 30)
        stripes = np.sin(2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / wave)
        field += (draw.uniform(5, 40) * stripes)[..., None].astype(np.float32)
    canvas = np.clip(field + draw.uniform(40, 200, 3), 0, 255).astype(np.float32)
    for _ in range(draw.integers(0, 7)):  # as round and as dark as faces, and none
        middle, axes = draw.integers(0, SIDE, 2).tolist(), draw.integers(3, 36, 2).tolist()
        colour, turn = draw.uniform(0, 255, 3).tolist(), float(draw.uniform(0, 180))
        cv2.ellipse(canvas, middle, axes, turn, 0, 360, colour, -1 if draw.random() < 0.7 else 3)
    return canvas


def scene(faces: list[np.ndarray], landmarks: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Pixels (128, 128, 3) uint8, boxes (F, 4) as middle and sides, and points (F, 5, 2), both in pixels."""
    canvas, boxes, points = texture(draw), [], []
    places: list[np.ndarray] = []
    for _ in range(draw.integers(1, 6)):
        which, width = int(draw.integers(len(faces))), draw.uniform(28, 64)
        middle = draw.uniform(width / 2, SIDE - width / 2, 2)
        if any(np.abs(middle - other[:2]).max() < (width + other[2]) / 2 for other in places):
            continue
        places.append(np.array([*middle, width]))
        turn, scale = math.radians(draw.uniform(-20, 20)), width / 48
        linear = scale * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
        marks, face = landmarks[which].astype(np.float64), faces[which]
        if draw.random() < 0.5:
            face, marks = face[:, ::-1], (marks * (-1, 1) + (47, 0))[[1, 0, 2, 4, 3]]
        matrix = np.column_stack([linear, middle - linear @ (23.5, 23.5)])
        tint = draw.uniform(0.75, 1.1, 3)
        grey = cv2.warpAffine(np.ascontiguousarray(face), matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR)
        mask = np.zeros((48, 48), np.float32)
        cv2.ellipse(mask, (24, 24), (21, 23), 0, 0, 360, 1.0, -1)
        soft = cv2.warpAffine(cv2.GaussianBlur(mask, (0, 0), 2), matrix, (SIDE, SIDE))[..., None]
        canvas = canvas * (1 - soft) + soft * np.clip(grey[..., None] * tint, 0, 255)
        moved = marks @ matrix[:, :2].T + matrix[:, 2]
        size = 2.2 * (moved.max(0) - moved.min(0)).max()
        boxes.append([*moved.mean(0), size, size])
        points.append(moved)
    noisy = np.clip(canvas + draw.normal(0, draw.uniform(0, 6), canvas.shape), 0, 255).astype(np.uint8)
    return noisy, np.array(boxes, np.float32).reshape(-1, 4), np.array(points, np.float32).reshape(-1, 5, 2)


def with_landmarks(rows: list, landmarks: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    known = np.isfinite(landmarks).all((1, 2))
    return [row.image()[..., 0] for row, keep in zip(rows, known, strict=True) if keep], landmarks[known]


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rows = FERPlus(args.data).rows("train")
    faces, landmarks = with_landmarks(rows, find_landmarks(rows, args.landmarks))
    network, draw = GroupPose().train(), np.random.default_rng(args.seed)
    network.image.load_state_dict(network.image.fit(load_tensors(args.trunk)))
    for name, p in network.named_parameters():
        p.requires_grad_(not name.startswith(FROZEN))
    groups = {True: [], False: []}
    for name, p in network.named_parameters():
        if p.requires_grad:
            groups[name.startswith("image.")].append(p)
    optimizer = torch.optim.AdamW([{"params": groups[True], "share": 0.3}, {"params": groups[False], "share": 1.0}])
    begin, seen, limit = time.process_time(), 0, 60 * args.minutes
    while (done := (time.process_time() - begin) / limit) < 1:
        for part in FROZEN:
            network.get_submodule(part).eval()
        made = [scene(faces, landmarks, draw) for _ in range(8)]
        pixels = torch.from_numpy(np.stack([each[0] for each in made])).permute(0, 3, 1, 2).float() / 255
        boxes, points = ([torch.from_numpy(each[i] / SIDE) for each in made] for i in (1, 2))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * group["share"] * min(1, (seen + 8) / 200) * (1 + math.cos(math.pi * done)) / 2
        losses = network.losses(normalized(pixels), boxes, points)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
        seen += 8
        if seen % 200 == 0:
            shown = ", ".join(f"{name} {value:.2f}" for name, value in losses.items())
            print(f"{seen:>6,} scenes, {time.process_time() - begin:4.0f} s: {shown}", flush=True)
            save(network, args.out, seen, time.process_time() - begin, args.seed)
    save(network, args.out, seen, time.process_time() - begin, args.seed)


def save(network: nn.Module, out: Path, seen: int, seconds: float, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), out / "group_pose.safetensors")
    (out / "training.json").write_text(json.dumps({"scenes": seen, "processor_s": round(seconds), "seed": seed}))


def matched(true: np.ndarray, sizes: np.ndarray, found: list[np.ndarray]) -> tuple[np.ndarray, int]:
    """The error of each true face, nan where it was not found, and how many that were found are none."""
    errors, left = np.full(len(true), np.nan), list(found)
    for i, points in enumerate(true):
        far = [np.linalg.norm(each.mean(0) - points.mean(0)) / sizes[i] for each in left]
        if far and min(far) < 0.5:
            own = left.pop(int(np.argmin(far)))
            errors[i] = np.linalg.norm(own - points, axis=1).mean() / np.linalg.norm(points[0] - points[1])
    return errors, len(left)


def judge(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    network = GroupPose()
    network.load_state_dict(load_file(args.run / "group_pose.safetensors"))
    yunet, draw = YuNet(min_face=0), np.random.default_rng(1)
    rows = FERPlus(args.data).rows("validation")[:: max(1, args.every)]
    faces, landmarks = with_landmarks(rows, find_landmarks(rows))
    answered: dict[str, list] = {"GroupPose": [], "YuNet": []}
    for _ in range(args.scenes):
        picture, boxes, points = scene(faces, landmarks, draw)
        answers = {
            "GroupPose": [face.landmarks for face in network.find(picture, args.threshold)],
            "YuNet": [np.asarray(face.landmarks) for face in yunet(picture)],
        }
        for name, answer in answers.items():
            answered[name].append(matched(points, boxes[:, 2], answer))
    resampled = [np.random.default_rng(i).integers(args.scenes, size=args.scenes) for i in range(1000)]
    print(
        f"{args.scenes} scenes of {len(faces)} validation faces; {json.loads((args.run / 'training.json').read_text())}"
    )
    print(
        "| | faces found | false alarms a scene | error of points, by the distance of the eyes |\n|---|---:|---:|---:|"
    )
    for name, answers in answered.items():
        other = answered["YuNet" if name == "GroupPose" else "GroupPose"]
        found = [np.isfinite(errors) for errors, _ in answers]
        both = [
            errors[np.isfinite(errors) & np.isfinite(theirs)]
            for (errors, _), (theirs, _) in zip(answers, other, strict=True)
        ]
        alarms = np.array([count for _, count in answers])

        def with_interval(values: list[np.ndarray]) -> str:
            if not any(map(len, values)):
                return "–"
            draws = [np.concatenate([values[i] for i in chosen]).mean() for chosen in resampled]
            low, high = np.quantile(draws, (0.025, 0.975))
            return f"{np.concatenate(values).mean():.3f} ({low:.3f} to {high:.3f})"

        print(f"| {name} | {with_interval(found)} | {alarms.mean():.3f} | {with_interval(both)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    first = commands.add_parser("train")
    for name, kind in (("data", str), ("landmarks", Path), ("trunk", Path), ("out", Path)):
        first.add_argument(name, type=kind)
    first.add_argument("--minutes", type=float, default=4)
    first.add_argument("--seed", type=int, default=0)
    first.set_defaults(do=train)
    second = commands.add_parser("judge")
    second.add_argument("data")
    second.add_argument("run", type=Path)
    second.add_argument("--scenes", type=int, default=200)
    second.add_argument("--every", type=int, default=10, help="take every so manieth validation face")
    second.add_argument("--threshold", type=float, default=0.3)
    second.set_defaults(do=judge)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
