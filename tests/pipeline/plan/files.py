"""The files that the experiments of `bases` name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from msgspec.structs import replace

from rlaif.core.records import Completion, Message, content_hash, make_prompt, to_json
from rlaif.core.resources import find

QUESTIONS = [
    "Name a red fruit.",
    "How do I boil an egg?",
    "What is a river?",
    "Why is the sky blue?",
    "Give me a tip for sleeping well.",
    "Which month comes after May?",
    "What do bees make?",
    "How long is a minute?",
]
CONSTITUTION: dict[str, Any] = {
    "name": "sweep",
    "principles": [
        {
            "id": "kind",
            "text": "The answer is kind.",
            "weight": 2,
            "examples": [{"prompt": "Hi", "better": "Hello!", "worse": "Go.", "why": "Warmth."}],
        },
        {"id": "useful", "text": "The answer is useful."},
        {"id": "brief", "check": {"rule": "word_limits", "params": {"min": 1, "max": 3}}},
        {
            "id": "long",
            "weight": 0.5,
            "check": {"rule": "word_limits", "params": {"min": 4, "max": 9}},
        },
    ],
}


def preferences(count: int, tag: str = "") -> list[dict[str, Any]]:
    """Pairs as records of a run, that differ in everything that a training may look at."""
    return [
        {
            "preference_id": f"r{tag}{i}",
            "prompt_id": f"p{tag}{i // 2}",
            "round": 0,
            "prompt": [{"role": "user", "content": f"Say {tag}" + "x" * (i // 2)}],
            "chosen": [{"role": "assistant", "content": _thought(i) + "yes " * (1 + i % 3) + "!"}],
            "rejected": [{"role": "assistant", "content": "no" * (1 + i % 4) + tag + str(i)}],
            "score_chosen": 0.9 - 0.05 * i,
            "score_rejected": 0.3 if i % 2 else 0.1,
            "margin": round(0.9 - 0.05 * i - (0.3 if i % 2 else 0.1), 3),
            "prob": 1.0,
            "weight": 1.0,
            "reason": "",
            "source": "human" if i % 2 else "rlaif",
            "judgement_ids": [],
            "chosen_id": f"c{tag}{i}",
            "rejected_id": f"d{tag}{i}",
        }
        for i in range(count)
    ]


def _thought(number: int) -> str:
    return "<think>hm</think>" if number == 0 else ""


def answers() -> list[dict[str, Any]]:
    """Three answers to each of four prompts, as completions of a run."""
    texts = [
        "A cherry",
        "No idea at all, sorry about that",
        "<think>hm</think>It is",
        "A grey stone",
    ]
    rows = []
    for number, question in enumerate(QUESTIONS[:4]):
        prompt = make_prompt([{"role": "user", "content": question}])
        for index in range(3):
            text = f"{texts[(number + index) % 4]} {number}"
            answer: list[Message] = [{"role": "assistant", "content": text}]
            name, digest = f"k_{number}_{index}", content_hash(answer)
            made = Completion(name, prompt.prompt_id, index, answer, "m", "", {}, "stop")
            rows.append(to_json(replace(made, digest=digest)))
    return rows


def events() -> list[dict[str, Any]]:
    """Two answers to each of four prompts, shown in both orders, and what people did with them."""
    rows = []
    for number, question in enumerate(QUESTIONS[:4]):
        for turn in range(4):
            for position in (1, 2):
                answer = (position + turn) % 2
                rows.append(
                    {
                        "impression": f"{number}.{turn}",
                        "prompt": question,
                        "response": f"Answer {answer} to {number}",
                        "position": position,
                        "propensity": 0.9 / position**2,
                        "random": turn < 2,
                        "examined": position == 1,
                        "clicked": (number + turn + position) % 3 > 0,
                        "liked": (number + turn) % 2 == answer,
                        "dwell": float(3 * number + 5 * turn + position),
                    }
                )
    return rows


def write_files(folder: Path) -> None:
    """Everything but the models."""
    rows = [
        {
            "prompt": text,
            "tags": ["fruit"] if i % 2 else ["other"],
            "reference": f"The answer {i} it is.",
            "source": "a" if i % 3 else "b",
        }
        for i, text in enumerate(QUESTIONS)
    ]
    _jsonl(folder / "prompts.jsonl", rows)
    _jsonl(folder / "few.jsonl", [{"text": q, "kinds": ["fruit"]} for q in QUESTIONS[:5]])
    _jsonl(folder / "answers.jsonl", answers())
    _jsonl(folder / "events.jsonl", events())
    (folder / "constitution.yaml").write_text(yaml.safe_dump(CONSTITUTION))
    other = CONSTITUTION | {"principles": CONSTITUTION["principles"][:3]}
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    _jsonl(folder / "pairs.jsonl", preferences(10))
    _jsonl(folder / "more.jsonl", preferences(4, "z"))
    _jsonl(folder / "bad.jsonl", [*preferences(4), {"prompt": "q", "chosen": 7, "rejected": "n"}])
    system = {"role": "system", "content": "Be kind."}
    strict = [row | {"prompt": [system, *row["prompt"]]} for row in preferences(1, "s")]
    stern = [{"prompt": [system, {"role": "user", "content": q}]} for q in QUESTIONS[:3]]
    _jsonl(folder / "strict_prompts.jsonl", [*stern, *({"prompt": q} for q in QUESTIONS[3:])])
    _jsonl(folder / "strict.jsonl", [*preferences(4), *strict])
    table = [
        {
            "prompt": q,
            "asked": f"{q} Please.",
            "chosen": f"Yes {i}",
            "rejected": f"No no {i}",
            "one": f"One {i}",
            "two": f"Two two {i}",
            "winner": "one" if i % 2 else "two",
            "who": "ann",
            "first_won": i % 2,
            "best": float(i % 3),
            "rest": float(i % 2),
        }
        for i, q in enumerate(QUESTIONS)
    ]
    _jsonl(folder / "table.jsonl", table)
    _jsonl(folder / "rows.jsonl", [{k: r[k] for k in list(r) if k != "asked"} for r in table[:6]])
    start = "\n\nHuman: What is item {} called?\n\nAssistant: "
    said = [
        {"chosen": start.format(i) + f"Item {i}.", "rejected": start.format(i) + "Who knows?"}
        for i in range(120)
    ]
    _jsonl(folder / "labelled.jsonl", said)
    (folder / "weights.yaml").write_text("weights: {kind: 1.0, useful: 2.0}")
    (folder / "weights2.yaml").write_text("weights: {kind: 3.0}")
    items = [{"text": "It is short."}, {"text": "It is sweet.", "category": "important"}]
    _jsonl(folder / "items.jsonl", [{"prompt": q, "items": items} for q in QUESTIONS])
    _jsonl(folder / "items2.jsonl", [{"prompt": q, "items": items[:1]} for q in QUESTIONS])
    (folder / "own").mkdir()
    for path in sorted(find("prompts/judges").glob("*.j2")):
        text = path.read_text().replace("---user---\n", "---user---\nPlease.\n", 1)
        (folder / "own" / path.name).write_text(text)
        with_principle = text.replace("{{ prompt }}", "{{ prompt }} {{ principle }}")
        (folder / "own" / f"by_principle_{path.name}").write_text(with_principle)
    (folder / "abuse.txt").write_text("stone\n")
    (folder / "script.yaml").write_text("default: It is scripted.\n")
    (folder / "other_words.txt").write_text("cherry\n")


def _jsonl(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
