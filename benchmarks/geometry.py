"""How far head pose out of five landmarks is off, from which angle expressions are read worse, and what it costs.

    python benchmarks/geometry.py fit DATA --landmarker FILE     # the head of mien.faces.pose, from training faces
    python benchmarks/geometry.py judge DATA --landmarker FILE   # pose of five landmarks against the landmarker's
    python benchmarks/geometry.py turns DATA                     # accuracy on faces turned by perspective warps
    python benchmarks/geometry.py cost PHOTO --landmarker FILE   # CPU-ms a face, in turns
    python benchmarks/geometry.py picture docs --landmarker FILE # the pictures of docs/geometry.md

DATA is FER+ as a parquet file. `fit` sees the training split only, and everything else the validation split only.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import cv2
import numpy as np

from mien.classifier import Classifier
from mien.data import open_dataset
from mien.faces import Detection, YuNet, find_known, open_picture
from mien.faces.landmarker import Landmarker
from mien.faces.measure import Measures
from mien.faces.pose import pose_of, rotation_of
from mien.reader import Reader

ANGLES = (-60, -45, -30, -20, -10, 0, 10, 20, 30, 45, 60)
SIDE, BORDER = 112, 56  # pixels of a face's picture, and of the black border that detectors know better


def pictures(data: str, split: str, limit: int, seed: int = 0) -> Iterator[tuple[np.ndarray, int]]:
    """Faces of a split (224, 224, 3) in a border, and their labels, in a random order."""
    rows = list(open_dataset(data, check=False).rows(split))
    for i in np.random.default_rng(seed).permutation(len(rows))[:limit]:
        face = cv2.resize(rows[i].image(), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        yield cv2.copyMakeBorder(face, *[BORDER] * 4, cv2.BORDER_CONSTANT), rows[i].label


def largest(yunet: YuNet, picture: np.ndarray) -> Detection | None:
    return max(find_known(yunet, picture), key=lambda face: face.box[2] * face.box[3], default=None)


def pairs(args: argparse.Namespace, split: str) -> tuple[np.ndarray, ...]:
    """Five landmarks (N, 5, 2), the landmarker's angles (N, 3), eyes (N, 2) with NaN where shut, and how many faces
    either of them missed."""
    if args.load:
        kept = np.load(args.load)
        return kept["landmarks"], kept["angles"], kept["eyes"], kept["missed"]
    yunet, landmarker, found, missed = YuNet(), Landmarker(args.landmarker), [], 0
    for picture, _ in pictures(args.data, split, args.faces):
        face = largest(yunet, picture)
        geometry = landmarker(picture, [face])[0] if face else None
        if geometry is None:
            missed += 1
            continue
        eyes = geometry.eye_direction if geometry.eye_direction is not None else np.full(2, np.nan)
        found.append((face.landmarks, geometry.pose, eyes))
    landmarks, angles, eyes = (np.array(part, np.float64) for part in zip(*found, strict=True))
    if args.keep:
        np.savez(args.keep, landmarks=landmarks, angles=angles, eyes=eyes, missed=missed)
    return landmarks, angles, eyes, np.array(missed)


def fit(args: argparse.Namespace) -> None:
    """HEAD: the five points that, turned as the landmarker says, lie nearest to YuNet's landmarks (least squares)."""
    landmarks, angles, eyes, missed = pairs(args, "train")
    points = landmarks - landmarks.mean(1, keepdims=True)
    head = np.zeros((5, 3))
    for _ in range(20):  # by turns the head, and how large it is in each picture
        views = np.stack([rotation_of(*each)[:2] for each in angles])  # (N, 2, 3)
        seen = np.einsum("nij,pj->npi", views, head)
        sizes = (points * seen).sum((1, 2)) / (seen**2).sum((1, 2)) if head.any() else np.ones(len(points))
        sizes = np.where(head.any(), sizes, np.sqrt((points**2).sum((1, 2)) / 5))
        scaled = (views * sizes[:, None, None]).reshape(-1, 3)
        head = np.linalg.lstsq(scaled, points.transpose(0, 2, 1).reshape(-1, 5), rcond=None)[0].T
        head = (head + head[[1, 0, 2, 4, 3]] * (-1, 1, 1)) / 2  # as wide to the left as to the right
        head /= np.sqrt((head[:, :2] ** 2).sum(1).mean())
    print(f"n = {len(points):,}, {missed:,} missed")
    print(np.array2string(head, precision=4, separator=", ", suppress_small=True))
    told = ~np.isnan(eyes).any(1)
    above = np.polyfit(angles[told, 1], eyes[told, 1], 1)[1]
    print(f"eyes of {told.sum():,}: where the head is level, they look {above:+.1f} degrees up")


def judge(args: argparse.Namespace) -> None:
    """The error of each angle, by how far the landmarker says that the head is turned; 95 % of 1,000 resamples."""
    landmarks, angles, _, missed = pairs(args, "validation")
    poses = [pose_of(points) for points in landmarks]
    none = sum(pose is None for pose in poses)
    poses = np.array([np.full(3, np.nan) if pose is None else pose for pose in poses])
    error = np.abs((poses - angles + 180) % 360 - 180)
    kept = ~np.isnan(error).any(1)
    print(f"n = {len(angles):,}, {missed:,} missed by one of them, {none:,} without a pose")
    turn = np.abs(angles[:, :2]).max(1)
    for low, high in ((0, 180), (0, 10), (10, 20), (20, 30), (30, 45), (45, 90)):
        chosen = kept & (turn >= low) & (turn < high)
        cells = [f"{error[chosen, i].mean():.1f} ({_interval(error[chosen, i], np.mean)})" for i in range(3)]
        print(f"| {low} to {high} | {chosen.sum():,} | " + " | ".join(cells) + " |")
    for i, name in enumerate(("yaw", "pitch", "roll")):
        bias, fit = (poses - angles)[kept, i], np.corrcoef(poses[kept, i], angles[kept, i])[0, 1]
        print(f"{name}: bias {bias.mean():+.1f}, median error {np.median(error[kept, i]):.1f}, correlation {fit:.2f}")


def _interval(values: np.ndarray, of: Callable[[np.ndarray], float], seed: int = 0) -> str:
    draws = np.random.default_rng(seed).integers(len(values), size=(1000, len(values)))
    low, high = np.percentile([of(values[draw]) for draw in draws], (2.5, 97.5)) if len(values) else (np.nan, np.nan)
    return f"{low:.1f} to {high:.1f}"


def turned(picture: np.ndarray, yaw: float, pitch: float, face: tuple[float, ...]) -> np.ndarray:
    """The picture with its face turned: it is painted on an ellipsoid, seen in perspective, and painted out where the
    picture does not show what comes into view.

    face: x, y, width and height of the face, from whose middle the camera is four widths away.
    """
    x, y, width, height = face
    axes, far = np.array([0.62 * width, 0.72 * height, 0.62 * width]), 4.0 * width
    middle = np.array([x + width / 2, y + height / 2])
    turn = rotation_of(yaw, pitch, 0)
    rows, columns = np.mgrid[: picture.shape[0], : picture.shape[1]]
    rays = np.stack([columns - middle[0], rows - middle[1], np.full(rows.shape, far)], -1) / far
    eye, rays = (-np.array([0, 0, far]) @ turn) / axes, (rays @ turn) / axes  # in the head's axes, where it is a ball
    a, b, c = (rays**2).sum(-1), rays @ eye, eye @ eye - 1
    root = b * b - a * c
    on = (eye + rays * ((-b - np.sqrt(root.clip(0))) / a)[..., None]) * axes  # where each ray meets the head
    before = np.array([0, 0, -far])
    seen = (root > 0) & (((before - on) * (on / axes**2)).sum(-1) > 0)  # and there it was seen from the front, too
    shown = middle + on[..., :2] * (far / (far + on[..., 2:]))
    warped = cv2.remap(
        picture, *np.float32(shown).transpose(2, 0, 1), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.where(seen[..., None], warped, np.uint8(96))


def turns(args: argparse.Namespace) -> None:
    """Of faces turned by warps, how many are found and read rightly, and which angle five landmarks tell."""
    files = args.load.split(",") if args.load else ()
    tables = [np.load(file)["table"] for file in files] or [turned_and_read(args)]
    table = np.concatenate(tables)
    poses = [pose_of(row[3:].reshape(5, 2)) if row[3] == row[3] else None for row in table]
    angles = np.array([np.full(3, np.nan) if pose is None else pose for pose in poses])
    table = np.column_stack([table[:, :3], angles])
    for pitch in (0, 1):
        for angle in ANGLES:
            part = table[(table[:, 0] == pitch) & (table[:, 1] == angle)]
            seen = part[~np.isnan(part[:, 2])]
            if not len(seen):
                print(f"| {('yaw', 'pitch')[pitch]} | {angle:+} | 0/{len(part)} | | |")
                continue
            rates, angles = 100 * seen[:, 2], np.nanmedian(seen[:, 3 + pitch])
            print(
                f"| {('yaw', 'pitch')[pitch]} | {angle:+} | {len(seen)}/{len(part)} | {rates.mean():.1f} "
                f"({_interval(rates, np.mean)}) | {angles:+.0f} |"
            )
    told, right = np.abs(table[:, 3:5]).max(1), table[:, 2]
    counted = [len(one) // (2 * len(ANGLES)) for one in tables]  # faces, the same ones at each angle
    firsts = np.cumsum([0, *counted[:-1]])
    faces = np.concatenate(
        [first + np.arange(len(one)) % count for first, one, count in zip(firsts, tables, counted, strict=True)]
    )
    draws = np.random.default_rng(0).integers(faces.max() + 1, size=(1000, faces.max() + 1))
    counts = np.stack([np.bincount(draw, minlength=faces.max() + 1) for draw in draws])[:, faces]

    def share(chosen: np.ndarray) -> np.ndarray:
        """Read rightly of these, in percent: of all, and of each of 1,000 resamples of the faces."""
        weights = np.vstack([np.ones(len(table)), counts]) * (chosen & ~np.isnan(right))
        return 100 * (weights @ np.nan_to_num(right)) / weights.sum(1)

    straight = share(told < 15)
    print(f"told below 15: {(told < 15).sum()}, {straight[0]:.1f}")
    for least, most in ((15, 25), (25, 35), (35, 50), (50, 90), (25, 90), (35, 90)):
        chosen = (told >= least) & (told < most)
        here = share(chosen)
        low, high = np.percentile((here - straight)[1:], (2.5, 97.5))
        falls = f"{here[0] - straight[0]:+.1f} ({low:+.1f} to {high:+.1f})"
        print(f"| told {least} to {most} | {chosen.sum()} | {here[0]:.1f} | {falls} |")


def turned_and_read(args: argparse.Namespace) -> np.ndarray:
    """(N, 13): whether pitch was turned, by how much, whether it was read rightly, and the landmarks; NaN where no face
    was found."""
    yunet, classifier = YuNet(), Classifier.from_pretrained(precision="fp32")
    faces = [(*pair, largest(yunet, pair[0])) for pair in pictures(args.data, "validation", args.faces, args.seed)]
    rows = []
    for axis in ("yaw", "pitch"):
        for angle in ANGLES:
            for picture, label, found in faces:
                if found is None:
                    continue
                view = turned(picture, *((angle, 0) if axis == "yaw" else (0, angle)), found.box)
                face = largest(yunet, view)
                right, points = np.nan, np.full((5, 2), np.nan)
                if face is not None:
                    points = face.landmarks
                    right = classifier.run(classifier.crop(view, points, face.box)[None])[0].argmax() == label
                rows.append((axis == "pitch", angle, right, *points.ravel()))
    table = np.array(rows, float)
    if args.keep:
        np.savez(args.keep, table=table)
    return table


def cost(args: argparse.Namespace) -> None:
    """CPU-ms a face of each step, medians of rounds in which each takes its turn."""
    image = open_picture(args.data)
    yunet, landmarker, classifier = YuNet(), Landmarker(args.landmarker), Classifier.from_pretrained(precision="fp32")
    faces = find_known(yunet, image)[:1]
    crops = classifier.crop(image, faces[0].landmarks, faces[0].box)[None]
    steps = {
        "YuNet finds it": lambda: yunet(image),
        "the expression": lambda: classifier.read(crops),
        "pose of five landmarks": lambda: pose_of(faces[0].landmarks),
        "the landmarker": lambda: landmarker(image, faces),
        "of that, where it looks": lambda: landmarker.regions(image, faces),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(args.rounds + 1):
        for name, step in steps.items():
            begin = time.process_time()
            for _ in range(10):
                step()
            times[name].append(100 * (time.process_time() - begin))
    for name, each in times.items():
        print(f"| {name} | {np.median(each[1:]):.2f} |")


def picture(args: argparse.Namespace) -> None:
    """pose.jpg and geometry.jpg in the folder `data`: both photographs, turned, small and large, in one picture."""
    group = np.full((520, 1090, 3), 96, np.uint8)
    for name, turn, (x, y, width, height) in (
        ("astronaut.png", (0, 0), (0, 0, 520, 520)),
        ("hopper.jpg", (0, 0), (520, 0, 300, 352)),
        ("hopper.jpg", (-32, 0), (820, 0, 270, 290)),
        ("astronaut.png", (32, 0), (820, 290, 210, 230)),
        ("hopper.jpg", (0, 22), (520, 352, 155, 168)),
        ("astronaut.png", (0, -22), (675, 362, 140, 150)),
        ("hopper.jpg", (-20, 0), (1030, 300, 60, 65)),
    ):
        photograph = open_picture(f"examples/{name}")
        if any(turn):
            left, top, *size = map(round, face := YuNet()(photograph)[0].box)
            photograph = turned(photograph, *turn, face)
            margin = size[0] // 3
            photograph = photograph[
                max(0, top - margin) : top + size[1] + margin, max(0, left - margin) : left + size[0] + margin
            ]
        scale = max(width / photograph.shape[1], height / photograph.shape[0])
        part = cv2.resize(photograph, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:height, :width]
        group[y : y + part.shape[0], x : x + part.shape[1]] = part
    reader = Reader.from_pretrained(min_face=16)
    reader(group).save(f"{args.data}/pose.jpg", group)
    measures = Measures(Landmarker(args.landmarker))
    Reader(reader.classifier, reader.detector, min_face=16, measures=measures)(group).save(
        f"{args.data}/geometry.jpg", group
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fit", "judge", "turns", "cost", "picture"))
    parser.add_argument("data")
    parser.add_argument("--landmarker", default="auto")
    parser.add_argument("--faces", type=int, default=4000, help="how many, chosen at random (default: 4000)")
    parser.add_argument("--rounds", type=int, default=15, help="of cost (default: 15)")
    parser.add_argument("--keep", help="an .npz for what was measured")
    parser.add_argument("--load", help="such an .npz, in place of pictures; several of turns, with commas between")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of faces (default: 0)")
    args = parser.parse_args()
    {"fit": fit, "judge": judge, "turns": turns, "cost": cost, "picture": picture}[args.what](args)
