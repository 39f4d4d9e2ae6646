"""Bad input: one clear line that names the file and the reason, the rest is read, and never a traceback."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import HEADER, write_stand_in
from PIL import Image

from mien.__main__ import main
from mien.errors import ReadError
from mien.reader import Reader

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLES / "hopper.jpg", "good.jpg")
    return tmp_path


@pytest.fixture
def mien(stand_in, capfd):
    """Run a command of mien's: exit code, what it printed, lines of stderr."""

    def run(*words, model=stand_in):
        try:
            code = main(["read", *map(str, words), *(["--model", str(model)] if model else [])])
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err.splitlines()

    return run


def bomb(path: Path, side: int = 30_000) -> None:
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes((side * 3 + 1) * 20), 9))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + data + chunk(b"IEND", b""))


BAD = {
    "missing.jpg": lambda path: None,
    "empty.jpg": lambda path: path.touch(),
    "text.jpg": lambda path: path.write_text("hello"),
    "cut.jpg": lambda path: path.write_bytes((EXAMPLES / "hopper.jpg").read_bytes()[:9000]),
    "noise.png": lambda path: path.write_bytes(np.random.default_rng(0).bytes(40_000)),
    "bomb.png": bomb,
    "folder": lambda path: path.mkdir(),
    "nothing*.jpg": lambda path: None,
}


@pytest.mark.parametrize("name", BAD)
def test_one_bad_source(here, mien, stand_in, name):
    BAD[name](here / name)
    code, out, err = mien("good.jpg", name, "good.jpg", "--output", "rows.jsonl")
    assert code == 1
    assert len(err) == 1 and name in err[0] and len(err[0]) > len(f"mien: {name}: ")
    assert [json.loads(line)["source"] for line in (here / "rows.jsonl").read_text().splitlines()] == ["good.jpg"] * 2
    with pytest.raises(ReadError, match=r"\w"):
        Reader.from_pretrained(stand_in)(here / name)


def test_many_bad_sources_have_a_line_each(here, mien):
    for name, make in BAD.items():
        make(here / name)
    code, out, err = mien(*BAD, "good.jpg")
    assert code == 1
    assert len(err) == len(BAD) and all(name in line for name, line in zip(BAD, err, strict=True))
    assert json.loads(out)["source"] == "good.jpg"


def test_bad_crops_too(here, mien):
    (here / "empty.png").touch()
    code, out, [line] = mien("empty.png", "good.jpg", "--aligned")
    assert code == 1 and "empty.png" in line and json.loads(out)["source"] == "good.jpg"


def test_every_kind_of_picture_is_read(here, mien):
    image = Image.open("good.jpg")
    grey = image.convert("L")
    image.convert("RGBA").save("rgba.png")
    image.convert("CMYK").save("cmyk.jpg")
    image.convert("P").save("palette.gif")
    grey.save("grey.png")
    Image.fromarray(np.asarray(grey).astype(np.uint16) * 257).save("deep.png")
    image.save("moving.gif", save_all=True, append_images=[Image.new("RGB", image.size)] * 3)
    image.save("picture.webp")
    names = ["rgba.png", "cmyk.jpg", "palette.gif", "grey.png", "deep.png", "moving.gif", "picture.webp"]
    code, out, err = mien(*names)
    assert (code, err) == (0, [])
    rows = list(map(json.loads, out.splitlines()))
    assert [row["source"] for row in rows if row["box"]] == names


def test_what_pillow_merely_warns_of_is_no_line_on_stderr(here, stand_in):
    code = "import sys, PIL.Image as i; i.MAX_IMAGE_PIXELS = 200_000; from mien.__main__ import main; sys.exit(main())"
    run = [sys.executable, "-c", code, "read", "good.jpg", "--model", str(stand_in)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and json.loads(done.stdout)["box"]


@pytest.mark.parametrize("side", [1, 2, 7, 31, 700])
def test_pictures_without_a_face(here, mien, side):
    Image.new("RGB", (side, 3), (90, 120, 40)).save("none.png")
    code, out, err = mien("none.png")
    assert (code, err) == (0, [])
    row = json.loads(out)
    assert row["note"] and {value for name, value in row.items() if name not in ("source", "note")} == {None}


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["good.jpg", "--no-such-flag"],
        ["good.jpg", "--threshold", "2"],
        ["good.jpg", "--threshold", "nan"],
        ["good.jpg", "--threshold", "high"],
        ["good.jpg", "--batch-size", "0"],
        ["good.jpg", "--batch-size", "1.5"],
        ["good.jpg", "--min-face", "-1"],
        ["good.jpg", "--device", "tpu"],
        ["good.jpg", "--output", "rows.xlsx"],
        ["good.jpg", "--output", "rows"],
        ["good.jpg", "--output", "nowhere/rows.csv"],
        ["good.jpg", "--output", "folder.csv"],
        ["good.jpg", "--annotate", "good.jpg"],
        ["good.jpg", "--annotate", "."],
    ],
)
def test_misuse(here, mien, monkeypatch, words):
    (here / "folder.csv").mkdir()
    monkeypatch.setattr(Reader, "from_pretrained", lambda *_: pytest.fail("it has begun to read"))
    before = sorted(here.rglob("*"))
    code, out, err = mien(*words)
    assert (code, out) == (2, "")
    assert err[-1].startswith(("mien: error: ", "mien read: error: "))
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("words", [["reed"], ["--no-such-flag"], ["--", "read"]])
def test_misuse_before_the_command(capsys, words):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and "usage: mien" in capsys.readouterr().err


def a_model_without(tensor: str, path: Path) -> None:
    model = onnx.load(write_stand_in(path))
    kept = [value for value in model.graph.initializer if value.name != tensor]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, path)


BAD_MODELS = {
    "missing.onnx": lambda path: None,
    "empty.onnx": lambda path: path.touch(),
    "text.onnx": lambda path: path.write_text("hello"),
    "cut.onnx": lambda path: path.write_bytes(write_stand_in(path).read_bytes()[:300]),
    "tensor.onnx": lambda path: a_model_without("weight", path),
    "foreign.onnx": lambda path: (write_stand_in(path), onnx.save(strip(onnx.load(path)), path)),
    "labels.onnx": lambda path: write_stand_in(path, {**HEADER, "id2label": {"0": "happy"}}),
    "missing.safetensors": lambda path: None,
    "text.safetensors": lambda path: path.write_text("hello"),
    "tensor.safetensors": lambda path: save_without("head.weight", path),
    "class.safetensors": lambda path: save_without("", path, "mien.networks.no_such_network"),
    "stranger.safetensors": lambda path: save_without("", path, "os.system"),
    "folder": lambda path: path.mkdir(),
    "no_such_model": lambda path: None,
}


def strip(model: onnx.ModelProto) -> onnx.ModelProto:
    del model.metadata_props[:]
    return model


def save_without(tensor: str, path: Path, class_path: str = "mien.networks.mobilefacenet") -> None:
    from safetensors.torch import load_file, save_file

    from mien.networks import mobilefacenet, save_network

    header = {**HEADER, "model": {"class_path": class_path, "init_args": {"num_classes": 8}}}
    save_network(path, mobilefacenet(num_classes=8), header)
    tensors = load_file(path)
    if tensor:
        [name] = [name for name in tensors if name.endswith(tensor)]
        del tensors[name]
    save_file(tensors, path, metadata={"mien": json.dumps(header)})


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model(here, mien, name):
    BAD_MODELS[name](here / name)
    code, out, err = mien("good.jpg", "--output", "rows.csv", model=name)
    assert (code, out) == (1, "")
    assert len(err) == 1 and name in err[0]
    assert not list(here.glob("rows*")) and not list(here.glob(".*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="everything may be written by root")
def test_a_folder_that_cannot_be_written_to(here, mien):
    (here / "locked").mkdir(mode=0o500)
    for option in ("--output", "locked/rows.csv"), ("--annotate", "locked"):
        code, _, [line] = mien("good.jpg", *option)
        assert code == 1 and "locked" in line and "permission denied" in line


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="/dev/full is Linux's")
@pytest.mark.parametrize("words", [["good.jpg"], ["good.jpg", "--output", "rows.csv"]])
def test_a_disk_that_is_full(here, stand_in, words):
    command = [sys.executable, "-m", "mien", "read", *words, "--model", str(stand_in)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "mien: no space left on device\n")


@pytest.mark.parametrize("command", ["train", "eval", "convert", "explain", "export"])
def test_a_command_whose_packages_are_missing_names_the_extra(here, command):
    words = {
        "train": ["recipe.yaml"],
        "eval": ["model", "--data", "."],
        "convert": ["ir50", "source.pth", "out.safetensors"],
        "explain": ["good.jpg", "--method", "gradcam", "--model", "good.safetensors", "--output", "out"],
        "export": ["out.onnx", "--model", "good.safetensors"],
    }
    code = "import sys; sys.modules['torch'] = None; from mien.__main__ import main; sys.exit(main(sys.argv[1:]))"
    run = [sys.executable, "-c", code, command, *words[command]]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("mien: ") and "torch" in done.stderr and 'pip install "mien[' in done.stderr
    assert done.stderr.count("\n") == 1
