"""What `make docs` adds to the pages of docs/, as a hook of mkdocs (mkdocs.yml).

The README, the model cards, the benchmarks and CONTRIBUTING.md are pages where they lie, and so is code that a page
links to: nothing is copied. A link works on the site as it does in the repository, and one that leads nowhere fails
the build. The reference comes out of `__all__`, the galleries out of their folders.
"""

import ast
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("mien", "mien.faces", "mien.outputs", "mien.checkpoint", "mien.engines", "mien.video", "mien.data"),
    *("mien.evaluation", "mien.explain", "mien.export", "mien.heads", "mien.study"),
    *("mien.networks", "mien.nn", "mien.interventions", "mien.losses"),
)
PAGES = {"README.md": "index.md", "benchmarks/README.md": "benchmarks.md", "CONTRIBUTING.md": "contributing.md"} | {
    path.relative_to(ROOT).as_posix(): f"models/{path.parent.name}.md"
    for path in sorted((ROOT / "src/mien/models").glob("*/README.md"))
}
"""Pages that lie outside of docs/: where in the repository, and what they are called on the site."""

SHOWN = {".py": "python", ".yaml": "yaml", ".mjs": "javascript", ".js": "javascript"}
"""Code that becomes a page when another page links to it; other files are there as they are."""

CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<before>\]\(|\b(?:src|href)=\")(?P<path>[\w./-]+)(?P<anchor>#[\w-]*)?(?=[)\" ])")

NOT_IN_NAV = InclusionLevel.NOT_IN_NAV
log = logging.getLogger("mkdocs.site")
where: dict[str, str] = {}
"""What is on the site: path in the repository -> path among the site's sources."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """A folder in the navigation (`mechanisms/`) becomes all of its pages, its README.md the first; a page that has no
    place there stands at the end."""
    config.nav = _expanded(config.nav)
    named = str(config.nav)
    if rest := [path.name for path in sorted((ROOT / "docs").glob("*.md")) if f"'{path.name}'" not in named]:
        config.nav.append({"More": rest})
    return config


def _expanded(part: object) -> object:
    if isinstance(part, dict):
        return {title: _expanded(inner) for title, inner in part.items()}
    if isinstance(part, list):
        return [made for inner in part if not _is_empty(made := _expanded(inner))]
    return _pages_of(part) if isinstance(part, str) and part.endswith("/") else part


def _is_empty(part: object) -> bool:
    return part == [] or isinstance(part, dict) and not any(part.values())


def _pages_of(folder: str) -> list[object]:
    if folder == "api/":
        return [{package: f"api/{package}.md"} for package in PACKAGES]
    if folder == "models/":
        return [page for page in PAGES.values() if page.startswith(folder)]
    found = {path.name for path in (ROOT / "docs" / folder).glob("*.md")}
    return [folder + name for name in sorted(found, key=lambda name: (name != "README.md", name.lower()))]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    where.clear()
    where.update({f"docs/{file.src_uri}": file.src_uri for file in files} | PAGES)
    for path, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / path)))
    for path in sorted({target for file in files.documentation_pages() for target in _outside(file)}):
        if Path(path).suffix in SHOWN:
            where[path] = f"files/{path}.md"
            files.append(File.generated(config, where[path], content=_listing(path), inclusion=NOT_IN_NAV))
        else:
            where[path] = f"files/{path}"
            files.append(File.generated(config, where[path], abs_src_path=str(ROOT / path), inclusion=NOT_IN_NAV))
    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=_reference(package)))
    return files


def _home(file: File) -> str:
    """The folder of the repository in which a page lies."""
    return dirname(next(path for path, page in where.items() if page == file.src_uri))


def _outside(file: File) -> Iterator[str]:
    """The files of the repository that a page links to and that are not on the site."""
    for text in CODE.split(file.content_string)[::2]:
        for link in LINK.finditer(text):
            target = normpath(join(_home(file), link["path"]))
            if target not in where and (ROOT / target).is_file():
                yield target


def _listing(path: str) -> str:
    text = (ROOT / path).read_text()
    return f"---\nsearch: {{exclude: true}}\n---\n\n# {path}\n\n`````{SHOWN[Path(path).suffix]}\n{text}\n`````\n"


def _reference(package: str) -> str:
    """A page of all public names of a module, each by its docstring."""
    folder = ROOT / "src" / package.replace(".", "/")
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    tree = ast.parse(path.read_text())
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names = ast.literal_eval(node.value)
    said = (ast.get_docstring(tree) or "").partition("\n\n")[0]
    return f"# {package}\n\n{said}\n\n" + "".join(f"::: {package}.{name}\n" for name in names if name[0] != "_")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links led to where things lie on the site."""
    if page.file.src_uri == "index.md":
        page.meta["hide"] = ["navigation"]  # it would be this page alone
    if page.file.src_uri not in where.values() or Path(page.file.src_uri[:-3]).suffix in SHOWN:
        return markdown

    def led(link: re.Match[str]) -> str:
        target = normpath(join(_home(page.file), link["path"]))
        if target not in where:
            log.warning(f"{page.file.src_uri}: {link['path']}: no such file")
            return link[0]
        place, anchor = relpath(where[target], dirname(page.file.src_uri) or "."), link["anchor"] or ""
        if link["before"] != "](":  # HTML, which mkdocs leaves as it is
            place = re.sub(r"\.md$", ".html", re.sub(r"README\.md$", "index.md", place))
        return link["before"] + place + anchor

    parts = CODE.split(markdown)
    parts[::2] = [LINK.sub(led, part) for part in parts[::2]]
    return "".join(parts)
