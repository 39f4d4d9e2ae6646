"""ARBEx against its own code's numbers; its losses and their traps; what it sits on; its files."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from conftest import header
from published import GOLDEN, rng, weight
from torch import nn
from torch.func import functional_call

from mien.__main__ import main
from mien.classifier import Classifier
from mien.errors import CheckpointError
from mien.losses import weighted_cross_entropy
from mien.networks import (
    APViT,
    ARBEx,
    Deployed,
    Network,
    apvit_mobile,
    arbex,
    arbex_mobile,
    btn_mobile,
    load_network,
    mobilefacenet,
    poster,
    save_network,
)
from mien.networks.arbex import MlpHead
from mien.nn import ReliabilityBalancing
from mien.nn.reliability_balancing import confidence

FACTS = json.loads((GOLDEN / "arbex.json").read_text())


def published(anchors: int) -> tuple[MlpHead, ReliabilityBalancing]:
    """Classifier and balancing with the weights of the rule; two linear layers in a row are multiplied into one."""
    shapes = FACTS["keys"][f"K{anchors}"]
    tensors = {name: weight(name, shape, f"{name.rpartition('.')[0]}.bias" in shapes) for name, shape in shapes.items()}
    under = "arbex.classifier.net."
    head = MlpHead(768, 8).eval()
    head.load_state_dict({name.removeprefix(under): t for name, t in tensors.items() if name.startswith(under)})
    under = f"arbex.self_attn{anchors}."
    part = {name.removeprefix(under): t.double() for name, t in tensors.items() if name.startswith(under)}
    first = [(part[f"{x}.weight"], part[f"{x}.bias"]) for x in "QKV"]
    second = zip(part["attn_fn.in_proj_weight"].chunk(3), part["attn_fn.in_proj_bias"].chunk(3), strict=True)
    both = [(w2 @ w1, w2 @ b1 + b2) for (w1, b1), (w2, b2) in zip(first, second, strict=True)]
    balancing = ReliabilityBalancing(768, 8, num_anchors=anchors, delta=FACTS["delta"], margin=None)
    state = {
        "anchors": tensors[f"arbex.anchors{anchors}.anchors"],
        "qkv.weight": torch.cat([w for w, _ in both]),
        "qkv.bias": torch.cat([b for _, b in both]),
        "proj.weight": part["attn_fn.out_proj.weight"],
        "proj.bias": part["attn_fn.out_proj.bias"],
    }
    balancing.load_state_dict(state)
    return head, balancing


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("anchors", [1, 3])
def test_balancing_is_the_published_codes(anchors, dtype):
    head, balancing = (module.to(dtype) for module in published(anchors))
    features = torch.from_numpy(rng("arbex.embeddings").standard_normal((6, 768)).astype(np.float32)).to(dtype)
    with torch.no_grad():
        logits = head(features)
        distances = balancing.distances(features)
        said, near = balancing.from_neighbours(features), balancing.similarity(distances)
        trusted, sure, _ = balancing.balance(features, logits, ask=True)
        balanced, costs = balancing(features, logits, FACTS["trust"])
        sets = {"balanced": balanced, "center": costs, "anchors": balancing.anchor_loss()}
        weights = torch.tensor(FACTS["class_weights"])
        labels = torch.tensor(FACTS["labels"])
        _, losses = weighted_cross_entropy(sets, labels, dict.fromkeys(sets, 1.0), weights)
        ours = {
            "logits": logits,
            "prob": logits.softmax(-1),
            "conf": sure,
            "distances": distances,
            "sim": near.exp(),
            "conf_geo": confidence(near),
            "attn": said.exp(),
            "conf_attn": confidence(said),
            "prob_blend": trusted.exp(),
            "prob_corrected": balanced.exp(),
            "loss_ce_weighted": losses["balanced"],
            "loss_anchor": losses["anchors"],
            "loss_center": losses["center"],
        }
    with np.load(GOLDEN / "arbex.npz") as golden:
        for name, tensor in ours.items():
            expected = torch.from_numpy(golden[f"K{anchors}.{name}"]).to(tensor)
            torch.testing.assert_close(tensor, expected, atol=2e-6, rtol=1e-6, msg=lambda told, name=name: name + told)
        correction = torch.from_numpy(golden[f"K{anchors}.correction"]).to(dtype)
    blend = sure * logits.softmax(-1) + (1 - sure) * correction
    torch.testing.assert_close(trusted.exp(), blend, atol=2e-6, rtol=0)


# losses and their traps


def small(**options) -> tuple[ReliabilityBalancing, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    balancing = ReliabilityBalancing(12, 4, **options).double()
    return balancing, torch.randn(5, 12).double().requires_grad_(), torch.randn(5, 4).double().requires_grad_()


@pytest.mark.parametrize("trust", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("attention", ["batch", "alone", "none"])
def test_what_comes_out_is_a_distribution(attention, trust):
    balancing, features, logits = small(num_anchors=2, attention=attention)
    balanced, costs = balancing(features, logits, trust)
    torch.testing.assert_close(balanced.exp().sum(-1), torch.ones(5).double(), atol=1e-8, rtol=0)
    assert costs.shape == (5, 4) and (costs >= 0).all()
    if trust == 0:
        torch.testing.assert_close(balanced, logits.log_softmax(-1), atol=1e-7, rtol=0)


@pytest.mark.parametrize("scale", [0.0, 1.0, 20.0, 1e3])
def test_gradients_are_finite_where_probabilities_are_0_or_even(scale):
    """And where a face lies on an anchor."""
    for trust in (0.0, 0.5, 1.0):
        balancing, features, _ = small()
        logits = (torch.tensor([[1.0, -1, 0, 0]]).repeat(5, 1) * scale).double().requires_grad_()
        with torch.no_grad():
            features[0] = balancing.anchors[1, 0]
        balanced, costs = balancing(features, logits, trust)
        loss = -balanced[:, 1].mean() + costs[:, 1].mean() + balancing.anchor_loss()
        loss.backward()
        assert loss.isfinite() and balanced.isfinite().all()
        assert all(t.grad.isfinite().all() for t in (features, logits, *balancing.parameters()))
        if scale == 20 and trust == 0:  # p = 4e-18
            assert logits.grad[:, 1].abs().min() > 0.19  # a face that is surely wrong still learns


def test_the_anchor_loss_has_a_floor_that_the_published_one_has_not():
    bounded, *_ = small(num_anchors=2)
    free, *_ = small(num_anchors=2, margin=None)
    assert bounded.anchor_loss() == free.anchor_loss()
    with torch.no_grad():
        for balancing in (bounded, free):
            balancing.anchors.mul_(1e4)
    pairs = 4 * 3
    assert bounded.anchor_loss().item() == pytest.approx(-pairs * 2 * 12 / (4 * 12**0.5))
    assert free.anchor_loss() < -1e6
    bounded.anchor_loss().backward()
    assert not bounded.anchors.grad.any()


def test_anchors_at_0_stay_together_as_in_the_published_code():
    published, features, logits = small(anchor_std=0.0, num_anchors=2)
    published.anchor_loss().backward()
    assert not published.anchors.grad.any()
    ours, *_ = small(num_anchors=2)
    ours.anchor_loss().backward()
    assert (ours.anchors.grad != 0).all()


def test_the_center_loss_is_the_cost_of_ones_classes():
    costs = torch.rand(4, 3)
    _, by_index = weighted_cross_entropy({"center": costs}, torch.tensor([2, 0, 1, 1]), {"center": 1.0})
    assert by_index["center"].item() == pytest.approx(costs[range(4), [2, 0, 1, 1]].mean().item())
    shares = torch.tensor([[0.5, 0.5, 0], [0, 0, 1], [0, 0, 0], [1, 0, 0]])
    units = torch.zeros(4, 1)  # with which one may have no expression
    total, _ = weighted_cross_entropy({"center": costs}, shares, {"center": 2.0}, units=units)
    assert total.item() == pytest.approx(2 * ((costs[0, 0] + costs[0, 1]) / 2 + costs[1, 2] + costs[3, 0]).item() / 3)


def test_confidence_can_be_kept_from_learning():
    """To lower its costs a face could merely become unsure."""
    for detached in (False, True):
        balancing, features, logits = small(detach_confidence=detached)
        balancing(features, logits)[1].sum().backward()
        assert (logits.grad is None) == detached
    assert confidence(torch.tensor([[0.25] * 4]).log()).item() == 0
    assert confidence(torch.tensor([[100.0, 0, 0, 0]]).log_softmax(-1)).item() == 1


@pytest.mark.parametrize("attention", ["batch", "alone", "none"])
def test_gradients_are_right(attention):
    balancing, features, logits = small(num_anchors=2, attention=attention)
    names, values = zip(*((n, p.detach().requires_grad_()) for n, p in balancing.named_parameters()), strict=True)

    def call(features, logits, *values):
        return functional_call(balancing, dict(zip(names, values, strict=True)), (features, logits, 0.6))

    assert torch.autograd.gradcheck(call, (features, logits, *values), fast_mode=True)


def test_bf16_is_fp32_but_for_rounding():
    torch.manual_seed(0)
    balancing, features, logits = ReliabilityBalancing(12, 4), torch.randn(5, 12), torch.randn(5, 4)
    exact = balancing(features, logits, 0.5)[0]
    rounded = balancing.bfloat16()(features.bfloat16(), logits.bfloat16(), 0.5)[0]
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.02)


# bodies


class Plain(Network):
    """As small as a body can be."""

    def __init__(self, *, num_classes: int = 8):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 16, 16), nn.Linear(16, num_classes)

    def forward_features(self, images):
        return self.conv(images).relu().mean((2, 3))

    def forward_head(self, features):
        return self.head(features)


BODIES = {
    "poster": partial(btn_mobile, mla="none", bt=False),
    "btn": partial(btn_mobile, bt_memory=6),
    "mobilefacenet": mobilefacenet,
    "apvit": partial(apvit_mobile, num_action_units=2),
}


def faces(batch: int = 3) -> torch.Tensor:
    return torch.randn(batch, 3, 112, 112, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", BODIES)
def test_it_sits_on_any_body(name):
    torch.manual_seed(0)
    body = BODIES[name]()
    nn.init.normal_(body.headed.head.weight)
    network = ARBEx(body=body, head="mlp" if name == "btn" else "body", num_anchors=2, temperature=50.0)  # unsure faces
    with torch.no_grad():
        network.reliability.anchors.normal_()
    network.train()
    network.begin_step(0.5)
    units = torch.tensor([[1.0, 0], [0, -1], [1, 1]])
    target = torch.tensor([1, 5, 0])
    sets, weights = network.training_logits(faces()), network.loss_weights
    own, *others = body.loss_weights
    assert list(sets) == ["balanced", *others, "anchors", "center"] == list(weights)
    assert weights["balanced"] == body.loss_weights[own] and weights["anchors"] == weights["center"] == 0.5
    loss, _ = weighted_cross_entropy(sets, target, weights, units=units if name == "apvit" else None)
    loss.backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert loss.isfinite() and all("embed_k.bias" in name for name in still), still

    network.eval().double()
    images = faces().double()
    with torch.no_grad():
        expected = body(images) / 50
        assert torch.equal(network(images), expected)
        for balancing in ("anchors", "full"):
            network.balancing = balancing
            together, alone = network(images), network(images[1:2])
            assert (together.softmax(-1) - expected.softmax(-1)).abs().max() > 1e-4
            torch.testing.assert_close(together.exp().sum(-1), torch.ones(3).double())
            apart = (alone - together[1:2]).abs().max().item()
            assert apart < 1e-10 if balancing == "anchors" else apart > 1e-8, (balancing, apart)


def test_a_body_is_told_of_every_batch():
    network = ARBEx(body=btn_mobile(bt_memory=6)).train()
    for step in range(2):
        network.begin_step(step / 2)
        network.training_logits(faces(2))
    network.begin_step(1.0)
    assert len(network.body.batch_transformer.past) == 4 and network.trust == 1.0
    fixed = ARBEx(body=Plain(), trust=0.25)
    fixed.begin_step(0.9)
    assert fixed.loss_weights == {"balanced": 1.0, "anchors": 0.25, "center": 0.25}


def test_the_published_size():
    with torch.device("meta"):
        network, body = arbex(), poster()
    head = sum(p.numel() for p in MlpHead(768, 7).parameters())
    added = head - (768 + 1) * 7 + 7 * 768 + 3 * 7 * 769 + 7 * 8
    count = sum(p.numel() for p in network.parameters())
    assert count - sum(p.numel() for p in body.parameters()) == added
    assert network.reliability.anchors.shape == (7, 1, 768)
    assert not any(p.requires_grad for p in network.body.landmarks.parameters())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"balancing": "batch"}, "balancing must be 'none', 'anchors' or 'full', not 'batch'"),
        ({"head": "linear"}, "head must be 'body' or 'mlp', not 'linear'"),
        ({"attention": "self"}, "attention must be 'batch', 'alone' or 'none', not 'self'"),
        ({"num_anchors": 0}, "nothing to balance with 0 anchors"),
        ({"delta": 0.0}, "delta and margin must be above 0"),
        ({"margin": 0.0}, "delta and margin must be above 0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"trust": 1.5}, "trust must be from 0 to 1"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ARBEx(body=Plain(), **options)


# files


SIZES = {"image": None, "num_classes": 8, "patch_size": 28, "embed_dim": 8, "depth": 1, "num_heads": 2}


def saved(file, **options) -> Network:
    """A network on a body of one block, and the checkpoint of it."""
    torch.manual_seed(0)
    network = ARBEx(body=APViT(**SIZES), **options).eval()
    for p in (network.reliability.anchors, *network.body.head.parameters()):
        nn.init.normal_(p)
    body = {"class_path": "mien.networks.APViT", "init_args": SIZES}
    save_network(file, network, header("mien.networks.ARBEx", body=body, **options))
    return network


def test_checkpoints_name_the_body_and_balancing_can_be_chosen(tmp_path):
    file = tmp_path / "a.safetensors"
    network = saved(file, head="mlp")
    plain, balanced = load_network(file), load_network(file, balancing="anchors")
    images = faces(2)
    assert torch.equal(plain(images), network(images))
    network.balancing = "anchors"
    assert torch.equal(balanced(images), network(images)) and not torch.equal(balanced(images), plain(images))
    with pytest.raises(CheckpointError, match="balancing must be"):
        load_network(file, balancing="all")


def test_weights_of_another_size_of_image_reach_the_body():
    class Grown(Plain):
        def fit(self, tensors):
            return {name: t.repeat(2) if name == "head.bias" else t for name, t in tensors.items()}

    tensors = {"body.head.bias": torch.ones(4), "reliability.anchors": torch.ones(1)}
    fitted = ARBEx(body=Grown()).fit(tensors)
    assert fitted["body.head.bias"].shape == (8,) and fitted.keys() == tensors.keys()


def test_export(tmp_path):
    """Without its anchors; with them it is among all networks that are exported."""
    network = saved(tmp_path / "a.safetensors", balancing="none")
    words = ["export", str(tmp_path / "a.onnx"), "--model", str(tmp_path / "a.safetensors"), "--precision", "fp32"]
    assert main(words) == 0
    pictures = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 3), np.uint8)
    engine = Classifier.from_pretrained(tmp_path / "a.onnx", precision="fp32").engine
    with torch.no_grad():
        logits, probs = Deployed(network, header("mien.networks.ARBEx")["preprocess"])(torch.from_numpy(pictures))
    for count in (1, 3):
        told = engine(pictures[:count])
        np.testing.assert_allclose(told["probs"], probs[:count], atol=1e-5)
        np.testing.assert_allclose(told["logits"], logits[:count], atol=1e-4)


def test_the_mobile_one_is_posterpp_as_small_as_btn():
    with torch.device("meta"):
        network = arbex_mobile(num_anchors=3)
    assert network.body.batch_transformer is None and network.body.mla_mid is None
    assert network.reliability.anchors.shape == (8, 3, 128)
    assert "reliability.anchors" in network.no_decay
