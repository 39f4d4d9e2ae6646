"""mien explain: what is drawn is what the network did; folders, bad pictures, models and words that will not do."""

import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_stand_in
from PIL import Image

from mien.checkpoint import read_header
from mien.commands.list import mixers
from mien.errors import MienError
from mien.explain import Attention, Patches, open_network, sheet
from mien.explain.attention import planes
from mien.explain.panel import SIDE, face, heat, kept
from mien.labels import EXPRESSIONS
from mien.networks import BTN, APViT, CaiT, Deployed, Poster, build, load_network, save_network
from mien.networks.deploy import to_float

EXAMPLES = Path(__file__).parents[1] / "examples"
POOLED = {"image": None, "img_size": 56, "patch_size": 4, "embed_dim": 16, "depth": 4, "num_heads": 2, "num_classes": 8}
CAIT = {"img_size": 56, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 8}


def checkpoint(path: Path, name: str, size: int = 56, **arguments) -> Path:
    """A network with weights that make a difference."""
    header = {
        "mien": 1,
        "model": {"class_path": f"mien.networks.{name}", "init_args": arguments},
        "id2label": {str(i): label for i, label in enumerate(EXPRESSIONS)},
        "preprocess": {
            "align": "arcface112",
            "resize": [{"size": size}],
            "input_size": size,
            "color": "rgb",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.25, 0.25, 0.25],
        },
        "temperature": 2.0,
    }
    torch.manual_seed(0)
    network = build(header["model"])
    for p in network.parameters():
        p.data += 0.3 * torch.randn_like(p)
    save_network(path, network, header)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    checkpoint(folder / "pooled.safetensors", "APViT", **POOLED, keep_patches=160, keep_rate=0.6)
    checkpoint(folder / "unpooled.safetensors", "APViT", **POOLED)
    checkpoint(folder / "soft.safetensors", "APViT", **POOLED, soft=True)
    checkpoint(folder / "cait.safetensors", "CaiT", **CAIT)
    return folder


@pytest.fixture(autouse=True)
def few_models(tmp_path_factory, models, monkeypatch):
    """Errors list models that come with mien; here that is one, and soon opened."""
    home = tmp_path_factory.mktemp("home")
    (home / "small").mkdir()
    shutil.copy(models / "pooled.safetensors", home / "small" / "model.safetensors")
    monkeypatch.setattr("mien.explain.opening.MODELS", home)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLES / "hopper.jpg", "face.jpg")
    Image.fromarray(crop()).save("crop.png")
    Image.new("RGB", (64, 48), (90, 120, 40)).save("none.png")
    return tmp_path


@pytest.fixture
def mien(models, call):
    """`mien explain` with one of the models, or with its default."""

    def run(*words, model="pooled"):
        """Of patches, unless a method is named."""
        method = [] if "--method" in words or not words else ["--method", "patches"]
        return call(
            "explain", *words, *method, *([] if model is None else ["--model", models / f"{model}.safetensors"])
        )

    return run


def crop() -> np.ndarray:
    """No picture of anybody: every patch has its own colour, and none is white."""
    colours = np.random.default_rng(0).integers(0, 160, (14, 14, 3), dtype=np.uint8)
    return colours.repeat(4, 0).repeat(4, 1)


def panels(path: Path, columns: int) -> list[list[np.ndarray]]:
    """The pictures on a sheet, without their titles; something is written above them."""
    page = np.asarray(Image.open(path)).astype(int)
    assert page.shape[1] == 12 + columns * (SIDE + 12)
    assert page[12:38].min() < 128
    page = page[26:]  # without the title of the page
    rows = (page.shape[0] - 12) // (SIDE + 100)
    corners = [[(38 + y * (SIDE + 100), 12 + x * (SIDE + 12)) for x in range(columns)] for y in range(rows)]
    return [[page[top : top + SIDE, left : left + SIDE] for top, left in row] for row in corners]


def cells(panel: np.ndarray) -> np.ndarray:
    """What is in the middle of each of the 14×14 cells: (196, 3)."""
    return panel.reshape(14, 16, 14, 16, 3)[:, 6:10, :, 6:10].mean((1, 3)).reshape(196, 3)


def unchanged(panel: np.ndarray, whole: np.ndarray) -> list[int]:
    """The places of the cells that were not whitened."""
    apart = np.abs(cells(panel) - cells(whole)).max(1)
    white = np.abs(cells(panel) - (cells(whole) + 0.86 * (255 - cells(whole)))).max(1)
    assert ((apart == 0) ^ (white < 1)).all()
    return np.flatnonzero(apart == 0).tolist()


def test_what_is_drawn_is_what_was_kept(here, mien, models):
    words = "--keep-patches 160 --keep-patches 80 --keep-patches 3 --keep-rate .9 --keep-rate .6 --keep-rate .6".split()
    code, out, err = mien("crop.png", "--aligned", "--output", "out", *words)
    assert (code, out, err) == (0, ["out/crop-face0.png"], [])
    header, drawn = read_header(models / "pooled.safetensors"), panels(here / "out/crop-face0.png", 5)
    assert len(drawn) == 3
    for row, patches, rate in zip(drawn, (160, 80, 3), (0.9, 0.6, 0.6), strict=True):
        network = load_network(models / "pooled.safetensors", keep_patches=patches, keep_rate=rate)
        images = Deployed(network, header["preprocess"]).normalize(to_float(torch.from_numpy(crop()[None])))
        trace = network.trace(images)
        whole, app, third, fourth, attention = row
        assert np.abs(cells(whole) - crop()[2::4, 2::4].reshape(196, 3)).max() < 8
        assert len(trace.patches[0]) == patches and unchanged(app, whole) == trace.patches[0].tolist()
        assert unchanged(third, whole) == trace.blocks[2].stayed[0].tolist()
        assert unchanged(fourth, whole) == trace.blocks[3].stayed[0].tolist()
        grey = cells(whole) @ (0.299, 0.587, 0.114)
        white = np.abs(cells(attention) - (grey + 0.86 * (255 - grey))[:, None]).max(1) < 2
        assert np.flatnonzero(~white).tolist() == trace.blocks[3].came[0].tolist()


def test_a_map_is_as_bright_as_the_attention():
    grid, values = (14, 14), np.linspace(0.001, 0.02, 14)
    places = np.arange(14) * 14 + 3
    drawn = heat(np.full((56, 56, 3), 120, np.uint8), places, values, grid)
    shown = cells(drawn)[places].sum(1)
    assert (np.diff(shown) > 0).all()
    assert cells(heat(np.full((56, 56, 3), 120, np.uint8), places, values, grid, most=0.04))[places].max() < shown.max()


def test_titles_say_what_the_network_did(models):
    deployed, header = open_network(models / "pooled.safetensors")
    rows = Patches(deployed, EXPRESSIONS)(crop())
    titles = [[panel.title for panel in row] for row in rows]
    assert [row[1:4] for row in titles] == [
        ["160 of 196 patches", "block 3: 96 of 160 tokens", "block 4: 57 of 96 tokens"],
        ["120 of 196 patches", "block 3: 72 of 120 tokens", "block 4: 43 of 72 tokens"],
        ["80 of 196 patches", "block 3: 48 of 80 tokens", "block 4: 28 of 48 tokens"],
    ]
    for row, count in zip(titles, (160, 120, 80), strict=True):
        deployed.network.keep_patches = count
        with torch.no_grad():
            [probs] = deployed(torch.from_numpy(crop()[None]))[1]
        assert row[0] == f"{EXPRESSIONS[probs.argmax()]} {probs.max().item():.0%}"
        assert row[4].startswith("class attention, up to ")
    assert header["temperature"] == deployed.temperature == 2.0
    assert sheet(rows).size == (12 + 5 * 236, 12 + 3 * 324)


def test_rows_unless_they_are_named(models):
    def settings(model, **options):
        return Patches(open_network(models / f"{model}.safetensors")[0], EXPRESSIONS, **options).settings

    own = [1.0, 1.0, 0.6, 0.6]
    assert settings("pooled") == [(160, own), (120, own), (80, own)]
    assert settings("pooled", keep_rate=[0.5]) == [(160, 0.5), (120, 0.5), (80, 0.5)]
    assert settings("pooled", keep_patches=[9, 4], keep_rate=[0.5, 0.9]) == [(9, 0.5), (4, 0.9)]
    assert settings("unpooled") == [(None, [1.0] * 4), (147, [1.0] * 4), (98, [1.0] * 4)]
    assert settings("soft") == [(None, [1.0] * 4)]
    with pytest.raises(MienError, match="keep_patches is 300, and there are 196 patches"):
        settings("pooled", keep_patches=[300])


def test_a_block_has_a_panel_where_it_drops_tokens(models):
    deployed, _ = open_network(models / "unpooled.safetensors")
    assert [
        [len(row) for row in Patches(deployed, EXPRESSIONS, [None, 80], rates)(crop())] for rates in (None, [0.5])
    ] == [
        [3, 3],
        [5, 5],
    ]


@pytest.mark.parametrize("grid", [(14, 14), (7, 7), (5, 9), (28, 28)], ids=str)
def test_any_grid(grid):
    count = grid[0] * grid[1]
    assert np.array_equal(kept(crop(), np.arange(count), grid), face(crop()))
    one = kept(crop(), np.array([count - 1]), grid)
    assert np.array_equal(
        one[-SIDE // grid[0] // 2 :, -SIDE // grid[1] // 2 :],
        face(crop())[-SIDE // grid[0] // 2 :, -SIDE // grid[1] // 2 :],
    )
    assert one[: SIDE // 2].min() > 200


# other networks


def test_class_attention_of_any_network(here, mien, models):
    code, out, err = mien("crop.png", "--aligned", "--output", "out", "--method", "attention", model="cait")
    assert (code, out, err) == (0, ["out/crop-face0.png"], [])
    [[whole, drawn]] = panels(here / "out/crop-face0.png", 2)
    deployed, _ = open_network(models / "cait.safetensors")
    logits, values, grid = Attention(deployed, EXPRESSIONS).look(crop())
    plain = load_network(models / "cait.safetensors")
    images = deployed.normalize(to_float(torch.from_numpy(crop()[None])))
    with torch.no_grad():
        torch.testing.assert_close(logits, plain(images))
        pool = plain.pool.blocks[-1].attn
        c = plain.pool.blocks[0](plain.pool.cls_token, plain.tokens(images))
        u = plain.pool.blocks[-1].norm1(torch.cat([c, plain.tokens(images)], 1))
        q, k = pool.q(u[:, :1]).view(1, 1, 2, 8), pool.k(u).view(1, 197, 2, 8)
        expected = (torch.einsum("bqhd,bkhd->bhqk", q, k) * 8**-0.5).softmax(-1)
    assert grid == (14, 14)
    torch.testing.assert_close(torch.from_numpy(values), expected[0, :, 0, 1:].mean(0)[None])
    again = heat(crop(), np.arange(196), values[0], (14, 14))
    assert np.array_equal(drawn, again.astype(int))
    assert np.array_equal(whole, face(crop()).astype(int))


def test_class_attention_among_what_was_kept(models):
    deployed, _ = open_network(models / "pooled.safetensors")
    [row] = Attention(deployed, EXPRESSIONS)(crop())
    [full] = Patches(deployed, EXPRESSIONS, [160])(crop())
    assert [panel.title for panel in row] == [full[0].title, full[-1].title]
    assert np.array_equal(row[1].picture, full[-1].picture)


def test_levels_have_a_panel_each(here, mien):
    """BTN's, of three levels of maps; each has a scale of its own, so that in each there is something to be seen."""
    options = ["--aligned", "--output", "out", "--method", "attention", "--model", "btn_mobile_ferplus"]
    code, _, err = mien("crop.png", *options, model=None)
    assert (code, err) == (0, [])
    [[_, *levels]] = panels(here / "out/crop-face0.png", 4)
    assert all(level.max() > 150 for level in levels)
    [row] = Attention(open_network("btn_mobile_ferplus")[0], EXPRESSIONS)(crop().repeat(2, 0).repeat(2, 1))
    assert [panel.title.rpartition(",")[0] for panel in row[1:]] == [f"class attention {i}" for i in (1, 2, 3)]


SEEN = {  # what a mixer has in ViT's blocks
    *("SelfAttention TalkingHeads MoH CosineMoH Sparsifiner CMHA RCMHA PAM Axial WindowAttention TiC".split()),
    *("MaxViTBlockAttention MaxViTGridAttention Halo Neighborhood".split()),
}


class Trunk(torch.nn.Module):
    """Three maps of one convolution."""

    levels = ((6, 28), (6, 14), (6, 7))

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 6, 4, 4)

    def forward(self, images):
        maps = self.conv(images)
        return [torch.nn.functional.avg_pool2d(maps, side) if side > 1 else maps for side in (1, 2, 4)]


def small(name: str, mixer) -> torch.nn.Module:
    """A network like the named one, at the size of a test, with all of its kinds of attention."""
    sizes = {"num_classes": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "mixer": mixer}
    levels = {"image": Trunk(), "landmarks": Trunk(), "dims": (4, 4, 4), "head_dim": 2, "key_strides": (4, 2, 1)}
    match name:
        case "btn":
            return BTN(**sizes, **levels)
        case "poster":
            return Poster(**sizes, **levels)
        case "apvit":
            return APViT(image=None, patch_size=16, keep_rate=1.0, **sizes)
        case _:
            return CaiT(img_size=112, patch_size=16, **sizes)


@pytest.mark.parametrize("network", ["btn", "poster", "apvit", "cait"])
def test_every_mixer_is_explained_or_refused(network):
    """A map of the class token, and of nothing else under its title; or one line that names the mixer."""
    header = {"color": "rgb", "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
    face = np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    tokens = {"apvit": 50, "cait": 49}.get(network, 148)
    for name, mixer in mixers().items():
        mixer = partial(mixer, num_tokens=tokens) if name == "Sparsifiner" else mixer
        torch.manual_seed(0)
        deployed = Deployed(small(network, mixer), header).eval()
        explain = Attention(deployed, EXPRESSIONS)
        if name not in SEEN and network != "cait":
            with pytest.raises(MienError, match=f"no class token or pool that attends .* of {name}\\)$") as caught:
                explain(face)
            assert "\n" not in str(caught.value)
        else:
            [[_, *maps]] = explain(face)
            assert len(maps) == (3 if network in ("btn", "poster") else 1), name
            assert all(panel.title.startswith("class attention") and panel.picture.max() > 100 for panel in maps), name
        if network == "apvit":
            [row] = Patches(deployed, EXPRESSIONS, [None])(face)
            assert (row[-1].title == f"{name} has no class attention") == (name not in SEEN)


def test_squares_of_tokens():
    assert [planes(n) for n in (196, 147, 49, 98, 146, 195, 1)] == [(1, 14), (3, 7), (1, 7), (2, 7), *[(0, 0)] * 3]


@pytest.mark.parametrize(
    "name, method, message",
    [
        ("cait", "patches", "CaiT has no attentive pooling: it keeps every patch and token; of the models that come "),
        ("cait", "batch", "CaiT has no batch branch"),
        (
            "plain",
            "rollout",
            "PlainClassifier has no attention to roll out; of the models that come with mien, small can be",
        ),
        ("plain", "patches", "PlainClassifier has no attentive pooling"),
        ("plain", "attention", "PlainClassifier has no attention to look at"),
        ("engine.onnx", "patches", "torch takes them from a .safetensors file"),
        ("missing.safetensors", "patches", "missing.safetensors: no such file"),
    ],
)
def test_models_of_which_there_is_nothing_to_draw(here, mien, models, name, method, message):
    if name == "plain":
        checkpoint(here / "plain.safetensors", "mobilefacenet", 112, num_classes=8)
    write_stand_in(here / "engine.onnx")
    path = models / "cait.safetensors" if name == "cait" else here / f"{name}{'.safetensors' * (name == 'plain')}"
    code, out, err = mien("crop.png", "--aligned", "--output", "out", "--method", method, "--model", path, model=None)
    assert (code, out) == (1, []) and len(err) == 1 and message in err[0]
    assert not list(here.glob("out/*"))


@pytest.mark.parametrize("name, words", [("pooled", "--keep-patches 197"), ("soft", "--keep-patches 9")])
def test_settings_that_a_network_cannot_take(here, mien, name, words):
    code, out, [line] = mien("crop.png", "--aligned", "--output", "out", *words.split(), model=name)
    assert (code, out) == (1, []) and "patches" in line and not (here / "out").exists()


def test_a_model_that_comes_with_mien(here, mien, models, monkeypatch):
    """Its .safetensors, though its folder has an ONNX file for engines, too."""
    home = here / "models"
    write_stand_in(home / "apvit_mobile_ferplus" / "model.onnx")
    shutil.copy(models / "pooled.safetensors", home / "apvit_mobile_ferplus" / "model.safetensors")
    (home / "fetched.json").write_text("{}")
    monkeypatch.setattr("mien.classifier.MODELS", home)
    assert mien("crop.png", "--aligned", "--output", "out", model=None)[0] == 0
    assert len(panels(here / "out/crop-face0.png", 5)) == 3
    with pytest.raises(MienError, match="no such model"):
        open_network("btn_mobile_ferplus")


# pictures


def test_a_folder(here, mien):
    os.mkdir("in")
    for name, source in (("a.jpg", "face.jpg"), ("a.png", "face.jpg"), ("none.png", "none.png")):
        shutil.copy(source, f"in/{name}")
    Path("in/text.jpg").write_text("hello")
    for _ in range(2):  # what was drawn is not read the next time
        code, out, err = mien("in", "missing.jpg", "--output", "in/drawn", "--keep-patches", "80")
        assert code == 1
        assert out == ["in/drawn/a-face0.png", "in/drawn/a-2-face0.png", "in/none.png: no face found"]
        assert err == ["mien: in/text.jpg: not a picture", "mien: missing.jpg: no such file"]
        assert sorted(os.listdir("in/drawn")) == ["a-2-face0.png", "a-face0.png", "index.html"]
        page = Path("in/drawn/index.html").read_text()
        assert '<img src="a-2-face0.png"' in page and "in/a.png, face 0" in page and "patches" in page
        assert all(line in page for line in ("in/none.png: no face found", "missing.jpg: no such file"))
    assert len(panels(Path("in/drawn/a-face0.png"), 5)) == 1


def test_faces_are_found_and_aligned_as_mien_read_does(here, mien, models):
    from mien import Reader

    assert mien("face.jpg", "--output", "out", "--keep-patches", "80")[0] == 0
    reader = Reader.from_pretrained(models / "pooled.safetensors")
    image = np.asarray(Image.open("face.jpg").convert("RGB"))
    [found] = reader(image)
    shown = reader.classifier.crop(image, found.landmarks, found.box)
    [[whole, *_]] = panels(here / "out/face-face0.png", 5)
    assert np.array_equal(whole, face(shown).astype(int))
    for words in (("--min-face", "400"), ("--threshold", "1")):
        assert mien("face.jpg", "--output", "none", *words) == (0, ["face.jpg: no face found"], [])


def test_a_disk_that_is_full_leaves_nothing_half_written(here, mien, monkeypatch):
    def save(self, file, *_):
        file.write(b"half")
        raise OSError(28, "No space left on device", "out/crop-face0.png")

    monkeypatch.setattr(Image.Image, "save", save)
    code, out, err = mien("crop.png", "--aligned", "--output", "out")
    assert (code, out, err) == (1, [], ["mien: out/crop-face0.png: no space left on device"])
    assert not list((here / "out").iterdir())


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--output out",
        "crop.png",
        "crop.png --output crop.png",
        "crop.png --output out --method saliency",
        "crop.png --output out --keep-patches 0",
        "crop.png --output out --keep-patches half",
        "crop.png --output out --keep-rate 0",
        "crop.png --output out --keep-rate 1.1",
        "crop.png --output out --keep-rate nan",
        "crop.png --output out --keep-rate 0.9 --keep-rate 0.6",
        "crop.png --output out --keep-patches 9 --keep-patches 8 --keep-patches 7 --keep-rate 0.9 --keep-rate 0.6",
        "crop.png --output out --method attention --keep-patches 80",
        "crop.png --output out --method occlusion --layer proj",
        "crop.png --output out --method gradcam --head 0",
        "crop.png --output out --method rollout --answer fear",
        "crop.png batch.png --output . --method batch",
        "crop.png --output out --min-face -1",
        "crop.png crop-face0.png --output .",
        ". --output .",
    ],
)
def test_misuse(here, mien, monkeypatch, words):
    monkeypatch.setattr("mien.explain.opening.open_network", lambda *_: pytest.fail("it has begun"))
    shutil.copy("crop.png", "crop-face0.png")
    shutil.copy("crop.png", "batch.png")
    before = sorted(here.rglob("*"))
    code, out, err = mien(*words.split())
    assert (code, out) == (2, []) and err[-1].startswith("mien explain: error: ")
    assert sorted(here.rglob("*")) == before
