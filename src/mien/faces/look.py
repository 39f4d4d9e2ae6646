"""The look of every page, in light and in dark: the page in the browser, the static one, and reports."""

import base64
from html import escape

LIGHT = {
    "paper": "#f5f4f0",
    "card": "#ffffff",
    "line": "#dedbd3",
    "ink": "#1c1b19",
    "soft": "#625e56",
    "accent": "#0f766e",
    "on-accent": "#ffffff",
    "track": "#eceae4",
    "wrong": "#b42318",
}
"""Colours by what they are for: the ground, what lies on it, lines, text, what is said beside, what can be pressed and
the text on that, the ground of bars, and errors."""

DARK = {
    "paper": "#131415",
    "card": "#1c1e20",
    "line": "#303438",
    "ink": "#eeece7",
    "soft": "#a5a29b",
    "accent": "#2dd4bf",
    "on-accent": "#06231f",
    "track": "#2a2d30",
    "wrong": "#ff9a8f",
}

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'


def _declared(colours: dict[str, str]) -> str:
    return " ".join(f"--{name}: {colour};" for name, colour in colours.items())


VARIABLES = f""":root {{ color-scheme: light dark; {_declared(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_declared(DARK)} }} }}
"""
"""CSS: every colour as a variable, such as var(--accent), light or dark as the visitor's system is."""

REPORT = f"""{VARIABLES}
body {{ font: 16px/1.5 {FONT}; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
    color: var(--ink); background: var(--paper); overflow-wrap: break-word }}
h1, h2 {{ line-height: 1.2 }} small, figcaption {{ color: var(--soft) }} a {{ color: var(--accent) }}
.wide {{ overflow-x: auto }} .wide:focus-visible {{ outline: 2px solid var(--accent) }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }}
th, td {{ padding: .2rem .7rem; text-align: right }} th:first-child, td:first-child {{ text-align: left }}
tr {{ border-bottom: 1px solid var(--line) }}
img {{ max-width: 100%; background: #fff; border-radius: 4px }} .wide > img {{ min-width: 40rem }}
pre {{ overflow-x: auto; font-size: .8rem }}
"""
"""CSS of a report: a page of text, of tables and wide plots that scroll, and of plots on white."""


def embedded(png: bytes) -> str:
    """A picture as an address that holds it, so that a page loads nothing."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


WIDE = 800
"""Pixels of a plot's width that can be shrunk to a phone's and still be read."""


def plot(png: bytes, words: str = "") -> str:
    """A plot as HTML, what it shows in `words`; one of more than WIDE pixels scrolls by itself on a narrow screen."""
    shown = f'<img class="plot" alt="{escape(words)}" src="{embedded(png)}">'
    return wide(shown) if int.from_bytes(png[16:20]) > WIDE else shown  # where a PNG says its width


def wide(shown: str) -> str:
    """A table or a plot, as HTML, that scrolls by itself, with the keyboard, too, where the page is narrower."""
    return f'<div class="wide" tabindex="0">{shown}</div>'
