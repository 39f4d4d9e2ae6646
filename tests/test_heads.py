"""Heads of any direction: angles, annotations, geometry of cameras, the network, and the command."""

import importlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from mien.__main__ import main
from mien.errors import MienError, ReadError
from mien.heads import Head, HeadDetector, Picture, mark, measure_heads, read_annotations, write_annotations
from mien.heads.angles import decode, difference, encode, from_rotation, to_rotation, turn_between
from mien.heads.convert import LANDMARKS, REFERENCE, Camera, convert, head_of, panoptic_views, read_views
from mien.heads.figure import REGIONS, Figure, draw
from mien.heads.loss import angle_distance, assign, complete_iou, directmhp_loss
from mien.heads.makehuman import MakeHuman, random_colors
from mien.heads.scenes import make_scenes
from mien.networks.directmhp import DirectMHP, read_grid

GOLDEN = json.loads((Path(__file__).parent / "golden" / "directmhp_angle_codec.json").read_text())


# ---- angles


def test_the_codec_is_the_published_one():
    degrees = np.array(GOLDEN["deg_pitch_yaw_roll"])
    np.testing.assert_allclose(encode(degrees), GOLDEN["encoded"], atol=1e-7)
    np.testing.assert_allclose(decode(encode(degrees)), degrees, atol=1e-4)


@pytest.mark.parametrize("angles", [(90.1, 0, 0), (0, -180.5, 0), (0, 0, 91), (0, float("nan"), 0)])
def test_angles_outside_of_the_codec(angles):
    with pytest.raises(ValueError, match="it goes from"):
        encode(np.array([(0, 0, 0), angles]))


def test_angles_and_rotations():
    rng = np.random.default_rng(0)
    for angles in rng.uniform((-89, -180, -90), (89, 180, 90), (50, 3)):
        rotation = to_rotation(angles)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(from_rotation(rotation), angles, atol=1e-9)
    assert difference((0, 179, 0), (0, -179, 0)).tolist() == [0, 2, 0]
    assert turn_between((0, 179, 0), (0, -179, 0)) == pytest.approx(2)
    assert turn_between((20, 0, 0), (-10, 0, 0)) == pytest.approx(30)


def ball(count: int = 24) -> Figure:
    """A ball of skin with a red nose at its front, a white crown above, and shoulders of cloth below."""
    down, round_ = np.meshgrid(
        np.linspace(0, np.pi, count + 1), np.linspace(0, 2 * np.pi, count, endpoint=False), indexing="ij"
    )
    flat = np.sin(down)
    head = np.stack([flat * np.sin(round_), -np.cos(down), -flat * np.cos(round_)], -1).reshape(-1, 3)
    i, j = (n.ravel() for n in np.mgrid[:count, :count])
    right = (j + 1) % count
    faces = np.stack([i * count + j, (i + 1) * count + j, (i + 1) * count + right, i * count + right], 1)
    centre = head[faces].mean(1)
    region = np.full(len(faces), REGIONS.index("skin"))
    region[centre[:, 2] < -0.9] = REGIONS.index("lips")
    region[centre[:, 1] < -0.93] = REGIONS.index("white")
    low = head * (1.5, 0.4, 0.7) + (0, 1.5, 0)
    return Figure(
        np.concatenate([head, low]),
        np.concatenate([faces, faces + len(head)]),
        np.concatenate([region, np.full(len(faces), REGIONS.index("cloth"))]),
        np.repeat([True, False], len(head)),
        np.repeat([1.0, 0.0], len(head)),
        np.array([0, 1.0, 0]),
    )


COLORS = np.array([(200, 200, 0), (90, 60, 30), (255, 0, 0), (255, 255, 255), (0, 0, 0), (0, 0, 255)], float)


def places(angles) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Where the nose and the crown of the ball are in its picture, from the middle of its head, in half heads."""
    sprite = draw(ball(), angles, 60, COLORS, (0, 0, -1))
    middle = sprite.box[:2] + sprite.box[2:] / 2
    red, green, blue = (sprite.image[..., i].astype(int) for i in range(3))
    found = []
    for mask in ((red > 60) & (green < 40) & (blue < 40), (np.minimum(red, blue) > 60) & (np.abs(red - blue) < 20)):
        where = np.argwhere(mask & (sprite.head > 0.9))[:, ::-1] + 0.5
        found.append((where.mean(0) - middle) / (sprite.box[2:] / 2) if len(where) > 3 else None)
    return tuple(found)


def test_what_is_drawn_looks_where_its_angles_say():
    nose, _ = places((0, 0, 0))
    np.testing.assert_allclose(nose, 0, atol=0.05)
    nose, _ = places((0, 40, 0))
    assert nose[0] > 0.5 and abs(nose[1]) < 0.1  # the person's left is the picture's right
    nose, crown = places((35, 0, 0))
    assert nose[1] < -0.45 and crown is None  # upwards, and the crown goes behind
    nose, crown = places((-35, 30, 0))
    assert nose[1] > 0.4 and nose[0] > 0.3 and crown is not None
    _, crown = places((-45, 0, 30))
    assert crown[0] > 0.2 and crown[1] < -0.4  # clockwise: what was above is on the right
    nose, crown = places((30, 180, 0))
    assert nose is None and crown is not None  # from behind, one that looks up shows its crown
    box = draw(ball(), (0, 90, 0), 60, COLORS).box
    np.testing.assert_allclose(box[2:], 60, rtol=0.06)


# ---- annotations


def annotated(**change) -> dict:
    head = {"box": [1, 2, 30, 40], "pitch": 5, "yaw": -170, "roll": 0}
    entry = {"image": "a.png", "width": 64, "height": 48, "heads": [head]}
    for name, value in change.items():
        place = head if name in ("box", "pitch", "yaw", "roll") else entry
        place[name] = value
        if value is None:
            del place[name]
    return {"mien_heads": 1, "pictures": [entry]}


def test_annotations_come_back(tmp_path):
    picture = Picture(tmp_path / "a.png", (64, 48), (Head((1, 2, 30, 40), (5, -170.25, 0)),))
    write_annotations(tmp_path / "a.json", [picture])
    assert read_annotations(tmp_path / "a.json") == [picture]


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{", "no JSON"),
        ({"pictures": []}, 'it does not begin with "mien_heads": 1'),
        ({"mien_heads": 1, "pictures": []}, 'has no "pictures"'),
        (annotated(image=None), r'pictures\[0\] has no "image"'),
        (annotated(width=0), r'pictures\[0\] \(a.png\) has no "width" and "height"'),
        (annotated(heads=None), 'has no "heads"'),
        (annotated(yaw=None, box=None), r"heads\[0\] has no box, yaw"),
        (annotated(box=[1, 2, 3]), "a box that is not four numbers"),
        (annotated(box=[40, 2, 30, 40]), r"\[40, 2, 30, 40\], which does not lie within 64×48 pixels"),
        (annotated(box=[4, 2, 0, 40]), "does not lie within"),
        (annotated(yaw=200), "a yaw of 200 degrees; it goes from -180 to 180"),
        (annotated(pitch="up"), "an angle that is no number"),
    ],
)
def test_what_is_wrong_with_annotations_is_said_in_one_line(content, reason, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ReadError, match=reason) as error:
        read_annotations(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


# ---- landmarks and cameras


def face(turn: np.ndarray, shift, scale: float = 10.0) -> np.ndarray:
    """68 landmarks of a head that is turned and shifted in the world; what REFERENCE does not know is nan."""
    points = np.full((68, 3), np.nan)
    for name, place in REFERENCE.items():
        points[list(LANDMARKS[name])] = scale * turn @ np.array(place) + shift
    return points


def camera_at(position, size=(640, 480), focal: float = 600.0) -> Camera:
    """A camera at a place of the world that looks at its origin, the world's y being down."""
    position = np.array(position, float)
    look = -position / np.linalg.norm(position)
    right = np.cross((0, 1, 0), look)
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(look, right), look])
    K = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1]])
    return Camera(K, R, -R @ position, size)


def test_cameras_about_a_head_see_it_from_all_sides():
    """The head looks along the world's -z. A camera that stands to its left sees it look to that camera's left: its own
    right, and so on round; one that stands above it sees it look down."""
    straight = face(np.eye(3), (0, 0, 0))
    for degrees in (0, 40, 90, 135, 180, -120, -30):
        a = np.deg2rad(degrees)
        head = head_of(straight, camera_at((300 * np.sin(a), 0, -300 * np.cos(a))))
        np.testing.assert_allclose(difference(head.angles, (0, -degrees, 0)), 0, atol=1e-6)
        x, y, w, h = head.box
        assert abs(x + w / 2 - 320) < 2 and abs(y + h / 2 - 240) < 2
        assert h == pytest.approx(600 * 2 * 11.6 / 300, rel=0.03)
    high = camera_at((0, -300 * np.sin(0.5), -300 * np.cos(0.5)))
    np.testing.assert_allclose(head_of(straight, high).angles, (-np.rad2deg(0.5), 0, 0), atol=1e-6)
    turned = face(to_rotation((20, 65, -10)), (0, 0, 0), scale=12)
    np.testing.assert_allclose(head_of(turned, camera_at((0, 0, -300))).angles, (20, 65, -10), atol=1e-6)


def test_a_head_beside_the_axis():
    """By the camera's axes it looks straight; cut out and centred it is seen from its side."""
    camera = camera_at((0, 0, -300))
    beside = face(np.eye(3), (100, 0, 0))
    np.testing.assert_allclose(head_of(beside, camera).angles, 0, atol=1e-6)
    yaw = np.rad2deg(np.arctan2(100, 300))
    np.testing.assert_allclose(head_of(beside, camera, along_ray=True).angles, (0, yaw, 0), atol=1e-6)


def test_heads_that_a_camera_does_not_show(tmp_path):
    camera = camera_at((0, 0, -300))
    people = [
        face(np.eye(3), (0, 0, 0)),
        face(np.eye(3), (0, 0, -400)),
        face(np.eye(3), (400, 0, 0)),
        face(to_rotation((0, 0, 90.1)), (0, 0, 0)),
        np.full((68, 3), np.nan),
    ]
    pictures, heads, left_out = convert([(tmp_path / "a.png", camera, people)], tmp_path / "a.json")
    assert (pictures, heads) == (1, 1)
    reasons = ("behind the camera", "outside of the picture", "angles beyond the codec", "fewer than three landmarks")
    assert left_out == dict.fromkeys(reasons, 1)
    assert len(read_annotations(tmp_path / "a.json")[0].heads) == 1
    with pytest.raises(ValueError, match="68×3 or 70×3"):
        head_of(np.zeros((19, 4)), camera)


def calibration(camera: Camera, **more) -> dict:
    return {"K": camera.K.tolist(), "R": camera.R.tolist(), "t": camera.t[:, None].tolist(), **more} | {
        "resolution": list(camera.size),
        "distCoef": [-0.1, 0.02, 0, 0, 0],
    }


def test_a_sequence_of_cmu_panoptic(tmp_path, call):
    front, behind = camera_at((0, 0, -300)), camera_at((0, 0, 300))
    cameras = [calibration(front, name="00_00", type="hd"), calibration(behind, name="00_01", type="hd")]
    cameras.append(calibration(front, name="01_01", type="vga"))
    (tmp_path / "calibration_made.json").write_text(json.dumps({"cameras": cameras}))
    points = np.nan_to_num(face(to_rotation((0, 30, 0)), (0, 0, 0)))
    row = np.concatenate([points, np.zeros((2, 3))]).ravel().tolist()
    people = [{"id": 0, "face70": {"landmarks": row, "averageScore": [0.5] * 70}}]
    people.append({"id": 1, "face70": {"landmarks": row, "averageScore": [0.01] * 70}})
    (tmp_path / "hdFace3d").mkdir()
    (tmp_path / "hdFace3d" / "faceRecon3D_hd00000123.json").write_text(json.dumps({"people": people}))
    for name in ("00_00", "00_01"):
        (tmp_path / "hdImgs" / name).mkdir(parents=True)
        (tmp_path / "hdImgs" / name / f"{name}_00000123.jpg").write_bytes(b"not opened")
    code, out, err = call("heads", "convert", tmp_path, tmp_path / "out.json")
    assert (code, err) == (0, []) and "2 pictures, 2 heads" in out[0]
    first, second = read_annotations(tmp_path / "out.json")
    np.testing.assert_allclose(first.heads[0].angles, (0, 30, 0), atol=0.01)
    np.testing.assert_allclose(second.heads[0].angles, (0, -150, 0), atol=0.01)
    assert first.path == tmp_path / "hdImgs/00_00/00_00_00000123.jpg"
    with pytest.raises(ReadError, match="not one calibration_NAME.json"):
        list(panoptic_views(tmp_path / "hdFace3d"))


def test_views_of_any_set(tmp_path):
    camera = camera_at((0, 0, -300))
    heads = [[[None if np.isnan(v) else v for v in point] for point in face(np.eye(3), (0, 0, 0)).tolist()]]
    content = {"cameras": {"c": calibration(camera)}, "views": [{"image": "a.png", "camera": "c", "heads": heads}]}
    path = tmp_path / "views.json"
    path.write_text(json.dumps(content))
    [(picture, found, people)] = read_views(path)
    assert picture == tmp_path / "a.png"
    np.testing.assert_allclose(head_of(people[0], found).angles, 0, atol=1e-6)
    content["views"][0]["camera"] = "d"
    path.write_text(json.dumps(content))
    with pytest.raises(ReadError, match=r"views\[0\]: 'd' is missing"):
        read_views(path)
    content["cameras"]["c"]["R"][0] = [2, 0, 0]
    path.write_text(json.dumps(content))
    with pytest.raises(ReadError, match=r"cameras\[c\]: an R that is no rotation"):
        read_views(path)


# ---- network, loss, measures


def test_the_wrapped_yaw_goes_the_shorter_way():
    codes = torch.tensor([[0.5, 0.02, 0.5]], requires_grad=True)
    truth = torch.tensor([[0.5, 0.98, 0.5]])
    wrapped, plain = angle_distance(codes, truth), angle_distance(codes, truth, wrapped=False)
    torch.testing.assert_close(torch.cat([wrapped, plain]), torch.tensor([0.04, 0.96]))
    (down,) = torch.autograd.grad(wrapped.sum(), codes)
    (up,) = torch.autograd.grad(plain.sum(), codes)
    assert down[0, 1] > 0 > up[0, 1]  # the step goes against it: below 0, which is 1, and up to it
    equal = truth.clone().requires_grad_()
    angle_distance(equal, truth).sum().backward()
    assert equal.grad.isfinite().all()


def test_complete_iou_by_hand():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 2], [0, 0, 4, 2]])
    others = torch.tensor([[0.0, 0, 2, 2], [1, 0, 2, 2], [1, 0, 2, 2]])
    v = 4 / np.pi**2 * (np.arctan(2) - np.arctan(1)) ** 2
    alpha = v / (1 - 0.5 + v)
    expected = [1, 1 / 3 - 1 / 13, 0.5 - alpha * v]
    np.testing.assert_allclose(complete_iou(boxes, others), expected, rtol=1e-5)


def test_cells_answer_for_the_head_about_them():
    owner = assign(torch.tensor([[0.0, 0, 64, 64], [28, 28, 8, 8], [60, 60, 4, 4]]), 8, 8).view(8, 8)
    assert (owner == 0).sum() == 4 * 4 - 1 and owner[4, 4] == 1 and owner[7, 7] == 2 and owner[0, 0] == -1


def test_the_grid_is_read_as_it_is_described():
    values = torch.full((1, 8, 3, 4), -9.0)
    values[0, :, 1, 2] = torch.tensor([9, 0.25, -0.5, np.log(3), np.log(2), 0, 0, 0])
    scores, boxes, angles = read_grid(values)
    at = scores[0].argmax()
    assert at == 6
    middle = np.array([2.75, 1.0]) * 8
    np.testing.assert_allclose(boxes[0, at], [*(middle - (12, 8)), 24, 16], rtol=1e-5)
    assert angles[0, at].tolist() == [0.5] * 3


@pytest.mark.parametrize("rest", (0, 2, 3))
def test_what_rests_comes_first(rest):
    """What training keeps of a picture is all that the rest of the network needs."""
    torch.manual_seed(0)
    network = DirectMHP(width=16, depth=1, rest=rest).train()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        kept = network.front(images)
        assert kept.shape == {0: (1, 3, 32, 32), 2: (1, 128, 4, 4), 3: (1, 128, 4, 4)}[rest]
        _, near, far = network.eval().trunk(images)
        far = torch.nn.functional.interpolate(network.far(far), scale_factor=2.0)
        torch.testing.assert_close(network.behind(kept), network.head(network.blocks(network.near(near) + far)))
    with pytest.raises(ValueError, match="rest must be 0, 1, 2 or 3"):
        DirectMHP(rest=4)


def test_the_loss_reaches_every_part_that_learns():
    torch.manual_seed(0)
    network = DirectMHP(width=16, depth=1, rest=1).train()
    assert not network.trunk.stages[0].training and network.trunk.stages[1].training
    values = network(torch.randn(2, 3, 32, 48))
    assert values.shape == (2, 8, 4, 6)
    boxes = [torch.tensor([[4.0, 4, 20, 20]]), torch.zeros(0, 4)]
    loss, parts = directmhp_loss(values, boxes, [torch.rand(1, 3), torch.zeros(0, 3)])
    torch.testing.assert_close(loss, 0.05 * parts["box"] + 0.7 * parts["objectness"] + 0.1 * parts["angles"])
    loss.backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == (name.startswith(("trunk.stem", "trunk.stages.0."))), name
        assert parameter.grad is None or parameter.grad.isfinite().all()
    _, none = directmhp_loss(values.detach(), boxes, [torch.rand(1, 3), torch.zeros(0, 3)], threshold=0.99)
    assert none["angles"] == 0  # nothing is so sure
    _, empty = directmhp_loss(values.detach(), [torch.zeros(0, 4)] * 2, [torch.zeros(0, 3)] * 2)
    assert empty["box"] == 0 and empty["objectness"] > 0


def test_measures_by_hand():
    truth = [[Head((0, 0, 10, 10), (0, 170, 0)), Head((50, 0, 10, 10), (0, 0, 0))], [Head((0, 0, 10, 10), (0, 0, 0))]]
    found = [
        [Head((0, 0, 10, 10), (3, -170, 6), 0.9), Head((1, 0, 10, 10), (0, 0, 0), 0.8)],  # the second is one too many
        [Head((0, 1, 10, 10), (0, 30, 0), 0.7), Head((80, 80, 10, 10), (0, 0, 0), 0.1)],
    ]
    measured = measure_heads(found, truth)
    assert (measured.heads, measured.from_behind, measured.false) == (3, 1, 1)
    assert measured.average_precision == pytest.approx(1 / 3 + 1 / 3 * 2 / 3)
    assert measured.recall == pytest.approx(2 / 3) and measured.recall_from_behind == 1
    assert (measured.pitch, measured.yaw, measured.roll) == (1.5, 25, 3)
    assert measured.angles_from_behind == pytest.approx((3 + 20 + 6) / 3)
    with pytest.raises(MienError, match="not one head"):
        measure_heads([[]], [[]])


def test_boxes_are_cut_and_those_that_overlap_left_out():
    def run(pictures):
        assert pictures.shape == (1, 64, 64, 3) and not pictures[0, 32:].any()  # twice as wide as high: black below
        boxes = np.array([[[-4, 4, 20, 20], [-3, 4, 20, 20], [40, 10, 16, 16], [2, 50, 8, 8]]], np.float32)
        return {"scores": np.array([[0.9, 0.8, 0.7, 0.6]]), "boxes": boxes, "angles": np.full((1, 4, 3), 0.75)}

    heads = HeadDetector(run, size=64)(np.full((64, 128, 3), 200, np.uint8))
    assert [head.box for head in heads] == [(0, 8, 32, 40), (80, 20, 32, 32)]
    assert heads[0].angles == (45, 90, 45) and heads[0].score == pytest.approx(0.9)
    picture = mark(np.zeros((64, 128, 3), np.uint8), heads)
    assert picture.any() and picture.shape == (64, 128, 3)
    with pytest.raises(MienError, match="threshold must be 0 to 1"):
        HeadDetector(run, size=64, threshold=2)


# ---- the whole way


@pytest.fixture(scope="module")
def few_blocks():
    """A trunk of one block a stage, which is exported in a third of the time."""
    module = importlib.import_module("mien.networks.mobilefacenet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "STAGES", [(*channels, 1, stride) for *channels, _, stride in module.STAGES])
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory, few_blocks):
    """Scenes of balls, and a network that two epochs made of them: (annotations, checkpoint)."""
    folder = tmp_path_factory.mktemp("heads")
    cv2.imwrite(str(folder / "sky.png"), np.full((80, 80, 3), (200, 120, 40), np.uint8))
    annotations = make_scenes(folder / "scenes", lambda rng: ball(8), folder / "sky.png", 4, seed=3, size=64)
    words = ["--epochs", "2", "--batch-size", "2", "--size", "64", "--validation", str(annotations), "--seed", "1"]
    assert main(["heads", "train", str(annotations), str(folder / "net.safetensors"), *words]) == 0
    return annotations, folder / "net.safetensors"


def test_scenes_are_drawn_as_they_are_annotated(trained):
    pictures = read_annotations(trained[0])
    assert len(pictures) == 4 and sum(len(picture.heads) for picture in pictures) > 4
    again = make_scenes(
        trained[0].parent.parent / "again",
        lambda rng: ball(8),
        trained[0].parent.parent / "sky.png",
        4,
        seed=3,
        size=64,
    )
    assert again.read_text() == trained[0].read_text()
    image = cv2.imread(str(pictures[0].path))
    sky = np.abs(image.astype(int) - np.median(image, (0, 1))).sum(-1)
    for head in pictures[0].heads:
        x, y, w, h = map(round, head.box)
        assert sky[y + h // 3 : y + 2 * h // 3, x + w // 3 : x + 2 * w // 3].mean() > 30


def test_a_trained_network_is_exported_and_finds_the_same(trained, tmp_path, call):
    pytest.importorskip("onnxscript")
    annotations, checkpoint = trained
    picture = str(read_annotations(annotations)[0].path)
    model = tmp_path / "net.onnx"
    assert call("heads", "export", checkpoint, model) == (0, [str(model)], [])
    image = cv2.imread(picture)[..., ::-1]
    torch_run, engine_run = (HeadDetector(path).run(image[None].copy()) for path in (checkpoint, model))
    for name, values in torch_run.items():
        np.testing.assert_allclose(engine_run[name], values, atol=2e-4, rtol=1e-4)
    find = ("heads", "find", picture, "--model", model, "--threshold")
    code, out, err = call(*find, 0, "--annotate", tmp_path)
    assert (code, err) == (0, [])
    assert json.loads(out[0]).keys() == {"source", "head", "box", "pitch", "yaw", "roll", "score"}
    assert (tmp_path / Path(picture).name).is_file()
    code, out, _ = call(*find, 1)
    assert code == 0 and json.loads(out[0]) == {"source": picture, "head": None, "note": "no head found"}
    code, out, _ = call("heads", "eval", checkpoint, annotations, "--json")
    assert code == 0 and json.loads(out[0])["heads"] == sum(len(each.heads) for each in read_annotations(annotations))


def test_misuse_and_what_cannot_be_read_are_one_line(trained, tmp_path, call, stand_in):
    annotations, checkpoint = trained
    (tmp_path / "no.png").write_bytes(b"no picture")
    moved = json.loads(annotations.read_text())
    moved["pictures"][0]["image"] = "gone.png"
    (tmp_path / "moved.json").write_text(json.dumps(moved))
    wrong = json.loads(annotations.read_text())
    for picture in wrong["pictures"]:
        picture |= {"image": str(annotations.parent / picture["image"]), "width": 640, "height": 640}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    for words, reason in (
        (["find", "x.png", "--model", stand_in / "model.onnx"], 'no "mien_heads" in its metadata'),
        (["find", "x.png", "--model", tmp_path / "gone.onnx"], "no such file"),
        (["find", tmp_path / "no.png", "--model", checkpoint], "no.png"),
        (["train", annotations, tmp_path / "a.onnx"], "a trained network is a .safetensors file"),
        (["train", annotations, tmp_path / "a.safetensors", "--size", "50"], "a multiple of 16 from 32 up, not 50"),
        (["train", tmp_path / "moved.json", tmp_path / "a.safetensors"], "gone.png: no such file"),
        (
            ["train", tmp_path / "wrong.json", tmp_path / "a.safetensors"],
            "64×64 pixels, and 640×640 in",
        ),
        (["export", checkpoint, tmp_path / "a.xml"], "is exported to a .onnx file"),
        (["render", tmp_path, "--mesh", tmp_path, "--photographs", tmp_path], "no mesh of MakeHuman"),
        (["convert", tmp_path / "gone.json", tmp_path / "b.json"], "no such file"),
    ):
        code, out, err = call("heads", *words)
        assert code == 1 and len(err) == 1 and reason in err[0], (words, err)
    assert not list(tmp_path.glob("a.*"))


def test_a_mesh_that_is_damaged(tmp_path):
    (tmp_path / "3dobjs").mkdir()
    (tmp_path / "textures").mkdir()
    (tmp_path / "3dobjs" / "base.obj").write_text("v 0 0 0\ng body\nf 1/1 2/1 3/1\n")
    (tmp_path / "textures" / "mpfb_lips.jpg").write_bytes(b"")
    with pytest.raises(ReadError, match="no mesh of MakeHuman"):
        MakeHuman(tmp_path)
    assert random_colors(np.random.default_rng(0)).shape == (len(REGIONS), 3)
