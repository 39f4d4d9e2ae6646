"""What imports what: the floors of the package, and what reading may bring into memory."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import mien

ROOT = Path(__file__).parents[1]
READING = ["faces", "engines", "checkpoint", "classifier", "reader", "commands.read"]
LOWER = [*READING[:-1], "labels", "errors", "nn", "networks", "losses", "data"]
TRAINING_ONLY = {"lightning", "pytorch_lightning", "torchmetrics", "matplotlib", "jsonargparse"}


def imports(modules: list[str]) -> str:
    return "import " + ", ".join(f"mien.{module}" for module in modules)


def packages_after(statement: str) -> set[str]:
    """Top-level packages in memory after `statement` in a new interpreter."""
    return {name.partition(".")[0] for name in modules_after(statement)}


def modules_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sorted(sys.modules)), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=os.sep)
    assert run.returncode == 0, run.stderr
    return set(run.stderr.split())


def test_import_contracts():
    lint = Path(sys.executable).with_name("lint-imports")
    run = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_reading_brings_in_no_torch():
    extra = {"torch", "safetensors", "onnx", "onnxruntime", "pyarrow", "kornia", "huggingface_hub"}
    assert not packages_after(imports(READING)) & (extra | TRAINING_ONLY)


def test_lower_floors_bring_in_no_training_library():
    assert not packages_after(imports(LOWER)) & TRAINING_ONLY


def test_importing_mien_brings_in_next_to_nothing():
    new = modules_after("import mien") - modules_after("")
    heavy = {"numpy", "cv2", "PIL", "openvino", "tqdm", "asyncio", "http", "email"}
    assert not {name.partition(".")[0] for name in new} & heavy
    assert len(new) <= 40, sorted(new)


def test_public_names_arrive_when_first_used():
    assert "openvino" not in packages_after("import mien; dir(mien)")
    assert "mien.reader" in modules_after("import mien; mien.Reader")
    packages = "import mien; mien.data.open_dataset; mien.nn.Attend; mien.networks.ViT"
    assert {"mien.data", "mien.networks", "mien.nn"} <= modules_after(packages)
    without = "import sys; sys.modules['torch'] = None; import mien"
    assert "mien.data" in modules_after(f"{without}; mien.data.Folder")
    assert "mien.nn" not in modules_after(f"{without}\ntry: mien.nn\nexcept mien.MienError: pass")


def test_help_brings_in_no_numbers():
    ask = "from mien.__main__ import main\ntry: main(['--help'])\nexcept SystemExit as end: assert not end.code"
    assert not packages_after(ask) & {"numpy", "cv2", "openvino", "torch", *TRAINING_ONLY}


def test_reading_tells_nobody(tmp_path):
    """No connection, no lookup of a name, and no file outside the cache: OpenVINO would report its own import."""
    code = f"""
import os, sys
def watch(event, arguments):
    if event.startswith(("socket.connect", "socket.getaddrinfo", "socket.gethostby", "subprocess.", "os.fork")):
        sys.stderr.write(f"{{event}} {{arguments}}\\n")
        os._exit(3)
sys.addaudithook(watch)
import mien
assert mien.Reader.from_pretrained()({str(ROOT / "examples" / "hopper.jpg")!r})
assert "openvino_telemetry" not in sys.modules
"""
    home = {"HOME": str(tmp_path), "PATH": os.defpath, "MIEN_CACHE": str(tmp_path / "cache")}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=home)
    assert run.returncode == 0, run.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_a_checkout_that_is_not_installed_has_no_version(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(vars(mien), "__version__", "of before")
    del vars(mien)["__version__"]
    assert mien.__version__ == "unknown"
