"""Loading of frozen configurations: YAML, then dotted overrides, then validation. Imports no torch and no ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from clara_dist.errors import ConfigError


class _Yaml(yaml.SafeLoader):
    """YAML 1.1 without its numbers to the base of 60: ``1:8`` stays as it is, and does not become 68."""

    def construct_int_or_text(self, node: yaml.ScalarNode) -> int | str:
        return str(node.value) if ":" in node.value else int(self.construct_yaml_int(node))


_Yaml.add_constructor("tag:yaml.org,2002:int", _Yaml.construct_int_or_text)


def _read_yaml(text: str) -> Any:
    return yaml.load(text, _Yaml)  # noqa: S506  it is a SafeLoader


class Config(BaseModel):
    """A configuration: immutable, and with no field that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_yaml(self) -> str:
        """The resolved configuration as YAML, fit for `load_config`."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


ConfigT = TypeVar("ConfigT", bound=BaseModel)


def load_config(cls: type[ConfigT], path: str | Path | None = None, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a configuration.

    Args:
        cls: The configuration class.
        path: A YAML file; None starts from the defaults. With ``extends: OTHER.yaml`` at its top, a path beside it, it
            holds only what differs from that file: mappings are merged, everything else is replaced.
        overrides: ``a.b.c=value`` in order; values are read as YAML, ``stages.0.steps=5`` reaches into lists.

    Raises:
        ConfigError: The file is missing or no YAML mapping, an override is malformed, or a field is unknown or wrong;
            the message lists every wrong field.
    """
    tree: dict[str, Any] = {} if path is None else _read_file(Path(path), ())
    for override in overrides:
        _apply_override(tree, override)
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or '(top)'}: {e['msg']}" for e in error.errors())
        raise ConfigError(
            f"invalid {cls.__name__}" + (f" in {path}" if path else ""),
            got=problems,
            hint=f"the fields are: {', '.join(cls.model_fields)}",
        ) from None


def _read_file(path: Path, extending: tuple[Path, ...]) -> dict[str, Any]:
    """The mapping in a file, over that of the file that it extends."""
    if path in extending:
        raise ConfigError("configuration files extend each other in a circle", got=" -> ".join(map(str, extending)))
    try:
        tree = _read_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {path}", got=error.strerror) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML", got=error) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a YAML mapping", got=type(tree).__name__)
    other = tree.pop("extends", None)
    return tree if other is None else _merge(_read_file(path.parent / str(other), (*extending, path)), tree)


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(both.get(key), dict)
        both[key] = _merge(both[key], value) if nested else value
    return both


def _apply_override(tree: dict[str, Any], override: str) -> None:
    key, separator, raw = override.partition("=")
    if not separator or not key:
        raise ConfigError("an override must look like a.b=value", got=override)
    try:
        value = _read_yaml(raw)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of override {key!r} is not valid YAML", got=raw) from error
    node: Any = tree
    parts = key.split(".")
    try:
        for part in parts[:-1]:
            node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
        if isinstance(node, list):
            node[int(parts[-1])] = value
        elif isinstance(node, dict):
            node[parts[-1]] = value
        else:
            raise TypeError
    except (ValueError, IndexError, TypeError, AttributeError):
        raise ConfigError(f"override {override!r} points into something that is no mapping or list entry") from None
