"""Filters of prompts, completions and preferences, and the funnel: how many came, how many were
left, and why. Pure functions; what a filter reads from files is given.

Personal data (addresses and numbers that name somebody) is checked by the libraries that know the
number plans, so that not every long number counts.
"""

from __future__ import annotations

import ipaddress
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import regex

from rlaif.config.filters import (
    AgreesFilter,
    BalanceFilter,
    BestFilter,
    ContaminationFilter,
    DuplicateFilter,
    LexiconFilter,
    NearFilter,
    PrivateFilter,
    RuleFilter,
    ScoreFilter,
    SemanticFilter,
    TruncatedFilter,
)
from rlaif.constitution import textstats as ts
from rlaif.constitution.rules import apply_check, is_too_short
from rlaif.core.records import Completion, Judgement, Preference, Prompt, content_hash
from rlaif.data.embed import Vectors, same_meaning
from rlaif.data.near import eval_items, near_duplicates


@dataclass(frozen=True, slots=True)
class Item:
    """What filters see of a record: its id, its prompt, its answers, and whether one was cut; of a
    prompt its own text stands among the answers."""

    name: str
    prompt: Prompt
    answers: tuple[str, ...] = ()
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record was left out: `why` is what the funnel counts by, `detail` says more."""

    why: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Stage:
    """One filter of the funnel."""

    filter: str
    came: int
    left: int
    why: dict[str, int]


@dataclass(frozen=True)
class Sifted:
    """The ids that are left, in their order, and of each that is not, by which filter and why."""

    kept: list[str]
    stages: list[Stage]
    refused: dict[str, tuple[str, Refusal]] = field(default_factory=dict)

    def funnel(self) -> list[dict[str, Any]]:
        """The stages as JSON."""
        return [asdict(stage) for stage in self.stages]


@dataclass(frozen=True)
class Judged:
    """What filters read of other records, by the ids of the filtered ones.

    `scores` has each judge's scores on [0, 1] and `compared` those among answers to one prompt,
    both without what has no score. `disagreeing` says of a load of labelled pairs, strictly or not,
    which judgements do not agree with it, and why. `values` has what is balanced, by field.
    """

    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    compared: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    disagreeing: Mapping[tuple[str, bool], Mapping[str, str]] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Beside:
    """What filters read besides the records: the lines of a lexicon, the prompts of an evaluation
    and what an embedding model makes of texts (unit vectors), by the name in the config; and what
    other records say."""

    lexicons: Mapping[str, Sequence[str]] = field(default_factory=dict)
    evaluations: Mapping[str, Sequence[str]] = field(default_factory=dict)
    embeddings: Mapping[str, Callable[[Sequence[str]], Vectors]] = field(default_factory=dict)
    judged: Judged = field(default_factory=Judged)


Refusals = dict[str, Refusal]


def sift_items(items: Sequence[Item], filters: Sequence[Any], beside: Beside) -> Sifted:
    """Ask the filters one after the other. The order of `items` changes nothing: they are asked in
    the order of their ids, which decides which of equal texts is kept."""
    left = sorted(items, key=lambda item: (item.prompt.prompt_id, item.name))
    stages: list[Stage] = []
    refused: dict[str, tuple[str, Refusal]] = {}
    for wanted in filters:
        of = getattr(wanted, "of", "records")
        found = _FILTERS[wanted.kind](_parts_of(left, of), wanted, beside)
        if of == "prompt":
            prompts = {item.name: item.prompt.prompt_id for item in left}
            found = {name: found[part] for name, part in prompts.items() if part in found}
        name = name_filter(wanted)
        refused |= {item: (name, refusal) for item, refusal in found.items()}
        came, left = len(left), [item for item in left if item.name not in found]
        why = Counter(refusal.why for refusal in found.values())
        stages.append(Stage(name, came, len(left), dict(sorted(why.items()))))
    return Sifted([item.name for item in left], stages, refused)


def name_filter(wanted: Any) -> str:
    """What a filter is called in the funnel."""
    if isinstance(wanted, AgreesFilter):
        return f"agrees with {wanted.with_}"
    if isinstance(wanted, BestFilter | ScoreFilter | BalanceFilter):
        return f"{wanted.kind} by {wanted.by}"
    return f"{wanted.rule if isinstance(wanted, RuleFilter) else wanted.kind} of {wanted.of}"


def of_completion(completion: Completion, prompt: Prompt) -> Item:
    """A completion as filters see it."""
    cut = completion.finish_reason != "stop"
    return Item(completion.completion_id, prompt, (completion.text,), cut)


def of_preference(preference: Preference, prompt: Prompt) -> Item:
    """A preference as filters see it."""
    sides = (preference.chosen, preference.rejected)
    return Item(
        preference.preference_id, prompt, tuple(side[-1]["content"] for side in sides if side)
    )


def of_judgement(judgement: Judgement, prompt: Prompt) -> Item:
    """A judgement as filters see it: what the judge wrote is its answer."""
    written = [text for text in (judgement.rationale, judgement.raw) if text]
    return Item(judgement.judgement_id, prompt, tuple(written))


def of_prompt(prompt: Prompt) -> Item:
    """A prompt as filters see it."""
    return Item(prompt.prompt_id, prompt)


def _parts_of(items: Sequence[Item], of: str) -> list[Item]:
    """What a filter looks at: each prompt once, with its text, since all its answers share it, or
    the records themselves."""
    if of == "prompt":
        items = [Item(i.prompt.prompt_id, i.prompt, (i.prompt.question,)) for i in items]
    return list({item.name: item for item in items}.values())


def _refuse_each(
    items: Sequence[Item], refuse: Callable[[Prompt, str], Refusal | None]
) -> Refusals:
    """What refuses one text at a time; a record goes with the first of its texts that does."""
    found = {}
    for item in items:
        refusals = (refuse(item.prompt, text) for text in item.answers)
        first = next((refusal for refusal in refusals if refusal is not None), None)
        if first is not None:
            found[item.name] = first
    return found


def _by_rule(items: Sequence[Item], wanted: RuleFilter, beside: Beside) -> Refusals:
    def refuse_text(prompt: Prompt, text: str) -> Refusal | None:
        score = apply_check(wanted.rule, wanted.params, prompt, text)
        if score is None or score >= wanted.least:
            return None
        # A short answer is no fault of a dataset, as it is one of a policy that was told to write.
        if is_too_short(wanted.rule, wanted.params, text):
            return None
        return Refusal(f"below {wanted.least:g}", f"{score:.3f}")

    return _refuse_each(items, refuse_text)


def _find_truncated(items: Sequence[Item], wanted: TruncatedFilter, beside: Beside) -> Refusals:
    return {item.name: Refusal("cut or failed") for item in items if item.cut}


def normalise_text(text: str) -> str:
    """A text without what duplicates may differ in: case, blanks, Unicode's compatible forms."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _find_duplicates(items: Sequence[Item], wanted: DuplicateFilter, beside: Beside) -> Refusals:
    first: dict[tuple[str, ...], str] = {}
    found = {}
    for item in items:
        other = first.setdefault(tuple(map(normalise_text, item.answers)), item.name)
        if other != item.name:
            found[item.name] = Refusal("duplicate", other)
    return found


def _find_near(items: Sequence[Item], wanted: NearFilter, beside: Beside) -> Refusals:
    texts = ("\n".join(item.answers) for item in items)
    alike = near_duplicates(texts, wanted.threshold, wanted.shingle)
    return {items[i].name: Refusal("near-duplicate", items[j].name) for i, j in alike.items()}


def _find_semantic(items: Sequence[Item], wanted: SemanticFilter, beside: Beside) -> Refusals:
    vectors = beside.embeddings[wanted.model](["\n".join(item.answers) for item in items])
    alike = same_meaning(vectors, wanted.threshold)
    return {items[i].name: Refusal("same meaning", items[j].name) for i, j in alike.items()}


def _find_contaminated(
    items: Sequence[Item], wanted: ContaminationFilter, beside: Beside
) -> Refusals:
    asked = [(name, text) for name in wanted.against for text in beside.evaluations[name]]
    held = eval_items([text for _, text in asked], wanted.n)

    def refuse(prompt: Prompt, text: str) -> Refusal | None:
        item = held.matched(text, wanted.share)
        return None if item is None else Refusal(asked[item][0], asked[item][1])

    return _refuse_each(items, refuse)


def _find_private(items: Sequence[Item], wanted: PrivateFilter, beside: Beside) -> Refusals:
    def refuse(prompt: Prompt, text: str) -> Refusal | None:
        found = private_kinds(text, wanted.find, wanted.regions)
        return Refusal(found[0], ", ".join(found)) if found else None

    return _refuse_each(items, refuse)


def _in_lexicon(items: Sequence[Item], wanted: LexiconFilter, beside: Beside) -> Refusals:
    phrases = {tuple(_fold_text(line)) for line in beside.lexicons[wanted.path]} - {()}
    longest = max(map(len, phrases), default=0)

    def refuse_text(prompt: Prompt, text: str) -> Refusal | None:
        words = _fold_text(text)
        marked = [False] * len(words)
        hits = set()
        for start in range(len(words)):
            for length in range(1, min(longest, len(words) - start) + 1):
                if (phrase := tuple(words[start : start + length])) in phrases:
                    hits.add(" ".join(phrase))
                    marked[start : start + length] = [True] * length
        if not hits or sum(marked) <= wanted.most * len(words):
            return None
        return Refusal("listed words", ", ".join(sorted(hits)))

    return _refuse_each(items, refuse_text)


def _find_not_best(items: Sequence[Item], wanted: BestFilter, beside: Beside) -> Refusals:
    known = (beside.judged.compared if wanted.per == "prompt" else beside.judged.scores)[wanted.by]
    found = {i.name: Refusal(f"no score by {wanted.by}") for i in items if i.name not in known}
    groups: dict[str, list[str]] = {}
    for item in items:
        if item.name in known:
            groups.setdefault(item.prompt.prompt_id if wanted.per == "prompt" else "", []).append(
                item.name
            )
    for names in groups.values():
        ordered = sorted(names, key=lambda name: (-known[name], name))
        rest = ordered[wanted.k :]
        found |= {n: Refusal(f"not of the best {wanted.k}", f"{known[n]:.3f}") for n in rest}
    return found


def _find_low(items: Sequence[Item], wanted: ScoreFilter, beside: Beside) -> Refusals:
    known = beside.judged.scores[wanted.by]
    found = {}
    for item in items:
        if item.name not in known:
            found[item.name] = Refusal(f"no score by {wanted.by}")
        elif known[item.name] < wanted.least:
            found[item.name] = Refusal(f"below {wanted.least:g}", f"{known[item.name]:.3f}")
    return found


def _find_disagreeing(items: Sequence[Item], wanted: AgreesFilter, beside: Beside) -> Refusals:
    known = beside.judged.disagreeing[wanted.with_, wanted.strict]
    return {item.name: Refusal(known[item.name]) for item in items if item.name in known}


def _find_surplus(items: Sequence[Item], wanted: BalanceFilter, beside: Beside) -> Refusals:
    known = beside.judged.values[wanted.by]
    groups: dict[Any, list[str]] = {}
    found = {}
    for item in items:
        if known.get(item.name) is None:
            found[item.name] = Refusal(f"no {wanted.by}")
        else:
            groups.setdefault(known[item.name], []).append(item.name)
    most = min(map(len, groups.values()), default=0)
    for value, names in groups.items():
        seed = beside.judged.seed
        drawn = sorted(names, key=lambda name: content_hash("balance", seed, name))
        found |= {name: Refusal("more than of others", str(value)) for name in drawn[most:]}
    return found


def _fold_text(text: str) -> list[str]:
    """The words as a lexicon knows them: without case, and in Unicode's compatible forms."""
    return ts.words(unicodedata.normalize("NFKC", text).casefold())


_FILTERS: dict[str, Callable[[Sequence[Item], Any, Beside], Refusals]] = {
    "rule": _by_rule,
    "truncated": _find_truncated,
    "duplicates": _find_duplicates,
    "near_duplicates": _find_near,
    "semantic_duplicates": _find_semantic,
    "contamination": _find_contaminated,
    "private": _find_private,
    "lexicon": _in_lexicon,
    "best": _find_not_best,
    "score": _find_low,
    "agrees": _find_disagreeing,
    "balance": _find_surplus,
}


# Names that RFC 2606 keeps for examples belong to nobody.
_EMAIL = regex.compile(
    r"\b[\w.+-]+@(?!(?:[\w-]+\.)*example\.(?:com|org|net)\b)(?:[\w-]+\.)+(?!(?:test|example|invalid|"
    r"localhost)\b)\p{L}{2,}\b"
)
_ADDRESS = regex.compile(
    r"(?<![\w.:])(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9a-fA-F]*(?::[0-9a-fA-F]*){2,7})"
)
_CARD = regex.compile(r"(?<![\d.-])\d(?:[ -]?\d){12,18}(?![\d-])")
_IBAN = regex.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]){11,30}\b")


def has_email(text: str, regions: Sequence[str]) -> bool:
    """Whether there is an e-mail address; those of example domains do not count."""
    return _EMAIL.search(text) is not None


def has_phone(text: str, regions: Sequence[str]) -> bool:
    """Whether there is a phone number that is valid in one of `regions` (US, GB, ...), or an
    international one that is valid anywhere."""
    import phonenumbers

    return any(
        next(iter(phonenumbers.PhoneNumberMatcher(text, region)), None) is not None
        for region in regions or (None,)
    )


def has_ip(text: str, regions: Sequence[str]) -> bool:
    """Whether there is an IP address that the public network routes."""
    return any(_is_public(found.rstrip(".:")) for found in _ADDRESS.findall(text))


def _is_public(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def has_card(text: str, regions: Sequence[str]) -> bool:
    """Whether there is a payment card's number: 13 to 19 digits whose check digit is right."""
    from stdnum import luhn

    return any(luhn.is_valid(regex.sub(r"\D", "", found)) for found in _CARD.findall(text))


def has_iban(text: str, regions: Sequence[str]) -> bool:
    """Whether there is an international bank account number."""
    from stdnum import iban

    return any(iban.is_valid(found) for found in _IBAN.findall(text))


PRIVATE: dict[str, Callable[[str, Sequence[str]], bool]] = {
    "email": has_email,
    "phone": has_phone,
    "ip": has_ip,
    "card": has_card,
    "iban": has_iban,
}


def private_kinds(text: str, kinds: Sequence[str], regions: Sequence[str]) -> list[str]:
    """Which of `kinds` are in `text`, in their order."""
    return [kind for kind in kinds if PRIVATE[kind](text, regions)]
