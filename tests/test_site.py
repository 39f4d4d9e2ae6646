"""The documentation as a site: it builds without a warning, asks nobody else for anything, and no link is broken."""

import importlib.util
import logging
import re
from html import unescape
from pathlib import Path
from posixpath import dirname, join, normpath
from types import SimpleNamespace
from urllib.parse import unquote

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]


def load(name: str):
    """A module of tools/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[str, str]:
    """The text of each page of the site; `root` is where it lies. That it is there says that nothing was warned of."""
    root = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(root))
        assert config.strict
        build(config)
    return {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in root.rglob("*.html")} | {
        "root": root
    }


def test_nothing_is_asked_of_another_host(site):
    root = site["root"]
    loads = re.compile(r"<(?:script|link|img|source|iframe|video)\b[^>]*\b(?:src|href)=\"((?:https?:)?//[^\"]*)")
    assert not {found for name, page in site.items() if name != "root" for found in loads.findall(page)}
    for sheet in root.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import )[\"']?(?:https?:)?//", sheet.read_text("utf-8")), sheet


def test_links_lead_to_what_is_there(site):
    """In HTML as well, which mkdocs does not look at; and to headings that there are."""
    root, seen = site["root"], set()
    anchors = {name: set(re.findall(r"\bid=\"([^\"]+)", page)) for name, page in site.items() if name != "root"}
    for name in anchors:
        for link in re.findall(r"(?:src|href)=\"([^\"]+)", site[name].partition("<body")[2]):
            path, _, anchor = unquote(unescape(link)).partition("#")
            target = normpath(join(dirname(name), path)) if path else name
            if re.match(r"[a-z]+:", path) or name == "404.html" or (target, anchor) in seen:
                continue
            seen.add((target, anchor))
            assert (root / target).is_file(), f"{name}: {link}"
            if anchor and target.endswith(".html"):
                assert anchor in anchors[target], f"{name}: {link}"
    assert len(seen) > 1000


def test_what_the_site_has(site):
    home, mechanisms = site["index.html"], site["mechanisms/index.html"]
    assert 'src="pictures/photograph.jpg"' in home and 'href="limits.html"' in home
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix().replace("README", "index")
        assert name in site, name
        if page.parent.name == "mechanisms":
            assert f'href="{Path(name).name}" class="md-nav__link"' in mechanisms or page.name == "README.md", name
    assert {"benchmarks.html", "contributing.html", "quickstart.html", "onnxruntime.html", "audit.html"} <= site.keys()
    assert {f"models/{card.parent.name}.html" for card in (ROOT / "src/mien/models").glob("*/README.md")} <= site.keys()
    assert "class MoH" in re.sub("<[^>]+>", "", site["files/src/mien/nn/moh.py.html"])  # code that a page links to


def test_the_reference(site):
    reader = re.sub("<[^>]+>", "", site["api/mien.html"])
    assert "Finds the faces in a picture and reads their expressions." in reader
    assert re.search(r"<li>\s*(?:<p>)?<code>min_face</code>: the least shorter side", site["api/mien.html"])
    assert "read_many" in reader and "min_face:" in reader
    for name in ("mien.nn.MoH", "mien.nn.observe", "mien.networks.BTN", "mien.evaluation.evaluate"):
        assert f'id="{name}"' in site[f"api/{name.rpartition('.')[0]}.html"], name


def test_docstrings_become_markdown():
    markdown = load("site_docstrings").markdown
    assert markdown("One.\n\nreader = f()\nprint(reader)") == "One.\n\n```python\nreader = f()\nprint(reader)\n```"
    assert (
        markdown("size: pixels,\n    of a side.\na, b: others.")
        == "- `size`: pixels,\n    of a side.\n- `a`, `b`: others."
    )
    assert markdown("Args:\n    dim: int.\n    p: float.") == "**Args**\n\n- `dim`: int.\n- `p`: float."
    assert markdown("    y = W x") == "    y = W x" and markdown("Paper: X, 2020.") == "Paper: X, 2020."


def test_a_link_that_leads_nowhere_is_warned_of_and_a_new_gallery_is_taken_up(tmp_path, monkeypatch, caplog):
    hook = load("site")
    hook.where.update({"docs/a.md": "a.md", "docs/deep/b.md": "deep/b.md", "src/x.py": "files/src/x.py.md"})
    page = SimpleNamespace(file=SimpleNamespace(src_uri="deep/b.md"), meta={})
    text = '[a](../a.md#top) [x](../../src/x.py) `[no](code.md)` <img src="../a.md"> [gone](gone.md)'
    with caplog.at_level(logging.WARNING):
        led = hook.on_page_markdown(text, page, None, Files([]))
    assert led.startswith('[a](../a.md#top) [x](../files/src/x.py.md) `[no](code.md)` <img src="../a.html">')
    assert [record.getMessage() for record in caplog.records] == ["deep/b.md: gone.md: no such file"]

    monkeypatch.setattr(hook, "ROOT", tmp_path)
    nav = [{"Networks": "networks/"}, "a.md"]
    assert hook.on_config(SimpleNamespace(nav=nav)).nav == ["a.md"]
    (tmp_path / "docs/networks").mkdir(parents=True)
    for name in ("btn.md", "README.md", "APViT.md"):
        (tmp_path / "docs/networks" / name).touch()
    (tmp_path / "docs/new.md").touch()
    pages = ["networks/README.md", "networks/APViT.md", "networks/btn.md"]
    assert hook.on_config(SimpleNamespace(nav=nav)).nav == [{"Networks": pages}, "a.md", {"More": ["new.md"]}]
