"""One self-contained HTML page about a run: it opens anywhere and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlaif.compare.bootstrap import show_interval, show_number
from rlaif.records import VALUED
from rlaif.report import plots
from rlaif.report.browser import (
    MAX_ANSWERS,
    MAX_PAIRS,
    answer_text,
    browser_data,
    embed_json,
)
from rlaif.report.rows import (
    Row,
    latest_by_seed,
    metric_rows,
    round_numbers,
    seeds_of,
)
from rlaif.report.summary import summary
from rlaif.report.view import RoundRow, RunView, StepRow

_HERE = Path(__file__).resolve().parent
_PAR = {"win_rate_vs_initial/": 0.5, "position_bias/": 0.0, "drift/": 0.0}


@dataclass(frozen=True, slots=True)
class Figure:
    """A captioned plot. `svg` is ours: no model text is in it."""

    caption: str
    about: str
    svg: Markup


def build_report(run: RunView, out: Path) -> Path:
    """Write the report of `run` to `out` (a file, or a folder that gets `report.html`).

    The page's content security policy lets its own script run and nothing else, so text from a
    model could not act even if it were taken for markup. Returns the file written.
    """
    path = out / "report.html" if out.is_dir() else out
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    page = environment().get_template("report.html.j2").render(**_context(run, script))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Text from models can hold lone surrogates, which UTF-8 cannot carry.
    path.write_bytes(page.encode("utf-8", "replace"))
    return path


def environment() -> Environment:
    """Jinja2 as every page uses it: escaping on, numbers and intervals as filters."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["interval"] = lambda value, signed=False: _minus(
        show_interval(value, signed)
    )
    environment.filters["number"] = lambda value, signed=False: _minus(show_number(value, signed))
    environment.filters["minus"] = _minus
    environment.filters["breakable"] = _breakable
    environment.filters["duration"] = duration
    environment.filters["pretty"] = lambda value: json.dumps(
        value, indent=2, ensure_ascii=False, default=str
    )
    return environment


def duration(seconds: float | None) -> str:
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


def _context(run: RunView, script: str) -> dict[str, Any]:
    data = browser_data(run)
    seeds = seeds_of(run.rounds)
    tables = [("All seeds" if len(seeds) > 1 else "", run.rounds)]
    if len(seeds) > 1:
        tables += [(f"Seed {s}", [r for r in run.rounds if r["seed"] == s]) for s in seeds]
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return {
        "run": run,
        "seeds": seeds,
        "alarms": _alarms(run.rounds, latest=True),
        "earlier": _alarms(run.rounds, latest=False),
        "summary": summary(run.rounds),
        "tables": [(title, round_numbers(rows), metric_rows(rows)) for title, rows in tables],
        "curves": _curves(run.rounds),
        "distributions": _distributions(run),
        "totals": _totals(run.steps),
        "pairs_total": len(run.preferences),
        "pairs_shown": len(data["pairs"]),
        "answers_total": len({(row["prompt_id"], row["seed"]) for row in run.heldout}),
        "answers_shown": len(data["answers"]),
        "max_pairs": MAX_PAIRS,
        "max_answers": MAX_ANSWERS,
        "data": Markup(embed_json(data)),
        "style": Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": digest,
    }


def _minus(text: str) -> str:
    """Hyphens that stand for a minus, as a minus sign."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\u2212", text)


def _breakable(name: str) -> Markup:
    """A metric's name that may wrap after a slash or an underscore."""
    return Markup("<wbr>").join(re.findall(r"[^/_]*[/_]|[^/_]+", name))


def _alarms(rounds: Sequence[RoundRow], latest: bool) -> list[dict[str, Any]]:
    """Alarms of each seed's last round, or of all earlier ones.

    The same alarm in several seeds is one item, with its `seeds` and, in their order, its `values`.
    """
    last = latest_by_seed(rounds)
    chosen = last if latest else [row for row in rounds if row not in last]
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in sorted(chosen, key=lambda row: (row["round"], row["seed"])):
        for alarm in row["metrics"].get("alarms", []):
            key = (row["round"], alarm["name"], alarm["metric"])
            item = found.setdefault(
                key, {**alarm, "round": row["round"], "seeds": [], "values": []}
            )
            item["seeds"].append(row["seed"])
            item["values"].append(alarm["value"])
    return sorted(found.values(), key=lambda item: str(item["severity"]))


def _curves(rounds: Sequence[RoundRow]) -> list[tuple[str, list[Figure]]]:
    """(group, figures): a curve per metric that at least two rounds measured."""
    grouped: dict[str, list[Figure]] = {}
    for place, row in enumerate(metric_rows(rounds)):
        by_seed = {
            seed: [
                (r["round"], r["metrics"]["metrics"][row.name])
                for r in sorted(rounds, key=lambda r: r["round"])
                if r["seed"] == seed and r["metrics"]["metrics"].get(row.name) is not None
            ]
            for seed in seeds_of(rounds)
        }
        if max(len(points) for points in by_seed.values()) < 2:
            continue
        label = f"{row.name} over rounds: {_spoken(row)}"
        par = next((v for prefix, v in _PAR.items() if row.name.startswith(prefix)), None)
        svg = plots.curve(f"curve{place}", label, {s: p for s, p in by_seed.items() if p}, par)
        figure = Figure(row.name, row.kind.about, svg)
        grouped.setdefault(row.kind.group, []).append(figure)
    return list(grouped.items())


def _spoken(row: Row) -> str:
    values = [show_number(cell.value["mean"]) for cell in row.cells if cell.value is not None]
    return ", ".join(values)


def _distributions(run: RunView) -> list[Figure]:
    """Histograms of held-out answer lengths and, per judge, of their scores, by model round."""
    lengths: dict[int, list[float]] = {}
    scores: dict[str, dict[int, list[float]]] = {}
    for row in run.heldout:
        completion = run.completions.get(row["completion_id"])
        if completion is not None:
            lengths.setdefault(row["round"], []).append(len(answer_text(completion).split()))
        for judge, value in _scores(run.judgements_by_subject.get(row["completion_id"], [])):
            scores.setdefault(judge, {}).setdefault(row["round"], []).append(value)
    figures = []
    if lengths:
        label = f"Length of held-out answers in words, M0 to M{max(lengths)}"
        svg = plots.distributions("lengths", label, lengths, "words", whole=True)
        figures.append(Figure("Length of held-out answers", "words; the bar is the median", svg))
    for place, (judge, by_round) in enumerate(sorted(scores.items())):
        label = f"Held-out scores by judge {judge}, by round"
        svg = plots.distributions(f"scores{place}", label, by_round, "score")
        figures.append(Figure(f"Scores by {judge}", "one value per judgement", svg))
    return figures + _pair_scores(run)


def _scores(judgements: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    return [
        (str(row["judge"]), float(row["score"]))
        for row in judgements
        if row["status"] in VALUED and row.get("score") is not None
    ]


def _pair_scores(run: RunView) -> list[Figure]:
    figures = []
    for side in ("chosen", "rejected"):
        by_round: dict[int, list[float]] = {}
        for row in run.preferences:
            by_round.setdefault(row["round"], []).append(float(row[f"score_{side}"]))
        if by_round:
            svg = plots.distributions(f"pair-{side}", f"Scores of {side}", by_round, "score")
            caption = f"Combined score of the {side} answers"
            figures.append(Figure(caption, "as the pairs were made", svg))
    return figures


def _totals(steps: Sequence[StepRow]) -> dict[str, Any]:
    costs = [step["cost"] for step in steps if step["cost"] is not None]
    return {
        "seconds": sum(step["seconds"] or 0.0 for step in steps if not step["reused"]),
        "cost": sum(costs) if costs else None,
        "reused": sum(step["reused"] for step in steps),
    }
