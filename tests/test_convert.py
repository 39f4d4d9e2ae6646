"""Published weights, in files laid out as they are published, into mien's own checkpoints."""

import io
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from published import (
    fill_by_rule,
    flat_ir50_shapes,
    foamliu_shapes,
    ir50_shapes,
    mobilefacenet_shapes,
    part,
    posterpp_shapes,
)
from safetensors.torch import save_file

from mien.__main__ import main
from mien.checkpoint import labels_of, read_header
from mien.commands.convert import KINDS as OFFERED
from mien.errors import CheckpointError
from mien.labels import EXPRESSIONS, ORDERS
from mien.networks import IR50, MobileFaceNet, ViT, load_network
from mien.networks.convert import KINDS, convert
from mien.networks.inert import _Inert, _InertUnpickler
from mien.networks.published import from_ir50


def vit_shapes(num_classes: int = 7, dim: int = 32, tokens: int = 9, depth: int = 1) -> dict[str, tuple[int, ...]]:
    """A small ViT in the published names, with what nothing reads."""
    shapes = {}
    for name, shape in part("VIT.", posterpp_shapes(num_classes)).items():
        if name.startswith("blocks.") and int(name.split(".")[1]) >= depth:
            continue
        shapes[name] = tuple(dim * n // 768 if n % 768 == 0 else n for n in shape)
    shapes["pos_embed"] = (1, tokens + 1, dim)
    return shapes


def hollow(shapes: dict) -> dict[str, torch.Tensor]:
    """Tensors of any shape, all zero, that take no room in a file."""
    return {name: torch.zeros((), dtype=torch.float32).expand(shape) for name, shape in shapes.items()}


def in_training(tensors: dict, **others) -> dict:
    """As a training script keeps them."""
    return {"epoch": 7, "state_dict": {f"module.{name}": t for name, t in tensors.items()}, **others}


def faces():
    return torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(0))


class RecorderMeter:
    def __init__(self):
        self.epoch_losses, self.total_epoch = np.zeros((3, 2), np.float32), 3


@pytest.fixture
def in_main(monkeypatch):
    """Pickles a class as one of the training script, which nobody who loads the file has."""

    def pickled(cls):
        monkeypatch.setattr(cls, "__module__", "__main__")
        monkeypatch.setattr(sys.modules["__main__"], cls.__name__, cls, raising=False)
        return cls

    return pickled


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_published_poster_checkpoint(legacy, tmp_path, in_main, monkeypatch):
    """With optimizer, best accuracy and the meters of the script, in the names of DataParallel."""
    weights = [torch.nn.Parameter(torch.zeros(3))]
    adam = torch.optim.Adam(weights)
    weights[0].grad = torch.ones(3)
    adam.step()
    meters = {"recorder": in_main(RecorderMeter)(), "recorder1": in_main(RecorderMeter)()}
    file = in_training(hollow(posterpp_shapes(8)), best_acc=torch.tensor(92.21), optimizer=adam.state_dict(), **meters)
    torch.save(file, tmp_path / "raf-db.pth", _use_new_zipfile_serialization=not legacy)
    monkeypatch.undo()
    assert not hasattr(sys.modules["__main__"], "RecorderMeter")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "raf-db.pth", weights_only=True)

    out = convert("poster", tmp_path / "raf-db.pth", tmp_path / "poster.safetensors")
    header = read_header(out)
    assert header["model"] == {"class_path": "mien.networks.poster", "init_args": {"num_classes": 8}}
    assert labels_of(header) == EXPRESSIONS
    assert header["preprocess"]["resize"] == [
        {"size": 224, "interpolation": "auto"},
        {"size": 112, "interpolation": "nearest"},
    ]
    assert header["preprocess"]["mean"] == [0.485, 0.456, 0.406] and header["preprocess"]["align"] == "none"
    network = load_network(out, freeze_landmarks=False)
    assert all(p.requires_grad for p in network.parameters()) and not network.training
    assert all((p == 0).all() for p in network.parameters())


LAYOUTS = {"stages": ir50_shapes, "flat": flat_ir50_shapes}


@pytest.mark.parametrize("layout, wrapped", [("stages", True), ("flat", False)])
def test_ir50(layout, wrapped, tmp_path):
    shapes = LAYOUTS[layout]()
    assert ("body.23.res_layer.4.weight" in shapes) == (layout == "flat")
    assert "output_layer.3.weight" in shapes  # (512, 25088), for nobody
    tensors = hollow(shapes) | fill_by_rule({name: shape for name, shape in shapes.items() if len(shape) == 1})
    torch.save(in_training(tensors) if wrapped else tensors, tmp_path / "ir50.pth")
    network = load_network(convert("ir50", tmp_path / "ir50.pth", tmp_path / "ir50.safetensors"))
    assert isinstance(network, IR50)
    state = network.state_dict()
    assert len(state) == 292 and sum(name.endswith("num_batches_tracked") for name in state) == 45
    unit = {"flat": "body.20", "stages": "body3.13"}[layout]
    for ours, theirs in (("body3.13", unit), ("body2.0", {"flat": "body.3", "stages": "body2.0"}[layout])):
        assert torch.equal(state[f"{ours}.res_layer.4.running_var"], tensors[f"{theirs}.res_layer.4.running_var"])
    maps = network(faces()[:1])
    assert [m.shape[1] for m in maps] == [64, 128, 256]


def test_both_layouts_of_ir50_are_the_same_network():
    staged, _ = from_ir50({name: name for name in ir50_shapes()})
    flat, unknown = from_ir50({name: name for name in flat_ir50_shapes()})
    assert not unknown and flat.keys() == staged.keys()
    assert flat["body1.2.res_layer.1.weight"] == "body.2.res_layer.1.weight"
    assert flat["body2.0.shortcut_layer.0.weight"] == "body.3.shortcut_layer.0.weight"
    assert flat["body3.0.res_layer.1.weight"] == "body.7.res_layer.1.weight"
    assert not [name for name in flat.values() if name.startswith(("body.21", "body.22", "body.23", "output"))]
    assert from_ir50({"body.24.res_layer.1.weight": 0})[1] == ["body.24.res_layer.1.weight"]  # a deeper network's


def test_counters_of_batch_norm_may_be_absent(tmp_path):
    shapes = {name: s for name, s in mobilefacenet_shapes().items() if not name.endswith("num_batches_tracked")}
    torch.save(hollow(shapes), tmp_path / "m.pth")
    load_network(convert("mobilefacenet", tmp_path / "m.pth", tmp_path / "m.safetensors"))


FILES = {
    # POSTER++'s landmark network, and foamliu's identity network
    "mobilefacenet_model_best.pth.tar": (mobilefacenet_shapes, True, "prelu", "conv_4.model.5.conv_dw.bn.bias"),
    "mobilefacenet.pt": (foamliu_shapes, False, "relu6", "features.11.conv.1.1.bias"),
}


@pytest.mark.parametrize("name", FILES)
def test_mobilefacenet(name, tmp_path):
    shapes, wrapped, variant, place = FILES[name]
    tensors = fill_by_rule(shapes())
    torch.save(in_training(tensors) if wrapped else tensors, tmp_path / name)
    out = convert("mobilefacenet", tmp_path / name, tmp_path / "out" / "trunk.safetensors")
    assert read_header(out)["model"]["init_args"] == {"variant": variant}
    network = load_network(out)
    assert isinstance(network, MobileFaceNet) and not network.training
    assert torch.equal(network.state_dict()["stages.2.5.depthwise.bn.bias"], tensors[place])
    assert all(m.isfinite().all() for m in network(faces()))


@pytest.mark.parametrize("form", ["alone", "in poster", "safetensors"])
def test_vit(form, tmp_path):
    tensors = fill_by_rule(vit_shapes())
    if form == "in poster":
        others = {"ir_back.input_layer.2.weight": torch.zeros(64), "conv1.weight": torch.zeros(1)}
        torch.save(in_training({f"VIT.{name}": t for name, t in tensors.items()} | others), tmp_path / "vit.pth")
    elif form == "alone":
        torch.save(tensors, tmp_path / "vit.pth")
    else:
        save_file(tensors, tmp_path / "vit.safetensors")
    source = tmp_path / ("vit.safetensors" if form == "safetensors" else "vit.pth")
    out = convert("vit", source, tmp_path / "out.safetensors")
    network = load_network(out)
    assert read_header(out)["model"]["init_args"] == {
        "num_classes": 7,
        "embed_dim": 32,
        "num_tokens": 9,
        "depth": 1,
    }
    direct = ViT(num_classes=7, num_tokens=9, embed_dim=32, depth=1)
    published = {
        ours: ours.replace("gate.", "se_block.").replace("head.", "head.linear.") for ours in direct.state_dict()
    }
    direct.load_state_dict({ours: tensors[theirs] for ours, theirs in published.items()})
    tokens = torch.randn(3, 9, 32)
    assert torch.equal(network(tokens), direct.eval()(tokens))


# nothing of a file is executed


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "legacy", "raw"])
def test_a_malicious_pickle_executes_nothing(form, protocol, tmp_path):
    marker = tmp_path / "executed"
    file = in_training(
        hollow(mobilefacenet_shapes()), best_acc=Evil(f"touch {marker}"), other=[Evil(f"touch {marker}")]
    )
    source = tmp_path / "evil.pth"
    if form == "raw":
        source.write_bytes(pickle.dumps(file["best_acc"], protocol=protocol))
        with pytest.raises(CheckpointError, match="not a torch checkpoint, or damaged"):
            convert("mobilefacenet", source, tmp_path / "out.safetensors")
    else:
        torch.save(file, source, pickle_protocol=protocol, _use_new_zipfile_serialization=form == "zip")
        convert("mobilefacenet", source, tmp_path / "out.safetensors")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(f"touch {marker}")))
    assert marker.exists()  # that it would have


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'touch %s'\ntR.",
        b'cbuiltins\neval\n(S\'open("%s", "w")\'\ntR.',
        b"csubprocess\ncall\n((lS'touch'\naS'%s'\natR.",
        b"cbuiltins\ngetattr\n(c__main__\n__loader__\nS'__class__'\ntRcos\nsystem\n(S'touch %s'\ntR.",
    ],
)
def test_what_a_pickle_calls_is_not_called(program, tmp_path):
    """Straight into torch's own container, where the tensors would stand."""
    marker = tmp_path / "executed"
    program = program.replace(b"%s", str(marker).encode())
    with zipfile.ZipFile(tmp_path / "evil.pth", "w") as archive:
        archive.writestr("evil/data.pkl", program)
        archive.writestr("evil/version", "3\n")
        archive.writestr("evil/byteorder", "little")
    with pytest.raises(CheckpointError, match=r"evil\.pth: holds no state dict"):
        convert("vit", tmp_path / "evil.pth", tmp_path / "out.safetensors")
    assert {path.name for path in tmp_path.iterdir()} == {"evil.pth"}
    pickle.loads(program)
    assert marker.exists()  # that it would have


@pytest.mark.parametrize(
    "name",
    [
        "os system",
        "builtins getattr",
        "torch load",
        "torch._utils _import_dotted_name",
        "torch.storage _load_from_bytes",
        "torch.storage TypedStorage.from_buffer",
        "torch hub.load.Storage",
        "collections OrderedDict.__init__",
    ],
)
def test_no_such_name_is_looked_up(name):
    found = _InertUnpickler(io.BytesIO()).find_class(*name.split())
    assert issubclass(found, _Inert) and isinstance(found("anything", at=1), _Inert)


def test_a_torchscript_program_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "version", "code/__torch__.py"):
            archive.writestr(f"program/{name}", b"\x80\x02}.")
    with pytest.raises(CheckpointError, match="program.pt: .*TorchScript program"):
        convert("vit", tmp_path / "program.pt", tmp_path / "out.safetensors")


# what does not fit is told, and nothing is written


def refused(kind: str, tensors: dict, tmp_path: Path, capsys) -> str:
    """What the command says on refusing; it must be one line, and leave nothing behind."""
    torch.save(tensors, tmp_path / "source.pth")
    assert main(["convert", kind, str(tmp_path / "source.pth"), str(tmp_path / "out" / "out.safetensors")]) == 1
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith(f"mien: {tmp_path / 'source.pth'}: ")
    assert {path.name for path in tmp_path.iterdir()} == {"source.pth"}
    return err.removeprefix(f"mien: {tmp_path / 'source.pth'}: ").strip()


def unfit(*arguments) -> str:
    kind_of_refusal, _, problems = refused(*arguments).partition(": ")
    assert kind_of_refusal == "tensors do not fit"
    return problems


SHAPES = {"poster": posterpp_shapes, "ir50": ir50_shapes, "mobilefacenet": mobilefacenet_shapes, "vit": vit_shapes}


@pytest.mark.parametrize(
    "kind, gone, place",
    [
        ("poster", "attn2.relative_position_bias_table", "cross.1.relative_bias"),
        ("poster", "VIT.head.linear.weight", "vit.head.weight"),
        ("poster", "ir_back.body3.13.res_layer.4.running_var", "image.body3.13.res_layer.4.running_var"),
        ("ir50", "input_layer.0.weight", "input_layer.0.weight"),
        ("mobilefacenet", "conv_3.model.2.project.conv.weight", "stages.0.3.project.conv.weight"),
        ("vit", "pos_embed", "pos_embed"),
        ("vit", "head.linear.weight", "head.weight"),
    ],
)
def test_a_missing_tensor(kind, gone, place, tmp_path, capsys):
    shapes = SHAPES[kind]()
    del shapes[gone]
    assert place in unfit(kind, hollow(shapes), tmp_path, capsys).partition(" missing: ")[2].split("; ")[0]


@pytest.mark.parametrize("kind", SHAPES)
def test_an_extra_tensor(kind, tmp_path, capsys):
    tensors = hollow(SHAPES[kind]() | {"window_9.norm.weight": (3,), "aux": (1,)})
    said = unfit(kind, tensors, tmp_path, capsys)
    if kind == "vit":
        assert said == "2 without a place: 'aux', 'window_9.norm.weight'"
    assert "without a place: " in said and "window_9.norm.weight" in said and "aux" in said


@pytest.mark.parametrize(
    "kind, name, place, right",
    [
        ("poster", "embed_q.1.weight", "embed_low.1.weight", (768, 768, 3, 3)),
        ("mobilefacenet", "conv1.conv.weight", "stem.conv.weight", (64, 3, 3, 3)),
        ("vit", "norm.bias", "norm.bias", (32,)),
    ],
)
def test_a_tensor_of_another_shape(kind, name, place, right, tmp_path, capsys):
    said = unfit(kind, hollow(SHAPES[kind]() | {name: (5, 4)}), tmp_path, capsys)
    assert said == f"1 of another shape: {place} is (5, 4), not {right}"


def test_every_tensor_that_does_not_fit_is_listed(tmp_path, capsys):
    shapes = vit_shapes()
    del shapes["norm.weight"], shapes["cls_token"]
    shapes |= {f"new.{i}": (1,) for i in range(20)} | {"head.linear.bias": (6,)}
    said = unfit("vit", hollow(shapes), tmp_path, capsys)
    new = ", ".join(f"'new.{i}'" for i in sorted(range(20), key=str))
    assert said == (
        f"2 missing: cls_token, norm.weight; 20 without a place: {new}; 1 of another shape: head.bias is (6,), not (7,)"
    )


def test_two_tensors_for_one_place(tmp_path, capsys):
    both = hollow({"body1.0.res_layer.2.weight": (64,), "body.0.res_layer.2.weight": (64,)})
    said = unfit("ir50", hollow(ir50_shapes()) | both, tmp_path, capsys)
    assert said == "1 without a place: 'body.0.res_layer.2.weight'"


@pytest.mark.parametrize("name", ["head.linear.weight", "pos_embed", "cls_token"])
def test_sizes_that_cannot_be(name, tmp_path, capsys):
    assert name in refused("vit", hollow(vit_shapes() | {name: ()}), tmp_path, capsys).replace(
        "head.w", "head.linear.w"
    )
    said = refused("vit", hollow(vit_shapes(dim=36)), tmp_path, capsys)
    assert said == "mien.networks.ViT cannot be built: dim 36 is not a multiple of num_heads 8"


def test_one_kind_is_not_another(tmp_path, capsys):
    assert " missing: " in unfit("ir50", hollow(mobilefacenet_shapes()), tmp_path, capsys)
    assert " missing: " in unfit("mobilefacenet", hollow(vit_shapes()), tmp_path, capsys)


def test_damaged_files(tmp_path):
    torch.save(hollow(vit_shapes()), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    bad = {
        "empty.pth": b"",
        "text.pth": b"not weights\n",
        "cut.pth": whole[: len(whole) // 2],
        "cut.safetensors": b"\x10\0\0\0\0\0\0\0{",
        "list.pth": None,
        "none.pth": None,
    }
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"epoch": 1}, tmp_path / "none.pth")
    for name, content in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    for name in [*bad, "gone.pth", "gone.safetensors"]:
        with pytest.raises(CheckpointError, match=name) as error:
            convert("vit", tmp_path / name, tmp_path / "out.safetensors")
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out.safetensors").exists()


# labels, and the command


def test_labels(tmp_path):
    def converted(num_classes, labels=None):
        torch.save(hollow(vit_shapes(num_classes)), tmp_path / "vit.pth")
        return labels_of(read_header(convert("vit", tmp_path / "vit.pth", tmp_path / "vit.safetensors", labels)))

    assert converted(7) == ORDERS["rafdb"] == converted(7, "rafdb")
    assert converted(8) == EXPRESSIONS
    assert converted(7, "affectnet7") == ORDERS["affectnet7"]
    assert converted(3, "up, down,sideways") == ("up", "down", "sideways")
    for count, labels, reason in [
        (5, None, "5 classes apart, and 0 labels"),
        (8, "rafdb", "8 classes apart, and 7 labels"),
        (7, "rafbd", "7 classes apart, and 1 labels"),
        (3, "up,down,up", "names one label twice"),
        (3, "up,,down", "without a name"),
    ]:
        (tmp_path / "vit.safetensors").unlink(missing_ok=True)
        with pytest.raises(CheckpointError, match=reason):
            converted(count, labels)
        assert not (tmp_path / "vit.safetensors").exists()
    torch.save(hollow(mobilefacenet_shapes()), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="takes no labels"):
        convert("mobilefacenet", tmp_path / "m.pth", tmp_path / "m.safetensors", "rafdb")


def test_the_command(tmp_path, capsys):
    torch.save(hollow(vit_shapes(3)), tmp_path / "vit.pth")
    source, out = str(tmp_path / "vit.pth"), str(tmp_path / "vit.safetensors")
    assert main(["convert", "vit", source, out, "--labels", "a,b,c"]) == 0
    assert capsys.readouterr() == (f"{out}\n", "")
    assert labels_of(read_header(out)) == ("a", "b", "c")
    assert load_network(out).head.weight.shape == (3, 32)
    assert main(["convert", "vit", source, str(tmp_path / "vit.onnx")]) == 1
    assert "a checkpoint for torch ends in .safetensors" in capsys.readouterr().err
    for misuse in (["yolo", source, out], ["vit", source], ["vit", source, out, "--order", "a"]):
        with pytest.raises(SystemExit) as end:
            main(["convert", *misuse])
        assert end.value.code == 2
        capsys.readouterr()
    assert tuple(KINDS) == OFFERED


def test_the_command_without_torch_says_which_extra_brings_it(tmp_path):
    code = "import sys; sys.modules['torch'] = None\nfrom mien.__main__ import main\nsys.exit(main(sys.argv[1:]))"
    run = subprocess.run(
        [sys.executable, "-c", code, "convert", "vit", "a.pth", "b.safetensors"], capture_output=True, text=True
    )
    assert run.returncode == 1 and run.stderr == 'mien: this needs torch: pip install "mien[torch]"\n'
