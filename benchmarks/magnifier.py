"""Small faces in large crops: a reader in two passes beside plain resizing, at equal operations.

    nice -n 10 python benchmarks/magnifier.py train_validation.parquet [--seeds 0 1] [--epochs 4] [--out out/magnifier]

Every face of the set is made 28×28 pixels small and put at a random place of a 112×112 crop of smooth noise. `two
passes` is `mien.networks.magnified`: a look at the crop in 28×28 pixels, and one at 48×48 of its own. The others see
the crop resized to one size, with as many blocks as make their operations equal, or a few more. All are trained from
nothing on the training split, alike: faces fill the crop at first, and shrink to 28 pixels in the first half of the
steps. They are judged on the validation split, whose places are the same for all of a seed. Runs are kept in --out, and
one that is there is not made again. Printed are accuracies, the difference from each plain network with 95 % of it,
over resamples of the faces (the seeds' answers to a face go together), and how often the window holds the whole face.
"""

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mien.data import open_dataset
from mien.networks import Magnified
from mien.networks.cost import macs

FACE, SIDE = 28, 112
SETTINGS = {
    "two passes, 28 and 48 px": {},
    "resized to 56 px, 4 blocks": {"window": 0, "coarse_size": 56, "cells": 7, "depths": (4, 0)},
    "resized to 80 px, 1 block": {"window": 0, "coarse_size": 80, "cells": 10, "depths": (1, 0)},
}


def read(path: str, limit: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Faces (N, 28, 28) uint8 and votes (N, C) of training, then of validation; no face is there twice."""
    parts, known = [], set()
    for split in ("validation", "train"):
        rows = [row for row in open_dataset(path, check=False).rows(split) if row.label >= 0]
        faces, votes = [], []
        for i in np.random.default_rng(0).permutation(len(rows)) if split == "train" else range(len(rows)):
            face = cv2.cvtColor(rows[i].image(), cv2.COLOR_RGB2GRAY)
            if (key := face.tobytes()) not in known:
                known.add(key)
                faces.append(cv2.resize(face, (FACE, FACE), interpolation=cv2.INTER_AREA))
                votes.append(rows[i].target)
            if split == "train" and len(faces) == limit:
                break
        parts = [torch.from_numpy(np.stack(faces)), torch.from_numpy(np.stack(votes).astype(np.float32)), *parts]
    return tuple(parts)


def noise(count: int, seed: int) -> Tensor:
    """Smooth noise of three sizes of grain, (count, 112, 112)."""
    chance = torch.Generator().manual_seed(seed)
    grains = [torch.randn(count, 1, n, n, generator=chance) * size for n, size in ((4, 0.7), (14, 0.5), (56, 0.3))]
    return torch.stack([F.interpolate(grain, (SIDE, SIDE), mode="bicubic")[:, 0] for grain in grains]).sum(0)


def scene(faces: Tensor, behind: Tensor, chance: torch.Generator, side: int = FACE) -> tuple[Tensor, Tensor]:
    """Faces (B, 28, 28) uint8 -> crops (B, 3, 112, 112), normalised, and the place (B, 2) of each: row, column.

    behind: backgrounds (M, 112, 112), of which each face gets one by chance. side: what faces are enlarged to.
    """
    count = len(faces)
    crops = behind[torch.randint(0, len(behind), (count,), generator=chance)]
    places = torch.randint(0, SIDE - side + 1, (count, 2), generator=chance)
    pixels = torch.arange(side)
    rows, columns = (places[:, i, None] + pixels for i in (0, 1))
    shown = F.interpolate(faces[:, None].float(), (side, side), mode="bilinear")[:, 0]
    crops[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None]] = shown / 64 - 2
    return crops[:, None].expand(-1, 3, -1, -1), places


def train(network: Magnified, faces: Tensor, votes: Tensor, epochs: int, seed: int, batch: int = 64) -> None:
    chance, behind = torch.Generator().manual_seed(seed), noise(1024, seed)
    steps = epochs * (len(faces) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.15)
    for _ in range(epochs):
        order = torch.randperm(len(faces), generator=chance)
        for start in range(0, len(faces) - batch + 1, batch):
            some = order[start : start + batch]
            shown = faces[some]
            mirror = torch.rand(batch, generator=chance) < 0.5
            shown = torch.where(mirror[:, None, None], shown.flip(2), shown)
            side = FACE + round((SIDE - FACE) * max(0.0, 1 - 2 * schedule.last_epoch / steps))
            logits = network.train().training_logits(scene(shown, behind, chance, side)[0])
            loss = sum(network.loss_weights[name] * F.cross_entropy(z, votes[some]) for name, z in logits.items())
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()


@torch.inference_mode()
def judge(network: Magnified, faces: Tensor, seed: int) -> tuple[list[int], float | None]:
    """The classes that are named, and how often the window holds the whole face."""
    chance, behind, named, held = torch.Generator().manual_seed(1000 + seed), noise(1024, 1000 + seed), [], []
    for start in range(0, len(faces), 64):
        images, places = scene(faces[start : start + 64], behind, chance)
        named += network.eval()(images).argmax(1).tolist()
        if network.window:
            first = torch.stack(network.choose(network.first(images)[1]), 1) * network.cell
            last = first + network.window * network.cell
            held += ((first <= places) & (places + FACE <= last)).all(1).tolist()
    return named, float(np.mean(held)) if held else None


def main() -> None:
    parser = argparse.ArgumentParser(description="Two passes beside plain resizing, on small faces.")
    parser.add_argument("data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, help="training faces; default: all")
    parser.add_argument("--beside", nargs="+", choices=("56", "80"), default=["56", "80"], help="pixels resized to")
    parser.add_argument("--out", type=Path, default=Path("out/magnifier"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    cache = args.out / "faces.pt"
    if not cache.exists():
        torch.save(read(args.data, args.limit), cache)
    faces, votes, shown, truth = torch.load(cache)
    target = truth.argmax(1).numpy()
    chosen = {name: o for name, o in SETTINGS.items() if not o or str(o["coarse_size"]) in args.beside}
    found: dict[str, list[dict]] = {name: [] for name in chosen}
    for seed in args.seeds:
        for name, options in chosen.items():
            path = args.out / f"{name.replace(' ', '_').replace(',', '')}-{seed}.json"
            if not path.exists():
                begin = time.process_time()
                torch.manual_seed(seed)
                network = Magnified(num_classes=votes.shape[1], **options)
                train(network, faces, votes, args.epochs, seed)
                named, held = judge(network, shown, seed)
                path.write_text(json.dumps({"named": named, "held": held, "cpu_s": time.process_time() - begin}))
            found[name].append(json.loads(path.read_text()))
            right = np.mean(np.array(found[name][-1]["named"]) == target)
            print(f"seed {seed}, {name}: {right:.4f}", flush=True)
    first = next(iter(chosen))
    right = {name: np.array([np.array(run["named"]) == target for run in runs]) for name, runs in found.items()}
    draws = np.random.default_rng(0).integers(0, len(target), (2000, len(target)))
    seeds = ", ".join(map(str, args.seeds))
    print(f"\n{len(faces):,} faces of training, {args.epochs} epochs; {len(target):,} of validation; seeds {seeds}")
    print("\n| | MMAC | accuracy by seed | mean | two passes beside it (95 %) | whole face in the window |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, options in chosen.items():
        cost = macs(Magnified(num_classes=8, **options), torch.rand(1, 3, SIDE, SIDE)) / 1e6
        each = ", ".join(f"{value:.3f}" for value in right[name].mean(1))
        gain = (right[first].astype(float) - right[name]).mean(0)  # (faces,)
        low, high = np.quantile(gain[draws].mean(1), (0.025, 0.975))
        beside = "" if name == first else f"{gain.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        held = ", ".join(f"{run['held']:.3f}" for run in found[name] if run["held"] is not None)
        print(f"| {name} | {cost:.1f} | {each} | {right[name].mean():.3f} | {beside} | {held} |")


if __name__ == "__main__":
    main()
