"""Published weights into mien's own checkpoints."""

import math
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from mien.checkpoint import VERSION
from mien.errors import CheckpointError
from mien.labels import ORDERS
from mien.networks.checkpoint import build, fill, load_tensors, save_network

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

Rules = tuple[tuple[str, str | None], ...]  # the first pattern that matches renames a tensor, or with None drops it

_MOBILEFACENET_PRELU: Rules = (
    (r"output_layer\..*", None),
    (r"conv1\.(.*)", r"stem.\1"),
    (r"conv2_dw\.(.*)", r"stem_dw.0.\1"),
    (r"conv_23\.(.*)", r"stages.0.0.\1"),
    (r"conv_3\.model\.0\.(.*)", r"stages.0.1.\1"),
    (r"conv_3\.model\.1\.(.*)", r"stages.0.2.\1"),
    (r"conv_3\.model\.2\.(.*)", r"stages.0.3.\1"),
    (r"conv_3\.model\.3\.(.*)", r"stages.0.4.\1"),
    (r"conv_34\.(.*)", r"stages.1.0.\1"),
    (r"conv_4\.model\.(.*)", r"stages.2.\1"),
    (r"conv_45\.(.*)", r"stages.3.0.\1"),
    (r"conv_5\.model\.(.*)", r"stages.4.\1"),
    (r"conv_6_sep\.(.*)", r"last.\1"),
)
_IR50: Rules = (
    (r"output_layer\..*", None),
    (r"((?:input_layer|body[123])\..*)", r"\1"),
    # face.evoLVe keeps its 24 units in one list
    *((rf"body\.{unit}\.(.*)", rf"body1.{unit}.\1") for unit in range(3)),
    *((rf"body\.{unit}\.(.*)", rf"body2.{unit - 3}.\1") for unit in range(3, 7)),
    *((rf"body\.{unit}\.(.*)", rf"body3.{unit - 7}.\1") for unit in range(7, 21)),
    (r"body\.2[123]\..*", None),
)
_VIT: Rules = (
    (r"(?:patch_embed|eca_block|CON1|IRLinear1|IRLinear2|blocks\.\d+\.conv)\..*", None),
    (r"se_block\.(.*)", r"gate.\1"),
    (r"head\.linear\.(.*)", r"head.\1"),
    (r"((?:cls_token|pos_embed|norm\.|blocks\.).*)", r"\1"),
)
_POSTER: Rules = (
    (r"conv([123])\.(.*)", r"image_adapt.<\1>.\2"),
    (r"last_face_conv\.(.*)", r"landmark_adapt.2.\1"),
    (r"window([123])\.norm\.(.*)", r"cross.<\1>.norm1.\2"),
    (r"attn[123]\.relative_position_index", None),
    (r"attn([123])\.relative_position_bias_table", r"cross.<\1>.relative_bias"),
    (r"attn([123])\.qkv\.(.*)", r"cross.<\1>.kv.\2"),
    (r"attn([123])\.proj\.(.*)", r"cross.<\1>.proj.\2"),
    (r"ffn([123])\.gamma([12])", r"cross.<\1>.ls\2.gamma"),
    (r"ffn([123])\.norm\.(.*)", r"cross.<\1>.norm2.\2"),
    (r"ffn([123])\.mlp\.(.*)", r"cross.<\1>.mlp.\2"),
    (r"embed_q\.(.*)", r"embed_low.\1"),
    (r"embed_k\.0\.(.*)", r"embed_mid.\1"),
    (r"embed_v\.proj\.(.*)", r"embed_high.\1"),
)
_CAIT: Rules = (
    (r"patch_embed\.proj\.(.*)", r"patch_embed.\1"),
    (r"blocks\.(\d+)\.gamma_([12])", r"blocks.\1.ls\2.gamma"),
    (r"blocks_token_only\.(\d+)\.gamma_([12])", r"pool.blocks.\1.ls\2.gamma"),
    (r"blocks_token_only\.(.*)", r"pool.blocks.\1"),
    (r"(cls_token|norm\..*)", r"pool.\1"),
    (r"((?:pos_embed$|blocks\.|head\.).*)", r"\1"),
)
_APVIT: Rules = (
    (r"extractor\.input_layer\.(.*)", r"image.input_layer.\1"),
    *((rf"extractor\.body\.{i}\.(.*)", rf"image.body{i + 1}.\1") for i in range(3)),
    (r"vit\.projs\.0\.(.*)", r"proj.\1"),
    (r"vit\.attn_f\.LA_conv([12])\.(.*)", r"select.lanet.conv\1.\2"),
    (r"vit\.attn_f\.(bn[12]\..*)", r"select.lanet.\1"),
    (r"(vit\.(?:cls_token|cls_pos_embed|patch_pos_embed|blocks\..*|norm\..*))", r"\1"),
    (r"head\.fc\.(.*)", r"head.\1"),
)
_TIMM_VIT: Rules = (
    (r"(?:patch_embed|head)\..*", None),
    (r"((?:cls_token|pos_embed|norm\.|blocks\.).*)", r"\1"),
)
_UNIT_PARTS = (
    (r"\.conv_dw\.", ".depthwise."),
    (r"^((?:stages\.\d+\.\d+))\.conv\.", r"\1.expand."),
    (r"\.prelu\.", ".act."),
)


def rename(tensors: Mapping[str, Tensor], rules: Rules) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under their new names, and the names that no rule knows, or whose new name is taken."""
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        for pattern, new in rules:
            match = re.fullmatch(pattern, name)
            if match:
                if new is not None:
                    new = re.sub(r"<(\d)>", lambda level: str(int(level[1]) - 1), match.expand(new))
                    if new in renamed:
                        unknown.append(name)
                    renamed.setdefault(new, tensor)
                break
        else:
            unknown.append(name)
    return renamed, unknown


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with the prefix, without it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def from_mobilefacenet(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Of POSTER++'s landmark network (PReLU) or of foamliu/MobileFaceNet (ReLU6)."""
    if any(name.startswith("dw_conv.") for name in tensors):
        return rename(tensors, _foamliu_rules())
    renamed, unknown = rename(tensors, _MOBILEFACENET_PRELU)
    for pattern, new in _UNIT_PARTS:
        renamed = {re.sub(pattern, new, name): t for name, t in renamed.items()}
    return renamed, unknown


def _foamliu_rules() -> Rules:
    rules: list[tuple[str, str | None]] = [
        (r"(?:gdconv|conv3|bn)\..*", None),  # the embedding
        (r"conv1\.0\.(.*)", r"stem.conv.\1"),
        (r"conv1\.1\.(.*)", r"stem.bn.\1"),
        (r"dw_conv\.depthwise\.(.*)", r"stem_dw.0.conv.\1"),
        (r"dw_conv\.pointwise\.(.*)", r"stem_dw.1.conv.\1"),
        (r"dw_conv\.bn1\.(.*)", r"stem_dw.0.bn.\1"),
        (r"dw_conv\.bn2\.(.*)", r"stem_dw.1.bn.\1"),
        (r"conv2\.0\.(.*)", r"last.conv.\1"),
        (r"conv2\.1\.(.*)", r"last.bn.\1"),
    ]
    places = [(stage, block) for stage, repeats in enumerate((5, 1, 6, 1, 2)) for block in range(repeats)]
    for i, (stage, block) in enumerate(places):
        old, new = rf"features\.{i}\.conv\.", f"stages.{stage}.{block}."
        for part, at in (("expand", 0), ("depthwise", 1)):
            rules += [
                (rf"{old}{at}\.0\.(.*)", rf"{new}{part}.conv.\1"),
                (rf"{old}{at}\.1\.(.*)", rf"{new}{part}.bn.\1"),
            ]
        rules += [(rf"{old}2\.(.*)", rf"{new}project.conv.\1"), (rf"{old}3\.(.*)", rf"{new}project.bn.\1")]
    return tuple(rules)


def from_ir50(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """In stages (body1 … body3), or as face.evoLVe's single list of 24 units, of which the last three are dropped."""
    return rename(tensors, _IR50)


def from_vit(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The ViT of a POSTER++ checkpoint, or its own tensors alone."""
    prefix = "VIT." if any(name.startswith("VIT.") for name in tensors) else ""
    renamed, unknown = rename(under(prefix, tensors), _VIT)
    return renamed, [prefix + name for name in unknown]


def from_poster(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    parts = {
        "face_landback.": ("landmarks.", from_mobilefacenet),
        "ir_back.": ("image.", from_ir50),
        "VIT.": ("vit.", from_vit),
    }
    renamed, unknown = rename({name: t for name, t in tensors.items() if not name.startswith(tuple(parts))}, _POSTER)
    for old, (new, convert) in parts.items():
        found, strange = convert(under(old, tensors))
        renamed |= {new + name: t for name, t in found.items()}
        unknown += [old + name for name in strange]
    return renamed, unknown


def from_cait(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """In timm's names, which are the authors' own."""
    return rename(tensors, _CAIT)


def from_apvit(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    renamed, unknown = rename(tensors, _APVIT)
    for i in (1, 2):  # LANet's 1×1 convolutions are linear layers here
        name = f"select.lanet.conv{i}.weight"
        if name in renamed:
            renamed[name] = renamed[name].flatten(1)
    return renamed, unknown


def from_timm_vit(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The blocks of a timm ViT, its class token and positions; that of the class token stands first there."""
    renamed, unknown = rename(tensors, _TIMM_VIT)
    positions = renamed.pop("pos_embed", None)
    if positions is not None and positions.ndim == 3:
        renamed |= {"cls_pos_embed": positions[:, :1], "patch_pos_embed": positions[:, 1:]}
    return renamed, unknown


@dataclass(frozen=True)
class Kind:
    """How a kind of published weights becomes a network's."""

    tensors: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]]
    network: str
    arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]]  # of the network, as far as the tensors tell them
    resize: tuple[tuple[int, str], ...] = ((112, "auto"),)  # size and interpolation; 0: as the network's `img_size`
    align: str = "none"
    labels: tuple[str, str] = ("rafdb", "affectnet8")  # of seven classes and of eight


def _sizes(tensors: Mapping[str, Tensor], **places: tuple[str, int]) -> dict[str, int]:
    """How long a tensor is along an axis, for those that are there."""
    return {
        argument: tensors[name].shape[axis]
        for argument, (name, axis) in places.items()
        if name in tensors and tensors[name].ndim > axis
    }


def _vit_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    arguments = _sizes(tensors, num_classes=("head.weight", 0), embed_dim=("head.weight", 1))
    if "pos_embed" in tensors and tensors["pos_embed"].ndim == 3:
        arguments["num_tokens"] = tensors["pos_embed"].shape[1] - 1
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return arguments | ({"depth": len(blocks)} if blocks else {})


def _apvit_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    learned = {"patch_criterion": "lanet"} if any(name.startswith("select.lanet.") for name in tensors) else {}
    return _sizes(tensors, num_classes=("head.weight", 0)) | learned


def _timm_vit_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Heads are 64 wide in timm, but for its first ViT-Small: eight in eight blocks, scaled by embed_dim^-1/2."""
    arguments: dict[str, Any] = _sizes(tensors, num_tokens=("patch_pos_embed", 1), embed_dim=("cls_token", 2))
    dim = arguments.setdefault("embed_dim", 768)
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    small = dim == 768 and depth == 8
    hidden = _sizes(tensors, hidden=("blocks.0.mlp.fc1.weight", 0)).get("hidden", 0)
    return arguments | {
        "depth": depth,
        "num_heads": 8 if small else max(1, dim // 64),
        "mlp_ratio": hidden / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "qk_scale": dim**-0.5 if small else None,
        "keep_rate": 1.0,
    }


def _cait_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    arguments = _sizes(
        tensors,
        num_classes=("head.weight", 0),
        embed_dim=("patch_embed.weight", 0),
        patch_size=("patch_embed.weight", 2),
        num_heads=("blocks.0.attn.proj_l.weight", 0),
    )
    patches = _sizes(tensors, patches=("pos_embed", 1)).get("patches", 0)
    arguments["img_size"] = math.isqrt(patches) * arguments.get("patch_size", 0)
    for argument, prefix in (("depth", "blocks."), ("class_depth", "pool.blocks.")):
        arguments[argument] = len({name.split(".")[0] for name in under(prefix, tensors)})
    return arguments


KINDS = {
    "poster": Kind(
        from_poster,
        "mien.networks.poster",
        lambda t: _sizes(t, num_classes=("vit.head.weight", 0)),
        ((224, "auto"), (112, "nearest")),
    ),
    "apvit": Kind(
        from_apvit,
        "mien.networks.apvit",
        _apvit_arguments,
        ((224, "auto"), (112, "linear")),
        align="arcface112",
        labels=("apvit7", "apvit8"),
    ),
    "ir50": Kind(from_ir50, "mien.networks.IR50", lambda t: {}),
    "mobilefacenet": Kind(
        from_mobilefacenet,
        "mien.networks.MobileFaceNet",
        lambda t: {"variant": "prelu" if "stem.act.weight" in t else "relu6"},
    ),
    "vit": Kind(from_vit, "mien.networks.ViT", _vit_arguments),
    "timm_vit": Kind(from_timm_vit, "mien.networks.PooledViT", _timm_vit_arguments),
    "cait": Kind(from_cait, "mien.networks.CaiT", _cait_arguments, ((0, "bicubic"),)),
}


def convert(
    kind: str,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    labels: str | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
) -> Path:
    """Write the published weights in `source` as a checkpoint of mien's.

    kind: one of `KINDS`. labels: names from mien.labels.ORDERS, or a comma-separated list; by default the order that
    the kind was published with. A `module.` before names is stripped, and parameters of the
    published code that nothing reads are dropped. num_classes: put a head for so many classes in the place of the
    published one, all zero, to be trained. img_size: interpolate the positions of a network that has an `img_size`.

    Raises CheckpointError unless every tensor found its place and every place its tensor.
    """
    how, out = KINDS[kind], Path(out)
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out}: a checkpoint for torch ends in .safetensors")
    tensors = state_dict(source)
    renamed, unknown = how.tensors(tensors)
    if num_classes is not None:
        if num_classes < 1 or not any(map(_is_head, renamed)):
            raise CheckpointError(f"{source}: there is no head to be made for {num_classes} classes")
        renamed |= {name: t.new_zeros(num_classes, *t.shape[1:]) for name, t in renamed.items() if _is_head(name)}
    model = {"class_path": how.network, "init_args": how.arguments(renamed)}
    if img_size is not None:
        model["init_args"]["img_size"] = img_size
    try:
        network = build(model)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from error
    fill(network, renamed | {repr(name): tensors[name] for name in unknown}, source, most=None)
    names = _labels(model["init_args"].get("num_classes"), labels, how.labels)
    steps = [{"size": size or network.img_size, "interpolation": how_to} for size, how_to in how.resize]
    header = {
        "mien": VERSION,
        "model": model,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "preprocess": {
            "align": how.align,
            "resize": steps,
            "input_size": steps[-1]["size"],
            "color": "rgb",
            **IMAGENET,
        },
        "training": {"converted_from": Path(source).name, "kind": kind},
    }
    save_network(out, network, header)
    return out


def _is_head(name: str) -> bool:
    return re.fullmatch(r"(.*\.)?head\.(weight|bias)", name) is not None


def _labels(count: int | None, labels: str | None, usual: tuple[str, str]) -> tuple[str, ...]:
    if count is None:
        if labels is not None:
            raise CheckpointError("a trunk tells no classes apart: it takes no labels")
        return ("feature",)
    if labels is None:
        imagenet = tuple(f"imagenet {i}" for i in range(1000))
        names = {7: ORDERS[usual[0]], 8: ORDERS[usual[1]], 1000: imagenet}.get(count, ())
    else:
        names = ORDERS.get(labels) or tuple(label.strip() for label in labels.split(","))
    if len(names) != count:
        raise CheckpointError(f"the network tells {count} classes apart, and {len(names)} labels were given")
    return names


def state_dict(source: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a .safetensors file or of a pickled checkpoint, without `module.`; nothing of it is executed."""
    if Path(source).suffix == ".safetensors":
        found: Any = load_tensors(source)
    else:
        try:
            if _is_script(source):
                raise ValueError("a TorchScript program")
            found = torch.load(source, map_location="cpu", pickle_module=_INERT_PICKLE, weights_only=False)
        except FileNotFoundError as error:
            raise CheckpointError(f"{source}: no such file") from error
        except Exception as error:  # an unpickler raises whatever a damaged file leads it to
            raise CheckpointError(f"{source}: not a torch checkpoint, or damaged ({error})") from error
    for inner in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(inner), Mapping):
            found = found[inner]
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{source}: holds no state dict")
    tensors = {
        str(name).removeprefix("module."): t.detach().float() if t.is_floating_point() else t.detach()
        for name, t in found.items()
        if isinstance(t, Tensor)
    }
    if not tensors:
        raise CheckpointError(f"{source}: holds no tensors")
    return tensors


def _is_script(source: str | os.PathLike[str]) -> bool:
    """Whether torch.load would run the file as a program."""
    if not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())


class _Inert:
    """Stands for an object of any class that was pickled beside the tensors: takes everything, does nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, value):
        pass

    def extend(self, values):
        pass


_SAFE = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


class _InertUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _SAFE:
            return _SAFE[module, name]
        if module == "torch" and name.endswith("Storage") and hasattr(torch, name):
            return getattr(torch, name)
        if module == "torch.storage" and name in ("TypedStorage", "UntypedStorage"):
            return getattr(torch.storage, name)
        return type(name, (_Inert,), {})


def _load(file, **options):
    return _InertUnpickler(file, **options).load()


_INERT_PICKLE = SimpleNamespace(Unpickler=_InertUnpickler, load=_load, __name__="inert_pickle")
