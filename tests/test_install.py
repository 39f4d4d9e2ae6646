"""The wheel alone reads a photograph, and every package of every install has its version pinned."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mien.labels import EXPRESSIONS

ROOT = Path(__file__).parents[1]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(extra: str = "") -> dict[str, importlib.metadata.Distribution]:
    """The packages that `mien[extra]` asks for, and those that they ask for, as installed here."""
    found, seen, todo = {}, set(), [("mien", extra), ("mien", "")]
    while todo:
        name, option = todo.pop()
        if (name, option) in seen:
            continue
        seen.add((name, option))
        found[name] = importlib.metadata.distribution(name)
        for line in found[name].requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": option}):
                todo += [(canonical(requirement.name), choice) for choice in ("", *requirement.extras)]
    del found["mien"]
    return found


def run(*command: object, **options) -> subprocess.CompletedProcess:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing left in the checkout by an earlier build gets in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-index", "--no-deps"]
    run(*pip, "--no-build-isolation", "--wheel-dir", folder, source)
    return next(folder.glob("mien-*.whl"))


@pytest.fixture(scope="module")
def empty(wheel, tmp_path_factory) -> Path:
    """An environment that holds the wheel, what its own metadata asks for, and nothing else; made without a network."""
    folder = tmp_path_factory.mktemp("empty")
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip())
    for distribution in needed().values():
        for top in {file.parts[0] for file in distribution.files} - {"..", "__pycache__"}:
            (site / top).symlink_to(distribution.locate_file(top))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--no-index", wheel)  # fails if a package that the wheel asks for is not there
    return folder


def test_wheel_carries_the_models_and_the_licence(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("model.onnx", "model.int8.onnx", "model.safetensors", "README.md", "calibration.png"):
        assert f"mien/models/mobilefacenet_ferplus/{name}" in names
    assert {"mien/models/apvit_mobile_ferplus/model.safetensors", "mien/models/fetched.json"} <= set(names)
    assert not any("btn_mobile" in name for name in names)  # mien fetch
    assert "mien/py.typed" in names
    assert {"LICENSE", "NOTICE"} <= {Path(name).name for name in names if ".dist-info/licenses/" in name}
    assert {Path(name).parts[0].partition("-")[0] for name in names} == {"mien"}


def test_wheel_alone_reads_a_photograph(empty, tmp_path):
    shutil.copy(ROOT / "examples" / "hopper.jpg", tmp_path / "somebody.jpg")
    home = {"HOME": str(tmp_path), "PATH": os.defpath, "MIEN_CACHE": str(tmp_path / "cache")}
    where = "import mien.reader; print(mien.reader.__file__)"
    assert str(empty) in run(empty / "bin" / "python", "-c", where, cwd=tmp_path, env=home).stdout
    read = run(empty / "bin" / "mien", "read", "somebody.jpg", cwd=tmp_path, env=home)
    [face] = map(json.loads, read.stdout.splitlines())
    assert face["source"] == "somebody.jpg"
    assert set(face["probabilities"]) == set(EXPRESSIONS)
    assert face["probability"] == face["probabilities"][face["expression"]] == max(face["probabilities"].values())


def test_reading_needs_no_torch_and_one_opencv():
    packages = set(needed())
    assert not packages & {"torch", "safetensors", "onnx", "onnxruntime", "matplotlib", "scipy", "pandas"}
    assert {name for name in packages if name.startswith("opencv")} == {"opencv-python-headless"}


def test_no_extra_brings_cuda_torchvision_or_a_second_opencv():
    packages = set(needed("test"))
    assert not {name for name in packages if name.startswith(("nvidia", "cuda", "triton", "torchvision", "timm"))}
    assert {name for name in packages if name.startswith("opencv")} == {"opencv-python-headless"}


def test_constraints_pin_every_version():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = {canonical(name): version for name, _, version in (line.partition("==") for line in lines)}
    installed = {name: package.version.partition("+")[0] for name, package in needed("test").items()}
    assert installed == {name: pins.get(name) for name in installed}


def test_every_extra_is_in_the_test_extra():
    """Otherwise the pins of an extra are checked by nobody."""
    extras = set(importlib.metadata.metadata("mien").get_all("Provides-Extra"))
    asked = [Requirement(line) for line in importlib.metadata.requires("mien")]
    own = [r for r in asked if r.name == "mien" and r.marker.evaluate({"extra": "test"})]
    assert set().union(*(r.extras for r in own)) | {"test"} == extras
