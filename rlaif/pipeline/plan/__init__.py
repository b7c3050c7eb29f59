"""The plan: an experiment unrolled into steps whose hashes are known before anything runs.

A step's hash covers what can change its output and nothing else, so a finished step is found again
after an edit that does not concern it, and an edit redoes exactly what it must. Pure: nothing is
read here but what `PlanInputs` holds.
"""
