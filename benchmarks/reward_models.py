"""Reward models distilled from real labels, beside baselines that understand nothing.

    python benchmarks/reward_models.py [--data DIR] [--methods linear bradley_terry]
        [--pairs 400] [--test 200] [--out DIR] [--quick] [--json]

Two sources: GPT-4's verdicts on AlpacaEval (AI labels; split by instruction) and HH's labels
(people; split by prompt). On each, a reward model on the embedded 135M model's body, a logistic
regression on the difference in length, and one on bags of words are trained on the same pairs, and
all are tested on held-out pairs of both sources and on Auto-J's (people, test only): the cross
table.
DIR is what RLAIF_DATA names, else `shared/data` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
MODEL = "builtin/smollm2-135m-instruct"
FILES = {
    "ai": ("alpaca_eval_gpt4_annotations.jsonl.gz", "alpaca_eval_outputs"),
    "human": ("hh_harmless_dev.jsonl.gz", "hh"),
    "autoj": ("autoj_pairwise_dev.jsonl.gz", "autoj"),
}
CONSTANT = "example"
"""The generator that gives every instruction the same adversarial text: nothing to learn from."""
QUICK = {"pairs": 12, "test": 8}
TRAINING: dict[str, dict[str, Any]] = {
    "linear": {},
    "bradley_terry": {"learning_rate": 2e-4, "batch_size": 16, "lora": {"r": 16, "alpha": 32}},
}
Score = Callable[[Sequence[Any]], list[float]]
"""From preferences to the gap of each, above 0 where the chosen answer is preferred."""


def read(data: Path, source: str, longest: int) -> list[Any]:
    """The decided pairs of a source whose prompt and answers have at most `longest` characters."""
    from rlaif.data.readers import read_labelled
    from rlaif.steps.load import labelled_preference

    name, form = FILES[source]
    found = []
    for pair in read_labelled(data / name, form, on_error="skip"):
        size = sum(len(m["content"]) for m in pair.prompt.messages)
        size += max(len(pair.first.text), len(pair.second.text))
        constant = pair.authors is not None and CONSTANT in pair.authors
        if pair.label not in (None, 0.5) and size <= longest and not constant:
            found.append(labelled_preference(pair))
    return found


def split(preferences: Sequence[Any], train: int, test: int) -> tuple[list[Any], list[Any]]:
    """Pairs to train and to test on, no prompt in both, drawn by the hash of prompt and pair."""
    from rlaif.records import content_hash

    def place(*parts: str) -> str:
        return content_hash("reward_models", *parts)

    ordered = sorted(
        preferences, key=lambda p: (place(p.prompt_id), place(p.prompt_id, p.preference_id))
    )
    held: dict[str, list[Any]] = {}
    kept: dict[str, list[Any]] = {}
    for p in ordered:
        tested = int(place("test", p.prompt_id), 16) % 4 == 0
        group = (held if tested else kept).setdefault(p.prompt_id, [])
        # Two to a prompt: more would be the same instructions over again.
        if len(group) < 2:
            group.append(p)
    return (
        [p for group in kept.values() for p in group][:train],
        [p for group in held.values() for p in group][:test],
    )


def by_length(train: Sequence[Any]) -> Score:
    """A logistic regression of which answer is better on the difference in characters."""
    import numpy as np

    from rlaif.compare.ridge import fit_ridge

    def gaps(pairs: Sequence[Any]) -> Any:
        sizes = [(len(p.chosen[0]["content"]), len(p.rejected[0]["content"])) for p in pairs]
        return np.array([[(a - b) / 1000] for a, b in sizes])

    weights = fit_ridge(gaps(train), np.ones(len(train)), 1e-3)
    return lambda pairs: [float(x) for x in gaps(pairs) @ weights]


def by_words(train: Sequence[Any]) -> Score:
    """A ridge logistic regression on differences of bags of words and word pairs (tf-idf), its
    penalty by cross-validation over prompts."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    words.fit(text for p in train for text in (p.chosen[0]["content"], p.rejected[0]["content"]))

    def gaps(pairs: Sequence[Any]) -> Any:
        sides = ([getattr(p, s)[0]["content"] for p in pairs] for s in ("chosen", "rejected"))
        chosen, rejected = (words.transform(texts) for texts in sides)
        return chosen - rejected

    x = gaps(train)
    both, groups = vstack([x, -x]), [p.prompt_id for p in train] * 2
    labels = [1] * len(train) + [0] * len(train)
    folds = GroupKFold(min(5, len(set(groups))))
    search = GridSearchCV(
        LogisticRegression(fit_intercept=False, max_iter=1000),
        {"C": [0.1, 1.0, 10.0, 100.0]},
        cv=folds,
        scoring="neg_log_loss",
    )
    search.fit(both, labels, groups=groups)
    return lambda pairs: [float(v) for v in search.decision_function(gaps(pairs))]


def by_model(method: str, train: Sequence[Any], folder: Path, longest: int) -> Score:
    """A reward model on the embedded body, trained by `method` in `folder` (or found there)."""
    import torch
    from pydantic import TypeAdapter

    from rlaif.config import FitStep
    from rlaif.config.distill import AnyDistill
    from rlaif.engines.builtin import resolve
    from rlaif.train.probe import fit_reward_model
    from rlaif.train.run import train as train_all

    step = TypeAdapter(AnyDistill).validate_python(
        {"method": method, "max_length": longest, **TRAINING[method]}
    )
    start, out, work = resolve(MODEL), folder / "model", folder / "work"
    if isinstance(step, FitStep):
        fit_reward_model(step, train, {}, [], start, out, work, 0, torch.device("cpu"))
    else:
        train_all(step, train, {}, start, None, out, work, 0, "cpu")
    return lambda pairs: rewards(out, pairs)


def rewards(folder: Path, pairs: Sequence[Any]) -> list[float]:
    """The gaps of a reward model."""
    from rlaif.config import ModelSpec
    from rlaif.engines.base import RewardRequest
    from rlaif.engines.build import load_engine

    engine = load_engine(ModelSpec(path=str(folder)), folder, "reward")
    requests = {
        f"{p.prompt_id}/{name}": RewardRequest(f"{p.prompt_id}/{name}", p.prompt, turn[0])
        for p in pairs
        for name, turn in ((p.chosen_id, p.chosen), (p.rejected_id, p.rejected))
    }
    found = {r.request_id: r for batch in engine.reward(requests.values()) for r in batch}
    engine.close()
    return [
        found[f"{p.prompt_id}/{p.chosen_id}"].reward
        - found[f"{p.prompt_id}/{p.rejected_id}"].reward
        for p in pairs
    ]


def accuracy(gaps: Sequence[float], pairs: Sequence[Any]) -> dict[str, float]:
    """How often the chosen answer is preferred (a tie is one half), with its interval by prompt."""
    import numpy as np

    from rlaif.compare.bootstrap import figure_intervals
    from rlaif.compare.weighted import mean_of

    right = np.array([float(g > 0) + 0.5 * float(g == 0) for g in gaps])
    found = figure_intervals({"accuracy": mean_of(right)}, [p.prompt_id for p in pairs])
    return dict(found["accuracy"].to_json())


def measure(options: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    """One row for each source trained on, way of judging, and source tested on."""
    data = {s: read(options.data, s, options.longest) for s in FILES}
    parts = {s: split(p, options.pairs, options.test) for s, p in data.items()}
    for source, (train, test) in parts.items():
        used = 0 if source == "autoj" else len(train)
        print(f"{source}: {used} pairs to train on, {len(test)} to test on", flush=True)
    rows = []
    for source in ("ai", "human"):
        train = parts[source][0]
        judges: dict[str, Callable[[], Score]] = {
            "length": lambda train=train: by_length(train),
            "bag of words": lambda train=train: by_words(train),
        }
        for method in options.methods:
            judges[method] = lambda m=method, t=train, s=source: by_model(
                m, t, out / f"{s}-{m}", options.max_length
            )
        for name, train_judge in judges.items():
            began = time.monotonic()
            score = train_judge()
            seconds = time.monotonic() - began
            for tested, (_, pairs) in parts.items():
                found = accuracy(score(pairs), pairs)
                rows.append(
                    {
                        "trained_on": source,
                        "judge": name,
                        "tested_on": tested,
                        **found,
                        "train_seconds": round(seconds, 1),
                    }
                )
                print(show(rows[-1]), flush=True)
    return rows


def show(row: dict[str, Any]) -> str:
    """One line."""
    interval = f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return (
        f"{row['judge']:14} trained on {row['trained_on']:6} tested on {row['tested_on']:6} "
        f"accuracy {interval} n {row['n']:4}  trained in {row['train_seconds']:.0f} s"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    beside = ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RLAIF_DATA") or beside))
    parser.add_argument("--methods", nargs="*", choices=TRAINING, default=list(TRAINING))
    parser.add_argument("--pairs", type=int, default=400, help="to train on, from each source")
    parser.add_argument("--test", type=int, default=200, help="to test on, of each source")
    parser.add_argument("--longest", type=int, default=1600, help="characters of a kept pair")
    parser.add_argument("--max-length", type=int, default=768, help="tokens of prompt and answer")
    parser.add_argument("--out", type=Path, help="where models are kept [default: they are not]")
    parser.add_argument("--quick", action="store_true", help="a few pairs, one method")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"no labelled pairs in {options.data}: set RLAIF_DATA, or give --data")
    if options.quick:
        vars(options).update(QUICK, methods=["linear"], longest=600)
    with tempfile.TemporaryDirectory(prefix="reward-models-") as scratch:
        rows = measure(options, options.out or Path(scratch))
    if options.json:
        print(json.dumps({"rows": rows, "pairs": options.pairs, "longest": options.longest}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
