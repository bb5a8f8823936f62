from __future__ import annotations

import numpy as np
import pytest
import torch

from clara_dist.errors import TokenizationError
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model.batch import TextBatch
from clara_dist.model.clara import ClaraModel


def test_batched_equals_one_by_one(clara: ClaraModel) -> None:
    questions = ["Who built the lighthouse?", "rain", "Ada Tolliver, an engineer.", "rain rain"]
    expected = []
    for question in questions:
        ids = clara.tokenizer.encode_text(question).ids
        with torch.no_grad():
            expected.append(clara.encode("query_reasoner", TextBatch.from_ids([ids], 0)).memory_BMD.flatten().numpy())
    query_BX = Reasoner(clara, max_batch_tokens=20).query(questions)
    assert query_BX.dtype == np.float32
    np.testing.assert_allclose(query_BX, np.stack(expected), rtol=0, atol=1e-5)


def test_a_question_that_would_be_cut_is_refused(clara: ClaraModel) -> None:
    with pytest.raises(TokenizationError, match="too long for this model"):
        Reasoner(clara).query(["rain", "rain " * 25])
