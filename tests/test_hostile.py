"""Inputs that were made to harm: a few of each kind; tests/fuzz tries many."""

import copy
import csv
import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import HEADER, write_stand_in
from fuzz import models, moments, pictures

from mien import Classifier
from mien.batch import sha256_of
from mien.checkpoint import check_header
from mien.classifier import find_model
from mien.commands.rows import CsvWriter
from mien.engines import work
from mien.engines.graph import external_files
from mien.engines.openvino import cache_folder, shared_core
from mien.errors import CheckpointError
from mien.faces.detect import open_yunet
from mien.outputs import Output, expression_output
from mien.video import Summary

HOPPER = str(Path(__file__).parents[1] / "examples/hopper.jpg")
FACES = np.zeros((1, 112, 112, 3), np.uint8)


def mien(*words, **options):
    """A command in a process of its own."""
    return subprocess.run([sys.executable, "-m", "mien", *map(str, words)], **options)


@pytest.mark.filterwarnings("ignore")  # those of Pillow
@pytest.mark.parametrize("seed", range(0, 120, 6))
def test_damaged_pictures(seed):
    assert not [fault for fault in map(pictures.fault, range(seed, seed + 6)) if fault]


@pytest.mark.parametrize("seed", range(0, 42, 6))
def test_hostile_models(tmp_path, seed):
    assert not [fault for each in range(seed, seed + 6) if (fault := models.fault(each, tmp_path))]


def test_tampered_programs(tmp_path, monkeypatch):
    """Two of each kind; and the program that they are made of is read."""
    programs = pytest.importorskip("fuzz.programs")
    monkeypatch.chdir(tmp_path)
    assert not [fault for seed in range(16) if (fault := programs.fault(seed, tmp_path))]
    assert Classifier.from_pretrained(tmp_path / "honest.pt2").answers(FACES)


def test_hostile_recipes(tmp_path, capfd):
    recipes = pytest.importorskip("fuzz.recipes")
    assert not [fault for seed in range(13) if (fault := recipes.fault(seed, tmp_path))]
    assert len(capfd.readouterr().err.splitlines()) <= 13


def test_ctrl_c_at_any_moment(stand_in):
    """At 12 moments, from the first import to the last: one line, and 130."""
    words = ["read", HOPPER, "--model", str(stand_in)]
    total = moments.moments(words)
    assert total > 500
    assert not [fault for moment in moments.spread(total, 12) if (fault := moments.fault(moment, words))]


def test_ctrl_c_in_other_commands():
    """And with the default model; a command that ends before an interruption is tried again is one, too."""
    cases = [(["list"], moment) for moment in (1, 350, 800)] + [(["read", HOPPER], 1200)]
    assert not [fault for words, moment in cases if (fault := moments.fault(moment, words))]


def test_an_import_is_not_cut(tmp_path):
    """What a library makes of an interruption within its import, a wrong error or a half module, never happens."""
    (tmp_path / "slow.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    sum(range(1000))\n"
        "except BaseException:\n    raise ImportError('cut')\ndone = True\n"
    )
    code = (
        "import signal, sys, time; from mien import console\n"
        "console.on_interrupt(console.interrupt)\n"
        "try:\n    import slow\n    time.sleep(20)\nexcept KeyboardInterrupt:\n    print(slow.done)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("True\n", "")


def test_an_interruption_in_a_finalizer_comes_again():
    code = (
        "import os, signal, time; from mien import console\n"
        "console.begin(); console.on_interrupt(console.interrupt)\n"
        "class Thing:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGINT); sum(range(10))\n"
        "try:\n    Thing(); time.sleep(20)\nexcept KeyboardInterrupt:\n    print('caught')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.stdout, run.stderr) == ("caught\n", "")


def test_closed_streams(stand_in, tmp_path):
    read = f"{sys.executable} -m mien read --model {stand_in} {HOPPER}"
    run = subprocess.run(f"{read} >&-", shell=True, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (1, "mien: stdout is closed\n")
    run = subprocess.run(f"{read} {tmp_path}/nix.jpg 2>&-", shell=True, capture_output=True, text=True)
    assert run.returncode == 1 and len(run.stdout.splitlines()) == 1  # of the error nothing comes among the rows
    run = subprocess.run(f"{read} {tmp_path}/nix.jpg 2>/dev/full", shell=True, capture_output=True, text=True)
    assert run.returncode == 1 and json.loads(run.stdout)["face"] == 0
    run = subprocess.run(f"{read} <&- >&- 2>&-", shell=True)
    assert run.returncode == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_narrow_terminals(stand_in, tmp_path, encoding):
    """A table has a × and a name may be of any letters."""
    picture = tmp_path / "Жан é.jpg"
    picture.write_bytes(Path(HOPPER).read_bytes())
    words = ["read", picture, tmp_path / "nö.jpg", "--model", stand_in]
    code, out = in_terminal(words, {"PYTHONIOENCODING": encoding, "COLUMNS": "200"})
    assert code == 1 and "Traceback" not in out
    assert "\\u0416\\u0430\\u043d" in out and "no such file" in out
    assert ("181x212" in out) == (encoding == "ascii")


def in_terminal(words, environment=None):
    """The exit code, and what stands on the terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mien", *map(str, words)]
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=os.environ | (environment or {})) as child:
        os.close(theirs)
        out = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:
                break
            if not part:
                break
            out += part
    os.close(ours)
    return child.returncode, out.decode("latin-1")


ESCAPES = "\x1b[2J", "\x9b31m", "a\x07b", "tab\there", "line\nmore", "\ud800"


@pytest.mark.parametrize("text", ESCAPES)
def test_escape_codes_in_a_model_never_reach_a_terminal(tmp_path, text, call):
    for change in ({"id2label": {**HEADER["id2label"], "3": text}}, {"model": {"class_path": f"mien.{text}"}}):
        path = write_stand_in(tmp_path / "model.onnx", HEADER | change)
        code, out, err = call("read", HOPPER, "--model", path)
        assert code == 1 and not out and len(err) == 1 and err[0].startswith(f"mien: {path}: ")
        assert err[0].isprintable()
    with pytest.raises(ValueError, match="control character"):
        Output("mood", "classes", ("good", text))


def test_what_a_model_says_of_itself_is_listed_without_escape_codes(tmp_path, call, monkeypatch):
    monkeypatch.setattr("mien.commands.list.MODELS", tmp_path)
    write_stand_in(tmp_path / "one/model.onnx", HEADER | {"training": {"data\x1b[2J": {"\x9bx": "\x1b]0;title\x07"}}})
    for words in (["list"], ["list", "--details"]):
        code, out, _ = call(*words)
        assert code == 0 and all(line.isprintable() for line in out) and any("one" in line for line in out)
    assert any("]0;title" in line for line in out)


def test_libraries_in_c_write_nothing(tmp_path, stand_in):
    code = (
        "import os, sys\nimport mien.commands.list as command\n"
        "def run(args):\n    os.write(2, b'libtiff: warning'); print('mien: own', file=sys.stderr); return 0\n"
        "command.run = run\nsys.argv[:] = ['mien', 'list']\n"
        "from mien.__main__ import main; code = main(); sys.exit(code)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "mien: own\n")


def test_cells_that_a_spreadsheet_would_compute():
    outputs = (expression_output(("=cmd", "fear")),)
    record = {"source": "@a\rb", "face": 0, "expression": "=cmd", "probability": 0.5, "score": -0.5}
    record |= {"probabilities": {"=cmd": 0.5, "fear": 0.5}, "box": [-1.0, 2.0, 3.0, 4.0], "note": "\tx"}
    for raw in (False, True):
        file = io.BytesIO()
        writer = CsvWriter(file, outputs, raw=raw)
        writer.write(record)
        writer.close()
        text = file.getvalue().decode()
        head, row = csv.reader(io.StringIO(text, newline=""))
        cells = dict(zip(head, row, strict=True))
        mark = "" if raw else "'"
        assert cells["source"] == f"{mark}@a\rb" and '"' in text
        assert cells["expression"] == f"{mark}=cmd" and cells["note"] == f"{mark}\tx"
        assert "-0.5" in row and not any(cell.startswith("'-") for cell in row)  # numbers stay numbers


def test_cells_of_a_summary(monkeypatch):
    rows = [{"source": "=a\r.mp4", "track": 1, "first": 0.0, "last": 1.0, "frames": 2, "seconds": 1.0}]
    rows[0] |= {"expression": "+x", "shares": {"+x": 1.0}, "mean": {"+x": 0.5}, "events": []}
    summary = Summary(("+x",), ())
    monkeypatch.setattr(summary, "rows", lambda: rows)
    for raw in (False, True):
        file = io.BytesIO()
        summary.write(file, ".csv", raw)
        _, row = csv.reader(io.StringIO(file.getvalue().decode(), newline=""))
        assert row[0] == ("" if raw else "'") + "=a\r.mp4" and row[6] == ("" if raw else "'") + "+x"
    assert file.getvalue().count(b"\n") == 2


NUMBERS = {
    "uncertain": float("nan"),
    "temperature": 10**400,
    "mean": [float("inf"), 0, 0],
    "std": [1e-30, 1, 1],
    "resize": [{"size": 10**6}],
    "steps": [{"size": 112}] * 1000,
    "init_args": {"depth": 10**12},
    "true": [{"size": True}],
}


@pytest.mark.parametrize("what", NUMBERS)
def test_numbers_of_a_header(what):
    header = copy.deepcopy(HEADER)
    match what:
        case "uncertain" | "temperature":
            header[what] = NUMBERS[what]
        case "init_args":
            header["model"]["init_args"] = NUMBERS[what]
        case "mean" | "std":
            header["preprocess"][what] = NUMBERS[what]
        case _:
            steps = NUMBERS[what]
            header["preprocess"] |= {"resize": steps, "input_size": steps[-1]["size"]}
    with pytest.raises(CheckpointError, match="^some.onnx: its header [^\n]+$"):
        check_header(header, "some.onnx")


def external(folder, name="weights.data", gain=1.0):
    """The stand-in with its tensors in a file of their own."""
    path = write_stand_in(folder / "model.onnx")
    model = onnx.load(path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "bias")
    bias = onnx.numpy_helper.to_array(weight) * np.float32(gain)
    weight.CopyFrom(onnx.numpy_helper.from_array(bias, "bias"))
    onnx.save(model, path, save_as_external_data=True, location=name, size_threshold=0)
    return path


def test_tensors_beside_a_model_count(tmp_path, monkeypatch):
    """They are taken from its folder, whatever lies in the working directory, and never stale from the cache."""
    path, here = external(tmp_path / "model"), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert external_files(path) == [tmp_path / "model/weights.data"]
    first, identity = Classifier.from_pretrained(path).run(FACES), sha256_of(path)
    (here / "weights.data").write_bytes(bytes((tmp_path / "model/weights.data").stat().st_size))
    assert np.array_equal(Classifier.from_pretrained(path).run(FACES), first)
    kept = set(cache_folder().glob("model-*"))
    (tmp_path / "model/weights.data").unlink()
    monkeypatch.chdir(tmp_path)  # onnx writes none whose name is taken where it works
    external(tmp_path / "model", gain=0.5)
    monkeypatch.chdir(here)
    changed = Classifier.from_pretrained(path).run(FACES)
    assert not np.allclose(changed, first) and sha256_of(path) != identity
    assert set(cache_folder().glob("model-*")) > kept
    Classifier.from_pretrained(path).save_pretrained(tmp_path / "copy")
    assert np.array_equal(Classifier.from_pretrained(tmp_path / "copy").run(FACES), changed)
    (tmp_path / "model/weights.data").unlink()
    with pytest.raises(CheckpointError, match=f"^{path}: its tensors in 'weights.data' are not beside it$"):
        Classifier.from_pretrained(path)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("where", ["../weights.data", "/etc/passwd", "", "..", "sub/weights.data"])
def test_tensors_elsewhere_are_not_taken(tmp_path, where, engine, monkeypatch):
    pytest.importorskip(engine)
    if engine == "onnxruntime":
        monkeypatch.setattr("mien.engines.find_spec", lambda name: None)
    path = write_stand_in(tmp_path / "in/model.onnx")
    (tmp_path / "weights.data").write_bytes(bytes(1000))
    model = onnx.load(path)
    models._lead_out(model.graph.initializer[0], where)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match=f"^{path}: its tensors in .* do not lie beside it$"):
        Classifier.from_pretrained(path)


def test_a_loop_is_refused(tmp_path):
    path = write_stand_in(tmp_path / "model.onnx")
    model = onnx.load(path)
    model.graph.node.append(models.endless())
    onnx.save(model, path)
    with pytest.raises(CheckpointError, match=f"^{path}: holds a Loop, which may never end$"):
        Classifier.from_pretrained(path)


@pytest.mark.parametrize("kind", models.OUTGROWN)
def test_work_without_end_is_refused(tmp_path, kind):
    """Of a few hundred bytes, by what its shapes say, before anything is computed."""
    path = models.outgrown(kind, tmp_path / "model.onnx")
    assert path.stat().st_size < 5000
    with pytest.raises(CheckpointError, match=f"^{path}: (its graph asks for more than|how large its) [^\n]+$"):
        Classifier.from_pretrained(path)


@pytest.mark.parametrize("kind", ["default", "detector"])
def test_networks_are_far_from_the_bound(kind, monkeypatch):
    """The default model, and the detector whose sides vary, are counted: 5·10⁸ for a face, and for 1024 × 1024."""
    model = find_model() if kind == "default" else open_yunet(cache=False)._path
    network = shared_core().read_model(model)
    if kind == "detector":
        network.reshape([1, 3, -1, -1])
    before = str(network.inputs)
    monkeypatch.setattr(work, "STEPS", 2 * 10**9)
    work.check_work(model, network)
    assert str(network.inputs) == before
    monkeypatch.setattr(work, "STEPS", 3 * 10**8)
    with pytest.raises(CheckpointError, match="asks for more than 300,000,000 multiplications for one face"):
        work.check_work(model, network)


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", ".xml", ".pt2"])
def test_a_model_is_a_file(tmp_path, suffix, call):
    path = tmp_path / f"model{suffix}"
    os.mkfifo(path)
    code, out, err = call("read", HOPPER, "--model", path)
    assert (code, out, err) == (1, [], [f"mien: {path}: neither a file nor a folder"])


def test_a_network_far_larger_than_its_weights(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from mien.networks import load_network

    arguments = {"num_classes": 500_000}
    header = HEADER | {"model": {"class_path": "mien.networks.btn_mobile", "init_args": arguments}}
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path, {"mien": json.dumps(header)})
    with pytest.raises(CheckpointError, match="far larger than its weights"):
        load_network(path)
