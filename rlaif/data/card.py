"""The card of a dataset: the README.md that the hub and `datasets` read. A pure function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from rlaif.config.dataset import DatasetSpec

SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

EXAMPLE = 600
"""Characters of an example's text that are shown."""


@dataclass(frozen=True)
class Facts:
    """What a card says besides its spec.

    `funnel` are rows {step, what, came, left, why}; `models` and `judges` {name, identity, ...};
    `generators` and `pairing` sentences on how answers were sampled and pairs chosen, `agreement`
    on how far the labels agree with people's, `origin` says whose preferences of a run they are.
    `spread` are the measured lengths and gaps of the pairs, `example` the texts of one by what they
    are.
    """

    title: str
    configs: Sequence[Mapping[str, Any]]
    pairs: Mapping[str, int]
    prompts: Mapping[str, int]
    models: Sequence[Mapping[str, str]]
    judges: Sequence[Mapping[str, str]]
    constitution: str | None
    funnel: Sequence[Mapping[str, Any]]
    spread: Mapping[str, str]
    limits: Sequence[str]
    generators: Sequence[str] = ()
    pairing: Sequence[str] = ()
    example: Mapping[str, str] = field(default_factory=dict)
    lost: Mapping[str, int] = field(default_factory=dict)
    agreement: Sequence[str] = ()
    version: str = ""
    origin: str = ""


def sampled_by(sample: Mapping[str, Any]) -> list[str]:
    """How a sample step of a resolved experiment asks for answers: a line for each generator of its
    pool, and one for the drawn principles."""
    pool = sample["pool"] or [{"by": sample["by"], "system_prompt": sample["system_prompt"]}]
    lines = []
    for place, member in enumerate(pool):
        name = f"{sample['id']}/{place}" if sample["pool"] else sample["id"]
        heat = member.get("temperature")
        told = member.get("system_prompt") or sample["system_prompt"]
        if isinstance(told, dict):
            told = f"the template {told['template']}"
        lines.append(
            f"{name}: {member['by']}, temperature {sample['temperature'] if heat is None else heat}"
            f", at most {member.get('max_new_tokens') or sample['max_new_tokens']} tokens"
            + (f", system prompt: {told}" if told else "")
        )
    if sample["principles"]:
        texts = sample["principles"]["texts"]
        drawn = "; ".join(f"{name}: {' / '.join(said)}" for name, said in texts.items())
        lines.append(
            f"The system prompt of each answer also has one principle, drawn from: {drawn}"
        )
    return lines


def write_card(spec: DatasetSpec, facts: Facts) -> str:
    """The card as Markdown after YAML front matter."""
    parts = [
        f"# {_plain_cell(facts.title)}",
        _write_summary(spec, facts),
        _write_section("An example", _write_example(facts.example)),
        _write_section("What is in it", _write_table([facts.spread], {k: k for k in facts.spread})),
        _write_section("How it was made", _write_table(facts.funnel, _FUNNEL)),
        _write_section("Who wrote the answers", _describe_writers(facts)),
        _write_section("Who labelled", _describe_labellers(facts)),
        _write_section("Known limits", _write_list([*facts.limits, *spec.limits])),
        _write_section("Sources and licences", _write_list(spec.sources) or "None were named."),
    ]
    return f"---\n{_front_matter(spec, facts)}---\n\n" + "\n\n".join(parts) + "\n"


_FUNNEL = {"step": "step", "what": "rows", "came": "in", "left": "out", "why": "why"}
_MODELS = {"model": "model", "weights": "weights", "answers": "answers"}
_JUDGES = {"judge": "judge", "kind": "kind", "hash": "hash"}


def _front_matter(spec: DatasetSpec, facts: Facts) -> str:
    rows = sum(facts.pairs.values())
    data: dict[str, Any] = {
        "pretty_name": facts.title,
        "language": spec.language,
        "task_categories": ["text-generation"],
        "tags": ["preference", "rlaif", "synthetic"],
        "size_categories": [next((name for size, name in SIZES if rows < size), "n>1M")],
        "configs": [dict(config) for config in facts.configs],
    }
    if spec.license is not None:
        data = {"license": spec.license, **data}
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def _write_summary(spec: DatasetSpec, facts: Facts) -> str:
    sizes = ", ".join(
        f"{_show_number(facts.pairs[split], 'pair')} of "
        f"{_show_number(facts.prompts[split], 'prompt')} ({split})"
        for split in facts.pairs
    )
    names = ", ".join(f"`{config['config_name']}`" for config in facts.configs)
    text = (
        f"Pairs of answers by language models, one preferred to the other: {sizes}. No prompt is "
        f"in both splits. Made with {f'rlaif {facts.version}'.strip()}.\n\n"
        f"Configurations: {names}. Load one with `datasets.load_dataset(FOLDER, NAME)`."
    )
    if facts.origin:
        text += f"\n\n{facts.origin}"
    if facts.lost:
        held = ", ".join(f"{count} not in `{name}`" for name, count in sorted(facts.lost.items()))
        text += f"\n\nWhat a format cannot hold is left out of it: {held}."
    return text


def _show_number(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _write_example(texts: Mapping[str, str]) -> str:
    shown = {n: t if len(t) <= EXAMPLE else f"{t[:EXAMPLE]} ..." for n, t in texts.items()}
    return "\n\n".join(f"**{name}:** {_plain_cell(text)}" for name, text in shown.items())


def _describe_writers(facts: Facts) -> str:
    words = _write_table(facts.models, _MODELS)
    return f"{words}\n\n{_write_list(facts.generators)}" if facts.generators else words


def _describe_labellers(facts: Facts) -> str:
    words = _write_table(facts.judges, _JUDGES)
    if facts.pairing:
        words += f"\n\n{_write_list(facts.pairing)}"
    if facts.constitution is not None:
        words += f"\n\nConstitution: {_plain_cell(facts.constitution)}."
    if facts.agreement:
        return words + "\n\n" + _write_list(facts.agreement)
    return words + "\n\nNo human labels were at hand, so how far people agree is not known."


def _write_section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def _write_list(items: Sequence[str]) -> str:
    return "\n".join(f"- {_plain_cell(item)}" for item in items)


def _write_table(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    lines = ["| " + " | ".join(columns.values()) + " |", "|" + "---|" * len(columns)]
    for row in rows:
        lines.append("| " + " | ".join(_plain_cell(row.get(key, "")) for key in columns) + " |")
    return "\n".join(lines)


def _plain_cell(value: Any) -> str:
    """A value that can break neither a table nor the page: names come from files and models."""
    text = " ".join(str(value).split())
    for mark in "\\|<>[]`*_":
        text = text.replace(mark, "\\" + mark)
    return text
