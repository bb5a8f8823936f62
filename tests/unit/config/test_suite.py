from __future__ import annotations

from pathlib import Path

import pytest

from clara_dist.config.suite import read_suite, suite_names
from clara_dist.errors import ConfigError


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_suites_of_the_project_are_whole() -> None:
    assert suite_names() == ["demo", "paper-cr4"]
    for name in suite_names():
        suite = read_suite(name)
        assert "\n" not in suite.about
        for dataset, config in suite.evaluations().items():
            assert config.output == f"{suite.output}/{dataset}"
    paper = read_suite("paper-cr4").evaluations()
    assert list(paper) == ["hotpotqa", "musique", "2wikimultihopqa", "nq"]
    assert paper["hotpotqa"].published == {"joint STE, candidates, R@5": 0.9621}
    assert {config.top_k for config in paper.values()} == {5}


def test_a_data_set_wins_over_what_is_shared_and_overrides_over_both(tmp_path: Path) -> None:
    text = "{about: x, output: out, settings: {model: m, top_k: 3}, datasets: {a: {store: s, questions: q, top_k: 4}}}"
    path = write(tmp_path / "own.yaml", text)
    (config,) = read_suite(path).evaluations().values()
    assert (config.model, config.store, config.top_k, config.output) == ("m", "s", 4, "out/a")
    changed = read_suite(path, ["datasets.a.top_k=5", "settings.model=n", "output=other"])
    assert (changed.evaluations()["a"].top_k, changed.evaluations()["a"].model) == (5, "n")
    assert changed.evaluations()["a"].output == "other/a"


def test_what_is_wrong_names_the_data_set(tmp_path: Path) -> None:
    path = write(tmp_path / "own.yaml", "{about: x, output: out, datasets: {good: {}, bad: {store: s, tops: 3}}}")
    with pytest.raises(ConfigError, match=r"data set good .*\n.*model: Field required; store: Field required"):
        read_suite(path).evaluations()
    settings = ["settings={model: m, questions: q}", "datasets.good.store=s"]
    with pytest.raises(ConfigError, match=r"data set bad .*\n.*tops: Extra inputs are not permitted"):
        read_suite(path, settings).evaluations()
    with pytest.raises(ConfigError, match="the name of its directory"):
        read_suite(path, ["datasets={../up: {}}"]).evaluations()


def test_an_unknown_name_is_told_the_names(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="demo, paper-cr4, or the path of a YAML file"):
        read_suite(str(tmp_path / "absent.yaml"))
