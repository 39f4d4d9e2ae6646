"""What resting trunks say, kept: heads learn from it as from faces. And networks that begin as their trunk does."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn
from torch.utils.data import default_collate

from mien.__main__ import main
from mien.checkpoint import read_header
from mien.data import Folder, Row
from mien.faces.align import ARCFACE112
from mien.networks import APViT, Network, Normalize, load_network, mobilefacenet, save_network
from mien.networks.btn import BTN, btn_mobile
from mien.networks.deploy import to_float
from mien.networks.plain import PlainClassifier
from mien.nn import BatchTransformer
from mien.training.crops import GREY48, Crops
from mien.training.faces import FaceData
from mien.training.in_memory import InMemory
from mien.training.teachers import Teachers
from mien.training.vouching import examples, measure_vouching

LABELS = ("neutral", "happiness", "anger")


class Trunk(nn.Module):
    """Three maps, with a batch norm and a dropout that must be at rest."""

    levels = ((6, 28), (8, 14), (12, 7))

    def __init__(self):
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 6, 4, 4), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))
        self.mid, self.high = nn.Conv2d(6, 8, 2, 2), nn.Conv2d(8, 12, 2, 2)

    def forward(self, images):
        low = self.low(images)
        mid = self.mid(low)
        return low, mid, self.high(mid).relu()


class SmallBTN(BTN):
    def __init__(self, *, num_classes: int = 3, trunk_logits: bool = False, drop: float = 0.0):
        sizes = {"dims": (4, 8, 8), "head_dim": 4, "adapt_kernel": 1, "key_strides": (4, 2, 1), "embed_dim": 8}
        trunks = {"image": Trunk(), "landmarks": Trunk(), "freeze_landmarks": False}
        options = {"depth": 1, "num_heads": 2, "drop_path": (drop,) * 3, "trunk_logits": trunk_logits}
        super().__init__(num_classes=num_classes, **sizes, **trunks, **options)


class SmallAPViT(APViT):
    def __init__(self, *, num_classes: int = 3):
        sizes = {"embed_dim": 8, "depth": 2, "num_heads": 2, "keep_patches": 30, "keep_rate": 0.9}
        super().__init__(image=Trunk(), num_classes=num_classes, **sizes)


class SmallPlain(PlainClassifier):
    def __init__(self, *, num_classes: int = 3, branch: bool = False, mirror: bool = False):
        beside = {"batch_branch": BatchTransformer} if branch else {}
        super().__init__(image=Trunk(), num_classes=num_classes, dropout=0.0, mirror=mirror, **beside)


class Headless(Network):
    def __init__(self, *, num_classes: int = 3):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward_features(self, images):
        return images.mean((2, 3))

    def forward_head(self, features):
        return self.head(features)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Writes a recipe with changes whose trunks rest and whose cache is on, for 24 faces of three expressions."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    for split, each in (("train", 8), ("validation", 2)):
        for grey, label in zip((60, 120, 180), LABELS, strict=True):
            (tmp_path / "faces" / split / label).mkdir(parents=True)
            for i in range(each):
                picture = (grey + draw.integers(-30, 30, (48, 48, 3))).astype(np.uint8)
                Image.fromarray(picture).save(tmp_path / "faces" / split / label / f"{i}.png")

    def write(network: str = "SmallBTN", **changes) -> str:
        whole = {
            "name": "small",
            "model": {"class_path": f"{__name__}.{network}", "init_args": {"num_classes": 3}},
            "data": {"class_path": "mien.data.Folder", "init_args": {"root": "faces"}},
            "faces": {"batch_size": 6, "aligned": 0.0},
            "augment": None,
            "task": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3}}},
            "trainer": {"max_epochs": 5, "accelerator": "cpu", "log_every_n_steps": 1},
            "rest": ["image", "landmarks", "image_adapt", "landmark_adapt"] if network == "SmallBTN" else ["image"],
            "cache": True,
            "cache_views": ["as is"],
        }
        for path, value in changes.items():
            *parents, last = path.split("__")
            block = whole
            for parent in parents:
                block = block.setdefault(parent, {})
            block[last] = value
        Path("recipe.yaml").write_text(yaml.safe_dump(whole))
        return "recipe.yaml"

    return write


def losses(folder: str) -> list[float]:
    with open(f"runs/{folder}/metrics.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def judged(folder: str) -> list[float]:
    with open(f"runs/{folder}/metrics.csv", newline="") as file:
        return [float(row["val_loss"]) for row in csv.DictReader(file) if row["val_loss"]]


CHANGES = [
    ("SmallBTN", {}),
    ("SmallBTN", {"rest": ["image", "landmarks"]}),
    ("SmallBTN", {"model__init_args__trunk_logits": True}),
    ("SmallAPViT", {}),
    ("SmallPlain", {}),
    ("SmallPlain", {"model__init_args__branch": True}),
]


@pytest.mark.parametrize(("network", "changes"), CHANGES)
def test_losses_are_those_of_faces(network, changes, recipe):
    """Over 20 steps, and of validation; the trunks' batch norm and dropout rest in both."""
    assert main(["train", recipe(network, name="cached", **changes)]) == 0
    assert main(["train", recipe(network, name="faces", cache=False, **changes)]) == 0
    assert len(losses("cached")) == 20
    np.testing.assert_allclose(losses("cached"), losses("faces"), atol=1e-3)
    np.testing.assert_allclose(judged("cached"), judged("faces"), atol=1e-3)
    assert len(set(losses("cached"))) == 20  # it learns
    header = json.loads(Path("runs/cache/train.json").read_text())
    assert (header["faces"], header["done"], header["views"]) == (24, 24, ["as is"])
    sizes = {"SmallAPViT": [[12, 7, 7]], "SmallPlain": [[12, 7, 7]] if changes else [[12]]}
    adapted = [[4, 28, 28], [8, 14, 14], [8, 7, 7]]
    raw = [[6, 28, 28], [8, 14, 14], [12, 7, 7]]
    shapes = raw * 2 if "rest" in changes else adapted * 2 + [[12]] * ("model__init_args__trunk_logits" in changes)
    assert header["shapes"] == sizes.get(network, shapes)
    width = sum(map(math.prod, header["shapes"]))
    assert np.load("runs/cache/train.npy", mmap_mode="r").shape == (24, 1, width)


def test_a_part_at_rest_does_not_move(recipe):
    assert main(["train", recipe(cache=False, name="one", trainer__max_epochs=1)]) == 0
    torch.manual_seed(0)
    network = load_network("runs/one/last.safetensors", trust=True)
    for bn in (network.image.low[1], network.landmarks.low[1]):
        assert not bn.running_mean.any() and bn.num_batches_tracked == 0
    assert main(["train", recipe(rest=["nothing"], name="two")]) == 1


def test_mirrored_views_are_drawn(recipe, monkeypatch):
    assert main(["train", recipe("SmallPlain", cache_views=["as is", "mirrored"], trainer__max_epochs=1)]) == 0
    kept = np.load("runs/cache/train.npy", mmap_mode="r")
    assert kept.shape == (24, 2, 12) and np.load("runs/cache/validation.npy", mmap_mode="r").shape == (6, 1, 12)
    assert np.abs(kept[:, 0] - kept[:, 1]).max() > 0.01
    from mien.training.cache import Cached

    class Crops:
        rows, target, truth = [None] * 24, None, staticmethod(lambda i: (i,))
        __len__ = staticmethod(lambda: 24)

    cached = Cached(kept, Crops())
    for chance, view in ((0.0, 0), (0.49, 0), (0.5, 1), (0.999, 1)):
        assert np.array_equal(cached[3, chance][0], kept[3, view]) and cached[3, chance][1] == 3
    assert np.array_equal(cached[5][0], kept[5, 0])


def test_a_subset_reads_the_cache_of_all(recipe):
    assert main(["train", recipe("SmallPlain", name="all")]) == 0
    subset = {"faces__subset": 12, "trainer__max_epochs": 2}
    assert main(["train", recipe("SmallPlain", name="cached", **subset)]) == 0
    assert main(["train", recipe("SmallPlain", name="faces", cache=False, **subset)]) == 0
    np.testing.assert_allclose(losses("cached"), losses("faces"), atol=1e-3)


def test_teachers_answers_are_kept_as_well(recipe, tmp_path):
    assert main(["train", recipe("SmallPlain", name="teacher", cache=False, rest=[], trainer__max_epochs=1)]) == 0
    # mien's own networks alone are teachers unless they are trusted
    taught = {"teachers": [str(tmp_path / "runs/teacher/last.safetensors")], "task__teach": 0.5, "trust": True}
    assert main(["train", recipe("SmallPlain", name="cached", **taught)]) == 0
    assert main(["train", recipe("SmallPlain", name="faces", cache=False, **taught)]) == 0
    assert main(["train", recipe("SmallPlain", name="alone", cache=False)]) == 0
    np.testing.assert_allclose(losses("cached"), losses("faces"), atol=1e-3)
    assert abs(losses("alone")[0] - losses("faces")[0]) > 1e-3
    assert json.loads(Path("runs/cache/train.json").read_text())["shapes"] == [[12], [3]]


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        ("SmallPlain", {"cache": False, "rest": [], "augment": {"class_path": "mien.training.augment.Augment"}}),
        ("SmallBTN", {"cache_views": ["as is", "mirrored"]}),
    ],
)
def test_what_is_kept_in_memory_is_what_is_read(network, changes, recipe):
    """Whole faces, and the features of a cache: the same batches, so the same losses to the last digit."""
    assert main(["train", recipe(network, name="read", **changes)]) == 0
    assert main(["train", recipe(network, name="kept", faces__in_memory=True, **changes)]) == 0
    assert len(losses("kept")) == 20
    assert losses("kept") == losses("read") and judged("kept") == judged("read")


def test_aligned_views_and_further_targets_are_kept_in_memory(recipe):
    recipe()
    draw = np.random.default_rng(0)
    landmarks = (ARCFACE112 * 48 / 112 + draw.uniform(-4, 4, (24, 5, 2))).astype(np.float32)
    landmarks[::3] = np.nan  # where the detector found nothing
    rows = Folder(path="faces").rows("train")
    crops = Crops(rows, GREY48, landmarks, 0.5, 0.0, lambda row: {"length": np.float32(row.label)})
    kept = InMemory(crops, torch.device("cpu"))
    keys = [(i, chance) for i in range(24) for chance in (0.1, 0.9)]
    assert kept.shown.shape == (24, 2, 112, 112, 3)  # these have colours
    for one, other in zip(kept.__getitems__(keys), default_collate([crops[key] for key in keys]), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    aligned, whole = (kept.__getitems__([(1, chance)])[0] for chance in (0.1, 0.9))
    assert not torch.equal(aligned, whole)


def test_teachers_probabilities_can_be_computed_once(recipe, tmp_path, capsys):
    """What is learned of a face is in part what they say of it and of its mirror image, in the mean."""
    assert main(["train", recipe("SmallPlain", name="teacher", cache=False, rest=[], trainer__max_epochs=1)]) == 0
    file = tmp_path / "runs/teacher/last.safetensors"
    taught = {"teachers": [str(file)], "teachers_once": True, "task__teach": 0.25, "trust": True, "cache": False}
    assert main(["train", recipe("SmallPlain", name="taught", rest=[], faces__in_memory=True, **taught)]) == 0
    faces = FaceData(Folder(path="faces"), aligned=0.0, in_memory=True)
    faces.teach_once(Teachers([file], LABELS, GREY48, trust=True), 0.25)
    faces.setup()
    shown, target, label = faces.train_faces.__getitems__([0, 23])
    images, network = Normalize(GREY48)(to_float(shown)), load_network(file, trust=True).eval()
    probs = (network(images).softmax(1) + network(images.flip(3)).softmax(1)) / 2
    wanted = 0.75 * nn.functional.one_hot(label, 3) + 0.25 * probs
    torch.testing.assert_close(target, wanted)
    assert float((target - nn.functional.one_hot(label, 3)).abs().max()) > 0.05
    for missing in ({"faces__in_memory": False}, {"teachers": []}, {"cache": True}):
        options = {"faces__in_memory": True, "rest": ["image"], **taught, **missing}
        assert main(["train", recipe("SmallPlain", name="none", **options)]) == 1
        assert "--teachers_once: it needs --teachers" in capsys.readouterr().err


def test_grey_faces_have_one_channel_in_memory():
    grey = np.random.default_rng(0).integers(0, 256, (3, 112, 112, 1), np.uint8).repeat(3, 3)
    rows = [Row(face, np.float32([1, 0]), "train", label=0) for face in grey]
    kept = InMemory(Crops(rows, GREY48), torch.device("cpu"))
    assert kept.shown.shape == (3, 1, 112, 112, 1)
    read = default_collate([Crops(rows, GREY48)[i] for i in range(3)])
    for one, other in zip(kept.__getitems__([0, 1, 2]), read, strict=True):
        assert torch.equal(one, other)


def test_a_cache_that_was_cut_goes_on(recipe, monkeypatch):
    monkeypatch.setattr("mien.training.cache._CHUNK", 5)
    monkeypatch.setattr("mien.training.cache._MARK", 2)
    assert main(["train", recipe("SmallPlain", trainer__max_epochs=1)]) == 0
    whole, file = np.load("runs/cache/train.npy").copy(), Path("runs/cache/train.json")
    header = json.loads(file.read_text())
    cut = np.load("runs/cache/train.npy", mmap_mode="r+")
    cut[10:] = 7
    cut[0] = 3  # shows what is not read again
    cut.flush()
    file.write_text(json.dumps(header | {"done": 10}))
    assert main(["train", recipe("SmallPlain", name="again", trainer__max_epochs=1)]) == 0
    found = np.load("runs/cache/train.npy")
    np.testing.assert_array_equal(found[1:], whole[1:])
    assert (found[0] == 3).all() and json.loads(file.read_text())["done"] == 24


def test_a_run_begins_with_one_that_used_the_cache(recipe):
    """Its average of the weights gave every -0 of the resting trunk its other sign."""
    assert main(["train", recipe("SmallPlain", name="begun", trainer__max_epochs=1)]) == 0
    network, file = load_network("runs/begun/last.safetensors", trust=True), "runs/first/last.safetensors"
    weight = next(network.image.parameters())
    weight.data.view(-1)[0] = -0.0
    save_network("start.safetensors", network, read_header("runs/begun/last.safetensors"))
    options = {"trainer__max_epochs": 1, "ema": 0.9, "cache_folder": "runs/own", "trust": True}
    assert main(["train", recipe("SmallPlain", name="first", init={"": "start.safetensors"}, **options)]) == 0
    moved = next(load_network(file, trust=True).image.parameters())
    assert torch.equal(moved, weight) and not moved.view(-1)[0].signbit()
    assert main(["train", recipe("SmallPlain", name="second", init={"": file}, **options)]) == 0


def run_again(recipe, capsys, **changes) -> str:
    assert main(["train", recipe("SmallPlain", name="first", trainer__max_epochs=1)]) == 0
    capsys.readouterr()
    assert main(["train", recipe("SmallPlain", name="second", trainer__max_epochs=1, **changes)]) == 1
    err = capsys.readouterr().err
    (line,) = [line for line in err.splitlines() if line.startswith("mien: ")]
    return line.removeprefix("mien: ")


PREPROCESS = {
    "align": "none",
    "resize": [{"size": 112, "interpolation": "auto"}],
    "input_size": 112,
    "color": "rgb",
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}


@pytest.mark.parametrize(
    ("changes", "other"),
    [
        ({"seed": 1}, "another trunk"),  # drawn anew
        ({"faces__preprocess": PREPROCESS}, "other preprocessing"),
        ({"data__init_args__root": "others"}, "other data"),
        ({"cache_views": ["mirrored"]}, "other views"),
        ({"model__init_args__branch": True}, "other shapes"),
    ],
)
def test_a_cache_of_another_kind_is_refused_in_a_line(changes, other, recipe, capsys, tmp_path):
    if other == "other data":
        draw = np.random.default_rng(5)
        for split in ("train", "validation"):
            for label in LABELS:
                (tmp_path / "others" / split / label).mkdir(parents=True)
                for i in range(8 if split == "train" else 2):
                    picture = draw.integers(0, 256, (48, 48, 3)).astype(np.uint8)
                    Image.fromarray(picture).save(tmp_path / "others" / split / label / f"{i}.png")
    line = run_again(recipe, capsys, **changes)
    assert line == f"runs/cache: a cache of {other}, train: remove it, or give another --cache_folder"


@pytest.mark.parametrize(
    ("network", "changes", "reason"),
    [
        ("SmallBTN", {"rest": ["image"]}, "--cache: landmarks would be trained: --rest image landmarks"),
        (
            "SmallPlain",
            {"augment": {"flip": 0.5}},
            "--cache: faces are kept as they are, and mirrored: it needs --augment",
        ),
        (
            "SmallPlain",
            {"faces__aligned": 0.5},
            "--cache: faces are kept as they are, and mirrored: it needs --faces.ali",
        ),
        (
            "SmallPlain",
            {"task__cutmix": 0.5},
            "--cache: faces are kept as they are, and mirrored: it needs no --task.cutm",
        ),
        (
            "SmallPlain",
            {"task__flip_consistency": 1.0},
            "--cache: faces are kept as they are, and mirrored: it needs no",
        ),
        (
            "SmallPlain",
            {"model__init_args__mirror": True},
            "--cache: nothing can be kept behind a trunk that is refined",
        ),
        (
            "SmallPlain",
            {"cache_views": ["above"]},
            "--cache_views: one or both of as is, mirrored, each once, not above",
        ),
        ("SmallPlain", {"cache_limit": 1e-7}, "--cache would take 0.0 GB, and 1e-07 are allowed: let adapters"),
        ("Headless", {"rest": []}, "--cache: the network does not say what its trunks are"),
    ],
)
def test_what_cannot_be_cached_is_a_line(network, changes, reason, recipe, capsys):
    assert main(["train", recipe(network, **changes)]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mien: ")]
    assert len(lines) == 1 and lines[0].startswith(f"mien: {reason}")


def test_a_damaged_header_is_a_line(recipe, capsys):
    assert main(["train", recipe("SmallPlain", name="first", trainer__max_epochs=1)]) == 0
    Path("runs/cache/train.json").write_text("{")
    capsys.readouterr()
    assert main(["train", recipe("SmallPlain", name="second")]) == 1
    assert "mien: runs/cache/train.json: damaged: remove runs/cache" in capsys.readouterr().err


# a start at the trunk's function


def test_a_warm_start_answers_as_the_trunk_does(tmp_path):
    """The head is taken over, and what is new adds nothing: in eval mode and to every set of logits of training."""
    torch.manual_seed(0)
    trunk = SmallPlain().eval()
    network = SmallBTN(trunk_logits=True)
    network.image.load_state_dict(trunk.image.state_dict())
    network.trunk_head.load_state_dict(trunk.head.state_dict())
    images = torch.randn(4, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), trunk(images))
        torch.testing.assert_close(network.forward_head(network.forward_features(images)), trunk(images))
        logits = network.training_logits(images)
        torch.testing.assert_close(logits["vit"], trunk(images))
        torch.testing.assert_close(network(network.front(images)), trunk(images))
    loss = network.training_logits(images)["vit"].square().sum()
    loss.backward()
    assert network.vit.head.weight.grad.any()  # what is new learns from the first step


@pytest.mark.parametrize("lr, silent", [(1e-9, ["vit", "landmarks"]), (3e-2, ["landmarks"])])
@pytest.mark.parametrize("cache", [True, False])
def test_what_answers_do_not_depend_on_is_named(recipe, capsys, lr, silent, cache):
    """The ViT's head starts at 0, and cross attention at 1e-5: a run in which they learn nothing says so."""
    options = {"model__init_args__trunk_logits": True, "task__optimizer__init_args__lr": lr, "cache": cache}
    assert main(["train", recipe(**options)]) == 0
    said = [
        line for line in capsys.readouterr().err.splitlines() if re.search("adds next to nothing|hardly read", line)
    ]
    assert [re.search(r"(\w+) (adds|is hardly)", line)[1] for line in said] == silent
    assert all(line.startswith("runs/small: ") for line in said)


def test_landmarks_that_are_read_are_not_named():
    from mien.training.silent import _streamed

    torch.manual_seed(0)
    network = SmallBTN().eval()
    with torch.no_grad():
        maps = network.front(10 * torch.randn(6, 3, 112, 112))
        assert [line.split()[3] for line in _streamed(network, maps)] == ["landmarks"]
        for cross in network.cross:
            cross.ls1.gamma.fill_(10.0)
            cross.kv.weight.mul_(10.0)
        network.vit.head.weight.normal_()
        assert not list(_streamed(network, maps))


def test_the_recipes_parts_fit_the_shipped_size(tmp_path):
    """`btn_mobile` takes trunk and head of a `mobilefacenet` checkpoint, as `init` of a recipe names them."""
    from conftest import header

    from mien.training.start import start_from

    torch.manual_seed(1)
    trunk = mobilefacenet().eval()
    path = tmp_path / "trunk.safetensors"
    save_network(path, trunk, header("mien.networks.mobilefacenet", num_classes=8))
    network = btn_mobile(trunk_logits=True, mla_gate_lower=True, mla_init_values=1e-5)
    start_from(network, {"image": f"{path}#image", "trunk_head": f"{path}#head"})
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(images), trunk(images))


@pytest.mark.parametrize(
    "name, options",
    [
        ("btn_mobile_cached_ferplus", {}),
        ("btn_mobile_cached_ferplus", {"mla": "none", "bt": False}),
        ("btn_mobile_joint_ferplus", {}),
    ],
)
def test_a_warm_btn_is_awake(name, options):
    """Its ViT's features differ from face to face, as those of a new one do not; with the trunk's logits it answers as
    the trunk does, and without them its answers differ from face to face."""
    from mien.classifier import find_checkpoint
    from mien.networks import build
    from mien.training.start import start_from

    recipe = yaml.safe_load((Path(__file__).parents[1] / f"recipes/{name}.yaml").read_text())
    network, asleep = (build(recipe["model"], **options).eval() for _ in range(2))
    start_from(network, recipe["init"])
    images = torch.randn(3, 3, 112, 112)
    with torch.no_grad():
        if network.trunk_head is None:
            assert network(images).std(0).mean() > 0.1 > 10 * asleep(images).std(0).mean()
        else:
            trunk = load_network(find_checkpoint("mobilefacenet_ferplus"), mirror=False)
            torch.testing.assert_close(network(images), trunk(images))
        spread, before = (each.vit.forward_features(each.fuse(images)[0]).std(0).mean() for each in (network, asleep))
    assert spread > 0.05 > 10 * before


def test_poster_begins_a_btn_with_gates(tmp_path):
    """A checkpoint of POSTER++ fills a BTN whose new parts are gated, and answers as before; any other is refused."""
    from mien.errors import CheckpointError
    from mien.networks.checkpoint import fill

    torch.manual_seed(0)
    poster = btn_mobile(mla="none", bt=False).eval()
    network = btn_mobile(mla_gate_lower=True, mla_init_values=1e-6).eval()
    fill(network, poster.state_dict(), "poster")
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        torch.testing.assert_close(network(images), poster(images), atol=1e-4, rtol=1e-4)
    with pytest.raises(CheckpointError, match="missing"):
        fill(btn_mobile(), poster.state_dict(), "poster")
    cut = {name: t for name, t in network.state_dict().items() if not name.startswith("mla_mid.q")}
    with pytest.raises(CheckpointError, match="2 missing: mla_mid.q.bias, mla_mid.q.weight"):
        fill(network, cut, "cut")


def test_without_the_option_nothing_is_new():
    assert not any("trunk_head" in name for name in btn_mobile().state_dict())


# who vouches for whom


def test_vouching_by_hand():
    attn = torch.zeros(2, 3, 4)  # two classes, three faces, and one of another batch
    attn[0, 0] = torch.tensor([0.5, 0.3, 0.1, 0.1])
    attn[0, 1] = torch.tensor([0.2, 0.2, 0.5, 0.1])
    attn[1, 2] = torch.tensor([0.0, 0.0, 1.0, 0.0])
    found = measure_vouching(attn, torch.tensor([0, 0, 1]))
    assert found["own"] == pytest.approx((0.3 + 0.2) / 2)  # the third has nobody
    assert found["chance"] == pytest.approx(0.5)
    assert found["itself"] == pytest.approx((0.5 + 0.2 + 1.0) / 3)
    entropies = [-sum(a * math.log(a) for a in row if a) / math.log(4) for row in attn[[0, 0, 1], [0, 1, 2]].tolist()]
    assert found["entropy"] == pytest.approx(sum(entropies) / 3)
    assert math.isnan(measure_vouching(attn, torch.tensor([0, 1, 1])[:1])["own"])
    shown = examples(attn, torch.tensor([0, 0, 1]), ["a", "b", "c"], ["x", "y"])
    assert shown["x"]["face"] == "a" and [one["face"] for one in shown["x"]["attends_to"]] == ["b", "c"]
    assert shown["y"]["attends_to"][0] == {"face": "a", "label": "x", "share": 0.0}


@pytest.mark.parametrize(("cache", "in_memory"), [(True, False), (False, False), (False, True)])
def test_a_run_says_who_vouches_for_whom(cache, in_memory, recipe):
    options = {"cache": cache, "faces__in_memory": in_memory, "vouching": True, "trainer__max_epochs": 2}
    assert main(["train", recipe(**options)]) == 0
    with open("runs/small/vouching.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["step"]) for row in rows] == [4, 8]
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in ("own", "chance", "itself", "entropy"))
    assert float(rows[0]["chance"]) == pytest.approx(1 / 5)  # six faces, two of each class
    assert set(json.loads(Path("runs/small/vouching.json").read_text())) == set(LABELS)


def test_nobody_vouches_without_a_batch_transformer(recipe, capsys):
    assert main(["train", recipe("SmallPlain", vouching=True)]) == 1
    assert "mien: --vouching: the network has no batch transformer" in capsys.readouterr().err
