"""Files that are written whole: full disks, modes, links, devices, and what killed runs leave behind."""

import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mien.errors import MienError, MienWarning
from mien.faces import Face, Faces
from mien.files import LOCK, alone, whole

NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def room(size: int):
    """From here on a file of this process can hold `size` bytes; as on a full disk, the last write is cut short."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def little_room(monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # Python would keep what was cut short of it
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    yield room
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("size", [0, 1, 1000, 4000])
def test_a_picture_that_does_not_fit_is_not_cut(tmp_path, little_room, suffix, size):
    face = Face((5, 5, 50, 50), 0.9, None, "anger", 0.9, {"anger": 0.9, "fear": 0.1})
    path = tmp_path / f"drawn{suffix}"
    Faces([face]).save(path, NOISE)
    before = path.read_bytes()
    assert len(before) > 4000
    little_room(size)
    with pytest.raises(OSError) as error:
        Faces([face]).save(path, NOISE)
    assert error.value.filename == str(path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_all_that_is_written_arrives(tmp_path, kind):
    with whole(tmp_path / "file") as file:
        file.write(kind(b"abc"))
        file.write(kind(b"d" * 100_000))
        file.seek(0)
        file.write(b"A")
    assert (tmp_path / "file").read_bytes() == b"Abc" + b"d" * 100_000


@pytest.mark.parametrize("save", [lambda f: Image.fromarray(NOISE).save(f, "TIFF"), lambda f: np.save(f, NOISE)])
def test_libraries_that_like_the_number_of_a_file(tmp_path, save):
    with whole(tmp_path / "file") as file:
        save(file)
    assert (tmp_path / "file").stat().st_size > NOISE.nbytes


def test_a_mode_is_kept_and_a_new_file_has_the_usual_one(tmp_path):
    path = tmp_path / "rows.csv"
    with whole(path) as file:
        file.write(b"1")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    with whole(path) as file:
        file.write(b"2")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640 and path.read_bytes() == b"2"


def test_a_link_is_followed_and_a_hard_link_reported(tmp_path):
    real, soft, hard = tmp_path / "real", tmp_path / "soft", tmp_path / "hard"
    real.write_bytes(b"old")
    soft.symlink_to(real)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with whole(soft) as file:
            file.write(b"new")
    assert soft.is_symlink() and real.read_bytes() == b"new"
    hard.hardlink_to(real)
    with pytest.warns(MienWarning, match=rf"{real}: its other hard link keeps what was there"), whole(real) as file:
        file.write(b"newer")
    assert hard.read_bytes() == b"new" and real.read_bytes() == b"newer"


def test_a_pipe_is_written_into(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    seen = []
    reader = threading.Thread(target=lambda: seen.append(pipe.read_bytes()))
    reader.start()
    with whole(pipe) as file:
        file.write(b"through")
    reader.join(10)
    assert seen == [b"through"] and stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_never_replaced():
    with whole("/dev/null") as file:
        file.write(b"gone")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(OSError) as error, whole("/dev/full") as file:
        file.write(b"x" * 100_000)
    assert error.value.filename == "/dev/full"


def test_an_error_of_the_caller_s_own_leaves_nothing_and_keeps_its_name(tmp_path):
    with pytest.raises(OSError) as error, whole(tmp_path / "file") as file:
        file.write(b"half")
        (tmp_path / "missing" / "other").read_bytes()
    assert error.value.filename == str(tmp_path / "missing" / "other") and not os.listdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error, whole(tmp_path / "no" / "file"):
        pass
    assert error.value.filename == str(tmp_path / "no" / "file")


def test_drafts_of_killed_runs_are_swept_by_the_next_and_those_of_living_ones_stay(tmp_path):
    script = (
        "import os, signal, sys; from mien.files import whole\n"
        "with whole(sys.argv[1]) as file:\n"
        "    file.write(b'half'); file.flush(); print('written', flush=True)\n"
        "    sys.stdin.read(1) or os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "rows.csv"
    command = [sys.executable, "-c", script, str(path)]
    dead = subprocess.run(command, input="", capture_output=True, text=True)
    assert dead.returncode == -signal.SIGKILL and len(os.listdir(tmp_path)) == 1
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as alive:
        assert alive.stdout.readline() == "written\n"
        (tmp_path / ".somebody-else.part").write_bytes(b"")
        with whole(path) as file:
            file.write(b"new")
        assert len(os.listdir(tmp_path)) == 3 and path.read_bytes() == b"new"
        alive.communicate("x")
    assert path.read_bytes() == b"half"


def test_the_command_says_so_in_a_line(tmp_path, stand_in):
    photograph = Path(__file__).parents[1] / "examples/hopper.jpg"
    rows, other = tmp_path / "rows.csv", tmp_path / "other.csv"
    rows.write_bytes(b"old")
    other.hardlink_to(rows)
    command = [sys.executable, "-m", "mien", "read", str(photograph), "--model", str(stand_in), "--output"]
    run = subprocess.run([*command, str(rows)], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, f"mien: {rows}: its other hard link keeps what was there\n")
    run = subprocess.run([*command, "/dev/full"], capture_output=True, text=True)
    assert run.returncode == 2  # of a table the ending says which
    full = tmp_path / "full.csv"
    full.symlink_to("/dev/full")
    run = subprocess.run([*command, str(full)], capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr == f"mien: {full}: no space left on device\n"


def test_a_folder_to_oneself(tmp_path):
    folder = tmp_path / "new" / "out"
    code = f"from mien.files import alone\nwith alone({str(folder)!r}): print('in', flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    for _ in range(2):  # whoever is refused takes nothing away from who is there
        with pytest.raises(MienError, match=rf"^{folder}: another run is at work there$"), alone(folder):
            pass
    other.kill()
    other.communicate()
    assert os.listdir(folder) == [LOCK]  # which a killed run leaves, and nobody minds
    (folder / "deep").mkdir()
    (folder / "deep" / ".half.part").write_text("")
    with alone(folder):
        assert os.listdir(folder / "deep") == []
        with pytest.raises(MienError, match="another run"), alone(folder):
            pass
    assert os.listdir(folder) == ["deep"]
    with alone(folder), pytest.raises(KeyError):
        raise KeyError
