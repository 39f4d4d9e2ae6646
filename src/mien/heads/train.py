"""Training DirectMHP on annotated pictures."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from mien.errors import MienError, ReadError
from mien.faces import open_picture
from mien.heads.angles import encode
from mien.heads.annotations import Picture, read_annotations
from mien.heads.checkpoint import MEAN, NETWORK, STD, DeployedHeads, runner, save_heads
from mien.heads.detector import HeadDetector
from mien.heads.loss import WEIGHTS, directmhp_loss
from mien.heads.measure import LEAST, Measured, measure_detector, summary
from mien.networks.checkpoint import fill, load_tensors
from mien.networks.deploy import to_float
from mien.networks.directmhp import DirectMHP

KEPT = 2**30
"""Bytes of maps that are kept rather than made again each time."""


def load(pictures: Sequence[Picture], size: int) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Pictures (n, size, size, 3) uint8, their boxes (m, 4) in pixels of them, and angles (m, 3), encoded.

    Raises ReadError for a picture that cannot be read, and for one of another size than its annotations say.
    """
    images, boxes, angles = np.zeros((len(pictures), size, size, 3), np.uint8), [], []
    for i, picture in enumerate(pictures):
        image = open_picture(picture.path)
        if image.shape[1::-1] != tuple(picture.size):
            shown = "×".join(map(str, image.shape[1::-1]))
            raise ReadError(
                picture.path, f"has {shown} pixels, and {'×'.join(map(str, picture.size))} in its annotations"
            )
        scale = size / max(image.shape[:2])
        small = [max(1, round(side * scale)) for side in picture.size]
        resized = cv2.resize(image, small, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        images[i, : small[1], : small[0]] = resized
        stretch = np.tile(np.divide(small, picture.size), 2)
        boxes.append(np.array([head.box for head in picture.heads], np.float32).reshape(-1, 4) * np.float32(stretch))
        angles.append(np.float32(encode(np.array([head.angles for head in picture.heads]).reshape(-1, 3))))
    return images, boxes, angles


def mirror(images: np.ndarray, boxes: np.ndarray, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture (H, W, 3), its boxes and encoded angles as in a mirror: yaw and roll change their signs."""
    boxes, angles = boxes.copy(), angles.copy()
    boxes[:, 0] = images.shape[1] - boxes[:, 0] - boxes[:, 2]
    angles[:, 1:] = 1 - angles[:, 1:]
    return images[:, ::-1], boxes, angles


def train_heads(
    annotations: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    validation: str | os.PathLike[str] | None = None,
    init: str | os.PathLike[str] | None = None,
    size: int = 128,
    epochs: int = 10,
    batch_size: int = 16,
    lr: float = 2e-3,
    seed: int = 0,
    wrapped: bool = True,
    weights: dict[str, float] = WEIGHTS,
    network: Mapping[str, Any] | None = None,
    tell: Callable[[str], object] = lambda line: None,
) -> Measured | None:
    """Train a network, and write it to `out`, a .safetensors file, after its last epoch.

    annotations: a file that `read_annotations` reads. validation: another, measured before and after, never chosen by.
    init: weights of the trunk, as `mien convert mobilefacenet` writes them; without them all of it learns.
    size: pixels of the longer side that pictures are brought to, a multiple of 16 from 32 up, 128 by default.
    epochs, batch_size: 10 and 16 by default. lr: of AdamW, 0.002 by default; it rises for a twentieth of the steps and
        falls to 0 along a cosine. seed: 0 or more.
    wrapped: yaw's shorter way round in the loss. weights: of the loss's parts. network: arguments of `DirectMHP`.
    tell: is given a line an epoch.

    Half of the pictures are mirrored each time. Gives what was measured at the end, None without `validation`.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise MienError(f"{out}: a trained network is a .safetensors file")
    if size % 16 or size < 32:
        raise MienError(f"the size of pictures is a multiple of 16 from 32 up, not {size}")
    images, boxes, angles = load(read_annotations(annotations), size)
    held = read_annotations(validation) if validation else []
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    arguments = dict(network or {})
    if init is None:
        arguments["rest"] = 0  # what was never trained must not rest
    model = DirectMHP(**arguments)
    if init is not None:
        fill(model.trunk, load_tensors(Path(init)), init)
    header = {
        "version": 1,
        "model": {"class_path": NETWORK, "init_args": arguments},
        "input_size": size,
        "mean": MEAN,
        "std": STD,
        "training": {"pictures": len(images), "epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed}
        | {"wrapped": wrapped, "weights": dict(weights)},
    }
    learning = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learning if (p.ndim > 1) == many], "weight_decay": 0.01 * many} for many in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr)
    steps = epochs * -(-len(images) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps + 1, pct_start=0.05)
    mirrored = [mirror(*one) for one in zip(images, boxes, angles, strict=True)]
    truth = [
        [(torch.from_numpy(one), torch.from_numpy(other)) for one, other in zip(boxes, angles, strict=True)],
        [(torch.from_numpy(one), torch.from_numpy(other)) for _, one, other in mirrored],
    ]
    deployed = DeployedHeads(model, MEAN, STD)

    def front(batch: Sequence[tuple[int, int]]) -> torch.Tensor:
        shown = np.stack([mirrored[i][0] if m else images[i] for i, m in batch])
        return model.front((to_float(torch.from_numpy(shown)) - deployed.mean) / deployed.std)

    kept = _keep(front, len(images), batch_size) if model.rest else None
    if held:
        tell(f"before: {summary(measure_network(model, header, held))}")
    for epoch in range(1, epochs + 1):
        model.train()
        sums, order = {}, rng.permutation(len(images))
        for first in range(0, len(order), batch_size):
            batch = [(i, int(rng.integers(2))) for i in order[first : first + batch_size]]  # 1: in a mirror
            with torch.no_grad():
                maps = kept[tuple(zip(*batch, strict=True))].float() if kept is not None else front(batch)
            true = zip(*(truth[m][i] for i, m in batch), strict=True)
            loss, parts = directmhp_loss(model.behind(maps), *true, wrapped=wrapped, weights=weights)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(learning, 10.0)
            optimizer.step()
            schedule.step()
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part.item() * len(batch)
        tell(f"epoch {epoch}: " + ", ".join(f"{name} {value / len(images):.4f}" for name, value in sums.items()))
    save_heads(out, model.eval(), header)
    if not held:
        return None
    found = measure_network(model, header, held)
    tell(f"after: {summary(found)}")
    return found


def _keep(front: Callable[[list[tuple[int, int]]], torch.Tensor], count: int, batch_size: int) -> torch.Tensor | None:
    """What the part that rests makes of every picture and of its mirror image, once and for all, fp16
    (count, 2, C, h, w); None where that would be more than KEPT bytes."""
    with torch.no_grad():
        shape = front([(0, 0)]).shape[1:]
        if 4 * count * shape.numel() > KEPT:
            return None
        kept = torch.empty((count, 2, *shape), dtype=torch.float16)
        for first in range(0, count, batch_size):
            rows = range(first, min(first + batch_size, count))
            for m in (0, 1):
                kept[list(rows), m] = front([(i, m) for i in rows]).half()
    return kept


def measure_network(model: DirectMHP, header: dict[str, Any], pictures: Sequence[Picture]) -> Measured:
    """What a network finds in annotated pictures."""
    model.eval()
    return measure_detector(HeadDetector(runner(model, header), size=header["input_size"], threshold=LEAST), pictures)
