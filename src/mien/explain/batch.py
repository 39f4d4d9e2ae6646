"""Who vouched for whom: a batch branch's attention between the faces of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mien.errors import MienError
from mien.explain.panel import Legend, Panel, face, percent
from mien.networks import Deployed, Network
from mien.nn.observe import attentions, observe

THUMB = 56
VOUCHERS = 5
LARGEST = 24  # faces of a grid whose pictures and shares can be read


@dataclass(frozen=True, eq=False)
class Vouching:
    """Attention (B, B) of the faces of a batch, in rows that add up to 1, each in the class of its own answer.

    index, probs: of each face the class (B,), and the probability of every class (B, C).
    """

    attn: np.ndarray
    index: np.ndarray
    probs: np.ndarray


class Batch:
    """Shows the faces of a batch as a training step would see them, and which others vouched for the answer of each.

    deployed: the network, as it is used.
    labels: what its answers are called.

    The batch branch takes part in training only: in reading a face's answer never depends on its neighbours. What is
    shown is its attention in eval mode, without dropout, with the weights of the checkpoint. BTN's attends class by
    class, and a face is looked at in the class of its own answer; ARBEx's has one attention for all.

    Raises MienError for a network without a batch branch.

    Paper: Her et al., Batch Transformer, arXiv 2407.04218.
    """

    def __init__(self, deployed: Deployed, labels: Sequence[str]):
        self.deployed, self.labels = deployed, labels
        if not has_batch_branch(deployed.network):
            raise MienError(
                f"{type(deployed.network).__name__} has no batch branch, so that no face vouches for another"
            )

    @torch.no_grad()
    def look(self, crops: np.ndarray) -> Vouching:
        """Of face crops (B, S, S, 3) uint8 RGB. Raises MienError for one face."""
        if len(crops) < 2:
            count = "one face" if len(crops) else "no faces"
            raise MienError(f"a batch of {count}: nobody is there who could vouch for somebody else")
        images = self.deployed.normalize(torch.from_numpy(crops).permute(0, 3, 1, 2).float() / 255)
        with observe(self.deployed.network, stages=["attn"]) as seen:
            answers = next(iter(self.deployed.network.training_logits(images).values()))
        attn = next(look.attn for look in seen.values() if look.layout.kind == "batch" and look.attn is not None)
        probs = (answers / self.deployed.temperature).softmax(-1).numpy()
        index = probs.argmax(1)
        attn = attn.float().numpy().reshape(-1, len(crops), len(crops))  # (C, B, B), or (1, B, B)
        rows = attn[index, np.arange(len(crops))] if len(attn) > 1 else attn[0]
        return Vouching(rows, index, probs)

    def row(self, crops: np.ndarray, found: Vouching, i: int) -> list[Panel]:
        """The face, and up to VOUCHERS that it attends to most, itself among them; without those of under a
        thousandth."""
        label = self.labels[found.index[i]]
        panels = [Panel(f"{label} {found.probs[i].max():.0%}", face(crops[i]))]
        for j in np.argsort(-found.attn[i], kind="stable")[:VOUCHERS]:
            if found.attn[i, j] < 1e-3:
                break
            who = "itself" if j == i else f"face {j + 1}, {self.labels[found.index[j]]}"
            words = f"share of the attention for {label}; alike for all faces it would be {percent(1 / len(crops))}"
            panels.append(Panel(f"{percent(found.attn[i, j])} {who}", face(crops[j]), Legend(words)))
        return panels

    def grid(self, crops: np.ndarray, found: Vouching, title: str) -> Image.Image:
        """Every face (rows) and how much it attends to every other (columns), the darker the more, up to LARGEST faces
        with their pictures and percents; more of them as a map of squares alone."""
        count, most = len(crops), max(float(found.attn.max()), 1e-12)
        small = count > LARGEST
        cell = max(2, 1200 // count) if small else THUMB
        left, top = (12, 40) if small else (THUMB + 120, THUMB + 64)
        page = Image.new("RGB", (max(left + count * cell + 12, 560), top + count * cell + 70), "white")
        brush, font = ImageDraw.Draw(page), ImageFont.load_default(12)
        brush.text((12, 10), title, "black", ImageFont.load_default(15))
        shares = np.rint(255 * (1 - 0.85 * found.attn / most)).astype(np.uint8)
        map_ = cv2.resize(shares, (count * cell, count * cell), interpolation=cv2.INTER_NEAREST)
        tint = np.stack([map_, 255 - (255 - map_) // 2, np.full_like(map_, 255)], -1)
        page.paste(Image.fromarray(tint), (left, top))
        for i in range(0 if small else count):
            for at in ((left - THUMB, top + i * cell), (left + i * cell, top - THUMB)):
                page.paste(Image.fromarray(crops[i]).resize((THUMB, THUMB), Image.Resampling.BOX), at)
            brush.text((left + i * cell + 2, top - THUMB - 14), f"{i + 1}", "black", font)
            words = f"{i + 1} {self.labels[found.index[i]]}\n{found.probs[i].max():.0%}"
            brush.multiline_text((8, top + i * cell + 14), words, "black", font)
            for j in range(count):
                text, dark = percent(found.attn[i, j]), found.attn[i, j] > 0.6 * most
                middle = (left + j * cell + cell // 2, top + i * cell + cell // 2)
                brush.text(middle, text, "white" if dark else "black", font, anchor="mm")
        note = (
            "A row is a face, and what it attends to in the class of its own answer.\n"
            f"White is 0, the darkest {percent(most)}; alike for all it would be {percent(1 / count)}."
        )
        brush.multiline_text((12, top + count * cell + 12), note, "black", font)
        return page


def has_batch_branch(network: torch.nn.Module) -> bool:
    """Whether faces attend to faces in the network's training pass."""
    if not isinstance(network, Network) or not attentions(network):
        return False
    size = getattr(network, "img_size", 112)
    with torch.no_grad(), observe(network, stages=["attn"]) as seen:
        network.training_logits(torch.zeros(2, 3, size, size))
    return any(look.layout.kind == "batch" for look in seen.values())
