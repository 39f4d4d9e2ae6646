"""A reader carried over a fork, started by spawn, pickled: it reads there as it does here, and nothing hangs."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mien
from mien.engines import OnnxRuntimeEngine, OpenVINOEngine, TorchEngine, open_model
from mien.engines import openvino as openvino_engine
from mien.engines.process import computing
from mien.errors import CheckpointError, MienError

EXAMPLES = Path(__file__).parents[1] / "examples"
ASTRONAUT = EXAMPLES / "astronaut.png"
SECONDS = 60  # after which a child is given up; it takes one or two


@pytest.fixture(scope="module")
def reader(stand_in):
    """One that has read, so that every thread of its libraries has been started."""
    reader = mien.Reader.from_pretrained(stand_in)
    assert len(reader(ASTRONAUT)) == 1
    return reader


def in_a_fork(work):
    """What `work` gives in a forked child, or its error; killed after SECONDS."""
    got, given = os.pipe()
    child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not pytest's: it kills, whatever lock is waited for
        signal.alarm(SECONDS)
        try:
            answer = work()
        except BaseException as error:
            answer = error
        try:
            with open(given, "wb") as file:
                file.write(pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(given)
    with open(got, "rb") as file:
        data = file.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"the child hung: {status}"
    answer = pickle.loads(data)
    if isinstance(answer, BaseException):
        raise answer
    return answer


def probabilities(reader, source=ASTRONAUT):
    return [face.probabilities for face in reader(source)]


def test_a_reader_is_carried_over_a_fork(reader):
    wanted = probabilities(reader)
    for _ in range(2):  # the parent goes on as before
        assert in_a_fork(lambda: probabilities(reader)) == wanted
        assert probabilities(reader) == wanted


def test_threads_of_models_that_were_freed_are_not_waited_for(stand_in):
    """OpenVINO keeps them for the next model with the same settings, in the child, too, where they are not."""
    for _ in range(3):
        freed = [mien.Reader.from_pretrained(stand_in) for _ in range(2)]
        wanted = [probabilities(reader) for reader in freed]
        freed.pop()
    assert in_a_fork(lambda: probabilities(freed[0])) == wanted[0]
    assert in_a_fork(lambda: probabilities(mien.Reader.from_pretrained(stand_in))) == wanted[0]
    crops = np.random.default_rng(0).integers(0, 256, (11, 112, 112, 3), np.uint8)
    engine = freed[0].classifier.engine
    for work in (lambda: engine(crops)["probs"], lambda: open_model(stand_in / "model.onnx")(crops)["probs"]):
        np.testing.assert_allclose(in_a_fork(work), engine(crops)["probs"], atol=1e-6)


def test_a_fork_of_a_fork(reader):
    def inner():
        probabilities(reader)
        return in_a_fork(lambda: probabilities(reader))

    assert in_a_fork(inner) == probabilities(reader)


def test_many_pictures_and_threads_in_a_fork(reader):
    sources = [ASTRONAUT, EXAMPLES / "hopper.jpg"] * 4
    wanted = [[face.probabilities for face in faces] for faces in reader.read_many(sources, batch_size=4)]

    def work():
        return [[face.probabilities for face in faces] for faces in reader.read_many(sources, batch_size=4)]

    assert in_a_fork(work) == wanted


def test_a_fork_while_other_threads_read(reader):
    """Locks that another thread holds at the moment of the fork are held for ever in the child."""
    done = threading.Event()

    def work():
        while not done.is_set():
            reader(Image.open(ASTRONAUT))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        wanted = probabilities(reader)
        for _ in range(3):
            time.sleep(0.02)
            assert in_a_fork(lambda: probabilities(reader)) == wanted
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_a_fork_waits_for_what_computes(reader):
    begun, order = threading.Event(), []

    def work():
        with computing():
            begun.set()
            time.sleep(0.3)
            order.append("computed")

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    wanted = in_a_fork(lambda: probabilities(reader))
    order.append("forked")
    thread.join()
    assert order == ["computed", "forked"] and probabilities(reader) == wanted


def test_locks_are_new_in_a_fork(reader):
    def work():
        locks = [openvino_engine._importing, reader.classifier.engine._lock, mien.faces.picture._loading]
        return [lock.acquire(timeout=1) for lock in locks]

    with openvino_engine._importing, reader.classifier.engine._lock, mien.faces.picture._loading:
        assert in_a_fork(work) == [True, True, True]


def test_a_forked_process_ends(stand_in):
    """Also where it tears everything down, as `sys.exit` does and `os._exit` does not."""
    code = f"""
import os, sys, signal, mien
reader = mien.Reader.from_pretrained({str(stand_in)!r})
reader({str(ASTRONAUT)!r})
child = os.fork()
if not child:
    signal.alarm({SECONDS})
    reader({str(ASTRONAUT)!r})
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS + 20)
    assert (ran.stdout, ran.stderr) == ("7\n", "")


POOL = """
import faulthandler, multiprocessing, sys
import mien

def probabilities(reader):
    return [face.probabilities for face in reader(sys.argv[3])]

if __name__ == "__main__":
    reader = mien.Reader.from_pretrained(sys.argv[2])
    wanted = probabilities(reader)
    with multiprocessing.get_context(sys.argv[1]).Pool(2, faulthandler.dump_traceback_later, (50,)) as pool:
        answers = [pool.apply_async(probabilities, (reader,)) for _ in range(3)]
        assert wanted and [answer.get(timeout=60) for answer in answers] == [wanted] * 3
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_pools_of_processes(stand_in, method, tmp_path):
    """In a program of its own: the tests' own process has threads of other libraries, which no fork survives.

    A process that hangs says where.
    """
    (tmp_path / "pool.py").write_text(POOL)
    command = [sys.executable, str(tmp_path / "pool.py"), method, str(stand_in), str(ASTRONAUT)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=4 * SECONDS)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_readers_and_classifiers_are_pickled(stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(stand_in.parent)
    reader = mien.Reader.from_pretrained(stand_in.name, min_face=30, threshold=0.7, abstain=0.4)
    monkeypatch.chdir(tmp_path)  # the path it was opened by says nothing here
    again = pickle.loads(pickle.dumps(reader))
    assert (again.min_face, again.abstain, again.detector.threshold) == (30, 0.4, 0.7)
    assert probabilities(again) == probabilities(reader)
    crops = [np.full((40, 40, 3), 200, np.uint8)]
    classifier = pickle.loads(pickle.dumps(reader.classifier))
    np.testing.assert_array_equal(classifier.predict_proba(crops), reader.classifier.predict_proba(crops))
    assert classifier.labels == reader.classifier.labels and classifier.header == reader.classifier.header


def test_precision_and_shape_are_pickled():
    engine = mien.faces.detect.open_yunet()
    again = pickle.loads(pickle.dumps(engine))
    assert isinstance(again, OpenVINOEngine) and again.precision == engine.precision and again.outputs == engine.outputs
    x = np.zeros((1, 3, 64, 96), np.float32)
    np.testing.assert_array_equal(again(x)["cls_8"], engine(x)["cls_8"])


def test_a_file_that_is_gone_or_another(stand_in, tmp_path):
    path = tmp_path / "model.onnx"
    shutil.copy(stand_in / "model.onnx", path)
    engine = open_model(path)
    pickled = pickle.dumps(engine)
    x = np.zeros((1, 112, 112, 3), np.uint8)
    path.write_bytes(path.read_bytes() + bytes(8))
    with pytest.raises(CheckpointError, match=f"{path}: (not the file that was pickled|no model)"):
        pickle.loads(pickled)
    with pytest.raises(CheckpointError, match=f"{path}: (has changed since|no model)"):
        in_a_fork(lambda: engine(x))
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path}: no such file"):
        in_a_fork(lambda: engine(x))
    assert engine(x)["probs"].shape == (1, 8)  # here it is still open


def test_onnxruntime(stand_in):
    pytest.importorskip("onnxruntime")
    engine = OnnxRuntimeEngine(stand_in / "model.onnx")
    x = np.random.default_rng(0).integers(0, 256, (9, 112, 112, 3), np.uint8)
    wanted = engine(x)["probs"]
    np.testing.assert_array_equal(in_a_fork(lambda: engine(x)["probs"]), wanted)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(engine))(x)["probs"], wanted)


def test_torch(tmp_path):
    torch = pytest.importorskip("torch")
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4096, 512), torch.nn.Linear(512, 8))
    engine = TorchEngine(module, outputs=("logits",), device="cpu")
    x = np.random.default_rng(0).normal(size=(64, 4096)).astype(np.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        wanted = engine(x)["logits"]  # its threads run, which a fork leaves behind
        np.testing.assert_allclose(in_a_fork(lambda: engine(x)["logits"]), wanted, atol=1e-5)
    finally:
        torch.set_num_threads(threads)
    again = pickle.loads(pickle.dumps(engine))
    assert (again.outputs, again.precision) == (("logits",), "fp32")
    np.testing.assert_allclose(again(x)["logits"], wanted, atol=1e-5)


def test_a_gpu_is_not_carried_over_a_fork():
    torch = pytest.importorskip("torch")
    engine = TorchEngine(torch.nn.Flatten(), device="cpu")
    engine.device = torch.device("cuda")
    with pytest.raises(MienError, match="cuda: a GPU cannot be carried over a fork"):
        in_a_fork(lambda: engine(np.zeros((1, 2), np.float32)))


def test_a_network_is_pickled():
    pytest.importorskip("torch")
    classifier = mien.Classifier.from_pretrained(
        Path(mien.__file__).parent / "models" / "btn_mobile_ferplus" / "model.safetensors", device="cpu"
    )
    crops = [np.full((112, 112, 3), 120, np.uint8)]
    again = pickle.loads(pickle.dumps(classifier))
    np.testing.assert_allclose(again.predict_proba(crops), classifier.predict_proba(crops), atol=1e-6)
    np.testing.assert_allclose(
        in_a_fork(lambda: classifier.predict_proba(crops)), classifier.predict_proba(crops), atol=1e-5
    )
