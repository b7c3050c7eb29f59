"""Judges measured against labelled pairs: what `rlaif judge-bench` does."""
