"""Damaged pictures: cut, with bytes changed, taken out and doubled, in every format that is read."""

import io

import numpy as np
from PIL import Image

from mien.errors import ReadError
from mien.faces import open_picture

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")


def damaged(seed: int) -> tuple[str, bytes]:
    """What was done, and the picture."""
    draw = np.random.default_rng((1, seed))
    kind, mode = FORMATS[seed % len(FORMATS)], ("RGB", "L", "P")[int(draw.integers(3))]
    noise = draw.integers(0, 256, (int(draw.integers(1, 40)), int(draw.integers(1, 40)), 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).convert("RGB" if kind in ("JPEG", "WEBP") and mode == "P" else mode).save(stream, kind)
    data = bytearray(stream.getvalue())
    what = ("cut", "changed", "header", "removed", "doubled", "zeros")[int(draw.integers(6))]
    at, length = int(draw.integers(len(data))), int(draw.integers(1, 64))
    match what:
        case "cut":
            del data[at:]
        case "changed" | "header":
            for place in draw.integers(0, len(data) if what == "changed" else min(64, len(data)), length):
                data[place] = int(draw.integers(256))
        case "removed":
            del data[at : at + length]
        case "doubled":
            data[at:at] = data[at : at + length]
        case "zeros":
            data[at : at + length] = bytes(len(data[at : at + length]))
    return f"{kind} {what}", bytes(data)


def fault(seed: int) -> str | None:
    """What is wrong with how the picture is read: neither pixels nor one line that says why not."""
    what, data = damaged(seed)
    try:
        found = open_picture(data, name="it", max_pixels=10_000_000)
    except ReadError as error:
        return None if "\n" not in str(error) and str(error).startswith("it: ") else f"{seed}, {what}: {error}"
    except BaseException as error:
        return f"{seed}, {what}: {type(error).__name__}: {error}"
    return None if found.dtype == np.uint8 and found.ndim == 3 else f"{seed}, {what}: {found.shape}"
