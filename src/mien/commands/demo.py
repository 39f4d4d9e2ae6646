"""`mien demo`: a page in the browser, served from this computer."""

import argparse
import ipaddress
import logging
import sys
from functools import partial
from pathlib import Path

from mien.classifier import EXPLAINED_MODEL
from mien.commands import terminal
from mien.commands.options import add_reading_arguments, count, reading_options
from mien.commands.read import begin
from mien.demo.looking import Looking
from mien.demo.serve import serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--port",
        type=partial(count, least=0, most=65_535),
        default=7860,
        metavar="N",
        help="0 is any free one (default: 7860)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="the address to listen on; 0.0.0.0 lets other computers in (default: 127.0.0.1, this one only)",
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name under which the page is reached, such as a proxy's; may be given several times",
    )
    add_reading_arguments(parser, "--model", "--trust", "--landmarker", "--action-units")
    parser.add_argument(
        "--explain",
        metavar="MODEL",
        default=EXPLAINED_MODEL,
        help=f"the model whose patches and attention are drawn, with a .safetensors in it (default: {EXPLAINED_MODEL})",
    )


def run(args: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    begin()
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)

    def make(folder: Path):
        terminal.begin("opening the models")
        from mien.demo.layout import build_page, examples
        from mien.reader import Reader

        reader = Reader.from_pretrained(**reading_options(args))
        return build_page(reader, Looking(args.explain, args.trust), examples(folder))

    def started(address: str) -> None:
        print(f"mien demo: {address} (Ctrl-C ends it)", flush=True)
        if not _is_loopback(args.host):
            print(
                "mien: whoever reaches this computer can use the page, without a password and unencrypted; "
                "a browser lends its camera to 127.0.0.1 and to https only",
                file=sys.stderr,
            )

    terminal.begin("starting the page")
    serve(make, args.host, args.port, started, args.allow_host)
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
