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
from rlaif.report.figures import Result, column_of, make_table, write_page

NAMES = (
    *("accuracy", "accuracy_where_longer_wins", "accuracy_where_shorter_wins", "prefers_longer"),
    *("length_spearman", "log_loss", "brier", "reward_mean", "reward_spread", "ece"),
)
OF_REWARDS = {
    "prefers_longer": "the longer answer has the higher reward",
    "brier": "mean squared error of the probability; always 0.5 gives 0.25",
    "ece": "expected calibration error, ten bins",
}
"""What figures mean that judges have too."""
FIGURES = {name: OF_REWARDS.get(name) or column_of(name).about for name in NAMES}


def reward_tables(result: Result) -> list[Table | Text]:
    """What the terminal shows."""
    pairs = result["pairs"]
    title = f"{result['name']}: {pairs['n']} pairs; 95% intervals over prompts"
    headline = make_table(title, "", "mean", "n")
    for name, about in FIGURES.items():
        found = result["figures"].get(name)
        if found is not None:
            headline.add_row(Text(f"{name}\n  {about}"), show_interval(found), str(found["n"]))
    tables: list[Table | Text] = [headline]
    for title, _, rows in _accuracy_divisions(result):
        table = make_table(title, "", "mean", "n")
        for name, found in rows.items():
            table.add_row(Text(name), show_interval(found), str(found["n"]))
        tables.append(table)
    if result["best_of_n"]:
        tables.append(_best_of_n(result["best_of_n"]))
    return [*tables, *(Text(line) for line in reward_words(result))]


def _accuracy_divisions(result: Result) -> list[tuple[str, str, Mapping[str, IntervalJson]]]:
    """Accuracy in each division of the pairs: its title in the terminal, what the page says that it
    is by, and the rows."""
    found = [(f"accuracy by {name}", name, rows) for name, rows in result["accuracy_by"].items()]
    if rows := result.get("accuracy_by_distance"):
        by = "distance from the training"
        found.append((f"accuracy by {by}", by, rows))
    if curve := result.get("learning_curve"):
        title = "learning curve: accuracy of a linear head by training pairs"
        rows = {str(row["pairs"]): row["accuracy"] for row in curve}
        found.append((title, "training pairs, a linear head", rows))
    return found


def _best_of_n(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = make_table("best of n by this model", "n", "KL (nats)", "its own reward", "gold")
    table.columns[0].justify = "right"
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
    return write_page(
        "reward.html.j2",
        path,
        result=result,
        figures=FIGURES,
        words=reward_words(result),
        forests=_draw_forests(result),
        curve=_draw_reliability(result),
        wrong=[_explain_wrong(i, row) for i, row in enumerate(result["most_wrong"])],
    )


def _draw_forests(result: Result) -> list[tuple[str, Markup]]:
    """Accuracy in each division of the pairs, with intervals."""
    found = []
    for i, (_, name, rows) in enumerate(_accuracy_divisions(result)):
        shown = [(part, value, False) for part, value in rows.items()]
        found.append((name, plots.draw_forest(f"by{i}", f"Accuracy by {name}", shown, 0.5)))
    return found


def _draw_reliability(result: Result) -> Markup | None:
    bins = result["reliability"]
    if len(bins) < 2:
        return None
    return plots.draw_reliability("reliability", f"Reliability, {len(bins)} bins", bins)


def _explain_wrong(place: int, row: Mapping[str, Any]) -> dict[str, Any]:
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
