"""Experiment files made wrong in one place or a few: what users mistype, and what they mistake.

Each mutation takes a random generator and the data of a good file, and changes it in place.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

STAGED = """\
name: staged
seeds: [1]
models:
  policy: {path: org/policy}
  labeller: {path: org/labeller, role: labeller}
constitution: constitution.yaml
prompts: {path: prompts.jsonl, holdout: 2, validation: 2}
prompt_sets:
  more: {path: more.jsonl, holdout: 1, validation: 2}
judges:
  - {id: ai, kind: pairwise, by: labeller}
  - {id: self, kind: yes_no, by: policy, principles: [kind]}
  - {id: reward, kind: reward_model, by: rm}
  - {id: gold, kind: rules}
  - {id: own, kind: rules, constitution: other.yaml}
arms:
  plain: {}
  cool: {set: {steps.drafts.temperature: 0.2, judges.ai.cot: true}}
sweep: {steps.rl.beta: [0.1]}
profiles:
  full: {steps.drafts.n: 8, stages.iterate.rounds: 4, models.policy.path: org/large}
stages:
  - id: start
    steps:
      - load: {id: demos, type: demonstrations, path: demos.jsonl}
      - train: {id: sft, method: sft, uses: [demos]}
      - evaluate: {judged_by: sft, judges: [gold, self], against: [initial]}
  - id: distil
    arms: [plain, cool]
    rounds: 2
    at: {"2": {steps.drafts.n: 3}}
    steps:
      - sample: {id: drafts, n: 2, prompts: 3}
      - judge: ai
      - pair: {id: prefs}
      - distill: {id: rm, uses: ["prefs@*"]}
  - id: iterate
    rounds: 3
    prompts: more
    until: {by: gold, stops_rising: 1}
    steps:
      - sample: {n: 3, prompts: {set: more, count: 2}}
      - judge: {id: self, uses: [sample]}
      - judge: {id: second, kind: rules}
        when: "1-2"
      - pair: {id: actor, uses: [self]}
      - pair: {id: judging, uses: [second]}
        when: "1-2"
      - train: {id: dpo, from: sft, reference: sft@1, uses: [actor, "judging?"]}
      - evaluate: {prompts: [main, more], against: [sft, previous], judges: [gold], judged_by: sft}
        when: {every: 1}
  - id: rl
    steps:
      - train: {id: rl, method: grpo, rewards: [{judge: reward, value: raw}], rollouts: 2, beta: 0}
      - evaluate: {id: last, model: rl, judges: [gold]}
        arms: [plain, cool]
"""
LABELLED = """\
name: labelled
models: {policy: {path: org/policy}, labeller: {path: org/labeller}}
constitution: constitution.yaml
prompts: {holdout: 2}
judges:
  - {id: gold, kind: rules}
arms:
  people: {labels: human, labels_used: [2, 4]}
  ai: {labels: ai}
  noise: {labels: random, flip: 0.5}
primary: [score/gold]
steps:
  - load: {id: labelled, type: pairs, path: pairs.jsonl}
  - judge: {id: compared, kind: pairwise, by: labeller}
  - label: {}
  - train: {method: dpo, beta: 0.2, lora: {r: 2}}
  - evaluate: {judges: [gold]}
"""
ROUNDS = """\
name: rounds
models:
  policy: {path: org/policy}
  far: {path: m, engine: openai, base_url: "http://127.0.0.1:9/v1", price: {input: 1, output: 2}}
constitution: constitution.yaml
prompts: {path: prompts.jsonl, holdout: 2}
judges:
  - {id: gold, kind: rules}
  - {id: panel, kind: jury, of: [{kind: yes_no, by: far}, {kind: rating, by: policy, id: r}]}
budget: 3.0
dataset: {uses: actor}
rounds: 3
steps:
  - sample: {n: 2, prompts: 2, pool: [{by: far}, {by: policy}]}
  - filter: {records: completions, filters: [{kind: duplicates}]}
  - judge: panel
  - pair: {id: actor, strategy: margin, min_margin: 0.1, weights: {panel: 1.0}}
  - sample: {id: again, n: 1}
    when: "2-"
  - judge: {id: gold, uses: [again]}
    when: "2-"
  - pair: {id: more, uses: [gold]}
    when: "2-"
  - train: {uses: [actor, "more?"], from: train}
  - evaluate: {}
    when: {every: 2}
"""
WRONG: list[Any] = [
    *(None, True, 0, -1, 1.5, "", " ", "x", "policy", "initial", "1-2", "3-1", "0", "self?"),
    *("gold@*", "sft@9", "rm@last", "main", "nowhere.yaml", [], {}, [1], ["a"], ["a", "a"]),
    *({"a": 1}, {"every": 0}, "steps.train", [None], [[]], [{}], {"id": 3}, "é\u0000", "日本"),
    *(10**12, 10**30, -(10**18), float("nan"), float("inf"), "a" * 300, "a.b", "..", {1: 2}),
]
PATHS = [
    *("steps.nobody.n", "steps", "steps.train", "stages.start", "stages.nobody.rounds", "judges"),
    *("judges.gold.kind", "judges.gold.principles", "models.policy.path", "prompts.holdout"),
    *("steps.evaluate.n", "steps.last.judges", "seeds", "arms", "sweep", "", ".", "a..b", "steps."),
    *("constitution", "steps.dpo.from", "steps.rl.rewards", "steps.actor.uses", "rounds", "name"),
    *("steps.99.n", "steps.0.n", "steps.drafts.id", "stages.0.steps.0.load.path", "nobody", "é"),
]

Mutation = Callable[[random.Random, dict[str, Any]], None]
Place = tuple[str | int, ...]


def write_sources(folder: Path, shipped: Path) -> list[str]:
    """Good files, those that are shipped and others, after what they name is written."""
    words = ["red", "egg", "river", "sky", "sleep", "May", "bees", "minute", "stone", "fish"]
    prompts = [{"prompt": f"What about {word}?", "tags": [word]} for word in words]
    _jsonl(folder / "prompts.jsonl", prompts)
    _jsonl(folder / "more.jsonl", [{"prompt": f"Why {word}?"} for word in words])
    rows = [
        {"prompt": f"{how} is {word}?", "chosen": "Good.", "rejected": "No."}
        for how in ("How", "Where", "Whose", "When", "Which")
        for word in words
    ]
    _jsonl(folder / "pairs.jsonl", rows)
    told = [
        {"messages": [_turn("user", f"Is {word}?"), _turn("assistant", "It is.")]} for word in words
    ]
    _jsonl(folder / "demos.jsonl", told)
    principles = [
        {"id": "kind", "text": "The answer is kind."},
        {"id": "brief", "check": {"rule": "word_limits", "params": {"min": 1, "max": 9}}},
    ]
    for name in ("constitution", "other"):
        text = yaml.safe_dump({"name": name, "principles": principles})
        (folder / f"{name}.yaml").write_text(text)
    found = [_quick(path.read_text("utf-8")) for path in sorted(shipped.glob("*.yaml"))]
    # Most of what is new is in those that are not shipped.
    return [*[STAGED] * 5, *[LABELLED, ROUNDS] * 3, *found]


def _quick(text: str) -> str:
    """A shipped file with what takes time to look at in a small size."""
    text = text.replace("builtin/smollm2-135m-instruct", "org/policy")
    text = re.sub(r"count: \d+", "count: 1000", text)
    return text if "\ndata:" in text or "load:" not in text else f"{text}\ndata: pairs.jsonl\n"


def _turn(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def places(value: Any, loc: Place = ()) -> Iterator[Place]:
    """Every key and item within a value."""
    keys = value.keys() if isinstance(value, dict) else range(len(value))
    for key in keys if isinstance(value, dict | list) else ():
        yield (*loc, key)
        yield from places(value[key], (*loc, key))


def at(data: Any, loc: Place) -> Any:
    for part in loc:
        data = data[part]
    return data


def lists_of_steps(data: dict[str, Any]) -> list[list[Any]]:
    stages = data["stages"] if isinstance(data.get("stages"), list) else [data]
    found = [stage.get("steps") for stage in stages if isinstance(stage, dict)]
    return [steps for steps in found if isinstance(steps, list) and steps]


def bodies(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The keys of all steps and judges."""
    entries = [
        entry for steps in lists_of_steps(data) for entry in steps if isinstance(entry, dict)
    ]
    found = [body for entry in entries for body in entry.values() if isinstance(body, dict)]
    judges = data.get("judges")
    return found + [j for j in judges if isinstance(j, dict)] if isinstance(judges, list) else found


def names(data: dict[str, Any]) -> list[Any]:
    """Ids and names of all kinds, to be put where another kind is meant."""
    given = [body["id"] for body in bodies(data) if "id" in body]
    for key in ("models", "arms", "prompt_sets", "profiles"):
        given += list(data[key]) if isinstance(data.get(key), dict) else []
    return [*given, "policy", "initial", "previous", "main", "train", "sample", "pair", "nobody"]


def another_value(rng: random.Random, data: dict[str, Any]) -> None:
    loc = rng.choice(list(places(data)))
    at(data, loc[:-1])[loc[-1]] = deepcopy(rng.choice(WRONG))


def lost_key(rng: random.Random, data: dict[str, Any]) -> None:
    loc = rng.choice(list(places(data)))
    del at(data, loc[:-1])[loc[-1]]


def misspelt_key(rng: random.Random, data: dict[str, Any]) -> None:
    loc = rng.choice([loc for loc in places(data) if isinstance(loc[-1], str)])
    above, key = at(data, loc[:-1]), str(loc[-1])
    place = rng.randrange(len(key) + 1)
    new = rng.choice([key[:place] + key[place + 1 :], key + "s", key[::-1], key.upper(), "é" + key])
    items = [(new if name == key else name, value) for name, value in above.items()]
    above.clear()
    above.update(items)


def value_of_elsewhere(rng: random.Random, data: dict[str, Any]) -> None:
    every = list(places(data))
    one, other = rng.choice(every), rng.choice(every)
    at(data, one[:-1])[one[-1]] = deepcopy(at(data, other))


def other_name(rng: random.Random, data: dict[str, Any]) -> None:
    known = names(data)
    texts = [loc for loc in places(data) if at(data, loc) in known]
    if texts:
        loc = rng.choice(texts)
        at(data, loc[:-1])[loc[-1]] = rng.choice(known) + rng.choice(
            ["", "", "?", "@1", "@*", "@x"]
        )


def swapped_ids(rng: random.Random, data: dict[str, Any]) -> None:
    named = [body for body in bodies(data) if "id" in body]
    if len(named) > 1:
        one, other = rng.sample(named, 2)
        one["id"], other["id"] = other["id"], one["id"]


def same_ids(rng: random.Random, data: dict[str, Any]) -> None:
    one, other = rng.sample(bodies(data), 2)
    other["id"] = one.get("id", "train")


def other_uses(rng: random.Random, data: dict[str, Any]) -> None:
    known = names(data)
    key = rng.choice(["uses", "uses", "from", "reference", "by", "against", "judged_by", "model"])
    name = rng.choice(known) + rng.choice(["", "?", "@1", "@2", "@last", "@*", "@"])
    rng.choice(bodies(data))[key] = [name] if key in ("uses", "against") else name


def steps_in_another_order(rng: random.Random, data: dict[str, Any]) -> None:
    every = lists_of_steps(data)
    if every:
        rng.shuffle(rng.choice(every))


def step_dropped(rng: random.Random, data: dict[str, Any]) -> None:
    every = lists_of_steps(data)
    if every:
        steps = rng.choice(every)
        del steps[rng.randrange(len(steps))]


def step_twice(rng: random.Random, data: dict[str, Any]) -> None:
    every = lists_of_steps(data)
    if every:
        steps = rng.choice(every)
        rng.choice(every).insert(rng.randrange(len(steps) + 1), deepcopy(rng.choice(steps)))


def stages_changed(rng: random.Random, data: dict[str, Any]) -> None:
    stages = data.get("stages")
    if not isinstance(stages, list) or not stages:
        data["stages"] = deepcopy(rng.choice([[], {}, [{"id": "a", "steps": data.get("steps")}]]))
        return
    change = rng.randrange(4)
    if change == 0:
        rng.shuffle(stages)
    elif change == 1:
        del stages[rng.randrange(len(stages))]
    elif change == 2:
        stages.append(deepcopy(rng.choice(stages)))
    else:
        data["steps"] = [{"sample": None}]


def beside_a_step(rng: random.Random, data: dict[str, Any]) -> None:
    """`when` and `arms` of steps, and the keys of stages."""
    entries = [
        entry for steps in lists_of_steps(data) for entry in steps if isinstance(entry, dict)
    ]
    rounds: list[Any] = [
        1,
        2,
        9,
        "2-",
        "4-",
        "0",
        "2-1",
        "",
        "x",
        {"every": 7},
        {"every": 0},
        [],
        0,
    ]
    arms: list[Any] = [[], ["plain"], ["nobody"], ["cool", "cool"], "plain", None, [1], ["ai"]]
    stages = data["stages"] if isinstance(data.get("stages"), list) else []
    owners = [stage for stage in stages if isinstance(stage, dict)]
    until: list[Any] = [{"by": "gold"}, {"by": "nobody"}, {"by": "ai"}, {}, {"stops_rising": 1}]
    if owners and rng.random() < 0.5:
        owner = rng.choice(owners)
        choices: list[tuple[str, list[Any]]] = [
            *(("arms", arms), ("until", until), ("rounds", [0, 1, 2, "x", 10**6, None])),
            *(("prompts", ["more", "nobody", "main", 3]), ("id", ["start", "", "main", 3, "é"])),
        ]
        key, values = rng.choice(choices)
        owner[key] = deepcopy(rng.choice(values))
    elif entries:
        key, values = rng.choice([("when", rounds), ("arms", arms)])
        rng.choice(entries)[key] = deepcopy(rng.choice(values))


def other_paths(rng: random.Random, data: dict[str, Any]) -> None:
    """Paths that lead nowhere, or to what measures all arms."""
    values = [*WRONG, {"method": "ipo"}, None, [{"judge": {"id": "new", "kind": "rules"}}], 0.5, 2]
    path, value = rng.choice(PATHS), deepcopy(rng.choice(values))
    form = rng.randrange(4)
    if form == 0:
        data["arms"] = {"plain": {}, "cool": {"set": {path: value}}}
    elif form == 1:
        data["sweep"] = {path: rng.choice([[value], [value, value], [1, 2], [], value])}
    elif form == 2:
        data["profiles"] = {"full": {path: value}}
    elif isinstance(data.get("stages"), list) and data["stages"]:
        stage = rng.choice(data["stages"])
        if isinstance(stage, dict):
            stage["at"] = {rng.choice(["1", "2-", 1, "9", "x"]): {path: value}}


MUTATIONS: list[Mutation] = [
    *(another_value, lost_key, misspelt_key, value_of_elsewhere, other_name, swapped_ids, same_ids),
    *(other_uses, steps_in_another_order, step_dropped, step_twice, stages_changed, beside_a_step),
    *(other_paths,),
]


def mutated(rng: random.Random, text: str) -> str:
    """The text of a good file after one mutation or a few; sometimes characters are lost too."""
    data = yaml.load(text, Loader=yaml.CSafeLoader)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        # What an earlier one has left may lack what this one would change.
        try:
            rng.choice(MUTATIONS)(rng, data)
        except (IndexError, KeyError, TypeError, ValueError):
            continue
    made = yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False, allow_unicode=True)
    if rng.random() < 0.1:
        made = text
    if made == text or rng.random() < 0.05:
        for _ in range(rng.randrange(1, 4)):
            place = rng.randrange(len(made))
            made = made[:place] + made[place + rng.randrange(1, 6) :]
    return made
