from __future__ import annotations

import numpy as np
import pytest

from clara_dist.data.order import ExampleOrder
from clara_dist.errors import CheckpointError, DataError


def test_every_epoch_holds_every_example_once_and_is_another_permutation() -> None:
    order = ExampleOrder(n=10, seed=3)
    stream = np.concatenate([order.batch(step, 4) for step in range(15)])  # 60 = 6 epochs, across their borders
    epochs = stream.reshape(6, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 6


def test_the_order_is_pinned() -> None:
    # A run must resume with the same order under another version of numpy, on another machine.
    assert ExampleOrder(n=8, seed=0).batch(0, 8).tolist() == [3, 2, 1, 6, 0, 7, 4, 5]
    assert ExampleOrder(n=8, seed=1).batch(0, 8).tolist() != ExampleOrder(n=8, seed=0).batch(0, 8).tolist()


def test_a_step_needs_no_history() -> None:
    walked = ExampleOrder(n=1000, seed=7)
    history = [walked.batch(step, 64) for step in range(40)]
    assert (ExampleOrder(n=1000, seed=7).batch(39, 64) == history[39]).all()


def test_the_batch_size_cuts_the_same_sequence_differently() -> None:
    order = ExampleOrder(n=9, seed=2)
    assert np.concatenate([order.batch(0, 6), order.batch(1, 6)]).tolist() == order.batch(0, 12).tolist()


def test_without_shuffling_it_is_the_order_of_the_file() -> None:
    order = ExampleOrder(n=3, shuffle=False)
    assert order.batch(1, 4).tolist() == [1, 2, 0, 1]
    assert ExampleOrder(n=3, shuffle=False).batch(0, 7).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_resuming_with_other_examples_is_refused_by_name() -> None:
    order = ExampleOrder(n=5, seed=1, fingerprint="abc")
    order.require_match(order.state())
    with pytest.raises(CheckpointError) as caught:
        order.require_match({"n": 5, "seed": 2, "shuffle": True, "fingerprint": "xyz"})
    assert "(seed, fingerprint)" in caught.value.what
    assert caught.value.got == "seed=1, fingerprint=abc"
    assert caught.value.expected == "seed=2, fingerprint=xyz"


def test_what_cannot_be_ordered_is_refused() -> None:
    with pytest.raises(DataError, match="no examples"):
        ExampleOrder(n=0)
    with pytest.raises(DataError, match="must not be negative"):
        ExampleOrder(n=1, seed=-1)
