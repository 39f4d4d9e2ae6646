"""How accuracy falls as faces are spoilt: ten ways, five severities each, made anew from any set."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import cv2
import numpy as np
from tqdm import tqdm

from mien.classifier import Classifier
from mien.data import Row
from mien.errors import require
from mien.evaluation.consistency import jpeg, reframe, small
from mien.faces import Detector, find_known
from mien.faces.align import ARCFACE112

SEVERITIES = 5

Spoil = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray]
"""A face (H, W, 3) uint8 RGB, its landmarks (5, 2) in pixels, a severity of 0 to 4, chance -> (H', W', 3) uint8."""


def occlude(image: np.ndarray, middle: np.ndarray, across: np.ndarray, height: float) -> np.ndarray:
    """A black bar about `middle` (2,), reaching half of `across` (2,) to either side, `height` pixels high."""
    up = np.array([-across[1], across[0]]) / max(float(np.hypot(*across)), 1e-6) * height
    corners = [middle + x * across / 2 + y * up / 2 for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    return cv2.fillConvexPoly(image.copy(), np.rint(corners).astype(np.int32), (0, 0, 0))


def eyes(image: np.ndarray, landmarks: np.ndarray, severity: int, chance: np.random.Generator) -> np.ndarray:
    """A bar over both eyes, up to 2.2 times as wide as they are apart."""
    size = (0.6, 1.0, 1.4, 1.8, 2.2)[severity]
    across = landmarks[1] - landmarks[0]
    return occlude(image, landmarks[:2].mean(0), across * (0.6 + 0.75 * size), np.hypot(*across) * 0.4 * size)


def mouth(image: np.ndarray, landmarks: np.ndarray, severity: int, chance: np.random.Generator) -> np.ndarray:
    """A bar over the mouth, up to 2.2 times as wide as it is."""
    size = (0.6, 1.0, 1.4, 1.8, 2.2)[severity]
    across = landmarks[4] - landmarks[3]
    return occlude(image, landmarks[3:].mean(0), across * size, np.hypot(*(landmarks[1] - landmarks[0])) * 0.4 * size)


def boxes(image: np.ndarray, landmarks: np.ndarray, severity: int, chance: np.random.Generator) -> np.ndarray:
    """One to five black squares, each a quarter of the shorter side wide, anywhere."""
    image, side = image.copy(), max(1, min(image.shape[:2]) // 4)
    for _ in range(severity + 1):
        y, x = (int(chance.integers(0, length - side + 1)) for length in image.shape[:2])
        image[y : y + side, x : x + side] = 0
    return image


def resolution(image: np.ndarray, landmarks: np.ndarray, severity: int, chance: np.random.Generator) -> np.ndarray:
    """40, 28, 20, 14 and 10 pixels wide."""
    return small(image, (40, 28, 20, 14, 10)[severity])


def dark(image: np.ndarray, landmarks: np.ndarray, severity: int, chance: np.random.Generator) -> np.ndarray:
    """Grey, as under near infrared, with a share of the light and the sensor's noise, of deviation 4."""
    light = (0.5, 0.3, 0.2, 0.12, 0.08)[severity]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None] * light
    return np.rint(grey + chance.normal(0, 4, grey.shape)).clip(0, 255).astype(np.uint8).repeat(3, 2)


def noise(image: np.ndarray, landmarks: np.ndarray, severity: int, chance: np.random.Generator) -> np.ndarray:
    """Normal noise in every pixel and colour, of deviation 8 to 64."""
    spread = (8, 16, 26, 40, 64)[severity]
    return np.rint(image + chance.normal(0, spread, image.shape)).clip(0, 255).astype(np.uint8)


def blur(image: np.ndarray, landmarks: np.ndarray, severity: int, chance: np.random.Generator) -> np.ndarray:
    """A Gaussian of 1 to 6 % of the shorter side."""
    return cv2.GaussianBlur(image, (0, 0), (0.01, 0.02, 0.03, 0.045, 0.06)[severity] * min(image.shape[:2]))


def compressed(image: np.ndarray, landmarks: np.ndarray, severity: int, chance: np.random.Generator) -> np.ndarray:
    """JPEG of quality 60 to 5."""
    return jpeg(image, (60, 40, 20, 10, 5)[severity])


def yaw(image: np.ndarray, landmarks: np.ndarray, severity: int, chance: np.random.Generator) -> np.ndarray:
    """The picture, as a plane, turned by 15 to 60° about its upright middle, to either side: like a turned head, but
    flat."""
    angle = np.radians((15, 27, 38, 49, 60)[severity]) * chance.choice((-1, 1))
    height, width = image.shape[:2]
    far = 2.5 * width  # from the eye to the middle of the picture
    x, y = np.array([-1, 1, 1, -1]) * width / 2, np.array([-1, -1, 1, 1]) * height / 2
    near = far / (far + x * np.sin(angle))
    seen = np.stack([x * np.cos(angle) * near + width / 2, y * near + height / 2], 1)
    still = np.stack([x + width / 2, y + height / 2], 1)
    matrix = cv2.getPerspectiveTransform(still.astype(np.float32), seen.astype(np.float32))
    return cv2.warpPerspective(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def shifted(image: np.ndarray, landmarks: np.ndarray, severity: int, chance: np.random.Generator) -> np.ndarray:
    """A box that misses the face by 6 to 30 % of its side, in any direction."""
    angle, far = chance.uniform(0, 2 * np.pi), (0.06, 0.12, 0.18, 0.24, 0.3)[severity]
    return reframe(image, far * np.cos(angle), far * np.sin(angle))


WAYS: dict[str, Spoil] = {
    "eyes hidden": eyes,
    "mouth hidden": mouth,
    "boxes anywhere": boxes,
    "resolution": resolution,
    "dark and grey": dark,
    "noise": noise,
    "blur": blur,
    "JPEG": compressed,
    "turned": yaw,
    "shifted crop": shifted,
}


def measure_robustness(
    classifier: Classifier,
    rows: Sequence[Row],
    target: np.ndarray,
    detector: Detector | None = None,
    *,
    ways: Mapping[str, Spoil] = WAYS,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[str, np.ndarray]:
    """Which faces are read right, bool: "unchanged" (1, N), and (5, N) for each way, by severity.

    Pictures are taken as faces that fill their frame. Random numbers are seeded by the number of the face, so that
    every model is shown the same.

    classifier: reads the faces. rows, target: N faces, and their classes (N,).
    detector: finds landmarks in the unspoilt pictures. If it finds none, or there is no detector, they are those of the
        ArcFace template, spread over the picture.
    ways: WAYS by default. batch_size: faces read at a time (default 32). progress: show a bar on stderr.
    """
    right: dict[str, list[list[np.ndarray]]] = {
        "unchanged": [[]],
        **{name: [[] for _ in range(SEVERITIES)] for name in ways},
    }

    def read(images: Sequence[np.ndarray], wanted: np.ndarray) -> np.ndarray:
        return classifier.run(np.stack(list(pool.map(classifier.crop, images)))).argmax(1) == wanted

    with ThreadPoolExecutor() as pool, tqdm(total=len(rows), unit=" faces", leave=False, disable=not progress) as bar:
        for start in range(0, len(rows), batch_size):
            images = list(pool.map(Row.image, rows[start : start + batch_size]))
            landmarks = [_landmarks(image, detector) for image in images]
            wanted = target[start : start + batch_size]
            right["unchanged"][0].append(read(images, wanted))
            for name, spoil in ways.items():
                for severity in range(SEVERITIES):
                    numbers = range(start, start + len(images))
                    spoilt = [
                        spoil(image, points, severity, np.random.default_rng(number))
                        for image, points, number in zip(images, landmarks, numbers, strict=True)
                    ]
                    right[name][severity].append(read(spoilt, wanted))
            bar.update(len(images))
    return {name: np.stack([np.concatenate(parts) for parts in levels]) for name, levels in right.items()}


def robustness_table(right: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray] | None = None) -> str:
    """Accuracy by severity, and the mean of the five, as a table for a person.

    others: of another model on the same faces; its difference in accuracy is added, with its 95 % (normal).
    """
    wide = max(map(len, right))
    head = f"{'':{wide}}" + "".join(f"{severity:>8}" for severity in range(1, SEVERITIES + 1)) + "    mean"
    lines = [head + ("   the other, beyond" if others else "")]
    for name, levels in right.items():
        cells = [f"{level.mean():8.4f}" for level in levels] + [" " * 8] * (SEVERITIES - len(levels))
        line = f"{name:{wide}}{''.join(cells)}{levels.mean():8.4f}"
        if others:
            line += "   {:+.4f} ({:+.4f} to {:+.4f})".format(*beyond(levels, others[name]))
        lines.append(line)
    return "\n".join(lines)


def beyond(right: np.ndarray, others: np.ndarray) -> tuple[float, float, float]:
    """The difference in accuracy of others (S, N) from right (S, N), on the same faces, and its 95 % (normal)."""
    gain = (others.astype(float) - right).mean(0)  # a face
    spread = 1.96 * gain.std() / np.sqrt(len(gain))
    return float(gain.mean()), float(gain.mean() - spread), float(gain.mean() + spread)


def robustness_facts(right: Mapping[str, np.ndarray]) -> dict[str, list[float]]:
    """Accuracy by severity, as JSON takes it."""
    return {name: [float(level.mean()) for level in levels] for name, levels in right.items()}


def plot_robustness(models: Mapping[str, Mapping[str, np.ndarray]], file: BinaryIO, title: str = "") -> None:
    """Write, as PNG, a small plot a way: accuracy against severity, 0 being unchanged, a line a model, by its name.

    Needs the extra [eval].
    """
    ways = [name for name in next(iter(models.values())) if name != "unchanged"]
    rows = -(-len(ways) // 5)
    figure = require("matplotlib.figure", "eval").Figure(figsize=(12, 0.6 + 2.4 * rows), dpi=110, layout="constrained")
    axes = figure.subplots(rows, 5, sharex=True, sharey=True, squeeze=False).ravel()
    for plot, way in zip(axes, ways, strict=False):
        for model, right in models.items():
            levels = np.concatenate([right["unchanged"], right[way]])
            mean = levels.mean(1)
            spread = 1.96 * np.sqrt(mean * (1 - mean) / levels.shape[1])
            plot.errorbar(range(SEVERITIES + 1), mean, spread, fmt="o-", markersize=3, capsize=2, label=model)
        plot.set_title(way, fontsize="medium")
        plot.set(ylim=(0, 1), xticks=range(SEVERITIES + 1))
        plot.grid(alpha=0.3)
    for plot in axes[len(ways) :]:
        plot.set_axis_off()
    if len(models) > 1:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize="small")
    for plot in axes[-5:]:
        plot.set_xlabel("severity")
    figure.supylabel("accuracy, and 95 %")
    if title:
        figure.suptitle(title, fontsize="medium", parse_math=False)
    figure.savefig(file, format="png")


def _landmarks(image: np.ndarray, detector: Detector | None) -> np.ndarray:
    found = find_known(detector, image) if detector else ()
    if found:
        return max(found, key=lambda face: face.score).landmarks
    return ARCFACE112 * (np.array(image.shape[1::-1]) / 112)
