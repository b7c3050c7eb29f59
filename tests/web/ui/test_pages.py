"""The pages of real runs, asked for without a browser."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from starlette.testclient import TestClient

from rlaif.core.errors import ConfigError
from rlaif.core.integrity import file_digest
from rlaif.pipeline.runs import load_run
from rlaif.web.ui.app import make_app
from rlaif.web.ui.indexer import Indexer
from rlaif.web.ui.library import open_library, run_id
from rlaif.web.ui.pages import Site
from rlaif.web.ui.search import SHOWN, Query, match_text, read_query
from rlaif.web.ui.state import POINTS, StepState, read_losses
from tests.web.ui.conftest import SAFE, add_judgements


@pytest.fixture
def client(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    indexer = Indexer()
    site = Site(open_library([runs]), indexer)
    with TestClient(make_app(site, frozenset({"testserver"}))) as found:
        yield found
    indexer.close()


def read(client: TestClient, url: str) -> str:
    """A page, once the index behind it is complete."""
    for _ in range(200):
        answer = client.get(url)
        assert answer.status_code == 200, (url, answer.text[-2000:])
        if "is being built" not in answer.text:
            return answer.text
        time.sleep(0.05)
    raise AssertionError("the index was never complete")


def links(page: str) -> list[str]:
    return [unescape(link) for link in re.findall(r'href="([^"]*)"', page)]


def counted(page: str) -> int:
    return int(re.findall(r"([\d,]+) \w+ match", page)[0].replace(",", ""))


def identify(runs: Path, name: str) -> str:
    return run_id((runs / name).resolve())


def test_every_link_leads_to_a_page_and_no_markup_of_a_model_is_in_any(
    client: TestClient, runs: Path
) -> None:
    seen: set[str] = set()
    ahead = ["/", *(f"/run/{identify(runs, 'second')}/browse?show={show}" for show in SHOWN)]
    while ahead and len(seen) < 150:
        url = ahead.pop(0).partition("#")[0]
        if url in seen:
            continue
        seen.add(url)
        page = read(client, url) if "/static/" not in url else client.get(url).text
        if "/static/" in url:
            continue
        assert page.count("<script") == 1 and "<img" not in page and "49 " not in page, url
        # No attribute that runs or styles anything, which the policy would refuse.
        tags = re.findall(r"<[a-z][^>]*>", page)
        assert not [tag for tag in tags if re.search(r"\s(on\w+|style)=|javascript:", tag)], url
        for link in links(page):
            full = url.partition("?")[0] + link if link.startswith("?") else link
            if not link.startswith(("#", "http")):
                ahead.append(full)
    kinds = {re.sub(r"\?.*|[0-9a-f]{10}", "", url) for url in seen}
    assert {
        "/",
        "/run/",
        "/run//browse",
        "/run//prompt",
        "/run//flow",
        "/curves",
        "/config",
    } <= kinds


def test_hostile_text_is_shown_as_it_is(client: TestClient, runs: Path) -> None:
    page = read(client, f"/run/{identify(runs, 'second')}/browse?show=judgements&judge=written")
    assert counted(page) == 60 and SAFE in page
    assert "&lt;script&gt;window.hacked = 1&lt;/script&gt;" in page


def test_counts_are_those_of_the_run(client: TestClient, runs: Path) -> None:
    run = load_run(runs / "first")
    base = f"/run/{identify(runs, 'first')}"
    kinds = {"pairs": "preferences", "answers": "completions", "judgements": "judgements"}
    for show, kind in kinds.items():
        page = read(client, f"{base}/browse?show={show}")
        assert counted(page) == len(list(run.rows(kind))), show
    overview = read(client, base)
    done = len(run.manifest["steps"])
    assert f"{done} of {done} steps" in overview and "badge done" in overview


def test_a_prompt_has_all_its_answers_judgements_and_pairs(client: TestClient, runs: Path) -> None:
    run = load_run(runs / "second")
    pair = next(iter(run.rows("preferences")))
    base = f"/run/{identify(runs, 'second')}"
    read(client, f"{base}/browse")
    page = read(client, f"{base}/prompt?id={pair['prompt_id']}")
    completions = [r for r in run.rows("completions") if r["prompt_id"] == pair["prompt_id"]]
    judged = [r for r in run.rows("judgements") if r["prompt_id"] == pair["prompt_id"]]
    pairs = [r for r in run.rows("preferences") if r["prompt_id"] == pair["prompt_id"]]
    ids = [r["completion_id"] for r in completions] + [r["judgement_id"] for r in judged]
    ids += [r["preference_id"] for r in pairs]
    assert len(completions) <= 12
    found = [unescape(name) for name in re.findall(r'\sid="([^"]+)"', page)]
    assert set(ids) <= set(found) and len(found) == len(set(found))


def test_the_address_has_the_whole_state(client: TestClient, runs: Path) -> None:
    given = {
        "show": "pairs", "q": 'red "a b" <', "judge": "self", "principle": "useful",
        "differ": "orders", "step": "abc", "alarm": "a b", "low": "0.5", "high": "1",
        "gap_low": "-3", "gap_high": "4", "page": "2",
    }  # fmt: skip
    query = read_query(given)
    again = {name: values[0] for name, values in parse_qs(query.url()[1:]).items()}
    assert read_query(again) == query != Query()
    assert query.url(page=1) == read_query(given | {"page": "1"}).url()
    page = read(client, f"/run/{identify(runs, 'second')}/browse{query.url()}")
    for shown in ('value="red &#34;a b&#34; &lt;"', 'value="0.5"', 'value="-3.0"', "selected"):
        assert shown in page


def test_the_feedback_of_marked_runs_is_compared_on_a_page_without_a_script(
    client: TestClient, runs: Path
) -> None:
    first, second = (identify(runs, name) for name in ("first", "second"))
    answer = client.get(f"/compare?run={first}&run={second}")
    assert answer.status_code == 200 and "AI and human feedback compared" in answer.text
    assert "<script" not in answer.text and '<a href="/">rlaif</a>' in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert "script-src" not in policy and "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert client.get("/compare").status_code == 404
    assert client.get("/compare?run=nothing").status_code == 404


@pytest.mark.parametrize(
    "given",
    [
        {"low": "x", "high": "nan", "gap_low": "inf", "page": "-4"},
        {"page": "1e400"},
        {"show": "passwords"},
    ],
)
def test_what_is_no_value_counts_as_not_given(given: dict[str, str]) -> None:
    assert read_query(given) == Query()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("red green", '"red" "green"'),
        ('"red green"', '"red green"'),
        ("beg*", '"beg"*'),
        ("a OR b NOT c", '"a" "OR" "b" "NOT" "c"'),
        ("col:umn NEAR(x)", '"col:umn" "NEAR(x)"'),
        ('"unclosed', '"unclosed"'),
        ("!!! *", ""),
        ("", ""),
    ],
)
def test_a_search_is_words_and_phrases_and_no_syntax(text: str, match: str) -> None:
    assert match_text(text) == match


@pytest.mark.parametrize("q", ['"', "a*b", "(", "a AND", "^a", "{a}", "-a", "'", "\\", "\0", "a:b"])
def test_no_search_fails(client: TestClient, runs: Path, q: str) -> None:
    base = f"/run/{identify(runs, 'first')}/browse"
    assert client.get(base, params={"q": q, "show": "answers"}).status_code == 200


def test_an_alarm_leads_to_the_records_of_its_round(client: TestClient, runs: Path) -> None:
    page = read(client, f"/run/{identify(runs, 'first')}")
    link = next(link for link in links(page) if "alarm=label_mass" in link)
    # The alarm's name, its metric, and the arm, seed and round that it fired in.
    assert link.endswith("alarm=label_mass+label_mass%2Fself+main+3+2")
    rows = [
        row
        for row in load_run(runs / "first").rows("judgements")
        if (row["run_round"], row["run_seed"], row["judge"]) == (2, 3, "self")
    ]
    assert counted(read(client, link)) == len(rows) > 0


def test_configs_are_compared_key_by_key(client: TestClient, runs: Path) -> None:
    first, third = identify(runs, "first"), identify(runs, "<b>&'/third")
    page = read(client, f"/config?run={first}&run={third}")
    keys = re.findall(r'<tr class="differs"><th scope="row"><code>(.*?)</code>', page)
    assert [re.sub("<wbr>", "", key) for key in keys] == [
        *("name", "seed", "models.policy.script", "rounds")
    ]
    assert re.sub(r"<.*?>", " ", page).split("rounds")[1].split()[:2] == ["2", "1"]
    every = read(client, f"/config?run={first}&run={third}&all=1")
    assert "steps[judge:checks]" in every and every.count("<tr") > page.count("<tr") + 20


def test_curves_have_a_line_for_each_run(client: TestClient, runs: Path) -> None:
    names = [identify(runs, name) for name in ("first", "second", "<b>&'/third")]
    runs_given = "&".join(f"run={name}" for name in names)
    page = read(client, f"/curves?{runs_given}&metric=score/checks")
    assert page.count('<svg class="plot"') == 1
    svg = page[page.index("<svg") : page.index("</svg>")]
    assert [svg.count(f'<g class="c{n}">') for n in range(4)] == [1, 1, 1, 0]
    # Three rounds, three rounds, two rounds, each with its interval.
    assert svg.count("<circle") == 8 and svg.count('class="bar"') == 8
    rows = load_run(runs / "first").page().rounds
    mean = rows[-1]["metrics"]["metrics"]["score/checks"]["mean"]
    assert f"first: {mean:.3f} [" in svg


@pytest.mark.parametrize(
    "url",
    [
        "/run/..%2f..%2fetc/browse", "/run/../../etc/passwd", "/static/..%2fapp.py",
        "/static/app.py", "/run/0123456789", "/run/0123456789/flow", "/nothing", "/config",
        "/curves?run=../../etc",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_runs(client: TestClient, url: str) -> None:
    answer = client.get(url)
    assert answer.status_code == 404 and "root:" not in answer.text


def test_a_missing_prompt_is_said(client: TestClient, runs: Path) -> None:
    base = f"/run/{identify(runs, 'first')}"
    read(client, f"{base}/browse")
    answer = client.get(f"{base}/prompt?id=p_nothing")
    assert answer.status_code == 404 and "This run has no such prompt." in answer.text


def test_damage_is_named_and_other_runs_are_shown(
    client: TestClient, runs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copies"
    shutil.copytree(runs / "first", folder / "good")
    shutil.copytree(runs / "first", folder / "bad")
    (folder / "bad" / "config.yaml").write_text("name: other")
    indexer = Indexer()
    site = Site(open_library([folder]), indexer)
    own = TestClient(make_app(site, frozenset({"testserver"})))
    page = own.get("/").text
    assert page.count('class="card"') == 2 and "badge damaged" in page and "badge done" in page
    assert "config.yaml: missing or changed after the run wrote it" in page
    bad = own.get(f"/run/{run_id((folder / 'bad').resolve())}")
    assert "config.yaml: missing or changed" in bad.text
    indexer.close()


def test_a_run_that_grows_is_found_and_counted(
    client: TestClient, runs: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "live"
    folder.mkdir()
    indexer = Indexer()
    site = Site(open_library([runs]), indexer)
    site.library.folders.append(folder.resolve())
    own = TestClient(make_app(site, frozenset({"testserver"})))
    assert own.get("/").text.count('class="card"') == 3
    shutil.copytree(runs / "first", folder / "late")
    base = f"/run/{run_id((folder / 'late').resolve())}"
    assert own.get("/").text.count('class="card"') == 4
    before = counted(read(own, f"{base}/browse?show=judgements"))
    add_judgements(folder / "late", 7, "red")
    page = own.get(base).text
    assert "badge running" in page and 'data-live="yes"' in page
    deadline = time.monotonic() + 30
    while counted(own.get(f"{base}/browse?show=judgements").text) != before + 7:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    indexer.close()


def state_of(folder: Path) -> dict[str, Any]:
    return {
        str(path): (path.stat().st_mtime_ns, file_digest(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_run_folders_are_never_written_to(client: TestClient, runs: Path) -> None:
    before = state_of(runs)
    base = f"/run/{identify(runs, 'second')}"
    for url in ("/", base, f"{base}/browse?q=answer", f"{base}/flow", f"/curves?run={base[5:]}"):
        read(client, url)
    assert state_of(runs) == before


def test_without_a_cache_the_index_goes_with_the_process(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where the folder would be")
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path / "cache"))
    indexer = Indexer()
    own = TestClient(make_app(Site(open_library([runs]), indexer), frozenset({"testserver"})))
    assert counted(read(own, f"/run/{identify(runs, 'first')}/browse?show=answers")) > 0
    indexer.close()


def test_folders_without_a_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing does not exist"):
        open_library([tmp_path / "nothing"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file is a file; the folder of a run was expected"):
        open_library([tmp_path / "file"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty is not a run folder .* Name the folder that"):
        open_library([tmp_path / "empty"])


@pytest.mark.parametrize(("steps", "points"), [(3, 3), (POINTS, POINTS), (POINTS * 2 - 1, POINTS)])
def test_a_curve_of_losses_is_thinned_and_ends_at_the_last_step(
    tmp_path: Path, steps: int, points: int
) -> None:
    work = tmp_path / "steps" / "h" / "work"
    work.mkdir(parents=True)
    rows = "".join(f'{{"step": {n}, "loss": {n}.5}}\n' for n in range(1, steps + 1))
    # The last line is being written.
    (work / "metrics.jsonl").write_text(rows + '{"step": 9')
    place = ("train", "train", 3, 2, "main", ["a"], "h", "running")
    state = StepState(*place, counts={}, seconds=None, cost=None, estimated=0, notes=[], errors={})
    ((name, curve),) = read_losses(tmp_path, [state]).items()
    assert name == "train, seed 3, round 2, a"
    assert len(curve) == points
    assert curve[-1] == (steps, steps + 0.5)
