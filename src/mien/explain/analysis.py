"""All attention of a network, analysed on labelled faces: which heads matter, and where they look."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from mien.explain.heads import Head, ablations, heads_of, importance, pruned
from mien.explain.patterns import Patterns, content_agnostic, recentred, summarise
from mien.explain.strength import Profile, concentration, grid_places, importance_factor, profile
from mien.networks import APViT, Deployed
from mien.nn.acmil import BranchPool
from mien.nn.gaam import GAAM
from mien.nn.observe import Look, observe

BATCH = 50


@dataclass(eq=False)
class Analysis:
    """What `analyse` found; faces are those of one half for importance, and of the other for pruning.

    heads: in the order of a forward pass. importance: by metric (heads, faces); class_rows: the same with the class
    token's row alone taken away, of attentions that have one, by their heads. profiles, agnostic: by attention.
    concentration: by attention, the share of the ten keys that get most, a number a head; masked: the same of ACMIL's
    pools with tokens hidden as in training. factors: of GAAM by attention, the mean importance factor of each token.
    patterns, pattern_heads, maps: of `patterns.summarise`, the head that each map is of, and the maps.
    pruning: by order, "least first", "random" and "most first", the share of (random) runs in which each face is read
    right with k heads gone (heads + 1, faces). areas: by order, the mean accuracy over all k and 95 % of it; beyond:
    the same of "least first" minus "random".
    """

    heads: list[Head]
    importance: dict[str, np.ndarray]
    class_heads: list[Head] = field(default_factory=list)
    class_rows: dict[str, np.ndarray] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    agnostic: dict[str, np.ndarray] = field(default_factory=dict)
    grids: dict[str, tuple[int, int]] = field(default_factory=dict)
    concentration: dict[str, np.ndarray] = field(default_factory=dict)
    masked: dict[str, np.ndarray] = field(default_factory=dict)
    factors: dict[str, np.ndarray] = field(default_factory=dict)
    patterns: Patterns | None = None
    pattern_heads: list[Head] = field(default_factory=list)
    maps: np.ndarray | None = None
    pruning: dict[str, np.ndarray] = field(default_factory=dict)
    areas: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    beyond: tuple[float, float, float] = (float("nan"),) * 3

    @property
    def order(self) -> np.ndarray:
        """The heads by number, the least important first: by the mean of Δ cross entropy."""
        return np.argsort(self.importance["d_ce"].mean(1), kind="stable")


def analyse(
    deployed: Deployed,
    crops: np.ndarray,
    target: np.ndarray,
    *,
    looked_at: int = 64,
    draws: int = 4,
    seed: int = 0,
    tell: Callable[[str], None] = lambda _: None,
) -> Analysis:
    """Analyse the attention of a network.

    crops, target: N face crops (N, S, S, 3) uint8 as its `preprocess` makes them, and their classes (N,); two or more.
    looked_at: faces whose attention is looked at; 64. draws: random orders of pruning; 4. seed: of those, and of the
    autoencoder. tell: called with a line for what is being done.

    Raises MienError for a network without attention in heads.
    """
    network = deployed.network.requires_grad_(False)
    halves = [slice(0, None, 2), slice(1, None, 2)]
    tell("reading faces")
    measured, judged = (list(_parts(deployed, crops[half])) for half in halves)
    heads = heads_of(network, measured[0])
    tell(f"taking away {len(heads)} heads, one after the other")
    found = Analysis(heads, importance(*ablations(network, measured, heads), target[halves[0]]))
    tell("looking at attention")
    _look(network, measured, looked_at, found, seed)
    _class_rows(network, measured, target[halves[0]], found)
    tell("pruning")
    rng = np.random.default_rng(seed)
    runs = {"least first": [found.order], "random": [rng.permutation(len(heads)) for _ in range(draws)],
            "most first": [found.order[::-1]]}  # fmt: skip
    for name, orders in runs.items():
        right = [pruned(network, judged, heads, order, target[halves[1]]) for order in orders]
        found.pruning[name] = np.mean(right, 0)
    _judge(found, seed)
    return found


def _parts(deployed: Deployed, crops: np.ndarray) -> Iterator[Any]:
    """Batches of what the network's front makes of faces, or of the faces where it has none: that is read once."""
    with torch.no_grad():
        for start in range(0, len(crops), BATCH):
            faces = torch.from_numpy(crops[start : start + BATCH])
            images = deployed.normalize(faces.permute(0, 3, 1, 2).float() / 255)
            try:
                yield deployed.network.front(images)
            except (ValueError, NotImplementedError, AttributeError):
                yield images


def _look(network: Any, parts: Sequence[Any], count: int, found: Analysis, seed: int) -> None:
    maps: dict[str, list[np.ndarray]] = {}
    profiles: dict[str, list[tuple[int, Profile]]] = {}
    masses: dict[str, list[np.ndarray]] = {}
    factors: dict[str, list[np.ndarray]] = {}
    gaam = {name.removesuffix(".attn") for name, part in network.named_modules() if isinstance(part, GAAM)}
    done = 0
    for part in parts:
        if done >= count:
            break
        part = _first(part, count - done)
        with torch.no_grad(), observe(network, stages=["attn"]) as seen:
            network(part)
        trace = network.trace(part) if isinstance(network, APViT) else None
        size = len(part[0] if isinstance(part, tuple) else part)
        done += size
        for name, look in seen.items():
            attn = look.attn
            if attn is None or look.layout.kind in ("batch", "channel"):
                continue
            if attn.ndim == 3 and any(name.startswith(each) for each in gaam):
                factors.setdefault(name, []).append(importance_factor(attn.numpy()).mean(2))
            if attn.ndim != 4:
                continue
            masses.setdefault(name, []).append(concentration(attn.numpy()))
            if (where := _where(name, look, trace)) is None:
                continue
            places, prefix, grid = where
            found.grids[name] = grid
            profiles.setdefault(name, []).append((size, profile(attn.numpy(), places, prefix)))
            maps.setdefault(name, []).append(recentred(attn.numpy()[:, :, prefix:, prefix:], places, grid))
    found.concentration = {name: np.concatenate(each).mean(0) for name, each in masses.items()}
    found.factors = {name: np.concatenate(each).mean(0) for name, each in factors.items()}
    found.masked = _masked(network, parts, count, seed)
    found.profiles = {name: each[0][1] if len(each) == 1 else _mean(each) for name, each in profiles.items()}
    whole = {name: np.concatenate(each) for name, each in maps.items()}
    found.agnostic = {name: content_agnostic(each) for name, each in whole.items()}
    sizes = [each.shape[2:] for each in whole.values()]
    common = max(set(sizes), key=lambda size: (sizes.count(size), size)) if sizes else None
    every = {name: each for name, each in whole.items() if each.shape[2:] == common}
    if every:
        found.pattern_heads = [
            Head(name, h) for name, each in every.items() for _ in each for h in range(each.shape[1])
        ]
        found.maps = np.concatenate([each.reshape(-1, *each.shape[2:]) for each in every.values()])
        found.patterns = summarise(found.maps, seed=seed)


def _where(name: str, look: Look, trace: Any) -> tuple[np.ndarray, int, tuple[int, int]] | None:
    """The places of the tokens on their grid, what stands before them, and the grid; None where they lie on none."""
    attn, layout = look.attn, look.layout
    if attn is None or layout.kind != "token" or attn.shape[2] != attn.shape[3]:
        return None
    if trace is not None:
        block = trace.blocks[int(name.rpartition("vit.blocks.")[2].split(".")[0])]
        came = block.came.numpy()
        return np.stack(np.divmod(came, trace.grid[1]), -1), 1, trace.grid
    if layout.grid is None:
        return None
    return grid_places(layout.planes, layout.grid), layout.prefix, layout.grid


def _mean(parts: Sequence[tuple[int, Profile]]) -> Profile:
    """The mean of profiles of so many faces each; hops that one lacks count as 0 there, a key's share as NaN."""
    total = sum(size for size, _ in parts)

    def mean(name: str) -> np.ndarray:
        each = [getattr(one, name) for _, one in parts]
        wide = max(value.shape[-1] for value in each)
        padded = [np.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, wide - value.shape[-1])]) for value in each]
        return np.stack([size * value for (size, _), value in zip(parts, padded, strict=True)]).sum(0) / total

    return Profile(**{name: mean(name) for name in Profile.__dataclass_fields__})


def _masked(network: Any, parts: Sequence[Any], count: int, seed: int) -> dict[str, np.ndarray]:
    """Concentration of ACMIL's pools as in training, with some of the tokens hidden that get most."""
    pools = [part for part in network.modules() if isinstance(part, BranchPool)]
    if not pools:
        return {}
    torch.manual_seed(seed)
    try:
        for pool in pools:
            pool.training = True
        with torch.no_grad(), observe(network, stages=["attn"]) as seen:
            network(_first(parts[0], count))
    finally:
        for pool in pools:
            pool.training = False
    looks = {name: look.attn for name, look in seen.items() if look.layout.kind == "class" and look.attn is not None}
    return {name: concentration(attn.numpy()).mean(0) for name, attn in looks.items() if attn.ndim == 4}


def _class_rows(network: Any, parts: Sequence[Any], target: np.ndarray, found: Analysis) -> None:
    """Heads with the class token's row alone taken away, where there is such a row."""
    tokens = {name for name, one in found.profiles.items() if np.isfinite(one.class_column).all()}
    found.class_heads = [head for head in found.heads if head.attention in tokens and "." in head.attention]
    if found.class_heads and not isinstance(network, APViT):
        found.class_rows = importance(*ablations(network, parts, found.class_heads, "class"), target)
    elif found.class_heads:  # behind pooling the layout does not know of the class token, which is the first
        found.class_rows = importance(*ablations(network, parts, found.class_heads, [0]), target)


def _first(part: Any, count: int) -> Any:
    return tuple(x[:count] for x in part) if isinstance(part, tuple) else part[:count]


def _judge(found: Analysis, seed: int, resamples: int = 10_000) -> None:
    """Areas under the pruning curves, and their intervals: percentiles over resamples of the faces."""
    areas = {name: each.mean(0) for name, each in found.pruning.items()}  # a face's share of all k
    faces = len(areas["random"])
    draws = np.random.default_rng(seed).multinomial(faces, np.full(faces, 1 / faces), resamples) / faces

    def spread(values: np.ndarray) -> tuple[float, float, float]:
        low, high = np.quantile(draws @ values, (0.025, 0.975))
        return float(values.mean()), float(low), float(high)

    found.areas = {name: spread(each) for name, each in areas.items()}
    found.beyond = spread(areas["least first"] - areas["random"])
