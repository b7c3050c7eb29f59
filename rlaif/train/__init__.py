"""Training: from records to weights.

`run` starts a training, `loop` is the one optimisation loop, `losses/` are pure functions of
tensors, and each family of methods is a task of the loop: `preference`, `kto`, `sft`,
`reward_model`, `policy_tasks`.
A new loss is a function in `losses/` and one row of its task's table.
"""
