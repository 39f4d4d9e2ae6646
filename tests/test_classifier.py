"""Classifier: whatever a face comes as, the same answer; and a model that is saved is the model that was opened."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import COLOURS, HEADER, write_stand_in
from PIL import Image

import mien
from mien.classifier import DEFAULT_MODEL, Classifier, find_model
from mien.errors import CheckpointError, MienError, MissingExtra, ReadError
from mien.labels import EXPRESSIONS


@pytest.fixture(scope="module")
def classifier(stand_in):
    return Classifier.from_pretrained(stand_in)


@pytest.fixture(scope="module")
def faces():
    """Five crops (112, 112, 3), their size that of the network, so that resizing changes nothing."""
    noise = np.random.default_rng(0)
    return [(noise.random((112, 112, 3)) * colour).astype(np.uint8) for colour in noise.integers(1, 256, (5, 3))]


def test_labels_and_header(classifier):
    assert classifier.labels == EXPRESSIONS
    assert classifier.header == HEADER


def test_colours_are_told_apart(classifier):
    crops = [np.full((50, 40, 3), colour, np.uint8) for colour in COLOURS.values()]
    assert classifier.predict(crops) == list(COLOURS)
    probs = classifier.predict_proba(crops)
    assert probs.shape == (4, 8) and probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)


def test_every_kind_of_input_gives_the_same(classifier, faces):
    expected = classifier.predict_proba(faces)
    assert expected.std(0).max() > 0.01
    tensor = np.stack(faces).transpose(0, 3, 1, 2)
    kinds = {
        "tuple": tuple(faces),
        "Pillow": [Image.fromarray(face) for face in faces],
        "mixed": [faces[0], *map(Image.fromarray, faces[1:])],
        "uint8 array": tensor,
        "float array": tensor / 255,
        "uint8 tensor": torch.from_numpy(tensor.copy()),
        "float tensor": torch.from_numpy(tensor.copy()).float().div(255).requires_grad_(),
        "double tensor": torch.from_numpy(tensor.copy()).double() / 255,
        "fortran order": [np.asfortranarray(face) for face in faces],
        "reversed twice": [face[:, ::-1].copy()[:, ::-1] for face in faces],
    }
    for kind, images in kinds.items():
        np.testing.assert_allclose(classifier.predict_proba(images), expected, atol=1e-6, err_msg=kind)
    half = classifier.predict_proba(torch.from_numpy(tensor.copy()).to(torch.bfloat16) / 255)
    np.testing.assert_allclose(half, expected, atol=0.05)


def test_grey_is_three_equal_channels(classifier, faces):
    grey = [face[..., 0] for face in faces]
    expected = classifier.predict_proba([np.repeat(face[..., None], 3, axis=2) for face in grey])
    np.testing.assert_array_equal(classifier.predict_proba(grey), expected)
    np.testing.assert_array_equal(classifier.predict_proba([Image.fromarray(face) for face in grey]), expected)


def test_sizes_may_differ_and_batches_do_not_matter(classifier):
    noise = np.random.default_rng(1)
    faces = [noise.integers(0, 256, (side, 2 * side, 3), np.uint8) for side in (1, 20, 48, 112, 300, 77, 13)]
    expected = np.concatenate([classifier.predict_proba([face]) for face in faces])
    for size in (1, 3, 100):
        np.testing.assert_allclose(classifier.predict_proba(faces, batch_size=size), expected, atol=1e-6)
    for size in (0, -1):
        with pytest.raises(ValueError, match="at least one"):
            classifier.predict_proba(faces, batch_size=size)


def test_nothing_gives_nothing(classifier):
    assert classifier.predict_proba([]).shape == (0, 8)
    assert classifier.predict_proba(np.empty((0, 3, 64, 64), np.uint8)).shape == (0, 8)
    assert classifier.predict([]) == []


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((112, 112, 3), np.uint8),  # one face: its rows are no faces
        np.zeros((4, 112, 112), np.uint8),
        np.zeros((4, 112, 112, 3), np.uint8),
        np.zeros((4, 1, 112, 112), np.uint8),
        np.full((1, 3, 8, 8), 1.5),
        np.full((1, 3, 8, 8), -0.5, np.float32),
        np.full((1, 3, 8, 8), np.nan),
        np.ones((1, 3, 8, 8), np.int64),
        Image.new("RGB", (9, 9)),
        "face.jpg",
        [torch.zeros(3, 9, 9)],
        [None],
        None,
        7,
    ],
)
def test_other_input_is_refused(classifier, images):
    with pytest.raises(ValueError, match="face"):
        classifier.predict_proba(images)


@pytest.mark.parametrize(
    "face", [np.zeros((9, 9, 3)), np.zeros((9, 9, 5), np.uint8), np.zeros((0, 9, 3), np.uint8), np.zeros(9, np.uint8)]
)
def test_an_array_that_is_no_picture_is_refused(classifier, face):
    with pytest.raises(ReadError, match="uint8|no pixels"):
        classifier.predict_proba([face])


def test_threads_share_one(classifier, faces):
    expected = classifier.predict_proba(faces)
    with ThreadPoolExecutor(8) as pool:
        for probs in pool.map(lambda _: classifier.predict_proba(faces), range(64)):
            np.testing.assert_array_equal(probs, expected)


def test_saved_and_opened_again(classifier, faces, tmp_path):
    classifier.save_pretrained(tmp_path / "deep" / "copy")
    files = {file.name for file in (tmp_path / "deep" / "copy").iterdir()}
    assert files == {"model.onnx", "config.json", "README.md"}
    again = Classifier.from_pretrained(tmp_path / "deep" / "copy")
    np.testing.assert_array_equal(again.predict_proba(faces), classifier.predict_proba(faces))
    assert json.loads((tmp_path / "deep" / "copy" / "config.json").read_text()) == HEADER
    card = (tmp_path / "deep" / "copy" / "README.md").read_text()
    assert all(label in card for label in EXPRESSIONS) and "CC0" in card


def test_saving_keeps_both_files_and_the_card(tmp_path):
    write_stand_in(tmp_path / "a" / "model.onnx")
    (tmp_path / "a" / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "a" / "README.md").write_text("# Mine")
    (tmp_path / "a" / "calibration.png").write_bytes(b"plot")
    Classifier.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == b"weights"
    assert (tmp_path / "b" / "README.md").read_text() == "# Mine"
    assert (tmp_path / "b" / "calibration.png").read_bytes() == b"plot"
    Classifier.from_pretrained(tmp_path / "b").save_pretrained(tmp_path / "b")  # onto itself
    assert Classifier.from_pretrained(tmp_path / "b").labels == EXPRESSIONS


def test_saving_one_file_of_many(tmp_path):
    write_stand_in(tmp_path / "run" / "best.onnx")
    write_stand_in(tmp_path / "run" / "model.onnx", {**HEADER, "training": {"data": "another"}})
    Classifier.from_pretrained(tmp_path / "run" / "best.onnx").save_pretrained(tmp_path / "copy")
    assert Classifier.from_pretrained(tmp_path / "copy").header == HEADER


def test_a_classifier_without_a_file_is_not_saved(classifier, tmp_path):
    with pytest.raises(MienError):
        Classifier(classifier.engine, HEADER).save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_safetensors_through_torch_equals_the_network(tmp_path, faces):
    from mien.networks import PlainClassifier, load_network, mobilefacenet, save_network

    torch.manual_seed(0)
    header = {
        **HEADER,
        "model": {"class_path": "mien.networks.mobilefacenet", "init_args": {"num_classes": 8}},
        "temperature": 2.0,
    }
    network = mobilefacenet(num_classes=8)
    assert isinstance(network, PlainClassifier)
    save_network(tmp_path / "model.safetensors", network, header)
    classifier = Classifier.from_pretrained(tmp_path, device="cpu")
    images = (torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    with torch.inference_mode():
        expected = (load_network(tmp_path / "model.safetensors")(images) / 2).softmax(-1).numpy()
    np.testing.assert_allclose(classifier.predict_proba(faces), expected, atol=1e-5)


def test_safetensors_without_torch_names_the_extra(tmp_path, monkeypatch):
    from mien.networks import mobilefacenet, save_network

    save_network(tmp_path / "model.safetensors", mobilefacenet(num_classes=8), HEADER)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r"mien\[torch\]"):
        Classifier.from_pretrained(tmp_path)


def test_finding_a_model(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr("mien.classifier.MODELS", tmp_path)
    write_stand_in(tmp_path / DEFAULT_MODEL / "model.onnx")
    write_stand_in(tmp_path / "other" / "model.onnx")
    assert find_model() == tmp_path / DEFAULT_MODEL / "model.onnx"
    assert find_model("other") == tmp_path / "other" / "model.onnx"
    assert find_model(stand_in) == find_model(str(stand_in / "model.onnx")) == stand_in / "model.onnx"


@pytest.mark.parametrize(
    "model, reason",
    [
        ("no_such_model", "no_such_model: no such model"),
        ("nowhere/model.onnx", "nowhere/model.onnx: no such file"),
        ("../models", "no such model"),
    ],
)
def test_a_model_that_is_not_there(model, reason):
    with pytest.raises(CheckpointError, match=reason):
        Classifier.from_pretrained(model)


def test_a_file_or_folder_that_is_no_model(tmp_path):
    with pytest.raises(CheckpointError, match="neither model.onnx nor model.safetensors"):
        Classifier.from_pretrained(tmp_path)
    for name in ("last.safetensors", "best.safetensors"):
        (tmp_path / name).touch()
    with pytest.raises(CheckpointError, match=r"name one of \S+best.safetensors, \S+last.safetensors$"):
        Classifier.from_pretrained(tmp_path)
    (tmp_path / "model.onnx").write_text("hello")
    with pytest.raises(CheckpointError, match=r"model\.onnx"):
        Classifier.from_pretrained(tmp_path)


def test_another_number_of_labels_than_answers(tmp_path):
    header = {**HEADER, "id2label": {"0": "happy", "1": "sad"}}
    write_stand_in(tmp_path / "model.onnx", header)
    with pytest.raises(CheckpointError, match="2 labels"):
        Classifier.from_pretrained(tmp_path).predict([np.zeros((9, 9, 3), np.uint8)])


def test_push_to_hub_uploads_what_is_saved(classifier, monkeypatch):
    uploads = []

    class Api:
        def __init__(self, token):
            self.token = token

        def create_repo(self, repo_id, private, exist_ok):
            assert exist_ok
            return f"https://hub/{repo_id}?{private}&{self.token}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            from pathlib import Path

            uploads.append((repo_id, {file.name for file in Path(folder_path).iterdir()}, commit_message))

    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert classifier.push_to_hub("me/mine", private=True, token="t") == "https://hub/me/mine?True&t"
    assert uploads == [("me/mine", {"model.onnx", "config.json", "README.md"}, "Upload model")]

    def refuse(*_, **__):
        raise OSError("403 Forbidden\nsee there")

    monkeypatch.setattr(Api, "upload_folder", refuse)
    with pytest.raises(MienError, match=r"^me/mine on the Hub: 403 Forbidden$"):
        classifier.push_to_hub("me/mine")


def test_a_name_on_the_hub_is_fetched(stand_in, faces, monkeypatch):
    import huggingface_hub

    def fetch(repo_id, revision, allow_patterns):
        if repo_id != "me/mine":
            raise huggingface_hub.errors.LocalEntryNotFoundError("no connection")
        assert "model.onnx" in allow_patterns and revision is None
        return str(stand_in)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert Classifier.from_pretrained("me/mine").path == stand_in / "model.onnx"
    with pytest.raises(MienError, match="you/yours on the Hub: no connection"):
        Classifier.from_pretrained("you/yours")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"mien\[hub\]"):
        Classifier.from_pretrained("me/mine")


def test_a_revision_on_the_hub(tmp_path, monkeypatch):
    """What the Hub's own client has in its cache, under a branch, a tag and a commit."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--me--mine"
    for name, commit in {"main": "1" * 40, "v1.0": "2" * 40, "tries/one": "3" * 40}.items():
        (repo / "refs" / name).parent.mkdir(parents=True, exist_ok=True)
        (repo / "refs" / name).write_text(commit)
        write_stand_in(repo / "snapshots" / commit / "model.onnx", HEADER | {"training": {"commit": commit}})
    for model, commit in (
        ("me/mine", "1"),
        ("me/mine@main", "1"),
        ("me/mine@v1.0", "2"),
        ("me/mine@tries/one", "3"),
        (f"me/mine@{'2' * 40}", "2"),
    ):
        assert Classifier.from_pretrained(model).header["training"] == {"commit": commit * 40}, model
    with pytest.raises(MienError, match=r"^me/mine@v9 on the Hub: "):
        Classifier.from_pretrained("me/mine@v9")
    for model in ("me/mine@", "me@v1", "@v1", "me/mine@v1@v2"):
        with pytest.raises(CheckpointError, match=f"^{model}: no such model"):
            find_model(model)


def test_public_names():
    assert mien.Classifier is Classifier
    assert dir(mien) == sorted([*mien.__all__, "data", "networks", "nn"])
    for name in dir(mien):
        assert getattr(mien, name) is not None
    assert mien.read_video is mien.video.read_video
    with pytest.raises(AttributeError, match="nothing"):
        _ = mien.nothing
