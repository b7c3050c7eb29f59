"""What each page shows, as the values of its template."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from rlaif.core.errors import RlaifError
from rlaif.metrics.figure_rules import without_set
from rlaif.pipeline.explain.run import explain_run
from rlaif.report.browser import format_conversation
from rlaif.report.build import HEADLINES, PAR
from rlaif.report.flow_svg import draw_flow
from rlaif.report.merged import claim_words
from rlaif.report.rows import (
    alarm_items,
    arms_of,
    metric_rows,
    name_model,
    named_rows,
    side_by_side,
)
from rlaif.web.ui.configs import compare_configs, read_config
from rlaif.web.ui.extract import key_of
from rlaif.web.ui.index import Source, make_source, open_index
from rlaif.web.ui.indexer import Indexer, Progress
from rlaif.web.ui.library import Library, name_runs
from rlaif.web.ui.lines import Line, Point, colour_class, draw_lines
from rlaif.web.ui.records import (
    ANSWERS,
    Place,
    Reader,
    find_prompt,
    list_answers,
    list_items,
    list_places,
    make_excerpt,
    pairs_of,
    show_answers,
    show_pairs,
)
from rlaif.web.ui.search import (
    DIFFER,
    MOST,
    SHOWN,
    Found,
    Query,
    Scope,
    list_names,
    match_text,
    search,
)
from rlaif.web.ui.state import RunState, States, read_losses

PATIENCE = 0.08
"""Seconds that a page waits for the index to take in what is new."""
MOST_CURVES = 24
"""Metrics that one page of curves draws."""
MOST_RUNS = 12

Values = dict[str, Any]


class NotFound(Exception):
    """There is no such run, or no such record in it."""


@dataclass(frozen=True, slots=True)
class RunRef:
    """A run as pages name it: its id in addresses, its folder, and what the folder is called."""

    id: str
    root: Path
    folder: str


class Site:
    """The pages of the runs of a library."""

    def __init__(self, library: Library, indexer: Indexer):
        self.library = library
        self.indexer = indexer
        self.states = States()
        self._refs: dict[str, RunRef] = {}
        self._lock = threading.Lock()

    def refs(self) -> list[RunRef]:
        """The runs that there are now."""
        roots = self.library.runs()
        names = name_runs(roots.values())
        found = {name: RunRef(name, root, names[root]) for name, root in roots.items()}
        with self._lock:
            self._refs = found
        return list(found.values())

    def ref(self, name: str) -> RunRef:
        """The run with an id. Raises NotFound."""
        if name not in self._refs or not self._refs[name].root.is_dir():
            self.refs()
        if name not in self._refs:
            raise NotFound("There is no such run here. It may have been moved or deleted.")
        return self._refs[name]

    def runs_page(self) -> Values:
        """The list of runs."""
        rows = [self._run_row(ref) for ref in self.refs()]
        folders = [str(folder) for folder in self.library.folders]
        return {"rows": rows, "folders": folders, "live": True}

    def _run_row(self, ref: RunRef) -> Values:
        state = self.states.state(ref.root)
        headline, alarms = [], 0
        if state.state != "damaged":
            try:
                headline = self.states.headline(ref.root)
                last = self.states.page(ref.root).latest
                alarms = len(alarm_items(last, latest=True))
            except (RlaifError, OSError, ValueError) as error:
                state = RunState(state.name, "damaged", fault=str(error))
        return {"ref": ref, "state": state, "headline": headline, "alarms": alarms}

    def run_page(self, name: str) -> Values:
        """One run: where it stands, its figures, alarms, losses and costs."""
        ref = self.ref(name)
        state = self.states.state(ref.root)
        values: Values = {
            "ref": ref,
            "state": state,
            "live": state.state not in ("done", "damaged"),
        }
        if state.state == "damaged":
            return values
        run, page = self.states.run(ref.root), self.states.page(ref.root)
        rounds = run.round_rows()
        headings, columns = side_by_side(page.rounds)
        losses = read_losses(ref.root, state.steps)
        priced = [step.cost for step in state.steps if step.cost is not None]
        return values | {
            "description": str(run.experiment().description or ""),
            "headings": headings,
            "metrics": metric_rows(columns),
            "alarms": alarm_items(rounds, latest=True),
            "earlier": alarm_items(rounds, latest=False),
            "alarm_urls": _alarm_urls(ref, rounds),
            "claims": claim_words(page),
            "evaluated": bool(rounds),
            "losses": [_loss_figure(title, points) for title, points in losses.items()],
            "remote": self.states.remote(run),
            "cost": sum(priced) if priced else None,
            "mark": lambda _name: "",
        }

    def comparison_page(self, names: Sequence[str]) -> str:
        """The page of `rlaif compare` about some runs. Raises RlaifError where there is nothing in
        them to compare."""
        from rlaif.analysis.comparison.compute import compare_inputs
        from rlaif.report.compare import render_comparison

        refs = [self.ref(name) for name in dict.fromkeys(names)][:MOST_RUNS]
        if not refs:
            raise NotFound("Choose one run or several in the list.")
        return render_comparison(compare_inputs([str(ref.root) for ref in refs]), home="/")

    def curves_page(self, names: Sequence[str], metrics: Sequence[str], every: bool) -> Values:
        """Metrics over the rounds of several runs and their arms, together."""
        refs = [self.ref(name) for name in dict.fromkeys(names)][:MOST_RUNS]
        lines: list[tuple[str, str, Mapping[int, Any]]] = []
        labels: dict[int, str] = {}
        faults = []
        for ref in refs:
            try:
                page = self.states.page(ref.root)
            except (RlaifError, OSError, ValueError) as error:
                faults.append(str(error))
                continue
            arms = arms_of(page.rounds)
            for arm in arms:
                own = {r["round"]: r for r in page.rounds if r["arm"] == arm}
                title = ref.folder if len(arms) < 2 else f"{ref.folder} · {arm}"
                lines.append((title, ref.id, own))
                for number, row in own.items():
                    labels.setdefault(number, name_model(row) if len(refs) == 1 else f"M{number}")
        known = {
            m for _, _, own in lines for row in own.values() for m in row["metrics"]["metrics"]
        }
        ordered = [row.name for row in named_rows(known)]
        wanted = [m for m in metrics if m in known]
        chosen = wanted or [m for m in ordered if every or _is_headline(m)]
        figures = [_curve_figure(m, lines, dict(sorted(labels.items()))) for m in chosen]
        drawn = [figure for figure in figures if figure is not None]
        legend = [(title, colour_class(n), rid) for n, (title, rid, _) in enumerate(lines)]
        return {
            "refs": refs,
            "known": ordered,
            "chosen": wanted,
            "every": every,
            "faults": faults,
            "figures": drawn[:MOST_CURVES],
            "hidden": len(drawn[MOST_CURVES:]),
            "legend": legend,
            "others": self.refs(),
        }

    def config_page(self, first: str, second: str, every: bool) -> Values:
        """The config of a run, or the keys in which those of two runs differ."""
        ref = self.ref(first)
        other = self.ref(second) if second else None
        values: Values = {"ref": ref, "other": other, "every": every, "others": self.refs()}
        if other is None:
            return values | {"text": read_config(ref.root)}
        keys = compare_configs(ref.root, other.root)
        return values | {
            "keys": [key for key in keys if every or key.differs],
            "differing": sum(key.differs for key in keys),
            "alike": sum(not key.differs for key in keys),
        }

    def flow_page(self, name: str) -> Values:
        """What the steps of a run do and pass on, as a picture."""
        ref = self.ref(name)
        run = self.states.run(ref.root)
        flow = explain_run(run.manifest, run.experiment(), run.store)
        return {"ref": ref, "picture": draw_flow(flow, styled=False)}

    def _records(self, ref: RunRef) -> _Records:
        manifest = self.states.run(ref.root).manifest
        source = make_source(ref.root, manifest)
        progress = self.indexer.refresh(source, PATIENCE)
        return _Records(source, list_places(manifest, source), progress)

    def browse_page(self, name: str, query: Query) -> Values:
        """A list of a run's pairs, answers, judgements or prompts."""
        ref = self.ref(name)
        records = self._records(ref)
        alarms = self._alarms(ref)
        values: Values = {
            "ref": ref,
            "query": query,
            "differ": DIFFER,
            "shown": list(SHOWN),
            "most": MOST,
            "alarms": alarms,
            "progress": records.progress,
            "excerpt": make_excerpt,
            "live": not records.progress.complete or self._goes_on(ref),
            "found": Found([], 0, 0),
            "items": [],
            "judges": [],
            "principles": [],
            "statuses": [],
            "steps": [],
            "blank": bool(query.q) and not match_text(query.q),
        }
        with open_index(records.progress.path, records.source.key) as db:
            if db is None:
                return values
            scope = _find_scope(query, records, alarms)
            found = search(db, query, scope)
            with Reader(records.source) as reader:
                items = list_items(db, reader, records.places, query.show, found.addresses)
            filled = db.execute("SELECT DISTINCT place FROM files WHERE end > 0 AND place > 0")
            places = sorted(place for (place,) in filled)
            return values | {
                "found": found,
                "items": items,
                "judges": list_names(db, "judge"),
                "principles": list_names(db, "principle"),
                "statuses": list_names(db, "status"),
                "steps": [
                    (records.source.steps[place - 1], place_words(records.places[place][0]))
                    for place in places
                ],
            }

    def _goes_on(self, ref: RunRef) -> bool:
        return self.states.state(ref.root).state == "running"

    def _alarms(self, ref: RunRef) -> list[_AlarmRef]:
        """The alarms of all rounds, by which records can be filtered."""
        judges = set(self.states.run(ref.root).manifest["judges"])
        return [
            _AlarmRef(
                _alarm_key(alarm, record.arm, record.seed, record.round),
                f"{alarm['name']}: {alarm['metric']}, {record.arm}, seed {record.seed}, "
                f"round {record.round}",
                *(record.arm, record.seed, record.round),
                next((part for part in alarm["metric"].split("/") if part in judges), ""),
            )
            for record in self.states.rounds(ref.root)
            for alarm in record.metrics["alarms"]
        ]

    def prompt_page(self, name: str, prompt_id: str, page: int, marked: str) -> Values:
        """A prompt with its answers, their judgements, and the pairs made of them. `marked`
        is the id of an answer, on whose page this is where no `page` is given."""
        ref = self.ref(name)
        records = self._records(ref)
        with (
            open_index(records.progress.path, records.source.key) as db,
            Reader(records.source) as reader,
        ):
            prompt = None if db is None else find_prompt(db, reader, prompt_id)
            if db is None or prompt is None:
                if not records.progress.complete:
                    raise NotFound("This prompt is not indexed yet. Load the page again.")
                raise NotFound("This run has no such prompt.")
            answers = list_answers(db, prompt_id)
            pages = max(1, -(-len(answers) // ANSWERS))
            page = min(max(page, 1), pages) if page else _page_of(answers, marked)
            shown = answers[(page - 1) * ANSWERS : page * ANSWERS]
            return {
                "ref": ref,
                "prompt": prompt,
                "marked": marked,
                "page": page,
                "pages": pages,
                "text": format_conversation(prompt["messages"]),
                "count": len(answers),
                "answers": show_answers(db, reader, records.places, prompt_id, shown),
                "pairs": show_pairs(db, reader, records.places, pairs_of(db, prompt_id)[:50]),
            }


@dataclass(frozen=True, slots=True)
class _Records:
    source: Source
    places: Mapping[int, Sequence[Place]]
    progress: Progress


class _AlarmRef(NamedTuple):
    """An alarm of one evaluation, and the judge that its metric is of, if any."""

    key: str
    words: str
    arm: str
    seed: int
    round: int
    judge: str


def _alarm_key(alarm: Mapping[str, Any], arm: str, seed: int, number: int) -> str:
    return f"{alarm['name']} {alarm['metric']} {arm} {seed} {number}"


def _alarm_urls(ref: RunRef, rounds: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], str]:
    """By name and metric of an alarm, the address of the pairs of the latest round that it fired
    in."""
    found = {}
    for row in sorted(rounds, key=lambda row: row["round"]):
        for alarm in row["metrics"].get("alarms", []):
            key = _alarm_key(alarm, row["arm"], row["seed"], row["round"])
            url = f"/run/{ref.id}/browse?{urlencode({'show': 'judgements', 'alarm': key})}"
            found[alarm["name"], alarm["metric"]] = url
    return found


def _find_scope(query: Query, records: _Records, alarms: Iterable[_AlarmRef]) -> Scope:
    """The steps that a query's `step` (a hash) and `alarm` leave: of an alarm those of its round,
    seed and arm."""
    places, judge = None, ""
    if query.step:
        places = {n for n, digest in enumerate(records.source.steps, 1) if digest == query.step}
    if query.alarm:
        alarm = next((alarm for alarm in alarms if alarm.key == query.alarm), None)
        own = {
            n
            for n, served in records.places.items()
            for place in served
            if alarm is not None
            and (place.seed, place.round) == (alarm.seed, alarm.round)
            and (alarm.arm in place.arms or not place.arms)
        }
        places = own if places is None else places & own
        judge = alarm.judge if alarm else ""
    return Scope(None if places is None else tuple(sorted(places)), judge)


def place_words(place: Place) -> str:
    """A step in words, with its round, seed and arms."""
    arms = f", {' '.join(place.arms)}" if place.arms and place.arms != ("main",) else ""
    return f"{place.step}, round {place.round}, seed {place.seed}{arms}"


def _page_of(answers: Sequence[tuple[int, int]], marked: str) -> int:
    key = key_of(marked)
    place = next((n for n, (_, own) in enumerate(answers) if own == key), 0)
    return place // ANSWERS + 1


def _is_headline(name: str) -> bool:
    return without_set(name).startswith(HEADLINES) and name.count("/") < 2


class Figure(NamedTuple):
    """A plot with its caption."""

    caption: str
    about: str
    svg: Any


def _loss_figure(title: str, points: Sequence[tuple[int, float]]) -> Figure:
    line = Line(title, [Point(step, loss) for step, loss in points])
    about = f"loss {points[-1][1]:.4g} after {points[-1][0]:,} optimiser steps"
    return Figure(title, about, draw_lines(f"{title}: {about}", {0: line}))


def _curve_figure(
    metric: str, lines: Sequence[tuple[str, str, Mapping[int, Any]]], labels: Mapping[int, str]
) -> Figure | None:
    """One metric over rounds; None where no round has measured it."""
    drawn: dict[int, Line] = {}
    for place, (title, _, rounds) in enumerate(lines):
        points = []
        for number, row in sorted(rounds.items()):
            value = row["metrics"]["metrics"].get(metric)
            if value is not None:
                points.append(Point(number, value["mean"], value["low"], value["high"]))
        if points:
            drawn[place] = Line(title, points)
    if not drawn:
        return None
    numbers = {int(point.x) for line in drawn.values() for point in line.points}
    names = {number: name for number, name in labels.items() if number in numbers}
    own = without_set(metric)
    par = next((value for prefix, value in PAR.items() if own.startswith(prefix)), None)
    ends = ", ".join(f"{line.name} {line.points[-1].y:.3g}" for line in drawn.values())
    about = named_rows([metric])[0].kind.about
    return Figure(
        metric, about, draw_lines(f"{metric} over rounds; last: {ends}", drawn, names, par)
    )
