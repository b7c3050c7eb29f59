"""A constitution: the principles by which answers are judged.

`model` reads it from YAML, `rules` has the checks that a program decides, `textstats` what those
checks measure, `lint` what is doubtful in a file that loads, `edit` writes weights back into one.
A new rule is a function in `rules` and one row of its table `RULES`.
"""
