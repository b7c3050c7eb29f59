"""Sampling from the policy in training by several processes (`rlaif.train.parallel`).

The first rank alone has the store and asks the judges. While it does, the others follow it: they
compute their share of the batches that it is about to sample, and take over what it has found. All
ranks lay the same requests out in the same batches, so that the tokens are those of one process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from transformers import AutoConfig

from rlaif.config.models import ModelSpec
from rlaif.engines.base import GenerateRequest, GenerateResult, Sampler
from rlaif.engines.local.encoding import Encoding, load_encoding
from rlaif.engines.local.hf import HfEngine
from rlaif.engines.local.weights import Weights
from rlaif.train import parallel
from rlaif.train.loop import TrainJob
from rlaif.train.model import TrainModel

T = TypeVar("T")
Compute = Callable[[Callable[[], T]], T]
"""Computes on the first rank alone, and gives all ranks what it found."""


@dataclass(frozen=True, slots=True)
class _Ask:
    """What the first rank is about to sample; `lead` is a token before every prompt."""

    requests: list[GenerateRequest]
    done: frozenset[str]
    lead: int | None


@dataclass(frozen=True, slots=True)
class _Found:
    """What the first rank has found."""

    value: Any


class _Dealer:
    """The first rank's engine, whose batches the others share."""

    def __init__(self, own: HfEngine):
        self.own = own
        self.name, self.weights_hash = own.name, own.weights_hash

    def generate(
        self, requests: Iterable[GenerateRequest], done: AbstractSet[str] = frozenset()
    ) -> Iterator[list[GenerateResult]]:
        """See `Sampler.generate`."""
        asked = list(requests)
        known = frozenset(r.request_id for r in asked if r.request_id in done)
        parallel.tell(_Ask(asked, known, self.own.encoding.lead))
        yield from self.own.generate(asked, known)
        nothing: list[list[GenerateResult]] = []
        for batches in parallel.gather(nothing)[1:]:
            yield from batches


@contextmanager
def _open_own(
    model: TrainModel, encoding: Encoding, spec: ModelSpec, digest: str
) -> Iterator[HfEngine]:
    """This rank's engine over the weights that `model` has now, for its share of the batches."""
    share = (parallel.rank(), parallel.world())
    with torch.no_grad(), model.generating() as module:
        yield HfEngine(Weights(module, digest), encoding, spec, share)


@contextmanager
def open_policy(
    model: TrainModel, encoding: Encoding, spec: ModelSpec, digest: str
) -> Iterator[Sampler]:
    """An engine over the very weights that `model` has now. With several ranks the first opens it
    within what it computes by `follow_first`."""
    with _open_own(model, encoding, spec, digest) as engine:
        yield engine if parallel.world() == 1 else _Dealer(engine)


def follow_first(job: TrainJob[Any], model: TrainModel) -> Compute[Any]:
    """A function that computes on the first rank alone and returns what it found on all, which
    sample with it meanwhile."""
    if parallel.rank() == 0:
        return _compute_first
    assert job.spec is not None, "a rank that samples knows the model's settings"
    config = AutoConfig.from_pretrained(job.start)
    return partial(_follow, model, load_encoding(job.start, job.spec, config, "policy"), job.spec)


def _compute_first(compute: Callable[[], T]) -> T:
    found = compute()
    parallel.tell(_Found(found))
    return found


def _follow(model: TrainModel, encoding: Encoding, spec: ModelSpec, compute: Callable[[], T]) -> T:
    while True:
        told: _Ask | _Found = parallel.tell()
        if isinstance(told, _Found):
            found: T = told.value
            return found
        with _open_own(model, replace(encoding, lead=told.lead), spec, "") as engine:
            parallel.gather(list(engine.generate(told.requests, told.done)))
