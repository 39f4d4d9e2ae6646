"""How well networks of several seeds find rendered heads, and one picture of what the first of them finds.

    python benchmarks/heads.py held/annotations.json run0.safetensors run1.safetensors --picture docs/heads.jpg

The table has each seed, and mean and range of all. Below each stand its own boxes with all angles guessed as 0, which
is what an angle's error falls from. Errors are over heads that were found (IoU 0.5, score above 0.3).
"""

import argparse
from pathlib import Path

import cv2
import numpy as np

from mien.faces import open_picture
from mien.heads import Head, HeadDetector, mark, measure_heads, read_annotations
from mien.heads.measure import LEAST

COLUMNS = {
    "average_precision": "AP at 0.5",
    "average_precision_strict": "AP 0.5 to 0.95",
    "recall": "found",
    "recall_from_behind": "found from behind",
    "false": "false",
    "pitch": "pitch",
    "yaw": "yaw",
    "roll": "roll",
    "angles": "mean",
    "angles_from_the_front": "front",
    "angles_from_behind": "behind",
}


def table(pictures, models) -> str:
    """Markdown: for each model what it found, and the same boxes with all angles guessed as 0; then their means."""
    truth, rows = [picture.heads for picture in pictures], {}
    for model in models:
        detector = HeadDetector(model, threshold=LEAST)
        found = [detector(open_picture(picture.path)) for picture in pictures]
        blind = [[Head(head.box, (0.0, 0.0, 0.0), head.score) for head in heads] for heads in found]
        rows[Path(model).stem] = measure_heads(found, truth), measure_heads(blind, truth)
    first = next(iter(rows.values()))[0]
    lines = [f"| {first.heads} heads, {first.from_behind} from behind | {' | '.join(COLUMNS.values())} |"]
    lines.append("|---|" + "---:|" * len(COLUMNS))
    for name, (seen, guessed) in rows.items():
        lines.append(f"| {name} | {' | '.join(cell(column, getattr(seen, column)) for column in COLUMNS)} |")
        cells = [cell(c, getattr(guessed, c)) if c in list(COLUMNS)[5:] else "" for c in COLUMNS]
        lines.append(f"| its boxes, angles 0 | {' | '.join(cells)} |")
    values = {column: np.array([getattr(row, column) for row, _ in rows.values()], float) for column in COLUMNS}
    spans = [f"{cell(c, v.mean())} ({cell(c, v.min())} to {cell(c, v.max())})" for c, v in values.items()]
    return "\n".join([*lines, f"| mean (range) | {' | '.join(spans)} |"])


def cell(column: str, value: float) -> str:
    return f"{value:.0f}" if column == "false" else f"{value:.3f}" if column in list(COLUMNS)[:4] else f"{value:.1f}°"


def sheet(pictures, model, columns: int = 6) -> np.ndarray:
    """What was annotated (above) and what was found (below) in pictures, row by row."""
    detector, rows = HeadDetector(model), []
    for first in range(0, len(pictures), columns):
        images = [(open_picture(picture.path), picture.heads) for picture in pictures[first : first + columns]]
        rows.append(np.hstack([mark(image, heads, zoom=2) for image, heads in images]))
        rows.append(np.hstack([mark(image, detector(image), zoom=2) for image, _ in images]))
        rows.append(np.full((12, rows[-1].shape[1], 3), 255, np.uint8))
    return np.vstack(rows[:-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("annotations", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--picture", type=Path, help="where the sheet of the first model goes")
    args = parser.parse_args()
    pictures = read_annotations(args.annotations)
    print(table(pictures, args.models))
    if args.picture:
        shown = [picture for picture in pictures if len(picture.heads) > 1][:12]  # the first ones, not chosen
        cv2.imwrite(str(args.picture), sheet(shown, args.models[0])[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])


if __name__ == "__main__":
    main()
