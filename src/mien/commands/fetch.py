"""`mien fetch`: get a model that is not in the package, and keep it only if it is the one that its makers named."""

import argparse
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from mien.classifier import MODELS, fetched_models, pinned_models
from mien.errors import MienError, ReadError
from mien.faces.fetch import fetch
from mien.faces.sources import is_address

SECONDS = 600.0
"""For one file."""

MAX_BYTES = 2**31


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(misuse=parser.error)
    parser.add_argument("name", nargs="+", metavar="NAME", help=f"of these: {', '.join(pinned_models())}")
    parser.add_argument(
        "--from",
        dest="base",
        metavar="BASE",
        default=os.environ.get("MIEN_BASE"),
        help="a folder, or an http:// or https:// address, in which each model is a folder (default: $MIEN_BASE)",
    )


def run(args: argparse.Namespace) -> int:
    """Say where each model is; 1 if one could not be had, or is another than the one whose digest mien knows."""
    pinned = pinned_models()
    for name in args.name:
        if name not in pinned:
            args.misuse(f"{name}: no model to be fetched; there are {', '.join(pinned)}")
    for name in args.name:
        if (MODELS / name).is_dir():
            print(f"{MODELS / name}: came with mien")
            continue
        if not (folder := fetched_models() / name).is_dir():
            if not args.base:
                args.misuse("from where? --from BASE or $MIEN_BASE names a folder or an address")
            bring(name, pinned[name], args.base, folder)
        print(folder)
    return 0


def bring(name: str, digests: dict[str, str], base: str, folder: Path) -> None:
    """Make the folder of a model whole, or not at all.

    digests: the SHA-256 of each file, by its name. Raises MienError where a file is not to be had or is another.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as draft:
        for file, digest in digests.items():
            source = f"{base.rstrip('/')}/{name}/{file}"
            data = fetch(source, max_bytes=MAX_BYTES, seconds=SECONDS) if is_address(base) else _read(source)
            if (found := hashlib.sha256(data).hexdigest()) != digest:
                raise MienError(f"{source}: not kept: its SHA-256 is {found}, and not {digest}")
            Path(draft, file).write_bytes(data)
        shutil.copytree(draft, whole := folder.with_name(f".{name}.whole"), dirs_exist_ok=True)
        os.replace(whole, folder)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ReadError(path, (error.strerror or str(error)).lower()) from error
