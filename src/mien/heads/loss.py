"""What DirectMHP learns from: boxes, objectness, angles."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mien.networks.directmhp import STRIDE, read_grid

WEIGHTS = {"box": 0.05, "objectness": 0.7, "angles": 0.1}


def complete_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """`IoU - d² / c² - α v` of boxes (…, 4), x, y, width and height: 1 where they are equal, down to -1.5 or so.

    d is the distance of the centres, c the diagonal of the smallest box about both;
    `v = 4/π² (atan(w/h) - atan(w'/h'))²`, `α = v / (1 - IoU + v)`, which has no gradient.

    Paper: Zheng et al., Distance-IoU Loss, AAAI 2020.
    """
    (low, size), (low_, size_) = ((b[..., :2], b[..., 2:]) for b in (boxes, others))
    high, high_ = low + size, low_ + size_
    shared = (torch.minimum(high, high_) - torch.maximum(low, low_)).clamp_min(0).prod(-1)
    iou = shared / (size.prod(-1) + size_.prod(-1) - shared).clamp_min(1e-9)
    around = (torch.maximum(high, high_) - torch.minimum(low, low_)).square().sum(-1)
    apart = ((low + high - low_ - high_) / 2).square().sum(-1)
    shape = [torch.atan2(s[..., 0], s[..., 1]) for s in (size, size_)]
    v = 4 / math.pi**2 * (shape[0] - shape[1]).square()
    alpha = (v / (1 - iou + v).clamp_min(1e-9)).detach()
    return iou - apart / around.clamp_min(1e-9) - alpha * v


def angle_distance(codes: Tensor, truth: Tensor, wrapped: bool = True) -> Tensor:
    """‖Δ‖₂ of encoded angles (…, 3) -> (…); with `wrapped` the yaw's part is `min(|Δ|, 1 - |Δ|)`, the shorter way."""
    gap = (codes - truth).abs()
    if wrapped:
        gap = torch.stack([gap[..., 0], torch.minimum(gap[..., 1], 1 - gap[..., 1]), gap[..., 2]], -1)
    return (gap.square().sum(-1) + 1e-12).sqrt()  # of 0 the root has no gradient


def assign(boxes: Tensor, rows: int, columns: int) -> Tensor:
    """Which head each cell of a grid answers for: boxes (n, 4) -> (rows · columns,) numbers of heads, -1 for none.

    A head has the cells whose centres lie within a quarter of its sides about its centre, and always the cell that its
    centre lies in. Of two heads that claim a cell the smaller one has it. (Ours: the published detector has anchors.)
    """
    owner = torch.full((rows, columns), -1)
    for i in boxes[:, 2:].prod(1).argsort(descending=True).tolist():
        x, y, w, h = (boxes[i] / STRIDE).tolist()
        cx, cy = x + w / 2, y + h / 2
        column, row = min(int(cx), columns - 1), min(int(cy), rows - 1)
        left, right = math.ceil(cx - w / 4 - 0.5), math.floor(cx + w / 4 - 0.5)
        top, bottom = math.ceil(cy - h / 4 - 0.5), math.floor(cy + h / 4 - 0.5)
        owner[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = i
        owner[row, column] = i
    return owner.flatten()


def directmhp_loss(
    values: Tensor,
    boxes: list[Tensor],
    angles: list[Tensor],
    *,
    wrapped: bool = True,
    threshold: float = 0.0,
    weights: dict[str, float] = WEIGHTS,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`Σ weight · part` of a batch, and the parts: box 1 - CIoU, objectness, angles ‖Δ‖₂, as means.

    values: what the network gives, (B, 8, h, w). boxes: of each picture (n, 4), in pixels. angles: (n, 3), encoded.
    wrapped: yaw's shorter way round (`angle_distance`). threshold: cells whose score is not above it have no share in
    the angles' mean, as in the paper's code, where a head is matched to an anchor that may not be sure of it.

    Box and angles are means over cells that answer for a head, objectness over all cells: binary cross entropy with the
    IoU of their box there, and with 0 elsewhere. That the target is the IoU is *inferred*.
    """
    rows, columns = values.shape[-2:]
    scores, found, codes = read_grid(values)
    objectness = values[:, 0].flatten(1)
    target = torch.zeros_like(objectness)
    at = [assign(one, rows, columns) for one in boxes]
    owned = torch.stack(at) >= 0
    if not owned.any():
        nothing = values.sum() * 0
        parts = {
            "box": nothing,
            "objectness": F.binary_cross_entropy_with_logits(objectness, target),
            "angles": nothing,
        }
        return sum(weights[name] * part for name, part in parts.items()), parts
    true_boxes = torch.cat([one[a[a >= 0]] for one, a in zip(boxes, at, strict=True)])
    true_codes = torch.cat([one[a[a >= 0]] for one, a in zip(angles, at, strict=True)])
    similar = complete_iou(found[owned], true_boxes)
    target[owned] = similar.detach().clamp(0, 1)
    sure = (scores[owned] > threshold).to(values)
    turn = angle_distance(codes[owned], true_codes, wrapped)
    parts = {
        "box": (1 - similar).mean(),
        "objectness": F.binary_cross_entropy_with_logits(objectness, target),
        "angles": (turn * sure).sum() / sure.sum().clamp_min(1),
    }
    return sum(weights[name] * part for name, part in parts.items()), parts
