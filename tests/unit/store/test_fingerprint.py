from __future__ import annotations

import pickle

import pytest

from clara_dist.errors import FingerprintMismatchError
from clara_dist.store import Fingerprint

A = Fingerprint({"base": "mistral@1", "compressor": "abc", "doc_max_tokens": "256"})


def test_equal_fields_match_in_any_order():
    same = Fingerprint(dict(reversed(A.fields.items())))
    A.require_match(same, "store", "model")
    assert A.digest == same.digest


@pytest.mark.parametrize("field", ["base", "compressor", "doc_max_tokens"])
def test_a_mismatch_names_only_the_differing_field_with_both_values(field: str):
    other = Fingerprint({**A.fields, field: "other-value"})
    assert other.digest != A.digest
    with pytest.raises(FingerprintMismatchError) as caught:
        A.require_match(other, "the store S", "the model")
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.what == f"the store S and the model do not belong together; they differ in: {field}"
    assert error.got == f"the model: {field} = other-value"
    assert error.expected == f"the store S: {field} = {A.fields[field]}"


def test_a_field_that_one_side_lacks_is_a_mismatch():
    with pytest.raises(FingerprintMismatchError, match="tokenizer"):
        A.require_match(Fingerprint({**A.fields, "tokenizer": "t"}), "store", "model")
    with pytest.raises(FingerprintMismatchError, match="base"):
        A.require_match(Fingerprint({k: v for k, v in A.fields.items() if k != "base"}), "store", "model")
