"""A suite: several data sets evaluated alike, under one name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from clara_dist.config.base import Config, load_config
from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.errors import ConfigError

_SUITES = Path(__file__).with_name("suites")


class SuiteConfig(Config):
    """Data sets and what their evaluations share.

    Attributes:
        about: One line, for people.
        output: Directory; each data set has a directory of its own in it.
        settings: Of every data set, see `EvaluateConfig`.
        datasets: By name: what differs from ``settings``.
    """

    about: str
    output: str
    settings: dict[str, Any] = Field(default_factory=dict)
    datasets: dict[str, dict[str, Any]] = Field(min_length=1)

    def evaluations(self) -> dict[str, EvaluateConfig]:
        """The evaluation of each data set.

        Raises:
            ConfigError: A setting is unknown, wrong or missing; the message names the data set.
        """
        found = {}
        for name, own in self.datasets.items():
            if Path(name).name != name:
                raise ConfigError("a data set's name is the name of its directory", got=name)
            settings = {**self.settings, **own, "output": f"{self.output}/{name}"}
            try:
                found[name] = EvaluateConfig.model_validate(settings)
            except ValidationError as error:
                problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
                raise ConfigError(
                    f"the data set {name} of the suite cannot be evaluated",
                    got=problems,
                    hint=f"the fields are: {', '.join(EvaluateConfig.model_fields)}",
                ) from None
        return found


def suite_names() -> list[str]:
    """Of the suites that come with the project."""
    return sorted(path.stem for path in _SUITES.glob("*.yaml"))


def read_suite(name: str, overrides: Sequence[str] = ()) -> SuiteConfig:
    """A suite by its name, or by the path of a YAML file; overrides as of `load_config`.

    Raises:
        ConfigError: There is no such suite, or it is wrong.
    """
    if name in suite_names():
        return load_config(SuiteConfig, _SUITES / f"{name}.yaml", overrides)
    if not Path(name).is_file():
        raise ConfigError(
            "there is no such suite", got=name, expected=f"{', '.join(suite_names())}, or the path of a YAML file"
        )
    return load_config(SuiteConfig, name, overrides)
