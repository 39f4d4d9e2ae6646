"""Videos made out of the photographs in examples/."""

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import cv2
import numpy as np

from mien.faces import open_picture

EXAMPLES = Path(__file__).parents[1] / "examples"


@lru_cache
def portrait(side: int, name: str = "hopper.jpg") -> np.ndarray:
    """A face and some of its surroundings, (side, side, 3)."""
    image = open_picture(EXAMPLES / name)
    x, y, size = (100, 30, 300) if name == "hopper.jpg" else (100, 0, 280)
    return cv2.resize(image[y : y + size, x : x + size], (side, side), interpolation=cv2.INTER_AREA)


def scene(*places: tuple[int, int, int], size: tuple[int, int] = (320, 240)) -> np.ndarray:
    """(H, W, 3): portraits with their corner at x, y and of a side each, on green; cut where they stick out."""
    width, height = size
    canvas = np.full((height + 400, width + 400, 3), (90, 120, 40), np.uint8)
    for x, y, side in places:
        canvas[y + 200 : y + 200 + side, x + 200 : x + 200 + side] = portrait(side)
    return canvas[200 : 200 + height, 200 : 200 + width]


def film(
    path: Path,
    images: Iterable[np.ndarray],
    *,
    pts: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    codec: str = "mpeg4",
    turn: int = 0,
    sound: str = "",
    options: dict[str, str] | None = None,
    container_format: str | None = None,
    silence: Callable[[int], np.ndarray] | None = None,
) -> Path:
    """Write images as a video, each at its pts in ticks of time_base; with a tone as long, coded as `sound`."""
    images = list(images)
    pts = list(pts or range(len(images)))
    with av.open(str(path), "w", format=container_format, options=options or {}) as container:
        if images:
            video = container.add_stream(codec, rate=round(1 / time_base) if time_base.numerator == 1 else 25)
            video.codec_context.time_base = video.time_base = time_base
            video.width, video.height = images[0].shape[1::-1]
            video.pix_fmt = "yuv420p"
            video.bit_rate = 2_000_000
            if turn:
                video.set_display_rotation(turn)
        if sound:
            audio = container.add_stream(sound, rate=48_000)
            seconds = float((pts[-1] + 1) * time_base) if pts else 2.0
            tone = (np.sin(np.arange(int(seconds * 48_000)) / 20) * 9000).astype(np.int16)
        for image, at in zip(images, pts, strict=True):
            frame = av.VideoFrame.from_ndarray(image)
            frame.pts, frame.time_base = at, time_base
            container.mux(video.encode(frame))
        if images:
            container.mux(video.encode())
        if sound:
            for i in range(0, len(tone), 1024):
                frame = av.AudioFrame.from_ndarray(tone[None, i : i + 1024], format="s16", layout="mono")
                frame.sample_rate, frame.pts, frame.time_base = 48_000, i, Fraction(1, 48_000)
                container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path
