"""Group Pose on faces: boxes and five landmarks of all faces of a picture, each found once."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mien.networks.matching import cheapest_pairs
from mien.networks.mobilefacenet import MobileFaceNet
from mien.nn.grid import to_tokens
from mien.nn.group_pose import DeformableAttention, GroupPoseLayer

LANDMARKS = 5
"""Eyes, nose and corners of the mouth, in the order of `mien.faces.ARCFACE112`."""


class Prediction(NamedTuple):
    """Of n instances in each of B pictures; places are fractions of the picture's sides."""

    logits: Tensor  # (B, n), of there being a face
    boxes: Tensor  # (B, n, 4), x and y of the middle, width, height
    points: Tensor  # (B, n, 5, 2), x and y


class FacePose(NamedTuple):
    """A face that was found, in pixels of the picture."""

    score: float
    box: np.ndarray  # (4,) x, y, width, height
    landmarks: np.ndarray  # (5, 2)


class GroupPose(nn.Module):
    """Images (B, 3, S, S) -> `Prediction` of n faces: a trunk, proposals of its map's cells, and Group Pose's decoder.

        maps      = project(trunk(images))                               strides 4 and 8, `dim` channels each
        found_0   = propose(maps[-1]);   the n cells of the highest logits are the instances
        queries   = [instance(cell); cell + kind_k]                      (B, n, 1 + 5, dim)
        queries   = layer(queries, mlp(sine(points)), reference, maps)   `mien.nn.GroupPoseLayer`, `depth` times
        found_l   = boxes and points of layer l - 1, moved by what the queries say; logits of the instance queries

    Queries sample the maps around the box's middle, those of a point around the point, as the layer before predicts
    them, without a gradient, as published. Loss: in each found_l the faces of a picture are matched to instances so
    that the sum of costs is least (`mien.networks.matching`); then focal loss of logits, L1 and generalised IoU of
    boxes, L1 of points relative to the box's size (ours; published: OKS, and L1 of the picture's).

    Departures: no transformer encoder stands between trunk and decoder, and proposals are of one map; both for size.

    Args:
        img_size: int, a multiple of 16 from 64 on; 128.
        dim, num_heads, hidden: int, width of the queries, heads and width of the feed-forward part; 64, 4 and 256.
        depth: int from 1 on, layers of the decoder; 3.
        num_instances: int from 1 on, n; 16.
        num_points: int, that a head samples on each map; 4.

    Paper: Liu et al., Group Pose, arXiv 2308.07313. Reference: Michel-liu/GroupPose, 127fe0e.
    """

    def __init__(
        self,
        *,
        img_size: int = 128,
        dim: int = 64,
        num_heads: int = 4,
        hidden: int = 256,
        depth: int = 3,
        num_instances: int = 16,
        num_points: int = 4,
    ):
        super().__init__()
        if img_size < 64 or img_size % 16:
            raise ValueError(f"img_size must be a multiple of 16 from 64 on, not {img_size}")
        if not 1 <= num_instances <= (img_size // 8) ** 2 or depth < 1 or dim % 4:
            raise ValueError("depth and num_instances must be 1 at least, with a cell of its own each; dim in fours")
        self.img_size, self.num_instances, self.dim = img_size, num_instances, dim
        self.image = MobileFaceNet("relu6", num_levels=2)
        self.project = nn.ModuleList(nn.Conv2d(width, dim, 1) for width, _ in self.image.levels)
        self.cell_norm = nn.LayerNorm(dim)
        self.propose = PredictionHead(dim)
        self.instance = nn.Linear(dim, dim)
        self.kinds = nn.Parameter(0.5 * torch.randn(LANDMARKS, dim))
        self.place = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.layers = nn.ModuleList(
            GroupPoseLayer(dim, num_heads, DeformableAttention(dim, num_heads, num_points, 2), hidden)
            for _ in range(depth)
        )
        self.predictors = nn.ModuleList(PredictionHead(dim) for _ in range(depth))

    def predictions(self, images: Tensor) -> list[Prediction]:
        """Those before the decoder, of every cell, and of each of its layers: the last is the answer."""
        if images.shape[2] != self.img_size or images.shape[3] != self.img_size:
            raise ValueError(
                f"images are {images.shape[2]}×{images.shape[3]} pixels, and the network is for "
                f"{self.img_size}×{self.img_size}"
            )
        maps = [project(each) for project, each in zip(self.project, self.image(images), strict=True)]
        cells = self.cell_norm(to_tokens(maps[-1]))  # (B, N, dim)
        side = maps[-1].shape[3]
        middle = (torch.arange(side, device=images.device) + 0.5) / side
        grid = torch.stack(torch.meshgrid(middle, middle, indexing="xy"), -1).flatten(0, 1)  # (N, 2)
        size = torch.full_like(grid, 0.3)
        boxes = torch.cat([grid, size], 1).expand(images.shape[0], -1, -1)
        points = grid[:, None].expand(images.shape[0], -1, LANDMARKS, -1)
        every = cells[:, :, None].expand(-1, -1, 1 + LANDMARKS, -1)
        found = [self.propose(every, boxes, points)]
        best = found[0].logits.topk(self.num_instances, dim=1).indices

        def chosen(x: Tensor) -> Tensor:
            return x.gather(1, best.reshape(*best.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))

        cells = chosen(cells)
        queries = torch.cat([self.instance(cells)[:, :, None], cells[:, :, None] + self.kinds], 2)
        boxes, points = chosen(found[0].boxes), chosen(found[0].points)
        for layer, predict in zip(self.layers, self.predictors, strict=True):
            boxes, points = boxes.detach(), points.detach()
            reference = torch.cat([boxes[:, :, None, :2], points], 2).flatten(1, 2)  # (B, n · 6, 2)
            queries = layer(queries, self.place(sine(points, self.dim)), reference, maps)
            found.append(predict(queries, boxes, points))
            boxes, points = found[-1].boxes, found[-1].points
        return found

    def forward(self, images: Tensor) -> Prediction:
        return self.predictions(images)[-1]

    def losses(self, images: Tensor, boxes: Sequence[Tensor], points: Sequence[Tensor]) -> dict[str, Tensor]:
        """The sum over all predictions, by part: of pictures with faces (F, 4) and (F, 5, 2), F any number of each."""
        if len(boxes) != len(images) or len(points) != len(images):
            raise ValueError(f"{len(images)} pictures have {len(boxes)} sets of boxes and {len(points)} of points")
        total: dict[str, Tensor] = {}
        for found in self.predictions(images):
            for name, part in set_loss(found, boxes, points).items():
                total[name] = total.get(name, torch.zeros(())) + part
        return total

    def training_logits(self, images: Tensor) -> dict[str, Tensor]:
        """All predictions, for whoever measures a training pass."""
        return {
            f"{i}.{name}": x for i, found in enumerate(self.predictions(images)) for name, x in found._asdict().items()
        }

    @torch.no_grad()
    def find(self, image: np.ndarray, threshold: float = 0.5) -> list[FacePose]:
        """The faces of a picture (H, W, 3) uint8 RGB, the surest first.

        The picture is shrunk or enlarged to fit `img_size`, and black fills what is left. threshold: float in [0, 1].
        Raises ValueError for another array.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"a picture is (H, W, 3) uint8, not {image.shape} {image.dtype}")
        height, width = image.shape[:2]
        scale = self.img_size / max(height, width)
        low, long = max(1, round(height * scale)), max(1, round(width * scale))
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, (low, long), mode="bilinear", antialias=scale < 1, align_corners=False)
        pixels = F.pad(pixels / 255, (0, self.img_size - long, 0, self.img_size - low))
        logits, boxes, points = self.eval()(normalized(pixels.to(self.kinds.device)))
        scores, order = logits[0].sigmoid().sort(descending=True)
        to_pixels = np.array([self.img_size * width / long, self.img_size * height / low])
        found = []
        for score, i in zip(scores.tolist(), order.tolist(), strict=True):
            if score < threshold:
                break
            middle, size = (boxes[0, i].cpu().numpy().reshape(2, 2) * to_pixels).astype(np.float32)
            landmarks = (points[0, i].cpu().numpy() * to_pixels).astype(np.float32)
            found.append(FacePose(score, np.concatenate([middle - size / 2, size]), landmarks))
        return found


class PredictionHead(nn.Module):
    """Queries (B, n, 1 + 5, dim), and boxes and points that they move -> `Prediction`.

    Middle and points are moved by fractions of the box's size, its sides multiplied; logits start at those of 1 in 100.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.logit, last_box, last_point = nn.Linear(dim, 1), nn.Linear(dim, 4), nn.Linear(dim, 2 * LANDMARKS)
        self.box = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), last_box)
        self.point = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), last_point)
        nn.init.constant_(self.logit.bias, -math.log(99))
        for last in (last_box, last_point):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, queries: Tensor, boxes: Tensor, points: Tensor) -> Prediction:
        moves = self.box(queries[:, :, 0])
        middle = boxes[..., :2] + moves[..., :2] * boxes[..., 2:]
        size = boxes[..., 2:] * moves[..., 2:].clamp(-3, 3).exp()
        steps = self.point(queries[:, :, 1:]).unflatten(-1, (LANDMARKS, 2))  # each query has a move for each kind
        own = torch.diagonal(steps, dim1=2, dim2=3).movedim(-1, 2)  # and its own is taken
        return Prediction(
            self.logit(queries[:, :, 0])[..., 0], torch.cat([middle, size], -1), points + own * boxes[..., None, 2:]
        )


def normalized(pixels: Tensor) -> Tensor:
    """Pixels in [0, 1] as the trunk reads them: (B, 3, H, W) -> the same."""
    mean, std = (pixels.new_tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (pixels - mean) / std


def sine(points: Tensor, dim: int) -> Tensor:
    """Places in [0, 1] (…, 2) -> (…, 2 · dim): sines and cosines of each coordinate, waves from 1 to 10,000 long."""
    waves = 10_000 ** (torch.arange(dim // 2, device=points.device) / (dim // 2))
    angles = 2 * math.pi * points[..., None] / waves
    return torch.cat([angles.sin(), angles.cos()], -1).flatten(-2)


def corners(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """Of pairs of boxes, broadcast: (…, 4), (…, 4) -> (…), in (-1, 1]. Paper: Rezatofighi et al., 2019."""
    a, b = corners(a), corners(b)
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    both = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - both
    hull = around.prod(-1).clamp(min=1e-9)
    return both / union.clamp(min=1e-9) - (hull - union) / hull


def set_loss(found: Prediction, boxes: Sequence[Tensor], points: Sequence[Tensor]) -> dict[str, Tensor]:
    """Focal loss of logits, and of matched pairs L1 and 1 - GIoU of boxes and L1 of points in units of the box's size.

    Sums divided by the number of faces in the batch, at least 1; weights 2, 5, 2 and 10 as DETR's kin have them, ours
    for points.
    """
    truth, pairs = torch.zeros_like(found.logits), []
    for i, (box, point) in enumerate(zip(boxes, points, strict=True)):
        if len(box):
            with torch.no_grad():
                cost = 5 * (box[:, None] - found.boxes[i]).abs().sum(-1) - 2 * generalised_iou(
                    box[:, None], found.boxes[i]
                )
                unit = box[:, None, None, 2:]
                cost += 2 * ((point[:, None] - found.points[i]).abs() / unit).mean((2, 3))
                cost -= 2 * found.logits[i].sigmoid()
                own = torch.from_numpy(cheapest_pairs(cost.double().cpu().numpy())).to(box.device)
            truth[i, own] = 1
            pairs.append((found.boxes[i, own], box, found.points[i, own], point))
    count = max(1, sum(map(len, boxes)))
    probability = found.logits.sigmoid()
    wrong = truth * (1 - probability) + (1 - truth) * probability
    balance = 0.25 * truth + 0.75 * (1 - truth)
    focal = balance * wrong**2 * F.binary_cross_entropy_with_logits(found.logits, truth, reduction="none")
    losses = {"logits": 2 * focal.sum() / count}
    if not pairs:
        return losses | dict.fromkeys(("boxes", "giou", "points"), 0 * (found.boxes.sum() + found.points.sum()))
    box, true_box, point, true_point = (torch.cat(each) for each in zip(*pairs, strict=True))
    return losses | {
        "boxes": 5 * (box - true_box).abs().sum() / count,
        "giou": 2 * (1 - generalised_iou(box, true_box)).sum() / count,
        "points": 10 * ((point - true_point).abs() / true_box[:, None, 2:]).mean((1, 2)).sum() / count,
    }


def group_pose(**options) -> GroupPose:
    """Group Pose on faces, ours in size: 128 pixels, sixteen instances, three layers 64 wide."""
    return GroupPose(**options)
