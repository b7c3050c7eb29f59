"""The files that only the experiments of the sweep name: those of `files` stay as they are, since
hashes cover them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from msgspec.structs import replace

from rlaif.core.records import Completion, Message, content_hash, make_prompt, to_json
from tests.pipeline.plan.files import QUESTIONS, preferences

WORDING: dict[str, Any] = {
    "name": "wording",
    "principles": [
        {"id": "kind", "text": "The answer is warm."},
        {"id": "brief", "check": {"rule": "word_limits", "params": {"min": 1, "max": 2}}},
    ],
}


REVISED: dict[str, Any] = {
    "name": "revised",
    "principles": [
        {
            "id": name,
            "text": f"The answer is {name}.",
            "critique": f"Is it {name}?",
            "revision": f"Make it {name}.",
        }
        for name in ("brief", "kind")
    ],
}


def completions(texts: Iterable[str], prompts: int = 4) -> list[dict[str, Any]]:
    """Answers to the first prompts, as completions of a run; each prompt has all of them."""
    rows = []
    for number, question in enumerate(QUESTIONS[:prompts]):
        prompt = make_prompt([{"role": "user", "content": question}])
        for index, text in enumerate(texts):
            answer: list[Message] = [{"role": "assistant", "content": text}]
            name = f"m_{number}_{index}"
            made = Completion(name, prompt.prompt_id, index, answer, "m", "", {}, "stop")
            rows.append(to_json(replace(made, digest=content_hash(answer))))
    return rows


def write_more_files(folder: Path) -> None:
    """Beside those of `write_files`."""
    thoughts = ["<think>The egg. </think>Well", "Red river", "Egg"]
    _jsonl(folder / "thoughts.jsonl", completions(thoughts))
    (folder / "revised.yaml").write_text(yaml.safe_dump(REVISED))
    own = "---user---\nNow: {{ critique }}\n---then---\nSo: {{ revision }}\n"
    (folder / "own_revise.j2").write_text(own)
    private = ["Write to ann@example.org.", "Call 030 901820 today.", "Ask +1 650-253-0000", "No."]
    _jsonl(folder / "private.jsonl", completions(private))
    alike = ["a b c d e f g h", "a b c d e f g x", "h g f e d c b a", "One more text."]
    _jsonl(folder / "alike.jsonl", completions(alike))
    _jsonl(folder / "leaked.jsonl", [{"prompt": "a b c d e f g h"}])
    _jsonl(folder / "leaked2.jsonl", [{"prompt": "One more text."}])
    rows = [
        {
            "prompt": text,
            "asked": f"{text} Please.",
            "who": f"w{i // 2}",
            "chosen": f"Yes {i}",
            "rejected": f"No no {i}",
            "one": f"One {i}",
            "two": f"Two two {i}",
            "winner": "one" if i % 3 else "two",
            "likes": "one" if i % 2 else "two",
            "first_won": i % 2 == 0,
            "second_won": i % 2 == 1,
            "first_sure": i % 4 == 0,
            "second_sure": i % 4 == 1,
            "tied": i % 4 > 1,
            "team": f"t{i // 4}",
            "answers": [
                {"one": f"Yes {i}", "two": f"No {i}", "best": 1, "rest": 0, "who": "x"},
                {"one": f"Three {i}", "two": f"Four {i}", "best": 0, "rest": 1, "who": "y"},
            ],
            "best": float(i % 3) / 2,
            "rest": float(i % 2),
        }
        for i, text in enumerate(QUESTIONS)
    ]
    _jsonl(folder / "columns.jsonl", rows)
    trl = [{k: row[k] for k in ("prompt", "chosen", "rejected")} for row in rows]
    _jsonl(folder / "odd.jsonl", [*trl[:4], {"prompt": "q", "chosen": 7, "rejected": "n"}])
    other = [row | {"prompt": "Say x."} for row in trl[:1]]
    _jsonl(folder / "mixed.jsonl", [*trl[:4], *other])
    _jsonl(folder / "many.jsonl", preferences(24))
    asked = [
        {
            "prompt": text,
            "asked": f"{text} Please.",
            "turns": [{"role": "system", "content": "Hm."}, {"role": "user", "content": text}],
            "tags": ["fruit"],
            "topics": [f"topic {i}"],
            "reference": "It is.",
            "gold": f"The answer {i} it is.",
            "split": "test" if i < 2 else "train",
            "part": "test" if i > 5 else "train",
        }
        for i, text in enumerate(QUESTIONS)
    ]
    _jsonl(folder / "asked.jsonl", asked)
    few = [row for row in completions(["Yes", "No"], 6) if row["prompt_id"] in _trained(asked)]
    _jsonl(folder / "few_answers.jsonl", few)
    _dataset(folder / "set", {"plain": rows, "small": rows[:5]})
    pku = [
        {
            "prompt": text,
            "response_0": f"Yes {i}",
            "response_1": f"No no {i}",
            "better_response_id": i % 2,
            "safer_response_id": int(i % 3 > 0),
            "is_response_0_safe": i % 3 == 0,
            "is_response_1_safe": i % 3 > 0,
        }
        for i, text in enumerate(QUESTIONS)
    ]
    _jsonl(folder / "pku.jsonl", pku)
    (folder / "wording.yaml").write_text(yaml.safe_dump(WORDING))
    others = [{"prompt": f"{text} Say why.", "reference": f"Since {text}"} for text in QUESTIONS]
    _jsonl(folder / "others.jsonl", others)
    _jsonl(folder / "still_others.jsonl", others[2:])


def _trained(rows: list[dict[str, Any]]) -> set[str]:
    """The prompts whose split is the training one under both columns that say so."""
    both = [row for row in rows if "test" not in (row["split"], row["part"])]
    return {make_prompt([{"role": "user", "content": r["prompt"]}]).prompt_id for r in both}


def _dataset(folder: Path, configs: dict[str, list[dict[str, Any]]]) -> None:
    """A folder that `datasets` loads: of each configuration the rows, and the last half of them as
    another split."""
    wanted = ("prompt", "reference", "chosen", "rejected")
    found = []
    for name, rows in configs.items():
        splits = {"train": rows, "late": rows[len(rows) // 2 :]}
        for split, some in splits.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            kept = [{key: row[key] for key in wanted if key in row} for row in some]
            _jsonl(folder / name / f"{split}.jsonl", kept)
        files = [{"split": split, "path": f"{name}/{split}.jsonl"} for split in splits]
        found.append({"config_name": name, "data_files": files, "default": name == "plain"})
    card = yaml.safe_dump({"configs": found})
    (folder / "README.md").write_text(f"---\n{card}---\n")


def _jsonl(path: Path, rows: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
