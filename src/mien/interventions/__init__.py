"""Attention moved while a network reads, and what comes of it: one rule a file, on `mien.nn.intervene`."""

import ast
import importlib
import inspect
from typing import Any

from mien.errors import Misuse
from mien.interventions.base import Intervened, Intervention, intervene_on
from mien.interventions.boost import ScoreBoost
from mien.interventions.heads import HeadReinforcement, head_divergence
from mien.interventions.sinks import SinkRedistribution, sink_report

RULES: dict[str, type[Intervention]] = {
    "sinks": SinkRedistribution,
    "heads": HeadReinforcement,
    "boost": ScoreBoost,
}
"""By the name that `mien eval --intervene` takes."""

__all__ = [
    "RULES",
    "HeadReinforcement",
    "Intervened",
    "Intervention",
    "ScoreBoost",
    "SinkRedistribution",
    "head_divergence",
    "intervene_on",
    "make_rule",
    "sink_report",
]


def make_rule(text: str) -> Intervention:
    """The rule that a text names, with its options: "heads" or "heads:alpha=1.5,baseline=zero".

    text: a name of RULES, or the import path of an `Intervention` of yours; behind a colon keyword arguments of it,
        with commas between. Several values of one, such as layers, have + between.

    Raises Misuse for a name, an option or a value that will not do.
    """
    name, _, options = text.partition(":")
    make = RULES[name] if name in RULES else _imported(name)
    known = [word for word in inspect.signature(make).parameters if word != "self"]
    given: dict[str, Any] = {}
    for option in options.split(",") if options else ():
        word, equals, value = option.partition("=")
        if not equals or word not in known:
            raise Misuse(f"{text}: {option!r} is no option of {name}; there are {', '.join(f'{w}=' for w in known)}")
        given[word] = _value(value)
    try:
        return make(**given)
    except (TypeError, ValueError) as error:
        raise Misuse(f"{text}: {error}") from error


def _value(text: str) -> Any:
    """A number, True, False or None where it is spelt as one in Python, else the text itself; a list of them by +."""
    if "+" in text:
        return [_value(part) for part in text.split("+")]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | None) else text


def _imported(path: str) -> type[Intervention]:
    module, _, name = path.rpartition(".")
    rules = f"rules are {', '.join(RULES)}, and the import paths of your own"
    if not module:
        raise Misuse(f"there is no rule {path!r}: {rules}")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise Misuse(f"there is no rule {path!r} ({error}): {rules}") from error
    if not (inspect.isclass(found) and issubclass(found, Intervention)):
        raise Misuse(f"{path} is no Intervention: {rules}")
    return found
