"""One self-contained HTML page about a run: it opens anywhere and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlaif.core.store import write_atomic
from rlaif.metrics.figure_rules import without_set
from rlaif.metrics.intervals import show_ends, show_interval, show_number, show_value
from rlaif.metrics.over_optimisation import root_kl
from rlaif.report import plots
from rlaif.report.arenas import make_arena_tables
from rlaif.report.arms import answer_sentences, difference_tables, label_rows, mark_judges, mark_of
from rlaif.report.benches import make_bench_tables
from rlaif.report.browser import embed_json
from rlaif.report.flow_svg import draw_flow
from rlaif.report.glossary import GLOSSARY
from rlaif.report.labels import Curves, cost_table, find_curves
from rlaif.report.merged import Page, claim_words, make_page
from rlaif.report.over_optimisation import make_proxy_sections
from rlaif.report.rows import (
    Table,
    alarm_items,
    arms_of,
    latest_rounds,
    metric_rows,
    name_model,
    name_rounds,
    named_rows,
    seeds_of,
    side_by_side,
)
from rlaif.report.table import summarise_arm
from rlaif.report.view import LabellingRow, RolloutRow, RoundRow, RunView, StepRow

_HERE = Path(__file__).resolve().parent
_HEAD = 4096
"""Bytes at a page's beginning in which it says what it is the page of."""
PAR = {"win_rate_vs_initial/": 0.5, "reward_accuracy/": 0.5, "position_bias/": 0.0, "drift/": 0.0}


HEADLINES = ("reward_accuracy/", "score/", "win_rate_vs_initial/", "check/", "length/words", "kl/")
"""Metrics that are drawn by arm."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A captioned plot. `svg` is ours: no model text is in it."""

    caption: str
    about: str
    svg: Markup


def build_report(run: RunView, out: str | Path) -> Path:
    """Write the report of `run` to `out` (a file, or a folder that gets `report.html`).

    The page's content security policy lets its own script run and nothing else, so text from a
    model could not act even if it were taken for markup. Returns the file written.
    """
    out = Path(out)
    path = out / "report.html" if out.is_dir() else out
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    page = make_environment().get_template("report.html.j2").render(**_collect_context(run, script))
    # Text from models can hold lone surrogates, which UTF-8 cannot carry.
    write_atomic(path, page.encode("utf-8", "replace").decode())
    return path


def script_digest(script: str) -> str:
    """The hash by which a page's content security policy knows its own script."""
    return base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def is_report_of(path: Path, key: str) -> bool:
    """Whether a file is the page of a run whose view has this key."""
    try:
        with path.open("rb") as file:
            return _make_run_mark(key).encode() in file.read(_HEAD)
    except OSError:
        return False


def _make_run_mark(key: str) -> str:
    return f'<meta name="rlaif-run" content="{key}">'


def make_environment() -> Environment:
    """Jinja2 as every page uses it: escaping on, numbers and intervals as filters."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    figures: dict[str, Callable[..., str]] = {
        "interval": show_interval,
        "value": show_value,
        "ends": show_ends,
        "number": show_number,
    }
    environment.filters |= {name: partial(_show_figure, show) for name, show in figures.items()}
    environment.filters |= {
        "count_of": "{:,}".format,
        "minus": _use_minus_signs,
        "breakable": _allow_breaks,
        "duration": format_duration,
        "pretty": partial(json.dumps, indent=2, ensure_ascii=False, default=str),
    }
    environment.globals["glossary"] = GLOSSARY
    return environment


def format_duration(seconds: float | None) -> str:
    """Seconds as a person says them: 0.4 s, 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return "-"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _collect_context(run: RunView, script: str) -> dict[str, Any]:
    shown = run.shown
    page = make_page(run.rounds, run.comparisons, run.values, run.primary, run.trained)
    last = latest_rounds(run.rounds)
    data = {"arms": len(arms_of(run.rounds)) > 1, "pairs": shown.pairs, "answers": shown.answers}
    data |= {"revisions": shown.revisions} if shown.revisions else {}
    seeds, names = seeds_of(run.rounds), arms_of(run.rounds)
    digest = script_digest(script)
    return {
        "run": run,
        "marked": Markup(_make_run_mark(run.key)),
        "seeds": seeds,
        "answers": answer_sentences(page.comparisons, run.arms, run.margin),
        "mark": partial(mark_of, marked=mark_judges(run.arms)),
        "alarms": alarm_items(run.rounds, latest=True),
        "earlier": alarm_items(run.rounds, latest=False),
        "arms": names if len(names) > 1 else [],
        "labels": label_rows(page.comparisons),
        "between": difference_tables(page.comparisons),
        "arm_figures": _arm_figures(page),
        "costs": cost_table(page.latest, run.labelling),
        "labellers": list(dict.fromkeys(row["line"] for row in run.labelling)),
        "label_figures": _label_figures(page, run.labelling),
        "claims": claim_words(page),
        "summaries": [
            (row["arm"], summarise_arm(row, [r for r in last if r["arm"] == row["arm"]], page))
            for row in page.latest
        ],
        "tables": _make_tables(run.rounds, page),
        "lines": list(_split_rounds(run.rounds)),
        "curves": _draw_curves(run.rounds),
        "trained": _draw_trainings(run.rollouts, len(names) > 1),
        "proxies": make_proxy_sections(run.proxies),
        "benches": make_bench_tables(run.benches, len(names) > 1),
        "arenas": make_arena_tables(run.arenas, len(names) > 1),
        "distributions": _draw_distributions(run),
        "flow": draw_flow(run.flow) if run.flow is not None else None,
        "totals": _sum_steps(run.steps),
        "failures": [(s, *failed) for s in run.steps for failed in s.get("errors", {}).items()],
        "notes": [(step, note) for step in run.steps for note in step.get("notes", ())],
        "trainings": [(step, kernels) for step in run.steps if (kernels := step.get("kernels"))],
        "data": Markup(embed_json(data)),
        "style": Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": digest,
    }


def _show_figure(show: Callable[..., str], value: Any, signed: bool = False) -> str:
    return _use_minus_signs(show(value, signed))


def _use_minus_signs(text: str) -> str:
    """Hyphens that stand for a minus, as a minus sign."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\u2212", text)


def _allow_breaks(name: str) -> Markup:
    """A metric's name that may wrap after a slash or an underscore."""
    return Markup("<wbr>").join(re.findall(r"[^/_]*[/_]|[^/_]+", name))


def _draw_curves(rounds: Sequence[RoundRow]) -> list[tuple[str, list[Figure]]]:
    """(group, figures): a curve per metric that at least two rounds measured."""
    grouped: dict[str, list[Figure]] = {}
    names = {name for row in rounds for name in row["metrics"]["metrics"]}
    for place, row in enumerate(named_rows(names)):
        lines: dict[Hashable, plots.Curve] = {
            name: [
                (r["round"], r["metrics"]["metrics"][row.name])
                for r in sorted(chain, key=lambda r: r["round"])
                if r["metrics"]["metrics"].get(row.name) is not None
            ]
            for name, chain in _split_rounds(rounds).items()
        }
        if max(len(points) for points in lines.values()) < 2:
            continue
        means = [show_number(value["mean"]) for points in lines.values() for _, value in points]
        label = f"{row.name} over rounds: {', '.join(means)}"
        shown = {r["round"]: name_model(r) for r in rounds}
        svg = plots.draw_curve(f"curve{place}", label, lines, shown, _find_par(row.name))
        figure = Figure(row.name, row.kind.about, svg)
        grouped.setdefault(row.kind.group, []).append(figure)
    return list(grouped.items())


def _split_rounds(rounds: Sequence[RoundRow]) -> dict[str, list[RoundRow]]:
    """The rounds by seed, by arm, or by both where there are several of both."""
    arms, seeds = arms_of(rounds), seeds_of(rounds)
    found: dict[str, list[RoundRow]] = {}
    for arm, seed in product(arms, seeds):
        names = ([arm] if len(arms) > 1 else []) + ([str(seed)] if len(seeds) > 1 else [])
        mine = [row for row in rounds if (row["arm"], row["seed"]) == (arm, seed)]
        found[" ".join(names)] = mine
    return found


def _find_par(name: str) -> float | None:
    own = without_set(name)
    return next((value for prefix, value in PAR.items() if own.startswith(prefix)), None)


def _make_tables(rounds: Sequence[RoundRow], page: Page) -> list[Table]:
    """The table over all seeds (arms side by side), then one per arm and seed where they differ."""
    lines = _split_rounds(rounds)
    seeds = seeds_of(rounds)
    headings, columns = side_by_side(page.rounds)
    tables = [Table("All seeds" if len(seeds) > 1 else "", headings, metric_rows(columns))]
    for name, mine in lines.items() if len(lines) > 1 else ():
        title = name if len(arms_of(rounds)) > 1 else f"Seed {name}"
        tables.append(Table(title, name_rounds(mine), metric_rows(mine)))
    return tables


def _arm_figures(page: Page) -> list[Figure]:
    """Per metric that compares or is judged, the arms' last rounds with their intervals."""
    headings, columns = side_by_side(page.rounds)
    if len(arms_of(page.rounds)) < 2:
        return []
    figures = []
    for place, row in enumerate(metric_rows(columns)):
        if not row.name.startswith(HEADLINES) or row.name.count("/") > 1:
            continue
        cells = zip(headings, row.cells, strict=True)
        points = {name: cell.value for name, cell in cells if cell.value is not None}
        values = (show_number(interval["mean"]) for interval in points.values())
        label = f"{row.name} by arm: {', '.join(values)}"
        svg = plots.draw_arms(f"arm{place}", label, points, _find_par(row.name))
        figures.append(Figure(row.name, row.kind.about, svg))
    return figures


def _label_figures(page: Page, labelling: Sequence[LabellingRow]) -> list[Figure]:
    """Per metric that compares or is judged, its curve against the number of labels."""
    curves = find_curves(page.latest, labelling)
    return draw_label_curves(curves, list(dict.fromkeys(row["line"] for row in labelling)))


def draw_label_curves(curves: Curves, order: Sequence[str], slug: str = "labels") -> list[Figure]:
    """As above, with the lines in `order`. No two calls for one page may have the same `slug`."""
    names = [n for n in curves if n.startswith(HEADLINES) and n.count("/") < 2]
    figures = []
    for place, row in enumerate(named_rows(names)):
        lines = {line: curves[row.name].get(line, []) for line in order}
        said = (
            f"{line} {count:g} {show_number(value['mean'])}"
            for line, points in lines.items()
            for count, value in points
        )
        label = f"{row.name} by labels: {', '.join(said)}"
        svg = plots.draw_by_labels(f"{slug}{place}", label, lines, _find_par(row.name))
        figures.append(Figure(row.name, row.kind.about, svg))
    return figures


ROLLOUT_FIGURES = {
    "reward": ("Reward", "mean over the answers of a rollout"),
    "reward_spread": ("Reward spread", "standard deviation of all answers' rewards"),
    "flat_groups": ("Flat groups", "share of prompts whose answers all have the same reward"),
    "kl": ("KL to the reference", "nats per answer"),
    "kl_teacher": ("KL to the teacher", "nats per token"),
    "entropy": ("Entropy", "of the policy's next token, nats"),
    "length": ("Length", "mean tokens of an answer"),
}

TERM_FIGURES = {
    "value/": ("Value by {}", "mean of the judge's values, before they are normalised"),
    "missing/": ("Missing by {}", "share of answers that lack the term's value"),
    "contribution/": ("Contribution of {}", "what the term adds to the mean reward"),
    "cost/": ("Cost by {}", "mean over the answers of a rollout; the line is its limit"),
    "missing_cost/": ("Missing costs by {}", "share of answers that lack the cost"),
    "multiplier/": ("Multiplier of {}", "how much the cost counts, where the reward counts 1"),
    "pool_reward/": ("Pool, quantile {}", "mean reward of the pool's answers there; 1 is the best"),
}
"""Figures of one term, cost or quantile, by how its metric begins: the rest is its name."""


def _rollout_figures(row: RolloutRow) -> dict[str, tuple[str, str]]:
    """Caption and meaning of each figure of a training. A reward of one term is that term; shares
    of what is missing are shown where something is."""
    found = dict(ROLLOUT_FIGURES)
    names = list(dict.fromkeys(name for _, known in row["points"] for name in known))
    terms = sum(name.startswith("contribution/") for name in names)
    for start, (caption, about) in TERM_FIGURES.items():
        for name in (n for n in names if n.startswith(start)):
            idle = start.startswith("missing") and not any(k.get(name) for _, k in row["points"])
            if not idle and (terms > 1 or start not in ("value/", "contribution/")):
                found[name] = caption.format(name.removeprefix(start)), about
    return found


def _draw_trainings(
    trainings: Sequence[RolloutRow], by_arm: bool
) -> list[tuple[str, list[str], list[Figure]]]:
    """(title, sentences, figures) of each on-policy training."""
    found = []
    for place, row in enumerate(trainings):
        arms = f", arm {' '.join(row['arms'])}" if by_arm else ""
        title = f"{row['id']}, seed {row['seed']}, round {row['round']}{arms}"
        figures = []
        for figure, (name, (caption, about)) in enumerate(_rollout_figures(row).items()):
            points = [(number, known[name]) for number, known in row["points"] if name in known]
            if points:
                limits = [x for own in row["limits"].get(name, {}).values() for x in own]
                limits += [x for n, x in row["cost_limits"].items() if name == f"cost/{n}"]
                ends = f"{show_number(points[0][1])} to {show_number(points[-1][1])}"
                label = f"{caption} over {len(points)} rollouts of {title}: {ends}"
                svg = plots.draw_rollouts(f"rollout{place}-{figure}", label, points, limits)
                figures.append(Figure(caption, about, svg))
        figures += _draw_reward_by_kl(f"rollout{place}bykl", title, row)
        found.append((title, _said_of(row), figures))
    return found


def _draw_reward_by_kl(slug: str, title: str, row: RolloutRow) -> list[Figure]:
    """The reward over the distance from the reference, where both were measured."""
    points = [
        (root_kl(known["kl"]), known["reward"])
        for _, known in row["points"]
        if "kl" in known and "reward" in known
    ]
    if len(points) < 2:
        return []
    first, last = points[0], points[-1]
    ends = f"{show_number(first[1])} at {show_number(first[0])} to "
    ends += f"{show_number(last[1])} at {show_number(last[0])}"
    svg = plots.draw_rollouts(
        slug, f"Reward over the root of KL of {title}: {ends}", points, whole=False
    )
    about = "mean reward of a rollout over √KL to the reference, the proxy alone"
    return [Figure("Reward by √KL", about, svg)]


def _said_of(row: RolloutRow) -> list[str]:
    """How the reward went, and what the gates found."""
    rewards = [known["reward"] for _, known in row["points"] if "reward" in known]
    sentences = []
    if rewards:
        ends = f"{show_number(rewards[0])} to {show_number(rewards[-1])}"
        sentences.append(f"The mean reward went from {ends} in {len(row['points'])} rollouts.")
    sentences += [_said_of_cost(row, name, limit) for name, limit in row["cost_limits"].items()]
    if not row["limits"]:
        return [*sentences, "No gates were set."]
    return sentences + ([f"{said}." for said in row["reached"]] or ["No gate was reached."])


def _said_of_cost(row: RolloutRow, name: str, limit: float) -> str:
    """How a cost went against its limit, and its multiplier."""
    costs, multipliers = (
        [known[f"{start}/{name}"] for _, known in row["points"] if f"{start}/{name}" in known]
        for start in ("cost", "multiplier")
    )
    if not costs:
        return f"No answer had a cost by {name}."
    late = costs[-max(1, len(costs) // 3) :]
    return (
        f"The mean cost by {name} went from {show_number(costs[0])} to {show_number(costs[-1])}, "
        f"and over the last {len(late)} of {len(costs)} rollouts it was "
        f"{show_number(fmean(late))}; its limit is {limit:g}. The multiplier ended at "
        f"{show_number(multipliers[-1])}."
    )


def _draw_distributions(run: RunView) -> list[Figure]:
    """Histograms of held-out answer lengths and, per judge, of their scores, by model; then of the
    pairs' scores."""
    lengths, figures = run.shown.lengths, []
    if lengths:
        label = f"Length of held-out answers in words, {', '.join(lengths)}"
        svg = plots.draw_distributions("lengths", label, lengths, "words", whole=True)
        figures.append(Figure("Length of held-out answers", "words; the bar is the median", svg))
    for place, (judge, by_model) in enumerate(run.shown.scores.items()):
        label = f"Held-out scores by judge {judge!r}, by round"
        svg = plots.draw_distributions(f"scores{place}", label, by_model, "score")
        figures.append(Figure(f"Scores by {judge}", "one value per judgement", svg))
    for side, groups in run.shown.pair_scores.items():
        if groups:
            svg = plots.draw_distributions(f"pair-{side}", f"Scores of {side}", groups, "score")
            caption = f"Combined score of the {side} answers"
            figures.append(Figure(caption, "as the pairs were made", svg))
    return figures


def _sum_steps(steps: Sequence[StepRow]) -> dict[str, Any]:
    costs = [step["cost"] for step in steps if step["cost"] is not None]
    estimated = [step.get("estimated_cost") or 0.0 for step in steps]
    return {
        "seconds": sum(step["seconds"] or 0.0 for step in steps),
        "cost": sum(costs) if costs else None,
        "estimated": sum(estimated),
    }
