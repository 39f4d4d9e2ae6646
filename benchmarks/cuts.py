"""How often a cut is missed, and how often one is seen where there is none, on clips made of the photographs in
examples/.

    python benchmarks/cuts.py                     # 20 clips of each kind, three frame rates
    python benchmarks/cuts.py --threshold 20

Every clip is coded as people keep videos (H.264, quality 28) and read back. Kinds with a cut have one, at a frame
that is known; a cut that is found at that very frame is right, and any other one is a false alarm.
"""

import argparse
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from mien.faces import open_picture
from mien.video import Video
from mien.video.cuts import CUT, Cuts

EXAMPLES = Path(__file__).parents[1] / "examples"
SIZE = (320, 180)


def view(image: np.ndarray, at: np.ndarray, wide: float) -> np.ndarray:
    """The part of the photograph about `at` (x, y in shares), `wide` of its width, as a frame."""
    height, width = image.shape[:2]
    w = wide * width
    h = w * SIZE[1] / SIZE[0]
    x, y = at * (np.array([width, height]) - (w, h)).clip(0)
    corner = np.float32([[x, y], [x + w, y], [x, y + h]])
    matrix = cv2.getAffineTransform(corner, np.float32([[0, 0], [SIZE[0], 0], [0, SIZE[1]]]))
    return cv2.warpAffine(image, matrix, SIZE, flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT)


def shot(images: list[np.ndarray], chance: np.random.Generator, rate: int, speed: float = 0.02, which=None) -> list:
    """A second and a half of a camera that moves by `speed` of the picture's width a second over one photograph."""
    image = images[int(chance.integers(len(images))) if which is None else which]
    start, end = chance.uniform(0.2, 0.8, 2), chance.uniform(0.4, 0.7)
    angle = chance.uniform(0, 2 * np.pi)
    step = np.array([np.cos(angle), np.sin(angle)]) * speed / rate / max(1 - end, 0.1)
    return [view(image, (start + i * step).clip(0, 1), end) for i in range(round(1.5 * rate))]


def light(frame: np.ndarray, share: float) -> np.ndarray:
    return (frame * share).clip(0, 255).astype(np.uint8)


def clip(kind: str, images: list[np.ndarray], chance: np.random.Generator, rate: int) -> tuple[list, int | None]:
    """Frames, and the number of the first one of the second scene, None where there is but one."""
    other = list(range(len(images)))
    first = int(chance.integers(len(images)))
    other.remove(first)
    second = int(chance.choice(other))
    a, b = shot(images, chance, rate, which=first), shot(images, chance, rate, which=second)
    match kind:
        case "another place":
            return a + b, len(a)
        case "another view of one place":
            return a + shot(images, chance, rate, which=first), len(a)
        case "another place, both dark":
            return [light(f, 0.3) for f in a + b], len(a)
        case "another place, grey":
            return [cv2.cvtColor(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for f in a + b], len(a)
        case "fast camera, then another place":
            return shot(images, chance, rate, 1.0, first) + shot(images, chance, rate, 1.0, second), len(a)
        case "dissolve of half a second":
            n = max(2, rate // 2)
            mixed = [cv2.addWeighted(a[-n + i], 1 - (i + 1) / n, b[i], (i + 1) / n, 0) for i in range(n)]
            return a[:-n] + mixed + b[n:], None
        case "a still camera":
            return shot(images, chance, rate, 0.0), None
        case "a fast camera":
            return shot(images, chance, rate, 1.0), None
        case "a head that fills half of it, turning":
            moved = [np.roll(f, round(40 * np.sin(6 * i / rate)), 1) for i, f in enumerate(a)]
            return moved, None
        case "light goes out and on over a second":
            return [light(f, 0.6 + 0.4 * np.cos(2 * np.pi * i / rate)) for i, f in enumerate(a)], None
        case "a flash of one frame":
            at = len(a) // 2
            return [np.full_like(f, 250) if i == at else f for i, f in enumerate(a)], None
        case "noise of a dark room":
            return [light(f, 0.25) // 1 + chance.integers(0, 25, f.shape).astype(np.uint8) for f in a], None
    raise ValueError(kind)


KINDS = (
    "another place",
    "another view of one place",
    "another place, both dark",
    "another place, grey",
    "fast camera, then another place",
    "dissolve of half a second",
    "a still camera",
    "a fast camera",
    "a head that fills half of it, turning",
    "light goes out and on over a second",
    "a flash of one frame",
    "noise of a dark room",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--threshold", type=float, default=CUT)
    parser.add_argument("--rates", type=int, nargs="+", default=[5, 25])
    args = parser.parse_args()
    images = [open_picture(path) for path in sorted(EXAMPLES.iterdir()) if path.suffix in (".jpg", ".png")]
    print(f"{'clips':38} " + " ".join(f"{f'{rate} a second: missed, false':>32}" for rate in args.rates))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        for kind in KINDS:
            cells = []
            for rate in args.rates:
                missed = false = cuts = count = 0
                for seed in range(args.clips):
                    chance = np.random.default_rng([seed, KINDS.index(kind), rate])
                    frames, cut = clip(kind, images, chance, rate)
                    write(path, frames, rate)
                    tell = Cuts(args.threshold)
                    with Video(path) as video:
                        found = [p.number for p in video.pictures() if tell(p.image)]
                    missed += cut is not None and cut not in found
                    cuts += cut is not None
                    false += len([at for at in found if at != cut])
                    count += len(frames)
                cells.append(f"{f'{missed} of {cuts}' if cuts else '':>14} {f'{false} in {count:,} frames':>17}")
            print(f"{kind:38} " + " ".join(cells), flush=True)


def write(path: Path, frames: list[np.ndarray], rate: int) -> None:
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "28"})
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        video.time_base = Fraction(1, rate)
        for image in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(video.encode())


if __name__ == "__main__":
    main()
