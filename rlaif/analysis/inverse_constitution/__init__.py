"""Inverse constitutional AI (arXiv 2406.06560): from labelled pairs to principles."""
