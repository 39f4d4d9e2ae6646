"""The model that the package carries: what its files say, that they agree, and that it reads faces."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mien import Classifier, Reader
from mien.checkpoint import labels_of, read_header
from mien.classifier import DEFAULT_MODEL, MODELS
from mien.data import FERPlus
from mien.labels import EXPRESSIONS
from mien.precision import LOSS

FOLDER = MODELS / DEFAULT_MODEL
EXAMPLES = Path(__file__).parents[1] / "examples"
SHARED = Path(os.environ.get("MIEN_SHARED", Path(__file__).parents[2] / "shared"))

FLOOR = 0.86
"""Least accuracy on the validation split of FER2013+, as it is: no later model may be worse."""

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="photographs and data that are not part of the project")


@pytest.fixture(scope="module")
def classifier():
    return Classifier.from_pretrained(precision="fp32")


@pytest.fixture(scope="module")
def faces(classifier):
    """Real faces, cut out as reading does and as they are, also small, tinted and turned round."""
    reader = Reader(classifier)
    crops = []
    for name in ("astronaut.png", "hopper.jpg"):
        image = np.asarray(Image.open(EXAMPLES / name).convert("RGB"))
        for face in reader(image):
            aligned = classifier.crop(image, face.landmarks, face.box)
            x, y, w, h = map(int, face.box)
            loose = classifier.crop(np.ascontiguousarray(image[max(0, y) : y + h, max(0, x) : x + w]))
            crops += [aligned, loose, aligned[:, ::-1], (aligned * [1, 0.8, 0.6]).astype(np.uint8), 255 - loose]
    assert len(crops) == 10
    return np.stack(crops)


def test_both_files_say_the_same(classifier):
    onnx, torch = read_header(FOLDER / "model.onnx"), read_header(FOLDER / "model.safetensors")
    assert onnx == torch
    assert labels_of(onnx) == EXPRESSIONS
    assert onnx["model"]["class_path"] == "mien.networks.mobilefacenet"
    assert {"data", "recipe", "metrics", "licence"} <= onnx["training"].keys()
    assert onnx["preprocess"]["trained_on"] == ["as is", "arcface112"]
    assert onnx["training"]["metrics"]["val_accuracy"] >= FLOOR
    assert "/" not in json.dumps(onnx["training"]), "a path of somebody's machine"


def test_they_are_small():
    for name in ("model.onnx", "model.safetensors"):
        assert (FOLDER / name).stat().st_size <= 12_000_000
    card = (FOLDER / "README.md").read_text("utf-8")
    for word in ("MS-Celeb-1M", "Apache-2.0", "FER2013", "validation"):
        assert word in card


def test_the_default_before_it_can_be_named(faces):
    before = Classifier.from_pretrained("btn_mobile_ferplus", precision="fp32")
    assert before.header["model"]["class_path"] == "mien.networks.btn_mobile" and before.labels == EXPRESSIONS
    torch = Classifier.from_pretrained(MODELS / "btn_mobile_ferplus/model.safetensors", precision="fp32")
    assert np.abs(torch.run(faces) - before.run(faces)).max() < 1e-3


def test_it_knows_when_it_is_uncertain(classifier, faces):
    reader = Reader(classifier, aligned=True, abstain=True)
    assert 0.4 < reader.abstain < 0.8
    patches = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8).repeat(14, 0).repeat(14, 1)
    assert [face.expression for face in reader(patches)] == ["uncertain"]
    assert [face.expression for face in reader(faces[0])] == ["happiness"]


def test_torch_and_onnx_agree_on_real_faces(classifier, faces):
    torch = Classifier.from_pretrained(FOLDER / "model.safetensors", precision="fp32")
    assert np.abs(torch.run(faces) - classifier.run(faces)).max() < 1e-3


def test_onnxruntime_agrees(classifier, faces):
    from mien.engines import OnnxRuntimeEngine

    out = OnnxRuntimeEngine(FOLDER / "model.onnx")(faces)
    assert np.abs(out["probs"] - classifier.run(faces)).max() < 1e-3
    assert out["logits"].shape == (len(faces), 8)


def test_its_int8_file_is_the_one_that_was_measured(classifier, faces):
    small = Classifier.from_pretrained(precision="int8")
    assert small.engine.precision == "int8" and (FOLDER / "model.int8.onnx").stat().st_size <= 1_500_000
    measured = small.header["precision"]["int8"]
    assert measured["accuracy_difference"] > -LOSS and measured["faces"] == 3509
    distance = np.abs(small.run(faces) - classifier.run(faces)).sum(1) / 2
    assert 0 < distance.mean() < 0.05


def test_colour_tells_it_little(classifier, faces):
    grey = (faces @ np.array([0.299, 0.587, 0.114])).round().astype(np.uint8)
    moved = np.abs(classifier.run(faces) - classifier.run(np.repeat(grey[..., None], 3, axis=3))).sum(1) / 2
    assert moved.max() < 0.02  # rounding alone


@needs_shared
@pytest.mark.parametrize("name", ["ccby_london_smiling_002", "ccby_london_smiling_022"])
def test_smiles_are_happiness(name, classifier):
    assert [face.expression for face in Reader(classifier)(SHARED / "examples" / f"{name}.jpg")] == ["happiness"]


@needs_shared
@pytest.mark.parametrize("name", ["ccby_london_neutral_002", "ccby_london_neutral_038"])
def test_calm_is_neutral(name, classifier):
    assert [face.expression for face in Reader(classifier)(SHARED / "examples" / f"{name}.jpg")] == ["neutral"]


@needs_shared
def test_validation_accuracy_is_what_the_card_says(classifier):
    rows = FERPlus(str(SHARED / "data/fer2013plus/train_validation.parquet"), check=False).rows("validation")
    assert len(rows) == 3509
    probs = classifier.predict_proba([row.image() for row in rows])
    accuracy = float((probs.argmax(1) == [row.label for row in rows]).mean())
    assert accuracy >= FLOOR
    assert accuracy == pytest.approx(classifier.header["training"]["metrics"]["val_accuracy"], abs=0.003)
