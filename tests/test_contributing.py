"""The examples of CONTRIBUTING.md, run in order from a folder of their own, and docstrings that list arguments."""

import ast
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from mien.training.run import parser

PAGES = re.split(r"^## ", (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)[1:]
BLOCK = re.compile(r"^```(python|yaml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTIMIZER = "task: {optimizer: {class_path: torch.optim.AdamW}}\n"


def write_files(blocks: list[str], folder: Path) -> list[str]:
    """Write the blocks that begin with a file's name into `folder`; the others come back."""
    others = []
    for block in blocks:
        if name := re.match(r"# (\S+\.py)\n", block):
            path = folder / name[1]
            path.parent.mkdir(exist_ok=True)
            path.write_text(block)
        else:
            others.append(block)
    return others


def blocks(text: str, language: str) -> list[str]:
    return [body for kind, body in BLOCK.findall(text) if kind == language]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working folder, of which modules are imported that are forgotten behind the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.partition("\n")[0])
def test_page(page, here):
    [use] = write_files(blocks(page, "python"), here)
    exec(use, {"__name__": "__main__"})


def test_recipe_of_the_pages_is_understood(here):
    text = "\n".join(PAGES)
    write_files(blocks(text, "python"), here)
    (here / "recipe.yaml").write_text("".join(blocks(text, "yaml")) + OPTIMIZER)
    parser().parse_args(["--config", "recipe.yaml"])


def test_there_are_three_pages():
    assert [page.partition("\n")[0] for page in PAGES] == ["A mechanism", "A network", "A data set"]


# what is public: read from the source, so that no extra has to be installed

SOURCE = Path(__file__).parents[1] / "src"


@cache
def statements(module: str) -> list[ast.stmt]:
    """What a module does at its top level and under `if TYPE_CHECKING`; nothing of one that is not of mien."""
    folder = SOURCE.joinpath(*module.split("."))
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    body = ast.parse(path.read_bytes()).body if path.exists() else []
    return [*body, *(part for node in body if isinstance(node, ast.If) for part in node.body)]


def find(module: str, name: str) -> tuple[str, ast.stmt] | None:
    """The module that defines a name, and how; None for a name that is not of mien."""
    for node in statements(module):
        for alias in node.names if isinstance(node, ast.ImportFrom) else ():
            if name == (alias.asname or alias.name):
                return find(node.module, alias.name)
        targets = getattr(node, "targets", None) or [getattr(node, "target", node)]
        if any(name in (getattr(target, "name", None), getattr(target, "id", None)) for target in targets):
            return module, node
    return None


def parameters(module: str, node: ast.stmt) -> list[str]:
    """What a function takes, or a class, with what it inherits; nothing of a constant."""
    if isinstance(node, ast.FunctionDef):
        given = node.args
        every = (*given.posonlyargs, *given.args, given.vararg, *given.kwonlyargs, given.kwarg)
        return [one.arg for one in every if one is not None]
    if not isinstance(node, ast.ClassDef):
        return []
    for part in node.body:
        if isinstance(part, ast.FunctionDef) and part.name == "__init__":
            return parameters(module, part)[1:]
    bases = [ast.unparse(base) for base in node.bases]
    taken = [name for base in bases if (above := find(module, base)) for name in parameters(*above)]
    if "NamedTuple" in bases or any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        taken += [part.target.id for part in node.body if isinstance(part, ast.AnnAssign)]
    return list(dict.fromkeys(taken))


def test_public_callables_list_their_arguments():
    """Each of three or more begins a line of the docstring, "name: …", alone or with others, "name, other: …"."""
    missing, count = {}, 0
    for path in SOURCE.glob("mien/**/*.py"):
        if b"\n__all__ =" not in path.read_bytes():
            continue
        package = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        for name in ast.literal_eval(find(package, "__all__")[1].value):
            module, node = find(package, name)
            taken, count = parameters(module, node), count + 1
            text = ast.get_docstring(node) if len(taken) > 2 else ""
            listed = re.findall(r"\w+", " ".join(re.findall(r"^ *([\w, ]+):", text or "", re.MULTILINE)))
            if len(taken) > 2 and (unlisted := set(taken).difference(listed)):
                missing[f"{package}.{name}"] = unlisted
    assert count > 250 and missing == {}


def test_a_class_name_means_one_thing():
    defined = Counter(
        node.name
        for path in SOURCE.glob("mien/**/*.py")
        for node in ast.parse(path.read_bytes()).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    twice = {name for name, count in defined.items() if count > 1}
    assert twice == {"Findings", "Measured", "Head"}  # each public twice: of heads, the part of attention and of people
