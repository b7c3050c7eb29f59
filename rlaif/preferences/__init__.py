"""From judgements to preferences: the idea of the whole.

`aggregate` makes one number of a candidate's judgements, `strategies` choose the pairs, `pairing`
puts both together for one prompt, `labels` says who prefers which of two given answers. Pure
functions.
A new pairing strategy is a function and one row of `STRATEGIES` in `strategies`.
"""
