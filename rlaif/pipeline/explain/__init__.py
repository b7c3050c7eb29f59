"""What a plan does, in words and as a graph.

`words` says what one planned step does, `rows` is the form in which the plan and a run's manifest
are read alike, `groups` are those of one step of the file, `build` makes a `Flow` of them, and
`plan` and `run` do so for an experiment's file and a run folder. `facts` is what stands beside.
A new kind of step gets its words in `words`. How a `Flow` is shown stands in `rlaif.report`.
"""
