"""ARBEx's reliability balancing: anchors and other faces correct predictions that are unsure."""

import math
import warnings
from typing import Literal

import torch
from torch import Tensor, nn

from mien.nn.attend import Attend
from mien.nn.gather import gather_faces
from mien.nn.observe import Layout


def confidence(log_probs: Tensor) -> Tensor:
    """How far from even: `1 - entropy / log C`, (B, C) -> (B, 1) in [0, 1]."""
    entropy = -(log_probs.exp() * log_probs).sum(dim=-1, keepdim=True)
    return (1 - entropy / math.log(log_probs.shape[-1])).clamp_min(0)


def mix(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """`log((1 - weight) · eᵃ + weight · eᵇ)`, with a finite gradient at weights of 0 and 1, too."""
    return torch.logaddexp(a + (1 - weight).clamp_min(1e-30).log(), b + weight.clamp_min(1e-30).log())


class ReliabilityBalancing(nn.Module):
    """Corrects the classes of unsure faces: features (B, D), logits (B, C) -> log p̂ (B, C), costs (B, C).

        p = softmax(logits);   c(·) = 1 - entropy(·) / log C
        d[n, k] = √(‖e - anchors[n, k]‖² + ε);   s[n] = Σ_k softmax over all (n, k) of -d / delta
        t = Σ_k softmax(proj(attention across the batch of q, k, v (B, C · K)))
        r = (c(s) · s + c(t) · t) / (c(s) + c(t))
        p̂ = (1 - trust) · p + trust · (c(p) · p + (1 - c(p)) · r)

    K is `num_anchors`, of a class. `costs[:, n] = c(p) · min_k d[n, k] / √D`: the center loss is a face's cost of its
    class. `anchor_loss`, to be lowered, keeps the anchors of different classes apart:

        -Σ_ij min(‖a_i - a_j‖², margin² · K · D) / (K² · √D);   a_i are all anchors of class i, one after the other

    In training faces attend to one another (`attention="batch"`); with `gather` to those of all processes (ours). With
    "alone" each attends to itself. With "none", and in `balance` unless `ask` is set, r = s.

    Departs from the published code, which starts all anchors at 0, where neither loss can tell them apart
    (`anchor_std=0`), lets the anchor loss fall for ever (`margin=None`), takes logarithms of what may be 0 (here
    everything is computed as logarithms), and has two linear layers in a row before q, k and v, which are one. As
    there, c(p) has a gradient: `detach_confidence` takes it away.

    Args:
        dim, num_classes: int, width of the features, and C, 2 at least.
        num_anchors: int from 1 on, anchors of a class; 1.
        delta: float above 0, of the distances; 1.
        attention: "batch", "alone" or "none"; batch.
        anchor_std: float, standard deviation of anchors at the start; 0.02.
        margin: float above 0, or None: no bound; 1.
        detach_confidence, gather: bool; False.

    Paper: Wasi et al., ARBEx, arXiv 2305.01486. Reference: takihasan/ARBEx, b85c37b.
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        num_anchors: int = 1,
        delta: float = 1.0,
        attention: Literal["batch", "alone", "none"] = "batch",
        anchor_std: float = 0.02,
        margin: float | None = 1.0,
        detach_confidence: bool = False,
        gather: bool = False,
    ):
        super().__init__()
        if num_classes < 2 or num_anchors < 1:
            raise ValueError(f"there is nothing to balance with {num_anchors} anchors for {num_classes} classes")
        if not delta > 0 or not (margin is None or margin > 0):
            raise ValueError(f"delta and margin must be above 0, not {delta!r} and {margin!r}")
        if attention not in ("batch", "alone", "none"):
            raise ValueError(f"attention must be 'batch', 'alone' or 'none', not {attention!r}")
        self.delta, self.attention, self.margin = delta, attention, margin
        self.detach_confidence, self.gather = detach_confidence, gather
        self.anchors = nn.Parameter(torch.randn(num_classes, num_anchors, dim) * anchor_std)
        self.qkv = self.attend = self.proj = None
        if attention != "none":
            width = num_classes * num_anchors
            self.qkv, self.attend, self.proj = nn.Linear(dim, 3 * width), Attend(), nn.Linear(width, width)

    def distances(self, features: Tensor) -> Tensor:
        """(B, D) -> d (B, C, K)."""
        dtype = torch.promote_types(features.dtype, torch.float32)
        offset = features.to(dtype)[:, None, None] - self.anchors.to(dtype)  # (B, C, K, D)
        return (offset.square().sum(dim=-1) + 1e-12).sqrt()

    def similarity(self, distances: Tensor) -> Tensor:
        """(B, C, K) -> log s (B, C)."""
        return self._by_class(-distances.flatten(1) / self.delta)

    def from_neighbours(self, features: Tensor) -> Tensor:
        """(B, D) -> log t (B, C)."""
        assert self.qkv is not None and self.attend is not None and self.proj is not None
        q, k, v = self.qkv(features).chunk(3, dim=-1)
        if self.attention == "alone":
            mixed = v
        else:
            if self.gather and self.training:
                k, v = gather_faces(torch.cat([k, v], dim=-1)).chunk(2, dim=-1)
            faces = (x[None, None] for x in (q, k, v))  # a sequence of B faces
            mixed = self.attend(*faces, layout=Layout("batch"))[0, 0]
        scores = self.proj(mixed)
        return self._by_class(scores.to(torch.promote_types(scores.dtype, torch.float32)))

    def others_say(self, features: Tensor) -> Tensor:
        """The old name of `from_neighbours`."""
        warnings.warn("others_say is now called from_neighbours", DeprecationWarning, stacklevel=2)
        return self.from_neighbours(features)

    def _by_class(self, scores: Tensor) -> Tensor:
        """(B, C · K) -> the logarithm of their softmax, added up by class (B, C)."""
        return scores.log_softmax(dim=-1).unflatten(-1, self.anchors.shape[:2]).logsumexp(dim=-1)

    def balance(
        self, features: Tensor, logits: Tensor, trust: float = 1.0, ask: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log p̂ (B, C), c(p) (B, 1) and the distances (B, C, K); `ask`: other faces count, too."""
        log_t = self.from_neighbours(features) if ask and self.qkv is not None else None
        with torch.autocast("cpu" if features.is_meta else features.device.type, enabled=False):
            distances = self.distances(features)
            correction = self.similarity(distances)
            if log_t is not None:
                by_anchors, by_others = confidence(correction), confidence(log_t)
                correction = mix(correction, log_t, (by_others + 1e-9) / (by_anchors + by_others + 2e-9))
            log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
            sure = confidence(log_probs)
            sure = sure.detach() if self.detach_confidence else sure
            return mix(log_probs, correction, trust * (1 - sure)), sure, distances

    def forward(self, features: Tensor, logits: Tensor, trust: float = 1.0) -> tuple[Tensor, Tensor]:
        log_probs, sure, distances = self.balance(features, logits, trust, ask=True)
        return log_probs, sure * distances.amin(dim=-1) / features.shape[-1] ** 0.5

    def anchor_loss(self) -> Tensor:
        """A scalar, 0 or below."""
        _, count, dim = self.anchors.shape
        flat = self.anchors.flatten(1).to(torch.promote_types(self.anchors.dtype, torch.float32))  # (C, K · D)
        square = (flat[:, None] - flat).square().sum(dim=-1)  # (C, C)
        if self.margin is not None:
            square = square.clamp_max(self.margin**2 * count * dim)
        return -square.sum() / (count**2 * dim**0.5)
