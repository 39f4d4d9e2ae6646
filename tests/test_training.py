"""Runs: small ones, whole, cut and resumed; and the parts that they are made of."""

import csv
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mien.__main__ import main
from mien.checkpoint import labels_of, read_header
from mien.classifier import Classifier, find_checkpoint
from mien.data import Folder, Row
from mien.errors import CheckpointError, MienError
from mien.faces import crop, open_picture
from mien.losses import weighted_cross_entropy
from mien.networks import APViT, Network, Normalize, build, load_network, mobilefacenet, save_network
from mien.nn import BatchTransformer, MoH
from mien.nn.grid import to_tokens
from mien.training.augment import APViTAugment, Augment, Erase, Jpeg, Resample, Tint, mix_up
from mien.training.callbacks import Average, MetricsFile, Waiting
from mien.training.crops import GREY48, Crops
from mien.training.faces import Batches, FaceData, Order, count_repeats, weigh_classes
from mien.training.run import parser, start_from, train
from mien.training.sam import SAM
from mien.training.task import Task, learning_rate
from mien.training.teachers import Teachers

ROOT = Path(__file__).parents[1]
LABELS = ("neutral", "happiness", "anger")


class Pooled(APViT):
    """Sixteen patches, two blocks, and a list of how many patches and what rates each step of training kept."""

    kept: list[tuple[int | None, list[float]]] = []

    def __init__(self, *, num_classes: int = 3, keep_patches: int | None = 9, keep_rate: float = 0.6):
        sizes = {"patch_size": 28, "embed_dim": 8, "depth": 2, "num_heads": 2}
        super().__init__(image=None, num_classes=num_classes, keep_patches=keep_patches, keep_rate=keep_rate, **sizes)

    def training_logits(self, images):
        self.kept.append((self.keep_patches, self.keep_rate))
        return super().training_logits(images)


class Tiny(Network):
    """Two sets of logits, batch norm, dropout and an index: what a run has to carry along, and nothing more."""

    loss_weights = {"vit": 2.0, "other": 1.0}
    seen: list[torch.Tensor] = []

    def __init__(self, *, num_classes: int = 3, dim: int = 6):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, dim, 16, 16), nn.BatchNorm2d(dim), nn.ReLU())
        self.register_buffer("index", torch.arange(50), persistent=False)
        self.dropout, self.head, self.other = nn.Dropout(0.2), nn.Linear(dim, num_classes), nn.Linear(dim, num_classes)

    def forward_features(self, images):
        return self.trunk(images).mean((2, 3))

    def forward_head(self, features):
        return self.head(self.dropout(features))

    def training_logits(self, images):
        self.seen.append(images.clone())
        features = self.forward_features(images)
        return {"vit": self.forward_head(features), "other": self.other(features)}


class Stopping(Tiny):
    """One that stands still in its fifth step where the environment says so."""

    def training_logits(self, images):
        if "STOPS" in os.environ and len(self.seen) == 4:
            time.sleep(600)
        return super().training_logits(images)


class Routed(Tiny):
    """Two mixers with a loss of their own."""

    def __init__(self, *, num_classes: int = 3, dim: int = 8):
        super().__init__(num_classes=num_classes, dim=dim)
        self.mixers = nn.ModuleList(MoH(dim, 4) for _ in range(2))

    def forward_features(self, images):
        tokens = to_tokens(self.trunk(images))
        for mixer in self.mixers:
            tokens = tokens + mixer(tokens)
        return tokens.mean(1)


class Remembering(Tiny):
    """With a branch that asks past faces, too."""

    loss_weights = {"vit": 2.0, "bt": 1.0, "cba": 1.0}
    asked: list[int] = []

    def __init__(self, *, num_classes: int = 3, dim: int = 6):
        super().__init__(num_classes=num_classes, dim=dim)
        self.batch_transformer = BatchTransformer(dim, num_classes, memory=6)
        self.other = None

    def training_logits(self, images):
        self.seen.append(images.clone())
        maps = self.trunk(images)
        logits = self.forward_head(maps.mean((2, 3)))
        told = {"vit": logits, **self.batch_transformer(maps, logits)}
        past = self.batch_transformer.past
        self.asked.append(0 if past is None else len(past))
        return told

    def begin_step(self, done):
        self.batch_transformer.remember()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three expressions, a dozen faces to learn from and six to be judged by: stripes of noise on three greys."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, each in (("train", 4), ("validation", 2)):
        for grey, label in zip((60, 120, 180), LABELS, strict=True):
            (root / split / label).mkdir(parents=True)
            for i in range(each):
                picture = np.full((48, 48, 3), grey, np.uint8)
                picture[8 * i : 8 * i + 8] = draw.integers(0, 256, (8, 48, 3))
                Image.fromarray(picture).save(root / split / label / f"{i}.png")
    return root


def write_recipe(pictures: Path, **changes) -> str:
    """With changes, task__sam_rho=0.1, into the working folder; its path."""
    whole = {
        "name": "tiny",
        "model": {"class_path": f"{__name__}.Tiny", "init_args": {"num_classes": 3}},
        "data": {"class_path": "mien.data.Folder", "init_args": {"path": str(pictures)}},
        "faces": {"batch_size": 4, "aligned": 0.0},
        "task": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2}}},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
        "every": 1000,
    }
    for path, value in changes.items():
        *parents, last = path.split("__")
        block = whole
        for parent in parents:
            block = block.setdefault(parent, {})
        block[last] = value
    Path("recipe.yaml").write_text(yaml.safe_dump(whole))
    return "recipe.yaml"


@pytest.fixture
def recipe(tmp_path, pictures, monkeypatch):
    """Writes a recipe with changes and returns its path; the working folder is a new one."""
    monkeypatch.chdir(tmp_path)
    Tiny.seen.clear()
    Pooled.kept.clear()
    return partial(write_recipe, pictures)


@pytest.fixture(scope="module")
def uncut(pictures, tmp_path_factory):
    """The folder of a run of a kind (CUTS) that nothing has cut, and how many batches its network saw."""

    @cache
    def run(kind: str) -> tuple[Path, int]:
        folder = tmp_path_factory.mktemp(kind.replace(" ", "_"))
        seen, kept = len(Tiny.seen), len(Pooled.kept)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            train([write_recipe(pictures, **CUTS[kind]), "--out", str(folder / "whole")])
        return folder / "whole", len(Tiny.seen) - seen + len(Pooled.kept) - kept

    return run


def weights(folder: str | Path, name: str = "last") -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / f"{name}.safetensors")


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a), [name for name in a if not torch.equal(a[name], b[name])]


def table(folder: str | Path) -> list[dict[str, str]]:
    with open(Path(folder) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# a whole run


def test_a_run_leaves_checkpoints_a_table_and_its_recipe(recipe, capfd):
    file = recipe(licence="CC0", notes={"paper": "none"}, seed=3)
    assert main(["train", file, "--every", "4"]) == 0
    out, err = capfd.readouterr()
    assert out == f"runs{os.sep}tiny\n"
    assert "loss=" in err and "val_accuracy=" in err and "val_macro_f1=" in err and "6/6" in err
    lines = [line.strip() for line in err.replace("\r", "\n").split("\n") if line.strip()]
    assert lines[-1].startswith("runs/tiny: 6 steps, ")
    told = [line for line in lines[:-1] if not line.startswith("tiny: ")]
    assert [line.partition(":")[0] for line in told] == ["tiny, step 3", "tiny, step 6"]

    assert {path.name for path in Path("runs/tiny").iterdir()} == {
        "best.safetensors",
        "finished.json",
        "last.safetensors",
        "metrics.csv",
        "recipe.yaml",
    }
    rows = table("runs/tiny")
    assert [int(row["step"]) for row in rows] == list(range(6))
    assert all(float(row["loss"]) > 0 and float(row["loss_vit"]) > 0 and float(row["loss_other"]) > 0 for row in rows)
    for row in rows:
        assert float(row["loss"]) == pytest.approx(2 * float(row["loss_vit"]) + float(row["loss_other"]), rel=1e-4)
    assert [bool(row["val_accuracy"]) for row in rows] == [False, False, True] * 2

    header = read_header("runs/tiny/last.safetensors")
    assert header["model"] == {"class_path": f"{__name__}.Tiny", "init_args": {"num_classes": 3, "dim": 6}}
    assert labels_of(header) == LABELS
    assert header["preprocess"] == GREY48 | {"trained_on": ["as is"]}
    training = header["training"]
    assert (training["recipe"], training["licence"], training["paper"], training["seed"]) == ("tiny", "CC0", "none", 3)
    assert training["data"] == "Folder, train" and training["steps"] == 6
    assert training["metrics"]["val_accuracy"] == pytest.approx(float(rows[-1]["val_accuracy"]), abs=1e-5)
    best = read_header("runs/tiny/best.safetensors")["training"]["metrics"]["val_accuracy"]
    assert best == pytest.approx(max(float(row["val_accuracy"] or 0) for row in rows), abs=1e-5)


def test_losses_of_mixers_have_their_share(recipe):
    runs = {}
    for weight in (0.0, 100.0):
        model = {"class_path": f"{__name__}.Routed", "init_args": {"num_classes": 3}}
        run = train([recipe(model=model, task__aux_weight=weight, trainer__max_epochs=1, name=f"weight{weight}")])
        runs[weight], rows = weights(run), table(run)
        assert len(rows) == 3
        for row in rows:
            loss, vit, other, aux = (float(row[name]) for name in ("loss", "loss_vit", "loss_other", "loss_aux"))
            assert loss == pytest.approx(2 * vit + other + weight * aux, rel=1e-4)
            assert 1.9 < aux < 3  # the mean of two mixers: 2 where heads are asked alike, 3 where two are asked always
    assert not torch.equal(*(run["mixers.0.router.weight"] for run in runs.values()))
    assert "loss_aux" not in table(train([recipe(trainer__max_epochs=1)]))[0]


def test_checkpoints_answer_alike_in_a_new_process(recipe, monkeypatch):
    Path("own_network.py").write_text("""
from torch import nn
from mien.networks import Network

class Own(Network):
    def __init__(self, *, num_classes: int):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(3, 6, 16, 16), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, num_classes)

    def forward_features(self, images):
        return self.trunk(images).mean((2, 3))

    def forward_head(self, features):
        return self.head(features)
""")
    monkeypatch.syspath_prepend(Path.cwd())
    train([recipe(model={"class_path": "own_network.Own", "init_args": {"num_classes": 3}}, trainer__max_epochs=1)])
    network = load_network("runs/tiny/last.safetensors", trust=True)
    images = torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    code = """
import torch
from mien.networks import load_network
network = load_network("runs/tiny/last.safetensors", trust=True)
images = torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(0))
print(network(images).softmax(1).tolist())
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == network(images).softmax(1).tolist()


def test_the_recipe_that_was_kept_gives_the_same_run(recipe):
    first = train([recipe(trainer__max_epochs=1), "--seed", "5", "--task.optimizer.init_args.lr", "0.02"])
    again = train(["--config", str(first / "recipe.yaml"), "--out", "again"])
    assert_same(weights(first), weights(again))
    other = train([recipe(), "--seed", "6", "--out", "other"])
    assert any(not torch.equal(t, weights(other)[name]) for name, t in weights(first).items())


# cut and resumed

CUTS = {
    "plain": {},
    "balanced and accumulated in bf16": {
        "faces__balance": 1.0,
        "trainer__gradient_clip_val": 0.5,
        "trainer__accumulate_grad_batches": 2,
        "trainer__max_epochs": 3,
        "trainer__precision": "bf16-mixed",
        "task__schedule": "exponential",
        "task__gamma": 0.5,
    },
    "oversampled": {
        "faces__oversample": "reciprocal",
        "faces__subset": 9,  # 2, 3 and 4 of a class, 14 an epoch
        "faces__train_size": 48,
        "augment": {"class_path": "mien.training.augment.APViTAugment"},
        "task__schedule": "epoch_cosine",
    },
    "gradual": {
        "model": {"class_path": f"{__name__}.Pooled"},
        "pooling": "gradual",
        "trainer__max_epochs": 3,
        "ema": 0.7,
    },
    "steps": {
        "trainer__max_epochs": None,
        "trainer__max_steps": 8,
        "trainer__val_check_interval": 2,
        "trainer__check_val_every_n_epoch": None,
    },
    "remembering": {"model": {"class_path": f"{__name__}.Remembering"}, "task__sam_rho": 0.1, "ema": 0.7},
}


@pytest.mark.parametrize(
    "name, every, fails_at",
    [
        ("plain", 1, 4),
        ("balanced and accumulated in bf16", 1, 5),
        ("oversampled", 3, 5),
        ("gradual", 2, 3),
        ("steps", 2, 3),
        ("steps", 3, 5),
        ("remembering", 2, 3),
    ],
)
def test_a_run_that_is_resumed_ends_as_one_that_was_not_cut(name, every, fails_at, recipe, uncut, monkeypatch):
    """In the middle of an epoch, after one, and with steps lost between the checkpoint and the failure."""
    whole, passes = uncut(name)
    file = recipe(**CUTS[name])
    cut_after(fails_at * (2 if "task__sam_rho" in CUTS[name] else 1), monkeypatch, file, "--every", str(every))
    assert Path("runs/tiny/resume.ckpt").exists()
    Tiny.seen.clear()
    Pooled.kept.clear()
    cut = train([file])
    assert len(Tiny.seen) + len(Pooled.kept) < passes
    assert_same(weights(cut), weights(whole))
    assert_same(weights(cut, "best"), weights(whole, "best"))
    assert table(cut) == table(whole)
    kept = [read_header(Path(folder) / "last.safetensors")["training"]["metrics"] for folder in (cut, whole)]
    assert kept[0] == kept[1]


def test_a_run_that_was_killed_goes_on(recipe, uncut):
    """A real process, a real kill; and what the command prints, which is its own words only."""
    file = recipe(model__class_path=f"{__name__}.Stopping")
    command = [sys.executable, "-m", "mien", "train", file, "--every", "1"]
    environment = os.environ | {"PYTHONPATH": os.fspath(Path(__file__).parent), "STOPS": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        while run.poll() is None and not Path("runs/tiny/resume.ckpt").exists():
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        out, err = run.communicate()
    assert run.returncode == -signal.SIGKILL, err
    assert not out
    told = [line for line in err.replace("\r", "\n").split("\n") if line.strip() and not line.startswith("tiny")]
    assert not told

    cut = train([file])
    assert 0 < len(Tiny.seen) < 6
    assert_same(weights(cut), weights(uncut("plain")[0]))
    steps = [int(row["step"]) for row in table(cut)]
    assert steps == sorted(set(steps)) and len(steps) >= 5 and steps[-1] == 5  # one may fall to the kill


def cut_after(steps: int, monkeypatch, *arguments: str) -> None:
    """A run whose power is cut in the step behind so many."""
    step, count = Task.training_step, [0]

    def failing(task, batch, index):
        count[0] += 1
        if count[0] > steps:
            raise RuntimeError("the power is cut")
        return step(task, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "training_step", failing)
        with pytest.raises(RuntimeError, match="the power is cut"):
            train(list(arguments))


def test_fresh_starts_anew(recipe, uncut, monkeypatch):
    first, _ = uncut("plain")
    assert [row["epoch"] for row in table(first)] == list("000111")
    file = recipe()
    cut_after(4, monkeypatch, file)
    Tiny.seen.clear()
    train([file])
    assert len(Tiny.seen) == 3  # from the end of the first epoch on
    Tiny.seen.clear()
    assert_same(weights(train([file, "--fresh"])), weights(first))
    assert len(Tiny.seen) == 6 and len(table("runs/tiny")) == 6


def test_a_finished_run_is_not_written_over(recipe, capsys):
    """Whatever is in the folder: what `mien calibrate` made of it, or a run of before there was finished.json."""
    best = train([recipe(trainer__max_epochs=1)]) / "best.safetensors"
    before = best.read_bytes()
    for _ in range(2):
        assert main(["train", recipe(trainer__max_epochs=1, task__schedule="constant")]) == 1
        err = capsys.readouterr().err.splitlines()[-1]
        assert re.match("mien: runs/tiny: holds a finished run .val_accuracy .*--out, or --fresh", err)
        assert best.read_bytes() == before
        Path("runs/tiny/finished.json").unlink(missing_ok=True)
    assert main(["train", "recipe.yaml", "--fresh"]) == 0 and best.read_bytes() != before


def test_what_a_fresh_run_begins_with_is_nothing_of_another(recipe, monkeypatch):
    """One that is cut before its first step is kept does not go on from the run that lay there."""
    cut_after(4, monkeypatch, recipe())
    cut_after(0, monkeypatch, recipe(model__init_args={"num_classes": 3, "dim": 7}), "--fresh")
    assert [path.name for path in Path("runs/tiny").iterdir()] == ["recipe.yaml"]


def test_a_run_that_kept_nothing_says_so(recipe, capsys):
    assert main(["train", recipe(trainer__limit_val_batches=0)]) == 1
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("mien: runs/tiny: nothing is kept: the run was not valid")
    )
    assert not Path("runs/tiny/finished.json").exists()


def test_another_network_does_not_go_on_from_there(recipe, monkeypatch, capsys):
    cut_after(4, monkeypatch, recipe())
    before = Path("runs/tiny/recipe.yaml").read_text()
    assert main(["train", recipe(model__init_args={"num_classes": 3, "dim": 7})]) == 1
    assert "runs/tiny/resume.ckpt: holds a run of another network" in capsys.readouterr().err
    assert Path("runs/tiny/recipe.yaml").read_text() == before

    Path("runs/tiny/resume.ckpt").write_bytes(b"cut short")
    assert main(["train", "recipe.yaml"]) == 1
    assert "runs/tiny/resume.ckpt: damaged: " in capsys.readouterr().err
    assert main(["train", "recipe.yaml", "--fresh"]) == 0


def _other_labels(root: Path) -> None:
    for split in ("train", "validation"):
        (root / split / "anger").rename(root / split / "disgust")


def _other_pictures(root: Path) -> None:
    shutil.copy(root / "train/anger/0.png", root / "train/anger/1.png")


def _other_places(root: Path) -> None:
    (root / "train/anger/0.png").rename(root / "train/happiness/9.png")


@pytest.mark.parametrize(
    "spoil, changes, what",
    [
        (_other_labels, {}, "other labels .neutral, happiness, anger; now neutral, happiness, disgust."),
        (_other_pictures, {}, "other data"),
        (_other_places, {}, "other data"),
        (lambda root: None, {"faces__preprocess": GREY48 | {"color": "rgb"}}, "other preprocessing"),
    ],
)
def test_other_labels_data_and_preprocessing_do_not_go_on(spoil, changes, what, recipe, pictures, monkeypatch, capsys):
    shutil.copytree(pictures, "data")
    changes |= {"data__init_args": {"path": "data"}}
    cut_after(4, monkeypatch, recipe(data__init_args={"path": "data"}))
    spoil(Path("data"))
    assert main(["train", recipe(**changes)]) == 1
    assert re.search(f"runs/tiny/resume.ckpt: holds a run of {what}: give another --out", capsys.readouterr().err)


def test_the_same_data_elsewhere_goes_on(recipe, pictures, monkeypatch):
    shutil.copytree(pictures, "data")
    cut_after(4, monkeypatch, recipe(data__init_args={"path": "data"}))
    Path("data").rename("moved")
    assert train([recipe(data__init_args={"path": "moved"})])


@pytest.mark.parametrize(
    "at, number, code", [(at, *end) for at in (2, 3) for end in ((signal.SIGINT, 130), (signal.SIGTERM, 143))]
)
def test_a_run_that_is_told_to_stop_goes_on_from_there(at, number, code, recipe, uncut, monkeypatch, capsys):
    """In the middle of an epoch, and in its last step, whose validation is waited for; `every` is far away."""
    whole, _ = uncut("plain")
    file, step, count = recipe(), Task.training_step, [0]

    def told(task, batch, index):
        count[0] += 1
        if count[0] == at:
            os.kill(os.getpid(), number)
        return step(task, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "training_step", told)
        earlier = signal.getsignal(number)
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)  # whatever handler a command of an earlier test has left
        before = signal.getsignal(number)
        try:
            ended = main(["train", file])
        except SystemExit as end:
            ended = end.code
        finally:
            after = signal.signal(number, earlier)
        assert (ended, after) == (code, before)
    assert "runs/tiny/resume.ckpt: the same command goes on from there" in capsys.readouterr().err
    assert count == [at]
    Tiny.seen.clear()
    assert_same(weights(train([file])), weights(whole))
    assert len(Tiny.seen) == 6 - at
    assert_same(weights("runs/tiny", "best"), weights(whole, "best"))


def test_a_run_ends_once_nothing_gets_better(recipe):
    file = recipe(trainer__max_epochs=9, trainer__limit_train_batches=1)
    run = train([file, "--patience", "2", "--task.optimizer.init_args.lr", "0"])
    assert len(table(run)) == 3  # the best epoch, and two that are no better
    assert json.loads((run / "finished.json").read_text())["steps"] == 3
    file = recipe(trainer__max_epochs=4, trainer__limit_train_batches=1)
    assert len(table(train([file, "--monitor", "val_loss", "--out", "whole"]))) == 4


def test_norms_stay_as_they_began(recipe):
    run = train([recipe(), "--still_norms"])
    kept = weights(run)
    assert torch.equal(kept["trunk.1.running_mean"], torch.zeros(6)) and kept["trunk.1.num_batches_tracked"] == 0
    assert not torch.equal(kept["trunk.1.weight"], torch.ones(6))  # they learn all the same


@pytest.mark.parametrize("before", [signal.SIG_DFL, lambda *_: sys.exit(143)], ids=["nobody", "a caller"])
def test_a_run_that_is_told_to_stop_stops(before, recipe, monkeypatch):
    step = Task.training_step

    def told(task, batch, index):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(task, batch, index)

    monkeypatch.setattr(Task, "training_step", told)
    found = signal.signal(signal.SIGTERM, before)
    try:
        with pytest.raises(SystemExit) as end:
            main(["train", recipe()])
    finally:
        signal.signal(signal.SIGTERM, found)
    assert end.value.code == 143


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt, 130), (MienError("the disk is full"), 1)])
def test_a_run_that_ends_early_says_so(error, code, recipe, monkeypatch, capsys):
    def failing(*_):
        raise error

    monkeypatch.setattr(Task, "training_step", failing)
    handler = signal.getsignal(signal.SIGINT)
    assert main(["train", recipe()]) == code
    assert signal.getsignal(signal.SIGINT) is handler
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last == {130: "mien: interrupted", 1: "mien: the disk is full"}[code]


def test_workers_draw_what_one_process_draws(recipe):
    alone = train([recipe(trainer__max_epochs=1), "--out", "alone"])
    helped = train(["recipe.yaml", "--out", "helped", "--faces.num_workers", "1"])
    assert_same(weights(alone), weights(helped))


# what a recipe can ask for


def test_sam_looks_twice_at_the_same_faces(recipe):
    train([recipe(task__sam_rho=0.05, trainer__max_epochs=1)])
    assert len(Tiny.seen) == 6
    for first, second in zip(Tiny.seen[::2], Tiny.seen[1::2], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(Tiny.seen[0], Tiny.seen[2])


def test_a_batch_is_past_once_the_next_begins(recipe):
    """However often SAM looked at it; and the memory is in no checkpoint."""
    Remembering.asked.clear()
    folder = train([recipe(task__sam_rho=0.05, model={"class_path": f"{__name__}.Remembering"})])
    assert Remembering.asked == [0, 0, 4, 4] + [6] * 8
    assert not [name for name in weights(folder) if "past" in name or "latest" in name]


def test_sam_changes_the_run(recipe):
    runs = {
        name: weights(train([recipe(trainer__max_epochs=1, **changes), "--out", name]))
        for name, changes in {
            "plain": {},
            "sam": {"task__sam_rho": 0.05},
            "adaptive": {"task__sam_rho": 0.05, "task__sam_adaptive": True},
        }.items()
    }
    heads = [run["head.weight"] for run in runs.values()]
    assert not torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])


def teacher(seed: int, temperature: float = 1.0) -> Path:
    """A file that names the expressions of LABELS."""
    torch.manual_seed(seed)
    size = {"num_classes": 3, "img_size": 112, "patch_size": 28, "embed_dim": 8, "num_heads": 2}
    model = {"class_path": "mien.networks.CaiT", "init_args": size | {"depth": 1, "class_depth": 1}}
    header = {
        "mien": 1,
        "model": model,
        "id2label": {str(i): label for i, label in enumerate(LABELS)},
        "preprocess": GREY48,
        "temperature": temperature,
        "training": {"data": "", "recipe": "", "metrics": {}, "licence": ""},
    }
    network, path = build(model), Path(f"teacher{seed}.safetensors")
    torch.nn.init.normal_(network.head.weight)
    save_network(path, network, header)
    return path


def test_teachers_answer_to_what_is_learned_and_are_no_part_of_the_run(recipe, monkeypatch):
    asked = []

    def constant(self, images):
        asked.append(images.clone())
        return torch.tensor([0.0, 0.0, 1.0]).expand(len(images), 3)

    alone = train([recipe(name="alone")])
    Tiny.seen.clear()
    monkeypatch.setattr(Teachers, "__call__", constant)
    teachers = [str(teacher(0))]
    options = {"teachers": teachers, "task__sam_rho": 0.05, "task__mixup": 0.4, "trainer__max_epochs": 1}
    taught = train([recipe(**options, name="taught")])
    assert len(asked) == 3 and len(Tiny.seen) == 6  # once a batch, though SAM looks twice
    assert all(torch.equal(images, seen) for images, seen in zip(asked, Tiny.seen[::2], strict=True))
    assert weights(taught).keys() == weights(alone).keys()

    # wholly taught that all is anger, with no label to say otherwise
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}
    options = {"task__optimizer": sgd, "task__warmup": 0.0, "trainer__max_epochs": 6}
    last = table(train([recipe(teachers=teachers, task__teach=1.0, name="angry", **options)]))[-1]
    assert float(last["val_accuracy"]) == pytest.approx(1 / 3) and float(last["loss_vit"]) < 0.2


def test_teachers_are_a_mean_of_calibrated_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images, files = torch.rand(2, 3, 112, 112), [teacher(0), teacher(1, temperature=2.0)]
    first, second = (load_network(file).eval() for file in files)
    answers = Teachers(files, LABELS, GREY48)(images)
    torch.testing.assert_close(answers, (first(images).softmax(1) + (second(images) / 2).softmax(1)) / 2)
    assert not answers.requires_grad and (first(images).softmax(1) - answers).abs().max() > 0.01
    small, whole = torch.rand(2, 3, 56, 56), Teachers(files, LABELS, GREY48)
    torch.testing.assert_close(whole(images, mirrored=True), (answers + whole(images.flip(3))) / 2)
    larger = torch.nn.functional.interpolate(small, (112, 112), mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole(small), whole(larger))  # in the size that they know
    other = GREY48 | {"mean": [0.2, 0.3, 0.4], "std": [0.1, 0.2, 0.3]}  # of the student: the teachers see their own
    shown = [Normalize(each)(images) for each in (GREY48, other)]
    assert (whole(shown[1]) - whole(shown[0])).abs().max() > 1e-4
    torch.testing.assert_close(Teachers(files, LABELS, other)(shown[1]), whole(shown[0]))
    with pytest.raises(MienError, match="teacher0.safetensors is shown faces with another color"):
        Teachers(files, LABELS, GREY48 | {"color": "rgb"})


def test_a_teacher_that_looks_at_the_mirror_image_itself_runs_once():
    name, image, batches = "mobilefacenet_ferplus", torch.rand(1, 3, 112, 112), []
    teachers = Teachers([name], labels_of(read_header(find_checkpoint(name))), GREY48)
    teachers.networks[0][0].register_forward_hook(lambda *_: batches.append(1))
    torch.testing.assert_close(teachers(image, mirrored=True), teachers(image))
    assert len(batches) == 2


def test_averaged_weights_are_validated_and_kept(recipe, monkeypatch):
    monkeypatch.setattr("mien.training.run.finish", lambda *_: None)  # which removes what is looked at here
    folder = train([recipe(ema=0.8), "--every", "6"])
    state = torch.load(folder / "resume.ckpt", weights_only=True)
    averaged, current = state["state_dict"], state["current_model_state"]
    kept = weights(folder)
    assert not torch.equal(kept["head.weight"], current["network.head.weight"])
    for name, tensor in kept.items():
        assert torch.equal(tensor, averaged[f"network.{name}"]), name


def test_average_keeps_whole_numbers_and_constants():
    module = nn.Linear(2, 2)
    module.register_buffer("index", torch.arange(3000))
    module.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))
    average = AveragedModel(module, use_buffers=True, **Average(0.9)._kwargs)
    start = module.weight.detach().clone()
    average.update_parameters(module)
    with torch.no_grad():
        module.weight.add_(1)
    for _ in range(20):
        average.update_parameters(module)
    assert torch.equal(average.module.index, torch.arange(3000))
    assert torch.equal(average.module.mean, module.mean)
    torch.testing.assert_close(average.module.weight.data, start + 1 - 0.9**20)


def test_gradients_are_clipped(recipe):
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 1.0}}
    file = recipe(task__optimizer=sgd, task__warmup=0.0)
    moved = {}
    for name, options in {"free": [], "clipped": ["--trainer.gradient_clip_val", "1e-6"]}.items():
        run = train([file, "--out", name, "--keep_all", *options])
        early, late = (weights(run, f"step_{steps}") for steps in (3, 6))
        learned = [part for part in early if not part.rpartition(".")[2].startswith(("running", "num_batches"))]
        moved[name] = sum((late[part] - early[part]).square().sum() for part in learned) ** 0.5
    assert moved["free"] > 1e-2
    assert moved["clipped"] < 3 * 1.1e-6  # as many steps, of a learning rate of at most 1


@pytest.mark.parametrize("able", [True, False])
def test_a_cpu_that_bf16_slows_down_is_told_of(able, recipe, monkeypatch, capsys):
    monkeypatch.setattr("mien.training.run.computes_bf16", lambda: able)
    for precision in ("bf16-mixed", "32-true"):
        train([recipe(trainer__precision=precision, trainer__max_epochs=1), "--fresh"])
        hint = "--trainer.precision 32-true" in capsys.readouterr().err
        assert hint == (not able and precision == "bf16-mixed")


def test_bf16_computes_in_bf16_and_keeps_fp32(recipe, monkeypatch):
    seen = []
    forward = Tiny.forward_head

    def watched(network, features):
        logits = forward(network, features)
        seen.append(logits.dtype)
        return logits

    monkeypatch.setattr(Tiny, "forward_head", watched)
    folder = train([recipe(trainer__precision="bf16-mixed")])
    assert torch.bfloat16 in seen
    assert {t.dtype for t in weights(folder).values()} == {torch.float32, torch.int64}
    assert all(math.isfinite(float(row["loss"])) for row in table(folder))


def test_initial_weights_come_from_checkpoints(recipe):
    first = train([recipe()])
    second = recipe(init={"": "runs/tiny/last.safetensors"}, trainer__max_epochs=1)
    with pytest.MonkeyPatch.context() as patch:
        loaded = {}
        patch.setattr(Task, "configure_optimizers", lambda task: loaded.update(task.network.state_dict()) or stop())
        with pytest.raises(InterruptedError):
            train([second, "--out", "second"])
    assert_same({name: t for name, t in loaded.items() if name != "index"}, weights(first))

    network = Tiny(num_classes=5)
    before = network.head.weight.detach().clone()
    start_from(network, {"trunk": "runs/tiny/last.safetensors#trunk", "trunk.1": "runs/tiny/last.safetensors#trunk.1."})
    assert torch.equal(network.trunk[0].weight, weights(first)["trunk.0.weight"])
    assert torch.equal(network.head.weight, before)
    start_from(network, {"trunk.0.bias": "runs/tiny/last.safetensors#trunk.1.bias"})  # a single parameter
    assert torch.equal(network.trunk[0].bias, weights(first)["trunk.1.bias"]) and network.trunk[0].bias.requires_grad
    for init, reason in [
        ({"head.bias": "runs/tiny/last.safetensors#head.bias"}, r"its shape is \(3,\); head.bias is \(5,\)"),
        ({"head.bias": "runs/tiny/last.safetensors"}, r"no such tensor; head.bias is \(5,\)"),
        ({"trunk": "runs/tiny/last.safetensors"}, "tensors do not fit: 6 missing|tensors do not fit"),
        ({"head": "runs/tiny/last.safetensors#head"}, "bias is \\(3,\\), not \\(5,\\)"),
        ({"head": "gone.safetensors"}, "gone.safetensors: no such file"),
    ]:
        with pytest.raises(CheckpointError, match=reason):
            start_from(network, init)
    with pytest.raises(MienError, match="--init: the network has no part 'tail'"):
        start_from(network, {"tail": "runs/tiny/last.safetensors"})


def test_frozen_parameters_stay_as_they_are(recipe):
    run = train([recipe(freeze=["trunk", "head.b"]), "--keep_all"])
    early, late = (weights(run, f"step_{steps}") for steps in (3, 6))
    moved = {name for name in early if not torch.equal(early[name], late[name])}
    statistics = {f"trunk.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved == {"head.weight", "other.weight", "other.bias"} | statistics


def test_pooling_sets_in_over_the_epochs(recipe, monkeypatch):
    """Sixteen patches, of which nine are kept in the end; validated as the checkpoint says."""
    judged = []
    step = Task.validation_step

    def watched(task, batch, index):
        judged.append((task.network.keep_patches, task.network.keep_rate))
        return step(task, batch, index)

    monkeypatch.setattr(Task, "validation_step", watched)
    pooled = {"model": {"class_path": f"{__name__}.Pooled"}, "trainer__limit_train_batches": 2}
    folder = train([recipe(**pooled, pooling="gradual", trainer__max_epochs=5, trainer__val_check_interval=1)])
    assert [k for k, _ in Pooled.kept] == [k for k in (16, 14, 12, 11, 9) for _ in range(2)]
    assert [first for _, (first, _) in Pooled.kept] == [1.0] * 10
    assert [second for _, (_, second) in Pooled.kept] == pytest.approx(np.repeat([1.0, 0.9, 0.8, 0.7, 0.6], 2))
    assert len(judged) == 2 * 10 and all(each == (9, [1.0, 0.6]) for each in judged)
    network = load_network(folder / "best.safetensors", trust=True)
    assert (network.keep_patches, network.keep_rate) == (9, [1.0, 0.6])

    Pooled.kept.clear()
    train([recipe(**pooled, pooling="gradual"), "--trainer.max_epochs", "1", "--out", "one"])
    assert Pooled.kept == [(9, [1.0, 0.6])] * 2
    Pooled.kept.clear()
    model = {"class_path": f"{__name__}.Pooled", "init_args": {"keep_patches": None, "keep_rate": 0.5}}
    train([recipe(**pooled | {"model": model}, pooling="gradual"), "--trainer.max_epochs", "2", "--out", "tokens"])
    assert Pooled.kept == [(None, [1.0, 1.0])] * 2 + [(None, [1.0, 0.5])] * 2
    Pooled.kept.clear()
    train([recipe(**pooled), "--trainer.max_epochs", "2", "--out", "constant"])
    assert Pooled.kept == [(9, [1.0, 0.6])] * 4


def stop():
    raise InterruptedError


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (["--nosuch", "3"], "unrecognized arguments: --nosuch 3"),
        (["--task.warmp", "3"], "unrecognized arguments: --task.warmp 3"),
        (
            ["--model.init_args.width", "3"],
            f"\"model\": Problem with given class_path '{__name__}.Tiny': Option 'width'",
        ),
        (["--model.class_path", "mien.networks.gone"], "module 'mien.networks' has no attribute 'gone'\n"),
        (["--data.init_args.rot", "x"], "Option 'rot' is not accepted\n"),
        (["--faces.batch_size", "many"], 'Parser key "faces.batch_size"'),
        (["--task.schedule", "linear"], 'Parser key "task.schedule"'),
        (["--monitor", "loss"], 'Parser key "monitor"'),
        (["--faces.seed", "3"], "unrecognized arguments"),
        (["--every", "0"], 'Parser key "every"'),
        (["--ema", "1.5"], 'Parser key "ema"'),
    ],
)
def test_misuse_is_told_in_one_line(arguments, reason, recipe, capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", recipe(), *arguments])
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith("mien train: ") and reason in err
    assert not Path("runs").exists()


def test_a_misspelt_line_of_a_recipe_is_named(recipe, capsys):
    for changes in (
        {"modle": {"class_path": "x"}},
        {"trainer__max_epoch": 2},
        {"task__optimizer__init_args__lrate": 0.1},
    ):
        with pytest.raises(SystemExit) as end:
            main(["train", recipe(**changes)])
        assert end.value.code == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and next(iter(changes)).rpartition("__")[2] in err, err


def test_a_recipe_that_is_none_is_told_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("broken.yaml").write_text("name: [unclosed\n")
    Path("list.yaml").write_text("- 1\n")
    Path("misspelt.yaml").write_text("modle: {}\n")
    for arguments, reason in [
        ([], "required: "),
        (["gone.yaml"], "gone.yaml"),
        (["broken.yaml"], "broken.yaml is no recipe: while parsing"),
        (["list.yaml"], "list.yaml is no recipe"),
        (["misspelt.yaml"], "required: "),
        (["--name", "x"], "required: "),
    ]:
        with pytest.raises(SystemExit) as end:
            main(["train", *arguments])
        assert end.value.code == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("mien train: ") and reason in err, err


def test_help_lists_the_options_of_a_recipe(capsys):
    with pytest.raises(SystemExit) as end:
        main(["train", "--help"])
    assert end.value.code == 0
    assert "--task.sam_rho" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"model__init_args": {"num_classes": 8}}, "the network tells 8 classes apart, and .* has 3: neutral, "),
        ({"task__lr_scale": {"imagee": 0.1}}, "no parameter's name begins with 'imagee'"),
        ({"freeze": ["trunk", "tail"]}, "--freeze: no parameter's name begins with 'tail'"),
        ({"task__sam_rho": 0.1, "trainer__accumulate_grad_batches": 2}, "SAM looks twice at one batch"),
        ({"task__sam_rho": 0.1, "trainer__precision": "16-mixed"}, "SAM does not go with the loss scaling"),
        ({"faces__train_size": 48}, "training faces would come in 48 pixels, but the network's input has 112"),
        (
            {"task__schedule": "epoch_cosine", "trainer__max_epochs": None, "trainer__max_steps": 5},
            "--task.schedule epoch_cosine counts epochs: it needs --trainer.max_epochs",
        ),
        ({"pooling": "gradual"}, "--pooling gradual: this network keeps all of its patches"),
        ({"faces__oversample": "sqrt", "faces__balance": 1.0}, "not both"),
        ({"task__class_weights": [1.0, 2.0]}, "--task.class_weights: 3 numbers of 0 or more, not"),
        ({"data__init_args": {"path": "gone"}}, "gone: no such folder"),
        ({"faces__train_split": "learn"}, "no split 'learn', only train, validation: --faces.train_split train"),
        ({"faces__validation_split": "test"}, "no split 'test', only .*: --faces.validation_split validation"),
        ({"faces__preprocess": GREY48 | {"color": "blue"}}, 'neither "rgb" nor "grey"'),
        ({"faces__preprocess": {"align": "none"}}, 'the recipe: its header has a "preprocess"'),
        pytest.param(
            {"trainer__accelerator": "gpu"},
            "No supported gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has one"),
        ),
        ({"init": {"trunk": "gone.safetensors"}}, "gone.safetensors: no such file"),
        ({"teachers": ["gone.safetensors"]}, "gone.safetensors: no such file"),
        ({"teachers": ["mobilefacenet_ferplus"]}, "--teachers: mobilefacenet_ferplus names neutral, .*, not neutral, "),
        ({"task__teach": 1.5}, "teach lies between 0 and 1, not 1.5"),
        ({"task__mixup": -0.1}, "mixup is 0 or more"),
    ],
)
def test_what_would_spoil_a_run_is_told_before_it(changes, reason, recipe, capsys):
    assert main(["train", recipe(**changes)]) == 1
    err = capsys.readouterr().err.strip().split("\n")
    assert len(err) == 1 or (len(err) == 2 and err[0].startswith("tiny: ") and "supported" in reason)
    assert re.match(f"mien: .*{reason}", err[-1]), err


def test_malformed_rows_are_told_once_and_left_out(recipe, pictures, tmp_path, caplog):
    shutil.copytree(pictures, tmp_path / "data")
    (tmp_path / "data/train/anger/text.png").write_text("not a picture")
    whole = (tmp_path / "data/train/anger/0.png").read_bytes()
    (tmp_path / "data/train/anger/short.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "data/train/puzzled").mkdir()
    (tmp_path / "data/train/puzzled/0.png").write_bytes(whole)
    named = {"path": str(tmp_path / "data"), "labels": list(LABELS)}
    with caplog.at_level(logging.WARNING, "mien"):
        folder = train([recipe(data__init_args=named, trainer__max_epochs=1)])
    told = [record.getMessage() for record in caplog.records if record.name.startswith("mien")]
    assert sorted(message.partition(": ")[2].partition(": ")[0].rpartition("/")[2] for message in told[:3]) == [
        "puzzled",
        "short.png",
        "text.png",
    ]
    assert told[3].endswith("3 malformed of 15 rows left out of 'train'") and len(told) == 4
    assert len(table(folder)) == 3


def test_a_network_of_miens_trains(recipe, capsys):
    """The default model's, once through the command: batch branch, landmarks, and a checkpoint that needs no trust."""
    model = {"class_path": "mien.networks.btn_mobile", "init_args": {"num_classes": 3}}
    few = {"trainer__max_epochs": 1, "trainer__limit_train_batches": 1, "trainer__limit_val_batches": 1}
    assert main(["train", recipe(model=model, **few, ema=0.9)]) == 0
    rows = table("runs/tiny")
    assert {"loss", "loss_vit", "loss_bt", "loss_cba", "val_accuracy", "val_macro_f1", "val_loss"} <= rows[-1].keys()
    network = load_network("runs/tiny/best.safetensors", bt_detach_value=True)
    assert network(torch.zeros(1, 3, 112, 112)).shape == (1, 3)


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_understood(file):
    config = parser().parse_args(["--config", str(file)])
    assert config.name == file.stem
    if config.cache:
        assert config.augment is None
        return
    augment = build(config.augment.as_dict())
    size = config.faces.preprocess["input_size"] if config.faces.preprocess else 112
    train_size = config.faces.train_size or size
    assert augment(torch.rand(2, 3, train_size, train_size)).shape == (2, 3, size, size)


# faces


def rows(count: int = 6) -> list[Row]:
    draw = np.random.default_rng(0)
    targets = np.array([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3], [0.0, 0.0, 1.0]], np.float32)
    return [Row(draw.integers(0, 256, (48, 48, 3), np.uint8), targets[i % 3], "train") for i in range(count)]


def test_targets_are_votes_or_the_label():
    votes, label = Crops(rows(), GREY48), Crops(rows(), GREY48, label_share=1.0)
    for i in range(3):
        face, target, number = votes[i]
        assert face.shape == (112, 112, 3) and face.dtype == torch.uint8
        assert target.tolist() == rows()[i].target.tolist() and number == i
        assert label[i][1].tolist() == np.eye(3)[i].tolist()
    both = Crops(rows(), GREY48, label_share=0.5)[0][1]
    assert both.dtype == torch.float32 and both.tolist() == pytest.approx([0.75, 0.15, 0.1])
    row = Row(np.zeros((4, 4, 3), np.uint8), np.array([0.5, 0.5, 0], np.float32), "train", label=1)
    assert Crops([row], GREY48, label_share=1.0)[0][1].tolist() == [0, 1, 0]  # the rule of the set


def test_faces_are_aligned_by_chance():
    picture = open_picture(ROOT / "examples" / "hopper.jpg")
    landmarks = np.array([[[240, 180], [300, 180], [270, 215], [245, 245], [295, 245]]], np.float32)
    missing = np.full((1, 5, 2), np.nan, np.float32)
    odd = np.zeros((1, 5, 2), np.float32)
    row = Row(picture, np.array([1.0], np.float32), "train")
    aligned, whole = crop(picture, GREY48, landmarks[0]), crop(picture, GREY48)
    assert not np.array_equal(aligned, whole)
    crops = Crops([row], GREY48, landmarks, aligned=0.4)
    assert np.array_equal(crops[0, 0.39][0], aligned) and np.array_equal(crops[0, 0.4][0], whole)
    assert np.array_equal(crops[0][0], whole)  # when judged
    for nothing in (missing, odd, None):
        assert np.array_equal(Crops([row], GREY48, nothing, aligned=1.0)[0, 0.0][0], whole)


def test_landmarks_are_found_once(tmp_path, monkeypatch):
    root = tmp_path / "data"
    for split in ("train", "validation"):
        (root / split / "neutral").mkdir(parents=True)
        Image.open(ROOT / "examples" / "hopper.jpg").save(root / split / "neutral" / "face.png")
        Image.new("RGB", (64, 64), "grey").save(root / split / "neutral" / "nobody.png")
    cache = tmp_path / "new" / "landmarks.npy"
    faces = FaceData(Folder(str(root)), aligned=1.0, landmarks_cache=str(cache))
    faces.setup()
    assert faces.preprocess["trained_on"] == ["arcface112"]
    found = np.load(cache)["landmarks"]
    assert found.shape == (2, 5, 2) and np.isnan(found[1]).all()
    assert {p.name for p in cache.parent.iterdir()} == {cache.name}
    left, right, nose, *mouth = found[0]
    assert left[0] < nose[0] < right[0] and max(left[1], right[1]) < nose[1] < min(mouth[0][1], mouth[1][1])
    picture = open_picture(root / "train" / "neutral" / "face.png")
    assert np.array_equal(faces.train_faces[0, 0.0][0], crop(picture, GREY48, found[0]))
    assert np.array_equal(faces.validation_faces[0][0], crop(picture, GREY48))

    monkeypatch.setattr("mien.training.landmarks.YuNet", lambda **_: pytest.fail("the cache was not used"))
    both = FaceData(Folder(str(root)), aligned=0.5, landmarks_cache=str(cache), train_split="train+validation")
    both.setup()
    again = both.train_faces.landmarks
    assert len(again) == 4 and np.array_equal(again[:2], found, equal_nan=True)
    assert np.array_equal(again[2:], found, equal_nan=True)  # the same pictures
    FaceData(
        Folder(str(root)), GREY48 | {"align": "none"}, aligned=0.5
    ).setup()  # nothing to align, nothing to look for


def test_landmarks_of_other_pictures_are_added_and_not_taken_for_these(tmp_path):
    root, cache = tmp_path / "data", tmp_path / "landmarks.npy"
    for split in ("train", "validation"):
        (root / split / "neutral").mkdir(parents=True)
    face = Image.open(ROOT / "examples" / "hopper.jpg")
    face.save(root / "train" / "neutral" / "face.png")
    face.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(root / "validation" / "neutral" / "face.png")
    landmarks = []
    for split in ("train", "validation", "train+validation"):
        faces = FaceData(Folder(str(root)), aligned=1.0, landmarks_cache=str(cache), train_split=split)
        faces.setup()
        landmarks.append(faces.train_faces.landmarks)
    assert abs(landmarks[0] - landmarks[1]).max() > 5 and len(np.load(cache)) == 2
    assert np.array_equal(np.concatenate(landmarks[:2]), landmarks[2])

    for bad, line in ((np.zeros((2, 5, 2)), "do not say of which pictures"), (b"", "no landmarks of pictures")):
        cache.write_bytes(bad) if isinstance(bad, bytes) else np.save(cache, bad)
        with pytest.raises(MienError, match=f"{line}; remove it"):
            faces.setup()


@pytest.mark.parametrize(
    "aligned, align, trained_on",
    [
        (0.0, "arcface112", ["as is"]),
        (0.5, "arcface112", ["as is", "arcface112"]),
        (1.0, "arcface112", ["arcface112"]),
        (0.5, "none", ["as is"]),
    ],
)
def test_preprocess_says_what_was_shown(aligned, align, trained_on, pictures):
    faces = FaceData(Folder(str(pictures)), GREY48 | {"align": align}, aligned=aligned)
    assert faces.preprocess["trained_on"] == trained_on
    assert GREY48["trained_on"] == ["as is", "arcface112"]


def test_subset_is_the_same_rows_every_time(pictures):
    def chosen():
        faces = FaceData(Folder(str(pictures)), aligned=0.0, subset=5)
        faces.setup()
        return [row.name for row in faces.train_faces.rows]

    assert chosen() == chosen() and len(set(chosen())) == 5


def test_order_shows_every_row_once_an_epoch():
    def order(epoch, seen=0, seed=0):
        return list(Order(20, None, seed, lambda: (epoch, seen)))

    first = order(0)
    assert sorted(i for i, _ in first) == list(range(20)) and first == order(0)
    assert first != order(1) and first != order(0, seed=1)
    assert order(0, seen=8) == first[8:] and order(0, seen=20) == []
    assert all(0 <= chance < 1 for _, chance in first) and len({chance for _, chance in first}) == 20


def test_balance_draws_classes_alike(pictures):
    class Lopsided:
        outputs = ()
        labels = ("a", "b")

        def rows(self, split):
            target = {0: np.array([1, 0], np.float32), 1: np.array([0, 1], np.float32)}
            return [Row(np.zeros((2, 2, 3), np.uint8), target[int(i >= 900)], split) for i in range(1000)]

    def counts(balance):
        faces = FaceData(Lopsided(), aligned=0.0, balance=balance, batch_size=10)
        faces.setup()
        drawn = [i for i, _ in faces.train_dataloader().sampler]
        assert len(drawn) == 1000
        return Counter(i >= 900 for i in drawn)[True], len(set(drawn))

    assert counts(0.0) == (100, 1000)
    balanced, different = counts(1.0)
    assert 440 < balanced < 560 and different < 1000
    assert 190 < counts(0.5)[0] < 310  # 100 to 900 become 10 to 30


RAFDB = {
    "surprise": 1290,
    "fear": 281,
    "disgust": 717,
    "happiness": 4772,
    "sadness": 1982,
    "anger": 705,
    "neutral": 2524,
}


def test_rare_classes_are_repeated_as_published():
    labels = np.repeat(np.arange(7), list(RAFDB.values()))
    assert len(labels) == 12_271
    repeats = count_repeats(labels, "sqrt")
    assert [int(repeats[labels == c].max()) for c in range(7)] == [2, 3, 2, 1, 1, 2, 1]
    assert len(Order(len(labels), None, 0, lambda: (0, 0), repeats)) == repeats.sum() == 15_545
    by_hand = [math.ceil(4772 / count) for count in RAFDB.values()]
    assert [int(count_repeats(labels, "reciprocal")[labels == c].min()) for c in range(7)] == by_hand
    unknown = count_repeats(np.array([-1] * 90 + [0] * 2 + [1]), "reciprocal")
    assert unknown.tolist() == [1] * 92 + [2]
    assert count_repeats(np.array([0, 1] * 3 + [-1] * 30), "sqrt").tolist() == [2] * 6 + [1] * 30


def test_processes_share_an_epoch():
    """Batch for batch what one process has with as many faces, resumed too; what does not go round is left out."""
    for weights, repeats in ((None, None), (np.arange(1.0, 24), None), (None, np.arange(23) % 3)):

        def order(seen=0, share=(0, 1), weights=weights, repeats=repeats):
            return list(Order(23, weights, 0, lambda: (1, seen), repeats, share))

        whole, shares = order(), [order(share=(rank, 3)) for rank in range(3)]
        assert [len(share) for share in shares] == [len(whole) // 3] * 3
        together = [face for faces in zip(*shares, strict=True) for face in faces]
        assert together == whole[: len(together)] and len(whole) - len(together) < 3
        assert order(seen=4, share=(1, 3)) == shares[1][4:]


def test_processes_share_what_they_are_judged_by(pictures):
    """Every face once, though there are not as many for each."""
    seen = []
    for rank in range(4):
        faces = FaceData(Folder(str(pictures)), aligned=0.0, batch_size=4)
        faces.trainer = SimpleNamespace(global_rank=rank, world_size=4)
        faces.setup()
        seen += [label for batch in faces.val_dataloader() for label in batch[2].tolist()]
    assert sorted(seen) == [0, 0, 1, 1, 2, 2]
    faces.trainer = SimpleNamespace(global_rank=0, world_size=7)
    with pytest.raises(MienError, match="6 faces are too few for 7 processes"):
        faces.val_dataloader()


def test_landmarks_are_looked_for_by_one_process(tmp_path, pictures, monkeypatch):
    faces = FaceData(Folder(str(pictures)), aligned=1.0, landmarks_cache=str(tmp_path / "landmarks.npy"))
    faces.prepare_data()
    monkeypatch.setattr("mien.training.landmarks.YuNet", lambda **_: pytest.fail("the cache was not used"))
    faces.setup()
    assert len(faces.train_faces.landmarks) == 12


def test_order_repeats_rows():
    repeats = np.array([1, 3, 0, 2])

    def order(epoch, seen=0):
        return list(Order(4, None, 0, lambda: (epoch, seen), repeats))

    assert sorted(i for i, _ in order(0)) == [0, 1, 1, 1, 3, 3]
    assert order(0) == order(0) != order(1) and order(0, seen=4) == order(0)[4:]
    assert len({chance for _, chance in order(0)}) == 6  # the same row is not the same face


def test_classes_weigh_by_their_counts():
    shares = np.array([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    counts = np.array([2.5, 0.5, 1])
    for power in (1.0, 0.5):
        weights = weigh_classes(shares, power)
        assert (weights[:3] * counts).sum() == pytest.approx(4) and weights[3] == 0
        np.testing.assert_allclose(weights[:3] / weights[0], (counts[0] / counts) ** power)
    np.testing.assert_allclose(weigh_classes(shares, 1.0)[:3], 4 / (3 * counts))

    class Votes:
        outputs = ()
        labels = ("a", "b")

        def rows(self, split):
            return [Row(np.zeros((2, 2, 3), np.uint8), np.array([0.75, 0.25], np.float32), split)] * 4

    for targets, expected in (("votes", [2 / 3, 2]), ("label", [1, 0])):
        faces = FaceData(Votes(), aligned=0.0, targets=targets)
        faces.setup()
        np.testing.assert_allclose(faces.class_weights(1.0), expected)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_weighted_cross_entropy_is_torchs_and_takes_votes(smoothing):
    torch.manual_seed(0)
    logits, target = {"logits": torch.randn(6, 3).double()}, torch.tensor([0, 2, 2, 1, 0, 0])
    weights = torch.tensor([0.5, 1.0, 3.0])
    expected = nn.functional.cross_entropy(logits["logits"], target, weights.double(), label_smoothing=smoothing)
    for truth in (target, torch.eye(3)[target]):
        loss, _ = weighted_cross_entropy(logits, truth, {"logits": 1.0}, weights, smoothing)
        torch.testing.assert_close(loss, expected)
    votes = torch.tensor([[0.5, 0.3, 0.2]] * 6)
    loss, _ = weighted_cross_entropy(logits, votes, {"logits": 1.0}, weights)
    by_hand = -(weights * votes * logits["logits"].log_softmax(1)).sum() / (6 * (weights * votes[0]).sum())
    torch.testing.assert_close(loss, by_hand)


@pytest.mark.parametrize("how", ["inverse", "sqrt", [1.0, 2.0, 4.0]], ids=str)
def test_a_run_with_class_weights(how, recipe):
    """Of 2, 3 and 4 faces."""
    uneven = {"faces__subset": 9, "trainer__max_epochs": 1, "faces__targets": "label", "task__label_smoothing": 0.1}
    plain = train([recipe(**uneven), "--out", "plain"])
    weighted = train([recipe(**uneven, task__class_weights=how), "--out", "weighted"])
    assert float(table(plain)[0]["loss"]) != float(table(weighted)[0]["loss"])
    assert not torch.equal(weights(plain)["head.weight"], weights(weighted)["head.weight"])


def test_balance_and_oversampling_exclude_each_other(pictures):
    with pytest.raises(MienError, match="not both"):
        FaceData(Folder(str(pictures)), balance=1.0, oversample="sqrt")


def test_training_faces_come_larger_than_the_input(pictures):
    faces = FaceData(Folder(str(pictures)), GREY48 | {"align": "none"}, oversample="sqrt", train_size=40, batch_size=5)
    faces.setup()
    (images, *_), *rest = faces.train_dataloader()
    assert images.shape == (5, 40, 40, 3) and len(rest) == 1
    assert next(iter(faces.val_dataloader()))[0].shape[1:] == (112, 112, 3)
    assert faces.preprocess["resize"] == GREY48["resize"]


def test_last_batch_is_left_out_unless_it_is_the_only_one(pictures):
    for size, batches in ((5, 2), (4, 3), (12, 1), (50, 1)):
        faces = FaceData(Folder(str(pictures)), aligned=0.0, batch_size=size)
        faces.setup()
        assert len(faces.train_dataloader()) == batches == len(list(faces.train_dataloader()))
        assert isinstance(faces.train_dataloader(), Batches)
        assert sum(len(batch[0]) for batch in faces.val_dataloader()) == 6


# steps


def test_learning_rates():
    def rates(*arguments, steps=100, epochs=10):
        return [learning_rate(*arguments, steps, epochs)(step) for step in range(steps + 1)]

    cosine = rates("cosine", 0.1, 0.0)
    assert cosine[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert cosine[10] == 1 and cosine[55] == pytest.approx(0.5) and cosine[100] == 0
    assert all(a >= b for a, b in zip(cosine[10:], cosine[11:], strict=False))
    exponential = rates("exponential", 0.0, 0.98)
    assert exponential == pytest.approx([0.98 ** (i // 10) for i in range(101)])
    assert rates("constant", 0.0, 0.5) == [1.0] * 101
    assert rates("constant", 0.02, 0.5)[:3] == [0.5, 1.0, 1.0]
    assert rates("cosine", 1.0, 0.0)[99] == 1.0
    assert learning_rate("cosine", 0.0, 0.0, 1, 1)(0) == 1.0
    assert learning_rate("cosine", 0.0, 0.0, 10, 1)(15) == 0.0  # beyond the end
    by_epoch = rates("epoch_cosine", 0.0, 0.0)
    assert by_epoch[:100] == pytest.approx([0.5 * (1 + math.cos(math.pi * (i // 10) / 10)) for i in range(100)])
    assert len(set(by_epoch[:100])) == 10 and by_epoch[0] == 1.0 and by_epoch[100] == pytest.approx(0.0)


def test_groups_of_parameters():
    class Trainer:
        estimated_stepping_batches, max_epochs = 10, 2

    def groups(**options):
        def adamw(params):
            return torch.optim.AdamW(params, lr=0.1, weight_decay=0.5)

        network = Tiny()
        network.other.requires_grad_(False)
        task = Task(network, GREY48, 3, adamw, **options)
        task._trainer = Trainer()
        names = {p: name for name, p in network.named_parameters()}
        made = task.configure_optimizers()["optimizer"]
        assert isinstance(made, SAM) == ("sam_rho" in options)
        return {
            names[p]: (pytest.approx(group["initial_lr"]), group["weight_decay"])
            for group in made.param_groups
            for p in group["params"]
        }

    assert groups() == {
        "trunk.0.weight": (0.1, 0.5),
        "trunk.0.bias": (0.1, 0.0),
        "trunk.1.weight": (0.1, 0.0),
        "trunk.1.bias": (0.1, 0.0),
        "head.weight": (0.1, 0.5),
        "head.bias": (0.1, 0.0),
    }
    scaled = groups(lr_scale={"trunk": 0.2}, decay_bias=True, sam_rho=0.1)
    assert scaled["trunk.1.bias"] == (0.02, 0.5) and scaled["head.bias"] == (0.1, 0.5)


def test_sam_refuses_a_radius_of_nothing_and_keeps_its_state():
    with pytest.raises(ValueError, match="rho must be above 0"):
        SAM(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1), rho=0)
    states = []
    for resume in (False, True):
        p = nn.Parameter(torch.tensor([1.0, -2.0]))
        unused = nn.Parameter(torch.ones(1))
        sam = SAM(torch.optim.Adam([p, unused], lr=0.1), rho=0.05)

        def closure(p=p, sam=sam):
            sam.zero_grad()
            loss = (p**4).sum()
            loss.backward()
            return loss

        for i in range(4):
            if resume and i == 2:
                state = sam.state_dict()
                sam = SAM(torch.optim.Adam([p, unused], lr=0.5), rho=0.05)
                sam.load_state_dict(state)
            sam.step(lambda closure=closure, sam=sam: closure(sam=sam))
        assert torch.equal(unused.detach(), torch.ones(1))
        states.append(p.detach())
    assert torch.equal(*states)


def test_a_step_without_gradients_moves_nothing():
    p = nn.Parameter(torch.ones(2))
    SAM(torch.optim.SGD([p], lr=1.0)).step(lambda: torch.zeros(()))
    assert torch.equal(p.detach(), torch.ones(2))


def test_waiting_for_faces_is_told_from_the_steps_and_from_validation(monkeypatch):
    clock = iter([0.0, 1.0, 3.0, 9.0, 19.0, 20.0, 26.0])
    monkeypatch.setattr("mien.training.callbacks.time.monotonic", lambda: next(clock))
    waiting = Waiting()
    waiting.on_train_epoch_start(None, None)  # 1
    waiting.on_train_batch_start(None, None, None, 0)  # 2 s waited
    waiting.on_train_batch_end(None, None)  # a step of 6 s
    waiting.on_validation_end(None, None)  # 10 s of validation
    waiting.on_train_batch_start(None, None, None, 1)  # 1 s waited
    waiting.on_train_batch_end(None, None)  # a step of 6 s
    assert (waiting.waited, waiting.stepped, waiting.share) == (3.0, 12.0, 0.2)


def test_the_table_of_a_resumed_run_drops_what_was_lost(tmp_path):
    first = MetricsFile(tmp_path, False, int)
    for step in range(4):
        first.log_metrics({"loss": float(step)}, step)
    first.log_metrics({"val_accuracy": 0.5}, 3)
    second = MetricsFile(tmp_path, True, int)
    second.log_metrics({"loss": 20.0}, 2)
    assert table(tmp_path) == [
        {"step": "0", "loss": "0.0", "val_accuracy": ""},
        {"step": "1", "loss": "1.0", "val_accuracy": ""},
        {"step": "2", "loss": "20.0", "val_accuracy": ""},
    ]
    MetricsFile(tmp_path, False, int).log_metrics({"loss": 0.0}, 0)
    assert table(tmp_path) == [{"step": "0", "loss": "0.0"}]


# pictures


def test_augmentation_stays_in_range_and_changes_faces():
    torch.manual_seed(0)
    images = torch.rand(16, 3, 112, 112)
    out = Augment()(images)
    assert out.shape == images.shape and out.dtype == images.dtype and out.isfinite().all()
    assert out.min() >= 0 and out.max() <= 1
    assert ((out - images).abs().amax((1, 2, 3)) > 0.1).sum() >= 14
    assert Augment()(images[:1]).shape == (1, 3, 112, 112)


def test_augmentation_of_nothing_leaves_faces_as_they_are():
    images = torch.rand(8, 3, 112, 112)
    nothing = {"flip": 0.0, "degrees": 0.0, "translate": 0.0, "scale": (1.0, 1.0), "brightness": 0.0, "contrast": 0.0}
    still = Augment(**nothing, tint=0.0, resample_p=0.0, noise_p=0.0, erase_p=0.0)
    torch.testing.assert_close(still(images), images, atol=1e-4, rtol=0)
    flipped = Augment(**nothing | {"flip": 1.0}, tint=0.0, resample_p=0.0, noise_p=0.0, erase_p=0.0)
    torch.testing.assert_close(flipped(images), images.flip(-1), atol=1e-4, rtol=0)


def test_resampling_blurs_a_share_of_the_faces():
    torch.manual_seed(0)
    images = torch.rand(200, 3, 32, 32)
    out = Resample(smallest=8, largest=16, p=0.3)(images)
    changed = (out != images).any(3).any(2).any(1)
    assert 40 <= changed.sum() <= 80
    assert out[changed].std() < 0.7 * images[changed].std()
    with pytest.raises(ValueError, match="must rise from 2 up"):
        Resample(smallest=1)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_jpeg_loses_detail_and_keeps_colours(on_gpu, monkeypatch):
    """By OpenCV, and by what a GPU computes, here on the CPU."""
    if on_gpu:
        monkeypatch.setattr(Jpeg, "forward", Jpeg._on_gpu)
    torch.manual_seed(0)
    images = torch.rand(100, 3, 2, 2).repeat_interleave(24, 2).repeat_interleave(24, 3)
    out = Jpeg(p=0.4, quality=(10, 30), smallest=48)(images)
    changed = (out != images).flatten(1).any(1)
    assert 25 <= changed.sum() <= 55
    assert (out - images).abs().mean() < 0.02
    assert (out - images)[changed].flatten(1).abs().amax(1).min() > 0.05  # where two colours meet
    again = [Jpeg(p=1.0, quality=(q, q), smallest=48)(images) for q in (5, 95)]
    assert (again[0] - images).abs().mean() > 3 * (again[1] - images).abs().mean()
    with pytest.raises(ValueError, match="from 1 to 100"):
        Jpeg(quality=(0, 50))


def test_mix_up_mixes_faces_and_targets_alike():
    torch.manual_seed(0)
    target = torch.eye(64)
    images = target[:, :, None, None] * torch.ones(3, 1)  # (64, 64, 3, 1): a face that is its target
    mixed, told = mix_up(images, target, 1.0)
    torch.testing.assert_close(mixed, told[:, :, None, None].expand_as(mixed))
    torch.testing.assert_close(told.sum(1), torch.ones(64))
    torch.testing.assert_close(told.sum(0) > 0.5, torch.ones(64, dtype=torch.bool))  # every face leads once
    own = told.diagonal()
    assert own.min() >= 0.5 and 0.7 < own.mean() < 0.8 and own.std() > 0.1  # λ is even in [0.5, 1], a face each
    assert ((told > 0).sum(1) <= 2).all()
    gentle = mix_up(images, target, 0.1)[1].diagonal()
    assert gentle.mean() > 0.9


def test_tint_colours_grey():
    torch.manual_seed(0)
    grey = torch.rand(100, 1, 8, 8).expand(-1, 3, -1, -1)
    out = Tint(p=0.5)(grey)
    coloured = (out.std(1).amax((1, 2)) > 1e-3).sum()
    assert 60 <= coloured <= 90  # a factor or an exponent, each by half
    torch.testing.assert_close(Tint(p=0.0)(grey), grey, atol=1e-4, rtol=0)
    assert out.min() >= 0 and out.max() <= 1


STILL = {"rotate_p": 0.0, "crop": (1.0, 1.0), "flip": 0.0, "grey_p": 0.0, "jitter_p": 0.0, "erase_p": 0.0}


def only(**changes) -> APViTAugment:
    return APViTAugment(**(STILL | changes))


def test_apvits_augmentation_brings_faces_to_the_size_of_the_input():
    """As OpenCV resizes, bilinear and without antialiasing."""
    images = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    small = only(size=28)(images)
    by_hand = [cv2.resize(image.permute(1, 2, 0).numpy(), (28, 28)) for image in images]
    np.testing.assert_allclose(small.permute(0, 2, 3, 1), by_hand, atol=1e-5)
    torch.testing.assert_close(only(size=64)(images), images)
    assert torch.equal(only(size=64).after(images), images)


def test_apvits_augmentation_turns_about_the_middle_over_black():
    torch.manual_seed(0)
    dot = torch.zeros(64, 3, 65, 65)
    dot[:, :, 32, 62] = dot[:, :, 32, 32] = 1.0
    turned = only(size=65, degrees=6.0, rotate_p=1.0)(dot)
    assert torch.allclose(turned[:, :, 32, 32], torch.ones(64, 3), atol=1e-4)
    y = (turned[:, 0, :, 50:].sum(2) * torch.arange(65)).sum(1) / turned[:, 0, :, 50:].sum((1, 2))
    angles = torch.rad2deg(torch.asin((y - 32) / 30))
    assert angles.abs().max() < 6.2 and angles.min() < -4 and angles.max() > 4
    corners = only(size=65, degrees=6.0, rotate_p=1.0)(torch.ones(8, 3, 65, 65))[:, :, 0, 0]
    assert corners.min() < 0.5  # black
    still = only(size=65, rotate_p=0.5)(dot)
    assert 20 < (still - dot).abs().amax((1, 2, 3)).lt(1e-4).sum() < 44


def test_apvits_augmentation_crops_squares():
    """Where a ramp begins and how steep it is tells the crop."""
    torch.manual_seed(0)
    ramp = torch.arange(100.0).expand(200, 3, 100, 100) / 100
    ramp = torch.stack([ramp[:, 0], ramp[:, 0].mT, ramp[:, 0]], 1)
    out = only(size=50, crop=(0.8, 1.0))(ramp) * 100
    width, height = ((out[:, c].amax((1, 2)) - out[:, c].amin((1, 2))) * 50 / 49 for c in (0, 1))
    torch.testing.assert_close(width, height, atol=0.1, rtol=0)
    share = (width / 100) ** 2
    assert 0.79 < share.min() < 0.82 and 0.98 < share.max() < 1.01 and abs(share.mean() - 0.9) < 0.015


def test_apvits_augmentation_greys_and_colours_in_either_order_of_channels():
    torch.manual_seed(0)
    images = torch.rand(6, 3, 16, 16)
    for bgr, weights in ((False, (0.299, 0.587, 0.114)), (True, (0.114, 0.587, 0.299))):
        grey = only(size=16, grey_p=1.0, bgr_compat=bgr)(images)
        luma = (images * torch.tensor(weights).view(3, 1, 1)).sum(1, keepdim=True).expand_as(images)
        torch.testing.assert_close(grey, luma, atol=1e-4, rtol=0)
    hue = {"size": 16, "jitter": (0.0, 0.0, 0.0, 0.1), "jitter_p": 1.0}
    torch.manual_seed(1)
    rgb = only(**hue)(images)
    torch.manual_seed(1)
    bgr = only(**hue, bgr_compat=True)(images)
    torch.manual_seed(1)
    torch.testing.assert_close(bgr, only(**hue)(images.flip(1)).flip(1))
    assert not torch.allclose(bgr, rgb, atol=1e-3)
    jittered = only(size=16, jitter_p=0.8)(images.repeat(50, 1, 1, 1))
    changed = (jittered - images.repeat(50, 1, 1, 1)).abs().amax((1, 2, 3)) > 1e-3
    assert 215 < changed.sum() < 265
    assert jittered.min() >= 0 and jittered.max() <= 1


def test_erasing_fills_rectangles_with_noise_of_the_sizes_asked_for():
    torch.manual_seed(0)
    images = torch.full((600, 3, 40, 60), 9.0)
    out = Erase(p=0.5)(images)
    hole = (out != 9.0).all(1)
    rows, columns = hole.any(2), hole.any(1)
    h, w = rows.sum(1), columns.sum(1)
    assert torch.equal(hole, rows[:, :, None] & columns[:, None]) and torch.equal((out != 9.0).any(1), hole)
    for there in (rows, columns):  # in one piece
        assert ((there[:, 1:] & ~there[:, :-1]).sum(1) + there[:, 0] <= 1).all()
    erased = h > 0
    assert 250 < erased.sum() < 350
    share, ratio = (h * w / 2400)[erased], (h / w)[erased]
    assert share.min() > 0.015 and share.max() < 0.35 and ratio.max() < 4
    assert 0.15 < share.mean() < 0.185  # evenly
    assert 1.3 < ratio.median() < 1.9  # evenly, where the logarithm's would be 1, and the tallest do not fit
    noise = out[hole[:, None].expand_as(out)]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert torch.equal(Erase(p=1.0, scale=(4.0, 4.0))(images), images)  # nothing fits
    assert torch.equal(Erase(p=0.0)(images), images)


def test_erasing_comes_after_normalisation(pictures):
    task = Task(Tiny(), GREY48, 3, torch.optim.AdamW, augment=only(erase_p=1.0, erase_scale=(0.3, 0.3)))
    task._trainer = SimpleNamespace(fit_loop=SimpleNamespace(total_batch_idx=-1), global_rank=0)
    task.train()
    faces = torch.full((64, 112, 112, 3), 255, dtype=torch.uint8)
    images, *_ = task.on_after_batch_transfer((faces, None, None), 0)
    white = task.normalize(torch.ones(1, 3, 1, 1))
    noise = images[(images != white).expand_as(images)]
    assert 0.25 < noise.numel() / images.numel() < 0.35
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    task.eval()
    assert torch.equal(task.on_after_batch_transfer((faces, None, None), 0)[0], white.expand_as(images))


PREPROCESS = {
    "grey": GREY48,
    "posterpp": {
        "align": "none",
        "resize": [{"size": 224, "interpolation": "auto"}, {"size": 112, "interpolation": "nearest"}],
        "input_size": 112,
        "color": "rgb",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
}


@pytest.mark.parametrize("name", PREPROCESS)
def test_training_predicting_and_the_exported_graph_see_the_same(name, tmp_path):
    """One picture, three ways to a network, which hands out what it is given."""
    from mien.export import export_onnx

    preprocess = PREPROCESS[name]
    header = {
        "mien": 1,
        "model": {"class_path": "torch.nn.Identity", "init_args": {}},
        "id2label": {"0": "neutral"},
        "preprocess": preprocess,
    }
    export_onnx(tmp_path / "model.onnx", nn.Identity(), header)
    classifier = Classifier.from_pretrained(tmp_path / "model.onnx")
    landmarks = np.array([[240, 180], [300, 180], [270, 215], [245, 245], [295, 245]], np.float32)
    task = Task(mobilefacenet(), preprocess, 8, torch.optim.AdamW).eval()
    for picture in (ROOT / "examples" / "hopper.jpg", ROOT / "examples" / "astronaut.png"):
        image = open_picture(picture)
        row = Row(picture, np.ones(1, np.float32), "train")
        for marks in (None, landmarks):
            crops = Crops([row], preprocess, None if marks is None else marks[None], aligned=1.0)
            face = crops[0, 0.0][0]
            trained, *_ = task.on_after_batch_transfer((face[None], None, None), 0)
            predicted = classifier.crop(image, marks)
            assert np.array_equal(face, predicted)
            exported = classifier.engine(predicted[None])["logits"]
            np.testing.assert_allclose(exported, trained.numpy(), atol=2e-6)
            by_hand = predicted.astype(np.float64).transpose(2, 0, 1) / 255
            if preprocess["color"] == "grey":
                by_hand = (by_hand * np.array([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdims=True)
            mean, std = (np.array(preprocess[key])[:, None, None] for key in ("mean", "std"))
            np.testing.assert_allclose(exported[0], (by_hand - mean) / std, atol=2e-6)


def test_posterpp_keeps_every_second_pixel():
    """Of a picture of 224 pixels, as its published code does within the network."""
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    assert np.array_equal(crop(image, PREPROCESS["posterpp"]), image[::2, ::2])


def test_checkpoints_of_training_are_those_of_save_network(recipe, tmp_path):
    folder = train([recipe(trainer__max_epochs=1)])
    network = load_network(folder / "last.safetensors", trust=True)
    save_network(tmp_path / "again.safetensors", network, read_header(folder / "last.safetensors"))
    assert (tmp_path / "again.safetensors").read_bytes() == (folder / "last.safetensors").read_bytes()
