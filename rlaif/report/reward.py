"""What `rlaif reward-bench` found, as tables for a terminal and as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from rlaif.metrics.intervals import IntervalJson, direction, show_interval, show_number
from rlaif.report import plots
from rlaif.report.build import make_environment

Result = Mapping[str, Any]
_HERE = Path(__file__).resolve().parent
FIGURES = {
    "accuracy": "pairs in the right order; a tie is one half",
    "accuracy_where_longer_wins": "where the better answer is the longer one",
    "accuracy_where_shorter_wins": "where the better answer is the shorter one",
    "prefers_longer": "the longer answer has the higher reward",
    "length_spearman": "rank correlation of the gaps in reward and in length",
    "log_loss": "nats per pair; always 0.5 gives 0.693",
    "brier": "mean squared error of the probability; always 0.5 gives 0.25",
    "reward_mean": "of all answers, as reward_ensemble's standardise takes it",
    "reward_spread": "standard deviation of all answers' rewards",
    "ece": "expected calibration error, ten bins",
}


def reward_tables(result: Result) -> list[Table | Text]:
    """What the terminal shows."""
    pairs = result["pairs"]
    headline = _table(f"{result['name']}: {pairs['n']} pairs; 95% intervals over prompts", "n")
    for name, about in FIGURES.items():
        found = result["figures"].get(name)
        if found is not None:
            headline.add_row(Text(f"{name}\n  {about}"), show_interval(found), str(found["n"]))
    tables: list[Table | Text] = [headline]
    groups = {f"accuracy by {name}": rows for name, rows in result["accuracy_by"].items()}
    if result.get("accuracy_by_distance"):
        groups["accuracy by distance from the training"] = result["accuracy_by_distance"]
    if result.get("learning_curve"):
        groups["learning curve: accuracy of a linear head by training pairs"] = {
            str(row["pairs"]): row["accuracy"] for row in result["learning_curve"]
        }
    for title, rows in groups.items():
        tables.append(_rows(title, rows))
    if result["best_of_n"]:
        tables.append(_best_of_n(result["best_of_n"]))
    return [*tables, *(Text(line) for line in reward_words(result))]


def _table(title: str, *more: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for heading in ("mean", *more):
        table.add_column(heading, justify="right")
    return table


def _rows(title: str, rows: Mapping[str, IntervalJson]) -> Table:
    table = _table(title, "n")
    for name, found in rows.items():
        table.add_row(Text(name), show_interval(found), str(found["n"]))
    return table


def _best_of_n(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="best of n by this model", title_justify="left")
    for heading in ("n", "KL (nats)", "its own reward", "gold"):
        table.add_column(heading, justify="right")
    for row in rows:
        cells = (show_interval(row["proxy"]), show_interval(row["gold"]))
        table.add_row(str(row["n"]), show_number(row["kl"]), *cells)
    return table


def reward_words(result: Result) -> list[str]:
    """What the figures say, in sentences."""
    words = []
    found = result["figures"]["accuracy"]
    if direction(found, 0.5) == 0:
        words.append("The interval of the accuracy includes 0.5: it may be guessing.")
    stale = result["staleness"]
    if stale is not None:
        old, new = (
            f"{show_interval(stale[k])} on round {stale[k]['round']}" for k in ("oldest", "newest")
        )
        verdict = (
            "it is stale: retrain it, with the newest pairs"
            if stale["stale"]
            else "no sign that it is stale"
        )
        words.append(f"Accuracy is {old} and {new}: {verdict}.")
    noise = result.get("label_noise") or {}
    if noise.get("share") is not None:
        some = f"At least {noise['share']:.1%} of the training labels look"
        words.append(
            f"{some if noise['share'] else 'No training label looks'} wrong to a model that was "
            "trained on the others."
        )
    rows = result["best_of_n"]
    if len(rows) > 1:
        best = max(rows, key=lambda row: row["gold"]["mean"])
        if best["n"] < rows[-1]["n"]:
            words.append(
                f"Gold is highest at best of {best['n']} and lower at {rows[-1]['n']}, while its "
                "own reward rises: beyond that the reward is exploited."
            )
        else:
            words.append(f"Gold still rises at best of {rows[-1]['n']}: no exploitation so far.")
    return words


def reward_page(result: Result, path: Path) -> Path:
    """Write the page; it loads nothing and runs no script. Returns the file."""
    page = (
        make_environment()
        .get_template("reward.html.j2")
        .render(
            result=result,
            figures=FIGURES,
            words=reward_words(result),
            forests=_forests(result),
            curve=_reliability(result),
            wrong=[_wrong(i, row) for i, row in enumerate(result["most_wrong"])],
            style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        )
    )
    path.write_bytes(page.encode("utf-8", "replace"))
    return path


def _forests(result: Result) -> list[tuple[str, Markup]]:
    """Accuracy in each division of the pairs, with intervals."""
    groups = dict(result["accuracy_by"])
    if result.get("accuracy_by_distance"):
        groups["distance from the training"] = result["accuracy_by_distance"]
    if result.get("learning_curve"):
        curve = result["learning_curve"]
        groups["training pairs, a linear head"] = {str(r["pairs"]): r["accuracy"] for r in curve}
    return [
        (name, plots.draw_forest(f"by{i}", f"Accuracy by {name}", _forest_rows(rows), 0.5))
        for i, (name, rows) in enumerate(groups.items())
    ]


def _forest_rows(rows: Mapping[str, IntervalJson]) -> list[tuple[str, IntervalJson, bool]]:
    return [(name, value, False) for name, value in rows.items()]


def _reliability(result: Result) -> Markup | None:
    bins = result["reliability"]
    if len(bins) < 2:
        return None
    return plots.draw_reliability("reliability", f"Reliability, {len(bins)} bins", bins)


def _wrong(place: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """One pair with the parts of its rewards drawn, where the head says what they are."""
    added = {
        name.removeprefix("objective/"): values[0] - values[1]
        for name, values in row["parts"].items()
        if name.startswith("objective/")
    }
    plot = None
    if added:
        spoken = ", ".join(f"{name} {show_number(v, True)}" for name, v in added.items())
        plot = plots.draw_bars(f"parts{place}", f"Chosen less rejected: {spoken}", added)
    return {**row, "plot": plot}
