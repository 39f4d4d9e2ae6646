"""What a class token attends to."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mien.errors import MienError
from mien.explain.panel import Panel, face, heat
from mien.explain.patches import Patches, attended, read_as
from mien.networks import APViT, Deployed
from mien.nn import Attend, TalkingHeads


class Attention:
    """Draws what the class token attends to in the last attention of a network: a row of panels.

    The face and how it is read, then the map: the mean of the heads, without the class token's own share. Where tokens
    come from several levels of maps, as in POSTER++ and BTN, each of these planes has a panel. Whatever network keeps
    the class token first, before k · s · s others, will do.
    """

    def __init__(self, deployed: Deployed, labels: Sequence[str]):
        self.deployed, self.labels = deployed, labels

    def __call__(self, crop: np.ndarray) -> list[list[Panel]]:
        """The row of one face crop (S, S, 3) uint8 RGB; raises MienError where the network has no such attention."""
        network = self.deployed.network
        if isinstance(network, APViT):  # which knows where those lie that it has not dropped
            [row] = Patches(self.deployed, self.labels, [network.keep_patches])(crop)
            return [[row[0], row[-1]]]
        logits, attn = self.look(crop)
        count, side = planes(attn.shape[-1] - 1) if len(attn) == 1 else (0, 0)
        if not count:
            raise MienError(f"{type(network).__name__} attends last to something else than a class token and a grid")
        maps = attn[0, :, 0, 1:].float().mean(0).view(count, -1).numpy()
        titles = [attended(m, f" {i + 1}" if count > 1 else "") for i, m in enumerate(maps)]
        everywhere, most = np.arange(side * side), float(maps.max())  # one scale, so that planes compare
        panels = [Panel(t, heat(crop, everywhere, m, (side, side), most)) for t, m in zip(titles, maps, strict=True)]
        return [[Panel(read_as(logits, self.deployed.temperature, self.labels), face(crop)), *panels]]

    @torch.no_grad()
    def look(self, crop: np.ndarray) -> tuple[Tensor, Tensor]:
        """The logits (1, C) of a face, and attn (1, heads, queries, tokens) where the network attends last."""
        found, hooks = [], []
        for module in self.deployed.network.modules():
            if isinstance(module, Attend | TalkingHeads):
                module.open = True
                hooks.append(module.weights.register_forward_hook(lambda _, __, attn: found.append(attn)))
        try:
            logits, _ = self.deployed(torch.from_numpy(crop)[None])
        finally:
            for hook in hooks:
                hook.remove()
        if not found:
            raise MienError(f"{type(self.deployed.network).__name__} has no attention to look at")
        return logits, found[-1]


def planes(count: int) -> tuple[int, int]:
    """How many squares `count` tokens make, the fewest possible, and their side; (0, 0) where they make none."""
    for number in range(1, 5):
        side = math.isqrt(count // number)
        if side > 1 and number * side * side == count:
            return number, side
    return 0, 0
