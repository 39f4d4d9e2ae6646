"""Rules that move attention: each equal to numbers of others, and nothing at all at strength 0."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published import rng
from torch import nn

from mien.errors import MienError, Misuse
from mien.evaluation import classification_report
from mien.evaluation.steered import _calibration, difference
from mien.interventions import (
    RULES,
    HeadReinforcement,
    Intervened,
    ScoreBoost,
    SinkRedistribution,
    head_divergence,
    make_rule,
    sink_report,
)
from mien.interventions.base import find_sites
from mien.interventions.boost import boost, choose_patches
from mien.interventions.heads import choose_heads, total_divergence
from mien.interventions.sinks import find_sinks, redistribute
from mien.labels import EXPRESSIONS
from mien.networks import APViT, CaiT, ViT, save_network
from mien.nn import Block, LookError, observe

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    """By case and name. Made by seilk/VisAttnSink (var), hasanar1f's selection (modpai), VHR's equations (vhr)."""
    return {
        case: {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{case}.npz").items()}
        for case in ("var", "modpai", "vhr")
    }


def test_sinks_are_found_and_redistributed_as_published(golden):
    var = golden["var"]
    sinks = find_sinks(var["hs"], var["dims"].tolist(), var["tau"].item())
    assert torch.nonzero(sinks[0])[:, 0].tolist() == var["sink_idx"].tolist() == [0, 6, 9, 14]
    keys = torch.arange(24)
    image = (keys >= var["im"]) & (keys < var["im"] + var["pa"])
    options = {name: var[name].item() for name in ("p", "rho", "summ")}
    found = redistribute(var["attn"], sinks, image, **options)
    torch.testing.assert_close(found, var["out"], atol=1e-10, rtol=0)
    rows = torch.nonzero((found != var["attn"]).any(-1))
    assert {tuple(row) for row in rows.tolist()} == {tuple(row) for row in var["coords"].tolist()}
    torch.testing.assert_close(found.sum(-1), var["attn"].sum(-1), atol=1e-12, rtol=0)
    assert torch.equal(redistribute(var["attn"], sinks, image, p=1.0), var["attn"])
    nowhere = sinks & ~image
    assert torch.equal(redistribute(var["attn"], nowhere, image), var["attn"])  # no sink in the image


def test_patches_are_chosen_and_boosted_as_published(golden):
    case = golden["modpai"]
    first, late = (case[name][:, :, 0, 1:] for name in ("vit_attn_first", "vit_attn_penult"))
    local, salient = choose_patches(first, late, case["local_ratio"].item())
    assert torch.nonzero(local[0])[:, 0].tolist() == sorted(case["top"].tolist())
    assert torch.nonzero(salient[0])[:, 0].tolist() == sorted(case["bottom"].tolist())
    alpha, beta, start = (case[name].item() for name in ("alpha", "beta", "img_start"))
    scores = case["logits"].clone()
    scores[:, :, -1, start : start + 49] = boost(scores[:, :, -1, start : start + 49], local, salient, alpha, beta)
    torch.testing.assert_close(scores, case["logits_mod"], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores.double().softmax(-1), case["attn_mod"], atol=1e-6, rtol=0)
    row = torch.randn(2, 3, 49, dtype=torch.float64)
    sets = (local[:, None], salient[:, None], alpha, beta)
    assert torch.allclose(boost(row, *sets, odds=True).softmax(-1), boost(row + 7, *sets, odds=True).softmax(-1))
    assert not torch.allclose(boost(row, *sets).softmax(-1), boost(row + 7, *sets).softmax(-1))
    odds = boost(row, *sets, odds=True).exp() / row.exp()
    assert torch.allclose(odds, 1 + alpha * local.double() + beta * salient.double())
    late = late.clone()
    late[:, :, torch.nonzero(salient[0])[:, 0]] = torch.nan  # dropped on the way
    assert not (choose_patches(first, late)[1] & salient).any()


class Published(nn.Module):
    """The two pre-norm blocks of the golden case, of mien's parts: tokens (B, 9, 32) -> the same."""

    cls_token = torch.zeros(1)

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block(32, 4, mlp_ratio=2) for _ in range(2))
        for number, block in enumerate(self.blocks):

            def weight(name, *shape, scale=0.25, number=number):
                small = rng(f"vhr.L{number}.{name}").standard_normal(shape).astype(np.float32) * np.float32(0.02)
                return torch.from_numpy(small / np.float32(0.02) * np.float32(scale)).double().T

            block.mlp.act = nn.ReLU()
            block.double()
            with torch.no_grad():
                for p in block.parameters():
                    p.fill_(1.0 if p.ndim == 1 else 0.0)
                for name, p in block.named_parameters():
                    if name.endswith("bias"):
                        p.zero_()
                block.attn.qkv.weight.copy_(torch.cat([weight(name, 32, 32) for name in "qkv"]))
                block.attn.proj.weight.copy_(weight("o", 32, 32))
                block.mlp.fc1.weight.copy_(weight("f1", 32, 64, scale=0.2))
                block.mlp.fc2.weight.copy_(weight("f2", 64, 32, scale=0.2))

    def forward(self, tokens):
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


def test_heads_are_chosen_and_made_louder_as_published(golden):
    vhr, network = golden["vhr"], Published().eval()
    rule = HeadReinforcement()
    rule.sites = find_sites(network, vhr["x"][None])
    rule.without.images = lambda images: vhr["x_noimg"][None].expand(len(images), -1, -1)
    two = rule._compare(network, vhr["x"][None], 2.0)
    for number in range(2):
        name = f"blocks.{number}"
        torch.testing.assert_close(two.divergence[name][0], vhr[f"vhd{number}"], atol=1e-10, rtol=0)
        assert torch.equal(two.chosen[name][0], vhr[f"sel{number}"])
        assert torch.equal(two.left[name][0] == 0, vhr[f"out{number}"])
    torch.testing.assert_close(total_divergence(list(two.divergence.values()), 2)[0], vhr["tvhd"], atol=1e-10, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(Intervened(network, rule)(vhr["x"][None])[0], vhr["y"], atol=1e-10, rtol=0)
    same = head_divergence(network, vhr["x"][None], vhr["x"][None])
    assert all(values.max() < 1e-12 for values in same.values())
    assert not choose_heads(torch.zeros(2, 4), torch.rand(2, 4))[0].any()


def pooled(**options) -> APViT:
    torch.manual_seed(0)
    sizes = {"img_size": 56, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 4}
    network = APViT(image=None, **sizes, keep_patches=40, keep_rate=0.7, **options).eval()
    for p in network.parameters():
        p.data += 0.2 * torch.randn_like(p)
    return network


STILL = ["sinks:p=1,dims=3,c=0.01", "heads:alpha=1", "heads:alpha=1,mode=static", "boost:alpha=0,beta=0"]
MOVING = [
    "sinks:dims=3+5,c=0.1,summ=0,rho=1,layers=*",
    "heads",
    "heads:mode=static,baseline=zero,region=eyes",
    "heads:baseline=positions,region=mouth",
    "boost",
    "boost:variant=odds",
]


@torch.no_grad()
@pytest.mark.parametrize("text", STILL + MOVING)
def test_strength_0_is_the_untouched_network_and_more_is_not(text, monkeypatch):
    network, images = pooled(), torch.randn(5, 3, 56, 56)
    plain = network(images)
    rule = make_rule(text)
    rule.fit(network, [torch.randn(4, 3, 56, 56), images])
    moved = Intervened(network, rule)
    if text in STILL:
        fused = torch.nn.functional.scaled_dot_product_attention
        calls = []
        monkeypatch.setattr(
            torch.nn.functional, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or fused(*a, **k)
        )
        assert torch.equal(moved(images), plain)
        assert len(calls) == 4  # of four blocks: nobody looked
        return
    found = moved(images)
    assert (found - plain).abs().max() > 1e-4
    assert torch.allclose(moved(images[[3, 1]]), found[[3, 1]], atol=1e-5)  # a face alone as among others
    assert torch.equal(network(images), plain)  # and nothing is left of it
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


@torch.no_grad()
def test_patches_that_were_dropped_are_no_longer_boosted():
    """Of APViT's last block, which is given some of the patches only, those that were chosen are found again."""
    network, images = pooled(), torch.randn(3, 3, 56, 56)
    rule = ScoreBoost(alpha=2.0, beta=1.0, variant="odds", layers="vit.blocks.3")
    rule.fit(network, [images])
    local, salient = rule.choose(network, images)
    gain = (1 + 2 * local + salient.float()).log()
    first, last = (network.trace(images).blocks[i].came for i in (0, 3))
    assert last.shape[1] < first.shape[1] == gain.shape[1] == 40
    where = (first[:, None] == last[..., None]).float().argmax(-1)  # of the last ones among the first
    with observe(network, "vit.blocks.3") as plain:
        network(images)
    with rule.around(network, images), observe(network, "vit.blocks.3") as moved:
        network(images)
    raised = moved["vit.blocks.3"].scores - plain["vit.blocks.3"].scores
    torch.testing.assert_close(raised[:, :, 0, 1:], gain.gather(1, where)[:, None].expand(-1, 2, -1))
    assert raised[:, :, 0, 1:].any() and not raised[:, :, 1:].any() and not raised[:, :, 0, 0].any()


@torch.no_grad()
def test_a_planted_sink_is_reported_and_loses_attention():
    torch.manual_seed(0)
    network = ViT(num_classes=4, num_tokens=49, embed_dim=128, depth=3, num_heads=4).eval()
    images = 2 * torch.rand(8, 49, 128) - 1  # of which no number stands out
    network.cls_token.data.uniform_(-1, 1)
    plain = sink_report(network, [images])
    assert all(not layer.dims and "no attention sinks" in str(layer) for layer in plain)
    network.pos_embed.data[0, [0, 7, 20], 11] = 30.0
    report = sink_report(network, [images[:4], images[4:]])
    first = report[0]
    assert first.dims == (11,) and first.tokens == 3 and first.patch_share == pytest.approx(2 / 3)
    assert torch.nonzero(first.cells)[:, 0].tolist() == [6, 19] and set(first.cells.tolist()) == {0, 8}
    assert first.threshold == pytest.approx(20 / 64 * 128**0.5)
    rule = SinkRedistribution(summ=0.0, rho=1.0)
    rule.fit(network, [images])
    assert [site.name for site in rule.sites] == ["blocks.0", "blocks.1"]  # the last layer stays
    with observe(network, "blocks.0", stages=["attn"]) as before:
        network(images)
    with rule.around(network, images), observe(network, "blocks.0", stages=["attn"]) as after:
        network(images)
    was, now = (seen["blocks.0"].attn for seen in (before, after))
    torch.testing.assert_close(now[:, :, 0, [0, 7, 20]], 0.6 * was[:, :, 0, [0, 7, 20]])
    assert torch.equal(now[:, :, 1:], was[:, :, 1:])
    torch.testing.assert_close(now.sum(-1), torch.ones(8, 4, 50))
    network.pos_embed.data[0, [0, 7, 20], 11] = 0.0
    rule.fit(network, [images])
    assert rule.strength == 0 and rule.notes[-1].startswith("nothing is moved")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("louder", "no rule 'louder': rules are sinks, heads, boost"),
        ("my.module.Rule", "no rule 'my.module.Rule'"),
        ("torch.nn.Linear", "is no Intervention"),
        ("heads:gain=2", "'gain=2' is no option of heads; there are alpha=, mode="),
        ("heads:alpha", "'alpha' is no option"),
        ("heads:alpha=much", "alpha"),
        ("heads:alpha=nan", "alpha"),
        ("heads:baseline=black", "mean, zero, positions"),
        ("heads:region=nose", "face, eyes, mouth"),
        ("boost:variant=loud", "'published' or 'odds'"),
        ("boost:local=2", "from 0 to 1"),
        ("sinks:p=2", "p is a number from 0 to 1"),
        ("sinks:c=0", "c is a number above 0"),
    ],
)
def test_a_rule_that_is_none_is_said_in_a_line(text, said):
    with pytest.raises(Misuse, match="^[^\n]+$") as error:
        make_rule(text)
    assert said in str(error.value)


def test_a_rule_that_can_act_nowhere_says_so():
    images = torch.randn(2, 3, 56, 56)
    cait = CaiT(num_classes=4, img_size=56, patch_size=8, embed_dim=16, depth=1, num_heads=2).eval()
    for rule, network, error, said in (
        (HeadReinforcement(layers="vit.blocks.9"), pooled(), LookError, "vit.blocks.9: no module.*vit.blocks.0"),
        (ScoreBoost(), nn.Linear(3, 3), LookError, "forms no attention anywhere"),
        (SinkRedistribution(layers="blocks.*"), cait, MienError, "of a class token, and there is none in blocks.0"),
        (HeadReinforcement(baseline="positions"), cait, MienError, "the baseline is mean or zero"),
        (SinkRedistribution(dims=99), pooled(), MienError, "dimension 99.*16"),
    ):
        with pytest.raises(error, match=said):
            rule.fit(network, [images if not isinstance(network, nn.Linear) else torch.randn(2, 3)])
    with pytest.raises(MienError, match="was not fitted"):
        Intervened(pooled(), RULES["heads"]())(images)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A checkpoint of the network of `pooled`, and faces of four classes that it reads by no rule at all."""
    folder = tmp_path_factory.mktemp("rules")
    sizes = {"img_size": 56, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 4}
    arguments = {"image": None, "keep_patches": 40, "keep_rate": 0.7, **sizes}
    header = {
        "mien": 1,
        "model": {"class_path": "mien.networks.APViT", "init_args": arguments},
        "id2label": dict(zip("0123", EXPRESSIONS, strict=False)),
        "preprocess": {
            "align": "none",
            "resize": [{"size": 56}],
            "input_size": 56,
            "color": "rgb",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
    }
    network = pooled()
    network.head.weight.data *= 5
    save_network(folder / "model.safetensors", network, header)
    chance = np.random.default_rng(0)
    for label in EXPRESSIONS[:4]:
        for i in range(6):
            path = folder / "data" / "validation" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(chance.integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    return folder


def test_a_model_is_measured_beside_itself_under_a_rule(model, call, tmp_path):
    words = ("eval", model / "model.safetensors", "--data", model / "data", "--out", tmp_path)
    code, out, err = call(*words, "--intervene", "heads:alpha=3,baseline=zero", "--json")
    assert (code, err) == (0, [])
    facts = json.loads("\n".join(out))
    found, compared = facts["intervention"], facts["intervention"]["comparison"]
    assert found["rule"] == "heads:alpha=3,baseline=zero" and found["fitted_to"].startswith("24 of them")
    assert len(found["notes"]) == 4 and found["notes"][0].startswith(
        "vit.blocks.0: divergence without face (zero), mean of 24 faces: "
    )
    assert compared["accuracy"] == facts["accuracy"] and compared["other_accuracy"] == found["report"]["accuracy"]
    assert found["flips"] == round((1 - compared["agreement"]) * 24) > 0
    for name, key in (("calibration", "calibration_error"), ("log_loss", "nll")):
        value, low, high = found[name]
        assert value == pytest.approx(found["report"][key] - facts[key], abs=1e-6) and low <= value <= high
    assert "under heads:alpha=3,baseline=zero" in (tmp_path / "report.html").read_text()

    code, out, _ = call(*words, "--intervene", "heads:alpha=1")
    said = "\n".join(out)
    assert code == 0 and "0 of 24 faces are read otherwise (0.00%): 0 now right, 0 now wrong" in said
    assert "accuracy           " in said and "+0.0000 (+0.0000 to +0.0000)" in said


@pytest.mark.parametrize(
    ("name", "rule", "code", "said"),
    [
        ("model.safetensors", "louder", 2, "rules are sinks, heads, boost"),
        ("model.safetensors", "heads:layers=vit.blocks.7", 1, "vit.blocks.7: no module"),
        ("model.onnx", "heads", 1, "needs the model's .safetensors file"),
    ],
)
def test_a_rule_that_cannot_be_measured_is_said_in_a_line(model, call, stand_in, name, rule, code, said):
    path = stand_in / name if name.endswith("onnx") else model / name
    found, out, err = call("eval", path, "--data", model / "data", "--intervene", rule)
    assert (found, out) == (code, []) and said in err[-1]


def test_differences_are_those_of_the_reports():
    """The calibration error that is resampled is torchmetrics', and its interval holds what resampling faces gives."""
    chance = np.random.default_rng(0)
    target = chance.integers(0, 3, 400)
    probs, moved = (chance.dirichlet([0.4] * 3, 400) for _ in range(2))
    reports = [classification_report(p, target, "abc") for p in (probs, moved)]
    value, low, high = difference(probs, moved, target, _calibration)
    assert value == pytest.approx(reports[1].calibration_error - reports[0].calibration_error, abs=1e-6)
    draws = chance.integers(0, 400, (300, 400))
    by_hand = [
        classification_report(moved[d], target[d], "abc", resamples=0).calibration_error
        - classification_report(probs[d], target[d], "abc", resamples=0).calibration_error
        for d in draws[:60]
    ]
    assert np.std(by_hand) == pytest.approx((high - low) / 3.92, rel=0.3)
