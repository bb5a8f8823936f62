"""Corpora and examples: readers, validation, resumable order; the demo world."""
