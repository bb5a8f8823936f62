"""The page for people at ``/``. Imports no ray, no torch, no transformers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

# Only what came from this server runs, and nothing may put the page into a frame. `data:` is the empty icon.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
# path -> file, media type. They hold no secret, and the page is where a key is typed in.
PAGE_PATHS = {
    "/": ("index.html", "text/html"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/script.js": ("script.js", "text/javascript"),
}


def page_routes() -> APIRouter:
    """The router; the files are read once."""
    router = APIRouter(include_in_schema=False)
    for path, (name, media_type) in PAGE_PATHS.items():
        content = files("clara_dist.page").joinpath(name).read_bytes()
        router.add_api_route(path, _sender(content, media_type), methods=["GET"])
    return router


def _sender(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, media_type=f"{media_type}; charset=utf-8", headers=_HEADERS)

    return send
