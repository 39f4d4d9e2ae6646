"""Heads that depend on what is seen: how far their outputs move without it, and making them louder."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mien.interventions.base import Intervention, Site, check, find_sites, intervene_on
from mien.interventions.without import Baseline, Region, Without
from mien.nn.observe import Layout, Stage, intervene


def choose_heads(divergence: Tensor, bare: Tensor) -> tuple[Tensor, Tensor]:
    """The heads to make louder, and the divergence without outliers: (B, heads) twice -> (B, heads) bool, (B, heads).

        outlier:  divergence > mean + std  and  |A without|² > mean + std      over the heads of a layer -> 0
        chosen:   divergence > median

    bare: `|A without|²`, of the outputs without what is to be seen. *Inferred*: std divides by heads - 1; the median of
    an even number is the mean of the middle two.
    """
    outlier = torch.ones_like(divergence, dtype=torch.bool)
    if divergence.shape[1] > 1:
        for values in (divergence, bare):
            outlier &= values > values.mean(1, keepdim=True) + values.std(1, keepdim=True)
    left = divergence.masked_fill(outlier & (divergence.shape[1] > 1), 0)
    return left > left.quantile(0.5, 1, keepdim=True), left


def total_divergence(divergences: Sequence[Tensor], k: int) -> Tensor:
    """T-VHD, the sum over layers of the k greatest divergences, (B, heads) each -> (B,)."""
    return torch.stack([values.topk(min(k, values.shape[1]), 1).values.sum(1) for values in divergences]).sum(0)


class _Two:
    """A rule for faces (B) and the same without (B): measures each layer, and makes chosen heads of both louder."""

    def __init__(self, alpha: float):
        self.alpha = alpha
        self.divergence: dict[str, Tensor] = {}
        self.left: dict[str, Tensor] = {}
        self.chosen: dict[str, Tensor] = {}

    def at(self, site: Site) -> Callable[[Stage, Tensor, Layout], Tensor]:
        def rule(stage: Stage, heads: Tensor, layout: Layout) -> Tensor:
            if stage != "heads":
                return heads
            read = heads[:, :, 0] if site.prefix else heads.mean(2)  # (2 B, heads, head_dim)
            seen, bare = read.to(torch.promote_types(read.dtype, torch.float32)).chunk(2)
            self.divergence[site.name] = (seen - bare).norm(dim=-1)
            found = choose_heads(self.divergence[site.name], bare.square().sum(-1))
            self.chosen[site.name], self.left[site.name] = found
            return louder(heads, found[0].repeat(2, 1), self.alpha)

        return rule


def louder(heads: Tensor, chosen: Tensor, alpha: float) -> Tensor:
    """(B, heads, N, head_dim), multiplied by alpha where chosen (B or 1, heads)."""
    return heads * torch.where(chosen, alpha, 1.0).to(heads.dtype)[..., None, None]


def _both(
    network: nn.Module, images: Tensor, without: Tensor, sites: Sequence[Site], alpha: float, context: Any
) -> _Two:
    two = _Two(alpha)
    with torch.no_grad(), context, intervene(network, {site.name: two.at(site) for site in sites}):
        network(_joined(images, without))
    return two


def _joined(images: Any, without: Any) -> Any:
    """Both behind one another; they may be the maps of a network's `front`, too."""
    if isinstance(images, tuple):
        return tuple(torch.cat(pair) for pair in zip(images, without, strict=True))
    return torch.cat([images, without])


def head_divergence(
    network: nn.Module, images: Tensor, without: Tensor, sites: Sequence[Site] | None = None
) -> dict[str, Tensor]:
    """VHD: how far the output of each head moves when a face is taken away, by mechanism, (B, heads).

        | A_i(images) - A_i(without) |_2,   A_i (head_dim) before the output projection, at the class token

    network: in eval mode.
    images: (B, 3, S, S), or what else the network reads.
    without: the same images without the face.
    sites: the mechanisms; None: all in which tokens attend to tokens.

    Where there is no class token, A_i is the mean over queries. Raises MienError where no tokens attend to tokens.
    """
    sites = find_sites(network, images[:1]) if sites is None else sites
    return _both(network, images, without, sites, 1.0, nullcontext()).divergence


class HeadReinforcement(Intervention):
    """Heads that a face moves more than the median head of their layer are multiplied by alpha, at every token: VHR.

    A face and its baseline are read side by side; layer by layer heads are chosen by `choose_heads`, and made louder in
    both, so that higher layers are judged as they will be. Then the face is read with the chosen heads louder. With
    mode="static" the choice is one for all faces: *inferred*, by the divergence, outliers taken out, averaged over the
    faces that it is fitted to, without lower layers being louder. What is published is that alpha is 2, and layers that
    were chosen for a language model; here all are moved unless `layers` says which. A class token takes the place of
    the position that is being generated.

    Args:
        alpha: float from 0 on; 2. 1 moves nothing.
        mode: "per_sample" or "static"; per_sample.
        baseline: "mean", "zero" or "positions", of `Without`; mean.
        region: "face", "eyes" or "mouth", what of it is taken away; face.
        layers: patterns of mechanisms; all.

    Paper: He et al., Cracking the Code of Hallucination, arXiv 2412.13949. Reference: its equations 4 to 7 and
    algorithm 1; its code was not to be had.
    """

    def __init__(
        self,
        alpha: float = 2.0,
        mode: Literal["per_sample", "static"] = "per_sample",
        baseline: Baseline = "mean",
        region: Region = "face",
        layers: Sequence[str] | str = "*",
    ):
        if mode not in ("per_sample", "static"):
            raise ValueError(f"the mode is 'per_sample' or 'static', not {mode!r}")
        self.alpha, self.static, self.without = check("alpha", alpha), mode == "static", Without(baseline, region)
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers)
        self.chosen: dict[str, Tensor] = {}

    @property
    def strength(self) -> float:
        return abs(self.alpha - 1)

    def learn(self, network: nn.Module, batches: Sequence[Tensor]) -> None:
        self.without.fit(batches)
        seen = batches if self.static else batches[:1]  # of the others only notes are made
        found = [self._compare(network, images, 1.0) for images in seen]
        mean = {site.name: torch.cat([two.left[site.name] for two in found]).mean(0) for site in self.sites}
        taken = f"{self.without.region} ({self.without.baseline}), mean of {sum(map(len, seen))} faces"
        self.notes = [
            f"{name}: divergence without {taken}: {', '.join(f'{value:.3f}' for value in values.tolist())}"
            for name, values in mean.items()
        ]
        if self.static:
            self.chosen = {name: (values > values.quantile(0.5))[None] for name, values in mean.items()}
            self.notes += [
                f"{name}: louder for all faces: heads {', '.join(map(str, torch.nonzero(one[0])[:, 0].tolist()))}"
                for name, one in self.chosen.items()
            ]

    def choose(self, network: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
        """The heads that are made louder for each face, (B or 1, heads) bool, by mechanism."""
        return self.chosen if self.static else self._compare(network, images, self.alpha).chosen

    def _compare(self, network: nn.Module, images: Tensor, alpha: float) -> _Two:
        behind = self.without.behind(network, len(images[0] if isinstance(images, tuple) else images))
        return _both(network, images, self.without.images(images), self.sites, alpha, behind)

    def within(self, network: nn.Module, images: Tensor) -> AbstractContextManager[Any]:
        chosen = self.choose(network, images)

        def at(name: str) -> Callable[[Stage, Tensor, Layout], Tensor]:
            return lambda stage, heads, _: louder(heads, chosen[name], self.alpha) if stage == "heads" else heads

        return intervene_on(network, {site.name: at(site.name) for site in self.sites})
