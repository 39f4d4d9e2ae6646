"""Published weights of single mechanisms, out of somebody else's network, into mien's."""

import os
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from mien.errors import CheckpointError
from mien.networks.checkpoint import fill
from mien.networks.inert import state_dict
from mien.networks.published import Rules, rename, under
from mien.networks.published_stages import halo_qkv
from mien.nn.acmil import ACMILHead
from mien.nn.axial import Axial
from mien.nn.gaam import GAAM
from mien.nn.group_pose import GroupPoseLayer, GroupSelfAttention
from mien.nn.halo import Halo
from mien.nn.moh import CosineMoH, MoH
from mien.nn.rcmha import RCMHA
from mien.nn.reliability_balancing import ReliabilityBalancing

Tensors = dict[str, Tensor]

_ACMIL: Rules = (
    (r"dimreduction\.fc1\.(.*)", r"reduce.\1"),
    (r"attention\.attention_V\.0\.(.*)", r"pool.gate_v.\1"),
    (r"attention\.attention_U\.0\.(.*)", r"pool.gate_u.\1"),
    (r"attention\.attention_weights\.(.*)", r"pool.score.\1"),
    (r"classifier\.(\d+)\.fc\.(.*)", r"branch_heads.\1.\2"),
    (r"Slide_classifier\.fc\.(.*)", r"head.\1"),
)
_AXIAL: Rules = (
    (r"axial_attentions\.0\.fn\.to_out\.(.*)", r"columns.proj.\1"),
    (r"axial_attentions\.1\.fn\.to_out\.(.*)", r"rows.proj.\1"),
    (r"axial_attentions\.0\.fn\.(.*)", r"columns.\1"),
    (r"axial_attentions\.1\.fn\.(.*)", r"rows.\1"),
)
_GROUP: Rules = (
    (r"(within|across)_attn\.in_proj_(weight|bias)", r"\1_attn.qkv.\2"),
    (r"(within|across)_attn\.out_proj\.(.*)", r"\1_attn.proj.\2"),
    (r"((?:within|across)_norm\..*)", r"\1"),
)
_GROUP_POSE: Rules = (
    *((old, f"group.{new}") for old, new in _GROUP),
    (r"cross_attn\.value_proj\.(.*)", r"cross_attn.value.\1"),
    (r"cross_attn\.output_proj\.(.*)", r"cross_attn.proj.\1"),
    (r"((?:cross_attn\.(?:sampling_offsets|attention_weights)|norm[12]|linear[12])\..*)", r"\1"),
)
_RCMHA: Rules = (
    (r"query_pos_bias", "query_bias"),
    (r"key_pos_embeddings", "relative_key"),
    (r"key_pos_bias", "relative_bias"),
    (r"output\.(.*)", r"proj.\1"),
    *((rf"{name}\.0\.linear\.(.*)", rf"{name[0]}.\1") for name in ("query", "key", "value")),
    *((rf"{name}\.1\.conv\.(.*)", rf"conv_{name[0]}.\1") for name in ("query", "key", "value")),
)


def _joined(tensors: Mapping[str, Tensor], names: Mapping[str, Iterable[str]]) -> Tensors:
    """The same, those of `names` put together along the first axis under a new name, as far as they are there."""
    left = dict(tensors)
    for new, parts in names.items():
        found = [left.pop(part) for part in parts if part in left]
        if found:
            left[new] = torch.cat(found)
    return left


def _renamed(rules: Rules) -> Callable[[Mapping[str, Tensor], nn.Module], Tensors]:
    """By rules alone; what no rule knows stays, in quotes, for the list of what has no place."""

    def change(tensors: Mapping[str, Tensor], module: nn.Module) -> Tensors:
        renamed, unknown = rename(tensors, rules)
        return renamed | {repr(name): tensors[name] for name in unknown}

    return change


def _moh(tensors: Mapping[str, Tensor], module: nn.Module) -> Tensors:
    return _joined(tensors, {"router.weight": ("wg.weight", "wg_1.weight", "wg_0.weight")})


def _halo(tensors: Mapping[str, Tensor], module: nn.Module) -> Tensors:
    """timm's; or halonet-pytorch's, which masks padding and has a projection."""
    names = {"rel_pos_emb.rel_height": "height_rel", "rel_pos_emb.rel_width": "width_rel"}
    names |= {f"to_out.{leaf}": f"proj.{leaf}" for leaf in ("weight", "bias")}
    left = {names.get(name, name.removeprefix("pos_embed.")): tensor for name, tensor in tensors.items()}
    return halo_qkv(_joined(left, {"qkv.weight": ("to_q.weight", "to_kv.weight")}))


def _axial(tensors: Mapping[str, Tensor], module: nn.Module) -> Tensors:
    renamed = _renamed(_AXIAL)(tensors, module)
    lines = ("columns", "rows")
    return _joined(renamed, {f"{x}.qkv.weight": (f"{x}.to_q.weight", f"{x}.to_kv.weight") for x in lines})


def _gaam(tensors: Mapping[str, Tensor], module: nn.Module) -> Tensors:
    """Heads apart, each with vectors of its Gaussians."""
    left = dict(tensors)
    for leaf in ("mean_offsets", "c"):
        found = [left.pop(name) for i in range(len(tensors)) if (name := f"attention_heads.{i}.{leaf}") in left]
        if found:
            left[leaf] = torch.stack(found)
    return left


def _rcmha(tensors: Mapping[str, Tensor], module: nn.Module) -> Tensors:
    """Of its 8,192 offsets the middle ones, as many as the module has."""
    renamed = _renamed(_RCMHA)(tensors, module)
    for name in ("relative_key", "relative_bias"):
        if name in renamed and len(renamed[name]) > (count := len(module.get_parameter(name))):
            first = (len(renamed[name]) - count) // 2
            renamed[name] = renamed[name][first : first + count]
    return renamed


def _reliability(tensors: Mapping[str, Tensor], module: nn.Module) -> Tensors:
    """ARBEx's anchors and attention, whose two linear layers in a row become one: their products, in fp64."""
    left, wanted = dict(tensors), [f"{x}.{leaf}" for x in "QKV" for leaf in ("weight", "bias")]
    second = [f"attn_fn.in_proj_{leaf}" for leaf in ("weight", "bias")]
    if all(name in left for name in (*wanted, *second)):
        first = [left.pop(name).double() for name in wanted]
        weights, biases = (left.pop(name).double().chunk(3) for name in second)
        pairs = list(zip(first[::2], first[1::2], weights, biases, strict=True))
        left["qkv.weight"] = torch.cat([w2 @ w1 for w1, _, w2, _ in pairs]).float()
        left["qkv.bias"] = torch.cat([w2 @ b1 + b2 for _, b1, w2, b2 in pairs]).float()
    return {name.replace("attn_fn.out_proj.", "proj."): tensor for name, tensor in left.items()}


MECHANISMS: dict[type[nn.Module], Callable[[Mapping[str, Tensor], nn.Module], Tensors]] = {
    CosineMoH: _moh,
    MoH: _moh,
    Halo: _halo,
    ACMILHead: _renamed(_ACMIL),
    Axial: _axial,
    GAAM: _gaam,
    GroupPoseLayer: _renamed(_GROUP_POSE),
    GroupSelfAttention: _renamed(_GROUP),
    RCMHA: _rcmha,
    ReliabilityBalancing: _reliability,
}
"""What becomes of the tensors of each mechanism's own code, whose names and layout are known."""


def load_mechanism(
    module: nn.Module, source: str | os.PathLike[str] | Mapping[str, Tensor], prefix: str = ""
) -> nn.Module:
    """Fill a mechanism of mien's with the weights of its own code, and give it back.

    module: of one of the classes in `MECHANISMS`, as wide and with as many heads as the weights were trained for.
    source: a file of weights (.pth, .pth.tar, .pt, .safetensors), which is read as `mien convert` does, or tensors.
    prefix: of the names in it, such as "blocks.3.attn." (default: none); others are not looked at.

    Raises CheckpointError for a mechanism whose layout is not known, and, with the list, unless every tensor found its
    place and every place its tensor.
    """
    change = next((change for kind, change in MECHANISMS.items() if type(module) is kind), None)
    if change is None:
        known = ", ".join(kind.__name__ for kind in MECHANISMS)
        raise CheckpointError(f"published weights are known of {known}, not of {type(module).__name__}")
    given = source if isinstance(source, Mapping) else state_dict(source)
    what = "these tensors" if isinstance(source, Mapping) else str(source)
    tensors = under(prefix, given)
    if not tensors:
        raise CheckpointError(f"{what}: no tensor's name begins with {prefix!r}")
    try:
        changed = change(tensors, module)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{what}: tensors are not shaped as those of this layout are ({reason})") from error
    fill(module, changed, what, most=None)
    return module
