"""What every source says of the same pairs. Pairs are the same where prompt and both answers are:
they are joined by content, in whichever order and under whatever ids each file has them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean

import numpy as np
from msgspec import structs

from rlaif.analysis.comparison.gather import Gathered, SourceKey
from rlaif.core.groups import group_by
from rlaif.core.labelled import GivenPair
from rlaif.core.records import AnnotatorKind, Judgement, content_hash
from rlaif.metrics.weighted import Floats
from rlaif.preferences.labels import Verdicts, annotator_verdicts

UNNAMED = "person "
"""What people without a name are called, with a number that is their own within one pair alone."""


@dataclass(frozen=True, slots=True)
class ComparedPair:
    """Two different answers to one prompt, in an order that depends on their content alone. `texts`
    are None where no input holds them."""

    pair_id: str
    prompt_id: str
    first: str
    second: str
    texts: tuple[str, str] | None
    tags: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class Source:
    """One source of feedback. By pair id: its P(first is better) (`probs`), each person's own
    (`votes`, of people alone), the same by principle, and the mean slot of the first answer where
    it was shown beside the other (`slots`: 1 always first, -1 always second). `asked` are the pairs
    that it was asked about, with or without a verdict. `is_arm` says that these are the labels
    that an arm of a run was trained on.
    """

    name: str
    kind: AnnotatorKind
    places: tuple[str, ...]
    asked: frozenset[str]
    probs: Verdicts
    votes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    principles: Mapping[str, Verdicts] = field(default_factory=dict)
    slots: Mapping[str, float] = field(default_factory=dict)
    is_arm: bool = False

    @property
    def is_people(self) -> bool:
        """Whether people gave this feedback."""
        return self.kind == "human"


@dataclass(frozen=True)
class Compared:
    """All pairs by id, in order of id, and the sources, people first. `same_text` is how many pairs
    were left out because both answers are one text."""

    pairs: Mapping[str, ComparedPair]
    sources: tuple[Source, ...]
    same_text: int

    def column(self, verdicts: Mapping[str, float], names: Iterable[str]) -> Floats:
        """The verdicts on some pairs, NaN where there is none."""
        return np.asarray([verdicts.get(name, np.nan) for name in names], dtype=np.float64)


def lay_side_by_side(gathered: Gathered) -> Compared:
    """Every pair that somebody compared, and what each source says of it. A judge of single answers
    has a verdict on each pair of answers that it scored; where nobody compared any two, the pairs
    are all those of answers that were scored to one prompt."""
    content = {name: _content_of(text.text) for name, text in gathered.texts.items()}
    pairs, same = _collect_pairs(gathered, content)
    names = name_sources(gathered)
    by_prompt = group_by(pairs.values(), lambda pair: pair.prompt_id)
    given = {
        prompt_id: [GivenPair(p.pair_id, p.prompt_id, p.first, p.second) for p in own]
        for prompt_id, own in by_prompt.items()
    }
    sources = [
        _make_source(gathered, key, names[key], content, given)
        for key in sorted(gathered.judgements, key=lambda k: (k.kind != "human", names[k]))
    ]
    return Compared(pairs, tuple(s for s in sources if s.asked), same)


def _content_of(text: str) -> str:
    return "t_" + content_hash(text)


def _collect_pairs(
    gathered: Gathered, content: Mapping[str, str]
) -> tuple[dict[str, ComparedPair], int]:
    texts = {content[name]: text.text for name, text in gathered.texts.items()}
    found: dict[str, ComparedPair] = {}
    same = set()
    for given in gathered.compared.values() or _pair_scored(gathered):
        answers = [content.get(name, name) for name in (given.first, given.second)]
        first, second = sorted(answers)
        name = "q_" + content_hash(given.prompt_id, first, second)
        if first == second:
            same.add(name)
            continue
        prompt = gathered.prompts.get(given.prompt_id)
        known = (texts[first], texts[second]) if first in texts and second in texts else None
        found[name] = ComparedPair(
            name,
            given.prompt_id,
            first,
            second,
            known,
            tuple(prompt.tags) if prompt else (),
            prompt.source if prompt else "",
        )
    return dict(sorted(found.items())), len(same)


def _pair_scored(gathered: Gathered) -> Iterable[GivenPair]:
    """All pairs of answers to one prompt that were scored."""
    scored: dict[str, set[str]] = defaultdict(set)
    for judgements in gathered.judgements.values():
        for judgement in judgements:
            scored[judgement.prompt_id].add(judgement.subject)
    for prompt_id, answers in scored.items():
        for first, second in combinations(sorted(answers), 2):
            yield GivenPair("", prompt_id, first, second)


def name_sources(gathered: Gathered) -> dict[SourceKey, str]:
    """What each source is called: its own name, with its input where several have that name, and
    numbered where one input has several."""
    keys = sorted({*gathered.judgements, *gathered.battles})
    alike = Counter(key.name for key in keys)
    names = {
        key: key.name if alike[key.name] == 1 else f"{'+'.join(gathered.places[key])}/{key.name}"
        for key in keys
    }
    again = Counter(names.values())
    numbers: Counter[str] = Counter()
    for key in keys:
        name = names[key]
        if again[name] > 1:
            numbers[name] += 1
            names[key] = f"{name} ({numbers[name]})"
    return names


def _make_source(
    gathered: Gathered,
    key: SourceKey,
    name: str,
    content: Mapping[str, str],
    given: Mapping[str, list[GivenPair]],
) -> Source:
    weights = gathered.weights.get(key, {})
    rows = [_by_content(j, content) for j in gathered.judgements[key] if j.prompt_id in given]

    def decide(own: Collection[Judgement]) -> Verdicts:
        pairs = [pair for prompt in sorted({j.prompt_id for j in own}) for pair in given[prompt]]
        return annotator_verdicts(pairs, {key.name: own}, weights)

    votes = _collect_votes(rows, decide) if key.kind == "human" else {}
    pooled = {pair: fmean(own.values()) for pair, own in votes.items()}
    principles = group_by((j for j in rows if j.principle is not None), lambda j: j.principle or "")
    return Source(
        name,
        key.kind,
        tuple(gathered.places[key]),
        frozenset(_find_asked(rows, given)),
        pooled if key.kind == "human" else decide(rows),
        votes,
        {principle: decide(own) for principle, own in sorted(principles.items())},
        {} if key in gathered.loaded else _mean_slots(rows, given),
        key in gathered.arms,
    )


def _collect_votes(
    rows: Sequence[Judgement], decide: Callable[[Collection[Judgement]], Verdicts]
) -> dict[str, dict[str, float]]:
    """Each person's vote by pair. People without names are numbered within each pair."""
    if any(j.principle is None for j in rows):
        # A person who votes on the whole has not left that to a weighted sum.
        rows = [j for j in rows if j.principle is None]
    votes: dict[str, dict[str, float]] = defaultdict(dict)
    people = group_by(_number_unnamed(rows), lambda placed: placed[0])
    for person, own in sorted(people.items()):
        for pair, prob in decide([judgement for _, judgement in own]).items():
            votes[pair][person] = prob
    return dict(votes)


def _number_unnamed(rows: Sequence[Judgement]) -> Iterator[tuple[str, Judgement]]:
    """Each judgement with its person: those of one pair without a name are of as many people."""
    seen: Counter[tuple[str, ...]] = Counter()
    for judgement in sorted(rows, key=lambda j: (j.prob_first is None, j.prob_first, j.call_id)):
        person = judgement.annotator_id
        if person == judgement.annotator_kind:
            place = (judgement.principle or "", *sorted(judgement.shown))
            seen[place] += 1
            person = f"{UNNAMED}{seen[place]}"
        yield person, judgement


def _find_asked(rows: Iterable[Judgement], given: Mapping[str, list[GivenPair]]) -> Iterator[str]:
    """The pairs that a source was asked about: together, or each answer alone."""
    for prompt_id, own in group_by(rows, lambda j: j.prompt_id).items():
        together = {frozenset(j.shown) for j in own if len(j.shown) == 2}
        alone = {j.subject for j in own if len(j.shown) == 1}
        for pair in given[prompt_id]:
            if {pair.first, pair.second} in together or {pair.first, pair.second} <= alone:
                yield pair.pair_id


def _mean_slots(
    rows: Iterable[Judgement], given: Mapping[str, list[GivenPair]]
) -> dict[str, float]:
    firsts: dict[tuple[str, frozenset[str]], list[str]] = defaultdict(list)
    for judgement in rows:
        if len(judgement.shown) == 2:
            firsts[judgement.prompt_id, frozenset(judgement.shown)].append(judgement.shown[0])
    found = {}
    for pairs in given.values():
        for pair in pairs:
            shown = firsts.get((pair.prompt_id, frozenset((pair.first, pair.second))))
            if shown:
                found[pair.pair_id] = fmean(1.0 if s == pair.first else -1.0 for s in shown)
    return found


def _by_content(judgement: Judgement, content: Mapping[str, str]) -> Judgement:
    """The judgement of texts in place of ids: what each file calls them says nothing."""
    shown = [content.get(name, name) for name in judgement.shown]
    subject = content.get(judgement.subject, judgement.subject)
    return structs.replace(judgement, shown=shown, subject=subject)
