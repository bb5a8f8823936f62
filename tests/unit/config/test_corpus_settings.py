from __future__ import annotations

from typing import Any

import pytest

from clara_dist.config import load_config
from clara_dist.config.compress import CompressConfig
from clara_dist.errors import ConfigError

NEEDED = ["corpus=[c]", "model=m", "store=s"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("metadata_fields=a, b=c.d,url", {"a": "a", "b": "c.d", "url": "url"}),
        ('metadata_fields={"a": "x"}', {"a": "x"}),
        ('metadata_fields=["a", "b=c"]', {"a": "a", "b": "c"}),
    ],
)
def test_fields_are_written_as_on_a_command_line_or_as_a_mapping(override: str, expected: dict[str, str]) -> None:
    config = load_config(CompressConfig, None, [*NEEDED, override])
    assert config.metadata_fields == expected
    assert CompressConfig.model_validate(config.model_dump()) == config


def test_columns_are_written_with_their_types() -> None:
    config = load_config(CompressConfig, None, [*NEEDED, 'metadata_columns=["year:int64", "lang:string"]'])
    assert config.metadata_columns == {"year": "int64", "lang": "string"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("metadata_fields=a,", "is not NAME=VALUE"),
        ('metadata_columns=["year:int"]', "metadata_columns.year"),
        ('metadata_columns=["year"]', "metadata_columns.year"),
        ("on_duplicate=newest", "on_duplicate"),
        ("max_rejects=-1", "max_rejects"),
    ],
)
def test_what_is_none_of_it_is_told(override: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(CompressConfig, None, [*NEEDED, override])
