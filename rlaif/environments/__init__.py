"""Environments: what an episode of several turns is played with.

`base` is the protocol and the keys that all share, `play` the only caller of an environment, which
checks what it says. To add one: a module with a spec class that builds it, and its row in
`ENVIRONMENTS` of `config.environments`; outside the package `kind: package.module:Name`.
"""
