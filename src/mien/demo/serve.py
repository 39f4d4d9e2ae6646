"""Serve the page from this computer, with everything switched off that would ask another one for something."""

import importlib
import os
import socket
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

from mien.demo.guard import Guard
from mien.errors import MienError, require

POLICY = "; ".join(
    (
        "default-src 'self' data: blob:",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:",  # gradio's page is made of them
        "style-src 'self' 'unsafe-inline'",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
"""The page's content security policy: nothing comes from anywhere else, whatever gradio's scripts may try."""

LARGEST_FILE = "500mb"


def serve(
    make: Callable[[Path], object],
    host: str,
    port: int,
    started: Callable[[str], None],
    names: Collection[str] = (),
) -> None:
    """Serve a page until a signal ends it. What gradio writes lies in a folder that only this user can read, and is
    gone at the end.

    make: that folder -> the page, a gradio.Blocks.
    host, port: where to listen; port 0 is any free one.
    started: called with the address, once it answers.
    names: further host names that lead here, as for `Guard`.

    Raises MienError where the port cannot be had, and MissingExtra without gradio.
    """
    with _listen(host, port) as listening, tempfile.TemporaryDirectory(prefix="mien-demo-") as folder:
        os.environ.update(
            GRADIO_TEMP_DIR=os.path.realpath(folder),
            GRADIO_ANALYTICS_ENABLED="False",
            HF_HUB_DISABLE_TELEMETRY="1",
        )
        gradio = require("gradio", "demo")
        uvicorn = importlib.import_module("uvicorn")  # which gradio brings
        app = _app(gradio, make(Path(folder)), host, names)
        config = uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, proxy_headers=False)
        address = f"[{host}]" if ":" in host else host
        started(f"http://{address}:{listening.getsockname()[1]}/")
        with suppress(KeyboardInterrupt):  # the way to end it
            uvicorn.Server(config).run([listening])


def _app(gradio, page, host: str, names: Collection[str]):
    fastapi = importlib.import_module("fastapi")
    downloads = importlib.import_module("gradio.processing_utils")
    downloads.ssrf_protected_download = downloads.save_url_to_cache = _refuse
    downloads.async_ssrf_protected_download = _refuse_later
    style = importlib.import_module("mien.demo.style")
    app = fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(_Headers)
    app.add_middleware(Guard, host=host, names=names)
    return gradio.mount_gradio_app(
        app,
        page,
        path="/",
        app_kwargs={"openapi_url": None},
        footer_links=[],
        run_history=False,  # it would keep what was read in the browser
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        max_file_size=LARGEST_FILE,
        theme=style.theme(gradio),
        css=style.STYLE,
        head=f"<style>{style.NARROW}</style><script>{style.NAMED}</script>",
    )


def _refuse(url: str, *_, **__):
    raise MienError(f"{url}: not a file that was uploaded")


async def _refuse_later(url: str, *_, **__):
    _refuse(url)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise MienError(f"{host} port {port}: {reason}; --port 0 takes any free one") from error


class _Headers:
    """An ASGI app that adds POLICY to every answer."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def answer(message):
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        await self.app(scope, receive, answer if scope["type"] == "http" else send)
