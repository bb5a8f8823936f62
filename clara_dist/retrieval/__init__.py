"""Search over a memory store: exact, in the query's own maths."""

from clara_dist.retrieval.bank import MemoryBank
from clara_dist.retrieval.search import ExactSearcher, SearchResult, merge_top_k

__all__ = ["ExactSearcher", "MemoryBank", "SearchResult", "merge_top_k"]
