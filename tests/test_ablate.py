"""One recipe varied: every combination and seed once, whatever happens in between, and a table that can be trusted."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from PIL import Image

from mien.__main__ import main
from mien.errors import MienError
from mien.training import ablate as module
from mien.training.ablate import Variant, ablate, ablation_table, interval, settings, variants


def test_every_combination_once_the_first_value_first():
    names = [variant.name for variant in variants(["model.init_args.mla=levels,none", "bt=true,false"])]
    assert names == ["mla=levels, bt=true", "mla=levels, bt=false", "mla=none, bt=true", "mla=none, bt=false"]
    assert [variant.settings["scale"] for variant in variants(["scale=[0.9, 1.1],[1,1]"])] == ["[0.9, 1.1]", "[1,1]"]
    assert len({variant.folder for variant in variants(["a=1,2", "b={x: 1},{x: 2}"])}) == 4
    assert all("/" not in variant.folder for variant in variants(["init=a/b,../c"]))


@pytest.mark.parametrize(
    ("wrong", "said"), [(["lr"], "option=value"), (["=3"], "option=value"), (["a=1", "a=2"], "twice")]
)
def test_misspelt_options(wrong, said):
    with pytest.raises(MienError, match=said):
        settings(wrong)


def test_interval_is_students():
    mean, half = interval([0.8, 0.82, 0.87])
    assert mean == pytest.approx(0.83)
    assert half == pytest.approx(4.303 * np.std([0.8, 0.82, 0.87], ddof=1) / math.sqrt(3))
    assert math.isnan(interval([0.5])[1])
    assert interval(list(range(31)))[1] == pytest.approx(2.0423 * np.std(range(31), ddof=1) / math.sqrt(31), rel=1e-3)


def result(seed: int, accuracy: float) -> dict:
    return {"seed": seed, "accuracy": accuracy, "macro_f1": 0.5, "loss": 1.0, "steps": 7, "minutes": 2.0}


def test_differences_are_of_the_same_seeds():
    table = [
        Variant({"bt": "true"}, [result(0, 0.70), result(1, 0.80)]),
        Variant({"bt": "false"}, [result(0, 0.71), result(1, 0.81)]),
        Variant({"bt": "never"}),
    ]
    lines = ablation_table(table).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith("| bt=true | 2 | 0.7500 ± 0.6353 | – | 0.5000 ± 0.0000 |")
    assert lines[3].startswith("| bt=false | 2 | 0.7600 ± 0.6353 | +0.0100 ± 0.0000 |")
    assert lines[3].endswith("| 7 | 2.0 |")


def test_runs_that_are_done_are_not_made_again(tmp_path, monkeypatch):
    made = []

    def run(folder, command, seed):
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append((folder.parent.name, seed))
        (folder / "recipe.yaml").touch()
        return {"command": list(command), **result(seed, 0.5)}

    monkeypatch.setattr(module, "_run", run)
    with pytest.raises(KeyboardInterrupt):
        list(ablate("a.yaml", variants(["x=1,2"]), 2, tmp_path, {"y": "3"}))
    assert made == [("x=1", 0), ("x=2", 0), ("x=1", 1)]
    made.clear()
    table = variants(["x=1,2"])
    told = [(seed, found is None) for _, seed, found in ablate("a.yaml", table, 2, tmp_path, {"y": "3"})]
    assert made == [("x=2", 1)] and told == [(0, False), (0, False), (1, False), (1, True), (1, False)]
    assert [len(variant.results) for variant in table] == [2, 2]
    assert table[0].results[0]["command"] == ["a.yaml", "--y", "3", "--x", "1"]
    with pytest.raises(MienError, match="begun by mien train a.yaml --y 3 --x 1: remove it"):
        list(ablate("a.yaml", variants(["x=1,2"]), 2, tmp_path, {"y": "4"}))


def test_a_run_that_was_cut_does_not_go_on_with_other_options(tmp_path, monkeypatch):
    commands = []

    def run(folder, command, seed):
        commands.append(command)
        if command[2] == "typo":
            raise MienError("no such option")
        (folder / "recipe.yaml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_run", run)
    table = variants(["model.mla=default,none"])
    cases = ("typo", "no such"), ("1", ""), ("2", "begun by mien train a.yaml --epochs 1: remove it"), ("1", "")
    for epochs, told in cases:
        with pytest.raises(MienError if told else KeyboardInterrupt, match=told or None):
            list(ablate("a.yaml", table, 1, tmp_path, {"epochs": epochs}))
    assert commands[1:] == [["a.yaml", "--epochs", "1"]] * 2  # without --model.mla: as the recipe has it


def test_a_run_that_was_never_validated_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(module.subprocess, "Popen", lambda *_, **__: SimpleNamespace(wait=lambda *_: 0))
    (tmp_path / "seconds").touch()  # cut while it was written
    for text in ("step,loss\n0,1.0\n", "step,loss,val_accuracy\n0,1.0,\n"):
        (tmp_path / "metrics.csv").write_text(text)
        with pytest.raises(MienError, match="was not validated once"):
            module._run(tmp_path, ["a.yaml"], 0)


class InThisProcess:
    """A command of Python's as `subprocess.Popen` takes it, run at once and here."""

    def __init__(self, command, **_):
        assert command[:3] == [sys.executable, "-m", "mien"]
        try:
            self.code = main(command[3:])
        except SystemExit as end:  # of a misspelt option
            self.code = end.code

    def wait(self, *_):
        return self.code


def test_command_trains_and_tells(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.subprocess, "Popen", InThisProcess)
    random = np.random.default_rng(0)
    for split in ("train", "validation"):
        for label in ("neutral", "anger"):
            folder = Path("data", split, label)
            folder.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(random.integers(0, 255, (48, 48, 3), np.uint8)).save(folder / f"{i}.png")
    recipe = {
        "model": {"class_path": "mien.networks.mobilefacenet", "init_args": {"num_classes": 2}},
        "data": {"class_path": "mien.data.Folder", "init_args": {"path": "data"}},
        "faces": {"batch_size": 4, "aligned": 0.0},
        "task": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}}},
        "trainer": {"max_epochs": 5, "accelerator": "cpu"},
    }
    Path("small.yaml").write_text(yaml.safe_dump(recipe))
    command = ["ablate", "small.yaml", "--vary", "model.init_args.dropout=0.0,0.5", "--seeds", "1"]
    assert main([*command, "--set", "trainer.max_epochs=1"]) == 0
    out, told = capsys.readouterr()
    assert "| dropout=0.0 | 1 | " in out and "| dropout=0.5 | 1 | " in out and "2 of 2: dropout=0.5, seed 0" in told
    folder = Path("runs/ablate_small")
    assert (folder / "table.md").read_text().strip() in out
    facts = json.loads((folder / "table.json").read_text())
    assert [each["results"][0]["steps"] for each in facts] == [1, 1] and facts[0]["results"][0]["minutes"] > 0
    assert main([*command, "--set", "trainer.max_epochs=1", "--set", "trainer.no_such=1", "--out", "other"]) == 1
    assert "mien train ended with 2" in capsys.readouterr().err
    assert main(["ablate", "none.yaml", "--vary", "a=1"]) == 1
