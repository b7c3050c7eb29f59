"""Training: from records to weights.

`methods/` has every method's keys, what it needs and what carries it out. `run` does a `TrainJob`,
`loop` is the one optimisation loop, `losses/` are pure functions of tensors, and `preference`,
`reward_model` and `policy_tasks` make losses of examples.
A new loss or method is a class in `methods/` and one row in `rlaif.config.methods`.
"""
