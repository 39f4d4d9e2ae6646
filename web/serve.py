"""Serve the static page from this computer, isolated, so that it may use threads.

python web/serve.py [FOLDER] [--port N]
"""

import argparse
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Isolated(SimpleHTTPRequestHandler):
    """Hands out a folder, with the headers that isolate its pages from others."""

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve the static page from this computer, with threads.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).with_name("dist"), metavar="FOLDER")
    parser.add_argument("--port", type=int, default=8000, metavar="N")
    arguments = parser.parse_args()
    if not (arguments.folder / "index.html").is_file():
        parser.error(f"{arguments.folder}: there is no page; python web/build.py makes one")
    with ThreadingHTTPServer(("127.0.0.1", arguments.port), partial(Isolated, directory=arguments.folder)) as server:
        print(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
