"""What other systems lack, taken away here: Windows has no fork, no modes of files, no `resource` and no alarm."""

import os
import subprocess
import sys

import pytest

import mien.video.source as source
from mien import files
from mien.errors import ReadError
from mien.faces.video import camera, is_video
from mien.service import dispatch
from mien.training import run

WINDOWS = """
import os, signal, sys
for module, names in (
    (os, ("register_at_fork", "fork", "fchmod", "sched_getaffinity", "getuid", "mkfifo")),
    (signal, ("setitimer", "SIGALRM", "SIGKILL")),
):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
sys.modules |= dict.fromkeys(("resource", "fcntl", "pwd", "grp", "termios"))
from mien.__main__ import main
words = ["read", "examples/hopper.jpg", "--annotate", sys.argv[1] + "/drawn", "--output", sys.argv[1] + "/rows.csv"]
sys.exit(main(words) or main(words))
"""


def test_photographs_are_read_where_there_is_none_of_it(tmp_path):
    done = subprocess.run([sys.executable, "-c", WINDOWS, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "drawn/hopper.jpg").stat().st_size > 10_000
    assert (tmp_path / "rows.csv").read_text().startswith("source,") and len(list(tmp_path.iterdir())) == 2


def test_nobody_is_ended_by_being_asked_whether_it_lives(monkeypatch):
    assert files._runs(os.getpid())
    monkeypatch.setattr(os, "name", "nt")
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("on Windows this ends the process"))
    assert not files._runs(os.getpid())  # what it has open cannot be removed there


@pytest.mark.parametrize(
    ("platform", "named", "device", "format"),
    [
        ("linux", "0", "/dev/video0", "v4l2"),
        ("darwin", "0", "0", "avfoundation"),
        ("win32", "video=Front Camera", "video=Front Camera", "dshow"),
    ],
)
def test_cameras(platform, named, device, format, monkeypatch):
    av, opened = pytest.importorskip("av"), []

    def refuse(file, **options):
        opened.append((file, options))
        raise OSError("none here")

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(av, "open", refuse)
    assert camera(named) == device and is_video(named)
    with pytest.raises(ReadError):
        source.Video(named)
    assert opened == [(device, {"format": format})]


def test_a_worker_is_sent_its_end_of_the_socket(monkeypatch):
    class Process:
        pid, written = 7, b""

        def __init__(self, command, **options):
            assert "pass_fds" not in options and options["creationflags"] == 512
            self.stdin = self

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.closed = True

        def write(self, data):
            self.written += data

    class Socket:
        def fileno(self):
            return 3

        def share(self, process):
            return b"shared with %d" % process

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(dispatch.subprocess, "Popen", Process)
    monkeypatch.setattr(dispatch.subprocess, "CREATE_NEW_PROCESS_GROUP", 512, raising=False)
    process = dispatch._start(Socket())
    assert process.written == b"shared with 7" and process.closed


def test_memory_that_nobody_counts(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert run._memory().startswith("an unknown number of")


def test_modes_are_not_needed(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "fchmod")
    (tmp_path / "a").write_text("old")
    with files.whole(tmp_path / "a") as file:
        file.write(b"new")
    assert (tmp_path / "a").read_text() == "new"
