"""What is written is read again as it was, or the loss is named; TRL takes its own format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.cli import cli
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.records import Message
from rlaif.data.convert import convert_pairs, find_differences, written
from rlaif.data.readers import FORMATS, read_labelled
from rlaif.data.readers.base import make_pair
from rlaif.pipeline.manifest import KEYS

WRITTEN = {name: known for name, known in FORMATS.items() if known.write is not None}


def turns(*texts: str) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


@st.composite
def pairs(draw: st.DrawFn) -> LabelledPair:
    text = st.text(max_size=12) | st.sampled_from(["\n\nHuman: x", " a ", "\n", "A plum.", ""])
    said = text.filter(lambda t: bool(t.strip()))
    name = st.none() | st.sampled_from(["x", "y", "someone"])
    prompt = turns(*draw(st.sampled_from([1, 3]).flatmap(lambda n: st.tuples(*[said] * n))))
    if draw(st.booleans()) and draw(st.booleans()):
        prompt = [{"role": "system", "content": draw(said)}, *prompt]
    return make_pair(
        "drawn:1",
        prompt,
        (draw(text), draw(text)),
        draw(st.sampled_from([None, 0.0, 1.0, 0.5, 0.25, 0.9])),
        subset=draw(name),
        authors=(draw(name), draw(name)),
        annotator=draw(name),
        annotator_kind=draw(st.sampled_from(["human", "ai", "model", "rule"])),
        scores=draw(st.sampled_from([(None, None), (4.5, 2.0), (2.0, 4.5), (3.0, 3.0)])),
    )


def passed(pair: LabelledPair, name: str) -> tuple[LabelledPair, list[str]] | None:
    """The pair after it was a row of a format, and what it lost; None where it cannot be one."""
    try:
        row, _ = written(pair, WRITTEN[name], name)
    except ConfigError as refused:
        if not str(refused).startswith("drawn:1: "):
            raise
        return None
    (back,) = WRITTEN[name].read(json.loads(json.dumps(row)), pair.place)
    return back, find_differences(pair, back)


@pytest.mark.parametrize("name", WRITTEN)
@given(pair=pairs())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_every_pair_of_formats_gives_back_what_it_does_not_call_lost(
    name: str, pair: LabelledPair
) -> None:
    first = passed(pair, name)
    if first is None:
        return
    held, _ = first
    again = passed(held, name)
    assert again is not None
    assert again == (held, []), "a format must hold what was read from it"
    for other in WRITTEN:
        there = passed(held, other)
        back = passed(there[0], name) if there is not None else None
        if there is None or back is None:
            continue
        lost = {*there[1], *back[1]}
        assert set(find_differences(held, back[0])) <= lost
        if not lost:
            # A format may need numbers where none were given.
            filled = {k: getattr(back[0], k) for k in ("scores", "margin") if not getattr(held, k)}
            assert back[0] == replace(held, **filled)


PLAIN = make_pair("here:1", turns("Name a fruit."), ("A plum.", "No."), 1.0)


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "json", "parquet"])
def test_files_of_every_ending_are_found_and_read_again(
    name: str, ending: str, tmp_path: Path
) -> None:
    source = tmp_path / "source.jsonl"
    row = {"prompt": "Name a fruit.", "chosen": "A plum.", "rejected": "No.", "note": 1}
    source.write_text(json.dumps(row) + "\n" + json.dumps({"prompt": 3}) + "\n")
    out = tmp_path / f"out.{ending}"
    if WRITTEN[name].wrap is not None and ending != "json":
        with pytest.raises(ConfigError, match=r"must end in \.json"):
            convert_pairs(source, out, name)
        return
    done = convert_pairs(source, out, name, "trl", on_error="skip")
    assert (done.format, done.rows, done.written, done.dropped) == ("trl", 2, 1, ["note"])
    assert [message.split(": ")[0] for message in done.skipped] == [f"{source}:2"]
    reading = read_labelled(out, None if name != "pku_safer" else name)
    (pair,) = reading
    assert reading.name == name
    assert (pair.pair_id, pair.label) == (PLAIN.pair_id, 1.0)
    assert {p.name for p in tmp_path.iterdir()} == {"source.jsonl", out.name}


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({"label": 0.0, "answers": ("No.", "A plum.")}, ["order"]),
        ({"label": 0.9}, ["label"]),
        ({"answers": (" A plum.", "No.")}, ["answers"]),
        ({"subset": "food"}, ["subset"]),
        ({"authors": ("x", "y")}, ["authors"]),
        ({"scores": (4.5, 2.0)}, ["scores"]),
        ({"annotator": "ann", "annotator_kind": "ai"}, ["annotator", "annotator_kind"]),
    ],
)
def test_each_loss_has_its_name(changed: dict[str, Any], lost: list[str]) -> None:
    keys = {"answers": ("A plum.", "No."), "label": 1.0} | changed
    pair = make_pair("here:1", turns("Name a fruit."), **keys)
    back = written(pair, WRITTEN["hh"], "hh")[1]
    assert find_differences(pair, back) == lost


@pytest.mark.parametrize(
    ("pair", "name", "words"),
    [
        (make_pair("f:7", turns("q"), ("a", "b"), 0.5), "trl", "f:7: trl cannot hold .* a tie"),
        (make_pair("f:7", turns("q"), ("a", "b"), None), "hh", "nobody said which"),
        (make_pair("f:7", turns("q", "r", "s"), ("a", "b"), 1.0), "pku", "a conversation, and"),
        (make_pair("f:7", turns("q\n\nHuman: x"), ("a", "b"), 1.0), "hh", "mark of another turn"),
        (make_pair("f:7", turns("q"), ("a", "a"), 1.0), "trl", "f:7: chosen and rejected are the"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(pair: LabelledPair, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        written(pair, WRITTEN[name], name)


def test_icai_merges_the_annotators_of_a_comparison(tmp_path: Path) -> None:
    source = tmp_path / "argilla.json"
    row = {
        "prompt": "Name a fruit.",
        "response1": "A plum.",
        "response2": "No.",
        "preference.responses": ["response1", "response2"],
        "preference.responses.users": ["u1", "u2"],
        "preference.responses.status": ["submitted", "submitted"],
    }
    source.write_text(json.dumps([row]))
    assert convert_pairs(source, tmp_path / "out.json", "icai").written == 2
    document = json.loads((tmp_path / "out.json").read_text())
    assert len(document["comparisons"]) == 1
    found = {(p.annotator, p.label) for p in read_labelled(tmp_path / "out.json")}
    assert found == {("u1", 1.0), ("u2", 0.0)}


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    source, out = tmp_path / "t.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n{}\n')
    with pytest.raises(ConfigError, match=r"t\.jsonl:2: chosen is missing"):
        convert_pairs(source, out, "hh", on_error="fail")
    with pytest.raises(ConfigError, match="the new file is the old one"):
        convert_pairs(source, source, "hh")
    with pytest.raises(ConfigError, match=r"'hhh' is only read; these are written: .*trl"):
        convert_pairs(source, out, "hhh")
    with pytest.raises(ConfigError, match=r"must end in \.jsonl"):
        convert_pairs(source, tmp_path / "out.txt", "hh")
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


def test_trl_takes_what_is_written(tmp_path: Path) -> None:
    from trl import is_conversational, maybe_extract_prompt

    source = tmp_path / "hh.jsonl"
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Name a fruit.\n\nAssistant: "
    source.write_text(json.dumps({"chosen": start + "A plum.", "rejected": start + "No."}) + "\n")
    convert_pairs(source, tmp_path / "out.jsonl", "trl")
    loaded = datasets.load_dataset(
        "json", data_files=str(tmp_path / "out.jsonl"), split="train", cache_dir=str(tmp_path)
    )
    row = loaded[0]
    assert is_conversational(row)
    assert maybe_extract_prompt(row) == row
    implicit = {key: row["prompt"] + row[key] for key in ("chosen", "rejected")}
    assert maybe_extract_prompt(implicit) == row


def test_the_command_says_what_it_did(tmp_path: Path) -> None:
    source = tmp_path / "t.jsonl"
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "subset": "s", "id": 7}
    source.write_text(json.dumps(row) + "\n" + json.dumps(row | {"chosen": None}) + "\n")
    args = ["convert", str(source), str(tmp_path / "out.jsonl"), "--to", "trl"]
    done = CliRunner().invoke(cli, args, catch_exceptions=False)
    assert "1 pairs of 2 rows (rewardbench) written to" in done.stdout
    assert "lost: the subset (1 pairs)" in done.stdout
    assert "not carried over: id" in done.stdout
    assert "t.jsonl:2: chosen is missing" in done.stderr
    found = json.loads(CliRunner().invoke(cli, [*args, "--json"]).stdout)
    assert (found["written"], found["lost"], len(found["skipped"])) == (1, {"subset": 1}, 1)


TIE = {"prompt": "q", "response 1": "a", "response 2": "b", "label": 2}


@pytest.mark.parametrize(
    ("text", "ending", "said"),
    [
        ("", "jsonl", "no rows in this file"),
        ("{\n[]\n", "jsonl", "a.jsonl:1: not valid JSON"),
        ("[]", "json", "no rows in this file"),
        ("prompt,chosen,rejected\n", "csv", "no rows in this file"),
        ('{"prompt": 3, "chosen": "a", "rejected": "b"}\n', "jsonl", "a.jsonl:1: prompt is 3"),
        (json.dumps(TIE), "jsonl", "a.jsonl:1: trl cannot hold this pair: a tie"),
    ],
)
def test_commands_that_read_no_row_write_no_file(
    text: str, ending: str, said: str, tmp_path: Path
) -> None:
    source, out = tmp_path / f"a.{ending}", tmp_path / "out"
    source.write_text(text)
    commands = [["convert", str(source), str(tmp_path / "x.jsonl"), "--to", "trl"]]
    if "tie" not in said:
        commands += [[*name, str(source)] for name in (["winrate"], ["data", "stats"])]
        commands += [["judge-bench", str(source), "--out", str(out)]]
    for command in commands:
        refused = CliRunner().invoke(cli, command).exception
        assert isinstance(refused, ConfigError), command
        assert refused.exit_code == 2
        assert said in str(refused), command
    assert [p.name for p in tmp_path.iterdir()] == [source.name]


def test_a_run_without_records_exports_no_file(tmp_path: Path) -> None:
    folder, out = tmp_path / "run", tmp_path / "out.jsonl"
    folder.mkdir()
    manifest = {key: {} for key in KEYS} | {"format": 1, "steps": []}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    refused = CliRunner().invoke(cli, ["export", str(folder), str(out)]).exception
    assert isinstance(refused, ConfigError)
    assert "this run has no preferences" in str(refused)
    assert not out.exists()
