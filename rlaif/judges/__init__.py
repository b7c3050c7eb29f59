"""Judges: from completions to judgements.

A judge never touches a model. It says what to ask (`calls`) and reads the answers (`read`), both
pure; the pipeline asks. `base` is the protocol, `common` and `questions` are what judges share,
`parsing` and its neighbours read what models write, `templates` fills the prompts.
A new kind is one module and one row of `JUDGES` in `build`.
"""
