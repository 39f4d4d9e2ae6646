"""How published weights name their tensors, and what these are called here."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

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
_MOBILENET: Rules = (
    (r"(?:feats|age_pred|gender_pred|global_pooling)/.*|.*/(?:Cast|Const_1)", None),
    (r"conv1/.*", "stem.conv.weight"),
    (r"conv1_bn/batchnorm_1/sub", "stem.bn.bias"),
    (r"conv_dw_(\d+)/depthwise_kernel", r"blocks.<\1>.0.conv.weight"),
    (r"conv_pw_(\d+)/.*", r"blocks.<\1>.1.conv.weight"),
    (r"conv_dw_(\d+)_bn/batchnorm_1/mul", r"blocks.<\1>.0.bn.weight"),
    (r"conv_dw_(\d+)_bn/batchnorm_1/sub", r"blocks.<\1>.0.bn.bias"),
    (r"conv_pw_(\d+)_bn/batchnorm_1/sub", r"blocks.<\1>.1.bn.bias"),
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
                    new = re.sub(r"<(\d+)>", lambda level: str(int(level[1]) - 1), match.expand(new))
                    if new in renamed:
                        unknown.append(name)
                    renamed.setdefault(new, tensor)
                break
        else:
            unknown.append(name)
    return renamed, unknown


def sizes_of(tensors: Mapping[str, Tensor], **places: tuple[str, int]) -> dict[str, int]:
    """How long a tensor is along an axis, for those that are there."""
    return {
        argument: tensors[name].shape[axis]
        for argument, (name, axis) in places.items()
        if name in tensors and tensors[name].ndim > axis
    }


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


def from_mobilenet(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Of Keras' MobileNet as TensorFlow.js keeps it, for BGR: the factors and offsets that are left of batch norm stand
    here in one whose statistics are 0 and 1."""
    renamed, unknown = rename(tensors, _MOBILENET)
    state = dict(renamed)
    for name, tensor in renamed.items():
        if tensor.ndim == 4:  # (height, width, in, out), depthwise (height, width, channels, 1)
            tensor = tensor.permute((2, 3, 0, 1) if ".0.conv." in name else (3, 2, 0, 1))
            state[name] = (tensor.flip(1) if name == "stem.conv.weight" else tensor).contiguous()  # to RGB
        elif name.endswith(".bn.bias"):
            norm = name.removesuffix("bias")
            state.setdefault(f"{norm}weight", torch.ones_like(tensor))
            state[f"{norm}running_mean"] = torch.zeros_like(tensor)
            state[f"{norm}running_var"] = torch.ones_like(tensor) - 1e-5  # what batch norm adds
    return state, unknown


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
