"""What a person sees of mien on a terminal: the welcome, what was meant, the table, and the doctor."""

import re
import sys

import pytest

import mien.commands.doctor as doctor
from mien.__main__ import COMMANDS, GROUPS, main
from mien.commands.terminal import Progress, TerminalTable
from mien.labels import EXPRESSIONS
from mien.outputs import Output, expression_output

PROBS = dict(zip(EXPRESSIONS, (0.1, 0.62, 0.2, 0.08, 0, 0, 0, 0), strict=True))


def test_mien_alone_shows_every_command_once(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(COMMANDS)
    for name in COMMANDS:
        assert len(re.findall(rf"^  {name} ", out, re.M)) == 1
    examples = re.findall(r"^  mien (\w+) ", out, re.M)
    assert len(examples) == 3 and set(examples) <= set(COMMANDS) and max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["raed", "a.jpg"], "no such command: 'raed'; mien --help lists them; did you mean read?"),
        (["xyzzy"], "no such command: 'xyzzy'; mien --help lists them"),
        (["read", "a.jpg", "--outptu", "b.csv"], "unrecognized arguments: --outptu b.csv; did you mean --output?"),
        (["read", "a.jpg", "--zzz"], "unrecognized arguments: --zzz"),
    ],
)
def test_what_was_meant(words, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2 and capsys.readouterr().err.splitlines()[-1].partition("error: ")[2] == said


def test_a_models_name_that_is_nearly_right(capsys):
    assert main(["read", "a.jpg", "--model", "mobilefacenet_ferpls"]) == 1
    assert capsys.readouterr().err.strip().endswith("did you mean mobilefacenet_ferplus?")


def lines(monkeypatch, capsys, terminal=True, columns=100) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    outputs = [expression_output(EXPRESSIONS), Output("not_a_face", "binary", ("not_a_face",))]
    table = TerminalTable(Progress(1), ["a.jpg"], outputs)
    for expression, source, doubt in (("happiness", "a.jpg", 0.02), ("uncertain", "\x1b[31mb.jpg", 0.9)):
        face = {"face": 0, "box": [4, 3, 20, 30], "expression": expression, "probability": 0.62, "probabilities": PROBS}
        table.write({"source": source, **face, "not_a_face": doubt})
    table.write({"source": "c.jpg", "expression": None, "note": "no face found"})
    assert table.totals() == "1 happiness, 1 uncertain"
    return capsys.readouterr().out.splitlines()


def test_the_second_likeliest_where_there_is_room(monkeypatch, capsys):
    head, sure, unsure, none = lines(monkeypatch, capsys, terminal=False)
    assert head.split() == ["picture", "face", "expression", "then", "where"]
    assert sure.split()[:6] == ["a.jpg", "0", "happiness", "62%", "sadness", "20%"]
    assert unsure.split()[2:6] == ["uncertain", "62%", "happiness", "62%"]  # the likeliest of what it may be
    assert sure.endswith("20×30 at 4, 3") and unsure.endswith("20×30 at 4, 3  not_a_face 0.90")
    assert head.index("where") == sure.index("20×30") and none.endswith("no face found")
    narrow = lines(monkeypatch, capsys, terminal=False, columns=70)
    assert "then" not in narrow[0] and "sadness" not in narrow[1]


def test_colours_where_a_terminal_wants_them(monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    head, sure, unsure, _ = lines(monkeypatch, capsys)
    assert "\x1b[38;2;240;228;66m■\x1b[0m happiness" in sure and "\x1b[31m" not in unsure
    bare = re.sub(r"\x1b\[[\d;]*m", "", sure)
    assert head.index("where") == bare.index("20×30")
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as changed:
            changed.setenv(name, value)
            assert not any("\x1b" in line for line in lines(changed, capsys))


def test_the_doctor(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("MIEN_CACHE", str(tmp_path))
    monkeypatch.setattr(doctor, "measured", lambda work, **_: work() is None or 1.5)
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "av" else "1.0")
    assert main(["doctor"]) == 0
    said = dict(re.findall(r"^(\S+) +(.*)$", capsys.readouterr().out, re.M))
    assert {"mien", "processor", "packages", "cache", "model", "precision", "speed"} <= said.keys()
    assert "numpy 1.0" in said["packages"] and said["video"] == "not installed: av"
    assert said["model"] == "mobilefacenet_ferplus, in OpenVINO" and said["cache"].endswith(str(tmp_path))
    assert main(["doctor", "--model", "none.onnx"]) == 1
    assert "cannot be opened: none.onnx" in capsys.readouterr().out


def test_slow_starts_say_what_they_begin_with_on_a_terminal(capsys, monkeypatch):
    """Before anything is imported that takes seconds: no torch is loaded here."""
    for name in ("torch", "gradio"):
        monkeypatch.setitem(sys.modules, name, None)
    slow = {
        ("demo", "--port", "0"): "starting the page …",
        ("export", "two.onnx", "--model", "one.safetensors"): "opening one.safetensors …",
        ("eval", "one.onnx", "--data", "faces"): "opening one.onnx and faces …",
    }
    for words, said in slow.items():
        for terminal in (True, False):
            monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal)
            assert main(list(words)) == 1
            first, *rest = capsys.readouterr().err.splitlines()
            assert (first == said) == terminal and len(rest) == terminal and "pip install" in [first, *rest][-1]
