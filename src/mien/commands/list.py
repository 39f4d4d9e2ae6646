"""`mien list`: the models that came with mien."""

import argparse

from mien.checkpoint import labels_of, read_header
from mien.classifier import DEFAULT_MODEL, MODELS, find_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(args: argparse.Namespace) -> int:
    """Tell of each model its name, its labels, and what it was trained on and how well."""
    for name in sorted({file.parent.name for file in MODELS.glob("*/model.*")}):
        header = read_header(find_model(MODELS / name))
        print(f"{name}{' (default)' if name == DEFAULT_MODEL else ''}")
        print(f"    labels: {', '.join(labels_of(header))}")
        for fact, value in header.get("training", {}).items():
            told = ", ".join(f"{key} {part}" for key, part in value.items()) if isinstance(value, dict) else value
            print(f"    {fact}: {told}")
    return 0
