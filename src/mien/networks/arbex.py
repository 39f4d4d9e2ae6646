"""ARBEx: reliability balancing on any network of mien's."""

from collections.abc import Collection, Mapping
from typing import Literal, cast

from torch import Tensor, nn

from mien.networks.btn import btn_mobile
from mien.networks.network import Network
from mien.networks.poster import poster
from mien.nn.reliability_balancing import ReliabilityBalancing


class MlpHead(nn.Sequential):
    """Features (B, D) -> logits (B, C): D/2, D/4 and D/8 wide, each linear, ReLU, batch norm, dropout; then linear."""

    def __init__(self, dim: int, num_classes: int, dropout: float = 0.5):
        widths = [dim >> i for i in range(4)]
        layers: list[nn.Module] = []
        for wide, narrow in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(wide, narrow), nn.ReLU(), nn.BatchNorm1d(narrow), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(widths[-1], num_classes))


class ARBEx(Network):
    """Another network, the `body`, whose unsure answers are balanced in training, and on request afterwards.

        L = λ · cross entropy(p̂) + trust · (anchor_weight · anchor_loss + center_weight · center loss)

    p̂ and the losses are `ReliabilityBalancing`'s, of the body's features and logits / `temperature`. λ is
    `class_weight` times the weight that the body gives its answer; further losses of the body's (BTN's, action units')
    stay as they are. `trust` rises from 0 to 1 over the training unless it is given.

    `balancing`, which can be set on a network, too, is what happens afterwards: "none" gives the body's logits /
    `temperature`; "anchors" the logarithm of p̂ with `trust` 1 and r = s; "full" that with r as in training, where a
    face's answer depends on its neighbours in the batch (unless `attention` is "alone"). The published code's own
    correction at test time adds up to no distribution, and has no counterpart here.

    `head="mlp"` puts ARBEx's classifier (`MlpHead`) in the place of the body's linear head; its batch norm cannot be
    trained with a single face. The paper's body is POSTER++, with both trunks frozen.

    Args:
        body: a network with one linear head.
        head: "body" or "mlp"; body.
        balancing: "none", "anchors" or "full"; none.
        num_anchors, delta, attention, anchor_std, margin, detach_confidence, gather: of `ReliabilityBalancing`.
        temperature: float above 0; 1.
        trust: float in [0, 1], or None: it rises.
        class_weight, anchor_weight, center_weight: float; 1.

    Paper: Wasi et al., ARBEx, arXiv 2305.01486. Reference: takihasan/ARBEx, b85c37b.
    """

    def __init__(
        self,
        *,
        body: Network,
        head: Literal["body", "mlp"] = "body",
        balancing: Literal["none", "anchors", "full"] = "none",
        num_anchors: int = 1,
        delta: float = 1.0,
        temperature: float = 1.0,
        attention: Literal["batch", "alone", "none"] = "batch",
        anchor_std: float = 0.02,
        margin: float | None = 1.0,
        detach_confidence: bool = False,
        gather: bool = False,
        trust: float | None = None,
        class_weight: float = 1.0,
        anchor_weight: float = 1.0,
        center_weight: float = 1.0,
    ):
        super().__init__()
        if head not in ("body", "mlp"):
            raise ValueError(f"head must be 'body' or 'mlp', not {head!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, not {temperature!r}")
        if trust is not None and not 0 <= trust <= 1:
            raise ValueError(f"trust must be from 0 to 1, not {trust!r}")
        self.body, self.temperature, self.balancing = body, temperature, balancing
        linear = cast(nn.Linear, body.headed.head)
        if head == "mlp":
            body.headed.head = MlpHead(linear.in_features, linear.out_features)
        self.reliability = ReliabilityBalancing(
            linear.in_features,
            linear.out_features,
            num_anchors=num_anchors,
            delta=delta,
            attention=attention,
            anchor_std=anchor_std,
            margin=margin,
            detach_confidence=detach_confidence,
            gather=gather,
        )
        self.ramp, self.trust = trust is None, 1.0 if trust is None else trust
        self.weights = (class_weight, anchor_weight, center_weight)

    @property
    def balancing(self) -> str:
        """What happens to answers in eval mode: "none", "anchors" or "full"; can be set."""
        return self._balancing

    @balancing.setter
    def balancing(self, balancing: str) -> None:
        if balancing not in ("none", "anchors", "full"):
            raise ValueError(f"balancing must be 'none', 'anchors' or 'full', not {balancing!r}")
        self._balancing = balancing

    @property
    def loss_weights(self) -> Mapping[str, float]:  # pyright: ignore[reportIncompatibleVariableOverride]
        (_, own), *others = self.body.loss_weights.items()
        classes, anchors, center = self.weights
        return {
            "balanced": own * classes,
            **dict(others),
            "anchors": self.trust * anchors,
            "center": self.trust * center,
        }

    @property
    def no_decay(self) -> Collection[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ("reliability.anchors", *(f"body.{name}" for name in self.body.no_decay))

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        own = {name.removeprefix("body."): t for name, t in tensors.items() if name.startswith("body.")}
        rest = {name: t for name, t in tensors.items() if not name.startswith("body.")}
        return rest | {f"body.{name}": t for name, t in self.body.fit(own).items()}

    @property
    def headed(self) -> nn.Module:
        return self.body.headed

    @property
    def head_names(self) -> tuple[str, ...]:
        return (*super().head_names, *self.body.head_names)

    def head_answers(self, features: Tensor) -> dict[str, Tensor]:
        return self.body.head_answers(features) | super().head_answers(features)

    def forward_intermediates(self, images: Tensor, **options) -> list | tuple[Tensor, list]:
        return self.body.forward_intermediates(images, **options)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.body.forward_features(images)

    def forward_head(self, features: Tensor) -> Tensor:
        logits = self.body.forward_head(features) / self.temperature
        if self.balancing == "none":
            return logits
        return self.reliability.balance(features, logits, ask=self.balancing == "full")[0]

    def training_pass(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        features, sets = self.body.training_pass(images)
        (_, logits), *others = sets.items()
        balanced, costs = self.reliability(features, logits / self.temperature, self.trust)
        anchors = self.reliability.anchor_loss()
        return features, {"balanced": balanced, **dict(others), "anchors": anchors, "center": costs}

    def begin_step(self, done: float) -> None:
        if self.ramp:
            self.trust = done
        self.body.begin_step(done)


def arbex(*, num_classes: int = 7, head: Literal["body", "mlp"] = "mlp", **options) -> ARBEx:
    """ARBEx at its published size: POSTER++ and a classifier of four layers.

    num_classes: int, C; 7.
    head, options: as of `ARBEx`; mlp.
    """
    return ARBEx(body=poster(num_classes=num_classes), head=head, **options)


def arbex_mobile(*, num_classes: int = 8, **options) -> ARBEx:
    """ARBEx at the size of a phone, ours: on POSTER++ as small as `btn_mobile`.

    num_classes: int, C; 8.
    options: as of `ARBEx`.
    """
    return ARBEx(body=btn_mobile(num_classes=num_classes, mla="none", bt=False), **options)
