"""The headline table as data: metrics by group, one cell per round, over one seed or several."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlaif.metrics.intervals import IntervalJson, direction, show_number
from rlaif.report.view import RoundResult, RoundRow

Tone = Literal["", "good", "bad", "moved"]


@dataclass(frozen=True, slots=True)
class Kind:
    """How the metrics with one prefix are shown. `better` is +1, -1 or 0 for neither."""

    prefix: str
    group: str
    better: int
    about: str


KINDS: tuple[Kind, ...] = (
    Kind("score/", "Judged scores", 1, "mean judge score of held-out answers"),
    Kind("win_rate/", "Judged scores", 1, "share of prompts with the higher score; 0.5 is par"),
    Kind("win_rate_vs_initial/", "Judged scores", 1, "share of prompts won against M0; 0.5 is par"),
    Kind(
        "reward_accuracy/",
        "Given pairs, held out",
        1,
        "share of pairs whose better answer, by this annotator, gained more likelihood; 0.5 is par",
    ),
    Kind("check/", "Checks never trained on", 1, "independent check of held-out answers"),
    Kind("judge_corr/", "Judge health", 1, "rank correlation with the checks within a prompt"),
    Kind("length/", "Text", 0, "length of an answer"),
    Kind("distinct_2", "Text", 0, "share of word bigrams that are distinct"),
    Kind("repetition_4", "Text", -1, "share of word 4-grams that repeat"),
    Kind("refusal_rate", "Text", 0, "share of answers that refuse"),
    Kind("stock_phrase_rate", "Text", 0, "share of answers with a stock phrase"),
    Kind("list_rate", "Text", 0, "share of answers with a list"),
    Kind("empty_rate", "Text", -1, "share of empty answers"),
    Kind("truncated_rate", "Text", -1, "share of answers cut at the token limit"),
    Kind("kl/", "Distance from M0", 0, "divergence, nats per answer"),
    Kind("kl_per_token/", "Distance from M0", 0, "divergence, nats per token"),
    Kind("loglik/", "Distance from M0", 0, "mean token log-probability of the answers under M0"),
    Kind("entropy", "Distance from M0", 0, "entropy of the policy's next token"),
    Kind("drift/", "Judge health", 0, "trained judge minus frozen judge, same texts"),
    Kind("label_mass/", "Judge health", 1, "probability that the judge puts on the labels"),
    Kind("distance/", "Judge health", -1, "distance of answers from a reward model's training"),
    Kind("disagreement/", "Judge health", -1, "how far the members of a reward ensemble disagree"),
    Kind("not_applicable_rate/", "Judge health", -1, "share of judgements that did not apply"),
    Kind("unparsed_rate/", "Judge health", -1, "share of verdicts that could not be read"),
    Kind(
        "position_bias/",
        "Judge health",
        0,
        "share of pairs in which the same slot wins in both orders; 0 is best",
    ),
    Kind("pairs/", "Pairs and samples", 0, "the pairs this round trained on"),
    Kind("samples/", "Pairs and samples", 0, "the samples this round drew"),
)
OTHER = Kind("", "Other", 0, "")
GROUPS: tuple[str, ...] = (
    "Checks never trained on",
    "Given pairs, held out",
    "Judged scores",
    "Text",
    "Distance from M0",
    "Judge health",
    "Pairs and samples",
    "Other",
)
_ORDER = {kind.prefix: place for place, kind in enumerate(KINDS)}


AGAINST_PAR = ("win_rate_vs_initial/", "reward_accuracy/")
"""Metrics that are themselves comparisons: they are read against 0.5, not against M0's."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One metric in one round; `delta` is against the initial model. The tone is that of a claim
    (see `claims`); an exploratory change has none."""

    value: IntervalJson | None
    delta: IntervalJson | None
    tone: Tone = ""
    exploratory: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One metric over the rounds."""

    name: str
    kind: Kind
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class Table:
    """Metrics under their columns' headings."""

    title: str
    headings: list[str]
    rows: list[Row]


def kind_of(name: str) -> Kind:
    """How the metric called `name` is grouped, read and coloured."""
    return next((k for k in KINDS if name == k.prefix or _is_under(name, k.prefix)), OTHER)


def seeds_of(rounds: Sequence[RoundRow]) -> list[int]:
    """The seeds present, in order."""
    return sorted({row["seed"] for row in rounds})


def round_numbers(rounds: Sequence[RoundRow]) -> list[int]:
    """The round numbers present, in order."""
    return sorted({row["round"] for row in rounds})


def arms_of(rounds: Sequence[RoundRow]) -> list[str]:
    """The arms present, in the order of the experiment; one arm where there are none."""
    return list(dict.fromkeys(row["arm"] for row in rounds))


def latest_rounds(rounds: Sequence[RoundRow]) -> list[RoundRow]:
    """The last round of each arm and seed, by arm and then seed."""
    last: dict[tuple[str, int], RoundRow] = {}
    for row in sorted(rounds, key=lambda r: r["round"]):
        last[row["arm"], row["seed"]] = row
    arms = arms_of(rounds)
    return [last[key] for key in sorted(last, key=lambda key: (arms.index(key[0]), key[1]))]


def side_by_side(rounds: Sequence[RoundRow]) -> tuple[list[str], list[RoundRow]]:
    """Headings and rounds of a table with a column for M0 and one for the last round of each arm,
    or for each round where there is one arm. Columns stand in `round`."""
    arms = arms_of(rounds)
    if len(arms) < 2:
        return [f"M{number}" for number in round_numbers(rounds)], list(rounds)
    first = [row for row in rounds if row["arm"] == arms[0] and row["round"] == 0]
    last = [row for row in latest_rounds(rounds) if row["round"] > 0]
    shown = {arm: place for place, arm in enumerate(arms_of(last), 1)}
    columns: list[RoundRow] = [{**row, "round": shown[row["arm"]]} for row in last]
    return ["M0", *shown], [*first, *columns]


def metric_rows(rounds: Sequence[RoundRow]) -> list[Row]:
    """A row per metric that any round measured, ordered by group; a cell for each of the rounds,
    which are merged over seeds."""
    names = {name for row in rounds for name in row["metrics"]["metrics"]}
    numbers = round_numbers(rounds)
    by_number = {row["round"]: row["metrics"] for row in rounds}
    rows = [
        Row(name, kind_of(name), [_make_cell(name, by_number[n]) for n in numbers])
        for name in names
    ]
    return sorted(rows, key=row_place)


def named_rows(names: Iterable[str]) -> list[Row]:
    """Rows without cells, ordered by group."""
    return sorted((Row(name, kind_of(name), []) for name in names), key=row_place)


def row_place(row: Row) -> tuple[int, int, str]:
    """Where a row stands in a table: by group, kind and name."""
    return GROUPS.index(row.kind.group), _ORDER.get(row.kind.prefix, len(KINDS)), row.name


def _is_under(name: str, prefix: str) -> bool:
    return prefix.endswith("/") and name.startswith(prefix)


def _make_cell(name: str, metrics: RoundResult) -> Cell:
    value = metrics["metrics"].get(name)
    change = metrics["deltas"].get("initial", {}).get(name)
    standing = metrics.get("standing", {}).get(name, "none")
    side = direction(value, 0.5) if name.startswith(AGAINST_PAR) else direction(change)
    tone = tone_of(name, side) if standing == "claimed" else ""
    return Cell(value, change, tone, standing == "exploratory")


def tone_of(name: str, side: int) -> Tone:
    """The colour of a claimed change of metric `name` to one `side`."""
    better = kind_of(name).better
    if side == 0:
        return ""
    if better == 0:
        return "moved"
    return "good" if side == better else "bad"


def alarm_items(rounds: Sequence[RoundRow], latest: bool) -> list[dict[str, Any]]:
    """Alarms of the last round of each arm and seed, or of all earlier ones, alarms before notices.

    One alarm is one item: the same in several arms and seeds has its message with the least and the
    largest value, `where` says in words which arms and seeds it concerns (empty where there is one
    of each), and `values` are the values by arm and seed.
    """
    last = latest_rounds(rounds)
    chosen = last if latest else [row for row in rounds if row not in last]
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(chosen, key=lambda row: (row["round"], row["seed"])):
        # Every arm begins with the same M0.
        if row["round"] == 0 and row["arm"] != rounds[0]["arm"]:
            continue
        for alarm in row["metrics"].get("alarms", []):
            key = (row["round"], alarm["name"], alarm["metric"])
            item = found.setdefault(
                key, {**alarm, "round": row["round"], "arms": [], "seeds": [], "values": []}
            )
            for name in ("arm", "seed"):
                if row[name] not in item[f"{name}s"]:
                    item[f"{name}s"].append(row[name])
            item["values"].append(alarm["value"])
    arms, seeds = arms_of(rounds), seeds_of(rounds)
    for item in found.values():
        where = [f"arm{'s' * (len(item['arms']) > 1)} {', '.join(item['arms'])}"] * (len(arms) > 1)
        numbers = ", ".join(str(seed) for seed in item["seeds"])
        where += [f"seed{'s' * (len(item['seeds']) > 1)} {numbers}"] * (len(seeds) > 1)
        item["where"] = ", ".join(where)
        if len(item["values"]) > 1:
            shown = [show_number(value) for value in (min(item["values"]), max(item["values"]))]
            item["where"] += f" ({item['metric']} {' to '.join(dict.fromkeys(shown))})"
    return sorted(found.values(), key=lambda item: str(item["severity"]))
