"""Models on a Ray cluster: `rlaif run EXPERIMENT --executor ray`.

`engine` is an engine whose batches actors compute, and `actor` what runs in one of them; `dealing`
hands calls out to actors and hands them out again when they are lost. `training` trains by Ray
Train with the worker of `rlaif.train`. `executor` connects and puts these together.
All else stays in the run's own process: plan, judges, store, budget and remote models.
"""
