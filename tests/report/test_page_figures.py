"""Every figure of a run's page from values that are all different: what is shown where."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.records import make_prompt
from rlaif.metrics.intervals import IntervalJson
from rlaif.report.browser import judgement_entry
from rlaif.report.build import build_report
from rlaif.report.gather import Sources, gather_shown
from rlaif.report.view import HeldOutRow, RoundRow, RunView, StepRow
from tests.support.browsing import dumped, needs_chromium

PROMPT = make_prompt([{"role": "user", "content": "Which prompt?"}])


class Tables(HTMLParser):
    """The tables of a page by label, as rows of the cells' texts; and the classes of spans."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.spans: dict[str, str] = {}
        self._rows: list[list[str]] = []
        self._within = False
        self._span = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = dict(attrs)
        if known.get("role") == "region":
            self._rows = self.tables[known["aria-label"] or ""] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._within = True
        elif tag == "span":
            self._span = known.get("class") or ""

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._within = False
        if tag == "span":
            self._span = ""

    def handle_data(self, data: str) -> None:
        if self._within:
            self._rows[-1][-1] += " ".join(data.split())
        if self._span:
            self.spans[" ".join(data.split())] = self._span


def read(path: Path) -> Tables:
    page = Tables()
    page.feed(path.read_text(encoding="utf-8"))
    return page


def interval(mean: float, **more: Any) -> IntervalJson:
    found: IntervalJson = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 40}
    return {**found, **more}  # type: ignore[typeddict-item]


def answer(name: str, text: str, finish: str = "stop") -> dict[str, Any]:
    turns = [{"role": "assistant", "content": text}]
    return {"completion_id": name, "messages": turns, "finish_reason": finish}


def judgement(subject: str, score: float | None, **more: Any) -> dict[str, Any]:
    return {
        "judgement_id": f"j_{subject}_{more.get('judge', 'self')}",
        "judge": "self",
        "principle": "kind",
        "shown": [subject],
        "subject": subject,
        "status": "ok" if score is not None else "unparsed",
        "score": score,
        "label_mass": 0.7,
        "raw": f"written of {subject}",
        **more,
    }


PAIR = {
    "preference_id": "f_1",
    "prompt_id": PROMPT.prompt_id,
    "arm": "main",
    "seed": 3,
    "round": 1,
    "prompt": PROMPT.messages,
    "chosen": [{"role": "assistant", "content": "The better text."}],
    "rejected": [{"role": "assistant", "content": "The worse text."}],
    "score_chosen": 0.81,
    "score_rejected": 0.27,
    "margin": 0.54,
    "reason": "the planted reason",
    "source": "rlaif",
    "chosen_id": "c_good",
    "rejected_id": "c_bad",
}


def planted() -> RunView:
    heldout = [
        (HeldOutRow(seed=3, round=n, model=f"M{n}", prompt_id=PROMPT.prompt_id,
                    completion_id=f"h_{n}"), answer(f"h_{n}", "word " * (2 + 3 * n)))
        for n in (0, 1)
    ]  # fmt: skip
    judgements = [
        judgement("c_good", 0.91),
        judgement("c_bad", None),
        judgement("h_0", 0.42),
        judgement("h_1", 0.64),
    ]
    sources = Sources(
        preferences=lambda: iter([PAIR]),
        heldout=lambda: iter(heldout),
        judgements=lambda ids: (row for row in judgements if row["subject"] in ids),
        answers=lambda calls: iter(()),
        prompts=lambda: iter([{"prompt_id": PROMPT.prompt_id, "messages": PROMPT.messages}]),
    )
    after = {"score/self": 0.7, "repetition_4": 0.3, "length/words": 9.0, "check/a": 0.6}
    change = {"score/self": 0.2, "repetition_4": 0.1, "length/words": 5.0, "check/a": 0.15}
    # Over the prompts of both rounds, which are not all of either.
    old = {"score/self": 0.48, "repetition_4": 0.19, "length/words": 4.25, "check/a": 0.44}
    before = {name: interval(after[name] - change[name]) for name in after}
    deltas = {name: interval(change[name], old=old[name], p=0.001) for name in change}
    place = {"arm": "main", "seed": 3, "counts": {}}
    rounds = [
        RoundRow(round=0, policy_in="M0", policy_out="M0",
                 metrics={"metrics": before, "deltas": {}}, **place),  # type: ignore[typeddict-item]
        RoundRow(round=1, policy_in="M0", policy_out="M1",
                 metrics={"metrics": {n: interval(v) for n, v in after.items()},
                          "deltas": {"initial": deltas}}, **place),  # type: ignore[typeddict-item]
    ]  # fmt: skip
    steps = [
        StepRow(seed=3, arms=["main"], round=1, id="draws", kind="sample", hash="aa" * 12,
                seconds=61.0, counts={"completions": 17, "failed": 2}, cost=0.25,
                estimated_cost=0.125, errors={"timed out": 2}, notes=["a planted note"]),
        StepRow(seed=3, arms=["main"], round=1, id="says", kind="judge", hash="bb" * 12,
                seconds=9.0, counts={"judgements": 34}, cost=0.5),
        StepRow(seed=3, arms=["main"], round=1, id="fits", kind="train", hash="cc" * 12,
                seconds=None, counts={"preferences": 5}, cost=None),
    ]  # fmt: skip
    remote = {
        "big": {
            "calls": 101, "cache_hits": 102, "failed": 103, "retries": {"busy": 104},
            "input_tokens": 105, "output_tokens": 106, "calls_per_second": 1.25,
            "tokens_per_second": 2.5, "latency": {"p50": 0.375, "p90": 0.625, "p99": 0.875},
            "cost": 3.5, "estimated_cost": 1.75,
        }
    }  # fmt: skip
    return RunView(
        name="planted",
        description="",
        state="finished",
        config_yaml="",
        manifest={},
        rounds=rounds,
        steps=steps,
        remote=remote,
        shown=gather_shown(sources, by_arm=False),
        primary=["score/self", "repetition_4", "length/words"],
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(planted(), tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def page(path: Path) -> Tables:
    return read(path)


def test_a_step_shows_its_time_its_cost_and_its_records(page: Tables) -> None:
    assert page.tables["Cost and time by step"] == [
        ["Seed", "Round", "Step", "Kind", "Hash", "Time", "Cost", "Records"],
        ["3", "1", "draws", "sample", "aa" * 6, "1 min 01 s", "0.250 (0.125 by estimate)",
         "17 completions, 2 failed"],
        ["3", "1", "says", "judge", "bb" * 6, "9.0 s", "0.500", "34 judgements"],
        ["3", "1", "fits", "train", "cc" * 6, "-", "–", "5 preferences"],
    ]  # fmt: skip
    assert page.tables["Failures by step"][1] == ["3", "1", "draws", "2", "timed out"]


def test_the_totals_are_of_all_steps(path: Path) -> None:
    text = " ".join(path.read_text(encoding="utf-8").split())
    assert (
        "1 min 10 s of computing, cost 0.750 (of which 0.125 estimated, because those tokens were "
        "not counted) in 3 steps." in text
    )
    assert "Seed 3, round 1, draws: a planted note" in text


def test_what_servers_were_asked(page: Tables) -> None:
    assert page.tables["Calls by model"][1] == [
        "big", "101", "102", "103", "104 busy", "105", "106", "1.250", "2.500", "0.375", "0.625",
        "0.875", "3.500 (1.750 by estimate)",
    ]  # fmt: skip


def test_results_are_of_their_round_with_the_change_from_the_first(page: Tables) -> None:
    rows = {
        row[0].split("mean")[0].split("share")[0]: row for row in page.tables["Results by round"]
    }
    score = next(row for name, row in rows.items() if name.startswith("score/self"))
    assert score[1].startswith("0.500") and "+" not in score[1]
    assert score[2].startswith("0.700") and "+0.200" in score[2]


def test_a_claimed_change_has_the_tone_of_its_metric(page: Tables) -> None:
    """More score is better and more repetition worse; length is neither; a check is not primary."""
    tones = {
        found[0]: name.split()[-1]
        for text, name in page.spans.items()
        if (found := re.findall(r"^\+\d+\.\d+", text)) and name.startswith("delta")
    }
    assert tones == {"+0.200": "good", "+0.100": "bad", "+5.000": "moved", "+0.150": "delta"}


def test_a_change_is_told_from_and_to_the_means_over_the_same_prompts(path: Path) -> None:
    text = " ".join(re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8")).split())
    assert "score/self: 0.480 to 0.680, +0.200" in text
    assert "check/a: 0.440 to 0.590, +0.150" in text
    assert "length/words: 4.250 to 9.250, +5.000" in text


def test_the_pair_browser_tells_chosen_from_rejected(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S)[1])  # type: ignore[index]
    (pair,) = data["pairs"]
    assert (pair["chosen"], pair["rejected"]) == ("The better text.", "The worse text.")
    assert (pair["score_chosen"], pair["score_rejected"], pair["margin"]) == (0.81, 0.27, 0.54)
    (good,), (bad,) = pair["judged_chosen"], pair["judged_rejected"]
    assert (good["value"], good["status"], good["raw"]) == (0.91, "ok", "written of c_good")
    assert (bad["value"], bad["status"], bad["raw"]) == (None, "unparsed", "written of c_bad")
    assert (good["judge"], good["principle"], good["mass"]) == ("self", "kind", 0.7)
    (entry,) = data["answers"]
    assert [(m["model"], len(m["text"].split())) for m in entry["models"]] == [("M0", 2), ("M1", 5)]


def test_the_distributions_are_of_the_planted_records() -> None:
    shown = planted().shown
    assert {k: list(v) for k, v in shown.pair_scores["chosen"].items()} == {"M1": [0.81]}
    assert {k: list(v) for k, v in shown.pair_scores["rejected"].items()} == {"M1": [0.27]}
    assert {k: list(v) for k, v in shown.lengths.items()} == {"M0": [2.0], "M1": [5.0]}
    assert {k: list(v) for k, v in shown.scores["self"].items()} == {"M0": [0.42], "M1": [0.64]}


def test_a_verdict_on_two_answers_says_which_was_which() -> None:
    row = judgement("a", None, shown=["a", "b"], status="ok", prob_first=0.85)
    found = [judgement_entry(row, {}, name) for name in ("a", "b")]
    assert [entry["order"] for entry in found] == ["1 of 2", "2 of 2"]
    assert {(entry["value"], entry["what"]) for entry in found} == {(0.85, "P(first shown)")}


@needs_chromium
def test_the_browser_shows_the_planted_pair(path: Path) -> None:
    text = re.sub(r"<script.*?</script>", "", dumped(path, "#pair=1"), flags=re.S)
    shown = " ".join(re.sub(r"<[^>]+>", " ", text).split())
    assert re.search(r"seed 3 round 1 margin 0\.540 rlaif", shown)
    chosen = r"Chosen 0\.810 The better text\. self kind 0\.910 .*?written of c_good"
    rejected = r"Rejected 0\.270 The worse text\. self kind unparsed .*?written of c_bad"
    assert re.search(rf"{chosen}.*?{rejected}", shown)
