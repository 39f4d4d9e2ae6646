"""mien read --show: what the window shows, and what remains where it is closed; tkinter is a stand-in here."""

import csv
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import COLOURS
from films import film

pytest.importorskip("av", reason="PyAV is not installed")


class Screen:
    """What tkinter has: a screen of 100 × 80 pixels, and a person who closes the window after some frames."""

    TclError = type("TclError", (Exception,), {})

    def __init__(self, frames: int = 10**6, how: str = "q", display: bool = True):
        self.frames, self.how, self.display = frames, how, display
        self.shown, self.titles, self.bound, self.gone = [], [], {}, False

    def Tk(self, **_):
        if not self.display:
            raise self.TclError("no display name and no $DISPLAY environment variable")
        return self

    def title(self, text):
        self.titles.append(text)

    def protocol(self, name, answer):
        self.bound[name] = lambda _: answer()

    def bind(self, key, answer):
        self.bound[key] = answer

    def update(self):
        if self.gone:
            raise self.TclError("application has been destroyed")
        if len(self.shown) == self.frames:
            if self.how == "killed":
                self.gone = True
                raise self.TclError("application has been destroyed")
            self.bound[self.how]("event")

    def destroy(self):
        self.gone = True

    winfo_screenwidth, winfo_screenheight = (lambda self: 100), (lambda self: 80)

    def configure(self, image=None, **_):
        if image is not None:
            self.shown.append(image)

    def Label(self, root, **_):
        return SimpleNamespace(pack=lambda **_: None, configure=self.configure)

    def PhotoImage(self, master, data, format):
        head, pixels = data.split(b"\n", 1)
        width, height = map(int, head.split()[1:3])
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)


@pytest.fixture
def read(tmp_path, monkeypatch, stand_in, call):
    """`mien read` of films of 20 frames, in front of a screen."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4"):
        film(tmp_path / name, [np.full((128, 128, 3), COLOURS["anger"], np.uint8)] * 20)

    def run(screen, *words):
        monkeypatch.setitem(sys.modules, "tkinter", screen)
        return call("read", *words, "--aligned", "--model", stand_in)

    return run


def test_shows_every_frame_with_its_faces(read):
    screen = Screen()
    code, out, err = read(screen, "a.mp4", "b.mp4", "--show", "--every", "5", "--output", "rows.csv")
    assert (code, err) == (0, []) and out == ["rows.csv: 8 faces in 8 frames of 2 videos"]
    assert len(screen.shown) == 8 and screen.titles == ["mien", "mien: a.mp4", "mien: b.mp4"] and screen.gone
    assert {image.shape for image in screen.shown} == {(72, 72, 3)}  # nine tenths of the screen
    bare = np.array(COLOURS["anger"])
    assert all((abs(image.astype(int) - bare).max(2) > 60).sum() > 200 for image in screen.shown)  # what was drawn


@pytest.mark.parametrize("how", ["q", "WM_DELETE_WINDOW", "killed"])
def test_what_was_read_remains_when_it_is_closed(read, how):
    code, out, err = read(
        Screen(5, how), "a.mp4", "b.mp4", "--show", "--track", "--output", "rows.csv", "--summary", "people.json",
        "--min-track", "0s", "--annotate", "drawn",
    )  # fmt: skip
    assert code == 0 and err == [
        "mien: a.mp4: read until the window was closed",
        "mien: the window was closed: 1 more video not read",
    ]
    rows = list(csv.DictReader(Path("rows.csv").read_text().splitlines()))
    assert [row["frame"] for row in rows] == ["0", "1", "2", "3", "4"] and {row["source"] for row in rows} == {"a.mp4"}
    [person] = json.loads(Path("people.json").read_text())
    assert person["frames"] == 5 and "drawn: 1 drawing" in out[-1]


def test_where_there_is_no_window(read, monkeypatch):
    code, out, err = read(Screen(display=False), "a.mp4", "--show", "--output", "rows.csv")
    said = "mien: --show needs a display: no display name and no $DISPLAY environment variable"
    assert (code, out, err) == (1, [], [said])
    code, out, err = read(None, "a.mp4", "--show")
    assert (code, out) == (1, []) and err == [
        "mien: --show needs tkinter, which this Python lacks (Debian: apt-get install python3-tk)"
    ]
    code, _, err = read(Screen(), "photograph.jpg", "--show")
    assert code == 2 and err[-1].endswith("--show is for videos, and none is to be read")
