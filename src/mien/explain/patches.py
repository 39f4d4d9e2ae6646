"""What attentive pooling keeps of a face."""

from collections.abc import Sequence

import numpy as np
import torch

from mien.errors import MienError
from mien.explain.panel import Legend, Panel, face, heat, heat_legend, kept
from mien.networks import APViT, Deployed
from mien.networks.apvit import Trace
from mien.networks.deploy import to_float

_DROPPED = Legend("white: dropped, and not seen by what comes after")


class Patches:
    """Draws which patches and tokens an APViT keeps of a face, a row of panels for each setting of its pooling.

    deployed: the network, as it is used.
    labels: what its answers are called.
    keep_patches: a row for each; by default as the network was made, and 3/4 and 1/2 of that where it can drop patches.
    keep_rate: one for all rows, or one for each; by default as the network was made.

    A row shows the face and how it is read; the patches that reach the blocks; what is left after every block that
    drops tokens in any of the rows; and what the class token attends to in the last block, the mean of its heads, among
    the tokens that reached it. What was dropped is white. A mixer without class attention has a grey last panel.

    Raises MienError for a network without attentive pooling, and for a setting that it cannot take.

    Paper: Xue et al., APViT, arXiv 2212.05463 (its figures of dropped patches).
    """

    def __init__(
        self,
        deployed: Deployed,
        labels: Sequence[str],
        keep_patches: Sequence[int | None] | None = None,
        keep_rate: Sequence[float] | None = None,
    ):
        network = deployed.network
        if not isinstance(network, APViT):
            raise MienError(f"{type(network).__name__} has no attentive pooling: it keeps every patch and token")
        self.deployed, self.network, self.labels = deployed, network, labels
        own, rates = network.keep_patches, keep_rate or [network.keep_rate]
        if not keep_patches:
            parts = () if network.select.soft else (3 / 4, 1 / 2)
            keep_patches = [own, *(max(1, round((own or network.num_patches) * part)) for part in parts)]
        rates = list(rates) * len(keep_patches) if len(rates) == 1 else rates
        self.settings = list(zip(keep_patches, rates, strict=True))
        for setting in self.settings:
            self._set(*setting)

    def __call__(self, crop: np.ndarray) -> list[list[Panel]]:
        """The rows of one face crop (S, S, 3) uint8 RGB, as the network's `preprocess` makes it."""
        traces = [self.trace(crop, *setting) for setting in self.settings]
        dropping = {i for trace in traces for i, b in enumerate(trace.blocks) if b.stayed.shape[1] < b.came.shape[1]}
        return [self._row(crop, trace, sorted(dropping)) for trace in traces]

    @torch.no_grad()
    def trace(self, crop: np.ndarray, keep_patches: int | None, keep_rate: float | Sequence[float]) -> Trace:
        """What the network does with one face crop, its pooling set so."""
        self._set(keep_patches, keep_rate)
        return self.network.trace(self.deployed.normalize(to_float(torch.from_numpy(crop)[None])))

    def _set(self, keep_patches: int | None, keep_rate: float | Sequence[float]) -> None:
        network = self.network
        try:
            network.keep_patches, network.keep_rate = keep_patches, keep_rate
        except ValueError as error:
            raise MienError(str(error)) from error

    def _row(self, crop: np.ndarray, trace: Trace, dropping: Sequence[int]) -> list[Panel]:
        patches, last = trace.patches[0].numpy(), trace.blocks[-1]
        title = f"{len(patches)} of {trace.worth.shape[1]} patches"
        panels = [
            Panel(read_as(trace.logits, self.deployed.temperature, self.labels), face(crop)),
            Panel(title, kept(crop, patches, trace.grid), _DROPPED),
        ]
        for i in dropping:
            came, stayed = trace.blocks[i].came[0], trace.blocks[i].stayed[0]
            title = f"block {i + 1}: {len(stayed)} of {len(came)} tokens"
            panels.append(Panel(title, kept(crop, stayed.numpy(), trace.grid), _DROPPED))
        if last.attn is None:
            mixer = type(self.network.vit.blocks[-1].attn).__name__
            grey = np.full_like(panels[0].picture, 128)
            return [*panels, Panel(f"{mixer} has no class attention", grey)]
        attn = last.attn[0].mean(0)[1:].numpy()  # without the class token's attention to itself
        picture = heat(crop, last.came[0].numpy(), attn, trace.grid)
        return [*panels, Panel(attended(attn), picture, attention_legend(attn))]


def read_as(logits: torch.Tensor, temperature: float, labels: Sequence[str]) -> str:
    """The likeliest label of logits (1, C), with its probability."""
    probs = (logits / temperature).softmax(-1)[0]
    return f"{labels[int(probs.argmax())]} {probs.max().item():.0%}"


def attended(attn: np.ndarray, where: str = "") -> str:
    """The title of a map of attention, with its greatest value."""
    return f"class attention{where}, up to {attn.max():.1%}"


def attention_legend(attn: np.ndarray) -> Legend:
    return heat_legend("share of the class token's attention, or of the pool's", float(attn.max()))
