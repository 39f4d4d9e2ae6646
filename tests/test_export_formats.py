"""OUT.onnx, OUT.xml and OUT.pt2: what is in them, which engine runs them, what is said of files that are none."""

import io
import json
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from test_export_networks import KINDS, faces, lively, note, plain

import mien.classifier
import mien.export.ir
import mien.precision
from mien import engines
from mien.__main__ import main
from mien.checkpoint import read_header
from mien.classifier import Classifier, find_checkpoint
from mien.engines import OnnxRuntimeEngine, open_model
from mien.errors import CheckpointError, MienError
from mien.export import export_model, export_program
from mien.export.ir import write_ir
from mien.export.onnx import make_onnx, store_as_half, write_onnx
from mien.networks import mobilefacenet, save_network

# what is in the files


@pytest.fixture(scope="module")
def network():
    return lively(plain())


@pytest.fixture(scope="module")
def exported(network, tmp_path_factory):
    """Files of one network, weights in fp16, and a folder "full" with others in fp32."""
    folder = tmp_path_factory.mktemp("exported")
    model = make_onnx(network, note(32), half=False)
    for place, half in ((folder / "full", False), (folder, True)):
        if half:
            store_as_half(model.graph)
        write_onnx(place / "model.onnx", model, note(32))
        write_ir(place / "model.xml", model, note(32))
        export_program(place / "model.pt2", network, note(32), half=half)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_the_header_is_in_all_of_them(exported, kind):
    assert read_header(exported / f"model.{kind}") == note(32)


@pytest.mark.parametrize("kind", KINDS)
def test_fp16_is_half_the_size_and_the_same_answer(exported, network, kind):
    a, b = (open_model(folder / f"model.{kind}", device="cpu", cache=False) for folder in (exported, exported / "full"))
    np.testing.assert_allclose(a(faces(32))["probs"], b(faces(32))["probs"], atol=1e-6)
    halved = sum(tensor.numel() for tensor in network.parameters() if tensor.numel() >= 64)
    assert stored(exported, kind).count("half") > 3 and "half" not in stored(exported / "full", kind)
    file = "model.bin" if kind == "xml" else f"model.{kind}"
    saved = (exported / "full" / file).stat().st_size - (exported / file).stat().st_size
    assert kind == "pt2" or saved > 1.5 * halved  # where so small a network is more graph than weights
    assert all(tensor.dtype == torch.float32 for tensor in network.parameters())


def test_fp16_is_half_the_size_of_convolutions_with_batch_norm_too(tmp_path):
    """The norm becomes part of the convolution on the way, whose weights fp16 does not hold then."""
    network = mobilefacenet(num_classes=8)
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 2)
    save_network(tmp_path / "m.safetensors", network.eval(), note(112))
    answers, sizes = {}, {}
    for precision in ("fp32", "fp16", None):
        out = tmp_path / f"{precision}.onnx"
        export_model(tmp_path / "m.safetensors", out, precision=precision)
        answers[precision] = open_model(out, device="cpu", cache=False)(faces(112))["probs"]
        sizes[precision] = out.stat().st_size
    parameters = sum(p.numel() for p in network.parameters())
    assert sizes["fp32"] - sizes["fp16"] > 1.9 * parameters and sizes[None] > 0.95 * sizes["fp32"]
    np.testing.assert_array_equal(answers[None], answers["fp32"])
    np.testing.assert_allclose(answers["fp16"], answers["fp32"], atol=2e-3)


def stored(folder, kind) -> list[str]:
    """How each tensor of a file is kept."""
    if kind == "onnx":
        tensors = onnx.load(folder / "model.onnx").graph.initializer
        return ["half" if tensor.data_type == onnx.TensorProto.FLOAT16 else "other" for tensor in tensors]
    if kind == "xml":
        return re.findall(r'half(?=" shape)', (folder / "model.xml").read_text().replace('"f16"', '"half"'))
    tensors = torch.export.load(folder / "model.pt2").state_dict.values()
    return ["half" if tensor.dtype == torch.float16 else "other" for tensor in tensors]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_tells_where_it_was_made(exported, kind):
    data = (exported / f"model.{kind}").read_bytes()
    assert not any(word.encode() in data for word in (__file__, mien.__file__, "deploy.py"))
    if kind == "pt2":
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert not any(archive.getinfo(name).file_size for name in archive.namelist() if "sample_inputs" in name)


@pytest.mark.parametrize("kind", KINDS)
def test_mien_read_runs_it(exported, tmp_path, kind, capsys):
    Image.fromarray(faces(32)[0]).save(tmp_path / "a.png")
    wanted = Classifier.from_pretrained(exported / "model.onnx").predict_proba([faces(32)[0]])[0]
    words = ["read", str(tmp_path / "a.png"), "--aligned", "--model", str(exported / f"model.{kind}")]
    assert main(words) == 0
    row = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(
        [row["probabilities"][label] for label in note(32)["id2label"].values()], wanted, atol=1e-4
    )


@pytest.mark.parametrize("kind", ["xml", "pt2"])
def test_saved_and_opened_as_a_folder(exported, tmp_path, kind):
    (tmp_path / "one").mkdir()
    for file in [f"model.{kind}", *(["model.bin"] if kind == "xml" else [])]:
        (tmp_path / "one" / file).write_bytes((exported / file).read_bytes())
    first = Classifier.from_pretrained(tmp_path / "one")
    first.save_pretrained(tmp_path / "two")
    again = Classifier.from_pretrained(tmp_path / "two")
    assert again.path == tmp_path / f"two/model.{kind}" and again.header == note(32)
    np.testing.assert_array_equal(again.run(faces(32)), first.run(faces(32)))


def test_bf16_in_torch(exported):
    exact, close = (open_model(exported / "model.pt2", device="cpu", precision=p) for p in ("fp32", "bf16"))
    distance = np.abs(exact(faces(32))["probs"] - close(faces(32))["probs"]).max()
    assert 0 < distance < 0.1 and (exact.precision, close.precision) == ("fp32", "bf16")


# which precision is taken


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loses", [None, -0.002, -0.0031])
def test_auto_asks_the_header(exported, tmp_path, monkeypatch, kind, loses):
    """bf16 where it was measured to lose less than 0.3 points, and never in torch, where nothing was measured."""
    monkeypatch.setattr(mien.precision, "computes_bf16", lambda: True)
    asked = []
    monkeypatch.setattr(mien.classifier, "open_model", lambda path, **options: asked.append(options["precision"]))
    head = note(32)
    if loses is not None:
        head["precision"] = {
            "bf16": {"accuracy_difference": loses, "interval": [-0.01, 0.01], "faces": 99, "mean_distance": 0.01}
        }
    monkeypatch.setattr(mien.classifier, "read_header", lambda path: head)
    Classifier.from_pretrained(exported / f"model.{kind}")
    assert asked == ["bf16" if loses == -0.002 and kind != "pt2" else "fp32"]


def test_what_is_exported_by_default_has_weights_for_torch():
    assert (
        find_checkpoint().name == "model.safetensors" and find_checkpoint().parent.name == mien.classifier.DEFAULT_MODEL
    )


# what is missing


def test_without_openvino(exported, monkeypatch):
    wanted = open_model(exported / "model.onnx")(faces(32))["probs"]
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    engine = open_model(exported / "model.onnx")
    assert isinstance(engine, OnnxRuntimeEngine)
    np.testing.assert_allclose(engine(faces(32))["probs"], wanted, atol=1e-4)
    with pytest.raises(MienError, match=r"model\.xml: only OpenVINO runs it"):
        open_model(exported / "model.xml")


def test_without_torch_a_pt2_names_the_extra(exported, tmp_path):
    Image.fromarray(faces(32)[0]).save(tmp_path / "a.png")
    code = "import sys; sys.modules['torch'] = None; from mien.__main__ import main; sys.exit(main(sys.argv[1:]))"
    words = ["read", tmp_path / "a.png", "--aligned", "--model"]
    for kind, rc in (("onnx", 0), ("xml", 0), ("pt2", 1)):
        command = [sys.executable, "-c", code, *words, exported / f"model.{kind}"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == rc, done.stderr
    assert done.stderr == 'mien: this needs torch: pip install "mien[torch]"\n'


@pytest.mark.parametrize("kind, options", [("xml", {"device": "cuda"}), ("pt2", {"shape": (1, 32, 32, 3)})])
def test_what_an_engine_cannot_do(exported, kind, options):
    with pytest.raises(MienError):
        open_model(exported / f"model.{kind}", **options)


def test_a_gpu_that_is_not_there(exported):
    if torch.cuda.is_available():
        engine = open_model(exported / "model.pt2", device="cuda")
        wanted = open_model(exported / "model.pt2", device="cpu")(faces(32))["probs"]
        np.testing.assert_allclose(engine(faces(32))["probs"], wanted, atol=1e-3)
    else:
        with pytest.raises(MienError, match="cuda: no GPU"):
            open_model(exported / "model.pt2", device="cuda")


# damaged and strange files


def zeroed(data: bytes) -> bytes:
    """A block of zeros in the place of some weights."""
    middle = len(data) * 2 // 3
    return data[:middle] + bytes(64) + data[middle + 64 :]


def flip_a_weight(data: bytes) -> bytes:
    """One bit of the largest stored tensor of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = max((one for one in archive.infolist() if "weight_" in one.filename), key=lambda one: one.file_size)
        place = data.index(archive.read(entry))
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGE = {
    "xml": {
        "a folder": lambda path: (path.unlink(), path.mkdir()),
        "missing": lambda path: path.unlink(),
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("hello"),
        "cut short": lambda path: path.write_bytes(path.read_bytes()[:-300]),
        "another document": lambda path: path.write_text("<html><rt_info/></html>"),
        "no header": lambda path: path.write_bytes(path.read_bytes().replace(b"<mien ", b"<other ")),
        "entities": lambda path: path.write_text(
            '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa">'
            + "".join(f'<!ENTITY a{i} "{f"&a{i - 1 or str()};" * 10}">' for i in range(1, 10))
            + "]><net><rt_info><mien>&a9;</mien></rt_info></net>"
        ),
        "a folder as weights": lambda path: (path.with_suffix(".bin").unlink(), path.with_suffix(".bin").mkdir()),
        "no weights": lambda path: path.with_suffix(".bin").unlink(),
        "weights cut short": lambda path: path.with_suffix(".bin").write_bytes(
            path.with_suffix(".bin").read_bytes()[:-4]
        ),
        "zeros in the weights": lambda path: path.with_suffix(".bin").write_bytes(
            zeroed(path.with_suffix(".bin").read_bytes())
        ),
    },
    "pt2": {
        "a folder": lambda path: (path.unlink(), path.mkdir()),
        "missing": lambda path: path.unlink(),
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("hello"),
        "cut short": lambda path: path.write_bytes(path.read_bytes()[:-300]),
        "a bit of a weight": lambda path: path.write_bytes(flip_a_weight(path.read_bytes())),
        "no header": lambda path: torch.export.save(torch.export.load(path), path),
        "nothing but a header": lambda path: only_a_header(path),
    },
}


def only_a_header(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/extra/mien", json.dumps(note(32)))


@pytest.mark.parametrize("kind, how", [(kind, how) for kind in DAMAGE for how in DAMAGE[kind]])
def test_damaged_files_are_told_in_a_line(exported, tmp_path, kind, how, capfd):
    path = tmp_path / f"a.{kind}"
    path.write_bytes((exported / f"model.{kind}").read_bytes())
    if kind == "xml":
        path.with_suffix(".bin").write_bytes((exported / "model.bin").read_bytes())
    assert Classifier.from_pretrained(path).labels
    DAMAGE[kind][how](path)
    capfd.readouterr()
    with pytest.raises(CheckpointError, match=rf"^{tmp_path}/a\.(xml|bin|pt2): [^\n]+$"):
        Classifier.from_pretrained(path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["xml", "pt2"])
def test_noise_has_no_header(tmp_path, kind):
    draw = np.random.default_rng(0)
    for start in (b"", b"PK\3\4", b"<net>", b'<?xml version="1.0"?>'):
        path = tmp_path / f"a.{kind}"
        path.write_bytes(start + draw.bytes(200))
        with pytest.raises(CheckpointError, match=f"^{path}: [^\n]+$"):
            read_header(path)


class Bomb:
    """What a pickle does when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def rewrite(path, record: str, change) -> None:
    """Replace a file of an archive by what `change` makes of it, or add one."""
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(files)).partition("/")[0]
    files[f"{root}/{record}"] = change(files.get(f"{root}/{record}", b""))
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)


def in_graph(change):
    """A change to the nodes of a program."""

    def apply(data: bytes) -> bytes:
        program = json.loads(data)
        change(program)
        return json.dumps(program).encode()

    return apply


def call_instead(program, target: str, where: str) -> None:
    node = program["graph_module"]["graph"]["nodes"][0]
    node["target"] = target
    node["inputs"] = [{"name": "", "arg": {"as_string": where}, "kind": 1}]


GRAPH, WEIGHTS, INPUTS = "models/model.json", "data/weights/model_weights_config.json", "data/sample_inputs/model.pt"


def strangers(trap) -> dict:
    """What else than operations on tensors torch would run; each would make the file `trap`."""
    call = f"open({str(trap)!r}, 'w')"
    pickled = pickle.dumps(Bomb(trap))
    size = f"Symbol('s1') if {call} else Symbol('s2')"
    return {
        "a call": (GRAPH, in_graph(lambda p: call_instead(p, "torch.os.mkdir", str(trap)))),
        "a call of one word": (GRAPH, in_graph(lambda p: call_instead(p, "torch.os.abort", ""))),
        "a file of torch's": (GRAPH, in_graph(lambda p: call_instead(p, "torch.ops.aten.from_file.default", "trap"))),
        "a guard": (GRAPH, in_graph(lambda p: p.update(guards_code=[call]))),
        "a size": (GRAPH, in_graph(lambda p: p["range_constraints"].update({call: {"min_val": 1, "max_val": 2}}))),
        "an expression": (GRAPH, lambda data: data.replace(b"Symbol('s", size.encode() + b" + Symbol('s", 1)),
        "a name": (
            GRAPH,
            in_graph(lambda p: p["graph_module"]["graph"]["inputs"][0]["as_tensor"].update(name=f"x={call}")),
        ),
        "sample inputs": (INPUTS, lambda data: pickled),
        "a pickled weight": (WEIGHTS, lambda data: data.replace(b'"use_pickle": false', b'"use_pickle": true')),
        "an object": ("data/constants/custom_obj_0", lambda data: pickled),
        "old weights": ("data/weights/model.pt", lambda data: pickled),
        "compiled code": ("data/aotinductor/model/a.so", lambda data: b"\x7fELF"),
        "a second program": ("models/other.json", lambda data: b"{}"),
    }


@pytest.mark.parametrize("what", strangers("trap"))
def test_a_program_that_would_do_more_is_not_run(exported, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    trap = tmp_path / "trap"
    record, change = strangers(trap)[what]
    path = tmp_path / "a.pt2"
    path.write_bytes((exported / "model.pt2").read_bytes())
    rewrite(path, "extra/mien", lambda data: data)  # a new archive of the same files is as good as the old one
    assert Classifier.from_pretrained(path).labels
    rewrite(path, record, change)
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("torch was given it"))
    with pytest.raises(CheckpointError, match=rf"^{path}: no model that torch can run \([^\n]+$"):
        Classifier.from_pretrained(path)
    assert not trap.exists()


def test_two_halves_of_an_ir_that_are_strangers(exported, tmp_path):
    """As after a cut between the two renames."""
    model = onnx.load(exported / "model.onnx")
    [head] = [tensor for tensor in model.graph.initializer if tensor.name.endswith("head.bias")]
    head.CopyFrom(onnx.numpy_helper.from_array(np.ones(8, np.float32), head.name))
    write_ir(tmp_path / "a.xml", model, note(32))
    Classifier.from_pretrained(tmp_path / "a.xml")
    (tmp_path / "a.bin").write_bytes((exported / "model.bin").read_bytes())
    with pytest.raises(CheckpointError, match=r"a\.xml: a\.bin beside it is damaged, or of another model"):
        Classifier.from_pretrained(tmp_path / "a.xml")


def test_a_disk_that_is_full_leaves_the_old_pair(exported, tmp_path, monkeypatch):
    for suffix in ("xml", "bin"):
        (tmp_path / f"a.{suffix}").write_bytes(b"old")
    model = onnx.load(exported / "model.onnx")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(mien.export.ir, "whole", full)
    with pytest.raises(OSError):
        write_ir(tmp_path / "a.xml", model, note(32))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a.xml": b"old", "a.bin": b"old"}
