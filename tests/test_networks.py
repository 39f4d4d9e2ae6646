"""What every network must hold to: sizes, a face alone and among others, training, options, checkpoints of itself."""

import copy
from contextlib import nullcontext
from functools import cache, partial

import pytest
import torch
from conftest import header
from published import FOAMLIU, fill_by_rule, foamliu_shapes
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mien.errors import CheckpointError
from mien.losses import weighted_cross_entropy
from mien.networks import (
    BTN,
    IR50,
    CaiT,
    Deployed,
    MobileFaceNet,
    Poster,
    SparseDeiT,
    SpectFormer,
    ViT,
    apvit_mobile,
    btn,
    btn_mobile,
    build,
    load_network,
    magnified,
    mobilefacenet,
    poster,
    save_network,
    spectformer_h_s,
    tic_mobile,
)
from mien.nn import ClassAttentionPool, DropPath, Layout, observe
from mien.nn.observe import attentions

SMALL = {"dims": (32, 64, 96), "adapt_kernel": 1, "key_strides": (4, 2, 1), "embed_dim": 32, "depth": 1, "num_heads": 4}


def small(kind: type = BTN, **options) -> Poster:
    """A network whose landmarks are frozen, small enough to be trained in a test."""
    trunks = {"image": MobileFaceNet("relu6"), "landmarks": MobileFaceNet("prelu")}
    return kind(num_classes=5, **trunks, **SMALL, **options)


def by_rule(network: nn.Module) -> nn.Module:
    """Weights that tell faces apart, in eval mode."""
    shapes = {name: t.shape for name, t in network.state_dict().items()}
    network.load_state_dict(fill_by_rule(shapes))
    return network.eval()


@cache
def faces(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, 112, 112, generator=torch.Generator().manual_seed(0))


def loss_of(network, images, target):
    return weighted_cross_entropy(network.training_logits(images), target, network.loss_weights)[0]


# sizes


def bare(make, **options):
    with torch.device("meta"):
        return make(**options)


def gmac(network: nn.Module) -> float:
    """Billions of products for one face."""
    look = observe(network) if attentions(network) else nullcontext()  # or its products are not counted
    with look, FlopCounterMode(display=False) as counter, torch.no_grad():
        network.eval()(torch.empty(1, 3, 112, 112, device=next(network.parameters()).device))
    return counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    "make, parameters, cost",
    [
        (btn_mobile, 2_860_830, 0.583),
        (mobilefacenet, 912_008, 0.2337),
        (poster, 43_753_941, 8.59),  # the published code: 8.61, in which norms are counted
        (btn, 45_115_706, 8.71),  # and 0.117
    ],
)
def test_size(make, parameters, cost):
    network = bare(make) if make in (poster, btn) else make()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert gmac(network) == pytest.approx(cost, rel=2e-3)


def test_btn_mobile_is_made_for_a_phone():
    network = btn_mobile()
    assert sum(p.numel() for p in network.parameters()) <= 5e6
    assert gmac(network) <= 0.6


@pytest.mark.parametrize(
    "trunk", [MobileFaceNet("relu6"), MobileFaceNet("prelu"), bare(IR50)], ids=["relu6", "prelu", "ir50"]
)
def test_trunks_give_the_levels_they_promise(trunk):
    maps = trunk(torch.empty(2, 3, 112, 112, device=next(trunk.parameters()).device))
    assert tuple((m.shape[1], m.shape[2]) for m in maps) == trunk.levels
    assert all(m.shape[0] == 2 and m.shape[2] == m.shape[3] for m in maps)


# a face alone and among others


def awake(make, **options):
    """A network whose head starts at 0, and would let nothing through, with another."""
    network = make(**options)
    nn.init.normal_(network.head.weight)
    return network


TINY_TOKENS = {"num_classes": 8, "img_size": 112, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2}
TINY_STAGES = {"embed_dims": (8, 8, 16, 16), "depths": (1,) * 4, "num_heads": (1,) * 4, "mlp_ratios": (2,) * 4}
MAKES = {
    "poster": partial(small, Poster),
    "btn": btn,
    "btn_mobile": btn_mobile,
    "mobilefacenet": mobilefacenet,
    "mobilefacenet, mirrored": partial(mobilefacenet, mirror=True),
    "mobilefacenet, class attention": partial(mobilefacenet, pool=ClassAttentionPool),
    "magnified": magnified,
    "cait": partial(CaiT, num_classes=8, img_size=112, embed_dim=32, depth=2, num_heads=2),
    "apvit_mobile": partial(awake, apvit_mobile),
    "sparsifiner": partial(SparseDeiT, **TINY_TOKENS, keep=0.1),
    "spectformer": partial(SpectFormer, **TINY_TOKENS, spectral_depth=1),
    "tic": partial(tic_mobile, embed_dims=(16, 32), depths=(1, 1), num_heads=(2, 2)),
    "spectformer_h": partial(spectformer_h_s, num_classes=8, img_size=112, **TINY_STAGES),
    "apvit_mobile, lanet": partial(awake, apvit_mobile, patch_criterion="lanet"),
}


@pytest.mark.parametrize("name", MAKES)
def test_a_face_has_the_same_logits_alone_and_among_others(name):
    torch.manual_seed(0)
    network = MAKES[name]().eval() if name == "btn" else by_rule(MAKES[name]()).double()
    images = faces(3).to(next(network.parameters()).dtype)
    with torch.no_grad():
        together = network(images)
        tolerance = (1e-5 if together.dtype == torch.float32 else 1e-12) * together.abs().max().item()
        order = [2, 0, 1]
        torch.testing.assert_close(network(images[order]), together[order], atol=tolerance, rtol=0)
        torch.testing.assert_close(network(images[1:2]), together[1:2], atol=tolerance, rtol=0)
    assert together.shape == (3, {"poster": 5, "btn": 7}.get(name, 8))
    assert together.std(0).max() > 100 * tolerance  # or any face would do


def test_a_mirror_changes_nothing_where_it_is_asked_for():
    plain, mirrored, images = by_rule(mobilefacenet()), by_rule(mobilefacenet(mirror=True)), faces()
    logits = mirrored(images)
    torch.testing.assert_close(logits, (plain(images) + plain(images.flip(3))) / 2)
    torch.testing.assert_close(logits, mirrored(images.flip(3)))
    assert (plain(images) - logits).abs().max() > 1e-3 * logits.abs().max()
    for network in (plain, mirrored):
        network.train()
        network.dropout.p = 0.0
    torch.testing.assert_close(mirrored(images), plain(images))


def test_the_batch_branch_and_its_weights_have_no_part_in_the_answer():
    network, images = by_rule(btn_mobile()), faces()
    expected = network(images)
    with torch.no_grad():
        for p in network.batch_transformer.parameters():
            p.fill_(torch.nan)
    assert torch.equal(network(images), expected)


def test_past_faces_matter_in_training_alone_and_are_no_weights():
    network, images = by_rule(btn_mobile(bt_memory=3)), faces(3)
    before, answer = network.training_logits(images), network(images)
    assert network.batch_transformer.latest is None
    network.batch_transformer.train()
    for batch, known in ((images, 0), (images[:2] + 1, 3), (images, 3)):
        network.begin_step(0.5)
        past = network.batch_transformer.past
        assert (0 if past is None else len(past)) == known
        cba = network.training_logits(batch)["cba"]
    assert (cba - before["cba"]).abs().max() > 1e-4 and not past.requires_grad
    assert torch.equal(network(images), answer)
    network.batch_transformer.eval()
    assert torch.equal(network.training_logits(images)["cba"], before["cba"])
    assert network.state_dict().keys() == btn_mobile().state_dict().keys()


def test_in_training_the_faces_of_a_batch_do_matter():
    network, images = by_rule(btn_mobile()), faces()  # in eval mode, so that batch norm does not mix them
    together, pair = network.training_logits(images), network.training_logits(images[:2])
    torch.testing.assert_close(pair["vit"], together["vit"][:2])
    assert (pair["cba"] - together["cba"][:2]).abs().max() > 1e-3
    torch.testing.assert_close(together["bt"], together["cba"] + together["vit"])
    order = [3, 1, 0, 2]
    shuffled = network.training_logits(images[order])
    for key in together:
        torch.testing.assert_close(shuffled[key], together[key][order], atol=1e-4, rtol=1e-4)


# training


def shifts_every_score(name: str) -> bool:
    """Biases of keys stand in every score of a query, which softmax does not see."""
    return name.endswith(("batch_transformer.embed_k.bias", "attn.k.bias", "attn.proj_l.bias"))


@pytest.mark.parametrize(
    "name, batch", [(name, batch) for name in MAKES for batch in (1, 2) if (name, batch) != ("btn", 1)]
)  # a face alone in a BTN: btn_mobile
def test_a_batch_trains_every_parameter(name, batch):
    torch.manual_seed(0)
    network = MAKES[name]().train()
    for module in network.modules():
        if isinstance(module, DropPath):
            module.rate = 0.0  # or a face alone loses a whole branch by chance
    loss = loss_of(network, faces(batch), torch.arange(batch))
    loss = loss + sum(part.aux_loss for part in network.modules() if getattr(part, "aux_loss", None) is not None)
    loss.backward()
    assert loss.isfinite()
    for parameter, p in network.named_parameters():
        if parameter.startswith("landmarks.") and name in ("poster", "btn"):
            assert p.grad is None and not p.requires_grad
            continue
        assert p.grad is not None and p.grad.isfinite().all(), parameter
        asks = not (batch == 1 and parameter.startswith("batch_transformer."))  # one face: every share is 1
        if asks and not shifts_every_score(parameter):
            assert p.grad.abs().max() > 0, parameter
        elif batch == 1:
            assert p.grad.abs().max() < 1e-6, parameter


def test_loss_is_the_weighted_sum_of_its_parts():
    logits = {name: torch.randn(6, 8) for name in ("vit", "bt", "cba")}
    target = torch.tensor([0, 3, 2, 7, 7, 1])
    total, parts = weighted_cross_entropy(logits, target, {"vit": 2.5, "bt": 1.0, "cba": 1.0})
    expected = {name: -x.log_softmax(1)[range(6), target].mean() for name, x in logits.items()}
    torch.testing.assert_close(parts, expected)
    torch.testing.assert_close(total, 2.5 * expected["vit"] + expected["bt"] + expected["cba"])
    one_hot, _ = weighted_cross_entropy(logits, torch.eye(8)[target], {"vit": 2.5, "bt": 1.0, "cba": 1.0})
    torch.testing.assert_close(one_hot, total)
    rounded, _ = weighted_cross_entropy({"vit": logits["vit"].bfloat16()}, target, {"vit": 1.0})
    assert rounded.dtype == torch.float32
    with pytest.raises(ValueError, match="do not go with"):
        weighted_cross_entropy(logits, target, {"vit": 1.0})


@pytest.mark.parametrize("kind", [BTN, Poster])
def test_frozen_landmarks_stay_as_they_are(kind):
    network = small(kind).train()
    before = copy.deepcopy(network.landmarks.state_dict())
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    loss_of(network, faces(2), torch.tensor([0, 1])).backward()
    optimizer.step()
    assert not any(module.training for module in network.landmarks.modules())
    assert network.image.training and not network.eval().image.training
    after = network.landmarks.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_statistics_of_frozen_landmarks_move_when_asked_to():
    network = small(Poster, landmark_bn_train=True).train()
    before = copy.deepcopy(network.landmarks.state_dict())
    loss_of(network, faces(2), torch.tensor([0, 1])).backward()
    after = network.landmarks.state_dict()
    moved = {name for name in before if not torch.equal(after[name], before[name])}
    norms = ("running_mean", "running_var", "num_batches_tracked")
    assert moved == {name for name in before if name.endswith(norms)}
    assert all(p.grad is None for p in network.landmarks.parameters())


def test_landmarks_that_are_not_frozen_learn():
    network = small(Poster, freeze_landmarks=False).train()
    loss_of(network, faces(2), torch.tensor([0, 1])).backward()
    assert all(p.grad is not None for p in network.landmarks.parameters())
    assert all(module.training for module in network.landmarks.modules())


def test_bf16_autocast_is_fp32_but_for_rounding():
    network, images = by_rule(btn_mobile()), faces(2)
    exact = network(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(images).float()
        loss = loss_of(network, images, torch.arange(2))
    assert (rounded - exact).std() < 0.1 * exact.std()
    assert loss.dtype == torch.float32 and loss.isfinite()


# options

OPTIONS = {
    "as it is": {},
    "no levels, sinusoidal, shared": {"mla": "none", "bt_encoding": "sinusoidal", "bt_shared": True},
    "query, scalar, softmax": {"mla_residual": "query", "bt_encoding": "scalar", "bt_value_softmax": True},
    "gate, scale, no encoding": {"mla_gate_lower": True, "mla_init_values": 1e-5, "bt_encoding": "none"},
    "fused, detach, λ": {"vit_tokens": "fused49", "bt_detach_value": True, "vit_loss_weight": 3.0},
    "no batch, cross attention at full strength": {"bt": False, "cross_init_values": 1.0},
    "nothing of btn": {"bt": False, "mla": "none"},
    "all processes": {"bt_gather": True},
    "past faces": {"bt_memory": 3},
}
"""Every value of each; those in one row lie in different parts of the network."""


@pytest.mark.parametrize("name", OPTIONS)
def test_option(name, tmp_path):
    """It builds, trains a step, answers, and comes back from a file as it was."""
    options = OPTIONS[name]
    torch.manual_seed(0)
    network = btn_mobile(**options).train()
    assert network.loss_weights == (
        {"vit": 1.0} if options.get("bt") is False else {"vit": options.get("vit_loss_weight", 2.0), "bt": 1, "cba": 1}
    )
    target = torch.tensor([1, 5])
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    loss = loss_of(network, faces(2), target)
    loss.backward()
    optimizer.step()
    assert loss.isfinite() and all(p.grad is not None for p in network.parameters())
    with torch.no_grad():
        logits = network.eval()(faces(1))
    assert logits.shape == (1, 8) and logits.isfinite().all()

    file = tmp_path / "network.safetensors"
    save_network(file, network, header("mien.networks.btn_mobile", num_classes=8, **options))
    again = load_network(file)
    assert not again.training and torch.equal(again(faces(1)), logits)


def test_options_change_what_they_say():
    def shapes(**options):
        return {name: tuple(p.shape) for name, p in btn_mobile(**options).named_parameters()}

    full = shapes()
    assert not [name for name in shapes(mla="none") if name.startswith("mla")]
    assert not [name for name in shapes(bt=False) if name.startswith("batch")]
    assert shapes(vit_tokens="fused49")["vit.pos_embed"] == (1, 50, 128) and full["vit.pos_embed"] == (1, 148, 128)
    assert full.keys() - shapes(bt_shared=True).keys() == {f"batch_transformer.embed_k.{x}" for x in ("weight", "bias")}
    assert "batch_transformer.encoding.table" in full.keys() - shapes(bt_encoding="none").keys()
    assert shapes(bt_encoding="scalar")["batch_transformer.encoding.table"] == (1, 8, 1)
    assert {"mla_mid.gate", "mla_high.gate"} == shapes(mla_gate_lower=True).keys() - full.keys()
    assert shapes(mla_init_values=1e-5)["mla_mid.ls1.gamma"] == (64,)
    for cross, starts in ((btn_mobile(cross_init_values=0.5).cross, 0.5), (btn_mobile().cross, 1e-5)):
        assert all((scale.gamma == starts).all() for level in cross for scale in (level.ls1, level.ls2))
    posterpp = {name: tuple(p.shape) for name, p in bare(poster).named_parameters()}
    plain = {name: tuple(p.shape) for name, p in bare(btn, mla="none", bt=False).named_parameters()}
    assert plain == posterpp  # the ablation of everything is the baseline


def test_value_of_the_batch_branch():
    network, images = by_rule(btn_mobile(bt_detach_value=True)), faces()
    logits = network.training_logits(images)
    logits["bt"].sum().backward()
    assert network.vit.head.weight.grad is None and network.batch_transformer.embed_q.weight.grad is not None
    network.batch_transformer.value_softmax = True
    together = network.training_logits(images)["cba"]
    assert ((together >= 0) & (together <= 1)).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mla": "all"}, "mla must be 'levels' or 'none', not 'all'"),
        ({"mla_residual": "key"}, "residual must be 'both' or 'query', not 'key'"),
        ({"vit_tokens": "levels49"}, "vit_tokens must be 'levels147' or 'fused49', not 'levels49'"),
        ({"bt_encoding": "rotary"}, "the encoding must be learned, sinusoidal, scalar or none, not 'rotary'"),
        ({"vit_tokens": "fused49", "mla": "none"}, "without it nothing is fused"),
        ({"bt_memory": -1}, "a memory holds 0 faces or more, not -1"),
        ({"attention": "window"}, "unexpected keyword argument 'attention'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        btn_mobile(**options)
    with pytest.raises(CheckpointError, match=f"mien.networks.btn_mobile cannot be built: .*{message}") as error:
        build({"class_path": "mien.networks.btn_mobile", "init_args": options})
    assert "\n" not in str(error.value)


def test_other_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="variant must be 'prelu' or 'relu6', not 'gelu'"):
        MobileFaceNet("gelu")
    with pytest.raises(ValueError, match="drop_path must be in"):
        small(Poster, drop_path=(0.0, 0.5, 1.0))
    with pytest.raises(ValueError, match="not a multiple of num_heads"):
        ViT(embed_dim=30, num_heads=4)


# what others rely on


def test_attention_of_a_network_can_be_looked_at():
    network, images = by_rule(btn_mobile()), faces(2)
    expected = network(images)
    with observe(network) as seen:
        torch.testing.assert_close(network(images), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(network(images), expected)
    assert {name: (look.layout, tuple(look.attn.shape)) for name, look in seen.items()} == {
        "cross.0": (Layout("cross", 0, 1, (7, 7)), (2, 1, 784, 49)),
        "cross.1": (Layout("cross", 0, 1, (7, 7)), (2, 2, 196, 49)),
        "cross.2": (Layout("cross", 0, 1, (7, 7)), (2, 3, 49, 49)),
        "mla_mid": (Layout("cross", 0, 1, (14, 14)), (2, 2, 196, 196)),
        "mla_high": (Layout("cross", 0, 1, (7, 7)), (2, 3, 49, 49)),
        "vit.blocks.0": (Layout("token", 1, 3, (7, 7)), (2, 4, 148, 148)),
    }
    with observe(network, "batch_transformer") as seen:
        network.train().training_logits(images)
    assert seen["batch_transformer"].layout.kind == "batch" and seen["batch_transformer"].attn.shape == (8, 2, 2)


def test_deployed_takes_pixels_and_gives_probabilities():
    network = by_rule(mobilefacenet())
    preprocess = header("")["preprocess"] | {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    pixels = torch.randint(0, 256, (3, 112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = pixels.permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)
    logits, probs = Deployed(network, preprocess, temperature=2.0)(pixels)
    torch.testing.assert_close(logits, network((images - mean) / std), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probs, (logits / 2).softmax(1))
    luma = (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    grey, _ = Deployed(network, preprocess | {"color": "grey"})(pixels)
    torch.testing.assert_close(grey, network((luma - mean) / std), atol=1e-5, rtol=1e-5)


def test_the_identity_network_is_foamlius():
    """Their network written down a second time, from its keys alone, gives the maps of ours."""
    from mien.networks.published import from_mobilefacenet

    w = fill_by_rule(foamliu_shapes())
    network = MobileFaceNet("relu6")
    tensors, unknown = from_mobilefacenet(w)
    network.load_state_dict(tensors)
    network.eval()
    assert not unknown

    def norm(x, name):
        mean, var, scale, shift = (w[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return nn.functional.batch_norm(x, mean, var, scale, shift)

    def unit(x, name, at=0, **options):
        return norm(nn.functional.conv2d(x, w[f"{name}.{at}.weight"], **options), f"{name}.{at + 1}")

    x = unit(faces(2), "conv1", stride=2, padding=1).clamp(0, 6)
    x = norm(nn.functional.conv2d(x, w["dw_conv.depthwise.weight"], padding=1, groups=64), "dw_conv.bn1").relu()
    x = norm(nn.functional.conv2d(x, w["dw_conv.pointwise.weight"]), "dw_conv.bn2").relu()
    maps, i = [], 0
    for _, _, repeats, first in FOAMLIU:
        for stride in (first, *[1] * (repeats - 1)):
            name = f"features.{i}.conv"
            y = unit(x, f"{name}.0").clamp(0, 6)
            y = unit(y, f"{name}.1", stride=stride, padding=1, groups=y.shape[1]).clamp(0, 6)
            y = unit(y, name, 2)
            x = x + y if y.shape == x.shape else y
            i += 1
        maps.append(x)
    maps = (maps[0], maps[2], unit(maps[4], "conv2").clamp(0, 6))
    for ours, theirs in zip(network(faces(2)), maps, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_strided_depthwise_layer_trains_as_it_reads():
    torch.manual_seed(0)
    unit = MobileFaceNet("relu6").stages[0][0].depthwise.double()
    plain = nn.Sequential(unit.conv, unit.bn, unit.act)
    x = torch.randn(2, 128, 9, 10, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 128, 5, 5, dtype=torch.float64)
    answers = []
    for layer in (unit, plain):
        out = layer(x)
        answers.append((out, *torch.autograd.grad((out * weight).sum(), [x, unit.conv.weight, unit.bn.weight])))
    for ours, theirs in zip(*answers, strict=True):
        torch.testing.assert_close(ours, theirs)
