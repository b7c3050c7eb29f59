"""An experiment, from its file to its results.

`prepare` reads what a plan depends on, `plan/` unrolls the experiment into steps with hashes,
`steps/` runs each kind of step, `experiment` runs a plan and resumes it, `runs` reads a run folder,
`single_step` does one step on files, `prompt_generation/` has models write prompts.
"""
