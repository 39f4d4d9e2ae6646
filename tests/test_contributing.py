"""The examples of CONTRIBUTING.md, run in order from a folder of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.partition("\n")[0])
def test_page(page, tmp_path):
    [use] = write_files(blocks(page, "python"), tmp_path)
    run = subprocess.run([sys.executable, "-c", use], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_recipe_of_the_pages_is_understood(tmp_path):
    text = "\n".join(PAGES)
    write_files(blocks(text, "python"), tmp_path)
    (tmp_path / "recipe.yaml").write_text("".join(blocks(text, "yaml")) + OPTIMIZER)
    code = "from mien.training.run import parser; parser().parse_args(['--config', 'recipe.yaml'])"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]


def test_there_are_three_pages():
    assert [page.partition("\n")[0] for page in PAGES] == ["A mechanism", "A network", "A data set"]
