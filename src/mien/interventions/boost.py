"""Scores of patches raised before the softmax: those that a first look found, and those that stand out anyway."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mien.interventions.base import Intervention, Site, check, find_sites, intervene_on, with_class_token
from mien.nn.observe import Layout, Stage, observe


def choose_patches(first: Tensor, penultimate: Tensor, local: float = 0.25) -> tuple[Tensor, Tensor]:
    """The two sets of patches, of a class token's attention in two layers: (B, heads, N) twice -> (B, N) bool twice.

        S2 = the m greatest of Σ_heads penultimate,   m = floor(N · share of values above Q3 + 1.5 · (Q3 - Q1))
        S1 = the floor(local · N) greatest of Σ_heads first, without S2

    Patches of which penultimate is NaN are gone, and belong to S1 at most. Quartiles are interpolated.
    """
    one, two = first.sum(1), penultimate.sum(1)
    there = two.isfinite()
    low, high = (torch.nanquantile(two.double(), q, 1, keepdim=True) for q in (0.25, 0.75))
    outside = (two > high + 1.5 * (high - low)).sum(1, keepdim=True)
    count = there.sum(1, keepdim=True)
    salient = _greatest(two.nan_to_num(nan=-math.inf), torch.floor(count * (outside.double() / count)))
    return _greatest(one, math.floor(local * one.shape[1])) & ~salient, salient


def _greatest(values: Tensor, count: Tensor | int) -> Tensor:
    """Which of (B, N) are among so many greatest of their row."""
    return values.argsort(dim=1, descending=True, stable=True).argsort(dim=1) < count


def boost(scores: Tensor, local: Tensor, salient: Tensor, alpha: float, beta: float, odds: bool = False) -> Tensor:
    """Scores (…, N), raised on two sets that broadcast to them: `w + α |w|` on the first, `w + β |w|` on the second.

    odds: `w + log(1 + α)` and `w + log(1 + β)` in their place: whatever is added to all scores of a row then changes
    nothing, and a weight grows by 1 + α before the row is normalised.
    """
    gain = alpha * local.to(scores.dtype) + beta * salient.to(scores.dtype)
    return scores + (gain.log1p() if odds else gain * scores.abs())


class ScoreBoost(Intervention):
    """The class token's scores of some patches are raised, in a second pass, by what the first pass attended to.

    A first pass gives the class token's attention in the first and the last but one layer (in the only one, where there
    is one), of which `choose_patches` makes two sets of patches a face; in the second, `boost` raises their scores in
    the class token's row. variant="published" adds α |w|, which depends on what a row's scores have in common though
    the softmax does not; variant="odds", ours, multiplies the odds instead. The published code has a further set by
    rows of the map, with a share of 0, which is left out; of a gain by head, which its abstract speaks of, there is
    nothing in it. *Inferred*: that a class token takes the place of a language model's last query, and that patches
    which the network drops on its way count in the first set only.

    Args:
        alpha, beta: float from 0 on, of the local and the salient set; 0.7 and 0.3. Both 0 move nothing.
        variant: "published" or "odds"; published.
        local: float in [0, 1], share of the patches in the local set; 0.25.
        layers: patterns of mechanisms whose scores are raised; all. The sets are chosen in the network's own, always.

    Paper: Arif et al., Fixing Imbalanced Attention, arXiv 2501.12206. Reference: hasanar1f/llava-hallunication-fix,
    c5ee7da.
    """

    def __init__(
        self,
        alpha: float = 0.7,
        beta: float = 0.3,
        variant: Literal["published", "odds"] = "published",
        local: float = 0.25,
        layers: Sequence[str] | str = "*",
    ):
        if variant not in ("published", "odds"):
            raise ValueError(f"the variant is 'published' or 'odds', not {variant!r}")
        self.alpha, self.beta = check("alpha", alpha), check("beta", beta)
        self.odds, self.local = variant == "odds", check("local", local, 0, 1)
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        self.moved: Sequence[Site] = ()

    @property
    def strength(self) -> float:
        return max(self.alpha, self.beta)

    def learn(self, network: nn.Module, batches: Sequence[Tensor]) -> None:
        self.moved = with_class_token(self.sites, "boost")
        self.sites = with_class_token(find_sites(network, batches[0][:1]), "boost")  # all, to choose in
        if len(self.sites) == 1:
            self.notes = [f"both sets are chosen in {self.sites[0].name}, the only layer with a class token"]

    @torch.no_grad()
    def choose(self, network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """The sets that a first pass finds, (B, N) bool each, numbered as the first layer has the patches."""
        first, late = self.sites[0], self.sites[max(0, len(self.sites) - 2)]
        left = _Left(network, self.sites[0].block)
        where: list[Tensor | None] = []
        hook = None if late.block is None else late.block.register_forward_pre_hook(lambda *_: where.append(left.index))
        try:
            with observe(network, first.name, late.name, stages=["attn"]) as seen:
                network(images)
        finally:
            for each in (left, hook):
                if each is not None:
                    each.remove()
        one, two = (_class_row(seen[site.name].attn, site.prefix) for site in (first, late))
        if where and (index := where[-1]) is not None:  # numbered anew since some were dropped
            gone = torch.full_like(one, math.nan)
            two = gone.scatter(2, index[:, None].expand(-1, one.shape[1], -1), two)
        return choose_patches(one, two, self.local)

    def within(self, network: nn.Module, images: Tensor) -> AbstractContextManager[Any]:
        sets = self.choose(network, images)
        left = _Left(network, self.sites[0].block)
        rules = {}
        for site in self.moved:

            def rule(stage: Stage, scores: Tensor, layout: Layout, prefix: int = site.prefix) -> Tensor:
                if stage != "scores":
                    return scores
                here = [each if left.index is None else each.gather(1, left.index) for each in sets]
                local, salient = (each[:, None] for each in here)
                row = boost(scores[:, :, 0, prefix:], local, salient, self.alpha, self.beta, self.odds)
                scores = scores.clone()
                scores[:, :, 0, prefix:] = row
                return scores

            rules[site.name] = rule
        return intervene_on(network, rules, left)


def _class_row(attn: Tensor | None, prefix: int) -> Tensor:
    """What the class token gives to patches, (B, heads, N)."""
    assert attn is not None
    return attn[:, :, 0, prefix:]


class _Left:
    """Which of the patches that the first layer was given are left: `index` (B, n), None as long as all are."""

    def __init__(self, network: nn.Module, first: nn.Module | None):
        self.index: Tensor | None = None
        selects = [getattr(part, "select", None) for part in network.modules() if hasattr(part, "attn")]
        self.hooks = [s.register_forward_hook(self.fewer) for s in selects if isinstance(s, nn.Module)]
        if first is not None:
            self.hooks.append(first.register_forward_pre_hook(self.begin))

    def begin(self, *_: Any) -> None:
        self.index = None

    def fewer(self, _: nn.Module, given: Any, result: tuple[Tensor, Tensor]) -> None:
        kept = result[1]
        self.index = kept if self.index is None else self.index.gather(1, kept)

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()
