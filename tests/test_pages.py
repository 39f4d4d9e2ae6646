"""Every command that README, docs, benchmarks and model cards print: it runs as it stands, or its parser takes it.

A block without a language holds commands, or after "$ " a command and what it prints; so does an indented line that
begins with a command, and `mien …` in a sentence names options that there are.
"""

import argparse
import ast
import importlib.util
import io
import itertools
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from contextlib import redirect_stdout
from pathlib import Path

import pyarrow
import pytest
from films import film, scene
from PIL import Image
from pyarrow import parquet

from mien.__main__ import COMMANDS
from mien.labels import EXPRESSIONS
from mien.training.ablate import DEFAULT, settings, variants
from mien.training.run import parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted((ROOT / "src/mien/models").glob("*/README.md"))

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    ((?:[A-Z_]+=\S+ )*(?:mien|make|pip|python) .*)$", re.MULTILINE)
INLINE = re.compile(r"`(mien [a-z][^`]*)`")

FIRST = [ROOT / "README.md", ROOT / "docs/quickstart.md"]
"""Pages whose programs run here."""

RUN = {"read", "batch", "list", "doctor", "eval", "data"}
"""Commands that are run here, with the photographs of examples/ by whatever name a page calls them."""

ELSEWHERE = re.compile(
    r"""
      ^(0|-)$                                  # a camera, stdin
    | ^(rtsp|https?|s3):// | ^ray$             # somebody's server, a cluster
    | ^--(landmarker|robustness|intervene)$    # a file that is not here; and what has tests of its own, and takes long
    | ^runs/ | ^faces$ | ^my_model$            # made by another command; test_finetune.py goes through own_classes.md
    | RAF-DB$ | ^/?data/ | ^yours\.parquet$       # sets of others; audit.md has the same commands
    """,
    re.VERBOSE,
)
"""Words of a command that is only parsed, all the same."""

NAMES = {"MODEL": "face.onnx", "OTHER": "face.onnx", "DATA": "faces.parquet", "PHOTO": "photo.jpg", "FOLDER": "crops"}
"""What a word that stands for another is taken for when a command is run."""

OTHERS = {"source", "mkdir", "unzip", "ray", "g++", "npm", "docker", "sha256sum"}
"""Programs that are none of ours."""


def commands(page: Path) -> list[list[str]]:
    """The commands of a page as words, environment and comments taken away."""
    text, lines = page.read_text("utf-8"), []
    for language, body in BLOCK.findall(text):
        shown = re.findall(r"^\$ (.*)", body, re.MULTILINE)
        lines += shown or ([] if language else re.sub(r"[\\|]\n", " ", body).splitlines())
    lines += INDENTED.findall(BLOCK.sub("", text))
    found, variables = [], {}
    for line in lines:
        words = shlex.split(re.sub(r"^\d\S* \d\S* \* \* \*  ", "", line), comments=True)  # of a crontab
        while words and (set_to := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
            variables[set_to[1]] = words.pop(0).partition("=")[2]
        if words:
            found.append([re.sub(r"\$(\w+)", lambda m: variables.get(m[1], m[0]), word) for word in words])
    return found


ALL = [(page.relative_to(ROOT).as_posix(), words) for page in PAGES for words in commands(page)]


def ours(words: list[str]) -> list[str]:
    """The words behind `mien`, also of one that another program starts; none for others' commands."""
    if not words[0].endswith("mien") and words[0] != "torchrun":
        return []
    behind = next(i for i, word in enumerate(words) if word.endswith("mien")) + 1
    return [word for word in words[behind:] if not word.startswith(">")]


def is_run(words: list[str]) -> bool:
    return bool(words) and words[0] in RUN and not any(map(ELSEWHERE.search, words))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, stand_in):
    """Everything that a page names: the two photographs, a film and a table of faces."""
    at = tmp_path_factory.mktemp("pages")
    two = [ROOT / "examples/hopper.jpg", ROOT / "examples/astronaut.png"]
    for name in ("examples", "holiday", "photos", "pictures"):
        (at / name).mkdir()
        for picture in two:
            shutil.copy(picture, at / name)
    for name in ("photo.jpg", "today.jpg", "neutral.jpg"):
        shutil.copy(two[0], at / name)
    (at / "scans").mkdir()
    Image.open(two[0]).save(at / "scans/a.tif")
    with zipfile.ZipFile(at / "album.zip", "w") as album:
        album.write(two[0], "photo.jpg")
    crop = Image.open(two[0]).crop((177, 114, 358, 326)).resize((112, 112))
    (at / "crops").mkdir()
    crop.save(at / "crops/a.png")
    film(at / "clip.mp4", [scene((40 + 4 * i, 20, 200)) for i in range(4)])
    rows = []
    for i in range(8):
        file = io.BytesIO()
        crop.point(lambda value, i=i: value // (i + 1)).save(file, "PNG")
        rows.append({"image": file.getvalue(), "label": ("neutral", "anger")[i % 2], "split": "validation"})
        rows[-1] |= {"sex": ("f", "m")[i // 4], "age": ("20", "60")[i // 4]}
    parquet.write_table(pyarrow.Table.from_pylist(rows), at / "faces.parquet")
    shutil.copy(stand_in / "model.onnx", at / "face.onnx")
    for name in ("recipes", "benchmarks", "constraints.txt"):
        (at / name).symlink_to(ROOT / name)
    return at


def test_commands_that_can_be_run(folder, call, monkeypatch):
    monkeypatch.chdir(folder)
    run = dict.fromkeys(tuple(ours(words)) for _, words in ALL if is_run(ours(words)))
    assert len(run) >= 25
    for words in run:
        code, out, err = call(*(NAMES.get(word, word) for word in words))
        assert code == 0 and (out or err), f"mien {shlex.join(words)}: {code} {err}"


def test_a_run_that_is_read_was_made_by_a_command_before_it_on_its_page():
    made, read = set(), 0
    for page, words in ALL:
        mine = ours(words)
        if mine and mine[0] in {"train", "finetune"}:
            options = dict(itertools.pairwise(mine))
            made.add((page, options.get("--out", f"runs/{options.get('--name', Path(mine[1]).stem)}")))
        for word in mine if mine and mine[0] in RUN else ():
            if word.startswith("runs/"):
                assert (page, Path(word).parent.as_posix()) in made, f"{page}: mien {shlex.join(mine)}"
                read += 1
    assert read >= 4


def test_other_commands_are_taken_by_their_parsers(folder, call, monkeypatch):
    """With every option and value; and recipes with every option that is set or varied."""
    monkeypatch.chdir(folder)
    taken = {}
    for name, (module, *_) in COMMANDS.items():
        monkeypatch.setattr(
            importlib.import_module(module), "run", lambda args, name=name: taken.update({name: args}) or 0
        )
    recipes = []
    for page, words in ALL:
        if not (mine := ours(words)) or is_run(mine):
            continue
        code, _, err = call(*mine)
        assert code == 0, f"{page}: {shlex.join(words)}: {err}"
        args = taken[mine[0]]
        if mine[0] == "train":
            recipes.append(args.arguments)
        if mine[0] == "ablate":
            recipe = "recipes/btn_mobile_ferplus.yaml" if args.recipe == "RECIPE" else args.recipe
            for variant in variants(args.vary):
                chosen = settings(args.set) | variant.settings
                recipes.append([recipe, *(f"--{key}={value}" for key, value in chosen.items() if value != DEFAULT)])
    assert taken.keys() >= {"train", "ablate", "export", "heads", "serve", "explain"}
    options = parser()
    for arguments in {tuple(words) for words in recipes}:
        options.parse_args(["--config", *arguments])


def test_programs_are_there_and_take_their_options(folder, monkeypatch):
    """Of benchmarks/ and web/, by their own parsers; what pip, make and curl are asked for; and nothing else."""
    monkeypatch.chdir(folder)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    makefiles = "".join((ROOT / name).read_text() for name in ("Makefile", "recipes/campaign.mk"))
    routes = (ROOT / "src/mien/service/app.py").read_text() + '"/openapi.json"'
    parsed = 0
    for page, words in ALL:
        command, said = Path(words[0].lstrip("(")).name, f"{page}: {shlex.join(words)}"
        if command == "pip":
            asked = ",".join(re.findall(r"(?:mien|\.)\[(.*?)\]", " ".join(words)))
            assert set(filter(None, asked.split(","))) <= extras.keys(), said
        elif command == "make":
            assert re.search(rf"^{words[1]}:", makefiles, re.MULTILINE), said
        elif command in ("curl", "printf"):
            path = re.search(r"http://127\.0\.0\.1:8000(\S+)", " ".join(words))[1]
            assert f'"{path}"' in routes, said
        elif command == "python" and words[1] not in ("-m", "-c"):
            script = ROOT / words[1]
            if not script.exists():  # what the page has just told to write
                assert f"# {words[1]}\n" in (ROOT / page).read_text(), said
                continue
            assert parses(script, words[2:], monkeypatch, (ROOT / page).read_text()), said
            parsed += 1
        elif command == "python" and words[1] == "-m":
            assert importlib.util.find_spec(words[2]), said
        else:
            assert ours(words) or command == "python" or command in OTHERS, said
    assert parsed > 10


def parses(script: Path, words: list[str], monkeypatch, page: str) -> bool:
    """Whether a program's own parser takes these words; the program ends there, or where it lacks what `page` names."""

    class Parsed(Exception):
        pass

    def parse(self, *given, before=argparse.ArgumentParser.parse_args):
        before(self, *given)
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        patch.setattr(sys, "argv", [str(script), *words])
        patch.syspath_prepend(str(script.parent))
        try:
            runpy.run_path(str(script), run_name="__main__")
        except Parsed:
            return True
        except ModuleNotFoundError as error:
            return re.search(rf"pip install .*\b{error.name}\b", page) is not None
    return not words  # it takes none


def options(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of a parser and of those below it."""
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        for below in action.choices.values() if isinstance(action, argparse._SubParsersAction) else ():
            found |= options(below)
    return found


def test_options_that_sentences_name():
    known, count = {}, 0
    for page in PAGES:
        for text in INLINE.findall(BLOCK.sub("", page.read_text("utf-8"))):
            name, *words = text.split()[1:]
            assert name in COMMANDS, f"{page}: {text}"
            if name in ("train", "ablate"):  # whose options are the recipe's
                continue
            if name not in known:
                known[name] = argparse.ArgumentParser()
                importlib.import_module(COMMANDS[name][0]).add_arguments(known[name])
                known[name] = options(known[name])
            for option in (word.partition("=")[0] for word in words if word.startswith("--")):
                assert option in known[name], f"{page}: {text}"
                count += 1
    assert count > 20


def test_programs_of_the_pages(folder, monkeypatch, capsys):
    """Python that pages print is Python, what it imports is there, and that of the first pages runs."""
    monkeypatch.chdir(folder)
    for page in PAGES:
        for language, body in BLOCK.findall(page.read_text("utf-8")):
            if language != "python" or page.parent.name in ("mechanisms", "networks"):  # signatures
                continue
            tree = ast.parse(body, str(page))
            imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
            exec(compile(ast.Module(imports, []), str(page), "exec"), {})
            if page in FIRST:
                exec(compile(tree, str(page), "exec"), {})


@pytest.fixture(scope="module")
def prepared(folder):
    """What docs/onnxruntime.md prints: its programs, in `folder`, by name; and the numbers of the first."""
    page = (ROOT / "docs/onnxruntime.md").read_text()
    programs = {re.match(r"(?:#|//) (\S+)", body)[1]: body for _, body in BLOCK.findall(page) if body[0] in "#/"}
    assert programs.keys() == {"prepare.py", "read.py", "read.cpp", "read.mjs"}
    for name, body in programs.items():
        (folder / name).write_text(body)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as said:
        patch.chdir(folder)
        exec(programs["prepare.py"], {})
    return programs, list(ast.literal_eval(said.getvalue()).values())


def test_plain_onnxruntime_in_python(folder, prepared, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    programs, right = prepared
    exec(programs["read.py"], {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [label for label, _ in lines] == list(EXPRESSIONS)
    assert [float(share) for _, share in lines] == pytest.approx(right, abs=2e-3)


def test_plain_onnxruntime_in_javascript(folder, prepared):
    if not shutil.which("node") or not (ROOT / "web/node_modules/onnxruntime-web").is_dir():
        pytest.skip("no node, or no onnxruntime-web in web/node_modules (make web)")
    (folder / "node_modules").symlink_to(ROOT / "web/node_modules")
    assert shares(["node", "read.mjs"], folder) == pytest.approx(prepared[1], abs=2e-3)


def test_plain_onnxruntime_in_cpp(folder, prepared):
    header, library = Path("/usr/include/onnxruntime"), next(Path("/usr/lib").glob("*/libonnxruntime.so"), None)
    if not shutil.which("g++") or not header.is_dir() or library is None:
        pytest.skip("no g++, or no libonnxruntime-dev")
    command = ["g++", "-std=c++17", "read.cpp", f"-I{header}", "-lonnxruntime", "-o", "read"]
    subprocess.run(command, cwd=folder, check=True)
    assert shares(["./read"], folder) == pytest.approx(prepared[1], abs=2e-3)


def shares(command: list[str], folder: Path) -> list[float]:
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return [float(line.split()[1]) for line in run.stdout.splitlines()]
