"""revise: critiques of answers, and the answers that follow from them (arXiv 2212.08073).

Each time every answer is criticised, and then written again after its critique, by the texts of a
principle that is drawn by the seed. The calls stand in `critiques` and `revisions`; what the step
makes, `completions`, is chosen of the revisions at the end. An answer whose call failed goes no
further.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlaif.config.base import hashed_keys
from rlaif.config.revise import ReviseStep
from rlaif.config.steps import SamplingKeys
from rlaif.constitution.model import Constitution, Principle, load_with_places
from rlaif.core.chat import CUT
from rlaif.core.errors import ConfigError
from rlaif.core.integrity import Unordered
from rlaif.core.records import Completion, Message, content_hash, from_json
from rlaif.core.resources import find
from rlaif.engines.base import Engine, GenerateRequest, GenerateResult, Sampling
from rlaif.judges.templates import Template
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext, keep_commonest, refuse_all_failed
from rlaif.pipeline.steps.revision_turns import (
    Turn,
    critique_messages,
    draw_principle,
    load_texts,
    revision_messages,
)
from rlaif.pipeline.steps.training_data import data_kind

VERSION = 1
MAKES = "completions"
SECONDS_PER_UNIT = 0.8

GIVERS = ("sample", "revise", "filter", "load")
"""Kinds of steps that give answers."""
CRITIQUES, REVISIONS = "critiques", "revisions"
BATCH = 1000


def plan(walk: Walk, index: int, step: ReviseStep) -> None:
    """Revisions of the latest answers, or of those that `uses` names, which stand where all
    stood."""
    sources = walk.used(index, step.uses, walk.completions, GIVERS)
    for source in sources:
        if (given := data_kind(source)) not in ("completions", "pairs"):
            message = f"uses: {source.id!r} gives {given}, and answers are revised"
            raise walk.inputs.fail(index, message, "uses")
    if not sources:
        raise walk.inputs.fail(index, f"revise {step.id!r} has no completions: sample first")
    prompts = tuple(dict.fromkeys(p for s in sources for p in s.prompts))
    known = prompts if all(s.prompts for s in sources) else None
    principles = _find_principles(walk, index, step, known)
    model = walk.model(index, step.by, "by")
    try:
        template = load_texts(step, walk.inputs)
    except ConfigError as error:
        raise walk.inputs.fail(index, f"template: {error}", "template") from None
    decides = (
        hashed_keys(step, exclude={"id", "by", "uses", "principles", "template"}),
        template.hash,
        [_describe_principle(principle, template) for principle in principles],
        model.identity(),
        [source.hash for source in sources],
        walk.facts(known),
    )
    seed = str(walk.seed)
    same = {planned.hash for planned in walk.done if planned.round == walk.round}
    if step_hash("revise", *decides, seed) in same:
        # Another step has made these very revisions, and this one is there for other ones.
        seed = f"{seed}/{step.id}"
    planned = walk.add(
        Planned(
            step_hash("revise", *decides, seed),
            "revise",
            step.id,
            walk.seed,
            walk.round,
            step,
            inputs={f"completions/{i}": source.hash for i, source in enumerate(sources)},
            models={"by": model},
            prompts=prompts,
            options={"seed": seed, "principles": [principle.id for principle in principles]},
        )
    )
    used = {source.hash for source in sources}
    others = [*walk.completions.values(), *walk.judgements.values(), *walk.preferences]
    walk.replace([other for other in others if other.hash not in used], step.id)
    walk.completions = {step.id: planned}
    walk.judgements, walk.preferences = {}, []
    walk.by_id[step.id, walk.round] = planned


def _find_principles(
    walk: Walk, index: int, step: ReviseStep, known: tuple[str, ...] | None
) -> list[Principle]:
    """The principles that may be drawn. Raises ConfigError where one has no texts, or none applies
    to a prompt; `known` are those of the answers, None where that shows when they are read."""
    constitution = walk.inputs.constitution
    if constitution is None:
        message = f"revise {step.id!r} needs a constitution, whose texts it revises by"
        raise walk.inputs.fail(index, message)
    try:
        principles = constitution.select(step.principles)
    except ConfigError as error:
        raise walk.inputs.fail(index, f"principles: {error}", "principles") from None
    for principle in principles:
        lacking = [key for key in ("critique", "revision") if not getattr(principle, key)]
        if lacking:
            raise walk.inputs.fail(
                index,
                f"principle {principle.id!r} ({_find_place(walk.inputs, principle)}) has no "
                f"{' and no '.join(f'`{key}`' for key in lacking)}, and an answer may be revised by"
                " it: write what it lacks, or name other principles in `principles`",
                "principles",
            )
    asked = None if known is None else set(known)
    for prompt in walk.inputs.prompts_by_id.values():
        mine = asked is None or prompt.prompt_id in asked
        if mine and not any(principle.applies(prompt) for principle in principles):
            raise walk.inputs.fail(
                index,
                f"no principle applies to prompt {prompt.prompt_id} ({prompt.question[:60]!r}), "
                "whose answers are to be revised: name one in `principles` that always does",
                "principles",
            )
    return principles


def _find_place(inputs: PlanInputs, principle: Principle) -> str:
    """File and line of a principle."""
    name = inputs.experiment.constitution
    if name is None:
        return "no file"
    place = load_with_places(find(name, inputs.path))[1][principle.id]
    return f"{place.path}:{place.line}"


def _describe_principle(principle: Principle, template: Template) -> dict[str, Any]:
    """All of a principle that may decide a revision."""
    fields = {"id", "critique", "revision", "applies_when"}
    if "principle" in template.variables:
        fields.add("text")
    found = principle.model_dump(mode="json", include=fields)
    if principle.applies_when is not None:
        found["applies_when"]["tags"] = sorted(set(principle.applies_when.tags))
    return found


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """Two calls for each answer and time, none of which may fail."""
    step: ReviseStep = planned.step
    turns = known.records_read(planned, "completions") * step.times
    kept = turns if step.keep == "all" else turns // step.times
    return Size(kept, 2 * turns, 2 * turns * step.max_new_tokens)


def run(context: StepContext) -> dict[str, Any]:
    """Ask what is still missing, one time after the other, then choose what is kept.

    Raises EngineError where nothing could be revised.
    """
    revising = _Revising(context)
    step: ReviseStep = context.planned.step
    roots = revising.read_roots()
    current = dict(roots)
    made: list[dict[str, Completion]] = []
    for time in range(1, step.times + 1):
        current = revising.revise(roots, current, time)
        made.append(current)
    kept = [
        revision
        for name in sorted(roots, key=lambda name: (roots[name].prompt_id, name))
        for revisions in (made if step.keep == "all" else made[-1:])
        if (revision := revisions.get(name)) is not None
    ]
    calls, failed = revising.calls, revising.failed
    if not kept:
        what, at = f"revisions of {context.planned.id}", context.folder.path
        refuse_all_failed(what, "calls", len(roots), failed, at)
    for start in range(context.folder.count("completions"), len(kept), BATCH):
        context.folder.append("completions", kept[start : start + BATCH])
    counts = {
        "completions": len(kept),
        "critiques": calls[CRITIQUES],
        "calls": calls.total(),
        "failed": len(roots) - len(made[-1]),
    }
    if revising.cut:
        counts["cut_critiques"] = revising.cut
    return {
        "counts": counts | ({"without_answer": revising.blank} if revising.blank else {}),
        "errors": keep_commonest(failed),
        "tokens": revising.tokens,
        "digest": revising.content.digest(),
    }


@dataclass
class _Revising:
    """A revise step at work."""

    context: StepContext
    calls: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    content: Unordered = field(default_factory=Unordered)
    tokens: int = 0
    blank: int = 0
    """Answers that the step was given and that are none, since their call failed."""
    cut: int = 0
    """Critiques that the limit of tokens ended."""

    def __post_init__(self) -> None:
        self.step: ReviseStep = self.context.planned.step
        self.template = load_texts(self.step, self.context.inputs)
        constitution = self.context.inputs.constitution
        assert isinstance(constitution, Constitution)
        self.principles = constitution.select(self.context.planned.options["principles"])

    def read_roots(self) -> dict[str, Completion]:
        """The answers by id, each once; those that failed are none."""
        given = {c.completion_id: c for c in self.context.completions()}
        self.context.refuse_strangers(c.prompt_id for c in given.values())
        roots = {n: c for n, c in given.items() if c.messages and c.finish_reason != "failed"}
        self.blank = len(given) - len(roots)
        return roots

    def revise(
        self, roots: Mapping[str, Completion], current: Mapping[str, Completion], time: int
    ) -> dict[str, Completion]:
        """The revisions of `current`, by the ids of the answers that all began as."""
        turns = {
            name: self._make_turn(roots[name], current[name], time) for name in sorted(current)
        }
        asking = {turn.critique_id: turn for turn in turns.values()}
        critiques = self._ask(
            CRITIQUES,
            "critique_id",
            {name: self._ask_critique(turn) for name, turn in asking.items()},
            lambda result, engine: _critique_row(result, asking[result.request_id]),
        )
        said = {
            name: row["text"] for name, row in critiques.items() if row["finish_reason"] != "failed"
        }
        self.cut += sum(row["finish_reason"] == "length" for row in critiques.values())
        writing = {turn.name: turn for name, turn in asking.items() if name in said}
        revisions = self._ask(
            REVISIONS,
            "completion_id",
            {
                name: self._ask_revision(turn, said[turn.critique_id])
                for name, turn in writing.items()
            },
            lambda result, engine: self._make_completion(
                result, writing[result.request_id], engine
            ),
        )
        found = {
            writing[n].root.completion_id: from_json(Completion, revisions[n]) for n in writing
        }
        return {name: revision for name, revision in found.items() if revision.messages}

    def _make_turn(self, root: Completion, current: Completion, time: int) -> Turn:
        planned = self.context.planned
        prompt = self.context.prompts[root.prompt_id]
        able = [principle for principle in self.principles if principle.applies(prompt)]
        if self.step.draw == "one":
            able = [draw_principle(able, planned.options["seed"], root.completion_id, time)]
        name = "k_" + content_hash(planned.hash, "revision", root.completion_id, time)
        return Turn(root, current, prompt, time, name, tuple(able))

    def _ask_critique(self, turn: Turn) -> GenerateRequest:
        messages = critique_messages(self.template, turn)
        return GenerateRequest(turn.critique_id, messages, self._make_sampling(turn, "critique"))

    def _ask_revision(self, turn: Turn, critique: str) -> GenerateRequest:
        messages = revision_messages(self.template, turn, critique)
        return GenerateRequest(turn.name, messages, self._make_sampling(turn, "revision"))

    def _make_sampling(self, turn: Turn, what: str) -> Sampling:
        step, seed = self.step, self.context.planned.options["seed"]
        own = content_hash("revising", seed, turn.root.completion_id, turn.time, what, length=8)
        return Sampling(
            step.max_new_tokens,
            step.temperature,
            step.top_p,
            step.top_k,
            tuple(step.stop),
            # 31 bits, which every engine takes.
            int(own, 16) & 0x7FFFFFFF,
        )

    def _ask(
        self,
        name: str,
        key: str,
        requests: Mapping[str, GenerateRequest],
        keep: Callable[[GenerateResult, Engine], Any],
    ) -> dict[str, dict[str, Any]]:
        """The rows of `name` that answer `requests`, by id: those that are there and new ones,
        whole batches of which are committed as they come."""
        folder, progress = self.context.folder, self.context.progress
        done = {row[key] for row in folder.rows(name)} & requests.keys()
        progress.start(name, len(requests), len(done))
        if len(done) < len(requests):
            engine = self.context.engines.get(self.context.planned.models["by"])
            # An engine in this process lays out its batches from all requests, done or not.
            for batch in engine.generate(requests.values(), done):
                folder.append(name, [keep(result, engine) for result in batch])
                new = sum(result.tokens_made or 0 for result in batch)
                progress.advance(len(batch), new, self.context.engines.account.note())
        found = {row[key]: row for row in folder.rows(name) if row[key] in requests}
        self.calls[name] += len(found)
        for row in found.values():
            self.tokens += len(row.get("token_ids") or ()) or row.get("new_tokens") or 0
            self.content.add(row[key], row["finish_reason"], row.get("text"), row.get("digest"))
            if row["finish_reason"] == "failed":
                self.failed[row["error"] or "no reason was given"] += 1
        return found

    def _make_completion(self, result: GenerateResult, turn: Turn, engine: Engine) -> Completion:
        step, planned = self.step, self.context.planned
        failed = result.finish_reason == "failed" or result.cut
        messages: list[Message] = [] if failed else [{"role": "assistant", "content": result.text}]
        # Of all revisions of one answer each has a place of its own.
        places = (step.times, turn.time - 1) if step.keep == "all" else (1, 0)
        return Completion(
            completion_id=result.request_id,
            prompt_id=turn.prompt.prompt_id,
            sample_index=turn.root.sample_index * places[0] + places[1],
            messages=messages,
            model=planned.models["by"].label,
            weights_hash=engine.weights_hash,
            sampling=step.model_dump(mode="json", include=set(SamplingKeys.model_fields)),
            finish_reason="failed" if failed else result.finish_reason,
            token_ids=None if engine.concurrent else result.token_ids,
            logprobs=result.logprobs or None,
            principle=turn.principle,
            system_prompt=planned.models["by"].spec.system_prompt,
            rendered_hash=result.rendered_hash,
            parent_id=turn.root.completion_id,
            digest=content_hash(messages),
            error=CUT if result.cut else result.error,
            reasoning=result.reasoning or None,
        )


def _critique_row(result: GenerateResult, turn: Turn) -> dict[str, Any]:
    """A critique as it is kept: what it is of, and which revision follows it."""
    failed = result.finish_reason == "failed" or result.cut
    return {
        "critique_id": result.request_id,
        "completion_id": turn.name,
        "of": turn.current.completion_id,
        "parent_id": turn.root.completion_id,
        "prompt_id": turn.prompt.prompt_id,
        "time": turn.time,
        "principle": turn.principle,
        "text": "" if failed else result.text,
        "finish_reason": "failed" if failed else result.finish_reason,
        "error": CUT if result.cut else result.error,
        "reasoning": result.reasoning or None,
        "new_tokens": result.tokens_made,
    }
