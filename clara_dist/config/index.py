"""Building approximate indexes."""

from __future__ import annotations

from pydantic import Field, model_validator

from clara_dist.config.base import Config


class IndexConfig(Config):
    """An index of a store version.

    Attributes:
        store: Memory store; the index is written into its folder ``index/``.
        store_version: Version to index; None is the newest.
        factory: FAISS index-factory string, of a projection and a quantiser; None keeps that of the store's last index,
            or is ``PCA<a twelfth of the memory's size, at most 512>,SQ8``.
            An inverted file (IVF) searches an eighth of its lists.
        rescored: Rows whose exact score is computed, a query; None is a twentieth of the rows, at least 40 and at most
            400. A query for k documents never rescores fewer than 2 k.
        retrain: Train the codec anew, and encode all rows again: after the corpus has changed much.
        k: Documents a query when recall is measured.
        queries: How many queries it is measured with.
        min_recall: An index that finds less than this of what an exact search finds is not used.
        model: Model directory; with ``questions``, recall is measured with its query vectors.
        questions: Questions as ``clara-dist eval`` reads them; None measures with memories of the store.
        threads: torch and FAISS threads.
    """

    store: str
    store_version: int | None = Field(None, ge=1)
    factory: str | None = Field(None, min_length=1, max_length=200)
    rescored: int | None = Field(None, ge=1)
    retrain: bool = False
    k: int = Field(20, ge=1)
    queries: int = Field(256, ge=1)
    min_recall: float = Field(0.99, ge=0, le=1)
    model: str | None = None
    questions: str | None = None
    threads: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _questions_need_a_model(self) -> IndexConfig:
        if (self.model is None) != (self.questions is None):
            raise ValueError("model and questions go together")
        return self
