"""Pictures with the faces marked that were read in them."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mien.faces import Face, is_video
from mien.faces.draw import draw
from mien.faces.video import camera, scheme
from mien.files import whole

__all__ = ["annotate", "annotated_names", "draw"]

_JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}


def annotated_names(folder: Path, sources: Sequence[str]) -> list[Path]:
    """Where the annotated picture of each source goes: under its own name, numbered where another has taken that."""
    taken: set[str] = set()
    seen: Counter[str] = Counter()
    paths = []
    for source in sources:
        stem, suffix = os.path.splitext(os.path.basename(source))
        suffix = ".mp4" if is_video(source) else ".jpg" if suffix.lower() in _JPEG else ".png"
        if camera(source) or scheme(source):
            stem = re.sub(r"[^\w.-]+", "-", re.sub(r"^.*@|^\w+://", "", source)).strip("-.") or "stream"
        name = stem + suffix
        while name.lower() in taken:
            seen[stem + suffix] += 1
            name = f"{stem}-{seen[stem + suffix] + 1}{suffix}"
        taken.add(name.lower())
        paths.append(folder / name)
    return paths


def annotate(image: np.ndarray, faces: Sequence[Face], path: Path) -> None:
    """Draw the faces of image (H, W, 3) uint8 and write it to `path`, .jpg or .png, whole or not at all."""
    drawn = draw(image, faces)
    with whole(path) as file:
        drawn.save(file, "JPEG" if path.suffix == ".jpg" else "PNG", quality=92)
