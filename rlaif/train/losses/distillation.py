"""Losses of a student that is to become like its teacher, on texts that the student has written.

Log-probabilities are natural and in fp32: bf16 ones can make a divergence negative. Gradients are
written out: where teacher and student agree they are exactly 0, and rounding gives an optimiser
that divides by their size nothing to step on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def teacher_advantages(
    student: Tensor, teacher: Tensor, lengths: Sequence[int], gamma: float = 0.0
) -> Tensor:
    """(N,) advantages of sampled tokens: log T - log S, how much likelier the teacher finds each
    than the student that sampled it. Its mean is minus the KL from teacher to student.

    student, teacher (N,) log-probs of the tokens of answers with these lengths. With `gamma` above
    0 a token also gets what comes after it in its answer: the sum over k >= t of gamma^(k-t) A_k.
    """
    advantages = teacher - student
    if gamma == 0.0:
        return advantages
    found = []
    for part in torch.split(advantages, list(lengths)):
        later = part.new_zeros(())
        sums = []
        for own in part.flip(0):
            later = own + gamma * later
            sums.append(later)
        found += sums[::-1]
    return torch.stack(found) if found else advantages


def full_kl(first: Tensor, second: Tensor) -> Tensor:
    """(N,) KL from the second to the first distribution, sum of p (log p - log q), in nats. first,
    second (N, V) log-probs over the whole vocabulary."""
    return (first.exp() * (first - second)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """(N,) KL(S || T) in nats, differentiable in the student's (N, V) log-probs as those of a
    softmax."""
    value = full_kl(student.detach(), teacher)
    gradient = student.detach().exp() * (student.detach() - teacher)
    return _with_gradient(value, student, gradient)


def jsd(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """(N,) the generalised Jensen-Shannon divergence in nats (arXiv 2306.13649, eq. 1):
    beta KL(T || M) + (1 - beta) KL(S || M), M = beta T + (1 - beta) S, for beta between 0 and 1.
    Differentiable in the student's (N, V) log-probs as those of a softmax.

    At both ends it tends to 0 and not to a KL.
    """
    own = student.detach()
    gap = teacher - own
    # log M from the larger of the two, so that no exponential overflows: log S + log(1 + beta
    # (T/S - 1)) where S is larger. Where they are equal it is exactly log S.
    share = torch.where(gap > 0, 1.0 - beta, beta)
    mixture = torch.maximum(own, teacher) + torch.log1p(share * torch.expm1(-gap.abs()))
    value = beta * full_kl(teacher, mixture) + (1 - beta) * full_kl(own, mixture)
    # What M changes by cancels: beta T / M + (1 - beta) S / M is 1.
    gradient = (1 - beta) * own.exp() * (own - mixture)
    return _with_gradient(value.clamp(min=0.0), student, gradient)


def _with_gradient(value: Tensor, logprobs: Tensor, gradient: Tensor) -> Tensor:
    """`value` (N,), whose gradient in `logprobs` (N, V) is `gradient` (N, V)."""
    carrier = (logprobs * gradient.detach()).sum(-1)
    return value.detach() + carrier - carrier.detach()
