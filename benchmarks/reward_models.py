"""Reward models distilled from real labels, beside baselines that understand nothing.

    python benchmarks/reward_models.py [--data DIR] [--methods linear bradley_terry]
        [--trained-on ai human] [--tested-on ai human autoj]
        [--pairs 1500] [--longest 1600] [--layers auto] [--seed 0] [--out DIR] [--quick] [--json]

Three sources: GPT-4's verdicts on AlpacaEval (AI labels), HH's labels and Auto-J's (people). For
each of the first two, and each way to judge, held-out accuracy, and the accuracy on the other
sources: the cross table. The ways are the length of the answers, a bag of words, who wrote them
(AlpacaEval, where this is known), and a reward model on the embedded 135M model's body. A model's
accuracy less each baseline's is given on the same pairs, with its interval.

Nothing is tested on what it was trained on: within a source the pairs are cut into five folds, all
that begins with one user turn in one of them, and each fold is judged by what was trained on the
others (bradley_terry: the first fold alone). Intervals resample these first turns; they hold for
the models as they were fitted, and do not cover another draw of training pairs (`--seed` makes
one).
DIR is what RLAIF_DATA names, else `shared/data` beside the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
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
TRAINED = ("ai", "human")
CONSTANT = "example"
"""The generator that gives every instruction the same adversarial text: nothing to learn from."""
FOLDS = 5
TO_A_PROMPT = 6
"""More pairs of a prompt would be the same instructions over again; intervals resample prompts."""
QUICK = {"pairs": 30, "longest": 500}
TRAINING: dict[str, dict[str, Any]] = {
    "linear": {},
    "bradley_terry": {"learning_rate": 2e-4, "batch_size": 16, "lora": {"r": 16, "alpha": 32}},
}


@dataclass
class Data:
    """The decided pairs of a source in order, with the fold and the first user turn of each, and
    who wrote the better and the worse answer where that is known; a model's hidden states of them
    once these were asked for."""

    name: str
    pairs: list[Any]
    folds: list[int]
    turns: list[str]
    authors: list[tuple[str, str] | None]
    features: Any = None
    compared: Any = None


Rows = Sequence[int]
Score = Callable[[Data, Rows], Sequence[float]]
"""The gap of each of these pairs, above 0 where the better answer is preferred."""


@dataclass
class Way:
    """A way to judge. `fit` learns from some pairs of a source; with `whole` it can afford to do so
    for every fold. It is only tested on `sources`."""

    name: str
    fit: Callable[[Data, Rows], Score]
    whole: bool = True
    sources: Sequence[str] = field(default_factory=lambda: tuple(FILES))


def place(*parts: Any) -> int:
    """A number that the parts decide."""
    from rlaif.core.records import content_hash

    return int(content_hash("reward_models", *parts), 16)


def read(options: argparse.Namespace, source: str) -> Data:
    """The decided pairs whose prompt and longer answer have at most `longest` characters, at most
    `pairs`, drawn by hash."""
    from rlaif.data.readers import read_labelled
    from rlaif.pipeline.steps.load import labelled_preference

    file, form = FILES[source]
    found = {}
    for pair in read_labelled(options.data / file, form, on_error="skip"):
        size = sum(len(m["content"]) for m in pair.prompt.messages)
        size += max(len(pair.first.text), len(pair.second.text))
        constant = pair.authors is not None and CONSTANT in pair.authors
        same = pair.first.text.strip() == pair.second.text.strip()
        if pair.label in (None, 0.5) or size > options.longest or constant or same:
            continue
        authors = pair.authors if pair.label > 0.5 or not pair.authors else pair.authors[::-1]
        preference = labelled_preference(pair)
        found[preference.preference_id] = (preference, authors)
    seed, used = options.seed, Counter[str]()
    rows = []
    for preference, authors in sorted(
        found.values(),
        key=lambda row: (place(seed, row[0].prompt_id), place(seed, row[0].preference_id)),
    ):
        used[preference.prompt_id] += 1
        if used[preference.prompt_id] <= TO_A_PROMPT:
            rows.append((preference, authors))
    rows = rows[: options.pairs]
    turns = [p.prompt[0]["content"] for p, _ in rows]
    folds = [place("fold", seed, turn) % FOLDS for turn in turns]
    return Data(source, [p for p, _ in rows], folds, turns, [a for _, a in rows])


def by_length(train: Data, rows: Rows) -> Score:
    """A logistic regression of which answer is better on the difference in characters."""
    import numpy as np

    from rlaif.metrics.ridge import fit_ridge

    def gaps(data: Data, rows: Rows) -> Any:
        pairs = [data.pairs[i] for i in rows]
        sizes = [(len(p.chosen[0]["content"]), len(p.rejected[0]["content"])) for p in pairs]
        return np.array([[(a - b) / 1000] for a, b in sizes])

    weights = fit_ridge(gaps(train, rows), np.ones(len(rows)), 1e-3)
    return lambda data, rows: gaps(data, rows) @ weights


def by_words(train: Data, rows: Rows) -> Score:
    """A ridge logistic regression on differences of bags of words and word pairs (tf-idf), its
    penalty by cross-validation over prompts."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, GroupKFold

    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    words.fit(text for i in rows for text in texts(train.pairs[i]))

    def gaps(data: Data, rows: Rows) -> Any:
        sides = zip(*(texts(data.pairs[i]) for i in rows), strict=True)
        chosen, rejected = (words.transform(side) for side in sides)
        return chosen - rejected

    x = gaps(train, rows)
    groups = [train.turns[i] for i in rows] * 2
    search = GridSearchCV(
        LogisticRegression(fit_intercept=False, max_iter=1000),
        {"C": [0.1, 1.0, 10.0, 100.0]},
        cv=GroupKFold(min(FOLDS, len(set(groups)))),
        scoring="neg_log_loss",
    )
    search.fit(vstack([x, -x]), [1] * len(rows) + [0] * len(rows), groups=groups)
    return lambda data, rows: search.decision_function(gaps(data, rows))


def texts(pair: Any) -> tuple[str, str]:
    """The better and the worse answer."""
    return pair.chosen[0]["content"], pair.rejected[0]["content"]


def by_author(train: Data, rows: Rows) -> Score:
    """The share of its pairs that each author won: it knows who wrote, and nothing of what."""
    won, seen = Counter[str](), Counter[str]()
    for authors in (train.authors[i] for i in rows):
        if authors is not None:
            won[authors[0]] += 1
            seen.update(authors)
    share = {name: (won[name] + 1) / (seen[name] + 2) for name in seen}

    def gaps(data: Data, rows: Rows) -> list[float]:
        named = [data.authors[i] or ("", "") for i in rows]
        return [share.get(a, 0.5) - share.get(b, 0.5) for a, b in named]

    return gaps


def by_linear(out: Path, options: argparse.Namespace, train: Data, rows: Rows) -> Score:
    """A `linear` reward model: its depth and its head are found on these pairs, its body is as it
    was."""
    import torch

    from rlaif.train.fits import Comparisons, fit_depth

    features, compared = states(train, out, options)
    index = torch.tensor(list(rows))
    part = Comparisons(*(getattr(compared, n)[index] for n in Comparisons.__annotations__))
    depth, head, _ = fit_depth(features, part, options.seed)
    print(f"{train.name}: linear on {len(rows)} pairs reads {depth} layers", flush=True)

    def gaps(data: Data, rows: Rows) -> Any:
        features, compared = states(data, out, options)
        last = features[depth].last
        with torch.no_grad():
            rewards = head(last, last).reward
        return (rewards[compared.chosen] - rewards[compared.rejected])[list(rows)].numpy()

    return gaps


def states(data: Data, out: Path, options: argparse.Namespace) -> tuple[Any, Any]:
    """By depth the embedded model's hidden states of a source's answers, and the pairs among
    them."""
    import torch

    from rlaif.engines.model_folders import resolve
    from rlaif.train.methods.heads import LinearDistill
    from rlaif.train.model import compute_dtype
    from rlaif.train.probe import comparisons, read_depths
    from rlaif.train.reward_model import by_prompt
    from rlaif.train.tokenise import encode, load_tokenizer

    if data.features is None:
        began = time.monotonic()
        step = LinearDistill(method="linear", layers=options.layers)
        start = resolve(MODEL)
        encoded = encode(
            data.pairs,
            load_tokenizer(start),
            {},
            both=True,
            max_length=options.max_length,
            overlong="refuse",
            train_on_eos=True,
            always_end=True,
        )
        # Pairs of a prompt stand together, so the comparisons keep the order of the pairs.
        examples = by_prompt(encoded.examples)
        device = torch.device("cpu")
        dtype = compute_dtype(step.precision, device)
        work = out / data.name
        data.features = read_depths(examples, start, step, work, device, dtype, step.layers)
        data.compared = comparisons(examples)
        assert len(data.compared.chosen) == len(data.pairs)
        seconds = time.monotonic() - began
        count = sum(len(e.completions) for e in examples)
        print(f"{data.name}: hidden states of {count} answers in {dtype}, {seconds:.0f} s")
    return data.features, data.compared


def by_training(
    method: str, out: Path, options: argparse.Namespace, train: Data, rows: Rows
) -> Score:
    """A reward model of which adapters are trained by `method`."""
    from pydantic import TypeAdapter

    from rlaif.config.methods import AnyDistill
    from rlaif.engines.model_folders import resolve
    from rlaif.train.run import train as train_all

    step = TypeAdapter(AnyDistill).validate_python(
        {"method": method, "max_length": options.max_length, **TRAINING[method]}
    )
    folder = out / f"{train.name}-{method}"
    pairs = [train.pairs[i] for i in rows]
    began = time.monotonic()
    train_all(
        step,
        pairs,
        {},
        resolve(MODEL),
        None,
        folder / "model",
        folder / "work",
        options.seed,
        "cpu",
    )
    print(f"{train.name}: {method} on {len(pairs)} pairs, {time.monotonic() - began:.0f} s")
    return lambda data, rows: rewards(folder / "model", [data.pairs[i] for i in rows])


def rewards(folder: Path, pairs: Sequence[Any]) -> list[float]:
    """The gaps of a reward model."""
    from rlaif.config.models import ModelSpec
    from rlaif.engines.base import RewardRequest
    from rlaif.engines.build import load_engine

    engine = load_engine(ModelSpec(path=str(folder)), folder, "reward")
    requests = [
        RewardRequest(f"{p.preference_id}/{side}", p.prompt, getattr(p, side)[0])
        for p in pairs
        for side in ("chosen", "rejected")
    ]
    found = {r.request_id: r.reward for batch in engine.reward(requests) for r in batch}
    engine.close()
    return [
        found[f"{p.preference_id}/chosen"] - found[f"{p.preference_id}/rejected"] for p in pairs
    ]


def judged(way: Way, train: Data, data: Sequence[Data]) -> dict[str, dict[int, float]]:
    """By source tested on, 1, 0 or one half for each pair that the way has judged. Of its own
    source each fold by what the others taught it."""
    found: dict[str, dict[int, float]] = {}
    own: dict[int, float] = {}
    score = None
    for fold in range(FOLDS if way.whole else 1):
        taught = [i for i, f in enumerate(train.folds) if f != fold]
        score = way.fit(train, taught)
        own |= right(score, train, [i for i, f in enumerate(train.folds) if f == fold])
    found[train.name] = own
    if way.whole:
        score = way.fit(train, range(len(train.pairs)))
    for other in data:
        if other is not train and other.name in way.sources:
            assert score is not None
            found[other.name] = right(score, other, range(len(other.pairs)))
    return found


def right(score: Score, data: Data, rows: Rows) -> dict[int, float]:
    """Which of these pairs are ranked right; a tie is one half."""
    if not rows:
        return {}
    gaps = score(data, rows)
    return {i: float(g > 0) + 0.5 * float(g == 0) for i, g in zip(rows, gaps, strict=True)}


def interval(values: dict[int, float], data: Data) -> dict[str, Any]:
    """The mean with its interval over first turns."""
    import numpy as np

    from rlaif.metrics.pooled import figure_intervals
    from rlaif.metrics.weighted import mean_of

    rows = sorted(values)
    figure = {"accuracy": mean_of(np.array([values[i] for i in rows]))}
    found = figure_intervals(figure, [data.turns[i] for i in rows])["accuracy"].to_json()
    return {**found, "pairs": len(rows)}


def measure(options: argparse.Namespace, out: Path) -> list[dict[str, Any]]:
    """One row for each source trained on, way to judge, and source tested on."""
    needed = {*options.trained_on, *options.tested_on}
    data = [read(options, source) for source in FILES if source in needed]
    for d in data:
        print(described(d), flush=True)
    baselines = [Way("length", by_length), Way("bag of words", by_words)]
    known = Way("author", by_author, sources=("ai",))
    made = {
        "linear": Way("linear", partial(by_linear, out, options)),
        "bradley_terry": Way(
            "bradley_terry", partial(by_training, "bradley_terry", out, options), whole=False
        ),
    }
    rows: list[dict[str, Any]] = []
    for train in (d for d in data if d.name in options.trained_on):
        ways = [*baselines, *([known] if train.name == "ai" else [])]
        results = {way.name: judged(way, train, data) for way in ways}
        for name, found in results.items():
            rows += table(name, found, train, data, {})
        base = {way.name: results[way.name] for way in baselines}
        for method in options.methods:
            rows += table(method, judged(made[method], train, data), train, data, base)
    return rows


def described(data: Data) -> str:
    """How many pairs there are, and how many of their answers stand in other folds too."""
    where: dict[str, set[int]] = {}
    for pair, fold in zip(data.pairs, data.folds, strict=True):
        for text in texts(pair):
            where.setdefault(text, set()).add(fold)
    shared = sum(any(len(where[t]) > 1 for t in texts(p)) for p in data.pairs)
    turns = len(set(data.turns))
    return (
        f"{data.name}: {len(data.pairs)} pairs of {turns} first turns; {shared} pairs have an "
        "answer whose very text is in another fold too"
    )


def table(
    name: str,
    found: dict[str, dict[int, float]],
    train: Data,
    data: Sequence[Data],
    baselines: dict[str, dict[str, dict[int, float]]],
) -> list[dict[str, Any]]:
    """The rows of one way to judge, printed as they are made; with what it has more than each
    baseline on the same pairs."""
    rows = []
    for tested in data:
        values = found.get(tested.name)
        if not values:
            continue
        row = {"trained_on": train.name, "judge": name, "tested_on": tested.name}
        row |= {"accuracy": interval(values, tested)}
        for base, theirs in baselines.items():
            own = theirs[tested.name]
            row[f"more than {base}"] = interval({i: v - own[i] for i, v in values.items()}, tested)
        rows.append(row)
        print(show(row), flush=True)
    return rows


def show(row: dict[str, Any]) -> str:
    """One line."""
    a = row["accuracy"]
    more = "".join(
        f"  {name} {v['mean']:+.3f} [{v['low']:+.3f}, {v['high']:+.3f}]"
        for name, v in row.items()
        if name.startswith("more than")
    )
    return (
        f"{row['judge']:14} trained on {row['trained_on']:6} tested on {row['tested_on']:6} "
        f"{a['mean']:.3f} [{a['low']:.3f}, {a['high']:.3f}] of {a['pairs']} pairs{more}"
    )


def main() -> int:
    """Measure, print, and end with one JSON object where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    beside = ROOT.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("RLAIF_DATA") or beside))
    parser.add_argument("--methods", nargs="*", choices=TRAINING, default=["linear"])
    parser.add_argument("--trained-on", nargs="+", choices=TRAINED, default=TRAINED)
    parser.add_argument(
        "--tested-on",
        nargs="+",
        choices=tuple(FILES),
        default=tuple(FILES),
        help="beside the source trained on [default: all]",
    )
    parser.add_argument("--pairs", type=int, default=1500, help="of each source, at most")
    parser.add_argument("--longest", type=int, default=1600, help="characters of a kept pair")
    parser.add_argument("--max-length", type=int, default=2048, help="tokens of prompt and answer")
    parser.add_argument(
        "--layers",
        default="auto",
        type=lambda s: int(s) if s.isdecimal() else s,
        help="of the linear model's body: a number, all, or auto",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws pairs and folds, and the order")
    parser.add_argument("--out", type=Path, help="where models are kept [default: they are not]")
    parser.add_argument("--quick", action="store_true", help="a few short pairs, one method")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"no labelled pairs in {options.data}: set RLAIF_DATA, or give --data")
    if options.quick:
        vars(options).update(QUICK, methods=["linear"])
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="reward-models-") as scratch:
        rows = measure(options, options.out or Path(scratch))
    seconds = time.monotonic() - began
    print(f"{seconds:.0f} s in all")
    if options.json:
        settings = {name: getattr(options, name) for name in ("pairs", "longest", "layers", "seed")}
        print(json.dumps({"rows": rows, **settings, "seconds": round(seconds, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
