"""The circuits of attention: what each head compares, and what it carries, as matrices of weights."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mien.nn.axial import Axial, Lines
from mien.nn.class_attention import ClassAttention
from mien.nn.davit import WindowAttention
from mien.nn.dual_attention import PAM
from mien.nn.halo import Halo
from mien.nn.landmark_cross_attention import LandmarkCrossAttention
from mien.nn.landmark_queries import TokenCrossAttention
from mien.nn.local_attention import LocalAttention
from mien.nn.maxvit import MaxViTBlockAttention, MaxViTGridAttention
from mien.nn.moh import MoH
from mien.nn.multi_level_attention import LevelAttention
from mien.nn.neighborhood import Neighborhood
from mien.nn.observe import Stages, attentions
from mien.nn.self_attention import SelfAttention
from mien.nn.sparsifiner import Sparsifiner
from mien.nn.talking_heads import TalkingHeads
from mien.nn.tic import TiC

PLAIN = frozenset(
    (
        *(ClassAttention, Halo, LandmarkCrossAttention, LevelAttention, Lines, MaxViTBlockAttention),
        *(MaxViTGridAttention, MoH, Neighborhood, PAM, SelfAttention, Sparsifiner, TalkingHeads, TiC),
        *(TokenCrossAttention, WindowAttention),
    )
)
"""Mechanisms that compare q and k as their linear layers give them."""


@dataclass(frozen=True)
class Circuit:
    """What the heads of one mechanism compare and carry, as matrices of weights.

    kq: (heads, D, D): the score of query x and key y is `xᵀ kq y`, the scale within, and terms of x or y alone: of
        biases and of places. None where no matrix can say it.
    ov: (heads, E, D): a key y that a head attends to adds `ov y` to the output, and a bias. None where kq is.
    reason: why there are no matrices; "" where there are.

    x and y are the tokens as the mechanism is given them: behind a block's norm.
    """

    kq: Tensor | None
    ov: Tensor | None
    reason: str = ""


def circuits(network: nn.Module, plain: Sequence[type] = ()) -> dict[str, Circuit]:
    """`K_hᵀ Q_h` and `O_h V_h` of every head of every mechanism, by the name that `mien.nn.observe` gives it.

    network: any module.
    plain: further classes, of yours, that compare q and k as linear layers give them; their layers are called qkv, or
        q, k and v, or q and kv, and proj, as everywhere in mien.

    What stands behind the output projection (a layer scale, MoH's gates of a token, TiC's convolution) is not in `ov`;
    talking heads are mixed in both.

    Paper: Elhage et al., A Mathematical Framework for Transformer Circuits, 2021.
    """
    owners = {part: owner for owner in network.modules() for part in owner.children() if isinstance(part, Stages)}
    above = {part: owner for owner in network.modules() for part in owner.children()}
    return {name: _circuit(owners.get(site), above, (*PLAIN, *plain)) for name, site in attentions(network).items()}


def _circuit(part: nn.Module | None, above: dict[nn.Module, nn.Module], plain: Sequence[type]) -> Circuit:
    if part is None or type(part) not in plain:
        what = "attention that stands alone" if part is None else type(part).__name__
        return Circuit(None, None, f"{what} is not known to compare q and k as linear layers of tokens give them")
    with torch.no_grad():
        q, k, v = _inputs(part, above)
        heads: int = part.num_heads  # type: ignore[assignment]
        k, v = (weight.unflatten(0, (heads, -1)) for weight in (k, v))  # (heads, head_dim, D)
        q = torch.eye(k.shape[0] * k.shape[1], dtype=k.dtype, device=k.device) if q is None else q
        q = q.unflatten(0, (heads, -1))
        scale = getattr(part.attend, "scale", None)
        kq = q.mT @ k * (q.shape[1] ** -0.5 if scale is None else scale)
        proj = getattr(part, "proj", None)
        width = v.shape[0] * v.shape[1]
        out = proj.weight if isinstance(proj, nn.Linear) else torch.eye(width, dtype=v.dtype, device=v.device)
        if isinstance(part, PAM):
            out = out * part.gamma
        ov = out.unflatten(1, (heads, -1)).transpose(0, 1) @ v
        if isinstance(part, TalkingHeads):
            kq = torch.einsum("hg,gij->hij", part.proj_l.weight, kq)
            ov = torch.einsum("hg,hij->gij", part.proj_w.weight, ov)
    return Circuit(kq, ov)


def _inputs(part: nn.Module, above: dict[nn.Module, nn.Module]) -> tuple[Tensor | None, Tensor, Tensor]:
    """The weights of q, which is None where queries come as they are, k and v, all heads one after another."""

    def weight(name: str) -> Tensor | None:
        return getattr(getattr(part, name, None), "weight", None)

    q, qkv = weight("q"), weight("qkv")
    if isinstance(owner := above.get(part), Axial) and isinstance(owner.qkv, nn.Linear):  # of both axes
        qkv = owner.qkv.weight
    if qkv is not None:
        widths = part.widths if isinstance(part, LocalAttention) else [len(qkv) // 3] * 3
        q, k, v = qkv.split(list(widths))
        return q, k, v
    if (kv := weight("kv")) is not None:
        k, v = kv.chunk(2)
        return q, k, v
    k, v = weight("k"), weight("v")
    if q is None or k is None or v is None:
        raise ValueError(f"{type(part).__name__} has no layers qkv, or q and kv, or q, k and v")
    return q, k, v
