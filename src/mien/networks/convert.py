"""Published weights into mien's own checkpoints."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mien.checkpoint import VERSION
from mien.errors import CheckpointError
from mien.labels import ORDERS
from mien.networks.checkpoint import build, fill, save_network
from mien.networks.inert import state_dict
from mien.networks.published import (
    from_apvit,
    from_cait,
    from_ir50,
    from_mobilefacenet,
    from_mobilenet,
    from_poster,
    from_timm_vit,
    from_vit,
    sizes_of,
    under,
)
from mien.networks.published_stages import from_davit, from_halonet, from_maxvit, from_moh_vit
from mien.networks.published_transformers import (
    deit_arguments,
    from_deit,
    from_spectformer,
    spectformer,
    spectformer_arguments,
)
from mien.outputs import EXPRESSION

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
CAFFE = {"mean": [0.48502, 0.45795, 0.40760], "std": [1 / 255] * 3}  # 123.68, 116.779, 103.939 of 255
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


@dataclass(frozen=True)
class Kind:
    """How a kind of published weights becomes a network's."""

    tensors: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], list[str]]]
    network: str | Callable[[Mapping[str, Tensor]], str]  # or by its tensors; "" where `variants` names several
    arguments: Callable[[Mapping[str, Tensor]], dict[str, Any]]  # of the network, as far as the tensors show them
    resize: tuple[tuple[int, str], ...] = ((112, "auto"),)  # size and interpolation; 0: as the network's `img_size`
    align: str = "none"
    labels: tuple[str, str] = ("rafdb", "affectnet8")  # of seven classes and of eight
    normalize: Mapping[str, list[float]] = field(default_factory=lambda: IMAGENET)  # mean and std
    own: str = r"(?!)"  # names of what the file may lack, a pattern: it begins at random, and is listed
    variants: Mapping[str, "Kind"] = field(default_factory=dict)  # by function of `mien.networks`: the tensors fit one


def _vit_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    arguments = sizes_of(tensors, num_classes=("head.weight", 0), embed_dim=("head.weight", 1))
    if "pos_embed" in tensors and tensors["pos_embed"].ndim == 3:
        arguments["num_tokens"] = tensors["pos_embed"].shape[1] - 1
    blocks = {name.split(".")[1] for name in tensors if name.startswith("blocks.")}
    return arguments | ({"depth": len(blocks)} if blocks else {})


def _apvit_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    learned = {"patch_criterion": "lanet"} if any(name.startswith("select.lanet.") for name in tensors) else {}
    return sizes_of(tensors, num_classes=("head.weight", 0)) | learned


def _timm_vit_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Heads are 64 wide in timm, but for its first ViT-Small: eight in eight blocks, scaled by embed_dim^-1/2."""
    arguments: dict[str, Any] = sizes_of(tensors, num_tokens=("patch_pos_embed", 1), embed_dim=("cls_token", 2))
    dim = arguments.setdefault("embed_dim", 768)
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    small = dim == 768 and depth == 8
    hidden = sizes_of(tensors, hidden=("blocks.0.mlp.fc1.weight", 0)).get("hidden", 0)
    return arguments | {
        "depth": depth,
        "num_heads": 8 if small else max(1, dim // 64),
        "mlp_ratio": hidden / dim,
        "qkv_bias": "blocks.0.attn.qkv.bias" in tensors,
        "qk_scale": dim**-0.5 if small else None,
        "keep_rate": 1.0,
    }


def _cait_arguments(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    arguments = sizes_of(
        tensors,
        num_classes=("head.weight", 0),
        embed_dim=("patch_embed.weight", 0),
        patch_size=("patch_embed.weight", 2),
        num_heads=("blocks.0.attn.proj_l.weight", 0),
    )
    patches = sizes_of(tensors, patches=("pos_embed", 1)).get("patches", 0)
    arguments["img_size"] = math.isqrt(patches) * arguments.get("patch_size", 0)
    for argument, prefix in (("depth", "blocks."), ("class_depth", "pool.blocks.")):
        arguments[argument] = len({name.split(".")[0] for name in under(prefix, tensors)})
    return arguments


KINDS = {
    "poster": Kind(
        from_poster,
        "mien.networks.poster",
        lambda t: sizes_of(t, num_classes=("vit.head.weight", 0)),
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
    "mobilenet": Kind(from_mobilenet, "mien.networks.MobileNet", lambda t: {}, ((160, "auto"),), normalize=CAFFE),
    "vit": Kind(from_vit, "mien.networks.ViT", _vit_arguments),
    "timm_vit": Kind(from_timm_vit, "mien.networks.PooledViT", _timm_vit_arguments),
    "cait": Kind(from_cait, "mien.networks.CaiT", _cait_arguments, ((0, "bicubic"),)),
    "spectformer": Kind(from_spectformer, spectformer, spectformer_arguments, ((0, "bicubic"),)),
    "deit": Kind(
        from_deit,
        "mien.networks.SparseDeiT",
        deit_arguments,
        ((0, "bicubic"),),
        own=r"\.attn\.(reduce_[qk]\.(weight|bias)|reduce_tokens|basis)$",
    ),
}


def _classes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return sizes_of(tensors, num_classes=("head.weight", 0))


def _cait_size(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Of one of timm's CaiTs, whose name says the rest."""
    return {name: size for name, size in _cait_arguments(tensors).items() if name in ("num_classes", "img_size")}


def _several(names: Sequence[str], tensors: Callable[..., Any], arguments: Callable = _classes, **options: Any) -> Kind:
    """A kind of networks of one layout, of images as large as the network says."""
    one = Kind(tensors, "", arguments, ((0, "bicubic"),), **options)
    return Kind(tensors, "", arguments, variants=dict.fromkeys(names, one))


_CAITS = ("cait_xxs24", "cait_xxs36", "cait_xs24", "cait_s24", "cait_s36", "cait_m36", "cait_m48")
_MOH_VITS = {
    "moh_vit_tiny": (3, 6, 3, 4),
    "moh_vit_small_75": (3, 6, 3, 4),
    "moh_vit_small_80": (3, 6, 3, 8),
    "moh_vit_base_75": (4, 8, 4, 5),
    "moh_vit_base_50": (2, 2, 2, 4),
}
KINDS["davit"] = _several(("davit_tiny", "davit_small", "davit_base"), from_davit)
KINDS["halonet"] = _several(("halonet26t", "halonet50ts"), from_halonet)
KINDS["moh_vit"] = Kind(
    partial(from_moh_vit, shared=_MOH_VITS["moh_vit_tiny"]),
    "",
    _classes,
    variants={
        name: Kind(partial(from_moh_vit, shared=shared), "", _classes, ((0, "bicubic"),))
        for name, shared in _MOH_VITS.items()
    },
)
TIMM: dict[str, Kind] = {
    **_several(_CAITS, from_cait, _cait_size).variants,
    **_several(("maxvit_tiny_rw",), from_maxvit, normalize=HALF).variants,
    **_several(("maxvit_tiny_tf",), from_maxvit).variants,
    **KINDS["davit"].variants,
    **KINDS["halonet"].variants,
}
"""Networks whose weights timm publishes."""
KINDS["timm"] = Kind(lambda tensors: (dict(tensors), []), "", _classes, variants=TIMM)


def _chosen(kind: str, as_: str | None, tensors: Mapping[str, Tensor], source: object) -> tuple[str, Kind]:
    """The path of the network that the tensors are of, and its kind; CheckpointError where they are of another."""
    how = KINDS[kind]
    if as_ is not None and as_ not in how.variants:
        opened = f"opens {', '.join(how.variants)}" if how.variants else "opens one network alone: it takes no --as"
        raise CheckpointError(f"mien convert {kind} {opened}, not {as_}")
    if not how.variants:
        return how.network if isinstance(how.network, str) else how.network(how.tensors(tensors)[0]), how
    if as_ is None and kind == "timm":
        raise CheckpointError(f"mien convert timm needs --as, one of {', '.join(how.variants)}")
    layouts = how.variants
    for name in [as_] if as_ else layouts:
        if _is_of(name, layouts[name], tensors):
            return f"mien.networks.{name}", layouts[name]
    for name, layout in layouts.items():
        if name != as_ and _is_of(name, layout, tensors):
            raise CheckpointError(f"{source}: these are not the weights of {as_}: they look like those of {name}")
    name = as_ or next(iter(layouts))
    return f"mien.networks.{name}", layouts[name]  # of none: `fill` lists what does not fit


def _stages(tensors: Mapping[str, Tensor]) -> str:
    """What size of network the tensors look like, in words; nothing where they show no stages."""
    widths: dict[int, int] = {}
    blocks: dict[int, set[str]] = {}
    for name, tensor in tensors.items():
        found = re.match(r"stages\.(\d+)\.(?:blocks\.)?(\d+)\..*(mlp\.fc2\.bias|conv3_1x1\.bn\.weight)$", name)
        if found:
            widths[int(found[1])] = len(tensor)
            blocks.setdefault(int(found[1]), set()).add(found[2])
    if not widths:
        return ""
    wide, deep = (", ".join(map(str, x)) for x in (widths.values(), map(len, blocks.values())))
    return f"they look like a network whose stages are {wide} wide, of {deep} blocks"


def _renamed(how: Kind, tensors: Mapping[str, Tensor], source: object) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under their names here, and the names that are unknown; CheckpointError for impossible shapes."""
    try:
        return how.tensors(tensors)
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source}: tensors are not shaped as those of this layout are ({reason})") from error


def _is_of(name: str, how: Kind, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are those of the network, all of them."""
    try:
        renamed, unknown = _renamed(how, tensors, name)
        with torch.device("meta"):
            network = build({"class_path": f"mien.networks.{name}", "init_args": how.arguments(renamed)})
    except CheckpointError:
        return False
    own = network.state_dict()
    counted = {n for n in own if not n.endswith("num_batches_tracked")}
    fits = all(n in renamed and renamed[n].shape == own[n].shape for n in counted)
    return fits and not unknown and renamed.keys() <= own.keys()


def convert(
    kind: str,
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    labels: str | None = None,
    *,
    num_classes: int | None = None,
    img_size: int | None = None,
    as_: str | None = None,
) -> Path:
    """Write the published weights in `source` as a checkpoint of mien's.

    kind: one of `KINDS`. labels: names from mien.labels.ORDERS, or a comma-separated list; by default the order that
    the kind was published with. A `module.` before names is stripped, and parameters of the
    published code that nothing reads are dropped. num_classes: put a head for so many classes in the place of the
    published one, all zero, to be trained. img_size: interpolate the positions of a network that has an `img_size`.
    as_: name of the network, for a kind of several; "timm" needs it, others see it by the tensors.

    What a kind may lack, such as the mask predictors that Sparsifiner adds to DeiT, begins at random, always the same,
    and the header's `training.untrained` lists it. Raises CheckpointError unless every other place found its tensor,
    and every tensor its place, and says which network's the
    weights look like where they are of another size or variant.
    """
    out = Path(out)
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out}: a checkpoint for torch ends in .safetensors")
    tensors = state_dict(source)
    path, how = _chosen(kind, as_, tensors, source)
    renamed, unknown = _renamed(how, tensors, source)
    if num_classes is not None:
        if num_classes < 1 or not any(map(_is_head, renamed)):
            raise CheckpointError(f"{source}: there is no head to be made for {num_classes} classes")
        renamed |= {name: t.new_zeros(num_classes, *t.shape[1:]) for name, t in renamed.items() if _is_head(name)}
    model = {"class_path": path, "init_args": how.arguments(renamed)}
    if img_size is not None:
        model["init_args"]["img_size"] = img_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            network = build(model)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from error
    places = network.state_dict()
    untrained = [name for name in places if re.search(how.own, name) and name not in renamed]
    renamed |= {name: places[name] for name in untrained}
    stages = _stages(renamed)
    if how is not KINDS[kind] and stages != _stages(places):
        known = as_ or ", ".join(KINDS[kind].variants)
        raise CheckpointError(f"{source}: not the weights of {known}: {stages or 'they look like no such network'}")
    fill(network, renamed | {repr(name): tensors[name] for name in unknown}, source, most=None)
    names = _labels(model["init_args"].get("num_classes"), labels, how.labels)
    steps = [{"size": size or network.img_size, "interpolation": how_to} for size, how_to in how.resize]
    header = {
        "mien": VERSION,
        "model": model,
        "outputs": [{"name": EXPRESSION, "kind": "classes", "labels": list(names)}],
        "preprocess": {
            "align": how.align,
            "resize": steps,
            "input_size": steps[-1]["size"],
            "color": "rgb",
            **how.normalize,
        },
        "training": {"converted_from": Path(source).name, "kind": kind}
        | ({"untrained": untrained} if untrained else {}),
    }
    save_network(out, network, header)
    return out


def _is_head(name: str) -> bool:
    return re.fullmatch(r"(.*\.)?(aux_)?head\.(weight|bias)", name) is not None


def _labels(count: int | None, labels: str | None, usual: tuple[str, str]) -> tuple[str, ...]:
    if count is None:
        if labels is not None:
            raise CheckpointError("a trunk has no classes: it takes no labels")
        return ("feature",)
    if labels is None:
        imagenet = tuple(f"imagenet {i}" for i in range(1000))
        names = {7: ORDERS[usual[0]], 8: ORDERS[usual[1]], 1000: imagenet}.get(count, ())
    else:
        names = ORDERS.get(labels) or tuple(label.strip() for label in labels.split(","))
    if len(names) != count:
        raise CheckpointError(f"the network tells {count} classes apart, and {len(names)} labels were given")
    return names
