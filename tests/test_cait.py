"""CaiT against timm's numbers; its files; images of another size; and class attention as a pool of any network."""

import json
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jsonargparse import ArgumentParser, Namespace
from PIL import Image
from published import GOLDEN, cait_shapes, fill_small
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mien import Classifier
from mien.__main__ import main
from mien.checkpoint import labels_of, read_header
from mien.engines import open_model
from mien.errors import CheckpointError, MienError
from mien.export import export_onnx
from mien.labels import EXPRESSIONS, ORDERS
from mien.networks import CaiT, Deployed, Network, ViT, build, cait, load_network, mobilefacenet, save_network
from mien.networks.convert import convert
from mien.networks.published import from_cait
from mien.nn import (
    Block,
    ClassAttention,
    ClassAttentionPool,
    ClassBlock,
    DropPath,
    LayerScale,
    SelfAttention,
    TalkingHeads,
    observe,
)
from mien.nn.base import MakeMixer
from mien.nn.grid import resize_positions
from mien.training.run import parser, plain, train
from mien.training.task import Task

SIZES = ("xxs24", "xxs36", "xs24", "s24", "s36", "m36", "m48")
TINY = {"embed_dim": 16, "depth": 2, "num_heads": 2}
POOL = {"class_path": "mien.nn.ClassAttentionPool", "init_args": {"num_heads": 4, "depth": 1}}


def tiny_shapes(num_classes=7, tokens=9):
    return cait_shapes(num_classes, tokens=tokens, dim=16, depth=2, heads=2, patch=16)


def make(size, **options):
    return getattr(cait, f"cait_{size}")(**options)


# numbers


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "cait.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def noise(seed, *shapes):
    random = np.random.default_rng(seed)
    return [torch.from_numpy(random.standard_normal(shape).astype(np.float32)) for shape in shapes]


PATCHES, CLASS = noise(1921, (2, 17, 192), (2, 1, 192))
near = partial(torch.testing.assert_close, atol=2e-6, rtol=0)


def by_rule(module: nn.Module, ones: str = "norms alone") -> nn.Module:
    """With the weights that the rule gives to a layer's published names."""
    theirs = {
        ours: ours.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2") for ours in module.state_dict()
    }
    filled = fill_small({theirs[ours]: t.shape for ours, t in module.state_dict().items()}, ones)
    module.load_state_dict({ours: filled[name] for ours, name in theirs.items()})
    return module.eval()


@pytest.mark.parametrize("show", [False, True], ids=["fused", "open"])
def test_class_attention(golden, show):
    layer = by_rule(ClassAttention(192, 4))
    with observe(layer) if show else nullcontext({}) as seen:
        near(layer(torch.cat([CLASS, PATCHES], 1)), golden["class_attn_out"])
    if show:
        near(seen["attend"].attn, golden["class_attn_probs"])


def test_talking_heads(golden):
    near(by_rule(TalkingHeads(192, 4))(PATCHES), golden["talking_head_out"])


@pytest.mark.parametrize("gamma", [0, 1])
def test_blocks(golden, gamma):
    ones = ("norms alone", ("gamma_1", "gamma_2"))[gamma]
    block = by_rule(Block(192, 4, mixer=TalkingHeads, init_values=1e-5), ones)
    near(block(PATCHES), golden[f"LayerScaleBlock_gamma{gamma}_out"])
    block = by_rule(ClassBlock(192, 4), ones)
    near(block(CLASS, PATCHES), golden[f"LayerScaleBlockClassAttn_gamma{gamma}_out"])


@pytest.mark.parametrize("size", [224, 112])
def test_xxs24(golden, size):
    """As the authors publish it, through `convert`: with scales near 0, and near 1, behind which nothing hides."""
    network = cait.cait_xxs24(img_size=size).eval()
    tensors = fill_small(cait_shapes(tokens=(size // 16) ** 2))
    (images,) = noise(224, (2, 3, 224, 224))
    assert images.double().sum().item() == pytest.approx(189.0537587)
    images = images[:, :, :size, :size]
    for gamma in (0, 1):
        scaled = {name: t + gamma if "gamma_" in name else t for name, t in tensors.items()}
        renamed, unknown = from_cait(scaled)
        network.load_state_dict(renamed)
        assert not unknown
        with torch.no_grad():
            tokens = network.tokens(images)
            near(network.pool.norm(tokens)[:, ::16, ::16], golden[f"xxs24_{size}_gamma{gamma}_patch_s"], atol=1e-5)
            features = network.pool(tokens)
            near(features, golden[f"xxs24_{size}_gamma{gamma}_cls"], atol=1e-5)
            near(network.forward_head(features), golden[f"xxs24_{size}_gamma{gamma}_logits"])
    with torch.no_grad():
        assert torch.equal(network(images), network.forward_head(features))


# sizes and beginnings


@pytest.mark.parametrize(
    "size, img_size, parameters",
    [
        ("xxs24", 224, 11_956_264),
        ("xxs24", 384, 12_029_224),
        ("xxs36", 224, 17_299_720),
        ("xxs36", 384, 17_372_680),
        ("xs24", 384, 26_670_088),
        ("s24", 224, 46_916_200),
        ("s24", 384, 47_062_120),
        ("s36", 384, 68_366_632),
        ("m36", 384, 271_221_352),
        ("m48", 448, 356_460_520),
    ],
)
def test_size(size, img_size, parameters):
    with torch.device("meta"):
        network = make(size, num_classes=1000, img_size=img_size)
    assert sum(p.numel() for p in network.parameters()) == parameters
    heads = {part.num_heads for part in network.modules() if hasattr(part, "num_heads")}
    assert heads == {network.pos_embed.shape[2] // 48}


@pytest.mark.parametrize("size", SIZES)
def test_scales_start_by_depth(size, monkeypatch):
    monkeypatch.setattr(cait, "CaiT", lambda **options: SimpleNamespace(**options))
    options = vars(make(size, drop_path=0.3))
    monkeypatch.undo()
    options |= {"embed_dim": 2 * options.get("num_heads", 4), "img_size": 32}
    network = CaiT(**options)
    scales = [part.gamma for part in network.modules() if isinstance(part, LayerScale)]
    assert len(scales) == 2 * (int(size[-2:]) + 2)
    expected = 1e-5 if size in ("xxs24", "xxs36", "xs24", "s24") else 1e-6
    assert {g.item() for gamma in scales for g in gamma} == {torch.tensor(expected).item()}
    assert {block.drop_path.rate for block in network.blocks} == {0.3}
    assert not [part for part in network.pool.modules() if isinstance(part, DropPath)]


@pytest.mark.parametrize("depth, start", [(1, 0.1), (18, 0.1), (19, 1e-5), (24, 1e-5), (25, 1e-6)])
def test_scales_of_other_depths(depth, start):
    network = CaiT(num_classes=2, img_size=16, embed_dim=2, num_heads=1, depth=depth)
    assert network.blocks[-1].ls2.gamma[0] == network.pool.blocks[0].ls1.gamma[0] == torch.tensor(start)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"img_size": 100}, "img_size 100 is not a multiple of patch_size 16"),
        ({"img_size": 8}, "img_size 8 is not a multiple"),
        ({"num_heads": 5}, "dim 16 is not a multiple of num_heads 5"),
        ({"class_depth": 0}, "depth must be 1 at least, not 0"),
        ({"drop_path": 1.0}, "drop_path must be in"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CaiT(**{"num_classes": 7, **TINY, **options})


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="images are 48×32 pixels, and positions are for 32×32"):
        CaiT(num_classes=7, img_size=32, **TINY)(torch.zeros(1, 3, 48, 32))


def test_export_of_any_batch():
    network = CaiT(num_classes=7, img_size=48, **TINY).eval()
    images = torch.randn(5, 3, 48, 48)
    program = torch.export.export(network, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for count in (1, 5):
        torch.testing.assert_close(program.module()(images[:count]), network(images[:count]))


# files


def test_every_published_tensor_has_its_place():
    keys = {name: tuple(shape) for name, shape in json.loads((GOLDEN / "cait_keys.json").read_text()).items()}
    assert len(keys) == 476 and cait_shapes() == keys
    places, unknown = from_cait({name: name for name in keys})
    assert not unknown and sorted(places.values()) == sorted(keys)
    with torch.device("meta"):
        ours = cait.cait_xxs24().state_dict()
    assert {name: tuple(t.shape) for name, t in ours.items()} == {name: keys[old] for name, old in places.items()}


def write(path, shapes=None):
    """As timm publishes it (.safetensors), or as the authors do."""
    tensors = fill_small(tiny_shapes() if shapes is None else shapes)
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({"model": {f"module.{name}": t for name, t in tensors.items()}, "epoch": 300}, path)
    return path


@pytest.mark.parametrize("name", ["timm.safetensors", "authors.pth"])
def test_convert(name, tmp_path):
    out = convert("cait", write(tmp_path / name), tmp_path / "out.safetensors")
    header = read_header(out)
    assert header["model"] == {
        "class_path": "mien.networks.CaiT",
        "init_args": {"num_classes": 7, "patch_size": 16, "img_size": 48, "class_depth": 2, **TINY},
    }
    assert labels_of(header) == ORDERS["rafdb"]
    preprocess = header["preprocess"]
    assert preprocess["resize"] == [{"size": 48, "interpolation": "bicubic"}] and preprocess["input_size"] == 48
    assert preprocess["align"] == "none" and preprocess["mean"] == [0.485, 0.456, 0.406]
    network = load_network(out)
    expected = CaiT(num_classes=7, img_size=48, **TINY).eval()
    expected.load_state_dict(from_cait(fill_small(tiny_shapes()))[0])
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(network(images), expected(images))


def test_another_head_and_size(tmp_path):
    """ImageNet's thousand classes; and what a recipe starts from: a head for faces, positions for other images."""
    source = write(tmp_path / "imagenet.pth", tiny_shapes(1000))
    whole = load_network(convert("cait", source, tmp_path / "whole.safetensors"))
    assert labels_of(read_header(tmp_path / "whole.safetensors"))[999] == "imagenet 999"

    out = tmp_path / "faces.safetensors"
    assert main(["convert", "cait", str(source), str(out), "--num-classes", "8", "--img-size", "32"]) == 0
    header = read_header(out)
    assert labels_of(header) == EXPRESSIONS and header["preprocess"]["input_size"] == 32
    network = load_network(out)
    assert (network(torch.randn(3, 3, 32, 32)) == 0).all()
    positions = whole.pos_embed.mT.unflatten(2, (3, 3))
    smaller = F.interpolate(positions, (2, 2), mode="bicubic", antialias=True).flatten(2).mT
    assert torch.equal(network.pos_embed, smaller)
    same = whole.state_dict().keys() - {"pos_embed", "head.weight", "head.bias"}
    assert all(torch.equal(network.state_dict()[name], whole.state_dict()[name]) for name in same)

    resized = load_network(tmp_path / "whole.safetensors", img_size=32)
    assert torch.equal(resized.pos_embed, smaller) and resized.img_size == 32


@pytest.mark.parametrize(
    "change, options, reason",
    [
        ({"blocks.1.attn.proj_w.bias": None}, {}, "1 missing: blocks.1.attn.proj_w.bias"),
        ({"blocks_token_only.1.gamma_2": None}, {}, "1 missing: pool.blocks.1.ls2.gamma"),
        ({"patch_embed.norm.weight": (16,)}, {}, "1 without a place: 'patch_embed.norm.weight'"),
        ({"pos_embed": (1, 10, 16)}, {}, r"1 of another shape: pos_embed is \(1, 10, 16\), not \(1, 9, 16\)"),
        ({"pos_embed": ()}, {}, "img_size 0 is not a multiple"),
        ({"patch_embed.proj.weight": None}, {}, "cannot be built"),
        ({"blocks.0.attn.proj_l.weight": (3, 3)}, {}, "dim 16 is not a multiple of num_heads 3"),
        ({"head.weight": (5, 16)}, {"num_classes": 5, "labels": "rafdb"}, "5 classes apart, and 7 labels"),
        ({"head.weight": (5, 16), "head.bias": (5,)}, {}, "5 classes apart, and 0 labels"),
        ({}, {"num_classes": 0}, "no head to be made for 0 classes"),
        ({}, {"img_size": 50}, "img_size 50 is not a multiple of patch_size 16"),
    ],
)
def test_what_does_not_fit_is_told(change, options, reason, tmp_path):
    shapes = {name: shape for name, shape in (tiny_shapes() | change).items() if shape is not None}
    with pytest.raises(CheckpointError, match=reason) as error:
        convert("cait", write(tmp_path / "in.pth", shapes), tmp_path / "out" / "out.safetensors", **options)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_heads_and_sizes_are_for_those_who_have_them(tmp_path):
    torch.save({"input_layer.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "ir50.pth")
    for options, reason in [
        ({"num_classes": 7}, "no head to be made"),
        ({"img_size": 64}, "keyword argument 'img_size'"),
    ]:
        with pytest.raises(CheckpointError, match=reason):
            convert("ir50", tmp_path / "ir50.pth", tmp_path / "out.safetensors", **options)


def test_positions_that_fit_or_lie_on_no_grid_stay():
    positions = torch.randn(1, 9, 4)
    assert resize_positions(positions, 3) is positions
    assert resize_positions(torch.zeros(1, 10, 4), 3).shape == (1, 10, 4)
    ramp = torch.linspace(0, 1, 6)[None, :].expand(6, 6).reshape(1, 36, 1)
    shrunk = resize_positions(ramp, 3).view(3, 3)
    assert (shrunk.diff(dim=1) > 0.2).all() and torch.allclose(shrunk.diff(dim=0), torch.zeros(2, 3), atol=1e-6)


# images of another size, from pixels to probabilities


def header(model, size=112):
    return {
        "mien": 1,
        "model": model,
        "id2label": dict(zip(map(str, range(8)), EXPRESSIONS, strict=True)),
        "preprocess": {
            "align": "none",
            "resize": [{"size": size, "interpolation": "bicubic"}],
            "input_size": size,
            "color": "rgb",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
    }


def test_a_network_of_224_pixels_from_end_to_end(tmp_path):
    torch.manual_seed(0)
    model = {"class_path": "mien.networks.CaiT", "init_args": {"num_classes": 8, "img_size": 224, **TINY}}
    network = build(model).eval()
    nn.init.normal_(network.head.weight)
    save_network(tmp_path / "model.safetensors", network, header(model, 224))
    again = load_network(tmp_path / "model.safetensors")
    export_onnx(tmp_path / "model.onnx", again, read_header(tmp_path / "model.safetensors"))

    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), dtype=np.uint8)
    answers = open_model(tmp_path / "model.onnx", cache=False)(pixels)
    expected, _ = Deployed(network, header(model, 224)["preprocess"])(torch.from_numpy(pixels))
    np.testing.assert_allclose(answers["logits"], expected.detach().numpy(), atol=1e-4)
    assert answers["logits"].std(0).max() > 0.01

    faces = [np.random.default_rng(1).integers(0, 256, size, dtype=np.uint8) for size in ((300, 260, 3), (90, 90, 3))]
    by_onnx = Classifier.from_pretrained(tmp_path / "model.onnx")
    assert by_onnx.crop(faces[0]).shape == (224, 224, 3)
    by_torch = Classifier.from_pretrained(tmp_path / "model.safetensors")
    np.testing.assert_allclose(by_onnx.predict_proba(faces), by_torch.predict_proba(faces), atol=1e-4)
    by_onnx.run(np.zeros((1, 224, 224, 3), np.uint8))


def test_a_recipe_for_images_of_another_size(tmp_path, monkeypatch):
    """From published weights with another head, through two steps, to a checkpoint that a classifier opens."""
    monkeypatch.chdir(tmp_path)
    for split in ("train", "validation"):
        for i, label in enumerate(("neutral", "anger") * 2):
            path = tmp_path / "faces" / split / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 50), (60 * i, 90, 90)).save(path)
    start = convert("cait", write(tmp_path / "published.pth"), tmp_path / "cait.safetensors", "a,b", num_classes=2)
    recipe = {
        "model": {"class_path": "mien.networks.CaiT", "init_args": {"num_classes": 2, "img_size": 32, **TINY}},
        "init": {"": str(start)},  # of 48 pixels
        "data": {"class_path": "mien.data.Folder", "init_args": {"path": "faces"}},
        "faces": {"batch_size": 2, "preprocess": header(None, 32)["preprocess"]},
        "task": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}}},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "log_every_n_steps": 1, "enable_progress_bar": False},
    }
    Path("recipe.yaml").write_text(json.dumps(recipe))
    folder = train(["recipe.yaml"])
    network = load_network(folder / "last.safetensors")
    assert network.img_size == 32 and network.head.weight.abs().max() > 0
    faces = [np.full((60, 60, 3), 90, np.uint8)]
    assert Classifier.from_pretrained(folder / "last.safetensors").predict_proba(faces).shape == (1, 2)

    recipe["faces"]["preprocess"] = header(None, 48)["preprocess"]
    Path("recipe.yaml").write_text(json.dumps(recipe))
    with pytest.raises(MienError, match="cannot look at faces of 48 pixels: images are 48×48 pixels, and positions"):
        train(["recipe.yaml", "--out", "other"])


def test_positions_and_class_token_have_no_weight_decay():
    class Trainer:
        estimated_stepping_batches, max_epochs = 10, 2

    network = CaiT(num_classes=2, img_size=32, **TINY)
    task = Task(network, header(None, 32)["preprocess"], 2, partial(torch.optim.AdamW, lr=0.1, weight_decay=0.5))
    task._trainer = Trainer()
    names = {p: name for name, p in network.named_parameters()}
    decay = {
        names[p]: g["weight_decay"] for g in task.configure_optimizers()["optimizer"].param_groups for p in g["params"]
    }
    assert {name for name, p in network.named_parameters() if p.ndim > 1 and not decay[name]} == set(CaiT.no_decay)


# class attention as a pool


def test_a_pool_takes_any_number_of_tokens_and_knows_no_order():
    pool = ClassAttentionPool(16, num_heads=2).eval()
    for count in (1, 5, 49):
        tokens = torch.randn(2, count, 16)
        assert pool(tokens).shape == (2, 16)
        torch.testing.assert_close(pool(tokens.flip(1)), pool(tokens))


def test_the_cost_of_a_pool_grows_with_its_tokens_alone():
    def cost(count):
        pool = ClassAttentionPool(16, num_heads=2, depth=1)
        with observe(pool), FlopCounterMode(display=False) as counter, torch.no_grad():  # or they are not counted
            pool(torch.randn(1, count, 16))
        return counter.get_total_flops()

    keys_and_values = 2 * 2 * 16 * 16 + 2 * 2 * 16  # of a token: projected, asked, gathered
    assert cost(300) - cost(200) == cost(200) - cost(100) == 100 * keys_and_values


def test_a_pool_in_a_header(tmp_path):
    model = {"class_path": "mien.networks.mobilefacenet", "init_args": {"num_classes": 8, "pool": POOL}}
    network = mobilefacenet(pool=partial(ClassAttentionPool, num_heads=4, depth=1)).eval()
    save_network(tmp_path / "m.safetensors", network, header(model))
    again = load_network(tmp_path / "m.safetensors")
    assert again.pool.blocks[0].attn.num_heads == 4 and len(again.pool.blocks) == 1
    images = torch.randn(2, 3, 112, 112)
    assert torch.equal(again(images), network(images))
    assert load_network(tmp_path / "m.safetensors", pool=POOL).state_dict().keys() == network.state_dict().keys()
    with pytest.raises(CheckpointError, match=r"without a place: pool\.blocks"):
        load_network(tmp_path / "m.safetensors", pool="mean")


def test_a_mean_is_what_it_was():
    network = mobilefacenet().eval()
    assert not [name for name in network.state_dict() if name.startswith("pool")]
    images = torch.randn(2, 3, 112, 112)
    assert torch.equal(network.forward_features(images), network.image(images)[-1].mean((2, 3)))


def test_a_pool_of_btns_tokens(tmp_path):
    model = {"class_path": "mien.networks.btn_mobile", "init_args": {"num_classes": 8, "pool": POOL}}
    network = build(model)
    assert network.vit.pos_embed.shape == (1, 147, 128) and "vit.cls_token" not in network.state_dict()
    images = torch.randn(2, 3, 112, 112)
    sum(logits.square().sum() for logits in network.training_logits(images).values()).backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None]
    assert network.vit.pool.cls_token.grad.abs().max() > 0
    save_network(tmp_path / "b.safetensors", network, header(model))
    assert torch.equal(load_network(tmp_path / "b.safetensors")(images), network.eval()(images))
    with pytest.raises(ValueError, match="pool must be 'class' or make a pool, not 'mean'"):
        ViT(pool="mean")


def test_parts_in_a_header():
    """A part that lacks nothing is made at once; what lacks its width is left for the network to make."""
    trunk = {"class_path": "mien.networks.MobileFaceNet", "init_args": {"variant": "prelu"}}
    arguments = {"image": trunk, "num_classes": 3, "pool": {"class_path": "mien.nn.ClassAttentionPool"}}
    network = build({"class_path": "mien.networks.PlainClassifier", "init_args": arguments})
    assert hasattr(network.image.stem, "act") and isinstance(network.pool, ClassAttentionPool)
    mixed = build({"class_path": "mien.networks.ViT", "init_args": {"mixer": {"class_path": "mien.nn.TalkingHeads"}}})
    assert isinstance(mixed.blocks[0].attn, TalkingHeads)


@pytest.mark.parametrize(
    "pool, reason",
    [
        ("max", "mien.networks.mobilefacenet cannot be built: pool must be 'mean' or make a pool, not 'max'"),
        ({"class_path": "os.system"}, "os.system is not one of mien's networks"),
        ({"class_path": "mien.networks.save_network"}, "mien.networks.save_network is not a network"),
        ({"class_path": "mien.nn.Gone"}, "there is no network mien.nn.Gone"),
        ({"class_path": 3}, "cannot be built"),
        (POOL | {"init_args": {"num_head": 4}}, "cannot be built: .*unexpected keyword argument 'num_head'"),
        (POOL | {"init_args": {"num_heads": 3}}, "cannot be built: dim 512 is not a multiple of num_heads 3"),
        (POOL | {"init_args": {"depth": {"class_path": "os.system"}}}, "os.system is not one of mien's networks"),
    ],
)
def test_pools_that_are_none(pool, reason):
    with pytest.raises(CheckpointError, match=reason) as error:
        build({"class_path": "mien.networks.mobilefacenet", "init_args": {"pool": pool}})
    assert "\n" not in str(error.value)


class Mixed(Network):
    """A network of somebody else's, whose mixer may be chosen."""

    def __init__(self, *, num_classes: int = 3, mixer: MakeMixer = TalkingHeads):
        super().__init__()
        self.block, self.head = Block(16, 2, mixer=mixer), nn.Linear(16, num_classes)


TRUNK = {"class_path": "mien.networks.MobileFaceNet", "init_args": {"variant": "prelu"}}
BLOCKS = {
    "a pool": ("mien.networks.mobilefacenet", {"pool": POOL}),
    "a pool's name": ("mien.networks.mobilefacenet", {"pool": "mien.nn.ClassAttentionPool"}),
    "a trunk": ("mien.networks.PlainClassifier", {"image": TRUNK, "num_classes": 3, "pool": POOL}),
    "a mixer": (
        f"{__name__}.Mixed",
        {"mixer": {"class_path": "mien.nn.SelfAttention", "init_args": {"qkv_bias": False}}},
    ),
    "a mixer by default": (f"{__name__}.Mixed", {}),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_parts_in_a_recipe(name, tmp_path):
    """jsonargparse reads them, and what it keeps in the checkpoint's header builds the same network."""
    path, arguments = BLOCKS[name]
    recipe = {
        "model": {"class_path": path, "init_args": arguments},
        "data": {"class_path": "mien.data.Folder", "init_args": {"path": "none"}},
        "task": {"optimizer": {"class_path": "torch.optim.AdamW"}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    model = parser().parse_args(["--config", str(tmp_path / "recipe.yaml")]).model
    alone = ArgumentParser()  # without the data, of which there is none
    alone.add_subclass_arguments(Network, "model")
    network = alone.instantiate(Namespace(model=model)).model
    again = build(json.loads(json.dumps(plain(model))), trust=True)
    assert {n: p.shape for n, p in network.named_parameters()} == {n: p.shape for n, p in again.named_parameters()}
    for made in (network, again):
        if "pool" in arguments:
            assert made.pool.blocks[0].attn.num_heads == (8 if isinstance(arguments["pool"], str) else 4)
        if name == "a trunk":
            assert made.image.stem.act.weight.shape == (64,)
        if path.endswith("Mixed"):
            assert type(made.block.attn) is (SelfAttention if arguments else TalkingHeads)
            assert (made.block.attn.qkv.bias is None) == bool(arguments)
