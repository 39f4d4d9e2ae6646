"""`mien explain`: pictures of what a network kept of each face, and of what it attended to."""

import argparse
import os
import sys
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np

from mien.checkpoint import labels_of
from mien.classifier import EXPLAINED_MODEL
from mien.commands.annotate import annotated_names, outside, overwritten
from mien.commands.options import add_reading_arguments, count, folder, share
from mien.commands.read import begin
from mien.commands.terminal import Progress
from mien.console import printable
from mien.errors import ReadError, require
from mien.faces import YuNet, crop, find_faces, find_pictures, open_picture
from mien.faces.search import upright
from mien.files import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(misuse=parser.error)
    parser.add_argument("source", nargs="+", metavar="SOURCE", help="a picture, a folder of pictures, or a glob")
    add_reading_arguments(parser, "--aligned", "--min-face", "--search", "--threshold", "--trust")
    parser.add_argument("--output", type=folder, required=True, metavar="DIR", help="of the pictures, one a face")
    parser.add_argument(
        "--method",
        choices=("patches", "attention"),
        default="patches",
        help="the patches and tokens that attentive pooling keeps, and the class attention among them; or for other "
        "networks the class attention alone (default: patches)",
    )
    parser.add_argument(
        "--model",
        help="a model's name, file, folder, or owner/name on the Hub, with a .safetensors in it "
        f"(default: {EXPLAINED_MODEL})",
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
    if args.method != "patches" and (counts or rates):
        args.misuse("--keep-patches and --keep-rate belong to --method patches")
    if len(rates) > 1 and len(rates) != len(counts):
        args.misuse(f"--keep-rate was given {len(rates)} times, --keep-patches {len(counts)} times")
    missed: list[ReadError] = []
    pictures = outside([args.output], find_pictures(args.source, missed=missed), set(args.source))
    if not pictures and not missed:
        args.misuse(f"{args.output} is to be read and written into: name its pictures one by one, or another --output")
    names = [path.stem for path in annotated_names(args.output, [f"{os.path.splitext(p)[0]}.png" for p in pictures])]
    if lost := overwritten(args.output, pictures, names):
        args.misuse(f"--output would overwrite {lost}, which is to be read")
    for module in ("torch", "safetensors"):
        require(module, "torch")
    from mien.explain import Attention, Patches, open_network, sheet

    model = args.model or EXPLAINED_MODEL
    deployed, header = open_network(model, trust=args.trust)
    title = f"{os.path.basename(os.path.normpath(model))} ({type(deployed.network).__name__})"
    if args.method == "patches":
        explain = Patches(deployed, labels_of(header), counts, rates)
    else:
        explain = Attention(deployed, labels_of(header))
    detector = None if args.aligned else YuNet(threshold=args.threshold, min_face=args.min_face)
    args.output.mkdir(parents=True, exist_ok=True)
    unread = sum(error.rows for error in missed)
    with closing(Progress(len(pictures))) as bar:
        for error in missed:
            bar.write(f"mien: {printable(str(error))}", file=sys.stderr)
        for source, name in zip(pictures, names, strict=True):
            try:
                crops = _crops(open_picture(source), header["preprocess"], detector, args)
            except ReadError as error:
                bar.write(f"mien: {printable(str(error))}", file=sys.stderr)
                unread += 1
            else:
                for index, face in enumerate(crops):
                    path = args.output / f"{name}-face{index}.png"
                    drawn = sheet(explain(face), title)
                    with whole(path) as file:
                        drawn.save(file, "PNG")
                    bar.write(printable(str(path)))
                if not crops:
                    bar.write(f"{printable(source)}: no face found")
            bar.update()
    return 1 if unread else 0


def _crops(
    image: np.ndarray, preprocess: Mapping[str, Any], detector: YuNet | None, args: argparse.Namespace
) -> list[np.ndarray]:
    """What the network is shown of each face of a picture, numbered as `mien read` does."""
    if detector is None:
        return [crop(image, preprocess)]
    image, faces = upright(image, find_faces(detector, image, args.min_face, search=args.search))
    return [crop(image, preprocess, face.landmarks, face.box) for face in faces]
