"""Published weights into mien's own checkpoints."""

import os
import pickle
import re
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
from mien.labels import EXPRESSIONS, ORDERS
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
    (r"(?:module\.)?(?:ir_back\.)?output_layer\..*", None),
    (r"((?:input_layer|body[123])\..*)", r"\1"),
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
_UNIT_PARTS = (
    (r"\.conv_dw\.", ".depthwise."),
    (r"^((?:stages\.\d+\.\d+))\.conv\.", r"\1.expand."),
    (r"\.prelu\.", ".act."),
)


def rename(tensors: Mapping[str, Tensor], rules: Rules) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under their new names, and the names that no rule knows."""
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        for pattern, new in rules:
            match = re.fullmatch(pattern, name)
            if match:
                if new is not None:
                    new = re.sub(r"<(\d)>", lambda level: str(int(level[1]) - 1), match.expand(new))
                    renamed[new] = tensor
                break
        else:
            unknown.append(name)
    return renamed, unknown


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose name begins with the prefix, without it; all of them where none does."""
    found = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    return found or dict(tensors)


def from_mobilefacenet(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Of POSTER++'s landmark network (PReLU) or of foamliu/MobileFaceNet (ReLU6)."""
    if "dw_conv.depthwise.weight" in tensors:
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
    flat = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"body\.(\d+)\.(.*)", name)
        if match:
            unit = int(match[1])
            if unit > 20:
                continue
            stage, first = next((s, f) for s, f in ((3, 7), (2, 3), (1, 0)) if unit >= f)
            name = f"body{stage}.{unit - first}.{match[2]}"
        flat[name] = tensor
    return rename(flat, _IR50)


def from_vit(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The ViT of a POSTER++ checkpoint, or its own tensors alone."""
    return rename(under("VIT.", tensors), _VIT)


def from_poster(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    parts = {
        "face_landback.": ("landmarks.", from_mobilefacenet),
        "ir_back.": ("image.", from_ir50),
        "VIT.": ("vit.", from_vit),
    }
    found: dict[str, Tensor] = {}
    unknown: list[str] = []
    rest = dict(tensors)
    for old, (new, convert) in parts.items():
        part = {name.removeprefix(old): rest.pop(name) for name in list(rest) if name.startswith(old)}
        if not part:
            continue
        renamed, strange = convert(part)
        found |= {new + name: t for name, t in renamed.items()}
        unknown += [old + name for name in strange]
    renamed, strange = rename(rest, _POSTER)
    return found | renamed, unknown + strange


@dataclass(frozen=True)
class Kind:
    """How a kind of published weights becomes a network's."""

    tensors: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]]
    model: Callable[[Mapping[str, Tensor]], dict[str, Any]]
    classes: Callable[[Mapping[str, Tensor]], int] | None = None  # None: a trunk, which names nothing
    resize: tuple[int, ...] = (112,)


def _poster_model(t: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"class_path": "mien.networks.poster", "init_args": {"num_classes": len(t["vit.head.weight"])}}


def _vit_model(t: Mapping[str, Tensor]) -> dict[str, Any]:
    depth = 1 + max(int(name.split(".")[1]) for name in t if name.startswith("blocks."))
    arguments = {
        "num_classes": len(t["head.weight"]),
        "num_tokens": t["pos_embed"].shape[1] - 1,
        "embed_dim": t["pos_embed"].shape[2],
        "depth": depth,
    }
    return {"class_path": "mien.networks.ViT", "init_args": arguments}


KINDS = {
    "poster": Kind(from_poster, _poster_model, lambda t: len(t["vit.head.weight"]), (224, 112)),
    "ir50": Kind(from_ir50, lambda t: {"class_path": "mien.networks.IR50", "init_args": {}}),
    "mobilefacenet": Kind(
        from_mobilefacenet,
        lambda t: {
            "class_path": "mien.networks.MobileFaceNet",
            "init_args": {"variant": "prelu" if "stem.act.weight" in t else "relu6"},
        },
    ),
    "vit": Kind(from_vit, _vit_model, lambda t: len(t["head.weight"])),
}


def convert(kind: str, source: str | os.PathLike[str], out: str | os.PathLike[str], labels: str | None = None) -> Path:
    """Write the published weights in `source` as a checkpoint of mien's.

    kind: "poster", "ir50", "mobilefacenet" or "vit". labels: names from mien.labels.ORDERS, or a comma-separated list;
    by default the order of RAF-DB for seven classes and AffectNet's for eight. A `module.` before names is stripped,
    and parameters of the published code that nothing reads are dropped.

    Raises CheckpointError unless every tensor found its place and every place its tensor.
    """
    how, out = KINDS[kind], Path(out)
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out}: a checkpoint for torch ends in .safetensors")
    renamed, unknown = how.tensors(state_dict(source))
    if unknown:
        shown = ", ".join(sorted(unknown)[:8]) + (", …" if len(unknown) > 8 else "")
        raise CheckpointError(f"{source}: {len(unknown)} tensors without a place in {kind}: {shown}")
    try:
        model = how.model(renamed)
        count = 0 if how.classes is None else how.classes(renamed)
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{source}: not a {kind} checkpoint, {error} is missing") from error
    network = build(model)
    fill(network, renamed, source)
    header = {
        "mien": VERSION,
        "model": model,
        "id2label": {str(i): name for i, name in enumerate(_labels(count, labels))},
        "preprocess": {
            "align": "none",
            "resize": [
                {"size": size, "interpolation": "auto" if i == 0 else "nearest"} for i, size in enumerate(how.resize)
            ],
            "input_size": 112,
            "color": "rgb",
            **IMAGENET,
        },
        "training": {"converted_from": Path(source).name, "kind": kind},
    }
    save_network(out, network, header)
    return out


def _labels(count: int, labels: str | None) -> tuple[str, ...]:
    if count == 0:
        return ("feature",)  # a trunk names nothing
    if labels is None:
        names = {7: ORDERS["rafdb"], 8: EXPRESSIONS}.get(count, ())
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
            found = torch.load(source, map_location="cpu", pickle_module=_INERT_PICKLE, weights_only=False)
        except FileNotFoundError as error:
            raise CheckpointError(f"{source}: no such file") from error
        except Exception as error:  # an unpickler raises whatever a damaged file leads it to
            raise CheckpointError(f"{source}: not a torch checkpoint, or damaged ({error})") from error
    if isinstance(found, Mapping) and isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
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
