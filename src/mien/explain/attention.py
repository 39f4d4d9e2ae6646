"""What a class token attends to."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from mien.errors import MienError
from mien.explain.panel import Panel, face, heat
from mien.explain.patches import Patches, attended, attention_legend, read_as
from mien.networks import APViT, Deployed
from mien.nn import Block
from mien.nn.observe import Look, attentions, observe


class Attention:
    """Draws what the class token attends to, in the last attention of a network that has one: a row of panels.

    deployed: the network, as it is used.
    labels: what its answers are called.
    layer: the name of an attention, as `mien.nn.observe` has it; by default the last one that has a class token or a
        pool.
    head: the number of one of its heads, from 0; by default the mean of all.

    The face and how it is read, then the map: the mean of the heads (and of a pool's queries), without the class
    token's attention to itself. Where tokens come from several levels of maps, as in POSTER++ and BTN, each of these
    planes has a panel with a scale of its own, whose greatest value is in the title. A class token that stands before
    planes of square grids will do, and so will a pool whose queries attend to such tokens.

    Raises MienError for a layer or a head that is not there; the error lists those that are.
    """

    def __init__(self, deployed: Deployed, labels: Sequence[str], layer: str | None = None, head: int | None = None):
        self.deployed, self.labels, self.layer, self.head = deployed, labels, layer, head
        there = attentions(deployed.network)
        if layer is not None and there and layer not in there:
            kind = type(deployed.network).__name__
            raise MienError(f"{layer}: no attention of {kind} has such a name; there are {', '.join(there)}")

    def __call__(self, crop: np.ndarray) -> list[list[Panel]]:
        """The row of one face crop (S, S, 3) uint8 RGB; raises MienError where the network has no such attention."""
        network = self.deployed.network
        if isinstance(network, APViT):  # which knows where the tokens lie that it has kept
            return [self._among_kept(crop)]
        logits, values, (height, width) = self.look(crop)
        everywhere = np.arange(height * width)
        titles = [attended(m, f" {i + 1}" if len(values) > 1 else "") for i, m in enumerate(values)]
        panels = [
            Panel(title, heat(crop, everywhere, m, (height, width)), attention_legend(m))
            for title, m in zip(titles, values, strict=True)
        ]
        return [[Panel(read_as(logits, self.deployed.temperature, self.labels), face(crop)), *panels]]

    def _among_kept(self, crop: np.ndarray) -> list[Panel]:
        network: APViT = self.deployed.network
        names = [f"vit.blocks.{i}" for i in range(len(network.vit.blocks))]
        if self.layer is not None and self.layer not in names:
            raise MienError(f"{self.layer}: of what APViT keeps, attention is drawn of {', '.join(names)}")
        patches = Patches(self.deployed, self.labels, [network.keep_patches])
        trace = patches.trace(crop, *patches.settings[0])
        block = trace.blocks[-1 if self.layer is None else names.index(self.layer)]
        if block.attn is None:
            raise MienError(_no_class_attention(network))
        heads = block.attn[0, :, 1:].numpy()  # without the class token's attention to itself
        attn = heads.mean(0) if self.head is None else heads[self._number(len(heads), self.layer or names[-1])]
        picture = heat(crop, block.came[0].numpy(), attn, trace.grid)
        answer = Panel(read_as(trace.logits, self.deployed.temperature, self.labels), face(crop))
        return [answer, Panel(attended(attn), picture, attention_legend(attn))]

    def _number(self, count: int, name: str) -> int:
        if self.head is None or self.head >= count:
            raise MienError(f"{name} has no head {self.head}: its heads are 0 to {count - 1}")
        return self.head

    @torch.no_grad()
    def look(self, crop: np.ndarray) -> tuple[Tensor, np.ndarray, tuple[int, int]]:
        """The logits (1, C) of a face, its class attention (planes, H · W), and the grid (H, W) of each plane."""
        network = self.deployed.network
        if not attentions(network):
            raise MienError(f"{type(network).__name__} has no attention to look at")
        with observe(network, self.layer or "*", stages=["attn"]) as seen:
            logits = self.deployed(torch.from_numpy(crop)[None])[0]
        for name, look in reversed(seen.items()):
            if class_map(look) is None:
                continue
            if self.head is not None and look.attn is not None:
                number = self._number(look.attn.shape[1], name)
                look = replace(look, attn=look.attn[:, number : number + 1])
            if (found := class_map(look)) is not None:
                return logits, *found
        if self.layer is not None:
            raise MienError(f"{self.layer}: no class token or pool attends to a grid of tokens there")
        raise MienError(_no_class_attention(network))


def class_map(look: Look) -> tuple[np.ndarray, tuple[int, int]] | None:
    """What a class token or the queries of a pool attend to, (planes, H · W) and the grid; None where there is none."""
    layout, attn = look.layout, look.attn
    if attn is None or attn.ndim != 4 or len(attn) != 1:
        return None
    if layout.kind != "class" and not (layout.kind == "token" and layout.prefix):
        return None
    queries = attn[0, :, :1] if layout.kind == "token" else attn[0]
    values = queries[..., layout.prefix :].float().mean((0, 1))
    if values.max() <= 1e-6:  # a first token that sees none of those behind it
        return None
    count, grid = layout.planes, layout.grid
    if grid is None:
        count, side = planes(len(values))
        grid = (side, side)
    if not count or len(values) != count * grid[0] * grid[1]:
        return None
    return values.view(count, -1).numpy(), grid


def _no_class_attention(network: nn.Module) -> str:
    blocks = (part for part in network.modules() if isinstance(part, Block))
    mixers = dict.fromkeys(type(block.attn).__name__ for block in blocks)
    name, of = type(network).__name__, f" (its blocks are of {', '.join(mixers)})" if mixers else ""
    return f"{name} has no class token or pool that attends to a grid of tokens{of}"


def planes(count: int) -> tuple[int, int]:
    """How many squares `count` tokens make, the fewest possible, and their side; (0, 0) where they make none."""
    for number in range(1, 5):
        side = math.isqrt(count // number)
        if side > 1 and number * side * side == count:
            return number, side
    return 0, 0
