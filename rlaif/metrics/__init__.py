"""Numbers that a person reads, with their intervals. Pure functions.

Agreement, calibration, biases, win rates, rankings, alarms. `figure_rules` says by a metric's name
how its interval is computed.
A new metric is a function in `metrics`, and a row of `RULES` in `figure_rules` where its interval
needs another rule; a new alarm is a function in `diagnostics` and a row of its table.
"""
