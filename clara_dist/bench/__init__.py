"""Measurements that a user can repeat: what this machine does, against a named baseline in the same run."""
