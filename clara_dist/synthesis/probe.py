"""A first look at an endpoint, before a cluster works for it."""

from __future__ import annotations

from collections.abc import Mapping

import httpx

from clara_dist.config.serve import is_loopback
from clara_dist.config.synthesize import EndpointConfig
from clara_dist.errors import EndpointError
from clara_dist.synthesis.client import read_api_key


def require_endpoint(config: EndpointConfig, environ: Mapping[str, str]) -> None:
    """Ask for the list of models, which costs nothing. Endpoints without one pass: the first document will tell.

    Raises:
        EndpointError: Nothing answers there, or it refuses the key.
        ConfigError: The API key cannot be read or is none.
    """
    key = read_api_key(config, environ)
    try:
        response = httpx.get(
            f"{config.base_url}/models",
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=config.timeout_s,
            trust_env=not is_loopback(httpx.URL(config.base_url).host),
        )
    except httpx.HTTPError as error:
        raise EndpointError(
            f"{config.base_url} cannot be reached",
            got=f"{type(error).__name__}: {error}",
            hint="check base_url, and that the server is up",
        ) from error
    if response.status_code in (401, 403):
        raise EndpointError(
            f"{config.base_url} refuses the API key" if key else f"{config.base_url} wants an API key",
            got=f"status {response.status_code}",
            hint=f"set {config.api_key_file or config.api_key_env} to a key of this endpoint",
        )
