"""What lies in examples/: notebooks and apps run, and no notebook keeps what it printed."""

import json
import runpy
import shutil
from pathlib import Path

import matplotlib
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch, capsys):
    """Its cells run in order; its outputs, which would be pictures of people, are not in the file."""
    notebook = json.loads(path.read_text("utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    assert "image/" not in path.read_text("utf-8") and not any(cell.get("attachments") for cell in notebook["cells"])
    (tmp_path / "examples").mkdir()
    for name in ("hopper.jpg", "astronaut.png"):
        shutil.copy(EXAMPLES / name, tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names = {"__name__": "__main__"}
    for cell in cells:
        exec(compile("".join(cell["source"]), f"{path.name}, {cell['id']}", "exec"), names)
    matplotlib.pyplot.close("all")
    names["seen"] = capsys.readouterr().out
    CHECKS[path.stem](names)


def has_read_two_faces(names):
    assert list(names["table"]["expression"]) == ["happiness", "neutral"]
    assert names["counts"].sum() == 2 and names["means"].sum() == pytest.approx(1, abs=1e-3)
    assert "hopper.jpg" in names["least"].name


def has_learned_to_tell_eyes(names):
    assert "faces of 'validation'" in names["seen"]
    assert names["made"].report.accuracy > 0.8
    assert [line.split()[0] for line in names["seen"].splitlines()[-4:]] == ["open", "shut", "open", "shut"]


CHECKS = {"read_a_folder": has_read_two_faces, "your_own_classes": has_learned_to_tell_eyes}


def test_the_app_of_fastapi():
    client_of = pytest.importorskip("fastapi.testclient", reason="fastapi's client for tests is not here").TestClient
    client = client_of(runpy.run_path(str(EXAMPLES / "fastapi_app.py"))["app"])
    photograph = (EXAMPLES / "hopper.jpg").read_bytes()
    answer = client.post("/faces", files={"picture": ("photo.jpg", photograph)})
    [face] = answer.json()
    assert answer.status_code == 200 and face["expression"] == "neutral" and len(face["box"]) == 4
    assert client.post("/faces?at_least=0.99", files={"picture": ("photo.jpg", photograph)}).json() == []
    refused = client.post("/faces", files={"picture": ("text.jpg", b"hello")})
    assert refused.status_code == 422 and "hello" not in refused.text
    assert client.post("/faces?at_least=2", files={"picture": ("photo.jpg", photograph)}).status_code == 422
