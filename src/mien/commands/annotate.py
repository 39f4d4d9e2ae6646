"""Copies of pictures: with the faces marked that were read in them, cut out, or hidden."""

import argparse
import os
import re
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

from mien.faces import Faces, is_video
from mien.faces.draw import draw, hide
from mien.faces.sources import is_address
from mien.faces.video import camera, scheme
from mien.files import whole

_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}


def annotated_names(
    folder: Path, sources: Sequence[str], films: Collection[str] | None = None, suffix: str | None = None
) -> list[Path]:
    """Where the copy of each source goes: under its own name, numbered where another has taken that.

    films: the sources that are videos, by default those that are called so. suffix: of all copies, by default .mp4 of
        videos, .jpg of JPEGs and else .png.
    """
    taken: set[str] = set()
    seen: Counter[str] = Counter()
    paths = []
    for source in sources:
        film = is_video(source) if films is None else source in films
        path = urlsplit(source).path if is_address(source) and not film else source
        stem, ending = os.path.splitext(os.path.basename(path))
        ending = suffix or (".mp4" if film else ".jpg" if ending.lower() in _JPEG else ".png")
        if film and (camera(source) or scheme(source)):
            stem = re.sub(r"[^\w.-]+", "-", re.sub(r"^.*@|^\w+://", "", source)).strip("-.") or "stream"
        elif source == "-":
            stem = "stdin"
        name = stem + ending
        while name.lower() in taken:
            seen[stem + ending] += 1
            name = f"{stem}-{seen[stem + ending] + 1}{ending}"
        taken.add(name.lower())
        paths.append(folder / name)
    return paths


def outside(folders: Sequence[Path], pictures: Sequence[str], named: Collection[str]) -> list[str]:
    """The pictures without those that an earlier run wrote into the folders, unless they were named themselves."""
    inside = tuple(os.path.join(os.path.realpath(folder), "") for folder in folders)
    return [name for name in pictures if name in named or not os.path.realpath(name).startswith(inside)]


def overwritten(folder: Path, pictures: Sequence[str], names: Collection[str]) -> str | None:
    """A picture that is to be read, and has the name of a face that may be written: see `face_file`."""
    for picture in pictures:
        parent, name = os.path.split(os.path.realpath(picture))
        written = re.fullmatch(r"(.*)-face\d+\.png", name, re.DOTALL)
        if written and written[1] in names and parent == os.path.realpath(folder):
            return picture
    return None


class Copies:
    """The copies that --annotate, --crops and --blur ask for of each source; videos are drawn elsewhere.

    named: the sources as they were named, which are read even from a folder that is written to.

    Ends the command (`args.misuse`) where a source would be overwritten, or an option makes no sense.
    """

    def __init__(self, args: argparse.Namespace, sources: Sequence[str], films: Collection[str], named: set[str]):
        self._args = args
        folders = {f"--{name}": getattr(args, name) for name in ("annotate", "crops", "blur") if getattr(args, name)}
        film = args.annotate and args.annotate.suffix == ".mp4" and not args.annotate.is_dir()
        if film:
            del folders["--annotate"]
            if len(sources) != 1 or not films:
                args.misuse(f"--annotate {args.annotate}: for one video, and not for what is to be read")
        reals = [os.path.realpath(folder) for folder in folders.values()]
        if len(set(reals)) < len(reals):
            args.misuse(f"{' and '.join(folders)} would write into one folder: name several")
        for option in ("--crops", "--blur"):
            if option in folders and films:
                args.misuse(f"{option} is for pictures, and {min(films)} is a video")
        self.folders = list(folders.values())
        self.sources = outside(self.folders, sources, named)
        names = {
            option: annotated_names(folder, self.sources, films, ".png" if option == "--crops" else None)
            for option, folder in folders.items()
        }
        if film:
            names["--annotate"] = [args.annotate]
        self.drawings = names.get("--annotate", [None] * len(self.sources))
        """Where each source is drawn, or None."""
        self._crops, self._blurred = names.get("--crops", []), names.get("--blur", [])
        for option in ("--annotate", "--blur"):
            paths = set(map(os.path.realpath, names.get(option, ())))
            if lost := [source for source in self.sources if os.path.realpath(source) in paths]:
                args.misuse(f"{option} would overwrite {lost[0]}, which is to be read")
        if args.crops and (lost := overwritten(args.crops, self.sources, {path.stem for path in self._crops})):
            args.misuse(f"--crops would overwrite {lost}, which is to be read")

    def begin(self) -> None:
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def wanted(self) -> bool:
        """Whether a picture is needed after its faces were read."""
        return any(path is not None for path in self.drawings) or bool(self._crops or self._blurred)

    def write(self, number: int, faces: Faces) -> Counter[str]:
        """The copies of a source, by its number in `sources`: how many drawings, crops and blurred pictures.

        Raises ReadError where its picture is no longer there, OSError where one cannot be written.
        """
        written: Counter[str] = Counter()
        if not faces or not self.wanted:
            return written
        image = faces.image()
        if drawing := self.drawings[number]:
            _write(draw(image, faces), drawing)
            written["drawing"] += 1
        if self._crops:
            for index, crop in enumerate(faces.crops(image)):
                _write(Image.fromarray(crop), face_file(self._crops[number], index))
                written["crop"] += 1
        if self._blurred:
            _write(Image.fromarray(hide(image, faces)), self._blurred[number])
            written["blurred picture"] += 1
        return written

    def lines(self, counts: Counter[str]) -> list[str]:
        """What was written where."""
        made = {"drawing": self._args.annotate, "crop": self._args.crops, "blurred picture": self._args.blur}
        return [f"{place}: {counts[kind]:,} {kind}{'s' * (counts[kind] != 1)}" for kind, place in made.items() if place]


def face_file(picture: Path, index: int) -> Path:
    """The file of a face: "name-face0.png", numbered as its row is."""
    return picture.with_name(f"{picture.stem}-face{index}{picture.suffix}")


def _write(picture: Image.Image, path: Path) -> None:
    """Into a .jpg or .png file, whole or not at all."""
    with whole(path) as file:
        picture.save(file, "JPEG" if path.suffix == ".jpg" else "PNG", quality=92)
