"""What a plan does, in words and as a graph.

`words` says what one planned step does, `rows` is the form in which the plan and a run's manifest
are read alike, `build` groups them into a `Flow`, and `plan` makes one from an experiment's file.
A new kind of step gets its words in `words`. How a `Flow` is shown stands in `rlaif.report`.
"""
