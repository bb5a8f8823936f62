"""The real HTTP interface on a real port, over a backend in this process: no Ray, no model."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_documents import DocumentWriter
from clara_dist.distributed.serve_guard import ApiKeys
from clara_dist.distributed.serve_http import build_api
from clara_dist.distributed.serve_messages import Backend


@contextmanager
def serving(backend: Backend, keys: str = "", writer: DocumentWriter | None = None, **settings: Any) -> Iterator[str]:
    """Yields its URL."""
    config = ServeConfig(model="m", store="s", **settings)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(build_api(config, backend, ApiKeys(keys), writer), log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listener.close()
