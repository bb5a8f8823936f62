"""Corpora of any supported format as documents: plan the work in units, scan them for duplicate ids, read them.

``plan_units`` -> ``scan_unit`` on each (in parallel) -> ``find_duplicates`` -> ``read_unit`` on each (in parallel).
"""

from clara_dist.data.corpus.plan import plan_units
from clara_dist.data.corpus.read import read_unit
from clara_dist.data.corpus.scan import UnitDuplicates, UnitScan, find_duplicates, reject_line, scan_unit
from clara_dist.data.corpus.units import CorpusUnit, corpus_fingerprint

__all__ = [
    "CorpusUnit",
    "UnitDuplicates",
    "UnitScan",
    "corpus_fingerprint",
    "find_duplicates",
    "plan_units",
    "read_unit",
    "reject_line",
    "scan_unit",
]
