"""Studies of attention: figures hold at a small size, a miss is told, and the parts they are made of are right."""

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from published import GOLDEN
from torch import nn

import mien.study
from mien.__main__ import main
from mien.errors import Misuse
from mien.networks import apvit_mobile, cait_xxs24, mobilefacenet
from mien.nn import (
    CMHA,
    PAM,
    RCMHA,
    Attend,
    Axial,
    ClassAttention,
    CosineMoH,
    GroupSelfAttention,
    Halo,
    LandmarkCrossAttention,
    LevelAttention,
    MaxViTBlockAttention,
    MoH,
    Neighborhood,
    RandomFeatureAttentionPool,
    Ridge,
    SelfAttention,
    Sparsifiner,
    TalkingHeads,
    TiC,
    WindowAttention,
    circuits,
    intervene,
    observe,
)
from mien.nn.observe import attentions
from mien.nn.random_feature_attention import random_features
from mien.study.findings import Bound, Findings, study


@pytest.mark.parametrize(
    ("name", "plots"),
    [
        ("icl", ["icl_kq1.png", "icl_kq2.png", "icl_risk.png"]),
        ("rfa", ["rfa_keys.png", "rfa_query.png"]),
        ("memory", ["memory_capacity.png", "memory_depth.png", "memory_rules.png"]),
    ],
)
def test_figures_hold_at_a_small_size(name, plots, tmp_path, capsys):
    assert main(["study", name, "--small", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert sorted(path.name for path in tmp_path.glob("*.png")) == plots
    assert len(written["bounds"]) >= 5 and all(bound["holds"] for bound in written["bounds"])
    assert all(bound["name"] in printed for bound in written["bounds"]) and "MISSED" not in printed
    assert printed.count("holds") == sum(
        bound["low"] is not None or bound["high"] is not None for bound in written["bounds"]
    )


def test_a_miss_ends_with_1_and_an_unknown_study_with_2(monkeypatch, capsys):
    found = Findings("memory", "Title", {"seed": 0}, [Bound("one", 2.0, 0, 1), Bound("two", float("nan"), high=1)])
    monkeypatch.setattr("mien.study.memory.run", lambda small: found)
    assert main(["study", "memory"]) == 1
    assert capsys.readouterr().out.count("MISSED") == 2
    assert main(["study", "memory", "--json"]) == 1
    assert [bound["value"] for bound in json.loads(capsys.readouterr().out)["bounds"]] == [2.0, None]
    with pytest.raises(SystemExit) as end:
        main(["study", "dreams"])
    assert end.value.code == 2 and "invalid choice: 'dreams'" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(Misuse, match="there is no study dreams; there are icl, rfa, memory"):
        study("dreams")


def test_an_untrained_network_misses(monkeypatch):
    from mien.study import icl

    monkeypatch.setattr(icl, "SMALL", icl.SMALL._replace(steps=1, tasks=500))
    missed = {bound.name for bound in study("icl", small=True).missed}
    assert {"risk, two heads", "rate of the descent, Σ μ ω", "cosine with centred descent"} <= missed


def test_random_features_are_the_published():
    with np.load(GOLDEN / "rfa.npz") as golden:
        weight, query, tokens, expected = (torch.from_numpy(golden[name]) for name in ("W", "x0", "xs", "phi"))
    torch.testing.assert_close(random_features(weight, query, tokens), expected, atol=1e-12, rtol=0)


def test_the_pool_of_random_features():
    torch.manual_seed(0)
    pool = RandomFeatureAttentionPool(6, 4, biased=True, scale=0.5).double()
    tokens = torch.randn(3, 5, 6).double()
    lifted = torch.cat([tokens / 2, torch.ones(3, 5, 1)], -1)
    scores = torch.einsum("be,mef,bnf->bmn", lifted.mean(1), pool.weight.double(), lifted)
    expected = torch.einsum("bmn,bne->bme", scores.relu() / 5, lifted).flatten(1)
    torch.testing.assert_close(pool.features(tokens), expected)
    torch.testing.assert_close(pool(tokens[:, [4, 2, 0, 1, 3]]), pool.v(expected))
    assert [name for name, _ in pool.named_parameters()] == ["v.weight"]
    assert abs(RandomFeatureAttentionPool(30, 8, biased=True).weight.diagonal(dim1=1, dim2=2)[:, :30].mean() - 4) < 0.2
    network = mobilefacenet(num_classes=3, pool=partial(RandomFeatureAttentionPool, num_heads=2)).eval()
    assert network(torch.randn(1, 3, 112, 112)).shape == (1, 3)
    for wrong in ({"num_heads": 0}, {"scale": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            RandomFeatureAttentionPool(6, **wrong)


def test_ridge_is_the_least_penalised_error():
    torch.manual_seed(0)
    x, true = torch.randn(200, 7) * torch.arange(1, 8) + 3, nn.Linear(7, 2)
    y = true(x).detach() + 0.1 * torch.randn(200, 2)
    ridge = Ridge(7, 2)
    for start in (0, 50, 120):
        end = {0: 50, 50: 120, 120: 200}[start]
        ridge.add(x[start:end], y[start:end])
    torch.testing.assert_close(ridge.solve(1e-9).weight, true.weight, atol=0.02, rtol=0)
    layer = ridge.solve(0.3)
    weight, bias = (p.detach().double().requires_grad_() for p in (layer.weight, layer.bias))
    loss = (x.double() @ weight.T + bias - y).square().sum()
    loss = loss / 200 + 0.3 * (x.double().var(0, correction=0) * weight.square()).sum()
    assert all(grad.abs().max() < 1e-5 for grad in torch.autograd.grad(loss, (weight, bias)))
    for wrong in (lambda: Ridge(7, 2).solve(1.0), lambda: ridge.solve(0.0)):
        with pytest.raises(ValueError, match="nothing to solve"):
            wrong()


GRID, DIM = (3, 4), 8
CIRCUITS = {  # a mechanism, and what it is given; the last is what queries see
    "self attention": (lambda: SelfAttention(DIM, 2), [(1, 12, DIM)]),
    "another scale": (lambda: SelfAttention(DIM, 2, scale=0.7, qkv_bias=False), [(1, 12, DIM)]),
    "talking heads": (lambda: TalkingHeads(DIM, 2), [(1, 12, DIM)]),
    "moh": (lambda: MoH(DIM, 4), [(1, 12, DIM)]),
    "sparsifiner": (lambda: Sparsifiner(DIM, 2, num_tokens=12, keep=1.0), [(1, 12, DIM)]),
    "class attention": (lambda: ClassAttention(DIM, 2), [(1, 12, DIM)]),
    "pam": (lambda: PAM(DIM, 2, reduction=2, init_values=0.5), [(1, 12, DIM)]),
    "window": (lambda: WindowAttention(DIM, 2, window_size=4), [(1, 12, DIM)]),
    "maxvit": (lambda: MaxViTBlockAttention(DIM, 2, window_size=4), [(1, 12, DIM)]),
    "neighborhood": (lambda: Neighborhood(DIM, 2, kernel_size=3, rel_pos_bias=True), [(1, 12, DIM)]),
    "halo": (lambda: Halo(DIM, 2, block_size=4, halo_size=1, head_dim=3, value_dim=6), [(1, 12, DIM)]),
    "tic": (lambda: TiC(DIM, 2), [(1, 12, DIM)]),
    "axial": (lambda: Axial(DIM, 2), [(1, 12, DIM)]),
    "axial, shared": (lambda: Axial(DIM, 2, share_qkv=True), [(1, 12, DIM)]),
}


@pytest.mark.parametrize("name", CIRCUITS)
def test_circuits_are_what_scores_and_outputs_come_of(name):
    """The score of one token for another changes with both as K'Q says, and what a head takes of one as OV says."""
    torch.manual_seed(0)
    make, shapes = CIRCUITS[name]
    part = make().double().eval()
    (inputs,) = (torch.randn(shape).double().requires_grad_() for shape in shapes)
    call = partial(part, inputs, *([] if name == "class attention" else [GRID]))
    with observe(part) as seen:
        call()
    for site, circuit in circuits(part).items():
        scores = seen[site].scores
        query, key = 0, 1 if scores[0, 0, 0, 1].isfinite() else 4  # along a row, or down a column
        for head in range(scores.shape[1]):
            (slope,) = torch.autograd.grad(scores[0, head, query, key], inputs, create_graph=True)
            mixed = [torch.autograd.grad(slope[0, query, i], inputs, retain_graph=True)[0][0, key] for i in range(DIM)]
            torch.testing.assert_close(torch.stack(mixed), circuit.kq[head], atol=1e-10, rtol=0)
            if name in ("talking heads", "moh"):
                continue  # other weights stand behind attn

            def only(stage, tensor, layout, head=head, query=query, key=key):
                if stage != "attn":
                    return tensor
                tensor = torch.zeros_like(tensor)
                tensor[:, head, query, key] = 1
                return tensor

            with intervene(part, {site: only}):
                taken = call()[0, query]
            jacobian = [torch.autograd.grad(taken[i], inputs, retain_graph=True)[0][0, key] for i in range(DIM)]
            if len(seen) == 1:  # beside another axis there is more
                torch.testing.assert_close(torch.stack(jacobian), circuit.ov[head], atol=1e-10, rtol=0)


def test_circuits_of_whole_networks_and_of_what_has_none():
    for network in (apvit_mobile(), cait_xxs24(num_classes=3, img_size=32)):
        found = circuits(network)
        assert found.keys() == attentions(network).keys()
        plain = {name: circuit for name, circuit in found.items() if circuit.kq is not None}
        assert all(circuit.reason == "" for circuit in plain.values()) and len(plain) >= 4
        assert all((circuit.kq is None) == bool(circuit.reason) for circuit in found.values())
    block = circuits(apvit_mobile())["vit.blocks.0"]
    assert block.kq.shape == block.ov.shape == (3, 192, 192)
    for other in (CMHA(8, 2), CosineMoH(8, 2), RCMHA(8, 2, max_length=6), Attend()):
        ((_, circuit),) = circuits(other).items()
        assert circuit.kq is None and "is not known to compare" in circuit.reason
    landmarks, levels = LandmarkCrossAttention(8, 2, 4), LevelAttention(4, 8, 2)
    kq = circuits(landmarks)[next(iter(attentions(landmarks)))].kq
    k = landmarks.kv.weight[:8].view(2, 4, 8) / 2
    torch.testing.assert_close(kq[1, 4:], k[1])  # queries are the landmarks' own channels
    assert not kq[1, :4].any() and circuits(levels)[next(iter(attentions(levels)))].ov.shape == (2, 8, 8)
    assert len(circuits(GroupSelfAttention(8, 2))) == 2


class Mine(SelfAttention):
    """One's own mechanism, which is read only where it is said to be plain."""


class Without(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.attend = 1, Attend()


def test_circuits_of_ones_own():
    assert circuits(Mine(8, 2))["attend"].kq is None
    assert circuits(Mine(8, 2), plain=[Mine])["attend"].kq.shape == (2, 8, 8)
    with pytest.raises(ValueError, match="Without has no layers qkv"):
        circuits(Without(), plain=[Without])


def test_the_page_of_studies_is_true(capsys):
    page = (Path(__file__).parents[1] / "docs" / "studies.md").read_text()
    for name in mien.study.STUDIES:
        assert f"mien study {name}" in page
    for example in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(example, {})
    assert "BatchTransformer is not known to compare q and k" in capsys.readouterr().out
