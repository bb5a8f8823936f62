from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clara_dist.config import Role
from clara_dist.errors import ModelError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model.batch import Encoded, TextBatch
from clara_dist.model.clara import ClaraModel


def one_by_one(clara: ClaraModel, title: str, text: str) -> np.ndarray:
    """The plain road: one unpadded document, LoRA unmerged, fp32."""
    encoded = clara.tokenizer.encode_text(clara.tokenizer.document_text(title, text))
    with torch.no_grad():
        return clara.encode("compressor", TextBatch.from_ids([encoded.ids], 0)).memory_BMD[0].numpy()


def test_bucketed_equals_one_by_one_in_input_order(
    clara: ClaraModel, tiny_clara_dir: Path, documents: list[tuple[str, str]]
) -> None:
    expected_SMD = np.stack([one_by_one(clara, *document) for document in documents])
    compressor = DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir), max_batch_tokens=120)
    compressed = compressor.compress(documents)
    assert compressed.memory_SMD.dtype == np.float16
    # fp16 rounding is at most 2^-11 of the value; before it, merged and bucketed differ by rounding in fp32 alone.
    np.testing.assert_allclose(compressed.memory_SMD, expected_SMD, rtol=2**-11, atol=1e-5)
    encoded = [clara.tokenizer.encode_text(text) for _, text in documents]
    np.testing.assert_array_equal(compressed.n_tokens_S, [e.n_tokens for e in encoded])
    np.testing.assert_array_equal(compressed.truncated_S, [e.truncated for e in encoded])
    assert 0 < compressed.truncated_S.sum() < len(documents)


def test_buckets_change_nothing_but_rounding(tiny_clara_dir: Path, documents: list[tuple[str, str]]) -> None:
    """The same merged weights, before rounding to fp16."""
    compressor = DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir), max_batch_tokens=16_384)
    seen: list[torch.Tensor] = []
    encode = compressor.clara.encode

    def recording(role: Role, batch: TextBatch) -> Encoded:
        encoded = encode(role, batch)
        seen.append(encoded.memory_BMD)
        return encoded

    compressor.clara.encode = recording  # type: ignore[method-assign]
    compressor.compress(documents)
    assert len(seen) == 1
    for document in documents:
        compressor.compress([document])
    bucketed = seen[0][np.argsort(compressor_order(compressor, documents))]
    torch.testing.assert_close(bucketed, torch.cat(seen[1:]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_padded(tiny_clara_dir: Path, documents: list[tuple[str, str]], attention: str) -> None:
    """What flash attention is given, run by implementations that make a mask of it."""
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    assert not clara.packs
    clara.base.set_attn_implementation(attention)
    compressor = DocumentCompressor(clara, max_batch_tokens=120, packed=True)
    encoded = compressor.tokenize(documents)
    groups = compressor.batches(encoded)
    assert all(sum(len(encoded[row].ids) for row in rows) <= 120 for rows in groups)
    assert [row for rows in groups for row in rows] == list(range(len(documents)))
    with torch.inference_mode():
        packed_SMD = torch.cat([compressor.forward([encoded[row].ids for row in rows]) for rows in groups])
        compressor.packed = False
        alone_SMD = torch.cat([compressor.forward([e.ids]) for e in encoded])
    torch.testing.assert_close(packed_SMD, alone_SMD, rtol=0, atol=1e-5)


def test_memories_are_written_where_the_caller_wants_them(
    tiny_clara_dir: Path, documents: list[tuple[str, str]]
) -> None:
    compressor = DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir), max_batch_tokens=120)
    room = np.full((len(documents) + 2, 3, 32), 7, np.float16)
    n_batches = compressor.encode(compressor.tokenize(documents), room[1:-1])
    assert n_batches == len(compressor.batches(compressor.tokenize(documents))) > 3
    assert (room[[0, -1]] == 7).all()
    np.testing.assert_array_equal(room[1:-1], compressor.compress(documents).memory_SMD)


def compressor_order(compressor: DocumentCompressor, documents: list[tuple[str, str]]) -> list[int]:
    tokenizer = compressor.clara.tokenizer
    lengths = [len(tokenizer.encode_text(tokenizer.document_text(*d)).ids) for d in documents]
    return sorted(range(len(lengths)), key=lambda i: -lengths[i])


def test_a_component_beyond_fp16_is_infinite_not_clipped(tiny_clara_dir: Path) -> None:
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    with torch.no_grad():
        clara.base.base_model.norm.weight.fill_(1e6)
    assert np.isinf(DocumentCompressor(clara).compress([("", "The island")]).memory_SMD).any()


def test_no_documents(tiny_clara_dir: Path) -> None:
    assert DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir)).compress([]).memory_SMD.shape == (0, 3, 32)


def test_afterwards_the_model_only_compresses(tiny_clara_dir: Path) -> None:
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    DocumentCompressor(clara)
    with pytest.raises(ModelError, match="query_reasoner"):
        Reasoner(clara).query(["Who?"])
