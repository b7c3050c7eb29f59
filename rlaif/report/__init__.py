"""What a person reads: the page of a run, of a benchmark, and tables for a terminal.

Functions of values that other rooms have computed. Nothing is measured here and no model is asked.
A new section is a function in `build` and a block of `report.html.j2`.
"""
