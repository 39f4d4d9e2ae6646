"""A network or a mixer of one's own: every command that opens a model takes it with --trust, and says so without."""

import argparse
import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import header
from PIL import Image

from mien.__main__ import COMMANDS, main
from mien.checkpoint import read_header
from mien.classifier import Classifier
from mien.errors import CheckpointError, MienError
from mien.explain import open_network
from mien.labels import EXPRESSIONS
from mien.networks import build, load_network, save_network
from mien.reader import Reader
from mien.training.resume import check_fits
from mien.training.teachers import Teachers

OWN = """
from mien.networks import APViT
from mien.nn import SelfAttention


class Mixer(SelfAttention):
    pass


class Network(APViT):
    pass
"""
SIZES = {"image": None, "img_size": 56, "patch_size": 14, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 8}
MODELS = {
    "network": ("my_faces_of_mine.Network", {"qkv_bias": True}),
    "mixer": ("mien.networks.APViT", {"mixer": "my_faces_of_mine.Mixer"}),
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, in which there are two checkpoints, the module that they need, and labelled pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_faces_of_mine.py").write_text(OWN)
    sys.path.append(str(tmp_path))
    for name, (class_path, arguments) in MODELS.items():
        block = header(class_path, **SIZES, keep_patches=8, **arguments)
        block["preprocess"] |= {"resize": [{"size": 56}], "input_size": 56}
        torch.manual_seed(0)
        save_network(tmp_path / f"{name}.safetensors", build(block["model"], trust=True), block)
    sys.path.remove(str(tmp_path))
    sys.modules.pop("my_faces_of_mine")
    noise = np.random.default_rng(0)
    for label in ("anger", "fear"):
        for split in ("train", "validation"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(2):
                picture = Image.fromarray(noise.integers(0, 256, (56, 56, 3), np.uint8))
                picture.save(tmp_path / "data" / split / label / f"{number}.png")
    yield tmp_path
    sys.modules.pop("my_faces_of_mine", None)


def words(command: str, model: str) -> list[str]:
    file = f"{model}.safetensors"
    return [command] + {
        "read": ["data/train", "--aligned", "--model", file],
        "batch": ["data/train", "out", "--aligned", "--model", file],
        "eval": [file, "--data", "data", "--against", file],
        "calibrate": [file, "--data", "data"],
        "explain": ["data/train", "--aligned", "--model", file, "--output", "drawn"],
        "export": ["out.pt2", "--model", file, "--check", "data"],
        "finetune": ["data", "--out", "run", "--align", "as-is", "--epochs", "1", "--model", file],
        "average": ["mean.safetensors", file, file],
    }[command]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("command", ["read", "batch", "eval", "calibrate", "explain", "export", "average", "finetune"])
def test_every_command_takes_it_with_trust(here, call, command, model):
    *_, name = MODELS[model][0], "my_faces_of_mine." + model.title()
    code, out, err = call(*words(command, model))
    assert code == 1 and err[-1].startswith("mien: ") and len(err) == 1
    assert f"{name} is not one of mien's networks: trust=True (--trust) imports it all the same" in err[-1]
    assert "my_faces_of_mine" not in sys.modules  # nothing was run of it
    code, out, err = call(*words(command, model), "--trust")
    if command == "calibrate":  # which has read the faces by then
        assert (code, err[-1].partition("temperature 1.0: ")[2]) == (1, "4 faces say too little, 200 are the least")
    else:
        assert code == 0 and out, err
    assert "my_faces_of_mine" in sys.modules


@pytest.mark.parametrize("model", MODELS)
def test_python_takes_it_with_trust(here, model):
    file = here / f"{model}.safetensors"
    sys.path.append(str(here))
    for opening in (Classifier.from_pretrained, Reader.from_pretrained, load_network, open_network):
        with pytest.raises(CheckpointError, match=r"trust=True \(--trust\)"):
            opening(file)
        opening(file, trust=True)


def test_the_service_and_the_page_hand_it_on(here, monkeypatch):
    import mien.commands.demo
    import mien.commands.serve

    given = []
    monkeypatch.setattr(mien.commands.serve, "serve", lambda options, **_: given.append(options["trust"]))
    monkeypatch.setattr(mien.commands.serve.logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(mien.commands.demo, "serve", lambda make, *_: make(here))
    page = SimpleNamespace(
        build_page=lambda reader, looking, _: given.append(looking.trust), examples=lambda folder: {}
    )
    monkeypatch.setitem(sys.modules, "mien.demo.layout", page)
    for trust in ([], ["--trust"]):
        assert main(["serve", "--model", "network.safetensors", *trust]) == 0
        if trust:
            assert main(["demo", "--model", "network.safetensors", "--explain", "mixer.safetensors", *trust]) == 0
    assert given == [False, True, True]


def test_a_teacher_is_one_as_well(here):
    sys.path.append(str(here))
    given = (["network.safetensors"], EXPRESSIONS, read_header("network.safetensors")["preprocess"])
    with pytest.raises(CheckpointError, match=r"trust=True \(--trust\)"):
        Teachers(*given)
    assert Teachers(*given, trust=True)(torch.zeros(1, 3, 56, 56)).shape == (1, 8)


def test_whatever_opens_a_model_can_be_told_to_trust():
    for name, (module, *_) in COMMANDS.items():
        parser = argparse.ArgumentParser()
        importlib.import_module(module).add_arguments(parser)
        given = {action.dest for action in parser._actions}
        if name not in ("train", "ablate"):  # whose recipe is trusted: it is the user's own
            assert bool({"model", "models"} & given) == ("trust" in given), name


class Evil:
    def __reduce__(self):
        return exec, ("open('marker', 'w').close()",)


def test_a_run_that_is_gone_on_with_runs_nothing(tmp_path, monkeypatch):
    """resume.ckpt is torch's own file, which may hold a program: nothing but tensors and plain values is read of it."""
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "loops": Evil()}, "resume.ckpt")
    with pytest.raises(MienError, match=r"^resume\.ckpt: damaged"):
        check_fits({}, Path("resume.ckpt"), {})
    assert not (tmp_path / "marker").exists()
    torch.load("resume.ckpt", weights_only=False)
    assert (tmp_path / "marker").exists()  # it would have
