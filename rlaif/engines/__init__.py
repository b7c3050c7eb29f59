"""The only door to a model.

`base` is the protocol: requests in, results out, in batches that a resumed run lays out again.
`local/` computes in this process, `remote/` asks servers, `vllm/` has vLLM in its charge, and
`fake` answers from a script.
A new engine is one module with `load` and one row of `ENGINES` in `config.models`.
"""
