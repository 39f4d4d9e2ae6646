"""Explanations of any network: each method's numbers, faithfulness, and the command that draws them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_explain import EXAMPLES, POOLED, Trunk, checkpoint, crop
from torch import nn

from mien.classifier import Classifier
from mien.errors import MienError
from mien.explain import Attention, Batch, GradCAM, IntegratedGradients, Occlusion, Rollout, open_network
from mien.explain.explanation import draw, on_grid
from mien.explain.faithfulness import area, blurred, curves, face_prior, order_of, path, random_order, scores
from mien.explain.panel import SIDE, heat, percent, signed
from mien.labels import EXPRESSIONS
from mien.networks import BTN, Deployed, PlainClassifier
from mien.nn import observe

GOLDEN = Path(__file__).with_name("golden")
PREPROCESS = {"color": "rgb", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    checkpoint(folder / "pooled.safetensors", "APViT", **POOLED, keep_patches=160, keep_rate=0.6)
    return folder


def lower_left(crops: np.ndarray) -> np.ndarray:
    """Reads nothing but how bright the lower left quarter is, and answers "yes" by it."""
    half = crops.shape[1] // 2
    yes = crops[:, half:, :half].mean((1, 2, 3)) / 255
    return np.stack([1 - yes, yes], 1)


def test_occlusion_finds_what_is_read():
    face = np.zeros((56, 56, 3), np.uint8)
    face[28:, :28] = 240
    sizes = []

    def run(crops):
        sizes.append(len(crops))
        return lower_left(crops)

    found = Occlusion(run, ["no", "yes"], grid=4, window=0.25, batch_size=9).explain(face)
    assert (found.index, found.label, sizes) == (1, "yes", [9, 8])
    values = found.values[0]
    # a window is a quarter of what is read, and its mean colour a quarter as bright
    np.testing.assert_allclose(values[2:, :2], 240 / 255 * 0.75 / 4, atol=1e-3)
    assert np.abs(values[:2]).max() == np.abs(values[:, 2:]).max() == 0
    other = Occlusion(run, ["no", "yes"], grid=4, window=0.25).explain(face, "no")
    np.testing.assert_allclose(other.values, -found.values, atol=1e-6)
    wide = Occlusion(run, ["no", "yes"], grid=4).hide(face)
    assert (wide[8][27:43, :15] == 60).all() and (wide[8] != face).any(-1).sum() == 16 * 15  # cut off at the edge
    with pytest.raises(MienError, match="'maybe': it knows no, yes"):
        Occlusion(run, ["no", "yes"]).explain(face, "maybe")
    [whole, drawn] = draw(face, found)
    assert whole.title == "yes 94%" and drawn.legend.high == drawn.legend.high == "18%" and drawn.legend.low == "-18%"
    red, _, blue = drawn.picture[SIDE * 3 // 4, SIDE // 4].astype(int)
    assert red - blue > 100 and np.ptp(drawn.picture[20, 200]) == 0  # orange there, and grey where nothing rests


def test_colours_of_both_signs():
    face = np.full((8, 8, 3), 128, np.uint8)
    drawn = signed(face, np.array([[1.0, -1.0]]), 1.0).astype(int)
    assert drawn[5, 5, 0] - drawn[5, 5, 2] > 100 and drawn[5, -5, 2] - drawn[5, -5, 0] > 100
    assert np.ptp(signed(face, np.zeros((7, 7)), 0.0)[100, 100]) == 0  # nothing rests on anything


def small_network() -> nn.Sequential:
    """The network of the golden numbers."""
    conv1, conv2 = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 5, 3, 2, 1)
    net = nn.Sequential(conv1, nn.Tanh(), conv2, nn.Tanh(), nn.Flatten(), nn.Linear(5 * 49, 8))
    for i, (_, p) in enumerate(net.named_parameters()):
        z = torch.arange(p.numel(), dtype=torch.float64).mul(0.7 + i).sin().reshape(p.shape)
        p.data = (z / p[0].numel() ** 0.5).to(p.dtype)
    return net


def test_gradients_equal_captum():
    golden = np.load(GOLDEN / "captum.npz")
    face = (np.arange(28 * 28 * 3).reshape(28, 28, 3) * 7 % 251).astype(np.uint8)
    deployed = Deployed(small_network(), PREPROCESS, temperature=2.0).eval()
    found = IntegratedGradients(deployed, EXPRESSIONS).explain(face)
    assert found.index == golden["index"] and found.signed
    np.testing.assert_allclose(found.values[0], golden["ig"], atol=1e-7)
    seen = GradCAM(deployed, EXPRESSIONS).explain(face)
    np.testing.assert_allclose(seen.values[0], golden["cam"] / golden["cam"].max(), atol=1e-5)
    assert "how strongly 3 speaks for contempt" in seen.unit
    early = GradCAM(deployed, EXPRESSIONS, layer="1").explain(face, "fear")
    assert early.values.shape == (1, 14, 14) and early.label == "fear"
    for layer, reason in (("9", "no layer of Sequential has such a name; there are 0, 1"), ("5", "does not depend")):
        with pytest.raises(MienError, match=reason):
            GradCAM(deployed, EXPRESSIONS, layer=layer).explain(face)


def test_gradients_of_a_network_that_looks_twice():
    """A face and its mirror image have the same answer, so their maps mirror each other."""
    torch.manual_seed(0)
    network = PlainClassifier(image=Trunk(), num_classes=8, mirror=True)
    deployed = Deployed(network, PREPROCESS).eval()
    face = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    for method in (GradCAM(deployed, EXPRESSIONS), IntegratedGradients(deployed, EXPRESSIONS, 4)):
        one, other = (method.explain(np.ascontiguousarray(each)).values for each in (face, face[:, ::-1]))
        np.testing.assert_allclose(one, other[..., ::-1], atol=1e-5)
        assert one.max() > 0


def test_rollout(models):
    """Of blocks by hand; dropped tokens bring nothing to later blocks, and patches that never came have nothing."""
    torch.manual_seed(0)
    options = {"image": Trunk(), "landmarks": Trunk(), "dims": (4, 4, 4), "head_dim": 2, "key_strides": (4, 2, 1)}
    network = BTN(num_classes=8, embed_dim=16, depth=2, num_heads=2, **options)
    for p in network.parameters():
        p.data += 0.2 * torch.randn_like(p)
    deployed = Deployed(network, PREPROCESS).eval()
    face = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    found = Rollout(deployed, EXPRESSIONS).explain(face)
    with torch.no_grad(), observe(network, "vit.blocks.*") as seen:
        deployed(torch.from_numpy(face)[None])
    first, second = ((look.attn[0].mean(0) + torch.eye(148)) / 2 for look in seen.values())
    np.testing.assert_allclose(found.values.reshape(-1), (second @ first)[0, 1:], atol=1e-6)
    assert found.values.shape == (3, 7, 7)

    deployed, _ = open_network(models / "pooled.safetensors")
    pooled = Rollout(deployed, EXPRESSIONS).explain(crop()).values
    trace = deployed.network.trace(deployed.normalize(torch.from_numpy(crop())[None].permute(0, 3, 1, 2).float() / 255))
    assert np.flatnonzero(pooled).tolist() == trace.patches[0].tolist() and 0.3 < pooled.sum() < 1


def test_attention_of_one_layer_and_head(models):
    deployed, _ = open_network(models / "pooled.safetensors")
    face = torch.from_numpy(crop())[None]
    deployed.network.keep_patches, deployed.network.keep_rate = None, 1.0
    explain = Attention(deployed, EXPRESSIONS, "vit.blocks.1", 1)
    _, values, grid = explain.look(crop())
    with torch.no_grad(), observe(deployed.network, "vit.blocks.1") as seen:
        deployed(face)
    attn = seen["vit.blocks.1"].attn[0, 1, 0, 1:]
    np.testing.assert_allclose(values[0], attn, atol=1e-6)
    assert grid == (14, 14)
    deployed.network.keep_patches, deployed.network.keep_rate = 160, 0.6  # dropped tokens have no part in it
    [[_, drawn]] = explain(crop())
    trace = deployed.network.trace(deployed.normalize(face.permute(0, 3, 1, 2).float() / 255))
    attn = trace.blocks[1].attn[0, 1, 1:].numpy()
    again = heat(crop(), trace.blocks[1].came[0].numpy(), attn, grid)
    assert np.abs(drawn.picture.astype(int) - again).max() < 12
    for options, reason in (
        (("vit.blocks.9",), "no attention of APViT has such a name; there are vit.blocks.0, vit.blocks.1"),
        ((None, 2), "has no head 2: its heads are 0 to 1"),
    ):
        with pytest.raises(MienError, match=reason):
            Attention(deployed, EXPRESSIONS, *options)(crop())


def batch_network() -> Deployed:
    torch.manual_seed(0)
    options = {"image": Trunk(), "landmarks": Trunk(), "dims": (4, 4, 4), "head_dim": 2, "key_strides": (4, 2, 1)}
    network = BTN(num_classes=8, embed_dim=16, depth=1, num_heads=2, **options)
    for p in network.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return Deployed(network, PREPROCESS).eval()


def test_who_vouched():
    deployed, faces = batch_network(), np.random.default_rng(0).integers(0, 256, (5, 112, 112, 3), dtype=np.uint8)
    batch = Batch(deployed, EXPRESSIONS)
    found = batch.look(faces)
    with torch.no_grad(), observe(deployed.network, "batch_transformer", stages=["attn"]) as seen:
        deployed.network.training_logits(deployed.normalize(torch.from_numpy(faces).permute(0, 3, 1, 2).float() / 255))
    attn = next(iter(seen.values())).attn.numpy()  # (C, B, B)
    np.testing.assert_allclose(found.attn, attn[found.index, np.arange(5)], atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(found.probs, deployed(torch.from_numpy(faces))[1], atol=1e-6)
    row = batch.row(faces, found, 2)
    vouch = found.attn[2][found.attn[2] >= 1e-3]
    assert len(row) == 1 + len(vouch) and row[1].title.startswith(percent(vouch.max()))
    assert batch.grid(faces, found, "title").size[1] > 5 * 56
    many = np.concatenate([faces] * 6)
    assert max(batch.grid(many, batch.look(many), "title").size) < 1400
    with pytest.raises(MienError, match="a batch of one face"):
        batch.look(faces[:1])
    with pytest.raises(MienError, match="PlainClassifier has no batch branch"):
        Batch(Deployed(PlainClassifier(image=Trunk(), num_classes=8), PREPROCESS).eval(), EXPRESSIONS)


# faithfulness


def test_a_true_explanation_beats_random():
    face = np.random.default_rng(0).integers(200, 256, (60, 60, 3), dtype=np.uint8)
    face[:30] = face[:, 30:] = 0
    true = on_grid(Occlusion(lower_left, ["no", "yes"], 5, 0.2).explain(face).values, 5)
    orders = {"true": order_of(true), "false": order_of(-true), "random": random_order(5, 0)}
    orders["face prior"] = order_of(face_prior(5))
    assert orders["face prior"][0] == 12 and set(orders["face prior"][-2:]) <= {0, 4}
    found = curves(lower_left, face, 1, orders, 5, 5)
    whole, gone = lower_left(np.stack([face, blurred(face)]))[:, 1]
    for deletion, insertion in found.values():
        assert deletion[0] == insertion[-1] == whole and deletion[-1] == insertion[0] == gone
    assert area(found["true"][0]) < area(found["random"][0]) < area(found["false"][0])
    measured = scores({name: np.stack([each, each]) for name, each in found.items()}, ["random"], resamples=50)
    one = measured["true"]
    assert one.deletion == pytest.approx(area(found["true"][0])) and one.insertion_interval[0] <= one.insertion + 1e-9
    assert one.beyond["random"][0] > 0 and "random" not in measured["random"].beyond
    noise = np.random.default_rng(1).integers(0, 256, (60, 60, 3), dtype=np.uint8)
    steps = path(noise, orders["true"], 5, 5, insertion=False)
    gone = [(each != noise).any(-1).sum() / 144 for each in steps]  # cells; a few pixels are as before by chance
    np.testing.assert_allclose(gone, [5, 10, 15, 20], atol=0.1)


# the command


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(crop()).save("crop.png")
    Image.fromarray(255 - crop()).save("other.png")
    return tmp_path


def test_every_method_draws(here, models, call):
    small, faces = models / "pooled.safetensors", ["crop.png", "other.png", "--aligned", "--output"]
    for method in ("occlusion", "gradcam", "gradients", "rollout", "attention", "patches"):
        code, out, err = call("explain", *faces, method, "--method", method, "--model", small)
        assert (code, err) == (0, []) and out == [f"{method}/crop-face0.png", f"{method}/other-face0.png"]
        assert (
            f"pooled.safetensors (APViT), {method}" in Path(method, "index.html").read_text() or method == "occlusion"
        )
        picture = np.asarray(Image.open(f"{method}/crop-face0.png"))
        assert picture.shape[0] >= 324 and (picture[26:38] < 128).any()
    checkpoint(here / "btn.safetensors", "btn_mobile", 112, num_classes=8)
    code, out, err = call("explain", *faces, "batch", "--method", "batch", "--model", "btn.safetensors")
    assert (code, err, out) == (0, [], ["batch/batch.png", "batch/crop-face0.png", "batch/other-face0.png"])
    for words, reason in (
        (["crop.png", "--method", "batch", "--model", "btn.safetensors"], "a batch of one face"),
        (["crop.png", "--method", "gradcam", "--layer", "nowhere", "--model", small], "nowhere: no layer of APViT"),
        (["crop.png", "--method", "attention", "--head", "7", "--model", small], "has no head 7"),
        (["crop.png", "--answer", "joy", "--model", small], "the model does not know 'joy'"),
    ):
        code, out, err = call("explain", *words, "--aligned", "--output", "bad")
        assert (code, out, len(err)) == (1, [], 1) and reason in err[0]


def test_the_default_model_needs_no_torch(here, call, monkeypatch):
    """What people use is what is explained, as it reads itself."""
    shutil.copy(EXAMPLES / "astronaut.png", "a.png")
    import sys

    monkeypatch.setitem(sys.modules, "mien.explain.opening", None)
    code, out, err = call("explain", "a.png", "--output", "out")
    assert (code, out, err) == (0, ["out/a-face0.png"], [])
    assert "mobilefacenet_ferplus, occlusion" in Path("out/index.html").read_text()
    classifier = Classifier.from_pretrained(precision="fp32")
    found = Occlusion(classifier.run, classifier.labels).explain(
        classifier.crop(np.asarray(Image.open("a.png"))[60:200, 180:310])
    )
    assert found.label == "happiness" and found.values.max() > 0
