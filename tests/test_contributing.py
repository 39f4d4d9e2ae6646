"""The examples of CONTRIBUTING.md, run in order from a folder of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGES = re.split(r"^## ", (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)[1:]
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.partition("\n")[0])
def test_page(page, tmp_path):
    file, use = PYTHON.findall(page)
    path = tmp_path / re.match(r"# (\S+\.py)\n", file)[1]
    path.parent.mkdir()
    path.write_text(file)
    run = subprocess.run([sys.executable, "-c", use], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_there_are_three_pages():
    assert [page.partition("\n")[0] for page in PAGES] == ["A mechanism", "A network", "A data set"]
