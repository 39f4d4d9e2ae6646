"""The Axial Transformer on grey faces of 28×28 pixels in 16 levels, beside a plain raster transformer of equal size.

    python benchmarks/axial.py train DATA OUT [--minutes 2.5] [--seed 0]
    python benchmarks/axial.py draw OUT docs/axial.png

DATA is FER2013+'s parquet file; faces of its split "train" teach, those of "validation" judge: bits per dimension, the
mean over faces and its 95 % interval (normal), and of the paired difference. `--minutes` are of one processor, for each
of two runs: the Axial Transformer, and the raster transformer in the same time. A third is the Axial Transformer that
has seen as many faces as the raster transformer saw. The step is annealed (half a cosine) over each run of its own.
`draw` completes the lower half of the two faces in examples/, which are in no training data.
"""

import argparse
import json
import math
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mien.data import FERPlus
from mien.faces import YuNet, open_picture
from mien.faces.align import similarity
from mien.networks import AxialTransformer
from mien.nn import Block, SelfAttention
from mien.nn.axial import AxialPositions

SIDE, LEVELS, DIM, HEADS = 28, 16, 48, 4
LANDMARKS = ((15.3, 18.1), (32.1, 18.2), (23.6, 27.9), (17.0, 35.6), (30.8, 35.8))  # of 48 pixels: training faces' mean


class Raster(nn.Module):
    """Every pixel after all before it, row by row: (B, 1, H, W) -> logits (B, 1, H, W, levels)."""

    def __init__(self, depth: int = 4):
        super().__init__()
        self.embed, self.positions = nn.Embedding(LEVELS, DIM), AxialPositions(DIM, (SIDE, SIDE))
        self.blocks = nn.ModuleList(Block(DIM, HEADS, mixer=partial(SelfAttention, causal=True)) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(DIM), nn.Linear(DIM, LEVELS)
        nn.init.normal_(self.embed.weight, std=0.5)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(images.flatten(1))
        tokens = self.positions(nn.functional.pad(tokens, (0, 0, 1, 0))[:, :-1], (SIDE, SIDE))
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)).reshape(*images.shape, LEVELS)

    bits_per_dim, log_likelihood = AxialTransformer.bits_per_dim, AxialTransformer.log_likelihood


def axial() -> AxialTransformer:
    return AxialTransformer(levels=LEVELS, size=(SIDE, SIDE), dim=DIM, num_heads=HEADS)


def grey(picture: np.ndarray) -> Tensor:
    """A face (H, W, 3) or (H, W), uint8 -> levels (1, 28, 28)."""
    picture = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) if picture.ndim == 3 else picture
    small = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(small.astype(np.int64) * LEVELS // 256)[None]


def faces(data: str, split: str) -> Tensor:
    return torch.stack([grey(row.image()) for row in FERPlus(data).rows(split)])


def train(model: nn.Module, images: Tensor, seed: int, seconds: float = math.inf, count: int = 0) -> dict:
    """Until so much of the processor's time has passed, or so many faces were seen."""
    draw = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.01)
    begin, seen, batch, order = time.process_time(), 0, 8, torch.empty(0, dtype=torch.long)
    while (done := max((time.process_time() - begin) / seconds, seen / count if count else 0)) < 1:
        if len(order) < batch:
            order = torch.randperm(len(images), generator=draw)
        taken, order = images[order[:batch]], order[batch:]
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1, (seen + batch) / (50 * batch)) * (1 + math.cos(math.pi * min(1, done))) / 2
        loss = model.bits_per_dim(taken).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += batch
        if seen % 800 == 0:
            print(f"{seen:>7,} faces, {time.process_time() - begin:5.0f} s: {loss:.3f}", flush=True)
    return {"faces": seen, "processor_s": round(time.process_time() - begin)}


@torch.no_grad()
def judge(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model.eval().bits_per_dim(part) for part in images.split(32)])


def interval(values: Tensor) -> list[float]:
    """The mean, and how far its 95 % interval reaches to either side."""
    return [round(values.mean().item(), 4), round(1.96 * values.std().item() / len(values) ** 0.5, 4)]


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    images, held_out = faces(args.data, "train"), faces(args.data, "validation")
    counts = torch.bincount(images.flatten(), minlength=LEVELS) / images.numel()
    alone = -counts.log2()[held_out].mean((1, 2, 3))  # every pixel by itself, by how common its level is
    results = {"validation_faces": len(held_out), "seed": args.seed, "levels alone": {"bits": interval(alone)}}
    found = {}
    for name, make in {"axial": axial, "raster": Raster, "axial, as many faces": axial}.items():
        torch.manual_seed(args.seed)
        model = make()
        limit = {"count": results["raster"]["faces"]} if "many" in name else {"seconds": 60 * args.minutes}
        results[name] = {"parameters": sum(p.numel() for p in model.parameters())}
        results[name] |= train(model, images, args.seed, **limit)
        found[name] = judge(model, held_out)
        results[name]["bits"] = interval(found[name])
        save_file(model.state_dict(), args.out / f"{name.replace(', ', '_').replace(' ', '_')}.safetensors")
        (args.out / "results.json").write_text(json.dumps(results, indent=1))
        print(name, results[name], flush=True)
    for name in ("axial", "axial, as many faces"):
        results[name]["bits less than raster's"] = interval(found["raster"] - found[name])
    (args.out / "results.json").write_text(json.dumps(results, indent=1))


def draw(args: argparse.Namespace) -> None:
    """A row for each of the two faces: what is given, four completions, the whole face."""
    model = axial()
    model.load_state_dict(load_file(args.run / "axial.safetensors"))
    known = torch.arange(SIDE)[:, None].expand(SIDE, SIDE) < SIDE // 2
    rows = []
    for name in ("hopper.jpg", "astronaut.png"):
        picture = open_picture(Path(__file__).parents[1] / "examples" / name)
        face = max(YuNet()(picture), key=lambda face: face.score)
        matrix = similarity(np.asarray(face.landmarks), np.array(LANDMARKS, np.float32) * 4)
        whole = grey(cv2.warpAffine(picture, matrix, (192, 192), borderMode=cv2.BORDER_REPLICATE))
        torch.manual_seed(0)
        drawn, _ = model.eval().complete(whole.expand(4, 1, SIDE, SIDE), known, args.temperature)
        hidden = torch.where(known, whole, LEVELS)  # a colour of its own
        rows.append(torch.cat([hidden, *drawn, whole], 2)[0])
        print(name, model.bits_per_dim(whole[None]).item())
    small = torch.cat(rows).numpy()
    shown = np.repeat(np.minimum(small, LEVELS - 1)[..., None] * 255 // (LEVELS - 1), 3, -1).astype(np.uint8)
    shown[small == LEVELS] = (120, 150, 190)
    gap, scale = 3, 4
    tiles = [
        [np.kron(tile, np.ones((scale, scale, 1), np.uint8)) for tile in np.split(row, 6, axis=1)]
        for row in np.split(shown, 2, axis=0)
    ]
    sheet = np.zeros((2 * (SIDE * scale + gap) - gap, 6 * (SIDE * scale + gap) - gap, 4), np.uint8)
    for y, row in enumerate(tiles):
        for x, tile in enumerate(row):
            top, left = y * (SIDE * scale + gap), x * (SIDE * scale + gap)
            sheet[top : top + SIDE * scale, left : left + SIDE * scale] = np.dstack(
                [tile, np.full_like(tile[..., 0], 255)]
            )
    cv2.imwrite(str(args.picture), cv2.cvtColor(sheet, cv2.COLOR_RGBA2BGRA), [cv2.IMWRITE_PNG_COMPRESSION, 9])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    train_parser = commands.add_parser("train")
    train_parser.add_argument("data")
    train_parser.add_argument("out", type=Path)
    train_parser.add_argument("--minutes", type=float, default=2.5)
    train_parser.add_argument("--seed", type=int, default=0)
    train_parser.set_defaults(do=run)
    draw_parser = commands.add_parser("draw")
    draw_parser.add_argument("run", type=Path)
    draw_parser.add_argument("picture", type=Path)
    draw_parser.add_argument("--temperature", type=float, default=1.0)
    draw_parser.set_defaults(do=draw)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
