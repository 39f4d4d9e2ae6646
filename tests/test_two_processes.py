"""Two processes that share a batch, over gloo, against one that has all of it.

As a script it is the two: `test_two_processes.py FOLDER`.
"""

import csv
import os
import subprocess
import sys
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import distributed, nn

from mien.data import DataSet, Row
from mien.losses import weighted_cross_entropy
from mien.networks import BTN, Network, btn_mobile
from mien.nn import BatchTransformer, ReliabilityBalancing, class_batch_attention
from mien.training.augment import Augmentation

LOSS = {"bt": 1.0, "cba": 0.5, "action_units": 2.0}
CASES = {"gathered": {}, "remembered": {"memory": 24}, "of past faces alone": {"memory": 24, "gather": False}}


def prepare(dtype: torch.dtype, case: str):
    """A branch, another head, and three batches of 16 faces: maps, logits, targets and action units."""
    torch.manual_seed(0)
    branch = BatchTransformer(5, 3, features=4, **{"gather": True} | CASES[case]).train().to(dtype)
    units, batches = nn.Linear(5, 2).to(dtype), []
    for _ in range(3):
        target = torch.rand(16, 3, dtype=dtype)
        target /= target.sum(1, keepdim=True)
        target[[0, 2, 4, 5]] = 0  # so that the processes know of differently many
        truth = torch.randint(-1, 2, (16, 2)).to(dtype)
        batches.append((torch.randn(16, 5, 2, 2, dtype=dtype), torch.randn(16, 3, dtype=dtype), target, truth))
    return branch, units, batches


def attend(rank: int, processes: int, dtype: torch.dtype, case: str) -> dict[str, torch.Tensor]:
    """What came out last of a process's share, the losses, and the gradients."""
    branch, units, batches = prepare(dtype, case)
    modules, weights = nn.ModuleList([branch, units]), torch.tensor([0.5, 1.0, 2.0], dtype=dtype)
    for batch in batches:
        maps, logits, target, truth = (x[rank::processes].clone() for x in batch)
        maps.requires_grad_()
        logits.requires_grad_()
        out = branch(maps, logits) | {"action_units": units(maps.mean((2, 3)))}
        loss, parts = weighted_cross_entropy(out, target, LOSS, weights, 0.1, truth, mean)
        modules.zero_grad()
        loss.backward()
        branch.remember()
    grads = {f"grad.{name}": mean(p.grad) for name, p in modules.named_parameters()}
    inputs = {"grad.maps": maps.grad / processes, "grad.logits": logits.grad / processes}
    told = {name: t.detach() for name, t in (out | inputs).items()}
    return told | grads | {f"loss.{name}": mean(part.detach()) for name, part in (parts | {"all": loss}).items()}


def balance(rank: int, processes: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    balancing = ReliabilityBalancing(6, 3, gather=True).double().train()
    features, logits = (torch.randn(16, n).double()[rank::processes] for n in (6, 3))
    balanced, _ = balancing(features, logits, 0.5)
    balanced.square().mean().backward()
    grads = {f"grad.{name}": mean(p.grad) for name, p in balancing.named_parameters()}
    return {"balanced": balanced.detach()} | grads


def mean(x: torch.Tensor) -> torch.Tensor:
    if not distributed.is_initialized():
        return x
    x = x.clone()
    distributed.all_reduce(x)
    return x / distributed.get_world_size()


class Still(Augmentation):
    def forward(self, images):
        return images


class Asking(Network):
    """Its faces ask those of all processes, and past ones."""

    loss_weights = {"vit": 2.0, "bt": 1.0, "cba": 1.0, "action_units": 0.5}

    def __init__(self, *, num_classes: int = 3):
        super().__init__()
        self.conv, self.head, self.units = nn.Conv2d(3, 6, 56, 56), nn.Linear(6, num_classes), nn.Linear(6, 2)
        self.batch_transformer = BatchTransformer(6, num_classes, features=4, gather=True, memory=20)

    def forward_features(self, images):
        return self.conv(images).relu().mean((2, 3))

    def forward_head(self, features):
        return self.head(features)

    def training_pass(self, images):
        maps = self.conv(images).relu()
        features = maps.mean((2, 3))
        logits = self.head(features)
        branch = self.batch_transformer(maps, logits)
        return features, {"vit": logits, **branch, "action_units": self.units(features)}

    def begin_step(self, done):
        self.batch_transformer.remember()


class Uneven(DataSet):
    """25 faces to learn from, some without an expression, and seven to be judged by."""

    labels, splits, units = ("neutral", "happiness", "anger"), ("train", "validation"), ("AU1", "AU12")

    def __init__(self, path: str = "", check: bool = False):
        super().__init__(check)

    def read(self, split):
        draw = np.random.default_rng(len(split))
        for i in range(25 if split == "train" else 7):
            target = draw.dirichlet([0.5 * (1 + i % 3), 1.0, 0.3]).astype(np.float32)
            if i % 6 == 5 and split == "train":
                target[:] = 0
            units = draw.integers(-1, 2, 2).astype(np.float32)
            yield Row(draw.integers(0, 256, (56, 56, 3), np.uint8), target, split, units=units, name=str(i))


def recipe(folder: Path, name: str, processes: int) -> list[str]:
    told = {
        "name": name,
        "model": {"class_path": "test_two_processes.Asking"},
        "data": {"class_path": "test_two_processes.Uneven"},
        "faces": {"batch_size": 8 // processes, "aligned": 0.0, "balance": 0.5},
        "augment": {"class_path": "test_two_processes.Still"},
        "task": {
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}},
            "class_weights": "inverse",
            "label_smoothing": 0.1,
            "sam_rho": 0.05,
        },
        "ema": 0.7,
        "trainer": {
            "max_epochs": 2,
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "devices": processes,
            "strategy": "ddp" if processes > 1 else "auto",
        },
    }
    file = folder / f"{name}{os.environ.get('LOCAL_RANK', '')}.yaml"
    file.write_text(yaml.safe_dump(told))
    return [str(file), "--out", str(folder / name)]


def one_of_two(folder: Path, rank: int) -> None:
    from mien.training.run import train
    from mien.training.task import Task

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    told = {"balancing": balance(rank, 2)}
    for case in CASES:
        told |= {f"{case}, {dtype}": attend(rank, 2, dtype, case) for dtype in (torch.float64, torch.float32)}
    torch.save(told, folder / f"{rank}.pt")

    train(recipe(folder, "two", 2))
    step, count = Task.training_step, [0]

    def failing(task, batch, index):
        count[0] += 1
        if count[0] > 2 * 5:  # SAM looks twice
            raise RuntimeError("the power is cut")
        return step(task, batch, index)

    Task.training_step = failing
    arguments = recipe(folder, "cut", 2)
    try:
        train([*arguments, "--every", "4"])
    except RuntimeError as error:
        assert "the power is cut" in str(error)
    Task.training_step = step
    train(arguments)
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes made of it all."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {"PYTHONPATH": os.fspath(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, __file__, str(folder)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def answers(two):
    return [torch.load(two / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("case", [*CASES, "balancing"])
def test_two_of_8_faces_are_one_of_16(answers, case, dtype):
    """Answers, losses with weights and missing labels, and gradients."""
    one = balance(0, 1) if case == "balancing" else attend(0, 1, dtype, case)
    for rank in range(2):
        ours = answers[rank][case if case == "balancing" else f"{case}, {dtype}"]
        assert ours.keys() == one.keys()
        for name, tensor in ours.items():
            if case == "of past faces alone" and not name.startswith(("loss.action", "grad.1", "action")):
                continue  # a process asks its own faces beside those of the past
            shared = name.startswith(("loss.", "grad.")) and name not in ("grad.maps", "grad.logits")
            expected = one[name] if shared else one[name][rank::2]
            tolerance = 1e-6 if dtype == torch.float32 and case != "balancing" else 1e-12
            torch.testing.assert_close(tensor, expected, atol=tolerance, rtol=0, msg=lambda s, n=name: f"{n}: {s}")


def test_past_faces_are_those_of_all_processes(answers):
    """Beside its own eight a process asks the 24 before: all of the second batch, and half of the first."""
    branch, _, batches = prepare(torch.float64, "of past faces alone")
    queries, keys, values = [], [], []
    for maps, logits, *_ in batches:
        queries.append(branch.encoding(branch.embed_q(maps).flatten(2)))
        keys.append(branch.encoding(branch.embed_k(maps).flatten(2)))
        values.append(logits)
    for rank in range(2):
        own = slice(rank, None, 2)
        asked = [torch.cat([x[2][own], x[1], x[0][8:]]) for x in (keys, values)]
        expected, _ = class_batch_attention(queries[2][own], *asked)
        torch.testing.assert_close(answers[rank]["of past faces alone, torch.float64"]["cba"], expected.detach())


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_of_two_processes_is_a_run_of_one(two, tmp_path, monkeypatch):
    from mien.training.run import train

    one = train(recipe(tmp_path, "one", 1))
    ours, expected = (load_file(folder / "last.safetensors") for folder in (two / "two", one))
    assert ours.keys() == expected.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=0)
    for row, other in zip(table(two / "two"), table(one), strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            assert (value == other[name] == "") or float(value) == pytest.approx(float(other[name]), abs=1e-5), name


def test_a_run_of_two_processes_goes_on_where_it_was_cut(two):
    whole, cut = (load_file(two / name / "last.safetensors") for name in ("two", "cut"))
    assert all(torch.equal(tensor, cut[name]) for name, tensor in whole.items())
    assert table(two / "cut") == table(two / "two")


def watched(*, num_classes: int = 3) -> BTN:
    """BTN whose faces attend to those of all processes; each process notes how many attend to how many."""
    module = sys.modules["mien.nn.class_batch_attention"]
    attend = module.class_batch_attention

    def noting(query, key, value, *stages):
        with open(f"noted{os.environ['RANK']}.txt", "a") as file:
            file.write(f"{len(query)} attend to {len(key)}\n")
        return attend(query, key, value, *stages)

    module.class_batch_attention = noting
    return btn_mobile(num_classes=num_classes, bt_gather=True)


def test_torchrun_trains_btn_with_attention_across_all_faces(tmp_path):
    """Two steps of four faces a process, by the very command of docs/many_machines.md."""
    options = recipe(tmp_path, "btn", 2)[0]
    told = yaml.safe_load(Path(options).read_text())
    told |= {"model": {"class_path": "test_two_processes.watched"}, "ema": 0.0}
    told["task"] |= {"sam_rho": 0.0}
    told["trainer"] |= {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}
    Path(options).write_text(yaml.safe_dump(told))
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        + ["-m", "mien", "train", options, "--out", str(tmp_path / "btn")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.fspath(Path(__file__).parent), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert [(tmp_path / f"noted{rank}.txt").read_text() for rank in range(2)] == 2 * ["4 attend to 8\n" * 2]
    trained = load_file(tmp_path / "btn" / "last.safetensors")
    assert all(tensor.isfinite().all() for tensor in trained.values())
    assert sum("batch_transformer" in name for name in trained) and len(table(tmp_path / "btn")) >= 2


if __name__ == "__main__":
    import_module("mien.training.run")  # once for both

    sys.modules["test_two_processes"] = sys.modules["__main__"]
    pair = [get_context("fork").Process(target=one_of_two, args=(Path(sys.argv[1]), rank)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    sys.exit(any(process.exitcode for process in pair))
