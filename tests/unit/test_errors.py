"""Errors say what, got, expected and what to do, and cross process boundaries whole."""

from __future__ import annotations

import inspect
import pickle

import pytest

from clara_dist import errors
from clara_dist.errors import ClaraError, ModelError, OverloadedError, RequestError, StoreError

ALL = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, ClaraError)]


def test_message_has_its_parts_in_order() -> None:
    error = StoreError("no store here", got="/a", expected="/b", hint="look in /b")
    assert str(error) == "no store here\n  got: /a\n  expected: /b\n  to do: look in /b"
    assert str(ModelError("only this")) == "only this"


def test_empty_and_false_values_are_shown() -> None:
    assert str(ModelError("x", got=0, expected="")) == "x\n  got: 0\n  expected: "


@pytest.mark.parametrize("cls", ALL, ids=lambda cls: cls.__name__)
def test_pickles_without_loss(cls: type[ClaraError]) -> None:
    error = cls("what", got=object, expected=[1, 2], hint="do")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is cls
    assert (str(copy), copy.got, copy.expected, copy.hint) == (str(error), error.got, error.expected, error.hint)


def test_every_class_has_a_sentence() -> None:
    assert all(cls.__doc__ and cls.__doc__.endswith((".", ".\n    ")) for cls in ALL)


def test_http_statuses() -> None:
    assert (RequestError.status, OverloadedError.status) == (400, 429)
