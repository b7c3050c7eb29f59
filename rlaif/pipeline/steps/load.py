"""load: bring records in from a file, checked row by row."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import structs

from rlaif.config.arms import MAIN
from rlaif.config.engagement import EngagementSpec
from rlaif.config.steps import LoadStep
from rlaif.core.errors import ConfigError
from rlaif.core.ids import as_ids
from rlaif.core.labelled import GivenPair, LabelledPair, SingleAnswer, given_pair
from rlaif.core.records import (
    Completion,
    Judgement,
    Message,
    Preference,
    Prompt,
    content_hash,
    make_prompt,
)
from rlaif.data.events import read_events
from rlaif.data.given import read_given
from rlaif.data.loaded import record_of
from rlaif.data.readers import (
    LabelledReading,
    Reading,
    read_answers,
    read_demonstrations,
    read_labelled,
)
from rlaif.data.readers.base import answer_id, better_scores, chosen_first
from rlaif.data.rows import Source, is_votes, source_rows
from rlaif.data.sources import loaded_source
from rlaif.data.texts import read_texts
from rlaif.data.votes import read_items, read_settings, read_votes
from rlaif.pipeline.plan.base import Known, PlanInputs, Planned, Size, Walk, round_prompts
from rlaif.pipeline.steps import step_hash
from rlaif.pipeline.steps.context import StepContext
from rlaif.preferences.engagement import Engaged, weigh_engagement
from rlaif.preferences.labels import given_label
from rlaif.preferences.votes import votes_to_judgements

VERSION = 2
MAKES = "records"
SECONDS_PER_UNIT = 0.0

ENGAGED = "engagement"
"""What preferences made of events are from."""
OF_NO_ROUND = ("demonstrations", "text")
"""What is loaded for training alone: nothing is judged or paired of it."""
BATCH = 1000
log = logging.getLogger(__name__)
KINDS: dict[str, tuple[Any, str]] = {
    "completions": (Completion, "completion_id"),
    "judgements": (Judgement, "judgement_id"),
}
"""Each kind's record, and the key of its id."""


def plan(walk: Walk, index: int, step: LoadStep) -> None:
    """Records of a file, which stand where a step's own would."""
    if step.type == "prompts":
        # It is read before the plan is made, since its ids are in the hashes.
        return
    name = walk.experiment.loaded_name(step)
    if step.dataset is None and step.path is None:
        # An arm may have `data` of its own.
        step = step.model_copy(update={"path": name})
    if step.type in ("pairs", "completions"):
        walk.replace([*walk.completions.values(), *walk.judgements.values()], step.id)
    if step.type == "pairs":
        train = walk.inputs.set_named(step.id if step.makes_set else MAIN).train
        ids = round_prompts(train, None, walk.seed, walk.round)
        walk.pairs[step.id] = walk.by_id[step.id, walk.round] = loaded_pairs(walk, step, ids)
        walk.completions = dict(walk.pairs)
        walk.judgements = {}
        return
    labels = _how_read(step)
    own: tuple[str, ...] = ()
    if step.prompts == "other":
        own = tuple(sorted(walk.inputs.prompts_by_id))
    read = [part for part in (labels, own) if part]
    # What is of no round is loaded once for all of them.
    number = [] if step.type in OF_NO_ROUND else [walk.round]
    digest = step_hash("load", step.type, walk.inputs.loaded_hash(step), *number, *read)
    planned = walk.add(Planned(digest, "load", step.id, walk.seed, walk.round, step, prompts=own))
    walk.by_id[step.id, walk.round] = planned
    if step.type == "completions":
        walk.completions = {step.id: planned}
        walk.judgements = {}
    elif step.type == "judgements":
        walk.judgements[step.id] = planned
    elif step.type == "preferences":
        walk.preferences.append(planned)


def _how_read(step: LoadStep) -> dict[str, Any]:
    """The keys that decide how the rows of a file are read, where they are set."""
    return step.model_dump(
        mode="json",
        include={"format", "columns", "on_error", "prompts", "source", "engagement"},
        exclude_defaults=True,
    )


def loaded_pairs(
    walk: Walk, step: LoadStep, ids: Sequence[str], name: str | None = None
) -> Planned:
    """The labelled pairs of the file whose prompts are among `ids`."""
    read = _how_read(step)
    digest = step_hash("load", "pairs", walk.inputs.loaded_hash(step), read, ids)
    return walk.add(
        Planned(digest, "load", name or step.id, walk.seed, walk.round, step, prompts=as_ids(ids))
    )


def size(inputs: PlanInputs, planned: Planned, known: Known) -> Size:
    """Of pairs a guess: one for each prompt. What else a file has is known when the step runs."""
    return Size(2 * len(planned.prompts) if planned.step.type == "pairs" else 0)


def run(context: StepContext) -> dict[str, Any]:
    """Read the whole file, refuse what is wrong, commit."""
    step = context.planned.step
    name = context.inputs.experiment.loaded_name(step)
    source = loaded_source(step, name, context.inputs.path)
    if step.type == "pairs":
        return _run_pairs(context, _read_watched(step, source), source)
    found = _read_source(context, step, source)
    if not found.records:
        raise ConfigError("no rows in this file that could be used", str(source))
    name = "texts" if step.type == "text" else step.type
    done = len(context.folder.read(name))
    for start in range(done, len(found.records), BATCH):
        context.folder.append(name, found.records[start : start + BATCH])
    summary: dict[str, Any] = {"counts": {name: len(found.records), **found.counts}}
    return summary | ({"notes": list(found.notes)} if found.notes else {})


class _Loaded(NamedTuple):
    """The records of a file, what was counted beside them, such as the rows that gave none, by why,
    and what a reader of the run should know of them."""

    records: list[Any]
    counts: dict[str, int]
    notes: tuple[str, ...] = ()


def _read_source(context: StepContext, step: LoadStep, source: Source) -> _Loaded:
    if step.type == "text":
        return _read_texts(step, source)
    if step.type == "judgements" and isinstance(source, Path) and is_votes(source):
        return _Loaded(_read_votes(source, step.id), {})
    if step.type not in ("preferences", "demonstrations"):
        return _Loaded(_read_records(step.type, source, context.prompts), {})
    if step.engagement is not None:
        found = _read_engagement(step, step.engagement, source, context.planned.round)
    elif step.type == "preferences":
        found = _Loaded(*_read_preferences(step, source, context.planned.round))
    else:
        found = _read_demonstrations(step, source)
    if step.source is not None:
        named = [structs.replace(record, source=step.source) for record in found.records]
        found = found._replace(records=named)
    return _of_others(found, context, source) if step.prompts == "other" else found


def _read_texts(step: LoadStep, source: Source) -> _Loaded:
    column = None if step.columns is None else step.columns.text
    found = read_texts(source, column, step.on_error == "skip")
    rows = [{"text_id": "t_" + content_hash(text), "text": text} for text in found.texts]
    return _Loaded(rows, {"skipped": len(found.skipped)} if found.skipped else {})


def _read_demonstrations(step: LoadStep, source: Source) -> _Loaded:
    """Good answers to prompts of their own, each a preference whose other side is empty."""
    reading = read_demonstrations(source, step.format, step.columns, step.on_error)
    _refuse_second_file(reading, source)
    found = [single_preference(one) for one in reading if isinstance(one, SingleAnswer)]
    counts = {f"without_{name}": count for name, count in reading.lost.items()}
    counts |= {"skipped": len(reading.skipped)} if reading.skipped else {}
    return _Loaded(found, counts)


def _read_engagement(
    step: LoadStep, spec: EngagementSpec, source: Source, round_number: int
) -> _Loaded:
    """The preferences of an events file, with the examination and the size of the weights said."""
    events = read_events(source, step.on_error == "skip")
    made = weigh_engagement(events.impressions, spec)
    records = [_engaged_preference(one, spec, round_number) for one in made.preferences]
    theta = ", ".join(f"{position}: {value:.3g}" for position, value in made.theta.items())
    notes = [
        f"{step.id}: {made.signals} signals with an effective sample size of {made.effective:.1f}",
        *([f"{step.id}: examination by position: {theta}"] if theta else []),
    ]
    if made.clipped:
        notes.append(f"{step.id}: {made.clipped} inverse probabilities clipped: a biased estimate")
    counts = {
        "impressions": len(events.impressions),
        "shown": sum(map(len, events.impressions.values())),
        "signals": made.signals,
        "clipped": made.clipped,
        "skipped": len(events.skipped),
    }
    return _Loaded(records, {name: n for name, n in counts.items() if n}, tuple(notes))


def _engaged_preference(engaged: Engaged, spec: EngagementSpec, round_number: int) -> Preference:
    chosen, rejected = (
        [] if side is None else side.answer.messages for side in (engaged.chosen, engaged.rejected)
    )
    said = "shown, and looked at without it" if engaged.chosen is None else "with the signal"
    made = _make_preference(
        ENGAGED,
        engaged.prompt,
        chosen,
        rejected,
        (None, None, None),
        round_number,
        f"{said}: {spec.signal}",
    )
    return structs.replace(made, weight=engaged.weight)


def _read_votes(path: Path, judge: str, by_content: bool = False) -> list[Judgement]:
    """The votes in a database as judgements. Raises RlaifError."""
    items = {item.item_id: item for item in read_items(path)}
    scale = read_settings(path).scale
    return votes_to_judgements(read_votes(path), items, judge, scale, by_content)


def _read_records(kind: str, source: Source, prompts: Mapping[str, Prompt]) -> list[Any]:
    """Every row as a record, or anyone's answers beside their prompts as completions. Raises
    ConfigError for a row that is none, for an id that comes twice, and for a completion of a prompt
    that the experiment does not have."""
    record, key = KINDS[kind]
    places: dict[str, str] = {}
    found = []
    rows: Iterable[tuple[str, Any]]
    if kind == "completions" and isinstance(source, Path) and _are_given(source):
        rows = [(str(source), made) for made in read_given(source).completions]
    else:
        rows = ((place, record_of(record, row, place)) for place, row in source_rows(source))
    for place, made in rows:
        name = getattr(made, key)
        if places.setdefault(name, place) != place:
            raise ConfigError(
                f"{place}: {key} {name!r} stands at {places[name]} already; every row of {kind} "
                "needs an id of its own. Remove one of the two, or give it another id."
            )
        if kind == "completions" and made.prompt_id not in prompts:
            raise ConfigError(
                f"{place}: prompt_id {made.prompt_id!r} is none of the experiment's prompts; add "
                "the prompt to the prompts file, or remove the row"
            )
        found.append(made)
    return found


def _are_given(path: Path) -> bool:
    """Whether the rows of a file are answers beside their prompts, without ids."""
    head = next(source_rows(path, lambda fault: None), None)
    return head is not None and not head[1].keys() & {"completion_id", "prompt_id"}


def _read_watched(step: LoadStep, source: Source) -> LabelledReading:
    reading = read_labelled(source, step.format, step.columns, step.on_error)
    _refuse_second_file(reading, source)
    return reading


def _refuse_second_file(reading: Reading, source: Source) -> None:
    if reading.format.open is not None:
        raise ConfigError(
            f"format {reading.name} needs a second file, which this step would not watch for "
            "changes: make one file of the two with `rlaif convert` first",
            str(source),
        )


def _read_preferences(
    step: LoadStep, source: Source, round_number: int
) -> tuple[list[Preference], dict[str, int]]:
    """The preferences that a file's rows give, and how many rows or pairs gave none, by why."""
    if _holds_records(source):
        return [record_of(Preference, row, place) for place, row in source_rows(source)], {}
    reading = read_answers(source, step.format, step.columns, step.on_error)
    _refuse_second_file(reading, source)
    counts = {"skipped": 0, "tied": 0, "unlabelled": 0}
    voted = reading.name == "votes"
    found: list[Preference] = []
    for one in reading:
        if isinstance(one, SingleAnswer):
            found.append(single_preference(one, round_number))
        elif one.label is None or one.label == 0.5:
            counts["tied" if one.label == 0.5 else "unlabelled"] += 1
        else:
            found.append(labelled_preference(one, round_number, voted))
    counts["skipped"] = len(reading.skipped)
    counts |= {f"without_{name}": count for name, count in reading.lost.items()}
    without = {name: count for name, count in counts.items() if count}
    if not found:
        why = ", ".join(f"{name}: {count}" for name, count in without.items())
        raise ConfigError(
            f"none of its {reading.rows} rows gives a pair with a winner ({why})", str(source)
        )
    return _scale_weights(found) if voted else found, without


def _scale_weights(preferences: list[Preference]) -> list[Preference]:
    """The preferences with weights of mean 1, so that a draw of items changes no step's size."""
    mean = math.fsum(p.weight for p in preferences) / len(preferences)
    return [structs.replace(p, weight=p.weight / mean) for p in preferences]


def _of_others(found: _Loaded, context: StepContext, source: Source) -> _Loaded:
    """The preferences of conversations that none of the experiment's prompts begins like: turns of
    one conversation may stand in several rows. Raises ConfigError where there are none."""
    own = {_first_turn(context.prompts[p].messages) for p in context.planned.prompts}
    others = [p for p in found.records if _first_turn(p.prompt) not in own]
    if not others:
        what = "demonstrations" if context.planned.step.type == "demonstrations" else "pairs"
        raise ConfigError(
            f"`prompts: other`: all of its {len(found.records)} {what} are of the experiment's "
            "own prompts. Lower `prompts.limit`, or load another file.",
            str(source),
        )
    count = len(found.records) - len(others)
    counts = found.counts | ({"of_own_prompts": count} if count else {})
    return found._replace(records=others, counts=counts)


def _first_turn(messages: Sequence[Message]) -> str:
    return next((turn["content"] for turn in messages if turn["role"] == "user"), "")


def _holds_records(source: Source) -> bool:
    """Whether a file's first row is a preference of a run, ids and all."""
    head = next(source_rows(source, lambda fault: None), None)
    return head is not None and head[1].keys() >= {"preference_id", "chosen_id", "rejected_id"}


def labelled_preference(
    pair: LabelledPair, round_number: int = 0, soft: bool = False
) -> Preference:
    """What the annotator of a pair said, as a Preference whose `source` is the annotator's kind.

    The scores are the file's own. The margin is the file's, or their gap; without either it is what
    a share of votes says, P(chosen is better) - P(rejected is better), and a plain verdict has
    none. `soft`: that share is the label's probability too. Raises ValueError for a tie or a pair
    without a label.
    """
    chosen, rejected = chosen_first(pair)
    assert pair.label is not None
    above = max(pair.label, 1.0 - pair.label)
    scores, margin = better_scores(pair), None if above == 1.0 else 2.0 * above - 1.0
    if scores is not None:
        margin = scores[0] - scores[1]
    if pair.margin is not None:
        margin = pair.margin
    made = _make_preference(
        pair.source or pair.annotator_kind,
        pair.prompt.messages,
        chosen.messages,
        rejected.messages,
        (*(scores or (None, None)), margin),
        round_number,
        f"labelled by {pair.annotator}" if pair.annotator else "labelled in a file",
    )
    return structs.replace(made, prob=above if soft else 1.0, weight=pair.weight)


def single_preference(single: SingleAnswer, round_number: int = 0) -> Preference:
    """An answer that stands alone, good or bad, as a Preference whose other side is empty."""
    answer = single.answer.messages
    good, bad = (answer, []) if single.good else ([], answer)
    source, prompt = single.source or "file", single.prompt.messages
    return _make_preference(source, prompt, good, bad, (None, None, None), round_number)


def _run_pairs(context: StepContext, reading: LabelledReading, source: Source) -> dict[str, Any]:
    """The pairs of this step's prompts: their answers, who said what of them, and the pairs."""
    wanted = set(context.planned.prompts)
    completions: dict[str, Completion] = {}
    judgements: dict[str, Judgement] = {}
    pairs: dict[str, GivenPair] = {}
    alike: Counter[tuple[str, str, float]] = Counter()
    voted = isinstance(source, Path) and is_votes(source)
    for pair in reading:
        if pair.prompt.prompt_id not in wanted:
            continue
        given = given_pair(pair)
        pairs[given.pair_id] = given
        for answer in (pair.first, pair.second):
            # The place in the file is no order of sampling: a judge must not learn from it.
            completions[answer.completion_id] = structs.replace(answer, sample_index=0)
        if pair.label is not None and not voted:
            said = given_label(pair, given, context.planned.step.id, alike)
            judgements[said.judgement_id] = said
    if voted:
        # A judgement of each person in place of one label for all.
        votes = _read_votes(Path(str(source)), context.planned.step.id, by_content=True)
        judgements = {j.judgement_id: j for j in votes if completions.keys() >= set(j.shown)}
    if not pairs:
        raise ConfigError(
            f"none of its {reading.rows} rows is a pair of answers to one of the {len(wanted)} "
            "prompts. The labels must be of these prompts: leave `prompts.path` out, and the "
            "prompts are those of the pairs.",
            str(source),
        )
    for name, records in (
        ("completions", [completions[key] for key in sorted(completions)]),
        ("judgements", [judgements[key] for key in sorted(judgements)]),
        ("pairs", [asdict(pairs[key]) for key in sorted(pairs)]),
    ):
        done = len(context.folder.read(name))
        for start in range(done, len(records), BATCH):
            context.folder.append(name, records[start : start + BATCH])
    counts = {"pairs": len(pairs), "completions": len(completions), "judgements": len(judgements)}
    return {"counts": {**counts, "skipped": len(reading.skipped)}, "skipped": reading.skipped[:20]}


def load_preferences(path: Path, round_number: int = 0) -> list[Preference]:
    """The preferences in a step's folder, or in a file of any format that is read (ties and pairs
    without a label are left out). Raises ConfigError."""
    inside = path / "preferences.jsonl"
    step = LoadStep.model_validate({"type": "preferences", "path": str(path)})
    return _read_preferences(step, inside if inside.is_file() else path, round_number)[0]


def _make_preference(
    source: str,
    prompt: list[Message],
    chosen: list[Message],
    rejected: list[Message],
    scores: tuple[float | None, float | None, float | None],
    round_number: int,
    reason: str = "loaded from a file",
) -> Preference:
    ids = [answer_id(prompt, side) if side else "" for side in (chosen, rejected)]
    return Preference(
        preference_id="f_" + content_hash(*ids),
        prompt_id=make_prompt(prompt).prompt_id,
        round=round_number,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        score_chosen=scores[0],
        score_rejected=scores[1],
        margin=scores[2],
        prob=1.0,
        weight=1.0,
        reason=reason,
        source=source,
        judgement_ids=[],
        chosen_id=ids[0],
        rejected_id=ids[1],
    )
