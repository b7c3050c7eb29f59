"""Questions about judges, constitutions and finished runs.

`bench/` measures judges and reward models on labelled pairs, `comparison/` lays people's and AI
feedback side by side, `whatif` and its neighbours say what other principles would have changed,
`fit_weights` fits their weights to people's labels, and `inverse_constitution/` proposes principles
from labelled pairs. `doctor` looks at the machine.
"""
