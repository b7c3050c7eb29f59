"""The browser of pairs that a judge got wrong: which they are, what it shows, on a phone too."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlaif.analysis.bench.judging import Judged
from rlaif.analysis.bench.mistakes import FILE, find_mistakes, gap_words
from rlaif.analysis.bench.run import BenchRequest, run_bench
from rlaif.config.models import ModelSpec
from rlaif.core.labelled import LabelledPair
from rlaif.core.progress import QuietProgress
from rlaif.core.store import Store
from rlaif.data.readers.base import make_pair, user
from rlaif.metrics.verdicts import Cost, Verdict
from rlaif.report.bench import bench_page
from tests.support.browsing import CHROMIUM, dumped, needs_chromium

EVIL = "</script><script>document.title='owned'</script>"
SUBSET = " of a file whose subsets have long names"
PAIRS = [
    # name, marks of the two answers, the label
    ("right", ("zork", "plain"), 1.0),
    ("wrong", ("zork " + "pad " * 20, "plain " + EVIL), 0.0),
    ("wrong_too", ("plain and quite as long", "zork and quite as long"), 1.0),
    ("slot", ("slotty one", "slotty two"), 1.0),
    ("tied", ("even", "even too"), 1.0),
    ("unlabelled", ("zork", "plain"), None),
    ("label_tie", ("zork", "plain"), 0.5),
]
RULES = [
    {"match": "(?s)slotty.*slotty", "labels": {"first": 0.95, "second": 0.05}},
    {
        "match": "(?s)zork.*plain",
        "labels": {"first": 0.9, "second": 0.1},
        "replies": ["I like zork."],
    },
    {"match": "(?s)plain.*zork", "labels": {"first": 0.2, "second": 0.8}},
    {"match": "(?s)even", "labels": {"first": 0.5, "second": 0.5}},
    # The turn that asks for a verdict after reasons shows no answer.
    {"match": "(?s).", "labels": {"first": 0.7, "second": 0.3}},
]


def pairs() -> list[LabelledPair]:
    return [
        make_pair(f"{name}:1", user(f"Question {name}?"), texts, label, subset=name[:5] + SUBSET)
        for name, texts, label in PAIRS
    ]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "script.yaml").write_text(yaml.safe_dump({"rules": RULES}))
    judges = [
        {"id": "both", "kind": "pairwise", "by": "scripted"},
        {"id": "once", "kind": "pairwise", "by": "scripted", "order": "fixed"},
        {"id": "reasons", "kind": "pairwise", "by": "scripted", "order": "fixed", "cot": True},
    ]
    models = {"scripted": {"path": "none", "engine": "fake", "script": "script.yaml"}}
    spec = folder / "judges.yaml"
    spec.write_text(yaml.safe_dump({"models": models, "judges": judges}))
    request = BenchRequest(
        name="planted",
        judges=[str(spec)],
        out=folder / "out",
        model=ModelSpec(path="none", engine="fake"),
    )
    return run_bench(request, pairs(), QuietProgress()), folder / "out"


def kept(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / FILE).read_text("utf-8").split("\n") if line]


def test_the_wrong_pairs_are_those_that_both_decided_otherwise(
    measured: tuple[dict[str, Any], Path],
) -> None:
    result, folder = measured
    rows = kept(folder)
    wrong = {j: [r for r in rows if r["judge"] == j] for j in result["judges"]}
    for judge, found in wrong.items():
        about = result["judges"][judge]
        decided, agreed = about["n"], about["agreement"] or 0.0
        assert len(found) == round(decided * (1 - agreed)), judge
        assert {r["of"] for r in found} <= {len(found)}
    both = {r["place"]: r for r in wrong["both"]}
    assert both.keys() == {"wrong:1", "wrong_too:1"}, "a slot that wins twice is a tie"
    first = both["wrong:1"]
    assert first["better"] == "plain " + EVIL
    assert (first["label"], first["subset"]) == (1.0, "wrong" + SUBSET)
    assert first["prob"] == pytest.approx(0.15), "both orders: (0.1 + 0.2) / 2"
    assert first["order"] == "wrong in both orders"
    assert first["gap"] == "picked the longer"
    assert len(first["judged_both"]) == 2
    assert {j["order"] for j in first["judged_both"]} == {"1 of 2", "2 of 2"}
    assert both["wrong_too:1"]["gap"] == "picked one of like length"
    probs = [r["prob"] for r in wrong["both"]]
    assert probs == sorted(probs), "the surest first"


@pytest.mark.parametrize(
    ("label", "prob", "said"), [(1.0, 0.2, (1.0, 0.2)), (0.25, 0.9, (0.75, 0.1))]
)
def test_label_and_probability_are_those_of_the_better_answer(
    label: float, prob: float, said: tuple[float, float], tmp_path: Path
) -> None:
    pair = make_pair("p", user("Which?"), ("one", "another"), label)
    verdict = Verdict(prob, prob, None, 1, 0, 0, 0, 0, None, Cost())
    (row,) = find_mistakes("j", [pair], Judged([verdict], [], Cost()), Store(tmp_path))
    assert (row["label"], row["prob"]) == pytest.approx(said)
    assert row["better"] == ("one" if label == 1.0 else "another")


def test_orders_of_a_judge_that_is_asked_once(measured: tuple[dict[str, Any], Path]) -> None:
    orders = {r["order"] for r in kept(measured[1]) if r["judge"] == "once"}
    assert orders and orders <= {"better answer shown first", "better answer shown second"}


@pytest.mark.parametrize(
    ("picked", "better", "words"),
    [
        (100, 95, "picked one of like length"),
        (150, 100, "picked the longer"),
        (201, 100, "picked the far longer"),
        (100, 150, "picked the shorter"),
        (0, 50, "picked the far shorter"),
        (0, 0, "picked one of like length"),
    ],
)
def test_length_gaps(picked: int, better: int, words: str) -> None:
    assert gap_words(picked, better) == words


def page_of(measured: tuple[dict[str, Any], Path], path: Path) -> Path:
    return bench_page(measured[0], path, kept(measured[1]))


def test_without_mistakes_the_page_runs_no_script(
    measured: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    page = bench_page(measured[0], tmp_path / "page.html").read_text("utf-8")
    assert "<script" not in page and "script-src" not in page


@needs_chromium
def test_the_browser_shows_and_filters(
    measured: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    page = page_of(measured, tmp_path / "page.html")
    shown = dumped(page, "#mistake=1")
    assert "Better by the label" in shown and "Picked by the judge" in shown
    assert "P(better) by the judge" in shown
    assert f"1 of {len(kept(measured[1]))}" in shown
    assert "owned" not in shown.partition("</title>")[0], "text from a file stays text"
    for choice in ("both", "once", "wrong in both orders", "picked one of like length"):
        assert f'<option value="{choice}">' in shown
    # A page that chooses in its own filters, as a reader would.
    acting = tmp_path / "acting.html"
    act = "const s=document.getElementById('mistake-gap');s.value='picked one of like length';"
    act += "s.dispatchEvent(new Event('change'));"
    text = page.read_text("utf-8")
    policy = text[text.index("; script-src") : text.index("'\">", text.index("; script-src")) + 1]
    acting.write_text(
        text.replace(policy, "; script-src 'unsafe-inline'").replace(
            "</body>", f"<script>{act}</script></body>"
        ),
        "utf-8",
    )
    filtered = dumped(acting)
    count = sum(r["gap"] == "picked one of like length" for r in kept(measured[1]))
    assert f"1 of {count}<" in filtered


@needs_chromium
def test_the_reasons_are_open(measured: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    rows = kept(measured[1])
    written = [[j["raw"] for j in r["judged_both"]] for r in rows]
    place = 1 + next(i for i, raw in enumerate(written) if any(raw))
    shown = dumped(page_of(measured, tmp_path / "page.html"), f"#mistake={place}")
    text = written[place - 1][0]
    assert f'<details open=""><summary>what the judge wrote</summary><pre>{text}' in shown


@needs_chromium
def test_nothing_is_wider_than_a_phone(
    measured: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    page = page_of(measured, tmp_path / "page.html")
    frame = tmp_path / "phone.html"
    script = (
        "addEventListener('load', () => { const root = document.querySelector('iframe')"
        ".contentDocument.documentElement; document.title = root.scrollWidth + ' of ' +"
        " root.clientWidth; });"
    )
    size = "width:360px;height:700px;border:0"
    frame.write_text(f'<iframe src="{page.name}#mistake=1" style="{size}">'
                     f"</iframe><script>{script}</script>")  # fmt: skip
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000",
         "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}",
         "--dump-dom", f"file://{frame}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = done.stdout.partition("<title>")[2].partition("</title>")[0]
    wide, room = (int(x) for x in title.split(" of "))
    assert wide <= room
