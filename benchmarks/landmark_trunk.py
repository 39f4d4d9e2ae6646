"""The landmark trunk of BTN and POSTER++ at the size of a phone, taught where the landmarks of a face are.

    python benchmarks/landmark_trunk.py DATA --landmarker FILE [--out weights/landmarks.safetensors] [--epochs 2]

DATA is FER2013 with FER+'s votes, as a parquet file; FILE is MediaPipe's face_landmarker.task, whose 478 points of each
training face are what is learned. The trunk begins with that of btn_mobile_ferplus, all but its stem and its first
layers learns, and so do the adapters behind its three maps. Of each adapted map, pooled to 7×7, a linear layer says the
points; it is thrown away. Printed: the mean distance from the points of validation faces, in percent of the distance of
the outer corners of the eyes (NME), for each map. OUT is for `init:` of a recipe, with the parts `landmarks` and
`landmark_adapt`. An adapted map is the query of cross attention as it is, and where it is small, landmarks attend to
everything alike: so the adapters are scaled until each map has a root mean square of SPREAD.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

from mien.checkpoint import read_header
from mien.classifier import find_checkpoint
from mien.data import Row, open_dataset
from mien.faces.align import crop
from mien.faces.landmarker import POINTS, Landmarker
from mien.networks import Normalize, load_network
from mien.networks.deploy import to_float

SIDE, BORDER = 112, 56  # pixels of a face's picture, and of the black border that detectors know better
EYES = (33, 263)  # outer corners
RATE, BATCH, WARMUP = 1.5e-3, 64, 60
SPREAD = 5.0


def points_of(rows: Sequence[Row], landmarker: Landmarker) -> np.ndarray:
    """(N, 478, 2) in widths of the face's picture; NaN where the landmarker sees no face."""
    points = np.full((len(rows), POINTS, 2), np.nan, np.float32)
    for i, row in enumerate(tqdm(rows, "landmarks", unit="face", mininterval=1)):
        face = cv2.resize(row.image(), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        found = landmarker(cv2.copyMakeBorder(face, *[BORDER] * 4, cv2.BORDER_CONSTANT), [None])[0]
        if found is not None:
            points[i] = (found.mesh[:, :2] - BORDER) / SIDE
    return points


def mirrored(mean: np.ndarray) -> np.ndarray:
    """(478,): the point that each becomes in a mirror, by the mean face (478, 2)."""
    other = mean * (-1, 1) + (2 * mean[:, 0].mean(), 0)
    return np.square(other[:, None] - mean).sum(-1).argmin(1)


class LandmarkTrunk(nn.Module):
    """Images (B, 3, 112, 112) -> of each adapted map the points (B, 478, 2), from the mean face in `scale`."""

    def __init__(self, trunk: nn.Module, adapters: nn.ModuleList):
        super().__init__()
        self.trunk, self.adapters = trunk, adapters
        self.heads = nn.ModuleList()
        for adapter in adapters:
            nn.init.kaiming_normal_(adapter.weight, nonlinearity="linear")
            nn.init.zeros_(adapter.bias)
            self.heads.append(nn.Linear(adapter.out_channels * 49, POINTS * 2))
            nn.init.normal_(self.heads[-1].weight, std=0.002)
            nn.init.zeros_(self.heads[-1].bias)
        self.requires_grad_(True)
        self.resting = (trunk.stem, trunk.stem_dw, trunk.stages[0][0])
        for part in self.resting:
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> "LandmarkTrunk":
        super().train(mode)
        for part in self.resting:
            part.eval()
        return self

    def maps(self, images: Tensor) -> list[Tensor]:
        return [adapter(level) for adapter, level in zip(self.adapters, self.trunk(images), strict=True)]

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.maps(images)
        said = [head(F.adaptive_avg_pool2d(x, 7).flatten(1)) for head, x in zip(self.heads, maps, strict=True)]
        return [points.float().unflatten(1, (POINTS, 2)) for points in said]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--landmarker", default="auto")
    parser.add_argument("--out", default="weights/landmarks.safetensors")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--faces", type=int, help="the first so many of each split")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="fp32")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    begin = find_checkpoint("btn_mobile_ferplus")
    preprocess, network = read_header(begin)["preprocess"], load_network(begin).float()
    trunk = LandmarkTrunk(network.landmarks, network.landmark_adapt).to(memory_format=torch.channels_last)
    normalize, landmarker = Normalize(preprocess), Landmarker(args.landmarker)
    data = open_dataset(args.data, check=False)

    def split(name: str) -> tuple[list[Row], np.ndarray]:
        rows = list(data.rows(name))[: args.faces]
        points = points_of(rows, landmarker)
        seen = np.flatnonzero(np.isfinite(points[:, 0, 0]))
        print(f"{name}: the landmarker sees {len(seen):,} of {len(rows):,} faces")
        return [rows[i] for i in seen], points[seen]

    def images(rows: Sequence[Row], flip: np.ndarray | None = None) -> Tensor:
        faces = np.stack([crop(row.image(), preprocess) for row in rows])
        if flip is not None:
            faces[flip] = faces[flip][:, :, ::-1]
        return normalize(to_float(torch.from_numpy(faces)))

    def look(x: Tensor) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "bf16"):
            return trunk(x.contiguous(memory_format=torch.channels_last))

    rows, points = split("train")
    mean = points.mean(0)
    scale, other = float((points - mean).std()), mirrored(mean)
    steps = math.ceil(args.epochs * len(rows) / BATCH)
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(math.ceil(args.epochs) + 1)])
    optimizer = torch.optim.AdamW([p for p in trunk.parameters() if p.requires_grad], lr=RATE, weight_decay=0.02)
    trunk.train()
    for step in (bar := tqdm(range(steps), unit="step", mininterval=1)):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2
        drawn = order[step * BATCH : (step + 1) * BATCH]
        target, flip = points[drawn], rng.random(len(drawn)) < 0.5
        target[flip] = target[flip][:, other] * (-1, 1) + (1, 0)
        x = images([rows[i] for i in drawn], flip)
        x = x * torch.empty(len(x), 1, 1, 1).uniform_(0.8, 1.2) + torch.empty(len(x), 1, 1, 1).uniform_(-0.2, 0.2)
        target = torch.from_numpy((target - mean) / np.float32(scale))
        loss = torch.stack([F.smooth_l1_loss(said, target, beta=0.1) for said in look(x)]).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trunk.parameters(), 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")

    rows, points = split("validation")
    apart = np.linalg.norm(points[:, EYES[0]] - points[:, EYES[1]], axis=1)
    trunk.eval()
    errors = []
    with torch.inference_mode():
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            said = [each.numpy() * scale + mean for each in look(images(rows[part]))]
            errors.append([np.linalg.norm(each - points[part], axis=-1).mean(1) / apart[part] for each in said])
    nme = [100 * np.concatenate(level).mean() for level in zip(*errors, strict=True)]
    print(f"NME: low {nme[0]:.2f} %, middle {nme[1]:.2f} %, high {nme[2]:.2f} % (n = {len(rows):,})")
    with torch.inference_mode():
        for adapter, level in zip(trunk.adapters, trunk.maps(images(rows[:256])), strict=True):
            factor = SPREAD / level.square().mean().sqrt()
            adapter.weight *= factor
            adapter.bias *= factor
    parts = {"landmarks": trunk.trunk, "landmark_adapt": trunk.adapters}
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {f"{part}.{name}": t.contiguous() for part, module in parts.items() for name, t in module.state_dict().items()},
        args.out,
    )


if __name__ == "__main__":
    main()
