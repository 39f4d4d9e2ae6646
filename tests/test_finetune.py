"""Own classes from a folder to a checkpoint and on, on photographs of two faces, drawn upon."""

import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from mien.checkpoint import labels_of, outputs_of, read_header
from mien.classifier import Classifier, find_checkpoint
from mien.faces import YuNet, open_picture
from mien.labels import EXPRESSIONS
from mien.networks import MobileFaceNet, load_network, mobilefacenet
from mien.networks.checkpoint import load_tensors
from mien.training import finetune as module
from mien.training.finetune import plan, wilson
from mien.training.start import seed_of_start, start_from

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/own_classes.md").read_text()


def photographs() -> list[Image.Image]:
    """Two faces with what is around them, 120 pixels high."""
    found = []
    for name in ("hopper.jpg", "astronaut.png"):
        image = open_picture(ROOT / "examples" / name)
        x, y, width, height = max(YuNet()(image), key=lambda face: face.box[3]).box
        part = (x - width / 2, y - height / 2, x + 1.5 * width, y + 1.5 * height)
        found.append(Image.fromarray(image).crop(tuple(map(int, part))).resize((110, 120)))
    return found


def faces(root: Path, seed: int = 0, **classes: int) -> Path:
    """So many pictures of each class, each with noise of its own; the second class has a dark bar above the eyes."""
    draw, two = np.random.default_rng(seed), photographs()
    for number, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            picture = two[i % 2].copy()
            ImageDraw.Draw(picture).rectangle((20, 20, 90, 30), (60 * number, 60 * number, 60 * number))
            noisy = np.asarray(picture) + draw.integers(-12, 13, (120, 110, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(root / name / f"{i:02}.png")
    return root


@pytest.fixture(autouse=True)
def _short(monkeypatch, tmp_path):
    """Two epochs, in a folder of its own."""
    monkeypatch.setattr(module, "plan", lambda *of: replace(plan(*of), epochs=2, validate=1))
    monkeypatch.chdir(tmp_path)


def test_a_folder_becomes_a_model(call):
    faces(Path("faces"), calm=6, pain=4)
    Image.new("RGB", (100, 100), "grey").save("faces/calm/wall.png")
    code, out, err = call("finetune", "faces", "--out", "runs/pain")
    assert code == 0, err
    assert out[0] == "runs/pain/best.safetensors"
    assert re.fullmatch(r"accuracy \d\.\d+: \d of [12] faces of 'validation' \(95 %: .*; always .*\)", out[1])
    assert out[2].startswith("right by class: calm ") and out[3].startswith("next: ") and len(out) == 4
    assert "no face found in 1 of 11 pictures, which are left out" in err
    assert any(re.search("runs/pain/faces: calm [56], pain 3$", line) for line in err), err
    assert {path.name for path in Path("runs/pain").iterdir()} == {
        *("best.safetensors", "last.safetensors", "faces", "held_out.csv", "metrics.csv", "recipe.yaml"),
        *("finished.json", "finetune.yaml"),
    }
    header, shipped = read_header(out[0]), read_header(find_checkpoint())
    assert labels_of(header) == ("calm", "pain") and outputs_of(header)[0].temperature == 1.0
    assert {**header["preprocess"], "trained_on": 0} == {**shipped["preprocess"], "trained_on": 0}
    assert header["preprocess"]["trained_on"] == ["arcface112"]
    facts = {key: header["training"][key] for key in ("align", "held_out", "started_from", "licence")}
    assert facts == {
        "align": "detect",
        "held_out": "2 of 11",
        "started_from": "mobilefacenet_ferplus",
        "licence": "Apache-2.0",
    }

    # judged again on the same folder, without a label and without what was learned: the same
    code, table, err = call("eval", out[0], "--data", "faces", "--json")
    measured = json.loads("\n".join(table))
    assert code == 0 and (measured["align"], measured["split"]) == ("detect", "validation")
    assert measured["count"] == 2  # with the wall, if it was held out
    assert measured["labels"] == ["calm", "pain"]

    before = Path(out[0]).read_bytes()
    code, _, err = call("finetune", "faces", "--out", "runs/pain")
    assert code == 1 and "runs/pain: holds a finished run" in err[-1] and Path(out[0]).read_bytes() == before

    # a recipe does the same
    assert call("train", "runs/pain/recipe.yaml", "--out", "again")[0] == 0
    assert torch.equal(
        *(load_tensors(folder + "/best.safetensors")["head.weight"] for folder in ("runs/pain", "again"))
    )


def test_a_run_that_was_cut_goes_on(call, monkeypatch):
    faces(Path("faces"), calm=5, pain=5)
    words = ("finetune", "faces", "--out", "run", "--align", "as-is")
    whole = ("finetune", "faces", "--out", "whole", "--align", "as-is")
    assert call(*whole)[0] == 0
    from mien.training.task import Task

    step, count = Task.training_step, [0]

    def told(task, batch, index):
        count[0] += 1
        if count[0] == 1:
            signal.raise_signal(signal.SIGINT)
        return step(task, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(Task, "training_step", told)
        assert call(*words)[0] == 130
    assert call(*words)[0] == 0
    one, other = (load_tensors(f"{folder}/best.safetensors") for folder in ("run", "whole"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_what_is_no_use_is_refused(call):
    faces(Path("faces"), calm=2)
    for i in range(4):
        Path("walls/dark" if i % 2 else "walls/light").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 80), (90 * (i % 2), 30, 40 * i)).save(f"walls/{'dark' if i % 2 else 'light'}/{i}.png")
    for words, reason in (
        (("faces", "--out", "run"), "faces: of one class alone, 'calm', nothing is to be learned"),
        (("faces", "--out", "faces/run"), "faces/run is in faces, which is to be read: give another --out"),
        (
            ("walls", "--out", "run"),
            "walls: a face was found in 0 of 4 pictures: if they are face crops, --align as-is",
        ),
        (("gone", "--out", "run"), "gone"),
        (("faces", "--out", "run", "--model", "gone.safetensors"), "gone.safetensors: no such file"),
    ):
        code, _, err = call("finetune", *words)
        assert code == 1 and reason in err[-1], err
    assert not Path("run/best.safetensors").exists()


def test_a_recipe_counts_the_classes_of_its_folder(call, caplog):
    """Their names, their number, and what is held out of them; from a model by its name."""
    faces(Path("faces"), a=3, b=3, c=3)
    folder = {"class_path": "mien.data.Folder", "init_args": {"path": "faces"}}
    recipe = {
        "model": {"class_path": "mien.networks.mobilefacenet"},
        "init": {"": "mobilefacenet_ferplus"},
        "data": {"class_path": "mien.data.HeldOut", "init_args": {"data": folder}},
        "faces": {"aligned": 0.0},
        "task": {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.0}}},
        "trainer": {"max_epochs": 1},
        "still_norms": True,
    }
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    code, out, err = call("train", "recipe.yaml")
    assert code == 0 and "run: faces: a 2, b 2, c 2" in err and "not_a_face is not taken over" in caplog.text
    header = read_header("runs/run/best.safetensors")
    assert labels_of(header) == ("a", "b", "c") and header["training"]["held_out"] == "3 of 9"
    assert header["model"]["init_args"]["num_classes"] == 3
    assert Path("runs/run/held_out.csv").read_text().count("validation") == 3
    weights, shipped = load_tensors("runs/run/best.safetensors"), load_tensors(find_checkpoint())
    assert not weights["head.weight"].any() and not weights["head.bias"].any()
    assert torch.equal(weights["image.stem.conv.weight"], shipped["image.stem.conv.weight"])


# what a new head begins as


def block(classes: int) -> dict:
    return {"class_path": "mien.networks.mobilefacenet", "init_args": {"num_classes": classes}}


def test_rows_of_a_head_are_those_of_the_same_name():
    """Five of the eight in another order, and a class that is new."""
    labels = ("anger", "bored", "neutral", "happiness")
    network = mobilefacenet(num_classes=4)
    start_from(network, {"": "mobilefacenet_ferplus"}, labels, block(4))
    old = load_tensors(find_checkpoint())
    for name in ("head.weight", "head.bias"):
        new = network.state_dict()[name]
        for i, label in enumerate(labels):
            if label == "bored":
                assert not new[i].any()
            else:
                assert torch.equal(new[i], old[name][EXPRESSIONS.index(label)])
    turned = mobilefacenet(num_classes=8)
    start_from(turned, {"": "mobilefacenet_ferplus"}, EXPRESSIONS[::-1], block(8))
    assert torch.equal(turned.state_dict()["head.weight"], old["head.weight"].flip(0))
    image = torch.rand(1, 3, 112, 112)
    with torch.no_grad():
        expected = load_network(find_checkpoint(), mirror=False)(image).flip(1)
        assert torch.allclose(turned.eval()(image), expected, atol=1e-5)


def test_a_drawn_head_is_of_a_stream_of_its_own():
    """With the seed of the run that made the trunk: the first rows were wired to neutral, happiness and sadness."""
    torch.manual_seed(0)
    made = mobilefacenet(num_classes=8).head.weight[:3]
    for seed in range(3):
        torch.manual_seed(seed_of_start(seed))
        again = mobilefacenet(num_classes=3).head.weight
        assert abs(torch.corrcoef(torch.stack([made.flatten(), again.flatten()]))[0, 1]) < 0.1


def test_a_run_that_starts_from_a_part_draws_its_head_so(call):
    faces(Path("faces"), neutral=3, sadness=3)
    words = ["--model", "mien.networks.mobilefacenet", "--task.optimizer", "torch.optim.AdamW"]
    words += [
        "--task.optimizer.lr",
        "0",
        "--trainer.max_epochs",
        "1",
        "--faces.aligned",
        "0",
        "--data",
        "mien.data.HeldOut",
    ]
    words += ["--data.data", "mien.data.Folder", "--data.data.path", "faces"]
    heads = {}
    for name, init in (("from", ["--init", '{"image": "mobilefacenet_ferplus#image"}']), ("anew", [])):
        assert call("train", *words, *init, "--out", name)[0] == 0
        heads[name] = load_tensors(f"{name}/last.safetensors")["head.weight"].flatten()
    torch.manual_seed(0)
    assert abs(torch.corrcoef(torch.stack([heads["from"], heads["anew"]]))[0, 1]) < 0.1


# how so many faces are learned


def test_a_plan_suits_the_number_of_faces():
    trunks = {"image": MobileFaceNet()}
    names = [name for name, _ in mobilefacenet(num_classes=2).named_parameters()]
    plans = {count: plan(count, trunks) for count in (48, 500, 5000, 50_000)}
    shown = [count * each.epochs for count, each in plans.items()]
    assert shown == sorted(shown) and 1000 < shown[0] < 3000 and 100_000 < shown[-1] <= 200_000
    kept = [sum(name.startswith(each.frozen) for name in names) for each in plans.values()]
    assert kept == sorted(kept, reverse=True) and kept[0] < len(names) - 10 and kept[-1] > 0
    assert [each.still_norms for each in plans.values()] == [True, True, False, False]
    for each in plans.values():
        assert all(any(name.startswith(prefix) for name in names) for prefix in each.frozen)
    assert all(each.frozen[:2] == ("image.stem.", "image.stem_dw.0.") for each in plans.values()), plans


def test_wilsons_interval():
    for line in re.findall(r"\| ([\d,]+) of ([\d,]+) \| [\d.]+ \| ([\d.]+) to ([\d.]+) \|", PAGE):
        right, count, low, high = (float(part.replace(",", "")) for part in line)
        assert wilson(int(right), int(count)) == pytest.approx((low, high), abs=0.0051)
    assert wilson(0, 3)[0] == 0 and wilson(3, 3)[1] == 1
    # its ends are where |p - right / count| is z standard errors of p
    for end in wilson(17, 20):
        assert abs(0.85 - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / 20))


def test_the_page_from_an_empty_folder_to_another_program(call, tmp_path):
    """Each command of docs/own_classes.md, in its order, in an empty folder."""
    [program] = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    blocks = re.findall(r"```\n(.*?)```", PAGE.replace(f"```python\n{program}```", ""), re.S)
    commands = [line for block in blocks for line in block.splitlines()]
    assert len(commands) == 9 and sum(line.startswith("mien ") for line in commands) == 6
    for line in commands:
        words = shlex.split(line, comments=True)
        if words[0] == "pip":
            assert words[1:] == ["install", "mien[train,eval,export]"]
        elif words[0] == "mien":
            code, out, err = call(*words[1:])
            assert code == (1 if "exits with 1" in line else 0), (line, out, err)
        else:
            if words[0] == "python":
                Path(words[1]).write_text(program)
                shutil.copy("faces/pain/00.png", "crop.png")
            run = subprocess.run([sys.executable, *words[1:]] if words[0] == "python" else words, capture_output=True)
            assert run.returncode == 0, run.stderr
            if words[0] == "mkdir":
                faces(tmp_path / "faces", calm=5, pain=5)
                faces(tmp_path / "more", seed=1, calm=1)
                shutil.copy("more/calm/00.png", "photo.jpg")
    label, share = run.stdout.decode().split()
    assert label in ("calm", "pain") and 0.5 <= float(share) <= 1
    assert labels_of(read_header("pain.onnx")) == ("calm", "pain")
    answer = Classifier.from_pretrained("pain.onnx").predict_proba([Image.open("crop.png")]).max()
    assert float(share) == pytest.approx(answer, abs=0.1)
