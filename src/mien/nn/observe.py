"""Looking at attention, and moving it: the three stages that every mechanism with attention passes."""

import fnmatch
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor, nn

from mien.errors import MienError
from mien.nn.base import Grid
from mien.nn.grid import count_planes

Stage = Literal["scores", "attn", "heads"]
STAGES: tuple[Stage, ...] = get_args(Stage)


COMPILED = "attention cannot be seen or moved under torch.compile and torch.export"


class LookError(MienError, ValueError):
    """A look at attention, or a rule for it, that cannot be; its text is one line."""


class Layout(NamedTuple):
    """What the axes of attention stand for.

    kind: "token": tokens attend to tokens; "class": one query, or several of a pool, gather what the answer is read
        from; "cross": queries attend to another set of keys; "channel": channels attend to channels; "batch": faces
        attend to faces.
    prefix: so many keys come first and lie on no grid, such as a class token; 0.
    planes: behind them lie so many planes of H · W keys, row-major; 1.
    grid: (H, W); None where the mechanism was not given one.
    """

    kind: Literal["token", "class", "cross", "channel", "batch"]
    prefix: int = 0
    planes: int = 1
    grid: Grid | None = None

    @classmethod
    def of_tokens(cls, count: int, grid: Grid | None) -> Self:
        """The layout of so many tokens that attend to one another, given the grid that a mixer is given."""
        if grid is None or torch.compiler.is_compiling() or count < grid[0] * grid[1]:
            return cls("token")
        planes, prefix = count_planes(count, grid)
        return cls("token", prefix, planes, grid)


Rule = Callable[[Stage, Tensor, Layout], Tensor]
"""Is given each stage of each forward, and returns what takes its place: same shape, dtype and device."""


@dataclass
class Look:
    """What one mechanism did in its last forward; None where it lacks a stage, or where that was not wanted.

    layout: what the axes stand for.
    scores: before the softmax, -inf where a query does not see a key.
    attn: after it. Both are (B, heads, queries, keys); of channels (B, heads, head_dim, head_dim); across the batch
        (C, B, M); of GAAM (B, N, dim).
    heads: what attn gathers, before the output projection, (B, heads, queries, head_dim).

    Mechanisms that work in windows or planes show all N tokens against all N, as if they were dense. Tensors keep their
    autograd graph.
    """

    layout: Layout
    scores: Tensor | None = None
    attn: Tensor | None = None
    heads: Tensor | None = None


class Stages(nn.Module):
    """The place in a mechanism where its attention can be seen and replaced; it has no parameters.

    A mechanism keeps one as `attend`, takes a path with all three stages while `open` is true, and hands each of them
    to `stage`. `Attend` is one.
    """

    watchers: tuple[Callable[[Stage, Tensor, Layout], Tensor], ...] = ()

    def __init__(self, stages: Sequence[Stage] = STAGES):
        super().__init__()
        self.stages = tuple(stages)

    @property
    def open(self) -> bool:
        """Whether somebody looks. Raises LookError where that cannot be: in a program that is being compiled."""
        if self.watchers and torch.compiler.is_compiling():
            _refuse()
        return bool(self.watchers)

    def stage(self, name: Stage, tensor: Tensor, layout: Layout) -> Tensor:
        """What the stage becomes: itself, unless a rule replaces it."""
        if self.open:
            for watcher in self.watchers:
                tensor = watcher(name, tensor, layout)
        return tensor

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "watchers"}


def _refuse() -> None:
    raise LookError(COMPILED)


# as by torch.compiler.assume_constant_result: it runs while a program is compiled, and so the error comes out
setattr(_refuse, "_dynamo_marked_constant", True)  # noqa: B010


class _Recorder:
    """Keeps what passes in `seen`."""

    def __init__(self, name: str, seen: dict[str, Look], stages: Sequence[Stage]):
        self.name, self.seen, self.stages = name, seen, stages
        self.last: Stage = STAGES[-1]

    def __call__(self, stage: Stage, tensor: Tensor, layout: Layout) -> Tensor:
        if STAGES.index(stage) <= STAGES.index(self.last):  # another forward
            self.seen.pop(self.name, None)
            self.seen[self.name] = Look(layout)
        self.last = stage
        if stage in self.stages:
            setattr(self.seen[self.name], stage, tensor)
        return tensor


class _Ruler:
    """Puts what a rule returns in the place of what passes, once it is seen to fit."""

    def __init__(self, name: str, rule: Rule, stages: Sequence[Stage]):
        self.name, self.rule, self.stages = name, rule, stages

    def __call__(self, stage: Stage, tensor: Tensor, layout: Layout) -> Tensor:
        if stage not in self.stages:
            return tensor
        found = self.rule(stage, tensor, layout)
        if found is tensor:
            return tensor
        if not isinstance(found, Tensor):
            raise LookError(f"{self.name}: the rule returned no tensor for {stage}, but {type(found).__name__}")
        for what in ("shape", "dtype", "device"):
            was, now = (x if what != "shape" else tuple(x) for x in (getattr(tensor, what), getattr(found, what)))
            if was != now:
                raise LookError(f"{self.name}: the rule returned {stage} of {what} {now}, not {was}")
        finite = found.isfinite()
        if stage == "scores":  # a query may leave keys out, but not all of them
            hidden = found == float("-inf")
            finite = (finite | hidden) & ~hidden.all(-1, keepdim=True)
        if not finite.all():
            raise LookError(f"{self.name}: the rule returned {stage} that are not finite")
        return found


_LOCK = threading.Lock()


@contextmanager
def observe(network: nn.Module, *patterns: str, stages: Sequence[Stage] | None = None) -> Iterator[dict[str, Look]]:
    """See what attention does, in every forward within the context, by the name of each mechanism.

    network: any module.
    patterns: of dotted module names, as fnmatch reads them (`*` is all, and the default); the name of a module stands
        for all attention within it.
    stages: those that are kept, by default all.

    The dict that it gives maps names to a `Look` each, of the last forward and in the order of it. A mechanism goes by
    its module name without a last `.attn`: `vit.blocks.0`. What is seen is what was used, rules of `intervene`
    included. Whoever looks takes mechanisms off their fused path; outside of the context nothing is left of it.

    Raises LookError, before anything runs: a pattern that matches no attention, a stage that a mechanism lacks, a
    compiled network.
    """
    seen: dict[str, Look] = {}
    found = _matched(network, patterns or ("*",), stages)
    with _watched([(site, _Recorder(name, seen, stages or STAGES)) for name, site in found.items()]):
        yield seen


@contextmanager
def intervene(network: nn.Module, rules: Mapping[str, Rule], stages: Sequence[Stage] | None = None) -> Iterator[None]:
    """Put other scores, attn or heads in the place of a mechanism's own, in every forward within the context.

    network: any module.
    rules: `rule(stage, tensor, layout) -> tensor` by pattern, as `observe` takes them; where several match they are
        applied one after another. A rule returns the tensor itself where it has nothing to say.
    stages: those that rules are given, by default all.

    What a rule returns acts in forward and backward. Raises LookError as `observe` does, and in a forward for a rule
    that returns another shape, dtype or device, or what is not finite (scores may be -inf, but not for all keys).
    """
    placed = []
    for pattern, rule in rules.items():
        if not callable(rule):
            raise LookError(f"{pattern}: a rule is a function (stage, tensor, layout) -> tensor, not {rule!r}")
        found = _matched(network, (pattern,), stages)
        placed += [(site, _Ruler(name, rule, stages or STAGES)) for name, site in found.items()]
    with _watched(placed):
        yield


@contextmanager
def _watched(placed: Sequence[tuple[Stages, _Recorder | _Ruler]]) -> Iterator[None]:
    def change(site: Stages, watchers: list[Any]) -> None:
        watchers.sort(key=lambda watcher: isinstance(watcher, _Recorder))  # who looks sees what rules made of it
        if watchers:
            site.watchers = tuple(watchers)
        else:
            site.__dict__.pop("watchers", None)

    try:
        for site, watcher in placed:
            with _LOCK:
                change(site, [*site.watchers, watcher])
        yield
    except Exception as error:
        reason = error.__context__
        if isinstance(reason, LookError) and type(error).__module__.startswith("torch."):
            raise LookError(COMPILED) from None  # without what the compiler says around it
        raise
    finally:
        for site, watcher in placed:
            with _LOCK:
                change(site, [other for other in site.watchers if other is not watcher])


def attentions(network: nn.Module) -> dict[str, Stages]:
    """Every mechanism of a network that forms attention, by the name that `observe` gives it."""
    full = {name: part for name, part in network.named_modules() if isinstance(part, Stages)}
    owners = [name.rpartition(".")[0] for name in full]
    found = {}
    for name, part in full.items():
        owner = name.rpartition(".")[0]
        if owner and owners.count(owner) == 1:
            name = owner
        found[name.removesuffix(".attn") or "attend"] = part
    return found


def _matched(network: nn.Module, patterns: Sequence[str], stages: Sequence[Stage] | None) -> dict[str, Stages]:
    """The attention that any of the patterns means, by name."""
    if hasattr(network, "_orig_mod") or any(part._compiled_call_impl is not None for part in network.modules()):
        raise LookError("attention of a compiled network cannot be seen or moved: give the network as it was before")
    for stage in stages or ():
        if stage not in STAGES:
            raise LookError(f"the stages of attention are {', '.join(STAGES)}, not {stage!r}")
    every, found = attentions(network), {}
    full = {part: name for name, part in network.named_modules() if isinstance(part, Stages)}
    for pattern in patterns:
        here = {}
        for name, site in every.items():
            parts = full[site].split(".")
            within = {".".join(parts[: i + 1]) for i in range(len(parts))} | {name}
            if any(fnmatch.fnmatchcase(each, pattern) for each in within):
                here[name] = site
        if not here:
            raise LookError(_why_none(network, pattern, list(every)))
        found |= here
    for name, site in found.items():
        for stage in stages or ():
            if stage not in site.stages:
                raise LookError(f"{name} has no {stage}: its stages are {', '.join(site.stages)}")
    return {name: site for name, site in every.items() if name in found}


def _why_none(network: nn.Module, pattern: str, every: Sequence[str]) -> str:
    kind = type(network).__name__
    where = f"attention of {kind} is in {', '.join(every)}" if every else f"{kind} forms no attention anywhere"
    parts = [part for name, part in network.named_modules() if name and fnmatch.fnmatchcase(name, pattern)]
    mixers = [type(part.attn).__name__ for part in parts if isinstance(getattr(part, "attn", None), nn.Module)]
    if not mixers and pattern == "*":
        return where
    if not parts:
        return f"{pattern}: no module of {kind} has such a name; {where}"
    names = dict.fromkeys(mixers or [type(part).__name__ for part in parts[:1]])
    return f"{pattern}: {', '.join(names)} forms no attention; {where}"
