"""Every recipe, two steps long, on a set of its kind in small; the networks and batches are small, too."""

import csv
import inspect
import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from sets import draw, write_affectnet, write_affwild2, write_cifar10, write_expw, write_rafdb, write_sfew
from test_data import table, votes
from torch import nn

from mien import networks
from mien.__main__ import main
from mien.checkpoint import labels_of, outputs_of, read_header
from mien.classifier import DEFAULT_MODEL, MODELS
from mien.labels import EXPRESSIONS, ORDERS
from mien.networks import APViT, ARBEx, Network, SparseDeiT, build, load_network
from mien.training.run import parser

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))


class Trunk(nn.Module):
    levels = ((6, 14),)

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 8, 8), nn.BatchNorm2d(6)

    def forward(self, images):
        return (self.bn(self.conv(images)),)


class Small(APViT):
    """APViT with a trunk of one layer and two blocks."""

    def __init__(self, *, num_classes: int, keep_patches: int | None, keep_rate: float, num_action_units: int = 0):
        super().__init__(
            image=Trunk(),
            num_classes=num_classes,
            embed_dim=8,
            depth=2,
            num_heads=2,
            keep_patches=keep_patches,
            keep_rate=keep_rate,
            num_action_units=num_action_units,
        )


class Plain(Network):
    def __init__(self, *, num_classes: int):
        super().__init__()
        self.image, self.head = Trunk(), nn.Linear(6, num_classes)

    front_parts = ("image",)

    def front(self, images):
        return (self.image(images)[0].mean((2, 3)),)

    def forward_features(self, images):
        return (images if isinstance(images, tuple) else self.front(images))[0]

    def forward_head(self, features):
        return self.head(features)


class Sparse(SparseDeiT):
    """Sparsifiner in one block, with its two phases."""

    def __init__(self, *, num_classes: int, mask_phase: float, keep: float = 0.25):
        sizes = {"img_size": 112, "patch_size": 28, "embed_dim": 8, "depth": 1, "num_heads": 2}
        super().__init__(num_classes=num_classes, keep=keep, mask_phase=mask_phase, **sizes)


class Balanced(ARBEx):
    def __init__(self, *, num_classes: int):
        super().__init__(body=Plain(num_classes=num_classes))


def ferplus(root: Path) -> str:
    rows = [votes(bytes_of(root, i), "train" if i < 8 else "validation", **{EXPRESSIONS[i % 8]: 9}) for i in range(12)]
    rows = [row | {"fer_row": i} for i, row in enumerate(rows)]
    return table(root / "fer.parquet", rows)


def bytes_of(root: Path, value: int) -> bytes:
    draw(root / "face.png", 9 * value, (48, 48))
    return (root / "face.png").read_bytes()


def folder(root: Path) -> Path:
    for i in range(7):
        for split in ("train", "test"):
            draw(root / f"{split}/{i + 1}/face.png", 20 * i, (100, 100))
    return root


def affwild2(root: Path) -> Path:
    """With twelve action units."""
    write_affwild2(root)
    names = [f"AU{i}" for i in (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26)]
    for file in root.glob("annotations/AU_Set/*/*.txt"):
        _, *lines = file.read_text().split()
        file.write_text("\n".join([",".join(names), *(f"{line}{',0' * 9}" for line in lines)]))
    return root


SETS = {
    "mien.data.RAFDB": (write_rafdb, "rafdb"),
    "mien.data.FERPlus": (ferplus, None),
    "mien.data.AffectNet": (write_affectnet, "affectnet7"),
    "mien.data.SFEW": (write_sfew, "sfew"),
    "mien.data.ExpW": (write_expw, "expw"),
    "mien.data.AffWild2": (affwild2, "affwild2"),
    "mien.data.CIFAR10": (lambda root: write_cifar10(root, "bin"), "cifar10"),
    "mien.data.Folder": (folder, "rafdb"),
}


def two_steps(file: Path, data: Path, *options: str) -> list[str]:
    told = yaml.safe_load(file.read_text())
    name = told["model"]["class_path"].rpartition(".")[2].partition("_")[0]
    name = {"apvit": "Small", "arbex": "Balanced", "sparsifiner": "Sparse"}.get(name, "Plain")
    own = {
        "--model.class_path": f"{__name__}.{name}",
        "--init": "{}",
        "--freeze": "[]",
        "--rest": "[image]" if "rest" in told else "[]",
        "--teachers": "[]",
        "--data.init_args.path": str(data),
        "--faces.batch_size": "4",
        "--faces.landmarks_cache": "null",
        "--trainer.max_steps": "2",
        "--trainer.val_check_interval": "2",
        "--trainer.check_val_every_n_epoch": "null",
        "--trainer.log_every_n_steps": "1",
        "--trainer.accelerator": "cpu",
    }
    scales = {part: scale for part, scale in told["task"].get("lr_scale", {}).items() if part == "image"}
    own["--task.lr_scale"] = str(scales)
    return [str(file), *(word for pair in own.items() for word in pair), *options]


@pytest.mark.parametrize("file", RECIPES, ids=lambda path: path.stem)
def test_two_steps_of_every_recipe(file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    told = yaml.safe_load(file.read_text())
    write, order = SETS[told["data"]["class_path"]]
    (tmp_path / "data").mkdir()
    assert main(["train", *two_steps(file, write(tmp_path / "data"))]) == 0, capsys.readouterr().err
    out = Path("runs") / file.stem
    with open(out / "metrics.csv", newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["loss"]]
    assert len(rows) == 2 and all(math.isfinite(float(row["loss"])) for row in rows)
    header = read_header(out / "last.safetensors")
    assert header["training"]["steps"] == 2 and math.isfinite(header["training"]["metrics"]["val_accuracy"])
    assert labels_of(header) == (ORDERS[order] if order else EXPRESSIONS)
    network = load_network(out / "last.safetensors", trust=True)
    assert network(torch.randn(2, 3, 112, 112)).isfinite().all()
    if isinstance(network, Balanced):
        assert all(row[f"loss_{name}"] for row in rows for name in ("balanced", "anchors", "center"))
    if isinstance(network, Small):
        wanted = told["model"]["init_args"]
        assert network.keep_patches == wanted["keep_patches"] and network.keep_rate == [1.0, wanted["keep_rate"]]
        assert network.head.weight.any()


def test_the_recipe_of_two_heads_learns_both(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    file = next(file for file in RECIPES if file.stem == "apvit_affwild2")
    assert main(["train", *two_steps(file, affwild2(tmp_path / "data"))]) == 0
    header = read_header("runs/apvit_affwild2/last.safetensors")
    assert [len(output.labels) for output in outputs_of(header)] == [7, 12]
    network = load_network("runs/apvit_affwild2/last.safetensors", trust=True)
    assert network.action_units.weight.any() and network.head.weight.any()


@pytest.mark.parametrize("file", RECIPES, ids=lambda path: path.stem)
def test_recipes_name_parts_that_there_are(file):
    told = yaml.safe_load(file.read_text())
    with torch.device("meta"):
        network = build(told["model"])
    names = [name for name, _ in network.named_parameters()]
    for part in told.get("init", {}):
        assert part in names or network.get_submodule(part) is not None  # one parameter, or all of a part
    for prefix in [*told.get("freeze", []), *told.get("rest", []), *told["task"].get("lr_scale", {})]:
        assert any(name.startswith(prefix) for name in names), prefix


def test_a_recipe_makes_of_a_named_network_what_its_call_makes(monkeypatch):
    """A recipe fills in every option that a network passes on: those of its size are not among them."""
    for kind in (nn.Linear, nn.Conv2d):  # shapes alone are compared
        monkeypatch.setattr(kind, "reset_parameters", lambda self: None)
    options = ArgumentParser()
    options.add_subclass_arguments(Network, "model", required=True)  # as `parser` does
    made = 0
    for name in dir(networks):
        make = getattr(networks, name)
        if not inspect.isfunction(make) or "num_classes" not in inspect.signature(make).parameters:
            continue
        path = f"mien.networks.{name}"
        recipe = options.parse_args([f"--model.class_path={path}", "--model.init_args.num_classes=8"])
        with torch.device("meta"):
            right = make(num_classes=8)
            network = options.instantiate(Namespace(model=recipe.model), instantiate_groups=False).model
        shapes, expected = ({n: t.shape for n, t in x.state_dict().items()} for x in (network, right))
        assert type(network) is type(right) and shapes == expected, name
        made += 1
    assert made >= 37


def test_the_twins_differ_in_their_pooling_alone():
    pooled, unpooled = (
        yaml.safe_load(next(file for file in RECIPES if file.stem == f"apvit_mobile{name}_ferplus").read_text())
        for name in ("", "_unpooled")
    )
    for recipe, name, pooling in ((pooled, "", (160, 0.9)), (unpooled, "_unpooled", (None, 1.0))):
        arguments = recipe["model"]["init_args"]
        assert recipe.pop("name") == f"apvit_mobile{name}_ferplus"
        assert (arguments.pop("keep_patches"), arguments.pop("keep_rate")) == pooling
    assert pooled == unpooled


PAPER = {  # learning rate, epochs or steps, patches, rate of the tokens
    "rafdb": (1e-3, 40, 160, 0.9),
    "ferplus": (1e-3, 20, 160, 0.9),
    "affectnet": (5e-4, 6_000, 160, 0.9),
    "sfew": (1e-3, 40, 120, 0.9),
    "expw": (5e-4, 9_000, 80, 0.6),
    "affwild2": (1e-3, 150_000, 80, 0.6),
    "cifar10": (1e-3, 40, 120, 0.9),
}


def test_what_is_called_the_default_model_is_it():
    """The recipes of its three phases, what `make train-default` makes of them, and no other."""
    phases = {DEFAULT_MODEL, f"{DEFAULT_MODEL}_2", f"{DEFAULT_MODEL}_3"}
    for file in RECIPES:
        head = file.read_text().partition("\nname:")[0].lower()
        if "default model" in head or "train-default" in head:
            assert yaml.safe_load(file.read_text())["name"] in phases, file
    rules = (RECIPES[0].parents[1] / "Makefile").read_text()
    assert f"DEFAULT ?= src/mien/models/{DEFAULT_MODEL}\n" in rules
    assert f"LAST := runs/{DEFAULT_MODEL}_3/best.safetensors\n" in rules
    assert f"mien train recipes/{DEFAULT_MODEL}$$phase.yaml" in rules


COME_WITH_MIEN = {path.name for path in MODELS.iterdir() if path.is_dir()}


def test_recipes_say_how_the_files_are_made_that_they_start_from():
    """Another recipe's run, or what a command makes: in its header, or in that of a recipe named there."""
    runs = {yaml.safe_load(file.read_text())["name"]: file.name for file in RECIPES}
    heads = {file.name: file.read_text().partition("\nname:")[0] for file in RECIPES}
    for file in RECIPES:
        said = heads[file.name] + "".join(heads[name] for name in re.findall(r"recipes/(\w+\.yaml)", heads[file.name]))
        for source in yaml.safe_load(file.read_text()).get("init", {}).values():
            path = Path(source.partition("#")[0])
            if path.parts[0] == "runs":
                assert path.parts[1] in runs and path.name in ("best.safetensors", "last.safetensors"), (file, path)
                assert f"recipes/{runs[path.parts[1]]}" in said, (file, path)
            elif source.partition("#")[0] not in COME_WITH_MIEN:
                made = rf"(mien convert|python benchmarks/\w+\.py) .*{re.escape(str(path))}"
                assert re.search(made, said), (file, path)


@pytest.mark.parametrize("name", PAPER)
def test_recipes_of_the_paper_say_what_it_says(name):
    file = next(file for file in RECIPES if file.stem == f"apvit_{name}")
    config = parser().parse_args(["--config", str(file)])
    rate, length, patches, tokens = PAPER[name]
    sgd = config.task.optimizer.init_args
    assert (sgd.lr, sgd.momentum, sgd.weight_decay, sgd.nesterov) == (rate, 0.9, 5e-4, False)
    by_steps = length > 1000
    assert (config.trainer.max_steps if by_steps else config.trainer.max_epochs) == length
    assert config.task.schedule == ("cosine" if by_steps else "epoch_cosine")
    assert (config.trainer.gradient_clip_val, config.task.warmup, config.task.decay_bias) == (10.0, 0.0, True)
    assert (config.faces.batch_size, config.faces.targets) == (128, "label")
    arguments = config.model.init_args
    assert (arguments.keep_patches, arguments.keep_rate) == (patches, tokens)
    assert config.augment.class_path.endswith(".APViTAugment") and not config.augment.init_args.bgr_compat
    header = file.read_text()
    assert all(f"# {part}:" in header for part in ("From the paper", "From the code", "Undetermined", "Command"))
