"""Feedback beside feedback: `rlaif compare`.

`gather` reads runs and files, `pairs` lays what every source says of the same pairs side by side,
`agree`, `people` and `policies` measure it, and `compute` makes the one result that the page, the
terminal and `--json` show.
"""
