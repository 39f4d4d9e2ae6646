"""Rules that move attention: each equal to numbers of others, and nothing at all at strength 0."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mien.interventions import (
    HeadReinforcement,
    Intervened,
    head_divergence,
)
from mien.interventions.base import find_sites
from mien.interventions.boost import boost, choose_patches
from mien.interventions.heads import choose_heads, total_divergence
from mien.interventions.sinks import find_sinks, redistribute
from mien.nn import Block

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def golden():
    """By case and name. Made by seilk/VisAttnSink (var), hasanar1f's selection (modpai), VHR's equations (vhr)."""
    return {
        case: {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{case}.npz").items()}
        for case in ("var", "modpai", "vhr")
    }


def rule_weights(key: str, *shape: int) -> np.ndarray:
    """The rule that the golden weights were made by."""
    import zlib

    values = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    return values * np.float32(0.02)


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
                key = f"vhr.L{number}.{name}"
                return torch.from_numpy(rule_weights(key, *shape) / np.float32(0.02)).double().T * scale

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
    assert all(not values.any() and not choose_heads(values, values)[0].any() for values in same.values())
