"""Docstrings of mien as Markdown, for mkdocstrings: their lists of arguments as lists, their programs as programs."""

import ast
import re

import griffe

ITEM = re.compile(r"(?:\*{0,2}[a-z_]\w*(?:, |$|(?=:)))+: ")


def markdown(text: str) -> str:
    """A docstring, its common indent removed, as Markdown."""
    return "\n\n".join(_paragraph(part) for part in text.split("\n\n"))


def _paragraph(part: str) -> str:
    head, _, rest = part.partition("\n")
    if head in ("Args:", "Returns:", "Raises:"):
        return f"**{head[:-1]}**\n\n{_listed(re.sub('^    ', '', rest, flags=re.MULTILINE))}"
    if part.startswith(" ") or not part.strip():
        return part
    return f"```python\n{part}\n```" if _is_program(part) else _listed(part)


def _listed(part: str) -> str:
    """Lines that begin with `name: ` or `name, name: ` as a list, what stands before them as it is."""
    lines, listing = [], False
    for line in part.split("\n"):
        if found := ITEM.match(line):
            if lines and not listing:
                lines.append("")
            listing = True
            names = ", ".join(f"`{name}`" for name in found[0][:-2].split(", "))
            line = f"- {names}: {line[found.end() :]}"
        lines.append(line)
    return "\n".join(lines)


def _is_program(part: str) -> bool:
    try:
        statements = ast.parse(part).body
    except SyntaxError:
        return False
    return any(not isinstance(s, ast.Expr) or isinstance(s.value, ast.Call) for s in statements)


class Docstrings(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)
