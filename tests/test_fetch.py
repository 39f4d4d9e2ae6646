"""Models that are not in the package: fetched, checked, and found by their names."""

import hashlib
import json
import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import write_stand_in

from mien.__main__ import main
from mien.classifier import MODELS, find_model


@pytest.fixture
def base(tmp_path, monkeypatch):
    """A folder with the model `far`, whose digests mien knows; models that came with mien are in none of them."""
    write_stand_in(tmp_path / "base/far/model.onnx")
    (tmp_path / "base/far/README.md").write_text("far")
    own = tmp_path / "own"
    own.mkdir()
    files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (tmp_path / "base/far").iterdir()}
    (own / "fetched.json").write_text(json.dumps({"far": files}))
    for module in ("mien.classifier", "mien.commands.fetch"):
        monkeypatch.setattr(f"{module}.MODELS", own)
    monkeypatch.setenv("MIEN_MODELS", str(tmp_path / "kept"))
    monkeypatch.delenv("MIEN_BASE", raising=False)
    return tmp_path / "base"


@pytest.fixture
def server(base):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(base))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_from_a_folder_and_a_server(base, server, tmp_path, capsys, monkeypatch):
    assert main(["doctor", "--model", "far"]) == 1 and "mien fetch far gets it" in capsys.readouterr().out
    assert main(["fetch", "far", "--from", server]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'kept/far'}\n" and find_model("far").parent == tmp_path / "kept/far"
    assert (find_model("far")).read_bytes() == (base / "far/model.onnx").read_bytes()
    shutil.rmtree(tmp_path / "kept")
    monkeypatch.setenv("MIEN_BASE", str(base))
    assert main(["fetch", "far"]) == 0 == main(["fetch", "far"])
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["far"]


def test_another_file_is_not_kept(base, server, tmp_path, capsys):
    (base / "far/README.md").write_text("near")
    for source in (server, str(base)):
        assert main(["fetch", "far", "--from", source]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert "far/README.md: not kept: its SHA-256 is" in line and not list((tmp_path / "kept").iterdir())


def test_what_cannot_be_had(base, server, tmp_path, capsys):
    for source, reason in ((server + "no/", "404"), ("http://127.0.0.1:9/", "refused"), ("/none", "no such file")):
        assert main(["fetch", "far", "--from", source]) == 1
        [line] = capsys.readouterr().err.splitlines()
        assert reason in line.lower() and line.startswith(f"mien: {source.rstrip('/')}/far/")
    for words, reason in ((["far"], "from where?"), (["fra", "--from", "x"], "fra: no model to be fetched")):
        with pytest.raises(SystemExit, match="2"):
            main(["fetch", *words])
        assert reason in capsys.readouterr().err


def test_the_digests_are_those_of_the_files():
    for name, digests in json.loads((MODELS / "fetched.json").read_text()).items():
        files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (MODELS / name).iterdir()}
        assert files == digests
