"""The completions that a step judges, by prompt: of steps that are done or still sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlaif.core.records import Completion, Prompt
from rlaif.core.rowfiles import Index
from rlaif.core.store import StepFolder
from rlaif.pipeline.steps.context import StepContext


@dataclass
class _Source:
    """One input. While it is written, `sampled` are the prompts that will have `n` completions
    each; None once it is done."""

    folder: StepFolder
    index: Index
    sampled: frozenset[str] | None
    n: int

    def grow(self) -> set[str]:
        """The prompts of new completions. What is done is seen to be done before it is read, so
        that nothing can come after it."""
        if self.sampled is not None and self.folder.done() is not None:
            self.sampled = None
        return set(self.index.grow())

    def complete(self, prompt_id: str) -> bool:
        """Whether all that this input will ever have of a prompt is there."""
        if self.sampled is None or prompt_id not in self.sampled:
            return True
        return self.index.count(prompt_id) >= self.n


class Groups:
    """A step's completions by prompt. Ids and places in files are held, no texts."""

    def __init__(self, context: StepContext):
        self.context = context
        self._wanted = frozenset(context.planned.prompts)
        self._sources = [self._source(digest) for digest in context.inputs_under("completions")]

    def _source(self, digest: str) -> _Source:
        folder = self.context.store.step(digest)
        rising = self.context.rising
        sampling = rising.steps.get(digest) if rising is not None else None
        index = folder.index("completions", "prompt_id")
        if sampling is None:
            return _Source(folder, index, None, 0)
        return _Source(folder, index, frozenset(sampling.prompts), sampling.step.n)

    def waves(self) -> Iterator[list[str]]:
        """The prompts whose completions are all there, sorted; again and again while some of them
        are still being sampled, each prompt once."""
        early: set[str] = set()
        final = False
        while not final:
            new = set[str]().union(*(source.grow() for source in self._sources)) | early
            final = all(source.sampled is None for source in self._sources)
            ready = {p for p in new if all(s.complete(p) for s in self._sources)}
            early = new - ready
            if self._wanted:
                ready &= self._wanted
            if ready:
                self.context.refuse_strangers(ready)
                yield sorted(ready)
            elif not final and self.context.rising is not None:
                self.context.rising.wait()

    def read(self, prompt_id: str) -> tuple[Prompt, Sequence[Completion]]:
        """A prompt and its completions, in the order of the inputs."""
        found = [c for s in self._sources for c in s.index.records(prompt_id, Completion)]
        return self.context.prompts[prompt_id], found
