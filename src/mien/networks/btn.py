"""BTN, the Batch Transformer network: POSTER++ with multi-level attention, and in training a batch branch."""

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from mien.networks.ir50 import IR50
from mien.networks.mobilefacenet import MobileFaceNet
from mien.networks.poster import Poster
from mien.nn.class_batch_attention import BatchTransformer
from mien.nn.grid import to_tokens
from mien.nn.multi_level_attention import LevelAttention


class BTN(Poster):
    """Images (B, 3, 112, 112) -> logits (B, C), of the ViT alone.

    Between POSTER++'s levels and its tokens stands multi-level attention: low attends to mid, and the result to high.
    In training the batch transformer adds two sets of logits, `bt` and `cba`, computed across the batch, and

        L = λ · L_vit + L_bt + L_cba

    The size of the batch is the size of that attention: at least 64 is advised, and a face alone attends to itself.
    Where it cannot be so large, `bt_gather` adds the faces of all processes, and `bt_memory` so many past ones. Both
    are ours (`BatchTransformer`), and change neither parameters nor answers.

    Certain: the order of the parts, the loss, `bt = cba + logits`, inference by the ViT alone. *Inferred*: that the ViT
    still reads 147 tokens (`vit_tokens="fused49"`: the 49 of the fused map), λ = 2 (the paper studies 1 to 3), and what
    `LevelAttention`, `BatchTransformer` and `ClassEncoding` say of themselves. `mla="none"` leaves the levels alone,
    `bt=False` leaves the batch alone.

    Args:
        num_classes: int, C.
        dims, head_dim: as for `Poster`; (64, 128, 256) and 32.
        mla: "levels" or "none"; levels.
        mla_residual, mla_gate_lower, mla_init_values: of `LevelAttention`; both, False, None.
        vit_tokens: "levels147" or "fused49"; levels147.
        bt: bool, whether there is a batch branch; True.
        bt_encoding, bt_shared, bt_value_softmax, bt_detach_value, bt_gather, bt_memory: of `BatchTransformer`; learned,
            False, False, False, False, 0.
        vit_loss_weight: float, λ; 2.
        poster: further arguments of `Poster`.

    Paper: Her et al., Batch Transformer, arXiv 2407.04218; IEEE Access 13, 2025. Reference: README of
    SeoulTech-HCIRLab/BTN.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        dims: Sequence[int] = (64, 128, 256),
        head_dim: int = 32,
        mla: Literal["levels", "none"] = "levels",
        mla_residual: Literal["both", "query"] = "both",
        mla_gate_lower: bool = False,
        mla_init_values: float | None = None,
        vit_tokens: Literal["levels147", "fused49"] = "levels147",
        bt: bool = True,
        bt_encoding: Literal["learned", "sinusoidal", "scalar", "none"] = "learned",
        bt_shared: bool = False,
        bt_value_softmax: bool = False,
        bt_detach_value: bool = False,
        bt_gather: bool = False,
        bt_memory: int = 0,
        vit_loss_weight: float = 2.0,
        **poster,
    ):
        if mla not in ("levels", "none"):
            raise ValueError(f"mla must be 'levels' or 'none', not {mla!r}")
        if vit_tokens not in ("levels147", "fused49"):
            raise ValueError(f"vit_tokens must be 'levels147' or 'fused49', not {vit_tokens!r}")
        if mla == "none" and vit_tokens == "fused49":
            raise ValueError("vit_tokens='fused49' needs mla='levels': without it nothing is fused")
        num_tokens = 147 if vit_tokens == "levels147" else 49
        super().__init__(num_classes=num_classes, dims=dims, head_dim=head_dim, num_tokens=num_tokens, **poster)
        low, mid, high = dims
        options = {"residual": mla_residual, "gate_lower": mla_gate_lower, "init_values": mla_init_values}
        self.mla_mid = self.mla_high = self.batch_transformer = None
        if mla == "levels":
            self.mla_mid = LevelAttention(low, mid, mid // head_dim, **options)
            self.mla_high = LevelAttention(mid, high, high // head_dim, **options)
        if vit_tokens == "fused49":
            self.embed_low = self.embed_mid = None
        if bt:
            self.batch_transformer = BatchTransformer(
                high,
                num_classes,
                encoding=bt_encoding,
                shared=bt_shared,
                value_softmax=bt_value_softmax,
                detach_value=bt_detach_value,
                gather=bt_gather,
                memory=bt_memory,
            )
        self.loss_weights = {"vit": vit_loss_weight, "bt": 1.0, "cba": 1.0} if bt else {"vit": 1.0}

    def fit(self, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of POSTER++ begin a BTN with `mla_gate_lower`: all that they lack stays as it is.

        With `mla_init_values` near 0 the answers are then those of POSTER++.
        """
        tensors, new = super().fit(tensors), ("mla_mid.", "mla_high.", "batch_transformer.")
        if self.mla_mid is None or self.mla_mid.gate is None or any(name.startswith(new) for name in tensors):
            return tensors
        return {**{name: t for name, t in self.state_dict().items() if name.startswith(new)}, **tensors}

    def fuse(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        (low, mid, high), trunk = self.levels(images)
        if self.mla_mid is not None and self.mla_high is not None:
            mid = self.mla_mid(low, mid)
            high = self.mla_high(mid, high)
        tokens = to_tokens(self.embed_high(high)) if self.embed_low is None else self.embed(low, mid, high)
        return tokens, high, trunk

    def training_pass(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        tokens, fused, trunk = self.fuse(images)
        features = self._with_trunk(self.vit.forward_features(tokens), trunk)
        logits = {"vit": self.forward_head(features)}
        if self.batch_transformer is not None:
            logits |= self.batch_transformer(fused, logits["vit"])
        return features, logits

    def begin_step(self, done: float) -> None:
        if self.batch_transformer is not None:
            self.batch_transformer.remember()


def btn(*, num_classes: int = 7, **options) -> BTN:
    """BTN at the size of POSTER++ and 1.36 M parameters more: IR-50 and a frozen MobileFaceNet.

    num_classes: int, C; 7.
    options: as of `BTN`.
    """
    return BTN(image=IR50(), landmarks=MobileFaceNet("prelu"), num_classes=num_classes, **options)


def btn_mobile(*, num_classes: int = 8, **options) -> BTN:
    """BTN at the size of a phone, ours: two trained MobileFaceNets, levels 32/64/96, a ViT of one block 128 wide.

    num_classes: int, C; 8.
    options: as of `BTN`.

    At every level the landmarks attend to 7×7 cells of the image (`key_stride` 4, 2, 1). 2.9 M parameters, 0.58 GMAC.
    """
    return BTN(
        image=MobileFaceNet("relu6"),
        landmarks=MobileFaceNet("relu6"),
        num_classes=num_classes,
        dims=(32, 64, 96),
        adapt_kernel=1,
        key_strides=(4, 2, 1),
        embed_dim=128,
        depth=1,
        num_heads=4,
        drop_path=(0.0, 0.0, 0.0),
        freeze_landmarks=False,
        **options,
    )
