"""Judges: from completions to judgements."""
