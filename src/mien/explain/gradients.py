"""Explanations by gradients: Grad-CAM and integrated gradients, of any network in torch."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mien.errors import MienError
from mien.explain.explanation import Explanation, answered, mean_colour
from mien.explain.layers import record, squares
from mien.networks import Deployed
from mien.networks.deploy import to_float


class GradCAM:
    """Where a layer's maps A speak for an answer: `relu(Σ_k mean(∂z/∂A_k) A_k)`, z the logit of the answer.

    Of a network that sees the face and its mirror image, both maps are added, the second one turned back.

    Args:
        deployed, labels: the network, and what its answers are called.
        layer: the dotted name of a module that gives maps (B, K, H, W), or tokens (B, N, K) that make squares behind a
            class token; by default the last maps on the way to the logits.

    Raises MienError for a layer that is not there or gives no maps.

    Paper: Selvaraju et al., Grad-CAM, arXiv 1610.02391. Equal to captum's LayerGradCam.
    """

    def __init__(self, deployed: Deployed, labels: Sequence[str], layer: str | None = None):
        self.deployed, self.labels, self.layer = deployed, labels, layer

    def explain(self, crop: np.ndarray, target: str | None = None) -> Explanation:
        images = to_float(torch.from_numpy(crop)[None]).requires_grad_()
        with torch.enable_grad(), record(self.deployed.network, self.layer) as seen:
            logits = self.deployed.network(self.deployed.normalize(images))
        probs = (logits.detach() / self.deployed.temperature).softmax(-1)[0].numpy()
        index = answered(probs, self.labels, target)
        for name, maps in reversed(seen.items()):
            [slope] = torch.autograd.grad(logits[0, index], maps, retain_graph=True, allow_unused=True)
            if slope is not None:
                layer = name
                break
        else:
            kind = type(self.deployed.network).__name__
            raise MienError(
                f"{self.layer}: the answer of {kind} does not depend on maps of it" if self.layer else
                f"{kind} has no layer that gives maps"
            )  # fmt: skip
        values = cam(maps.detach(), slope, getattr(self.deployed.network, "mirror", False)).numpy()
        label, unit = (
            self.labels[index],
            f"how strongly {layer} speaks for {self.labels[index]}, of the strongest place",
        )
        return Explanation("Grad-CAM", values / max(values.max(), 1e-12), index, label, float(probs[index]), unit)


def cam(maps: Tensor, slope: Tensor, mirror: bool = False) -> Tensor:
    """Maps (1, K, H, W), or tokens (1, N, K), and the logit's gradient with respect to them -> (planes, H, W).

    mirror: there are two, of the face and of its mirror image.
    """
    if maps.ndim == 3:
        count, prefix, side = squares(maps.shape[1])
        weights = slope[0].mean(0)
        return (maps[0, prefix:] @ weights).view(count, side, side).relu()
    both = (slope.mean((2, 3), keepdim=True) * maps).sum(1)  # (1 or 2, H, W)
    if mirror and len(both) == 2:
        both = both[:1] + both[1:].flip(-1)
    return both[:1].relu()


class IntegratedGradients:
    """What every pixel adds to an answer on the way from a face without features to the face:

        values = Σ_channels (x - x₀) · mean over t of ∂p/∂x at x₀ + t (x - x₀)

    x is the crop as numbers from 0 to 1, x₀ its mean colour, p the probability of the answer. Over all pixels the
    values add up to p(x) - p(x₀), but for the error of `steps` steps, each taken in its middle.

    Args:
        deployed, labels: the network, and what its answers are called.
        steps: int from 1 on; 32.
        batch_size: int from 1 on, steps taken at a time; 16.

    Paper: Sundararajan et al., Axiomatic Attribution for Deep Networks, arXiv 1703.01365. Equal to captum's
    IntegratedGradients with the method riemann_middle.
    """

    def __init__(self, deployed: Deployed, labels: Sequence[str], steps: int = 32, batch_size: int = 16):
        self.deployed, self.labels, self.steps, self.batch_size = deployed, labels, steps, batch_size

    def probs(self, images: Tensor) -> Tensor:
        logits = self.deployed.network(self.deployed.normalize(images))
        return (logits / self.deployed.temperature).softmax(-1)

    def explain(self, crop: np.ndarray, target: str | None = None) -> Explanation:
        x, start = (to_float(torch.tensor(each)[None]) for each in (crop, mean_colour(crop)))
        with torch.no_grad():
            probs = self.probs(x)[0].numpy()
        index = answered(probs, self.labels, target)
        moments, slope = (torch.arange(self.steps) + 0.5) / self.steps, torch.zeros_like(x)
        for part in moments.split(self.batch_size):
            between = (start + part[:, None, None, None] * (x - start)).requires_grad_()
            with torch.enable_grad():
                chosen = self.probs(between)[:, index].sum()
            slope += torch.autograd.grad(chosen, between)[0].sum(0, keepdim=True)
        values = ((x - start) * slope / self.steps).sum(1).numpy()
        label, unit = self.labels[index], f"what a part adds to the probability of {self.labels[index]}"
        return Explanation("integrated gradients", values, index, label, float(probs[index]), unit, signed=True)
