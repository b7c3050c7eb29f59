"""sample: `n` completions of each prompt from one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import Any

from rlaif.config.base import hashed_keys
from rlaif.config.steps import SampleStep, SamplingKeys
from rlaif.core.chat import CUT, WAS_CUT, has_more
from rlaif.core.errors import EngineError
from rlaif.core.ids import IdSet, as_ids
from rlaif.core.integrity import Unordered
from rlaif.core.records import Completion, Message, Prompt, content_hash
from rlaif.data.sources import Instruction, chosen_members, drawn, with_system
from rlaif.engines.base import Engine, GenerateRequest, GenerateResult, Model, Sampling
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk
from rlaif.pipeline.plan.episodes import most_turns
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext, keep_commonest, lost_by, lost_notes
from rlaif.pipeline.steps.episodes import (
    Start,
    play_episodes,
    read_turns,
    texts_of,
    turn_sampling,
)

VERSION = 4
MAKES = "completions"
SECONDS_PER_UNIT = 0.3

Asked = tuple[Prompt, int, Instruction | None]
CONTENT = ("completion_id", "digest", "finish_reason", "reasoning")
"""What tells an answer from another one to the same request."""


def plan(walk: Walk, index: int, step: SampleStep) -> None:
    """Samples of this round's window of training prompts; earlier ones are no longer current."""
    step = step.with_texts(walk.inputs.system_prompts)
    drawn_from = step.prompt_set or walk.stage.prompts
    refuse_unasked_set(walk, index, drawn_from)
    ids = walk.prompt_window(drawn_from, step.prompt_count)
    seed = f"{walk.seed}/{walk.round}"
    # What was made of the answers before belongs to answers that are current no longer.
    walk.replace([*walk.completions.values(), *walk.judgements.values()], step.id)
    walk.replace(walk.preferences, step.id)
    asked = questions_of(walk, drawn_from)
    if step.pool is None:
        model = walk.model(index, step.by, "by")
        if _sample_hash(walk, step, model, ids, seed) in _drawn_in_round(walk):
            # Another step has drawn these very answers, and this one is there for other ones.
            seed = f"{seed}/{step.id}"
        walk.completions = {step.id: sampled(walk, step, model, ids, seed, step.id, asked)}
    else:
        groups = {p.prompt_id: p.group for p in walk.inputs.set_named(drawn_from).train}
        walk.completions = _plan_pool(walk, index, step, ids, seed, asked, groups)
    walk.judgements, walk.preferences = {}, []
    for name, planned in walk.completions.items():
        walk.by_id[name, walk.round] = planned


def questions_of(walk: Walk, *sets: str) -> dict[str, str]:
    """The steps that made these sets of questions, as inputs of one that draws from them."""
    made = {p.id: p.hash for p in walk.done if p.kind == "questions"}
    return {f"questions/{name}": made[name] for name in sets if name in made}


def refuse_unasked_set(walk: Walk, index: int, *sets: str) -> None:
    """Raise ConfigError for a set of questions that no step has made yet."""
    asks = {e.step.id for e in walk.experiment.entries if e.kind == "questions"}
    for name in sets:
        if name in asks and not walk.inputs.set_named(name).train:
            message = f"prompts: the questions of {name!r} are not made yet: put that step before"
            raise walk.inputs.fail(index, message, "prompts")


def _plan_pool(
    walk: Walk,
    index: int,
    step: SampleStep,
    ids: Sequence[str],
    seed: str,
    asked: Mapping[str, str],
    groups: Mapping[str, str | None],
) -> dict[str, Planned]:
    """One step for each member of the pool, of the prompts that it is drawn for: of a group of
    prompts for all or none."""
    members = step.members()
    drawn = {n: chosen_members(len(members), step.n, groups[n] or n, seed) for n in ids}
    found = {}
    for number, member in enumerate(members):
        model = walk.model(index, member.by, "pool")
        mine = [name for name in ids if number in drawn[name]]
        if mine:
            # The number: members may be alike, and then their answers must not be.
            name = f"{step.id}/{number}"
            found[name] = sampled(walk, member, model, mine, f"{seed}/{number}", name, asked)
    return found


def sampled(
    walk: Walk,
    step: SampleStep,
    model: Model,
    ids: Sequence[str],
    sampling_seed: str,
    name: str,
    asked: Mapping[str, str] | None = None,
) -> Planned:
    """`model`'s answers to the prompts `ids`; `asked` are the steps that made the questions among
    them."""
    return walk.add(
        Planned(
            _sample_hash(walk, step, model, ids, sampling_seed),
            "sample",
            name,
            walk.seed,
            walk.round,
            step,
            inputs=dict(asked or {}),
            models={"by": model},
            prompts=as_ids(ids),
            options={"sampling_seed": sampling_seed},
        )
    )


def _sample_hash(
    walk: Walk, step: SampleStep, model: Model, ids: Sequence[str], sampling_seed: str
) -> str:
    asked = {"n", *SamplingKeys.model_fields, "principles", "system_prompt"}
    keys = hashed_keys(step, include=asked)
    # A principle is drawn by what a prompt's id does not cover.
    origins = [walk.origins(ids)] if step.principles is not None else []
    return step_hash("sample", keys, model.identity(), as_ids(ids), sampling_seed, *origins)


def _drawn_in_round(walk: Walk) -> set[str]:
    """The hashes of this round's sample steps so far."""
    known = walk.by_id.items()
    return {p.hash for (_, number), p in known if number == walk.round and p.kind == "sample"}


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """One call for each completion, of an episode at most one for each of its turns."""
    count = len(planned.prompts) * planned.step.n
    turns = count * most_turns(inputs, planned.prompts)
    return Size(count, turns, turns * planned.step.max_new_tokens)


def run(context: StepContext) -> dict[str, Any]:
    """Sample what is still missing; whole batches are committed as they come.

    Raises EngineError where no answer at all could be made.
    """
    planned, step = context.planned, context.planned.step
    total = context.count_prompts() * step.n
    done = IdSet()
    tokens = 0
    failed: Counter[str] = Counter()
    content = Unordered()
    for row in context.folder.rows("completions"):
        done.add(row["completion_id"])
        tokens += len(row["token_ids"] or [])
        failed.update(_list_failures([row["finish_reason"]], [row.get("error")]))
        content.add(*(row.get(key) for key in CONTENT))
    context.progress.start("completions", total, len(done))
    if len(done) < total:
        engine = context.engines.get(planned.models["by"])
        for made, new in chain(_answer(context, engine, done), _play(context, engine, done)):
            context.folder.append("completions", made)
            for completion in made:
                content.add(*(getattr(completion, key) for key in CONTENT))
            tokens += new
            failed.update(_list_failures([c.finish_reason for c in made], [c.error for c in made]))
            context.progress.advance(len(made), new, context.engines.account.note())
    if failed.total() == total > 0:
        why = next(iter(failed))
        raise EngineError(
            f"{planned.id}: all {total} answers failed, the first with: {why}. Mend that; to ask "
            f"the same again, delete {context.folder.path}"
        )
    lost = _count_lost(context)
    counts = {"completions": total, "failed": failed.total(), **lost}
    summary = {
        "counts": counts,
        "errors": keep_commonest(failed),
        "tokens": tokens,
        "digest": content.digest(),
    }
    notes = lost_notes(planned.id, lost)
    cut = failed[CUT]
    if cut:
        counts["cut_while_thinking"] = cut
        notes.append(
            f"{planned.id}: {cut} of {total} answers were {WAS_CUT}: raise `max_new_tokens`"
        )
    return summary | ({"notes": notes} if notes else {})


def _answer(
    context: StepContext, engine: Engine, done: AbstractSet[str]
) -> Iterator[tuple[list[Completion], int]]:
    """The answers to prompts that are no episodes, in batches, and how many tokens each has."""
    planned, step = context.planned, context.planned.step
    asked: dict[str, Asked] = {}
    # An engine in this process lays out its batches from all requests, done or not.
    requests = _make_requests(context, asked, done if engine.concurrent else frozenset())
    for batch in engine.generate(requests, done):
        made = [_make_completion(r, *asked.pop(r.request_id), step, engine, planned) for r in batch]
        yield made, sum(r.tokens_made or 0 for r in batch)


def _play(
    context: StepContext, engine: Engine, done: AbstractSet[str]
) -> Iterator[tuple[list[Completion], int]]:
    """The episodes that are not done, as a turn ends them, and how many tokens they have."""
    planned, step = context.planned, context.planned.step
    if not context.inputs.starts:
        return
    asked: dict[str, Asked] = {}
    starts = [
        Start(request.request_id, *asked[request.request_id][:2], request.messages, sampling)
        for request in _make_requests(context, asked, frozenset(), episodes=True)
        for sampling in [turn_sampling(request.sampling)]
    ]
    if not starts:
        return
    texts = texts_of(engine)
    folder, stored = context.folder, read_turns(context.folder)
    for over in play_episodes(starts, engine, texts, texts.context, folder, stored):
        new = [e for e in over if e.start.name not in done]
        made = [
            e.as_turns(_make_completion(e.result, *asked[e.start.name], step, engine, planned))
            for e in new
        ]
        if made:
            yield made, sum(len(e.result.token_ids) for e in new)


def _count_lost(context: StepContext) -> dict[str, int]:
    """What the model is not shown of the prompts."""
    prompts = [p.messages for p in context.read_prompts() if any(map(has_more, p.messages))]
    if not prompts:
        return {}
    return lost_by(context.engines.get(context.planned.models["by"]), prompts)


def _list_failures(endings: Sequence[str], errors: Sequence[str | None]) -> list[str]:
    """The reasons of those that failed."""
    both = zip(endings, errors, strict=True)
    return [error or "no reason was given" for ending, error in both if ending == "failed"]


def _make_requests(
    context: StepContext,
    asked: dict[str, Asked],
    skipped: AbstractSet[str],
    episodes: bool = False,
) -> Iterator[GenerateRequest]:
    """The requests but for those in `skipped`, made as they are drawn: of the starts of `episodes`,
    or of all other prompts. What they ask for is in `asked` until it is taken out."""
    planned, step = context.planned, context.planned.step
    for prompt in context.read_prompts():
        if (prompt.environment is not None) != episodes:
            continue
        for index in range(step.n):
            name = "k_" + content_hash(planned.hash, prompt.prompt_id, index)
            if name not in skipped:
                seed = planned.options["sampling_seed"]
                told = drawn(step.principles, prompt, seed, index) if step.principles else None
                asked[name] = (prompt, index, told)
                messages = told_messages(step, prompt, told)
                yield GenerateRequest(name, messages, _make_sampling(step, seed, prompt, index))


def told_messages(step: SampleStep, prompt: Prompt, told: Instruction | None) -> list[Message]:
    """The prompt with what the model is told besides."""
    messages = prompt.messages
    for text in (step.told, told.text if told else None):
        messages = messages if text is None else with_system(messages, text)
    return messages


def _make_sampling(step: SampleStep, seed: str, prompt: Prompt, index: int) -> Sampling:
    own = int(content_hash("sampling", seed, prompt.prompt_id, index, length=8), 16)
    return Sampling(
        step.max_new_tokens,
        step.temperature,
        step.top_p,
        step.top_k,
        tuple(step.stop),
        # 31 bits, which every engine takes.
        own & 0x7FFFFFFF,
    )


def _make_completion(
    result: GenerateResult,
    prompt: Prompt,
    index: int,
    told: Instruction | None,
    step: SampleStep,
    engine: Engine,
    planned: Any,
) -> Completion:
    failed = result.finish_reason == "failed" or result.cut
    messages: list[Message] = [] if failed else [{"role": "assistant", "content": result.text}]
    given = [step.told, told.text if told else None]
    own = "\n\n".join(text for text in given if text is not None)
    return Completion(
        completion_id=result.request_id,
        prompt_id=prompt.prompt_id,
        sample_index=index,
        messages=messages,
        model=planned.models["by"].label,
        weights_hash=engine.weights_hash,
        sampling=step.model_dump(mode="json", include={"n", *SamplingKeys.model_fields}),
        finish_reason="failed" if failed else result.finish_reason,
        # A server counts tokens and does not say which: unknown is not none.
        token_ids=None if engine.concurrent else result.token_ids,
        logprobs=result.logprobs or None,
        principle=told.principle if told else None,
        system_prompt=own or planned.models["by"].spec.system_prompt,
        rendered_hash=result.rendered_hash,
        digest=content_hash(messages),
        error=CUT if result.cut else result.error,
        reasoning=result.reasoning or None,
    )
