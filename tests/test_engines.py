"""Engines: the same answer whatever the batch, the thread and the engine; a cache that can only cost time."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from conftest import write_stand_in

from mien import engines
from mien.engines import OnnxRuntimeEngine, OpenVINOEngine, TorchEngine, open_model, openvino
from mien.errors import CheckpointError, MienError
from mien.faces.detect import open_yunet


@pytest.fixture(scope="module")
def path(stand_in):
    return stand_in / "model.onnx"


@pytest.fixture(scope="module")
def crops():
    """Faces of one colour each, and some noise."""
    rng = np.random.default_rng(0)
    crops = np.repeat(np.repeat(rng.integers(0, 256, (37, 1, 1, 3), dtype=np.uint8), 112, axis=1), 112, axis=2)
    crops[::5] = rng.integers(0, 256, crops[::5].shape, dtype=np.uint8)
    return crops


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MIEN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def torch_twin(path):
    import torch

    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}

    class Twin(torch.nn.Module):
        def forward(self, faces):
            logits = (faces.float() / 255).mean((1, 2)) @ torch.tensor(weights["weight"]) + torch.tensor(
                weights["bias"]
            )
            return logits, logits.softmax(-1)

    return Twin()


def test_every_engine_gives_the_same(path, crops):
    first, *others = OpenVINOEngine(path), OnnxRuntimeEngine(path), TorchEngine(torch_twin(path), device="cpu")
    wanted = first(crops)
    assert set(wanted) == {"logits", "probs"} == set(first.outputs)
    assert wanted["probs"].dtype == np.float32 and wanted["probs"].shape == (37, 8)
    for engine in others:
        got = engine(crops)
        assert set(engine.outputs) == set(got) == set(wanted)
        for name in wanted:
            np.testing.assert_allclose(got[name], wanted[name], rtol=5e-4, atol=1e-3)  # a mean of 12,544 in fp32
            assert got[name].dtype == np.float32


@pytest.mark.parametrize("count", [1, 2, 3, 8, 9, 37])
def test_a_row_does_not_depend_on_its_batch(path, crops, count):
    engine = open_model(path)
    batch = engine(crops[:count])
    for i in range(count):
        for name, value in engine(crops[i : i + 1]).items():
            np.testing.assert_array_equal(value[0], batch[name][i])


def test_answers_are_ones_own(path, crops):
    """What one call returned is not overwritten by the next."""
    engine = open_model(path)
    first = engine(crops[:1])["probs"]
    before = first.copy()
    engine(255 - crops[:1])
    np.testing.assert_array_equal(first, before)


def test_arrays_of_any_layout(path, crops):
    engine = open_model(path)
    wanted = engine(crops)["probs"]
    still = crops.copy()
    still.flags.writeable = False
    backwards = np.ascontiguousarray(crops[:, :, ::-1])[:, :, ::-1]
    for given in (still, backwards, np.asfortranarray(crops)):
        np.testing.assert_array_equal(engine(given)["probs"], wanted)


@pytest.mark.parametrize("kind", ["OpenVINO", "onnxruntime", "torch"])
def test_threads_share_one_engine(path, crops, kind):
    make = {"OpenVINO": OpenVINOEngine, "onnxruntime": OnnxRuntimeEngine, "torch": lambda p: TorchEngine(torch_twin(p))}
    engine = make[kind](path)
    alone = [engine(crops[i : i + 1 + i % 9])["probs"] for i in range(28)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda n: engine(crops[n % 28 : n % 28 + 1 + n % 28 % 9])["probs"], range(400)))
    for n, probs in enumerate(together):
        np.testing.assert_allclose(probs, alone[n % 28], atol=1e-6)


def test_another_shape():
    """YuNet's file says 640×640."""
    engine = open_yunet()
    for height, width in ((32, 64), (96, 32), (32, 64)):
        out = engine(np.zeros((1, 3, height, width), np.float32))
        assert out["bbox_8"].shape == (1, height * width // 64, 4) and out["kps_32"].shape[1] == height * width // 1024


def test_bf16_is_asked_for_and_never_taken(path, crops):
    settings = [open_model(path, precision=name)._get().model.get_property("INFERENCE_PRECISION_HINT").to_string()
                for name in ("auto", "fp32", "bf16")]  # fmt: skip
    assert settings == ["f32", "f32", "bf16" if engines.computes_bf16() else "f32"]
    exact = TorchEngine(torch_twin(path), device="cpu")(crops)["logits"]
    close = TorchEngine(torch_twin(path), device="cpu", precision="bf16")(crops)["logits"]
    assert close.dtype == np.float32 and 0 < np.abs(close - exact).max() < 0.2


@pytest.mark.parametrize("options", [{"device": "tpu"}, {"precision": "int3"}, {"device": "cuda", "precision": "bf16"}])
def test_options_that_are_not_there(path, options):
    with pytest.raises(MienError):
        open_model(path, **options)


def test_cuda_where_there_is_none(path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(MienError, match="cuda"):
        open_model(path, device="cuda")
    with pytest.raises(MienError, match="cuda"):
        TorchEngine(torch_twin(path), device="cuda")


def test_without_openvino_there_is_onnxruntime(path, crops, monkeypatch):
    wanted = open_model(path)(crops)["probs"]
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    engine = open_model(path)
    assert isinstance(engine, OnnxRuntimeEngine)
    np.testing.assert_allclose(engine(crops)["probs"], wanted, atol=1e-3)


def without_a_tensor(path):
    model = onnx.load(path)
    del model.graph.initializer[0]
    onnx.save(model, path)


DAMAGE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:400]),
    "a tensor missing": without_a_tensor,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("engine", [OpenVINOEngine, OnnxRuntimeEngine])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_models_are_told_in_a_line(tmp_path, engine, damage):
    path = write_stand_in(tmp_path / "model.onnx")
    DAMAGE[damage](path)
    with pytest.raises(CheckpointError, match=f"^{path}: [^\n]+$"):
        engine(path)


class Compiled(Exception):
    """The model was not taken from the cache."""


def from_cache(path, monkeypatch, **options):
    """Open the model with nothing at hand to compile it."""

    class Core:
        def __getattr__(self, name):
            if name in ("read_model", "compile_model"):
                raise Compiled
            return getattr(core, name)

    core = openvino.shared_core()
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "_core", Core())
        return OpenVINOEngine(path, **options)


def test_the_second_start_compiles_nothing(path, crops, cache, monkeypatch):
    wanted = OpenVINOEngine(path)(crops)["probs"]
    assert len(list(cache.iterdir())) == 1
    np.testing.assert_array_equal(from_cache(path, monkeypatch)(crops)["probs"], wanted)


def test_another_model_or_setting_is_another_file(path, cache, monkeypatch, tmp_path):
    OpenVINOEngine(path)
    other = tmp_path / "model.onnx"  # of the same name and size, and of other weights
    model = onnx.load(path)
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.ones(8, np.float32), "bias"))
    onnx.save(model, other)
    assert other.stat().st_size == path.stat().st_size
    for given, options in ((other, {}), (path, {"precision": "bf16"}), (path, {"shape": (2, 112, 112, 3)})):
        with pytest.raises(Compiled):
            from_cache(given, monkeypatch, **options)
        OpenVINOEngine(given, **options)
    assert len(list(cache.iterdir())) == 4


def test_no_cache_when_none_is_wanted(path, cache):
    OpenVINOEngine(path, cache=False)
    assert not cache.exists()


CORRUPTION = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[: len(data) // 2],
    "zeros within": lambda data: data[:-600] + bytes(300) + data[-300:],
    "one bit": lambda data: data[:-20] + bytes([data[-20] ^ 1]) + data[-19:],
    "another file": lambda data: b"hello" * 99,
    "a sound file of nonsense": lambda data: (3523407757).to_bytes(4) + b"\0",  # the checksum of one zero, and it
}


@pytest.mark.parametrize("how", CORRUPTION)
def test_a_corrupt_cache_is_made_anew(path, crops, cache, monkeypatch, how):
    wanted = OpenVINOEngine(path)(crops)["probs"]
    [kept] = cache.iterdir()
    sound = kept.read_bytes()
    kept.write_bytes(CORRUPTION[how](sound))
    with pytest.raises(Compiled):
        from_cache(path, monkeypatch)
    np.testing.assert_array_equal(OpenVINOEngine(path)(crops)["probs"], wanted)
    np.testing.assert_array_equal(from_cache(path, monkeypatch)(crops)["probs"], wanted)
    assert [file.name for file in cache.iterdir()] == [kept.name]


@pytest.mark.parametrize("folder", ["/proc/nowhere", "/dev/null/mien", "/dev/null"])
def test_a_cache_that_cannot_be_written(path, crops, monkeypatch, folder, capfd):
    wanted = OpenVINOEngine(path)(crops)["probs"]
    monkeypatch.setenv("MIEN_CACHE", folder)
    np.testing.assert_array_equal(OpenVINOEngine(path)(crops)["probs"], wanted)
    assert capfd.readouterr() == ("", "")


def test_a_disk_that_is_full(path, crops, cache, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(openvino.os, "replace", full)
    assert OpenVINOEngine(path)(crops)["probs"].shape == (37, 8)
    assert list(cache.iterdir()) == []


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("MIEN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert openvino.cache_folder() == tmp_path / ".cache/mien"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert openvino.cache_folder() == tmp_path / "xdg/mien"
    monkeypatch.setenv("MIEN_CACHE", str(tmp_path / "mine"))
    assert openvino.cache_folder() == tmp_path / "mine"


def test_somebody_without_a_home(path, monkeypatch):
    for name in ("MIEN_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(openvino.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert OpenVINOEngine(path)(np.zeros((1, 112, 112, 3), np.uint8))["probs"].shape == (1, 8)


REACHING_OUT = """
import os, sys
def tell(event, args):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.sendto", "subprocess", "os.fork")):
        os.write(2, f"{event} {args}".encode())
        os._exit(9)
sys.addaudithook(tell)
from mien.engines import open_model
open_model(sys.argv[1])
assert "openvino_telemetry" not in sys.modules
import openvino
assert callable(openvino.convert_model)
"""


def test_nothing_is_reported_to_anybody(path, monkeypatch, tmp_path):
    """`import openvino` by itself forks a process that reports to Google Analytics, except under a CI that it knows."""
    for name in ("CI", "TF_BUILD", "JENKINS_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", REACHING_OUT, path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "intel").exists()
