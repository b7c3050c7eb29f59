"""Files that run an experiment on a cluster: `rlaif launch`.

`job` says what a job needs, from the plan of its experiment; `devices` counts its GPUs and finds
types that hold its steps. `slurm`, `kuberay` and `skypilot` each write the job as the text of one
file, and `targets` is the table of them, with the programs that take these files.
A new target is a module like these and a row in `targets`.
"""
