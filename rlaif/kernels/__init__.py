"""Tensors in, tensors out: the parts that must be fast.

Attention over packed rows, log-probabilities without logits, fused passes, batching, reward heads,
the choice of a device. Nothing here knows of text, judges or experiments.
A new reward head is a class in `heads` and one row of its table `KINDS`.
"""
