"""The report: self-contained, safe against model text, complete, and alive in a real browser."""

from __future__ import annotations

import dataclasses
import io
import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlaif.core.records import (
    Completion,
    Judgement,
    Message,
    Preference,
    Prompt,
    make_prompt,
    to_json,
)
from rlaif.metrics.diagnostics import find_alarms
from rlaif.metrics.intervals import IntervalJson, mean_interval, paired_interval
from rlaif.metrics.words import self_judge_words
from rlaif.report.browser import MAX_PAIRS, MAX_TEXT
from rlaif.report.build import build_report
from rlaif.report.gather import Sources, gather_shown
from rlaif.report.merged import make_page
from rlaif.report.table import summary_table
from rlaif.report.view import HeldOutRow, RoundResult, RoundRow, RunView, StepRow, no_values
from tests.support.browsing import dumped, needs_chromium

EVIL = "</script><script>document.title='owned';alert(1)</script><img src=x onerror=alert(2)>"
UNICODE = "Grüße — 日本語 🙂 \u2028 العربية"


def _values(rng: random.Random, n: int, mean: float, sd: float) -> dict[str, float]:
    return {f"p{i:03d}": rng.gauss(mean, sd) for i in range(n)}


def _json(values: dict[str, float]) -> IntervalJson:
    interval = mean_interval(values)
    assert interval is not None
    return interval.to_json()


def synthetic_rounds(
    seed: int, rounds: int, prompts: int = 48, arm: str = "main"
) -> list[RoundRow]:
    """Rounds 0..`rounds` of one seed: the score rises, an untrained check falls, answers grow."""
    rng = random.Random(seed)
    shape = {
        "score/self": (0.55, 0.05, 0.1),
        "score/self/concise": (0.5, 0.08, 0.1),
        "score/rules": (0.6, 0.01, 0.1),
        "check/accuracy": (0.7, -0.09, 0.1),
        "check/format": (0.4, 0.002, 0.1),
        "length/words": (60.0, 45.0, 9.0),
        "distinct_2": (0.8, -0.02, 0.05),
        "repetition_4": (0.05, 0.004, 0.02),
        "list_rate": (0.1, 0.1, 0.1),
        "loglik/initial": (-1.2, -0.1, 0.2),
        "kl/initial": (0.0, 8.0, 1.0),
        "drift/self": (0.0, 0.02, 0.02),
        "label_mass/self": (0.9, -0.3, 0.02),
        "samples/spread/self": (0.05, -0.02, 0.01),
        "pairs/margin": (0.3, -0.12, 0.02),
        "win_rate_vs_initial/self": (0.5, 0.1, 0.1),
        "judge_corr/self": (0.02, 0.0, 0.3),
    }
    first = {name: _values(rng, prompts, mean, sd) for name, (mean, _, sd) in shape.items()}
    made: list[RoundRow] = []
    history: list[RoundResult] = []
    for number in range(rounds + 1):
        now = {
            name: {k: v + step * number + rng.gauss(0, sd / 4) for k, v in first[name].items()}
            for name, (_, step, sd) in shape.items()
        }
        changes: dict[str, IntervalJson] = {}
        for name in shape if number else ():
            change = paired_interval(now[name], first[name])
            assert change is not None
            changes[name] = change.to_json()
        metrics: RoundResult = {
            "metrics": {name: _json(values) for name, values in now.items()},
            "deltas": {"initial": changes} if number else {},
        }
        history.append(metrics)
        metrics["alarms"] = [alarm.to_json() for alarm in find_alarms(history)]
        metrics["words"] = self_judge_words("self", history)
        made.append(
            RoundRow(
                arm=arm,
                seed=seed,
                round=number,
                policy_in=f"M{max(0, number - 1)}",
                policy_out=f"M{number}",
                counts={"prompts": prompts},
                metrics=metrics,
            )
        )
    return made


def _completion(name: str, prompt_id: str, text: str) -> dict[str, Any]:
    turn = [{"role": "assistant", "content": text}]
    return {
        **to_json(Completion(name, prompt_id, 0, [], "policy", "w0", {}, "stop")),
        "messages": turn,
    }


def _judgement(subject: str, prompt_id: str, score: float | None) -> dict[str, Any]:
    return to_json(
        Judgement(
            judgement_id=f"j_{subject}",
            call_id="c",
            prompt_id=prompt_id,
            subject_kind="completion",
            shown=[subject],
            subject=subject,
            judge="self",
            annotator_id="self",
            annotator_kind="ai",
            principle="concise",
            status="ok" if score is not None else "unparsed",
            score=score,
            label_mass=0.93,
            raw=f"Verdict: yes {EVIL}",
        )
    )


def _preference(i: int, seed: int, prompt: Prompt, sides: list[str]) -> Preference:
    chosen, rejected = ([Message(role="assistant", content=side)] for side in sides)
    return Preference(
        preference_id=f"pair_{i:05d}_{seed}",
        prompt_id=prompt.prompt_id,
        round=1 + i % 2,
        prompt=prompt.messages,
        chosen=chosen,
        rejected=rejected,
        score_chosen=0.8,
        score_rejected=0.3 + 0.01 * (i % 20),
        margin=0.5 - 0.01 * (i % 20),
        prob=1.0,
        weight=1.0,
        reason=f"best and worst of 4 samples; margin above 0.1 {EVIL}",
        source="pair",
        judgement_ids=[f"j_c_{i}_0", f"j_c_{i}_1"],
        chosen_id=f"c_{i}_0",
        rejected_id=f"c_{i}_1",
    )


def synthetic_run(
    seeds: tuple[int, ...] = (7,), rounds: int = 2, pairs: int = 12, reason: str = ""
) -> RunView:
    """A run with hostile, empty, very long and non-Latin text in every place text can stand."""
    rng = random.Random(0)
    prompts: dict[str, dict[str, Any]] = {}
    completions: dict[str, dict[str, Any]] = {}
    judgements: list[dict[str, Any]] = []
    preferences: list[dict[str, Any]] = []
    heldout: list[HeldOutRow] = []
    for i in range(pairs):
        text = f"Question {i}: {EVIL if i == 0 else UNICODE if i == 1 else 'how do tides work?'}"
        prompt = make_prompt([{"role": "user", "content": text}])
        prompts[prompt.prompt_id] = to_json(prompt)
        sides = [f"Chosen answer {i}. {EVIL}", "" if i == 2 else f"Rejected answer {i}. {UNICODE}"]
        if i == 3:
            sides[0] = "word " * (MAX_TEXT // 2)
        ids = [f"c_{i}_0", f"c_{i}_1"]
        for name, side in zip(ids, sides, strict=True):
            completions[name] = _completion(name, prompt.prompt_id, side)
            score = None if i == 4 else rng.random()
            judgements.append(_judgement(name, prompt.prompt_id, score))
        for seed in seeds:
            pair = _preference(i, seed, prompt, sides)
            row = {**to_json(pair), "seed": seed, "arm": "main"}
            preferences.append(row | {"reason": reason or row["reason"]})
            for number in range(rounds + 1):
                name = f"h_{i}_{seed}_{number}"
                words = "tide moon water " * (5 + i + 8 * number)
                completions[name] = _completion(name, prompt.prompt_id, f"M{number}: {words}")
                score = min(1.0, max(0.0, rng.gauss(0.5 + 0.1 * number, 0.15)))
                judgements.append(_judgement(name, prompt.prompt_id, score))
                heldout.append(
                    HeldOutRow(
                        seed=seed,
                        round=number,
                        model=f"M{number}",
                        prompt_id=prompt.prompt_id,
                        completion_id=name,
                    )
                )
    sources = Sources(
        preferences=lambda: iter(preferences),
        heldout=lambda: ((row, completions[row["completion_id"]]) for row in heldout),
        judgements=lambda ids: (row for row in judgements if row["subject"] in ids),
        answers=lambda calls: iter(()),
        prompts=lambda: iter(prompts.values()),
    )
    return RunView(
        name="self-rewarding-quickstart",
        description="Two rounds of self-rewarding DPO: the policy judges its own answers.",
        state="finished",
        config_yaml=f"name: self-rewarding-quickstart\nseed: 7  # {EVIL}\nrounds: 2\n",
        constitutions={"": "principles:\n  - id: concise\n    question: Is it short?\n"},
        manifest={"versions": {"rlaif": "0.1.0"}, "note": EVIL},
        lineage=[
            {"kind": "model", "name": "policy", "hash": "ab" * 12, "detail": "builtin model"},
            {"kind": "prompts", "name": "everyday", "hash": "cd" * 12, "detail": EVIL},
        ],
        rounds=[row for seed in seeds for row in synthetic_rounds(seed, rounds)],
        steps=[
            StepRow(seed=seed, arms=["main"], round=number, id=kind, kind=kind, hash="ef" * 12,
                    seconds=12.5 * number, counts={"records": 48},
                    cost=0.25 if number == 2 else None)
            for seed in seeds for number in (1, 2) for kind in ("sample", "judge", "train")
        ],
        shown=gather_shown(sources, by_arm=False),
    )  # fmt: skip


class _Page(HTMLParser):
    """Collects what a browser would load, run or show."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]


def _parse(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text(encoding="utf-8"))
    return page


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(synthetic_run(), tmp_path_factory.mktemp("report"))


def test_nothing_is_loaded_and_only_our_script_runs(report: Path) -> None:
    page = _parse(report)
    assert "://" not in report.read_text(encoding="utf-8")
    assert not [tag for tag, _ in page.tags if tag in {"img", "link", "iframe", "object", "base"}]
    assert not [a for _, a in page.tags if any(k in a for k in ("src", "onerror", "onclick"))]
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "data"}, {}]
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy


def test_every_id_is_unique_and_every_figure_has_a_name(report: Path) -> None:
    page = _parse(report)
    assert len(page.ids) == len(set(page.ids))
    figures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(figures) > 15
    assert all(figure["role"] == "img" and figure["aria-label"] for figure in figures)


def test_the_embedded_data_survives_the_round_trip(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    data = json.loads(match.group(1))
    assert len(data["pairs"]) == 12
    assert data["pairs"][0]["prompt"] == f"Question 0: {EVIL}"
    assert data["pairs"][1]["rejected"].endswith(UNICODE)
    assert data["pairs"][0]["judged_chosen"][0]["raw"] == f"Verdict: yes {EVIL}"
    assert data["pairs"][4]["judged_chosen"][0]["value"] is None
    assert [m["model"] for m in data["answers"][0]["models"]] == ["M0", "M1", "M2"]


def test_the_same_run_gives_the_same_bytes(report: Path, tmp_path: Path) -> None:
    again = build_report(synthetic_run(), tmp_path / "again.html")
    assert again.read_bytes() == report.read_bytes()


def test_alarms_and_words_stand_in_the_page(report: Path) -> None:
    text = report.read_text(encoding="utf-8")
    assert "while check/accuracy, which nothing was trained on, fell:" in text
    assert "No alarm fired" not in text
    assert "Treat the feedback of judge &#39;self&#39; as noise until shown otherwise" in text


def test_no_alarm_is_said_plainly(tmp_path: Path) -> None:
    rounds = synthetic_rounds(1, 1)
    rounds[-1]["metrics"]["alarms"] = []
    rounds[0]["metrics"]["alarms"] = []
    run = dataclasses.replace(synthetic_run(), rounds=rounds)
    assert "No alarm fired in the last round." in build_report(run, tmp_path).read_text("utf-8")


def test_an_empty_run_still_makes_a_page(tmp_path: Path) -> None:
    run = RunView("empty", "", "created", "name: empty\n", {})
    text = build_report(run, tmp_path / "deep" / "report.html").read_text(encoding="utf-8")
    for sentence in ("No round was evaluated", "No pair was made", "No step has run"):
        assert sentence in text


def test_lone_surrogates_do_not_stop_the_report(tmp_path: Path) -> None:
    run = synthetic_run(pairs=2, reason="broken \ud800 too")
    run = dataclasses.replace(run, description="broken \ud800 text")
    assert "broken ? text" in build_report(run, tmp_path).read_text(encoding="utf-8")


def test_pairs_beyond_the_cap_are_announced(tmp_path: Path) -> None:
    text = build_report(synthetic_run(pairs=MAX_PAIRS + 5, rounds=0), tmp_path).read_text("utf-8")
    assert f"{MAX_PAIRS} of {MAX_PAIRS + 5} pairs shown" in text


def test_several_seeds_have_a_common_table_and_their_own(tmp_path: Path) -> None:
    text = build_report(synthetic_run(seeds=(1, 2, 3)), tmp_path).read_text(encoding="utf-8")
    assert "Mean over 3 seeds" in text
    assert all(f"<summary>Seed {seed}</summary>" in text for seed in (1, 2, 3))
    assert "run the experiment again for its interval over seeds" in text


def test_the_terminal_table_holds_the_numbers_and_the_alarms() -> None:
    rounds = synthetic_rounds(7, 2)
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(summary_table(rounds, make_page(rounds, [], no_values, None, ["self"])))
    text = console.export_text()
    assert "check/accuracy" in text
    assert "round 2" in text
    assert "alarm  The trained score rose" in text
    console.print(summary_table([], make_page([], [], no_values, None, [])))
    assert "No round was evaluated." in console.export_text()


@needs_chromium
def test_a_browser_shows_the_pair_named_in_the_address(report: Path) -> None:
    first, second = dumped(report, "#pair=1"), dumped(report, "#pair=2")
    assert "Chosen answer 0." in first
    assert "1 of 12" in first
    # What holds of every judgement of one answer is not said.
    assert "status ok" not in first and "shown 1 of 1" not in first
    assert "Chosen answer 1." in second
    assert "2 of 12" in second
    assert "日本語" in second
    assert "owned" not in re.findall(r"<title>(.*?)</title>", first)[0]
    assert "<img" not in first


@needs_chromium
def test_next_and_search_work_in_a_browser(report: Path, tmp_path: Path) -> None:
    # The page's own policy forbids any script but its own, so this copy goes without it.
    text = re.sub(r"<meta http-equiv.*?>", "", report.read_text(encoding="utf-8"))
    drive = """<script>
      document.getElementById("pair-next").click();
      document.getElementById("pair-next").click();
      const search = document.getElementById("answer-search");
      search.value = "QUESTION 11"; search.dispatchEvent(new Event("input"));
    </script></body>"""
    page = tmp_path / "driven.html"
    page.write_text(text.replace("</body>", drive), encoding="utf-8")
    shown = dumped(page)
    assert "3 of 12" in shown
    assert "(empty answer)" in shown
    assert re.search(r'id="answer-count"[^>]*>1 of 1<', shown)


@needs_chromium
def test_the_policy_stops_a_foreign_script(report: Path, tmp_path: Path) -> None:
    page = tmp_path / "foreign.html"
    foreign = "<script>document.title = 'owned'</script></body>"
    page.write_text(report.read_text("utf-8").replace("</body>", foreign), encoding="utf-8")
    assert "<title>owned</title>" not in dumped(page)
