"""All pictures of a run on one web page."""

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from mien.faces.look import REPORT

_STYLE = f"""{REPORT}
figure {{ margin: 0 0 2rem }} figcaption {{ margin-bottom: .3rem; overflow-wrap: anywhere }}
"""


def page(title: str, words: str, pictures: Sequence[tuple[str, str]], missing: Sequence[str]) -> str:
    """A page that shows pictures that lie beside it.

    title, words: at the top. pictures: the file name of each, and its caption. missing: a line for each source of which
    there is none.
    """
    figures = "\n".join(
        f'<figure><figcaption>{escape(caption)}</figcaption><img src="{quote(name)}" alt="{escape(caption)}" '
        'loading="lazy"></figure>'
        for name, caption in pictures
    )
    lines = "".join(f"<li>{escape(line)}</li>" for line in missing)
    left_out = f"<h2>Not drawn</h2><ul>{lines}</ul>" if missing else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"<p>{escape(words)}</p>\n{figures}\n{left_out}\n</body></html>\n"
    )
