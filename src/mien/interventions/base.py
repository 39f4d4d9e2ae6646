"""What every rule has in common: where it acts, what it learns of a network first, and a network under it."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mien.errors import MienError
from mien.nn.base import Grid
from mien.nn.observe import Rule, attentions, intervene, observe


@dataclass(frozen=True)
class Site:
    """A mechanism of which a class token, or every token, gathers what the answer is read from.

    name: as `observe` gives it.
    prefix: so many keys come before the patches.
    grid: of the patches; None where they lie on none.
    block: the module around the mechanism, which is given the tokens; None where there is none.
    """

    name: str
    prefix: int
    grid: Grid | None
    block: nn.Module | None


class Intervention:
    """A rule for the attention of a whole network: learns of it from faces without labels, then moves what it reads.

    A rule overrides `strength`, `within` and, where it learns something, `learn`; `notes` say in a line each what a
    person should know of the outcome. With a strength of 0 nothing is put around the network, so that it computes
    bitwise what it always did, by the fused path.

    layers: patterns of the mechanisms that are moved, as `mien.nn.observe` takes them; all by default.
    """

    layers: Sequence[str] = ("*",)
    sites: Sequence[Site] = ()
    notes: Sequence[str] = ()

    @property
    def strength(self) -> float:
        """0 where the rule, as it was made and by what it learned, changes nothing."""
        raise NotImplementedError

    def fit(self, network: nn.Module, batches: Sequence[Tensor]) -> None:
        """Find where the rule acts, and let it learn; raises MienError where it can act nowhere.

        batches: images (B, 3, S, S), normalised, one batch at least.
        """
        self.sites = find_sites(network, batches[0][:1], self.layers)
        self.learn(network, batches)

    def learn(self, network: nn.Module, batches: Sequence[Tensor]) -> None:
        """What `fit` does once the sites are known: nothing, unless a rule overrides it."""

    def within(self, network: nn.Module, images: Tensor) -> AbstractContextManager[Any]:
        """A context in which the network reads these images (B, 3, S, S) otherwise. `strength` is not 0."""
        raise NotImplementedError

    def around(self, network: nn.Module, images: Tensor) -> AbstractContextManager[Any]:
        """The same; without any effect where the strength is 0. Raises MienError before `fit`."""
        if not self.sites:
            raise MienError(f"{type(self).__name__} was not fitted to a network")
        return self.within(network, images) if self.strength else nullcontext()


class Intervened(nn.Module):
    """A network whose attention a rule moves, to be used like the network itself: images -> logits.

    network: any.
    intervention: one that was fitted to it; before that, `forward` raises MienError.

    One thread at a time: what a rule sees of one batch must not meet another.
    """

    def __init__(self, network: nn.Module, intervention: Intervention):
        super().__init__()
        self.network, self.intervention = network, intervention

    def forward(self, images: Tensor) -> Tensor:
        with self.intervention.around(self.network, images):
            return self.network(images)

    def answers(self, images: Tensor) -> dict[str, Tensor]:
        """As `Network.answers`."""
        network: Any = self.network
        with self.intervention.around(network, images):
            return network.answers(images)

    @property
    def head_names(self) -> tuple[str, ...]:
        return getattr(self.network, "head_names", ())


def find_sites(network: nn.Module, images: Tensor, layers: Sequence[str] = ("*",)) -> list[Site]:
    """Where tokens attend to tokens, or a class token to them, in the order in which it happens.

    Raises LookError for patterns that mean no attention, and MienError where there is none of that kind.
    """
    with torch.no_grad(), observe(network, *layers, stages=["attn"]) as seen:
        network(images)
    found = []
    for name, look in seen.items():
        if look.attn is not None and look.attn.ndim == 4 and look.layout.kind in ("token", "class"):
            prefix = look.layout.prefix or int(_has_class_token(network, name))
            found.append(Site(name, prefix, look.layout.grid, _block(network, name)))
    if not found:
        kinds = ", ".join(f"{name} ({look.layout.kind})" for name, look in seen.items())
        raise MienError(f"no tokens of {type(network).__name__} attend to tokens there: {kinds}")
    return found


def with_class_token(sites: Sequence[Site], what: str) -> list[Site]:
    """Those where a class token attends to patches; MienError where there are none."""
    if found := [site for site in sites if site.prefix]:
        return found
    raise MienError(
        f"{what} reads the attention of a class token, and there is none in {', '.join(s.name for s in sites)}"
    )


def check(name: str, value: Any, least: float = 0.0, most: float = math.inf) -> float:
    """The value of an option, if it is a finite number in that range; else ValueError."""
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not least <= value <= most:
        raise ValueError(
            f"{name} is a number from {least:g} {'on' if most == math.inf else f'to {most:g}'}, not {value!r}"
        )
    return value


@contextmanager
def intervene_on(network: nn.Module, rules: dict[str, Rule], *hooks: Any) -> Iterator[None]:
    """Move attention within the context as `mien.nn.intervene` does, and remove hooks at its end.

    network, rules: as for `mien.nn.intervene`.
    hooks: those that are removed, such as `on_tokens` gives.
    """
    try:
        with intervene(network, rules):
            yield
    finally:
        for hook in hooks:
            hook.remove()


def on_tokens(site: Site, see: Callable[[Tensor], None]) -> Any:
    """Have `see` given the tokens (B, K, D) that the block of a site reads, before it does; returns the hook.

    A block of class attention is given the class token and the others apart, and attends to both.
    """
    assert site.block is not None

    def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
        see(torch.cat([x for x in given if isinstance(x, Tensor)], 1))

    return site.block.register_forward_pre_hook(hook)


def _ancestors(network: nn.Module, name: str) -> list[nn.Module]:
    """The modules that a mechanism lies in, the nearest first."""
    site = attentions(network)[name]
    parts = next(path for path, part in network.named_modules() if part is site).split(".")
    return [network.get_submodule(".".join(parts[:i])) for i in range(len(parts) - 1, -1, -1)]


def _has_class_token(network: nn.Module, name: str) -> bool:
    """Whether the tokens there begin with one, though their layout does not say so: some patches are gone."""
    return any(isinstance(getattr(part, "cls_token", None), Tensor) for part in _ancestors(network, name))


def _block(network: nn.Module, name: str) -> nn.Module | None:
    return next((p for p in _ancestors(network, name) if isinstance(getattr(p, "attn", None), nn.Module)), None)
