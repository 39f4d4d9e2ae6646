"""OAT on visual search: does it look where a simulated searcher looks, and find what is looked for?

    python benchmarks/search.py --picture docs/search.png

A scene has ten drawn shapes on a grid of 6×8; one of them is what is looked for, of a shape and a colour that none
other has both of. The searcher is a simulation, after the idea of guided search (Wolfe, 1994), and no person: from the
middle it goes to the object that has most of

    0.6 · same colour + 0.4 · same shape - 0.1 · distance in cells + noise (Gumbel, 0.3)

of those that it has not looked at, until it looks at the target. Beside the network stand an order by chance, the
nearest object next, and saliency: the rarest colour and shape first. All three are told when they are at the target;
the network has to end its path itself. A second run of the searcher on the same scenes says what there is to be had.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch

from mien.evaluation.paths import hit_rate, sequence_score
from mien.networks import OAT

ROWS, COLUMNS, COUNT, SIDE = 6, 8, 10, 16
COLOURS = np.array([(220, 50, 40), (50, 170, 70), (60, 90, 220), (230, 190, 40)])
SHAPES = 4  # circle, square, triangle, cross


def crop(shape: int, colour: int, rng: np.random.Generator) -> np.ndarray:
    """A shape (SIDE, SIDE, 3) uint8 on grey, of a size and at a place that are a little by chance."""
    image = np.full((SIDE * 4, SIDE * 4, 3), 128, np.uint8)
    x, y = (32 + rng.uniform(-5, 5, 2)).astype(int)
    r, paint = int(rng.uniform(16, 26)), COLOURS[colour].tolist()
    if shape == 0:
        cv2.circle(image, (int(x), int(y)), r, paint, -1)
    elif shape == 1:
        cv2.rectangle(image, (int(x - r), int(y - r)), (int(x + r), int(y + r)), paint, -1)
    elif shape == 2:
        cv2.fillPoly(image, [np.array([(x, y - r), (x - r, y + r), (x + r, y + r)], np.int32)], paint)
    else:
        cv2.line(image, (int(x - r), int(y)), (int(x + r), int(y)), paint, 12)
        cv2.line(image, (int(x), int(y - r)), (int(x), int(y + r)), paint, 12)
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def make_scene(rng: np.random.Generator) -> dict:
    """Kinds (COUNT, 2) of shape and colour, the target's first; places (COUNT, 2), crops, and a crop of the target."""
    sought = rng.integers(SHAPES), rng.integers(len(COLOURS))
    kinds = [sought]
    while len(kinds) < COUNT:
        kind = rng.integers(SHAPES), rng.integers(len(COLOURS))
        if kind != sought:
            kinds.append(kind)
    order = rng.permutation(COUNT)
    kinds = np.array(kinds)[order]
    cells = rng.permutation(ROWS * COLUMNS)[:COUNT]
    return {
        "kinds": kinds,
        "target": int(np.flatnonzero(order == 0)[0]),
        "places": np.stack([cells // COLUMNS, cells % COLUMNS], 1),
        "crops": np.stack([crop(*kind, rng) for kind in kinds]),
        "wanted": crop(*sought, rng),
    }


def follow(scene: dict, score) -> list[int]:
    """The path that takes the best of score(number, place now) among what was not looked at, to the target."""
    now, path = np.array([(ROWS - 1) / 2, (COLUMNS - 1) / 2]), []
    while not path or path[-1] != scene["target"]:
        path.append(max(set(range(COUNT)) - set(path), key=lambda i: score(i, now)))
        now = scene["places"][path[-1]]
    return path


def searcher(scene: dict, rng: np.random.Generator) -> list[int]:
    same = scene["kinds"] == scene["kinds"][scene["target"]]
    guide = same @ (0.4, 0.6)
    return follow(scene, lambda i, now: guide[i] - 0.1 * np.hypot(*(scene["places"][i] - now)) + 0.3 * rng.gumbel())


def by_chance(scene: dict, rng: np.random.Generator) -> list[int]:
    return follow(scene, lambda i, now: rng.random())


def nearest(scene: dict, rng: np.random.Generator) -> list[int]:
    return follow(scene, lambda i, now: -np.hypot(*(scene["places"][i] - now)))


def salient(scene: dict, rng: np.random.Generator) -> list[int]:
    common = sum((scene["kinds"][:, None, k] == scene["kinds"][None, :, k]).sum(1) for k in (0, 1))
    noise = rng.random(COUNT) / 2
    return follow(scene, lambda i, now: noise[i] - common[i])


WAYS = {
    "searcher, once more": searcher,
    "by chance": by_chance,
    "nearest first": nearest,
    "salient first": salient,
}


def tensors(scenes: list[dict]) -> list[torch.Tensor]:
    crops, places, wanted = (np.stack([scene[name] for scene in scenes]) for name in ("crops", "places", "wanted"))
    pixels = [torch.from_numpy(x).movedim(-1, -3).float() / 128 - 1 for x in (crops, wanted)]
    return [pixels[0], torch.from_numpy(places), pixels[1]]


def train(scenes: list[dict], paths: list[list[int]], seed: int, epochs: int, batch: int = 32) -> OAT:
    """Cross entropy of every step of the searcher's paths, and of their end; AdamW, a cosine."""
    torch.manual_seed(seed)
    network = OAT(grid=(ROWS, COLUMNS), dim=96, num_heads=4, ffn=96, depth=(2, 2), steps=COUNT).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    steps = epochs * -(-len(scenes) // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps + 1, pct_start=0.1)
    given, draw = tensors(scenes), torch.Generator().manual_seed(seed)
    longest = max(map(len, paths))
    path = torch.tensor([[*path, *[0] * (longest - len(path))] for path in paths])
    truth = torch.tensor([[*path, COUNT, *[-100] * (longest - len(path))] for path in paths])
    for _ in range(epochs):
        for rows in torch.randperm(len(scenes), generator=draw).split(batch):
            logits = network(*(x[rows] for x in given), path[rows])
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), truth[rows].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def row(name: str, paths: list[list[int]], theirs: list[list[int]], targets: list[int]) -> str:
    score = np.mean([sequence_score(one, two) for one, two in zip(paths, theirs, strict=True)])
    hits = " | ".join(f"{hit_rate(paths, targets, looks):.3f}" for looks in (1, 3, 10))
    return f"| {name} | {score:.3f} | {hits} | {np.mean([len(path) for path in paths]):.1f} |"


def draw(scene: dict, path: list[int], zoom: int = 2) -> np.ndarray:
    """The scene, and a path over it from the middle: lines, and a ring about the target."""
    image = np.full((ROWS * SIDE, COLUMNS * SIDE, 3), 128, np.uint8)
    for (y, x), one in zip(scene["places"] * SIDE, scene["crops"], strict=True):
        image[y : y + SIDE, x : x + SIDE] = one
    image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_NEAREST)
    cells = [((ROWS - 1) / 2, (COLUMNS - 1) / 2), *scene["places"][path]]
    points = [(int((x + 0.5) * SIDE * zoom), int((y + 0.5) * SIDE * zoom)) for y, x in cells]
    for one, two in zip(points, points[1:], strict=False):
        cv2.arrowedLine(image, one, two, (255, 255, 255), 4, cv2.LINE_AA, tipLength=0.15)
        cv2.arrowedLine(image, one, two, (20, 20, 20), 2, cv2.LINE_AA, tipLength=0.15)
    y, x = (round((cell + 0.5) * SIDE * zoom) for cell in scene["places"][scene["target"]])
    cv2.circle(image, (x, y), SIDE * zoom // 2 + 2, (255, 255, 255), 2)
    return cv2.copyMakeBorder(image, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--held", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    scenes = [make_scene(np.random.default_rng((1, i))) for i in range(args.scenes)]
    held = [make_scene(np.random.default_rng((2, i))) for i in range(args.held)]
    targets = [scene["target"] for scene in held]
    theirs = [searcher(scene, np.random.default_rng((3, i))) for i, scene in enumerate(held)]
    columns = ("sequence score", "found in 1 look", "in 3", "in 10", "looks")
    print(f"| {args.held} scenes | {' | '.join(columns)} |")
    print("|---" + "|---:" * len(columns) + "|")
    for name, way in WAYS.items():
        paths = [way(scene, np.random.default_rng((4, i))) for i, scene in enumerate(held)]
        print(row(name, paths, theirs, targets), flush=True)
    paths = [searcher(scene, np.random.default_rng((5, i))) for i, scene in enumerate(scenes)]
    for seed in range(args.seeds):
        network = train(scenes, paths, seed, args.epochs)
        found = network.search(*tensors(held))
        print(row(f"OAT, seed {seed}", found, theirs, targets), flush=True)
        if args.picture and not seed:
            rows = [np.hstack([draw(scene, path[i]) for i, scene in enumerate(held[:4])]) for path in (theirs, found)]
            cv2.imwrite(str(args.picture), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main()
