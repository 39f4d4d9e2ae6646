"""Visual attention sinks: tokens that take attention and say little, and giving it to the others."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mien.errors import MienError
from mien.interventions.base import Intervention, Site, check, find_sites, intervene_on, on_tokens, with_class_token
from mien.nn.observe import Layout, Stage, observe

PUBLISHED_C = 20 / 64
"""Of the threshold c · √D: 20 where D is 4096. |rmsnorm(x)_d| is at most √D, so 20 alone would never fire below 400."""


@dataclass(frozen=True)
class SinkLayer:
    """The sinks of one mechanism.

    dims: in which they stand out. tokens: of a face, on average. class_mass: the share of the class token's attention
    that goes to them, its own place left out. patch_share: of the sinks, those that are patches. greatest: the largest
    |rmsnorm| of all; threshold: what makes a sink; width: D. cells: by patch, how many faces have a sink there, (N,);
    of patches that were dropped on the way nothing is known, and N is what is left.
    """

    name: str
    dims: tuple[int, ...]
    tokens: float
    class_mass: float
    patch_share: float
    greatest: float
    threshold: float
    width: int
    cells: Tensor = field(repr=False, compare=False)

    def __str__(self) -> str:
        if not self.dims:
            return (
                f"{self.name}: no attention sinks (|rmsnorm| up to {self.greatest:.2f}, threshold {self.threshold:.2f})"
            )
        return (
            f"{self.name}: sinks in dimension {', '.join(map(str, self.dims))}: {self.tokens:.2f} tokens a face, "
            f"{self.patch_share:.0%} of them patches, with {self.class_mass:.1%} of the class token's attention"
        )


def rmsnorm(tokens: Tensor, eps: float = 1e-6) -> Tensor:
    """`x / √(mean_d x² + eps)`, in at least fp32."""
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return tokens * torch.rsqrt(tokens.square().mean(-1, keepdim=True) + eps)


def find_sinks(tokens: Tensor, dims: Sequence[int], threshold: float) -> Tensor:
    """Which tokens are sinks: `max_{d in dims} |rmsnorm(x)_d| > threshold`, (B, N, D) -> (B, N) bool."""
    if not dims:
        return torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
    return rmsnorm(tokens)[..., list(dims)].abs().amax(-1) > threshold


def find_dims(tokens: Tensor, threshold: float, beyond: float = 5.0) -> tuple[int, ...]:
    """The dimensions in which sinks stand out, by data: (B, N, D) -> their numbers.

    *Inferred*, since published ones are of one language model: those whose 99.9th percentile of |rmsnorm| over all
    tokens is above the threshold, and above `beyond` times the median of all |rmsnorm|.
    """
    values = rmsnorm(tokens).abs().flatten(0, -2)
    high = values.kthvalue(max(1, math.ceil(0.999 * len(values))), 0).values  # torch.quantile takes no more than 2²⁴
    return tuple(torch.nonzero((high > threshold) & (high > beyond * values.median()))[:, 0].tolist())


def redistribute(
    attn: Tensor, sinks: Tensor, image: Tensor, p: float = 0.6, rho: float = 0.5, summ: float = 0.2
) -> Tensor:
    """Give a part of what sinks have to other image tokens, in rows that look at the image: VAR.

        row is image-centric:  Σ_{image and sink} a / Σ_image (a + 1e-6) <= rho   and   Σ_image a >= summ
        there  a_sink -> p · a_sink,   and for other image keys  a_j -> a_j · (1 + (1 - p) · Σ_sink a / Σ_others a)

    attn: (B, heads, Q, K). sinks: (B, K) bool. image: (K,) bool. Rows keep their sum; faces without a sink in the image
    are left alone.
    """
    sink, seen = sinks[:, None, None], image & ~sinks[:, None, None]
    mass = (attn * image).sum(-1, keepdim=True)
    share = (attn * (image & sink)).sum(-1, keepdim=True) / ((attn + 1e-6) * image).sum(-1, keepdim=True)
    others = (attn * seen).sum(-1, keepdim=True)
    moved = (share <= rho) & (mass >= summ) & (others > 0) & (image & sink).any(-1, keepdim=True)
    budget = (1 - p) * (attn * sink).sum(-1, keepdim=True)
    given = torch.where(seen, attn + budget * attn / others, torch.where(sink, p * attn, attn))
    return torch.where(moved, given, attn)


@torch.no_grad()
def sink_report(
    network: nn.Module, batches: Sequence[Tensor], c: float = PUBLISHED_C, sites: Sequence[Site] | None = None
) -> list[SinkLayer]:
    """Which dimensions and tokens of a network are attention sinks, and how much attention they take: a layer each.

    network: in eval mode.
    batches: images (B, 3, S, S), normalised.
    c: float above 0, of the threshold c · √D; 0.3125.
    sites: the mechanisms; None: all where a class token attends to patches within a block.

    Raises MienError where there is no such mechanism.
    """
    sites = with_class_token(find_sites(network, batches[0][:1]), "sink_report") if sites is None else sites
    if alone := [site.name for site in sites if site.block is None]:
        raise MienError(f"{', '.join(alone)}: in no block, whose tokens could be seen")
    tokens: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    rows: dict[str, list[Tensor]] = {site.name: [] for site in sites}
    hooks = [on_tokens(site, tokens[site.name].append) for site in sites]
    try:
        for images in batches:
            with observe(network, *tokens, stages=["attn"]) as seen:
                network(images)
            for site in sites:
                attn = seen[site.name].attn
                assert attn is not None
                rows[site.name].append(attn[:, :, 0].float().mean(1))
    finally:
        for hook in hooks:
            hook.remove()
    return [_layer(site, torch.cat(tokens[site.name]), torch.cat(rows[site.name]), c) for site in sites]


def _layer(site: Site, tokens: Tensor, rows: Tensor, c: float) -> SinkLayer:
    """Of tokens (B, K, D) and the class token's attention (B, K)."""
    threshold = c * math.sqrt(tokens.shape[-1])
    dims = find_dims(tokens, threshold)
    sinks, count = find_sinks(tokens, dims, threshold), len(tokens)
    all_sinks = max(1, int(sinks.sum()))
    return SinkLayer(
        site.name,
        dims,
        tokens=int(sinks.sum()) / count,
        class_mass=float((rows * sinks)[:, 1:].sum() / count),
        patch_share=int(sinks[:, site.prefix :].sum()) / all_sinks,
        greatest=float(rmsnorm(tokens).abs().max()),
        threshold=threshold,
        width=tokens.shape[-1],
        cells=sinks[:, site.prefix :].sum(0),
    )


class SinkRedistribution(Intervention):
    """What sinks have goes to the other patches, in heads that look at the face: `redistribute`.

    Dimensions are found in the faces it is fitted to (`find_dims`), unless they are given. A layer in which no patch of
    these is a sink, as in small networks, is left untouched, and `notes` say so. Published are p, rho, summ, the
    threshold (through c) and that the last layer stays as it is; *inferred* is what a class token has to do with a
    language model's text: its row alone is moved, unless rows="all", and a class token that is a sink counts as text.

    Args:
        p: float in [0, 1], what a sink keeps; 0.6. 1 moves nothing.
        rho: float in [0, 1], the greatest share that sinks have in a head that looks at the face; 0.5.
        summ: float in [0, 1], the least mass on patches of such a head; 0.2.
        c: float above 0, of the threshold c · √D; 0.3125.
        dims: list of int, the dimensions of sinks, or None: found; None.
        rows: "class" or "all", the queries that are moved; class.
        layers: patterns of mechanisms, or None: all but the last one, or the only one; None.

    Paper: Kang et al., See What You Are Told, arXiv 2503.03321. Reference: seilk/VisAttnSink, 98e62d6.
    """

    def __init__(
        self,
        p: float = 0.6,
        rho: float = 0.5,
        summ: float = 0.2,
        c: float = PUBLISHED_C,
        dims: Sequence[int] | int | None = None,
        rows: Literal["class", "all"] = "class",
        layers: Sequence[str] | str | None = None,
    ):
        if not check("c", c) > 0:
            raise ValueError("c is a number above 0, not 0")
        if rows not in ("class", "all"):
            raise ValueError(f"rows are 'class' or 'all', not {rows!r}")
        self.p, self.rho, self.summ = check("p", p, 0, 1), check("rho", rho, 0, 1), check("summ", summ, 0, 1)
        self.c, self.rows = c, rows
        self.given = () if dims is None else tuple(dims) if isinstance(dims, Sequence) else (dims,)
        if not all(isinstance(dim, int) and dim >= 0 for dim in self.given):
            raise ValueError(f"dims are whole numbers from 0 on, not {dims!r}")
        self.last = layers is not None  # whether the last layer is moved as well
        self.layers = (layers,) if isinstance(layers, str) else tuple(layers or ("*",))
        self.dims: dict[str, tuple[int, ...]] = {}

    @property
    def strength(self) -> float:
        return (1 - self.p) * any(self.dims.values())

    def learn(self, network: nn.Module, batches: Sequence[Tensor]) -> None:
        sites = with_class_token(self.sites, "sinks")
        report = sink_report(network, batches, self.c, sites)
        width = min(layer.width for layer in report)
        if beyond := [dim for dim in self.given if dim >= width]:
            raise MienError(f"dimension {beyond[0]} is none of the {width} that tokens have")
        self.notes = [str(layer) for layer in report]
        self.sites = sites if self.last or len(sites) == 1 else sites[:-1]
        moved = [site.name for site in self.sites]
        report = [layer for layer in report if layer.name in moved]
        self.dims = {layer.name: self.given or (layer.dims if layer.patch_share else ()) for layer in report}
        if not any(self.dims.values()):
            self.notes = [*self.notes, f"nothing is moved: no patch is a sink in {', '.join(moved)}"]
        elif self.given:
            self.notes = [*self.notes, f"taken for dimensions of sinks: {', '.join(map(str, self.given))}"]

    def within(self, network: nn.Module, images: Tensor) -> AbstractContextManager[Any]:
        sinks: dict[str, Tensor] = {}
        rules, hooks = {}, []
        for site in self.sites:

            def see(tokens: Tensor, site: Site = site) -> None:
                sinks[site.name] = find_sinks(tokens, self.dims[site.name], self.c * math.sqrt(tokens.shape[-1]))

            def rule(stage: Stage, attn: Tensor, layout: Layout, site: Site = site) -> Tensor:
                if stage != "attn":
                    return attn
                image = torch.arange(attn.shape[-1], device=attn.device) >= site.prefix
                moved = redistribute(attn, sinks[site.name], image, self.p, self.rho, self.summ)
                return moved if self.rows == "all" else torch.cat([moved[:, :, :1], attn[:, :, 1:]], 2)

            rules[site.name] = rule
            hooks.append(on_tokens(site, see))
        return intervene_on(network, rules, *hooks)
