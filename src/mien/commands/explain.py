"""`mien explain`: pictures of what a network's answer rests on, and of what it kept and attended to."""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mien.commands.annotate import annotated_names, outside, overwritten
from mien.commands.options import add_reading_arguments, count, folder, share
from mien.commands.read import begin
from mien.commands.terminal import Progress
from mien.console import printable
from mien.errors import ReadError
from mien.explain.methods import METHODS, default_model, open_method
from mien.explain.page import page
from mien.explain.panel import sheet
from mien.faces import YuNet, crop, find_faces, find_pictures, open_picture
from mien.faces.search import upright
from mien.files import whole

_OPTIONS = {  # by name, the methods that take it
    "keep_patches": ("patches",),
    "keep_rate": ("patches",),
    "layer": ("gradcam", "attention"),
    "head": ("attention",),
    "answer": ("occlusion", "gradcam", "gradients"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(misuse=parser.error)
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="a picture, a folder of pictures, or a glob")
    add_reading_arguments(parser, "--aligned", "--min-face", "--search", "--threshold", "--trust")
    parser.add_argument(
        "--output", type=folder, required=True, metavar="DIR", help="of the pictures, one a face, and index.html"
    )
    parser.add_argument(
        "--method",
        choices=tuple(METHODS),
        default="occlusion",
        help="; ".join(f"{name}: {words}" for name, words in METHODS.items()),
    )
    parser.add_argument(
        "--model",
        help="a model's name, file, folder, or owner/name on the Hub; all methods but occlusion need a .safetensors in "
        f"it (default: {default_model('occlusion')}, and {default_model('patches')} for patches and attention)",
    )
    parser.add_argument("--answer", metavar="LABEL", help="explain this one, not the likeliest")
    parser.add_argument("--layer", metavar="NAME", help="of gradcam a layer with maps, of attention an attention")
    parser.add_argument(
        "--head", type=partial(count, least=0), metavar="N", help="of attention this head, from 0, not the mean of all"
    )
    parser.add_argument(
        "--keep-patches",
        action="append",
        type=count,
        metavar="K",
        help="a row with K patches kept; once for each row (default: as the model was made, 3/4 and 1/2 of that)",
    )
    parser.add_argument(
        "--keep-rate",
        action="append",
        type=partial(share, zero=False),
        metavar="R",
        help="the share of tokens that each block of the second half keeps; once, or once for each row (default: as "
        "the model was made)",
    )


def run(args: argparse.Namespace) -> int:
    """Draw the faces of the sources; 1 if a picture could not be read."""
    begin()
    counts, rates = args.keep_patches or [], args.keep_rate or []
    for option, methods in _OPTIONS.items():
        if args.method not in methods and getattr(args, option) not in (None, []):
            args.misuse(f"--{option.replace('_', '-')} belongs to --method {' or '.join(methods)}")
    if len(rates) > 1 and len(rates) != len(counts):
        args.misuse(f"--keep-rate was given {len(rates)} times, --keep-patches {len(counts)} times")
    missed: list[ReadError] = []
    pictures = outside([args.output], find_pictures(args.source, missed=missed), set(args.source))
    if not pictures and not missed:
        args.misuse(f"{args.output} is to be read and written into: name its pictures one by one, or another --output")
    names = [path.stem for path in annotated_names(args.output, [f"{os.path.splitext(p)[0]}.png" for p in pictures])]
    if lost := overwritten(args.output, pictures, names):
        args.misuse(f"--output would overwrite {lost}, which is to be read")
    grid = args.output / "batch.png"
    if args.method == "batch" and os.path.realpath(grid) in map(os.path.realpath, pictures):
        args.misuse(f"--output would overwrite {grid}, which is to be read")
    options = {name: getattr(args, name) for name in ("layer", "head", "keep_patches", "keep_rate")}
    options = {name: value for name, value in options.items() if value is not None}
    explain, header, called = open_method(args.method, args.model, trust=args.trust, answer=args.answer, **options)
    title = f"{os.path.basename(os.path.normpath(called))}, {args.method}"
    run = _Run(args.output, title, [*map(str, missed)])
    with closing(Progress(len(pictures))) as bar:
        for error in missed:
            bar.write(f"mien: {printable(str(error))}", file=sys.stderr)
        faces = run.faces(args, pictures, names, header["preprocess"], bar)
        if args.method == "batch":
            _batch(explain, list(faces), run, grid, bar)
        else:
            for source, name, number, face in faces:
                run.draw(sheet(explain(face), title), f"{name}-face{number}.png", f"{source}, face {number}", bar)
    run.finish(METHODS[args.method])
    return 1 if run.unread else 0


class _Run:
    """What was drawn, and what was not."""

    def __init__(self, output: Path, title: str, missing: list[str]):
        self.output, self.title, self.missing, self.unread = output, title, missing, len(missing)
        self.pictures: list[tuple[str, str]] = []
        output.mkdir(parents=True, exist_ok=True)

    def faces(
        self,
        args: argparse.Namespace,
        pictures: list[str],
        names: list[str],
        preprocess: Mapping[str, Any],
        bar: Progress,
    ) -> Iterator[tuple[str, str, int, np.ndarray]]:
        """Of every face its picture, the name that its drawings begin with, its number, and what the network sees."""
        detector = None if args.aligned else YuNet(threshold=args.threshold, min_face=args.min_face)
        for source, name in zip(pictures, names, strict=True):
            try:
                crops = _crops(open_picture(source), preprocess, detector, args)
            except ReadError as error:
                bar.write(f"mien: {printable(str(error))}", file=sys.stderr)
                self.missing.append(str(error))
                self.unread += 1
            else:
                for number, face in enumerate(crops):
                    yield source, name, number, face
                if not crops:
                    bar.write(f"{printable(source)}: no face found")
                    self.missing.append(f"{source}: no face found")
            bar.update()

    def draw(self, picture: Any, name: str, caption: str, bar: Progress) -> None:
        path = self.output / name
        with whole(path) as file:
            picture.save(file, "PNG")
        self.pictures.append((name, caption))
        bar.write(printable(str(path)))

    def finish(self, words: str) -> None:
        text = page(self.title, f"{words.removesuffix(' (default)').capitalize()}.", self.pictures, self.missing)
        with whole(self.output / "index.html") as file:
            file.write(text.encode(errors="replace"))


def _batch(explain: Any, faces: list[tuple[str, str, int, np.ndarray]], run: _Run, grid: Path, bar: Progress) -> None:
    """All faces as one batch: a grid of all, and a picture of each with those that vouched for it."""
    crops = np.stack([face for *_, face in faces]) if faces else np.empty((0, 1, 1, 3), np.uint8)
    found = explain.look(crops)
    run.draw(explain.grid(crops, found, run.title), grid.name, f"all {len(crops)} faces", bar)
    for i, (source, name, number, _) in enumerate(faces):
        row = explain.row(crops, found, i)
        run.draw(sheet([row], run.title), f"{name}-face{number}.png", f"{i + 1}: {source}, face {number}", bar)


def _crops(
    image: np.ndarray, preprocess: Mapping[str, Any], detector: YuNet | None, args: argparse.Namespace
) -> list[np.ndarray]:
    """What the network is shown of each face of a picture, numbered as `mien read` does."""
    if detector is None:
        return [crop(image, preprocess)]
    image, faces = upright(image, find_faces(detector, image, args.min_face, search=args.search))
    return [crop(image, preprocess, face.landmarks, face.box) for face in faces]
