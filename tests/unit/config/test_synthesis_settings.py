from __future__ import annotations

from typing import Any

import pytest

from clara_dist.config import load_config
from clara_dist.config.synthesize import EndpointConfig, SynthesisConfig
from clara_dist.errors import ConfigError


def endpoint(**settings: Any) -> EndpointConfig:
    return EndpointConfig.model_validate({"base_url": "http://127.0.0.1:8000/v1", "model": "m", **settings})


def test_the_base_url_is_taken_without_its_last_slash() -> None:
    assert endpoint(base_url="https://example.org/v1/").base_url == "https://example.org/v1"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "example.org/v1"}, "expected http"),
        ({"base_url": "ftp://example.org/v1"}, "expected http"),
        ({"base_url": "http:///v1"}, "expected http"),
        ({"base_url": "http://h:99999/v1"}, "[Pp]ort"),
        ({"base_url": "https://user:pw@example.org/v1"}, "no user, password"),
        ({"base_url": "https://example.org/v1?key=1"}, "no user, password or query"),
        ({"extra_body": {"stream": True, "seed": 1}}, "stream cannot be set here"),
        ({"model": ""}, "at least 1"),
        ({"max_concurrency": 0}, "greater than or equal to 1"),
        ({"api_key": "sk-x"}, "Extra inputs"),
    ],
)
def test_wrong_endpoints_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        endpoint(**settings)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["n_simple=0", "n_complex=0", "n_paraphrases=0"], "nothing to write"),
        (["simple_prompt='Ask {n} things'"], "simple_prompt lacks {document}"),
        (["paraphrase_prompt=Again"], "paraphrase_prompt lacks {document} and {n}"),
        (["check_prompt='{document}'"], "check_prompt lacks {material}"),
        (["max_rounds=-1"], "greater than or equal to 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(SynthesisConfig, overrides=overrides)
