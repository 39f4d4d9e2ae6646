"""mien read: what it prints, what it writes, and what it leaves behind where it is stopped."""

import argparse
import csv
import importlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import termios
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from conftest import COLOURS, write_stand_in
from PIL import Image

from mien.__main__ import COMMANDS, main
from mien.commands.annotate import annotated_names
from mien.commands.options import READING, add_reading_arguments
from mien.commands.terminal import Progress
from mien.faces import Face, open_picture
from mien.faces.draw import draw
from mien.faces.record import path_text
from mien.labels import EXPRESSIONS
from mien.reader import Reader

EXAMPLES = Path(__file__).parents[1] / "examples"
KEYS = ["source", "face", "box", "score", "landmarks", "rotation", "expression", "probability", "probabilities"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a face, a picture of none, and two crops."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLES / "hopper.jpg", "face.jpg")
    Image.new("RGB", (640, 480), (90, 120, 40)).save("none.png")
    os.mkdir("crops")
    for name in ("anger", "sadness"):
        Image.new("RGB", (48, 48), COLOURS[name]).save(f"crops/{name}.png")
    return tmp_path


@pytest.fixture
def mien(stand_in, call):
    """`mien read` with the stand-in model."""
    return lambda *words: call("read", *words, "--model", stand_in)


@pytest.fixture
def shell(stand_in):
    """The words of the same command as a process of its own."""
    return lambda *words: [sys.executable, "-m", "mien", "read", *map(str, words), "--model", str(stand_in)]


def on_a_terminal(command, columns=100) -> tuple[int, str]:
    """Exit code, and what stays on the screen, when a process's stdin, stdout and stderr are a terminal."""
    pid, terminal = pty.fork()
    if not pid:
        termios.tcsetwinsize(1, (25, columns))
        os.execve(command[0], command, os.environ | {"NO_COLOR": "1"})
    text = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not part:
            break
        text += part
    os.close(terminal)
    lines = text.decode().replace("\r\n", "\n").split("\n")
    shown = [line.rpartition("\r")[2] for line in lines]  # a slow machine sees a progress bar come and go
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), "\n".join(shown)


def test_json_lines_on_a_pipe(here, mien, stand_in):
    code, out, err = mien("face.jpg", "none.png")
    assert (code, err) == (0, [])
    face, none = map(json.loads, out)
    assert list(face) == [*KEYS, "pose"]
    [read] = Reader.from_pretrained(stand_in)("face.jpg")
    assert face["source"] == "face.jpg" and face["face"] == 0
    np.testing.assert_allclose(face["box"], read.box, atol=0.01)
    np.testing.assert_allclose(face["landmarks"], read.landmarks, atol=0.01)
    assert face["score"] == pytest.approx(read.score, abs=1e-3)
    assert face["expression"] == read.expression == max(face["probabilities"], key=face["probabilities"].get)
    assert face["probability"] == face["probabilities"][face["expression"]] == pytest.approx(read.probability, abs=1e-5)
    assert tuple(face["probabilities"]) == EXPRESSIONS
    assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    assert list(none) == [*KEYS, "note"]
    assert none["source"] == "none.png" and none["note"]
    assert all(none[name] is None for name in KEYS[1:])


def test_folders_globs_and_order(here, mien):
    code, out, _ = mien("none.png", "crops", "*.jpg", "--aligned")
    rows = list(map(json.loads, out))
    assert code == 0
    assert [row["source"] for row in rows] == ["none.png", "crops/anger.png", "crops/sadness.png", "face.jpg"]


def test_aligned(here, mien):
    code, out, _ = mien("crops", "--aligned")
    rows = list(map(json.loads, out))
    assert code == 0
    assert [row["expression"] for row in rows] == ["anger", "sadness"]
    assert all(row["face"] == 0 and row["box"] is row["landmarks"] is row["score"] is None for row in rows)


def test_min_face_and_threshold(here, mien):
    for option in (("--min-face", "400"), ("--threshold", "1")):
        code, [line], err = mien("face.jpg", *option)
        assert (code, err) == (0, [])
        assert json.loads(line)["box"] is None and json.loads(line)["note"]


def test_batch_size_changes_nothing(here, mien):
    assert mien("face.jpg", "crops", "--batch-size", "1") == mien("face.jpg", "crops")


def test_output_json_lines(here, mien):
    _, lines, _ = mien("face.jpg", "none.png")
    code, out, err = mien("face.jpg", "none.png", "--output", "rows.jsonl")
    assert (code, err) == (0, [])
    assert out == ["rows.jsonl: 1 face in 2 pictures"]
    assert (here / "rows.jsonl").read_text().splitlines() == lines
    assert not list(here.glob(".*"))


def test_output_csv(here, mien):
    _, lines, _ = mien("face.jpg", "none.png")
    assert mien("face.jpg", "none.png", "--output", "rows.csv")[0] == 0
    face, none = csv.DictReader((here / "rows.csv").open(newline=""))
    told = json.loads(lines[0])
    assert face["source"] == "face.jpg" and face["face"] == "0" and face["expression"] == told["expression"]
    assert [float(face[f"box_{side}"]) for side in "xywh"] == told["box"]
    assert [[float(face[f"landmark_{i}_{axis}"]) for axis in "xy"] for i in range(5)] == told["landmarks"]
    assert {label: float(face[f"p_{label}"]) for label in EXPRESSIONS} == told["probabilities"]
    assert float(face["score"]) == told["score"] and float(face["probability"]) == told["probability"]
    assert none.pop("source") == "none.png" and none.pop("note") and face["note"] == ""
    assert set(none.values()) == {""}


def test_output_parquet(here, mien):
    import pyarrow.parquet

    _, lines, _ = mien("face.jpg", "none.png")
    assert mien("face.jpg", "none.png", "--output", "rows.parquet")[0] == 0
    face, none = pyarrow.parquet.read_table("rows.parquet").to_pylist()
    told = json.loads(lines[0])
    assert face.pop("note") is None
    for name in ("source", "face", "expression"):
        assert face[name] == told[name]
    for name in ("box", "score", "landmarks", "probability"):
        np.testing.assert_allclose(face[name], told[name], rtol=1e-5)
    assert face["probabilities"] == pytest.approx(told["probabilities"], abs=1e-6)
    assert none.pop("source") == "none.png" and none.pop("note") and set(none.values()) == {None}


def test_parquet_without_pyarrow_is_said_before_reading(here, mien, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setattr(Reader, "read_many", lambda *_: pytest.fail("it has begun to read"))
    code, out, [line] = mien("face.jpg", "--output", "rows.parquet")
    assert (code, out) == (1, []) and "mien[parquet]" in line
    assert not (here / "rows.parquet").exists()


def test_nothing_is_read_in_any_format(here, mien):
    for name in ("rows.jsonl", "rows.csv", "rows.parquet"):
        assert mien("missing.jpg", "--output", name)[0] == 1
        assert (here / name).exists()


def test_an_output_is_replaced_and_links_are_followed(here, mien):
    (here / "old.jsonl").write_text("old")
    (here / "link.jsonl").symlink_to("old.jsonl")
    assert mien("none.png", "--output", "link.jsonl")[0] == 0
    assert (here / "link.jsonl").is_symlink()
    assert json.loads((here / "old.jsonl").read_text())["source"] == "none.png"


def test_an_output_that_fails_midway_leaves_nothing(here, mien, monkeypatch):
    (here / "rows.csv").write_text("old")

    def answers(self, sources, batch_size):
        yield []
        raise OSError(28, "No space left on device", "rows.csv")

    monkeypatch.setattr(Reader, "read_many", answers)
    for name in ("rows.csv", "new.csv", "new.parquet", "new.jsonl"):
        code, _, err = mien("none.png", "face.jpg", "--output", name)
        assert code == 1 and err == ["mien: rows.csv: no space left on device"]
    assert (here / "rows.csv").read_text() == "old"
    assert not list(here.glob("*new*")) and not list(here.glob(".*"))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_nothing_half_written(here, shell, number, code):
    shutil.copy("face.jpg", "crops/0.jpg")
    command = shell(*["crops"] * 1000, "--output", "rows.jsonl", "--annotate", "drawn", "--batch-size", "1")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list(here.glob("drawn/*.jpg")):  # it is well under way
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.splitlines() == (["mien: interrupted"] if number == signal.SIGINT else [])
    assert not list(here.glob("rows*")) and not list(here.glob(".*")) and not list(here.glob("drawn/.*"))
    for path in here.glob("drawn/*"):
        open_picture(path)


def test_a_reader_that_goes_away_is_no_error(here, shell):
    process = subprocess.Popen(shell(*["crops"] * 2000), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 141


def test_a_table_on_a_terminal(here, shell):
    code, text = on_a_terminal(shell("face.jpg", "none.png", "missing.jpg"))
    assert code == 1
    assert "mien: missing.jpg: no such file\n" in text
    head, face, none, total = [line.split() for line in text.splitlines() if "missing" not in line]
    assert head == ["picture", "face", "expression", "then", "where"]
    assert " ".join(total) == f"1 face in 2 pictures, 1 could not be read: 1 {face[2]}"
    assert face.pop(4) in set(EXPRESSIONS) - {face[2]} and re.fullmatch(r"\d+%", face.pop(4))
    assert face[:2] == ["face.jpg", "0"] and face[2] in EXPRESSIONS and re.fullmatch(r"\d+%", face[3])
    assert re.fullmatch(r"\d+×\d+ at \d+, \d+", " ".join(face[4:]))
    assert none == ["none.png", "no", "face", "found"]


def test_a_table_keeps_to_the_width_of_the_terminal(here, shell):
    os.mkdir("a" * 100)
    shutil.copy("face.jpg", "a" * 100 + "/the_end.jpg")
    _, text = on_a_terminal(shell("a" * 100, "none.png"), columns=80)
    lines = text.splitlines()
    assert len(lines) == 4 and max(map(len, lines)) <= 80
    assert "…" in lines[1] and "the_end.jpg" in lines[1]
    assert lines[0].index("where") == lines[1].index(re.search(r"\d+×", lines[1])[0])


def test_an_output_takes_the_place_of_the_table(here, shell):
    code, text = on_a_terminal(shell("face.jpg", "none.png", "--output", "rows.csv"))
    assert (code, text) == (0, "rows.csv: 1 face in 2 pictures\n")


def test_progress_once_the_work_has_taken_a_second(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("mien.commands.terminal.time.monotonic", lambda: now[0])
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with closing(Progress(30)) as progress:
        progress.update()
        progress.write("first")
        assert capsys.readouterr() == ("first\n", "")
        now[0] = 1.1
        progress.update()
        assert "2/30" in capsys.readouterr().err
        progress.write("second")
        assert capsys.readouterr().out == "second\n"
    capsys.readouterr()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    with closing(Progress(30)) as progress:
        now[0] = 9.0
        progress.update()
        assert capsys.readouterr().err == ""


def test_annotate(here, mien):
    code, out, err = mien("face.jpg", "none.png", "--annotate", "deep/drawn", "--output", "rows.csv")
    assert (code, err) == (0, [])
    assert out == ["rows.csv: 1 face in 2 pictures", "deep/drawn: 1 drawing"]
    assert [path.name for path in (here / "deep" / "drawn").iterdir()] == ["face.jpg"]
    before, after = open_picture("face.jpg").astype(int), open_picture("deep/drawn/face.jpg").astype(int)
    assert before.shape == after.shape
    changed = abs(before - after).max(2) > 60
    assert 0.001 < changed.mean() < 0.2
    assert not changed[400:].any()  # below the chin


def test_annotated_crops_are_enlarged_to_be_legible(here, mien):
    assert mien("crops", "--aligned", "--annotate", "drawn")[0] == 0
    assert {path.name for path in (here / "drawn").iterdir()} == {"anger.png", "sadness.png"}
    assert min(Image.open("drawn/anger.png").size) >= 240


def test_annotated_pictures_of_one_name_do_not_collide(here, mien):
    for folder in ("a", "b", "c"):
        os.mkdir(folder)
        shutil.copy("face.jpg", f"{folder}/face.jpg")
    shutil.copy("face.jpg", "a/face-2.jpg")
    shutil.copy("face.jpg", "c/FACE.JPG")
    assert mien("a", "b", "c", "--annotate", "drawn")[0] == 0
    assert len({path.name.lower() for path in (here / "drawn").iterdir()}) == 5


def test_annotated_names():
    sources = ["x.jpg", "a/x.jpeg", "x-2.jpg", "b/x.png", "x.gif", ".hidden", "x.tar.webp", *["c/x.jpg"] * 2]
    names = [path.name for path in annotated_names(Path("d"), sources)]
    assert names[:2] == ["x.jpg", "x-2.jpg"] and names[3] == "x.png" and names[6] == "x.tar.png"
    assert len(set(names)) == len(sources)
    assert len(set(annotated_names(Path("d"), ["f.jpg"] * 20_000))) == 20_000


def test_annotating_never_overwrites_what_is_read(here, mien):
    before = (here / "face.jpg").read_bytes()
    code, out, err = mien("face.jpg", "--annotate", ".")
    assert (code, out) == (2, []) and "face.jpg" in err[-1]
    assert (here / "face.jpg").read_bytes() == before


def test_what_was_drawn_is_not_read_the_next_time(here, mien):
    first = mien(".", "--annotate", "drawn")
    assert (here / "drawn" / "face.jpg").exists()
    assert mien(".", "--annotate", "drawn") == first


@pytest.mark.parametrize("side", [8, 48, 240, 1200])
@pytest.mark.parametrize("ground", [0, 255])
def test_drawings_are_seen_on_any_ground(side, ground):
    image = np.full((side, side, 3), ground, np.uint8)
    for label in EXPRESSIONS:
        box = (side / 4, side / 4, side / 2, side / 2)
        drawn = np.asarray(draw(image, [Face(box, 0.9, None, label, 0.5, {})])).astype(int)
        apart = abs(drawn - ground).max(2) > 90
        zoom = len(drawn) / side
        edge = apart[int(len(drawn) / 4 - zoom) :, int(len(drawn) / 2)]
        assert edge.sum() >= 2, (label, ground)


def test_drawing_copes_with_faces_beyond_the_picture():
    image = np.zeros((300, 300, 3), np.uint8)
    faces = [Face((x, y, 100, 100), 0.9, None, "joy", 1.0, {}) for x in (-150, -50, 250, 400) for y in (-150, 0, 260)]
    assert draw(image, faces).size == (300, 300)


def test_names_that_are_no_utf8(here, mien):
    name = os.fsdecode(b"caf\xe9\n.png")
    shutil.copy("none.png", name)
    for output in ((), ("--output", "rows.jsonl"), ("--output", "rows.csv"), ("--output", "rows.parquet")):
        assert mien(name, "müde.png", *output)[0] == 1
    assert json.loads((here / "rows.jsonl").read_text())["source"] == path_text(name) == "caf\\xe9\n.png"


def test_every_command_has_help(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0
        assert "%(" not in capsys.readouterr().out


ANOTHER = {
    ("export", "--precision"): "that of a file, not of reading",
    ("serve", "--batch-size"): "of requests",
}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_an_option_of_reading_is_the_same_in_every_command(name):
    """Declared once: the same values, the same default, and nearly always the same words."""
    parsers = [argparse.ArgumentParser(), argparse.ArgumentParser()]
    importlib.import_module(COMMANDS[name][0]).add_arguments(parsers[0])
    add_reading_arguments(parsers[1])
    given, declared = ({word: a for a in parser._actions for word in a.option_strings} for parser in parsers)
    for option in given.keys() & READING.keys() - {option for command, option in ANOTHER if command == name}:
        for key in ("type", "choices", "default", "nargs", *(("help",) if option != "--model" else ())):
            assert getattr(given[option], key) == getattr(declared[option], key), (option, key)


@pytest.mark.parametrize(
    "words, reason",
    [
        (["read", "a.png", "--batch-size", "0"], "0: not a whole number of 1 to 1,000,000,000"),
        (["batch", "a.png", "out", "--shard-size", "1.5"], "1.5: not a whole number of 1 to "),
        (["eval", "m", "--data", "d", "--limit", "none"], "none: not a whole number of 1 to "),
        (["demo", "--port", "70000"], "70000: not a whole number of 0 to 65,535"),
        (["read", "a.png", "--threshold", "1.1"], "1.1: not a number of 0 to 1"),
        (["calibrate", "m.safetensors", "--data", "d", "--sure", "0"], "0: not a number above 0 and up to 1"),
        (["explain", "a.png", "--output", "o", "--keep-rate", "nan"], "nan: not a number of 0 to 1"),
    ],
)
def test_counts_and_shares_are_read_in_one_way(words, reason, call):
    code, _, err = call(*words)
    assert code == 2 and reason in err[-1]


def test_list(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("mien.commands.list.MODELS", tmp_path)
    assert main(["list"]) == 0 and capsys.readouterr().out == ""
    write_stand_in(tmp_path / "mobilefacenet_ferplus" / "model.onnx")
    write_stand_in(tmp_path / "another" / "model.onnx")
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["model", "another", "mobilefacenet_ferplus"]
    assert lines[2].split()[1] == "(default)" and all(
        lines[0].index("licence") == line.index("CC0") for line in lines[1:]
    )
    assert main(["list", "--details"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line[0] != " "] == ["another", "mobilefacenet_ferplus (default)"]
    assert any("neutral, happiness" in line for line in lines) and any("CC0" in line for line in lines)
