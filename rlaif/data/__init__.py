"""People's files, in and out.

Readers of labelled pairs (`readers/`, one module for each format), prompts and their sources,
filters and near-duplicates, dataset folders and their cards.
A new format is one module in `readers/` and one row of its table `FORMATS`.
"""
