"""Compress documents, reason over questions, generate answers: the trained model at work. No cluster code."""
