"""The README's pictures, from the two photographs in examples/: `python docs/make_pictures.py` (needs `mien[video]`).

`pictures/photograph.jpg` is one photograph as `mien read --annotate` draws it. `pictures/clip.gif` is a film that pans
over both, read with `track=True`.
"""

import tempfile
from pathlib import Path

import av
import numpy as np
from PIL import Image

import mien
from mien.faces.draw import draw

HERE = Path(__file__).parent
EXAMPLES = HERE.parent / "examples"
SIZE = (320, 240)
"""Of the film."""

RATE, SECONDS = 8, 5


def film(path: Path) -> None:
    """Pan from the one photograph to the other, coming closer and going away again."""
    sides = [Image.open(EXAMPLES / name).convert("RGB") for name in ("hopper.jpg", "astronaut.png")]
    height = 600
    sides = [side.resize((side.width * height // side.height, height), Image.Resampling.LANCZOS) for side in sides]
    scene = Image.new("RGB", (sum(side.width for side in sides), height))
    scene.paste(sides[0], (0, 0))
    scene.paste(sides[1], (sides[0].width, 0))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = *SIZE, "yuv420p", 4_000_000
        for i in range(RATE * SECONDS):
            done = i / (RATE * SECONDS - 1)
            way = (1 - np.cos(np.pi * done)) / 2
            wide = 520 + 260 * np.sin(np.pi * done)
            tall = wide * SIZE[1] / SIZE[0]
            left, top = way * (scene.width - wide), 0.35 * way * (height - tall)
            shown = scene.resize(SIZE, Image.Resampling.BICUBIC, (left, top, left + wide, top + tall))
            for packet in stream.encode(av.VideoFrame.from_image(shown)):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)


def main() -> None:
    folder = HERE / "pictures"
    folder.mkdir(exist_ok=True)
    reader = mien.Reader.from_pretrained(precision="fp32")
    faces = reader(EXAMPLES / "hopper.jpg")
    faces.save(folder / "photograph.jpg")
    with tempfile.TemporaryDirectory() as scratch:
        clip = Path(scratch) / "clip.mp4"
        film(clip)
        frames = [draw(frame.image, frame.faces) for frame in mien.read_video(clip, reader, track=True, images=True)]
    palette = frames[len(frames) // 2].quantize(64, dither=Image.Dither.NONE)
    shown = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    shown[0].save(
        folder / "clip.gif", save_all=True, append_images=shown[1:], duration=1000 // RATE, loop=0, optimize=True
    )


if __name__ == "__main__":
    main()
