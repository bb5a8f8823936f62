"""Retrievers of other frameworks over a clara_dist server. Each imports its framework: an extra of the same name."""
