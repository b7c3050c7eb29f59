"""Engines: the only door to a model."""
