"""A recipe of three heads, from made files of Aff-Wild2 to what every way of using a model shows of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from sets import EXPR, write
from test_serve import Served

import mien
from mien.__main__ import main
from mien.checkpoint import outputs_of, read_header
from mien.classifier import Classifier
from mien.engines import OnnxRuntimeEngine, open_model
from mien.networks import load_network

NAMES = ["expression", "action_units", "valence", "arousal"]
FACES = 6
SMALL = {"img_size": 112, "patch_size": 28, "embed_dim": 16, "num_heads": 2, "depth": 1, "class_depth": 1}
TOKENS = {"image": None, "img_size": 112, "patch_size": 28, "embed_dim": 16, "num_heads": 2, "depth": 2}


def film(root: Path) -> None:
    """Two videos of as many frames as there are faces, each with two of the three kinds of labels."""
    notes, draw = root / "annotations", np.random.default_rng(0)
    for split, video in (("Train_Set", "1"), ("Validation_Set", "2")):
        write(notes / f"EXPR_Set/{split}/{video}.txt", EXPR, *[str(i if i % 3 else -1) for i in range(FACES)])
        write(
            notes / f"AU_Set/{split}/{video}.txt", "AU1,AU12", *[f"{i % 2},{-1 if i == 2 else 1}" for i in range(FACES)]
        )
        lines = ["-5,-5" if i == 1 else f"{i / 10 - 0.2:.1f},{0.5 - i / 5:.1f}" for i in range(FACES)]
        write(notes / f"VA_Set/{split}/{video}.txt", "valence,arousal", *lines)
        for i in range(FACES):
            path = root / f"cropped_aligned/{video}/{i + 1:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw.integers(0, 256, (112, 112, 3), np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, exported_once) -> Path:
    """A folder with the set, a run of two steps, and its model in the three formats."""
    folder = tmp_path_factory.mktemp("three")
    film(folder / "set")
    recipe = {
        "name": "three",
        "out": str(folder / "run"),
        "model": {"class_path": "mien.networks.CaiT", "init_args": {"num_classes": 7, **SMALL}},
        "data": {
            "class_path": "mien.data.AffWild2",
            "init_args": {"path": str(folder / "set"), "action_units": True, "valence_arousal": True},
        },
        "heads": {"action_units": 0.5, "valence": 1.0, "arousal": 2.0},
        "faces": {
            "batch_size": 3,
            "aligned": 0.0,
            "preprocess": {
                "align": "none",
                "resize": [{"size": 112, "interpolation": "linear"}],
                "input_size": 112,
                "color": "rgb",
                "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5],
            },
        },
        "task": {
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.05}},
            "binary_weights": "balanced",
        },
        "trainer": {"max_steps": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(folder / "recipe.yaml")]) == 0
    for name in ("model.onnx", "model.xml", "model.pt2"):
        assert main(["export", str(folder / name), "--model", str(folder / "run/last.safetensors")]) == 0
    return folder


def test_each_head_has_a_loss_and_learns(trained):
    with (trained / "run/metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    assert len(rows) == 2
    for row in rows:
        parts = {name: float(row[f"loss_{name}"]) for name in ("logits", *NAMES[1:])}
        assert all(np.isfinite(list(parts.values())))
        total = parts["logits"] + 0.5 * parts["action_units"] + parts["valence"] + 2 * parts["arousal"]
        assert float(row["loss"]) == pytest.approx(total, rel=1e-4)
    heads = load_network(trained / "run/last.safetensors").heads
    assert all(head.weight.abs().max() > 0 for head in heads.values())  # they begin at 0


@pytest.mark.parametrize("name", ["run/last.safetensors", "model.onnx", "model.xml", "model.pt2"])
def test_every_file_answers_all_of_it_alike(trained, name):
    outputs = outputs_of(read_header(trained / name))
    assert [(output.name, output.kind, output.weight) for output in outputs] == [
        ("expression", "classes", 1.0),
        ("action_units", "binary", 0.5),
        ("valence", "range", 1.0),
        ("arousal", "range", 2.0),
    ]
    faces = np.random.default_rng(1).integers(0, 256, (3, 112, 112, 3), np.uint8)
    wanted = Classifier.from_pretrained(trained / "run/last.safetensors", device="cpu").answers(faces)
    got = Classifier.from_pretrained(trained / name, device="cpu", precision="fp32").answers(faces)
    assert list(got) == NAMES
    for output in NAMES:
        np.testing.assert_allclose(got[output], wanted[output], atol=1e-4)
    if name != "run/last.safetensors":
        assert set(NAMES) <= set(open_model(trained / name, device="cpu").outputs)
    if name == "model.onnx":
        np.testing.assert_allclose(OnnxRuntimeEngine(trained / name)(faces)["valence"], wanted["valence"], atol=1e-4)


def test_reading_shows_it_in_python_and_in_every_table(trained, monkeypatch, call):
    monkeypatch.chdir(trained)
    picture = "set/cropped_aligned/2/00001.png"
    [face] = mien.Reader.from_pretrained("model.onnx", aligned=True)(picture)
    assert list(face.outputs) == [*NAMES, "pose"] and face.outputs["expression"] == face.probabilities
    assert -1 <= face.outputs["valence"] <= 1 and set(face.outputs["action_units"]) == {"AU1", "AU12"}
    rounded = {"valence": round(face.outputs["valence"], 6), "AU1": round(face.outputs["action_units"]["AU1"], 6)}

    for suffix in ("jsonl", "csv", "parquet"):
        code, *_ = call("read", picture, "--aligned", "--model", "model.onnx", "--output", f"rows.{suffix}")
        assert code == 0
    [row] = [json.loads(line) for line in Path("rows.jsonl").read_text().splitlines()]
    assert (row["valence"], row["action_units"]["AU1"]) == (rounded["valence"], rounded["AU1"])
    with open("rows.csv", newline="") as file:
        [row] = list(csv.DictReader(file))
    assert (float(row["valence"]), float(row["action_units_AU1"])) == (rounded["valence"], rounded["AU1"])
    pose = ["pose_yaw", "pose_pitch", "pose_roll"]
    assert list(row)[-8:] == ["action_units_AU1", "action_units_AU12", "valence", "arousal", *pose, "note"]
    [row] = pq.read_table("rows.parquet").to_pylist()
    assert row["valence"] == pytest.approx(rounded["valence"])
    assert row["action_units"] == pytest.approx({"AU1": rounded["AU1"], "AU12": face.outputs["action_units"]["AU12"]})
    assert (
        mien.Reader.from_pretrained("model.onnx", aligned=True)(picture).to_pandas()["valence"][0] == rounded["valence"]
    )


def test_batch_and_service_show_it(trained, tmp_path, monkeypatch, call):
    monkeypatch.chdir(trained)
    assert call("batch", "set/cropped_aligned/2", tmp_path / "out", "--aligned", "--model", "model.onnx")[0] == 0
    rows = [row for path in (tmp_path / "out").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert len(rows) == FACES and all(-1 <= row["arousal"] <= 1 for row in rows)
    served = Served(tmp_path, "--model", trained / "model.onnx")
    try:
        picture = (trained / "set/cropped_aligned/2/00001.png").read_bytes()
        status, answer = served.read(picture, path="/v1/classify")
        [face] = answer["pictures"][0]["faces"]
        assert status == 200 and set(face["action_units"]) == {"AU1", "AU12"} and -1 <= face["valence"] <= 1
        described = served.ask("GET", "/openapi.json")[1]["components"]["schemas"]["FaceRow"]["properties"]
        assert described["valence"]["description"] == "Valence: -1 to 1." and "action_units" in described
        asked = served.ask("GET", "/v1/labels")[1]["outputs"]
        assert [question["name"] for question in asked] == [*NAMES, "pose"]
        assert b"action_units" in served.ask("GET", "/docs")[1]
    finally:
        served.process.terminate()
        served.process.wait(30)


def test_evaluation_measures_each_by_its_kind(trained, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(trained)
    data = mien.data.AffWild2("set", action_units=True, valence_arousal=True)
    found = mien.evaluation.evaluate("model.onnx", data)
    units, valence, arousal = found.measured.outputs
    assert (units.name, units.count) == ("action_units", FACES) and (valence.count, arousal.count) == (FACES - 1,) * 2
    assert set(units.measures) == {"f1", "accuracy", "calibration_error"} and "ccc" in valence.measures
    assert "valence (range, 5 faces)" in str(found) and found.report.count == 4
    found.save(tmp_path)
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["outputs"]["valence"]["measures"]["rmse"]["value"] == pytest.approx(valence.measures["rmse"].value)
    assert (
        "action units" in (tmp_path / "report.html").read_text()
        or "action_units" in (tmp_path / "report.html").read_text()
    )


@pytest.mark.parametrize(
    "heads, reason",
    [
        ({"pose": 1.0}, "does not tell of pose, beside the expression only of action_units, valence, arousal"),
        ({"valence": -1.0}, "a weight below 0"),
    ],
)
def test_heads_that_cannot_be_are_refused(trained, tmp_path, heads, reason, capfd):
    recipe = yaml.safe_load((trained / "recipe.yaml").read_text()) | {"heads": heads, "out": str(tmp_path / "run")}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 1
    assert reason in capfd.readouterr().err.splitlines()[-1] and not (tmp_path / "run").exists()


def test_the_recipe_of_affwild2_keeps_its_action_units(trained, tmp_path):
    """Its network's own second head, cut down to a small trunk; nothing but --model is changed in what is learned."""
    text = (Path(__file__).parents[1] / "recipes/apvit_affwild2.yaml").read_text()
    recipe = yaml.safe_load(text) | {"init": {}, "out": str(tmp_path / "run")}
    recipe["model"] = {
        "class_path": "mien.networks.APViT",
        "init_args": {"num_classes": 7, "num_action_units": 2, "keep_patches": 8, "keep_rate": 0.6, **TOKENS},
    }
    recipe["data"]["init_args"] |= {"path": str(trained / "set")}
    recipe["faces"]["batch_size"] = 3
    recipe["trainer"] |= {"max_steps": 2, "accelerator": "cpu", "val_check_interval": 1}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert main(["train", str(tmp_path / "recipe.yaml")]) == 0
    assert main(["export", str(tmp_path / "a.onnx"), "--model", str(tmp_path / "run/last.safetensors")]) == 0
    faces = np.zeros((1, 112, 112, 3), np.uint8)
    answers = Classifier.from_pretrained(tmp_path / "a.onnx").answers(faces)
    assert {name: value.shape for name, value in answers.items()} == {"expression": (1, 7), "action_units": (1, 2)}
    network = load_network(tmp_path / "run/last.safetensors")
    assert torch.equal(network.head_answers(torch.ones(1, 16))["action_units"], network.action_units(torch.ones(1, 16)))
