"""OAT on visual search: does it look where a simulated searcher looks, and find what is looked for?

    python benchmarks/search.py --picture docs/search.png
    python benchmarks/search.py --faces train_validation.parquet [--keep tokens.pt]

A scene has ten drawn shapes on a grid of 6×8; one of them is what is looked for, of a shape and a colour that none
other has both of. The searcher is a simulation, after the idea of guided search (Wolfe, 1994), and no person: from the
middle it goes to the object that has most of

    0.6 · same colour + 0.4 · same shape - 0.1 · distance in cells + noise (Gumbel, 0.3)

of those that it has not looked at, until it looks at the target. With --faces the objects are faces of FER+, one of the
expression that is looked for and nine of five others; what attracts the searcher is then, instead of colour and shape,
the share of a face's annotators who named that expression. The network is given the features of the default model's
trunk, and what is looked for as another face of that expression. Training faces make the scenes that teach, validation
faces those that judge, the first 1,500 and 1,000 of random_features.py.

Beside the network stand an order by chance, the nearest object next, saliency (the rarest colour and shape, or
expression, first), and for faces what the default model itself holds likeliest first. They are told when they are at
the target; the network has to end its path itself. It takes the likeliest step, or draws each by its probability. A
second run of the searcher on the same scenes says what there is to be had. ± is 1.96 standard errors over scenes.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
import torch
from random_features import make_tokens
from torch import nn

from mien.classifier import find_checkpoint
from mien.evaluation.paths import hit_rate, sequence_score
from mien.labels import EXPRESSIONS
from mien.networks import OAT, load_network

ROWS, COLUMNS, COUNT, SIDE = 6, 8, 10, 16
COLOURS = np.array([(220, 50, 40), (50, 170, 70), (60, 90, 220), (230, 190, 40)])
SHAPES = 4  # circle, square, triangle, cross
SOUGHT = ("neutral", "happiness", "sadness", "surprise", "fear", "anger")  # of the two others are too few faces


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
    """Kinds (COUNT, 2) of shape and colour, number of the target, what guides to each object (COUNT), places (COUNT, 2)
    of row and column, crops, and a crop of what is wanted."""
    sought = rng.integers(SHAPES), rng.integers(len(COLOURS))
    kinds = [sought]
    while len(kinds) < COUNT:
        kind = rng.integers(SHAPES), rng.integers(len(COLOURS))
        if kind != sought:
            kinds.append(kind)
    order = rng.permutation(COUNT)
    kinds = np.array(kinds)[order]
    return {
        "kinds": kinds,
        "target": int(np.flatnonzero(order == 0)[0]),
        "guide": (kinds == sought) @ (0.4, 0.6),
        "places": scatter(rng),
        "crops": np.stack([crop(*kind, rng) for kind in kinds]),
        "wanted": crop(*sought, rng),
    }


def scatter(rng: np.random.Generator) -> np.ndarray:
    cells = rng.permutation(ROWS * COLUMNS)[:COUNT]
    return np.stack([cells // COLUMNS, cells % COLUMNS], 1)


def read_faces(path: str, keep: Path | None) -> list[dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]]]:
    """Of the training and of the validation split, by expression: features (D) of each face, shares (6) of the votes
    and the model's probabilities (6)."""
    tokens = torch.load(keep, weights_only=True) if keep and keep.exists() else None
    if tokens is None:
        tokens = make_tokens("mobilefacenet_ferplus", path, {"train": 1500, "validation": 1000})
        if keep:
            torch.save(tokens, keep)
    head, columns = (
        load_network(find_checkpoint("mobilefacenet_ferplus")).eval().head,
        list(map(EXPRESSIONS.index, SOUGHT)),
    )
    splits = []
    for split in (tokens[name] for name in ("train", "validation")):
        features = split["last"].float().mean(1)
        with torch.inference_mode():
            answers = head(features).softmax(1)[:, columns].numpy()
        faces = list(zip(features.numpy(), split["target"][:, columns].numpy(), answers, strict=True))
        clear = split["target"].max(1).values > 0.5
        of = {name: clear & (split["label"] == EXPRESSIONS.index(name)) for name in SOUGHT}
        splits.append({name: [faces[i] for i in which.nonzero()[:, 0].tolist()] for name, which in of.items()})
        print(", ".join(f"{len(found)} of {name}" for name, found in splits[-1].items()))
    return splits


def make_face_scene(faces: dict, rng: np.random.Generator) -> dict:
    """As `make_scene`, with features in the place of crops; and the model's answer for what is sought (COUNT)."""
    sought = int(rng.integers(len(SOUGHT)))
    others = [kind for kind in range(len(SOUGHT)) if kind != sought]
    kinds = rng.permutation([sought, *rng.choice(others, COUNT - 1)])
    pools = [rng.permutation(len(faces[name])) for name in SOUGHT]  # no face twice, nor as what is wanted
    chosen = [faces[SOUGHT[kind]][pools[kind][i]] for i, kind in enumerate(kinds)]
    features, shares, answers = (np.stack(part) for part in zip(*chosen, strict=True))
    return {
        "kinds": kinds[:, None],
        "target": int(np.flatnonzero(kinds == sought)[0]),
        "guide": shares[:, sought],
        "answer": answers[:, sought],
        "places": scatter(rng),
        "crops": features,
        "wanted": faces[SOUGHT[sought]][pools[sought][COUNT]][0],
    }


class FaceFeatures(nn.Linear):
    """Features of the trunk -> those of the network."""

    def __init__(self, dim: int):
        super().__init__(512, dim)


def follow(scene: dict, score) -> list[int]:
    """The path that takes the best of score(number, place now) among what was not looked at, to the target."""
    now, path = np.array([(ROWS - 1) / 2, (COLUMNS - 1) / 2]), []
    while not path or path[-1] != scene["target"]:
        path.append(max(set(range(COUNT)) - set(path), key=lambda i: score(i, now)))
        now = scene["places"][path[-1]]
    return path


def searcher(scene: dict, rng: np.random.Generator) -> list[int]:
    guide = scene["guide"]
    return follow(scene, lambda i, now: guide[i] - 0.1 * np.hypot(*(scene["places"][i] - now)) + 0.3 * rng.gumbel())


def by_chance(scene: dict, rng: np.random.Generator) -> list[int]:
    return follow(scene, lambda i, now: rng.random())


def nearest(scene: dict, rng: np.random.Generator) -> list[int]:
    return follow(scene, lambda i, now: -np.hypot(*(scene["places"][i] - now)))


def salient(scene: dict, rng: np.random.Generator) -> list[int]:
    common = (scene["kinds"][:, None] == scene["kinds"][None]).sum((1, 2))
    noise = rng.random(COUNT) / 2
    return follow(scene, lambda i, now: noise[i] - common[i])


def by_answer(scene: dict, rng: np.random.Generator) -> list[int]:
    return follow(scene, lambda i, now: scene["answer"][i])


WAYS = {
    "searcher, once more": searcher,
    "by chance": by_chance,
    "nearest first": nearest,
    "salient first": salient,
}


def tensors(scenes: list[dict]) -> list[torch.Tensor]:
    crops, places, wanted = (np.stack([scene[name] for scene in scenes]) for name in ("crops", "places", "wanted"))
    seen = [torch.from_numpy(x) for x in (crops, wanted)]
    if crops.dtype == np.uint8:
        seen = [x.movedim(-1, -3).float() / 128 - 1 for x in seen]
    return [seen[0], torch.from_numpy(places), seen[1]]


def train(scenes: list[dict], paths: list[list[int]], seed: int, epochs: int, batch: int = 32) -> OAT:
    """Cross entropy of every step of the searcher's paths, and of their end; AdamW, a cosine."""
    torch.manual_seed(seed)
    features = None if scenes[0]["crops"].dtype == np.uint8 else FaceFeatures
    network = OAT(
        grid=(ROWS, COLUMNS), features=features, dim=96, num_heads=4, ffn=96, depth=(2, 2), steps=COUNT
    ).train()
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
    scores = [sequence_score(one, two) for one, two in zip(paths, theirs, strict=True)]
    score = f"{np.mean(scores):.3f} ± {1.96 * np.std(scores, ddof=1) / len(scores) ** 0.5:.3f}"
    hits = " | ".join(f"{hit_rate(paths, targets, looks):.3f}" for looks in (1, 3, 10))
    return f"| {name} | {score} | {hits} | {np.mean([len(path) for path in paths]):.1f} |"


def draw(scene: dict, path: list[int], zoom: int = 3) -> np.ndarray:
    """The scene, and a path over it from a dot in the middle: rings about what is looked at, white about the target."""
    image = np.full((ROWS * SIDE, COLUMNS * SIDE, 3), 128, np.uint8)
    for (y, x), one in zip(scene["places"] * SIDE, scene["crops"], strict=True):
        image[y : y + SIDE, x : x + SIDE] = one
    image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    cells = np.array([((ROWS - 1) / 2, (COLUMNS - 1) / 2), *scene["places"][path]])
    points, ring = (cells[:, ::-1] + 0.5) * SIDE * zoom, SIDE * zoom * 0.55
    cv2.circle(image, points[0].astype(int).tolist(), 5, (20, 20, 20), -1, cv2.LINE_AA)
    for i, (one, two) in enumerate(zip(points, points[1:], strict=False)):
        way = (two - one) / np.linalg.norm(two - one)
        ends = [(one + way * ring * (i > 0)).astype(int).tolist(), (two - way * ring).astype(int).tolist()]
        cv2.circle(image, two.astype(int).tolist(), int(ring), (20, 20, 20), 2, cv2.LINE_AA)
        cv2.arrowedLine(image, *ends, (20, 20, 20), 2, cv2.LINE_AA, tipLength=10 / max(10, np.linalg.norm(two - one)))
    at = ((scene["places"][scene["target"]][::-1] + 0.5) * SIDE * zoom).astype(int).tolist()
    cv2.circle(image, at, int(ring) + 3, (255, 255, 255), 2, cv2.LINE_AA)
    return cv2.copyMakeBorder(image, 4, 4, 4, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def titled(title: str, images: list[np.ndarray]) -> np.ndarray:
    """Images side by side, with a title above."""
    row = cv2.copyMakeBorder(np.hstack(images), 30, 0, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return cv2.putText(row, title, (8, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (20, 20, 20), 1, cv2.LINE_AA)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--held", type=int, default=300)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--faces", metavar="PARQUET", help="scenes of FER+'s faces, which are not drawn")
    parser.add_argument("--keep", type=Path, help="tokens of faces, read or written, as of random_features.py")
    args = parser.parse_args()
    ways = WAYS
    if args.faces:
        if args.picture:
            parser.error("--picture is for drawn shapes: faces of the data set are not to be shown")
        ways = WAYS | {"by the model's answer": by_answer}
        teach, judge = read_faces(args.faces, args.keep)
        scenes = [make_face_scene(teach, np.random.default_rng((1, i))) for i in range(args.scenes)]
        held = [make_face_scene(judge, np.random.default_rng((2, i))) for i in range(args.held)]
    else:
        scenes = [make_scene(np.random.default_rng((1, i))) for i in range(args.scenes)]
        held = [make_scene(np.random.default_rng((2, i))) for i in range(args.held)]
    targets = [scene["target"] for scene in held]
    theirs = [searcher(scene, np.random.default_rng((3, i))) for i, scene in enumerate(held)]
    columns = ("sequence score", "found in 1 look", "in 3", "in 10", "looks")
    print(f"| {args.held} scenes | {' | '.join(columns)} |")
    print("|---" + "|---:" * len(columns) + "|")
    for name, way in ways.items():
        paths = [way(scene, np.random.default_rng((4, i))) for i, scene in enumerate(held)]
        print(row(name, paths, theirs, targets), flush=True)
    paths = [searcher(scene, np.random.default_rng((5, i))) for i, scene in enumerate(scenes)]
    for seed in range(args.seeds):
        network = train(scenes, paths, seed, args.epochs)
        found = network.search(*tensors(held))
        print(row(f"OAT, seed {seed}, the likeliest", found, theirs, targets), flush=True)
        drawn = network.search(*tensors(held), generator=torch.Generator().manual_seed(seed))
        print(row(f"OAT, seed {seed}, drawn", drawn, theirs, targets), flush=True)
        if args.picture and not seed:
            shown = {"the searcher": theirs, "OAT, the likeliest": found, "OAT, drawn": drawn}
            rows = [titled(name, [draw(held[i], paths[i]) for i in range(4)]) for name, paths in shown.items()]
            cv2.imwrite(str(args.picture), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main()
