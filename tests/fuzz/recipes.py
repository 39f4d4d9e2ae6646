"""Hostile recipes: deep, manifold, in other encodings, damaged."""

from pathlib import Path

import numpy as np

from mien.errors import MienError
from mien.training.options import parse, parser

RECIPE = Path(__file__).parents[2] / "recipes/mobilefacenet_ferplus.yaml"

BOMB = "".join(
    [f"a0: &a0 [{', '.join('x' * 10)}]\n"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)]
)


def hostile(seed: int) -> tuple[str, bytes]:
    """What is wrong, and the recipe."""
    draw = np.random.default_rng((3, seed))
    text = RECIPE.read_bytes()
    deep = int(draw.integers(60, 200_000))
    kinds = {
        "deep lists": text + b"\nnotes: " + b"[" * deep,
        "deep tables": text + b"\nnotes: " + b"{a: " * deep,
        "deep blocks": b"".join(b" " * i + b"a:\n" for i in range(min(deep, 1500))),
        "deep text": text + b"\nnotes: '" + b"[" * deep + b"'",
        "aliases": text + b"\n" + BOMB.encode(),
        "itself": text + b"\nnotes: &a [*a]",
        "utf-16": text.decode().encode("utf-16"),
        "latin-1": text + "\nname: Müller".encode("latin-1"),
        "zeros": text + bytes(100),
        "large": text + b"\n#" + b"x" * 2_000_000,
        "digits": text + b"\nseed: " + b"9" * 10_000,
        "cut": text[: int(draw.integers(1, len(text)))],
    }
    changed = bytearray(text)
    for place in draw.integers(0, len(text), int(draw.integers(1, 20))):
        changed[place] = int(draw.integers(256))
    kinds["bytes"] = bytes(changed)
    what = list(kinds)[seed % len(kinds)]
    return what, kinds[what]


def fault(seed: int, folder: Path) -> str | None:
    """What is wrong with how the recipe is read: neither options nor one line."""
    what, data = hostile(seed)
    path = folder / f"recipe_{seed}.yaml"
    path.write_bytes(data)
    try:
        parse(parser(), [str(path)])
    except MienError as error:
        return None if "\n" not in str(error) else f"{seed}, {what}: {str(error)[:300]}"
    except SystemExit as end:
        return None if end.code == 2 else f"{seed}, {what}: exit code {end.code}"
    except BaseException as error:
        return f"{seed}, {what}: {type(error).__name__}: {str(error)[:300]}"
    finally:
        path.unlink()
    return None
