"""A step that is removed and made again with other records: what was made from the old ones is not
taken for its own. Real servers answer anew each time; nothing is cached."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rlaif.core.errors import StoreError
from rlaif.core.finished import find_stale
from rlaif.core.integrity import Unordered
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.runs import load_run
from rlaif.pipeline.verify import verify_run
from tests.servers.scripted import ScriptedServer, prompt_text

Writer = Callable[..., Path]
TOPS = {"Yes": -0.3, "No": -1.9}
JUDGES: dict[str, dict[str, Any]] = {
    "rating": {"kind": "rating", "by": "asked"},
    "labels": {"kind": "yes_no", "by": "asked"},
    "a jury": {"kind": "jury", "of": [{"kind": "rating", "by": "asked", "id": "one"}]},
}


class World:
    """A policy whose words are `words`, and a judge that gives `verdict`, on one server."""

    def __init__(self) -> None:
        self.words = "old words"
        self.verdict = 4

    def said(self, body: dict[str, Any], choice: int) -> str:
        if "Score" not in prompt_text(body):
            return f"{self.words} {body.get('seed', 0) % 97}"
        return f"Score: {self.verdict - ('7' in prompt_text(body))}"


def written(write: Writer, folder: Path, url: str, judge: dict[str, Any]) -> Path:
    remote = {"path": "m", "engine": "openai", "base_url": url, "cache": False}
    path = write(
        folder,
        None,
        models={"policy": remote, "asked": remote | {"path": "n"}},
        rounds=1,
        steps=[
            {"sample": {"n": 3, "temperature": 1.0, "max_new_tokens": 40}},
            {"judge": {"id": "grader", **judge}},
            {"pair": {"strategy": "all", "min_margin": 0.0}},
        ],
    )
    principles = [{"id": "brief", "text": "It has few words."}]
    content = {"name": "small", "principles": principles}
    (folder / "constitution.yaml").write_text(yaml.safe_dump(content), "utf-8")
    return path


def folder_of(out: Path, kind: str) -> Path:
    run = load_run(out)
    (found,) = (s["hash"] for s in run.manifest["steps"] if s["kind"] == kind)
    return out / "steps" / found


def digest_of(step: Path) -> str:
    return str(json.loads((step / "done.json").read_text("utf-8"))["digest"])


def named(error: pytest.ExceptionInfo[StoreError]) -> set[str]:
    return {Path(line.strip()).name for line in str(error.value).splitlines()[1:]}


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_what_was_made_from_removed_answers_is_named_and_not_kept(
    tmp_path: Path, write_experiment: Writer, judge: dict[str, Any]
) -> None:
    world, out = World(), tmp_path / "out"
    with ScriptedServer(world.said, tops=TOPS, context=9999) as server:
        path = written(write_experiment, tmp_path, server.url, judge)
        run_experiment(path, out)
        sampled, judged, paired = (folder_of(out, kind) for kind in ("sample", "judge", "pair"))
        before = digest_of(paired)
        world.words = "new words"
        shutil.rmtree(sampled)
        for _ in range(2):
            with pytest.raises(StoreError, match="removed and made again") as error:
                run_experiment(path, out)
            assert named(error) == {judged.name, paired.name}
        (fault,) = verify_run(out).faults
        assert judged.name in fault and paired.name in fault
        shutil.rmtree(judged)
        with pytest.raises(StoreError) as error:
            run_experiment(path, out)
        assert named(error) == {paired.name}
        shutil.rmtree(paired)
        assert run_experiment(path, out).ran == 2
        assert run_experiment(path, out).ran == 0
    assert verify_run(out).faults == ()
    # What was made from the old pairs would be seen to be.
    assert digest_of(paired) != before
    assert all("new words" in str(row["chosen"]) for row in load_run(out).rows("preferences"))


def test_other_verdicts_on_the_same_answers_make_no_old_pairs(
    tmp_path: Path, write_experiment: Writer
) -> None:
    world, out = World(), tmp_path / "out"
    with ScriptedServer(world.said, context=9999) as server:
        path = written(write_experiment, tmp_path, server.url, JUDGES["rating"])
        run_experiment(path, out)
        shutil.rmtree(folder_of(out, "judge"))
        world.verdict = 2
        with pytest.raises(StoreError) as error:
            run_experiment(path, out)
        assert named(error) == {folder_of(out, "pair").name}


def test_a_step_that_comes_out_the_same_keeps_what_was_made_from_it(
    tmp_path: Path, write_experiment: Writer
) -> None:
    world, out = World(), tmp_path / "out"
    with ScriptedServer(world.said, context=9999) as server:
        path = written(write_experiment, tmp_path, server.url, JUDGES["rating"])
        run_experiment(path, out)
        # Times and the order of arrival are others.
        shutil.rmtree(folder_of(out, "sample"))
        shutil.rmtree(folder_of(out, "judge"))
        assert run_experiment(path, out).ran == 2
        asked = len(server.asked)
        # What is found in an unfinished step counts as what is made.
        for kind in ("sample", "judge"):
            (folder_of(out, kind) / "done.json").unlink()
        assert run_experiment(path, out).ran == 2
        assert run_experiment(path, out).ran == 0
        assert len(server.asked) == asked


@pytest.mark.parametrize("judge", JUDGES.values(), ids=JUDGES)
def test_an_unfinished_judge_step_does_not_mix_verdicts_on_two_sets_of_answers(
    tmp_path: Path, write_experiment: Writer, judge: dict[str, Any]
) -> None:
    world, out = World(), tmp_path / "out"
    with ScriptedServer(world.said, tops=TOPS, context=9999) as server:
        path = written(write_experiment, tmp_path, server.url, judge)
        run_experiment(path, out)
        sampled, judged, paired = (folder_of(out, kind) for kind in ("sample", "judge", "pair"))
        (judged / "done.json").unlink()
        shutil.rmtree(paired)
        shutil.rmtree(sampled)
        world.words = "new words"
        with pytest.raises(StoreError, match="no longer there") as error:
            run_experiment(path, out)
        assert str(judged) in str(error.value)


def test_markers_of_earlier_versions_are_read(tmp_path: Path, write_experiment: Writer) -> None:
    world, out = World(), tmp_path / "out"
    with ScriptedServer(world.said, context=9999) as server:
        path = written(write_experiment, tmp_path, server.url, JUDGES["rating"])
        run_experiment(path, out)
        for marker in (out / "steps").glob("*/done.json"):
            row = json.loads(marker.read_text("utf-8"))
            for key in ("read", "digest", "check"):
                del row[key]
            row["files"] = {name: known["size"] for name, known in row["files"].items()}
            marker.write_text(json.dumps(row), "utf-8")
        assert run_experiment(path, out).ran == 0
        shutil.rmtree(folder_of(out, "pair"))
        assert run_experiment(path, out).ran == 1
        assert run_experiment(path, out).ran == 0


@given(st.lists(st.tuples(st.text(), st.floats(allow_nan=False) | st.none())), st.randoms())
def test_the_order_of_records_is_nothing_to_their_checksum(
    rows: list[tuple[str, float | None]], random: Random
) -> None:
    found = [Unordered() for _ in range(3)]
    for content in found:
        for row in rows:
            content.add(*row)
        random.shuffle(rows)
    found[2].add("one more", None)
    assert found[0].digest() == found[1].digest() != found[2].digest()


def test_what_rests_on_stale_steps_is_stale_in_turn() -> None:
    markers: dict[str, dict[str, Any]] = {
        "answers": {"digest": "new"},
        "verdicts": {"digest": "v", "read": {"answers": "old"}},
        "pairs": {"digest": "p", "read": {"verdicts": "v"}},
        "model": {"digest": "m", "read": {"pairs": "p"}},
        "others": {"digest": "o", "read": {"gone": "g", "plain": "x"}},
        "plain": {},
    }
    assert find_stale(markers) == {"verdicts", "pairs", "model"}
