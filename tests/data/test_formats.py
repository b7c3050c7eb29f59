"""One command for each published format reads a row that was written after its schema."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.core.errors import ConfigError
from rlaif.core.labelled import LabelledPair
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Preference, message_text
from rlaif.core.store import StepFolder
from rlaif.data.convert import convert_pairs
from rlaif.data.readers import FORMATS, detect_format, load_columns, read_answers, read_labelled
from rlaif.data.turns import read_asked, read_turn, with_system
from rlaif.pipeline.single_step import Request, run_step
from rlaif.pipeline.steps.load import load_preferences
from tests.servers.hub import Hub

Row = dict[str, Any]
Q, GOOD, BAD = "Name a fruit.", "A plum.", "No."


def turn(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


ASKED = turn("user", Q)
CHAT = [ASKED, turn("assistant", GOOD)], [ASKED, turn("assistant", BAD)]


def parts(text: str) -> list[Row]:
    return [{"type": "text", "text": text, "image": None, "mimeType": None}]


def node(name: str, role: str, text: str, parent: str | None, rank: int | None = None) -> Row:
    return {
        "message_id": name,
        "parent_id": parent,
        "message_tree_id": "t",
        "text": text,
        "role": role,
        "rank": rank,
        "lang": "en",
    }


OASST = [
    node("t", "prompter", Q, None),
    node("u", "assistant", BAD, "t", 1),
    node("v", "assistant", GOOD, "t", 0),
]
TREE = {
    "message_tree_id": "t",
    "tree_state": "ready_for_export",
    "prompt": {
        **OASST[0],
        "replies": [{**OASST[1], "replies": []}, {**OASST[2], "replies": []}],
    },
}
STEERED = {"correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 1}

# name -> (rows; what is read: (first, second, label), scores, margin, subset, annotator)
PUBLISHED: dict[str, tuple[list[Row], tuple[Any, ...], Row]] = {
    "helpsteer3": (
        [
            {
                "domain": "general",
                "language": "english",
                "context": [ASKED],
                "response1": BAD,
                "response2": GOOD,
                "overall_preference": 2,
                "individual_preference": [{"score": 2, "reasoning": "."}],
            }
        ],
        (BAD, GOOD, 0.0),
        {"margin": 2.0, "subset": "general"},
    ),
    "helpsteer2_preference": (
        [
            {
                "split": "train",
                "prompt": Q,
                "response_1": GOOD,
                "response_2": BAD,
                "preference_strength": -3,
                "preference_statement": ".",
            }
        ],
        (GOOD, BAD, 1.0),
        {"margin": 3.0},
    ),
    "helpsteer2": (
        [
            {"prompt": Q, "response": GOOD, "helpfulness": 4, **STEERED},
            {"prompt": Q, "response": BAD, "helpfulness": 1, **STEERED},
            {"prompt": "Another?", "response": GOOD, "helpfulness": 2, **STEERED},
            {"prompt": "Another?", "response": BAD, "helpfulness": 2, **STEERED},
        ],
        (GOOD, BAD, 1.0),
        {"scores": (4.0, 1.0)},
    ),
    "nectar": (
        [
            {
                "prompt": f"\n\nHuman: {Q}\n\nAssistant: ",
                "answers": [
                    {"answer": GOOD, "model": "x", "rank": 1.0},
                    {"answer": BAD, "model": "y", "rank": 2.0},
                    {"answer": "?", "model": "z", "rank": 3.0},
                ],
                "turns": 1,
                "num_responses": 3,
                "source": ["sharegpt"],
                "good_natured": True,
            }
        ],
        (GOOD, BAD, 1.0),
        {"authors": ("x", "y"), "annotator_kind": "ai"},
    ),
    "stack_exchange": (
        [
            {
                "qid": 1,
                "question": Q,
                "answers": [
                    {"answer_id": 1, "author": "a", "pm_score": 1, "selected": False, "text": BAD},
                    {"answer_id": 2, "author": "b", "pm_score": 5, "selected": True, "text": GOOD},
                ],
            }
        ],
        (BAD, GOOD, 0.0),
        {"scores": (1.0, 5.0), "authors": ("a", "b")},
    ),
    "stack_exchange_paired": (
        [{"qid": 1, "question": Q, "response_j": GOOD, "response_k": BAD}],
        (GOOD, BAD, 1.0),
        {},
    ),
    "shp": (
        [
            {
                "post_id": "a",
                "domain": "askculinary_train",
                "history": Q,
                "human_ref_A": BAD,
                "human_ref_B": GOOD,
                "labels": 0,
                "score_A": 3,
                "score_B": 12,
                "score_ratio": 4.0,
            }
        ],
        (BAD, GOOD, 0.0),
        {"scores": (3.0, 12.0), "subset": "askculinary_train"},
    ),
    "orca_dpo": (
        [{"system": "Be brief.", "question": Q, "chosen": GOOD, "rejected": BAD}],
        (GOOD, BAD, 1.0),
        {"system": "Be brief."},
    ),
    "distilabel_orca": (
        [
            {
                "system": "Be brief.",
                "input": Q,
                "chosen": GOOD,
                "rejected": BAD,
                "labelling_model": "judge-9b",
            }
        ],
        (GOOD, BAD, 1.0),
        {"system": "Be brief.", "annotator": "judge-9b"},
    ),
    "arena": (
        [
            {
                "id": "0b1c",
                "model_a": "x",
                "model_b": "y",
                "winner": "both_bad",
                "conversation_a": [turn("user", parts(Q)), turn("assistant", parts(GOOD))],
                "conversation_b": [turn("user", parts(Q)), turn("assistant", parts(BAD))],
                "language": "en",
            }
        ],
        (GOOD, BAD, 0.5),
        {"authors": ("x", "y"), "subset": "en"},
    ),
    "arena_55k": (
        [
            {
                "id": 1,
                "model_a": "x",
                "model_b": "y",
                "prompt": json.dumps([Q]),
                "response_a": json.dumps([BAD]),
                "response_b": json.dumps([GOOD]),
                "winner_model_a": 0,
                "winner_model_b": 1,
                "winner_tie": 0,
            }
        ],
        (BAD, GOOD, 0.0),
        {"authors": ("x", "y")},
    ),
    "mt_bench": (
        [
            {
                "question_id": 81,
                "model_a": "x",
                "model_b": "y",
                "winner": "model_b",
                "judge": judge,
                "conversation_a": [*CHAT[1], turn("user", "Why?"), turn("assistant", "So.")],
                "conversation_b": [*CHAT[0], turn("user", "Why?"), turn("assistant", "Ah.")],
                "turn": 1,
            }
            for judge in ("expert_3", "gpt4_pair")
        ],
        (BAD, GOOD, 0.0),
        {"annotator": "expert_3", "annotator_kind": "human"},
    ),
    "oasst": (OASST, (BAD, GOOD, 0.0), {"subset": "en"}),
    "oasst_trees": ([TREE], (BAD, GOOD, 0.0), {"subset": "en"}),
    "ppe": (
        [
            {
                "question_id": "a",
                "prompt": Q,
                "response_1": GOOD,
                "response_2": BAD,
                "winner": "model_a",
                "model_a": "x",
                "model_b": "y",
                "language": "English",
            }
        ],
        (GOOD, BAD, 1.0),
        {"authors": ("x", "y")},
    ),
    "ppe_correctness": (
        [
            {
                "question_id": "a",
                "prompt": Q,
                "model_name": "x",
                "response_1": BAD,
                "response_2": GOOD,
                "response_3": "?",
                "scores": [False, True, False],
                "sampled_conflict_pairs": [[0, 1], [1, 2]],
            }
        ],
        (BAD, GOOD, 0.0),
        {"annotator_kind": "rule"},
    ),
    "judgebench": (
        [
            {
                "pair_id": "a",
                "source": "mmlu-pro-math",
                "question": Q,
                "response_model": "x",
                "response_A": BAD,
                "response_B": GOOD,
                "label": "B>A",
            }
        ],
        (BAD, GOOD, 0.0),
        {"subset": "mmlu-pro-math"},
    ),
    "webgpt": (
        [
            {
                "question": {"dataset": "eli5", "id": "a", "full_text": Q},
                "quotes_0": {"title": [], "extract": []},
                "answer_0": GOOD,
                "score_0": 0.5,
                "answer_1": BAD,
                "score_1": -0.5,
            }
        ],
        (GOOD, BAD, 1.0),
        {"scores": (0.5, -0.5), "subset": "eli5"},
    ),
    "tldr": (
        [
            {
                "info": {"id": "a", "post": Q, "title": "Fruit", "subreddit": "food"},
                "summaries": [
                    {"text": BAD, "policy": "sup4", "note": None},
                    {"text": GOOD, "policy": "ref", "note": None},
                ],
                "choice": 1,
                "worker": "w1",
            }
        ],
        (BAD, GOOD, 0.0),
        {"annotator": "w1", "authors": ("sup4", "ref")},
    ),
    "tldr_news": (
        [
            {
                "info": {"id": "a", "article": Q, "post": None, "site": "news"},
                "summaries": [{"text": GOOD, "policy": "a"}, {"text": BAD, "policy": "b"}],
                "choice": 0,
            }
        ],
        (GOOD, BAD, 1.0),
        {},
    ),
}


def write(folder: Path, rows: list[Row]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def ran(*words: str | Path) -> Any:
    return CliRunner().invoke(cli, [str(word) for word in words])


def about(pair: LabelledPair, known: Row) -> Row:
    found = {name: getattr(pair, name) for name in known if name != "system"}
    if "system" in known:
        found["system"] = pair.prompt.messages[0]["content"]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_row_of_each_published_data_set_is_found_and_read(name: str, tmp_path: Path) -> None:
    rows, expected, more = PUBLISHED[name]
    path = write(tmp_path, rows)
    assert detect_format(rows[0]) == name
    for reading in (read_labelled(path), read_labelled(path, name)):
        pair = next(iter(reading))
        assert (pair.first.text, pair.second.text, pair.label) == expected
        assert about(pair, more) == more
        assert Q in pair.prompt.question
    # Plain questions go into a form that has ties as well.
    to, out = ("trl", "out.jsonl") if "system" in more else ("icai", "out.json")
    done = ran("convert", path, tmp_path / out, "--to", to, "--json")
    assert json.loads(done.stdout)["format"] == name, done.output
    assert json.loads(done.stdout)["written"] >= 1


def test_every_format_has_a_row_in_one_of_the_tests() -> None:
    from tests.data.test_readers import SAMPLES

    others = {"kto", "sft", "messages", "responses", "pku_safer", "alpaca_eval_outputs", "votes"}
    assert {*SAMPLES, *PUBLISHED, *others} == FORMATS.keys()


def test_every_two_answers_of_a_ranked_list_are_a_pair(tmp_path: Path) -> None:
    pairs = list(read_labelled(write(tmp_path, PUBLISHED["nectar"][0])))
    assert [(p.first.text, p.second.text) for p in pairs] == [
        (GOOD, BAD),
        (GOOD, "?"),
        (BAD, "?"),
    ]
    steered = list(read_labelled(write(tmp_path, PUBLISHED["helpsteer2"][0])))
    assert [(p.prompt.question, p.label) for p in steered] == [(Q, 1.0), ("Another?", 0.5)]


def test_second_turns_of_mt_bench_are_left_out_by_their_reason(tmp_path: Path) -> None:
    rows = PUBLISHED["mt_bench"][0]
    path = write(tmp_path, [rows[0], rows[1], rows[0] | {"turn": 2}])
    reading = read_labelled(path, on_error="skip")
    assert [(p.annotator, p.annotator_kind) for p in reading] == [
        ("expert_3", "human"),
        ("gpt4_pair", "ai"),
    ]
    (said,) = reading.skipped
    assert said.startswith(f"{path}:3: conversation_a has 3 turns after what the two answers share")


WHOLE: dict[str, Row] = {
    "H4": {"prompt": Q, "prompt_id": "0", "chosen": CHAT[0], "rejected": CHAT[1]},
    "Tulu 3": {"id": "a", "source": "x", "prompt": Q, "chosen": CHAT[0], "rejected": CHAT[1]},
    "argilla-cleaned": {
        "source": "x",
        "prompt": Q,
        "chosen": CHAT[0],
        "chosen-rating": 5.0,
        "chosen-model": "m",
        "rejected": CHAT[1],
        "rejected-rating": 2.0,
        "rejected-model": "n",
    },
    "Capybara": {
        "prompt": Q,
        "chosen": CHAT[0],
        "rejected": CHAT[1],
        "rating_chosen": 5,
        "rating_rejected": 2,
    },
    "parts": {
        "prompt": [turn("user", parts(Q))],
        "chosen": [turn("assistant", parts(GOOD))],
        "rejected": [turn("assistant", parts(BAD))],
    },
    "transcript": {
        "prompt": f"\n\nHuman: {Q}\n\nAssistant:",
        "chosen": GOOD,
        "rejected": BAD,
    },
    "ShareGPT": {
        "chosen": [{"from": "human", "value": Q}, {"from": "gpt", "value": GOOD}],
        "rejected": [{"from": "human", "value": Q}, {"from": "gpt", "value": BAD}],
    },
}


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("system", [None, "Be brief."])
def test_conversations_beside_a_prompt_and_a_system_column_are_one_pair_everywhere(
    name: str, system: str | None, tmp_path: Path
) -> None:
    row = WHOLE[name] | ({} if system is None else {"system": system})
    path = write(tmp_path, [row])
    (pair,) = read_labelled(path)
    before = [] if system is None else [turn("system", system)]
    assert pair.prompt.messages == [*before, ASKED]
    (loaded,) = load_preferences(path)
    assert loaded.prompt == pair.prompt.messages
    assert (loaded.chosen, loaded.rejected) == (CHAT[0][1:], CHAT[1][1:])
    scored = {"argilla-cleaned", "Capybara"}
    assert loaded.score_chosen == (5.0 if name in scored else None)
    assert convert_pairs(path, tmp_path / "out.jsonl", "trl").written == 1
    (again,) = read_labelled(tmp_path / "out.jsonl")
    assert again.pair_id == pair.pair_id
    done = ran("judge-bench", path, "--out", tmp_path / "bench", "-q", "--json")
    assert json.loads(done.stdout)["pairs"]["n"] == 1, done.output


CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "plum"}'}}
WITH_TOOLS = [
    ASKED,
    turn("assistant", None, tool_calls=[CALL]),
    turn("tool", "purple", tool_call_id="c1", name="look"),
]


def test_tool_calls_tool_turns_and_reasoning_are_kept(tmp_path: Path) -> None:
    row = {
        "prompt": WITH_TOOLS,
        "chosen": [turn("assistant", GOOD, reasoning="It is purple.")],
        "rejected": [turn("assistant", None, tool_calls=[CALL])],
        "tools": [{"type": "function", "function": {"name": "look"}}],
    }
    path = write(tmp_path, [row])
    (pair,) = reading = read_labelled(path)
    assert reading.lost == {"tools": 1}
    parsed = {**CALL, "function": {"name": "look", "arguments": {"at": "plum"}}}
    assert pair.prompt.messages[1] == turn("assistant", "", tool_calls=[parsed])
    assert pair.prompt.messages[2] == WITH_TOOLS[2]
    assert pair.first.messages[0]["reasoning_content"] == "It is purple."
    assert pair.second.text == (
        '<tool_call>\n{"arguments":{"at":"plum"},"name":"look"}\n</tool_call>'
    )
    step = run_step(
        Request("load", tmp_path / "in", ["type=preferences", f"path={path}"], inputs={}),
        QuietProgress(),
    )
    assert step["counts"] == {"preferences": 1, "without_tools": 1}
    (loaded,) = StepFolder(tmp_path / "in").records(Preference)
    assert loaded.prompt == pair.prompt.messages
    assert loaded.rejected == pair.second.messages
    # TRL's form holds all of it; a form of plain texts says what it loses.
    assert convert_pairs(path, tmp_path / "trl.jsonl", "trl").lost == {}
    (again,) = read_labelled(tmp_path / "trl.jsonl")
    assert (again.first.messages, again.second.messages) == (
        pair.first.messages,
        pair.second.messages,
    )
    single = write(tmp_path, [row | {"prompt": Q}])
    assert convert_pairs(single, tmp_path / "rb.jsonl", "rewardbench").lost == {"calls": 1}
    with pytest.raises(ConfigError, match="hh cannot hold this pair: a tool's turn"):
        convert_pairs(single, tmp_path / "hh.jsonl", "hh", on_error="fail")


def test_the_template_writes_what_was_kept() -> None:
    from jinja2 import Environment

    source = (
        "{% for m in messages %}[{{ m.role }}]{% if m.reasoning_content %}"
        "<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}"
        "{% endfor %}"
    )
    from rlaif.data.turns import conversation

    turns = conversation(
        [*WITH_TOOLS, turn("assistant", GOOD, thinking="Purple.")], "user", "x", "p"
    )
    assert Environment().from_string(source).render(messages=turns) == (
        f'[user]{Q}[assistant]{{"at": "plum"}}[tool]purple[assistant]<think>Purple.</think>{GOOD}'
    )
    assert message_text(turns[0]) == Q


SINGLE: dict[str, tuple[Row, bool]] = {
    "kto": ({"prompt": Q, "completion": BAD, "label": False}, False),
    "sft": ({"prompt": Q, "completion": GOOD}, True),
    "messages": ({"messages": CHAT[0]}, True),
    "responses": ({"prompt": Q, "response": GOOD}, True),
}


@pytest.mark.parametrize("name", SINGLE)
def test_answers_that_stand_alone_train_and_are_no_pairs(name: str, tmp_path: Path) -> None:
    row, good = SINGLE[name]
    path = write(tmp_path, [row])
    (found,) = reading = read_answers(path)
    assert reading.name == name
    (loaded,) = load_preferences(path)
    assert not loaded.paired and bool(loaded.chosen) == good
    assert loaded.prompt == found.prompt.messages == [ASKED]
    method = "sft" if good else "kto"
    for command in (["convert", path, tmp_path / "o.jsonl", "--to", "hh"], ["data", "stats", path]):
        refused = str(ran(*command).exception)
        assert f"{path}:1: an answer that stands alone" in refused
        assert f"`rlaif train {method} FILE` reads such rows" in refused


COLUMNS = """prompt: "{title}: {post.text}"
system: persona
ranked: {answers: replies, text: body.said, score: votes, author: who}
subset: topic
"""


def test_a_column_map_has_places_lists_scores_and_a_system_turn(tmp_path: Path) -> None:
    row = {
        "title": "Fruit",
        "post": {"text": Q},
        "persona": "Be brief.",
        "replies": [
            {"body": {"said": GOOD}, "votes": "7", "who": "x"},
            {"body": {"said": None}, "votes": 1, "who": "y"},
            {"body": {"said": BAD}, "votes": None, "who": "z"},
            {"body": {"said": "A fig."}, "votes": float("nan"), "who": "z"},
        ],
        "topic": "food",
    }
    (tmp_path / "map.yaml").write_text(COLUMNS)
    path = write(tmp_path, [row])
    stats = ran("data", "stats", path, "--columns", tmp_path / "map.yaml", "--json")
    assert json.loads(stats.stdout)["unlabelled"] == 3, stats.output
    reading = read_labelled(path, columns=load_columns(tmp_path / "map.yaml"), on_error="skip")
    pairs = list(reading)
    assert [p.label for p in pairs] == [None, None, None], "votes that nobody gave are no votes"
    assert pairs[0].prompt.messages == [
        turn("system", "Be brief."),
        turn("user", f"Fruit: {Q}"),
    ]
    assert (pairs[0].subset, pairs[0].authors, pairs[0].scores) == ("food", ("x", "z"), None)
    assert len(reading.skipped) == 1 and "body.said is missing" in reading.skipped[0]


@pytest.mark.parametrize(
    ("row", "keys", "words"),
    [
        (
            {"prompt": Q, "chosen": [ASKED, turn("bot9", GOOD)], "rejected": CHAT[1]},
            {},
            r"chosen\[1\] has the role 'bot9'",
        ),
        (
            {
                "prompt": [turn("user", [{"type": "image_url", "image_url": "x"}])],
                "chosen": GOOD,
                "rejected": BAD,
            },
            {},
            r"prompt\[0\]\.content\[0\] is .*only parts of text",
        ),
        (
            {"prompt": Q, "chosen": [turn("assistant", None)], "rejected": BAD},
            {},
            r"chosen\[0\]\.content is None; a text",
        ),
        (
            {"chosen": f"\n\nHuman: {Q}\n\nAssistant: {GOOD}", "rejected": "\n\nHuman: x"},
            {"from_": "trl"},
            "what was asked cannot be told",
        ),
        (PUBLISHED["shp"][0][0], {"from_": "trl"}, r"This row is read with `--from shp`"),
        (
            {"prompt": Q},
            {},
            "Prompts without answers are read by `rlaif sample`",
        ),
    ],
)
def test_an_error_names_row_fault_and_the_way_to_read_it(
    row: Row, keys: Row, words: str, tmp_path: Path
) -> None:
    path = write(tmp_path, [row])
    with pytest.raises(ConfigError, match=words) as refused:
        list(read_labelled(path, **keys))
    assert str(refused.value).startswith(f"{path}:")


LOADED = """
import json, sys
from pathlib import Path
from rlaif.cli import cli
from rlaif.pipeline.single_step import Request, run_step
from rlaif.core.progress import QuietProgress
from click.testing import CliRunner

out = Path(sys.argv[1])
said = []
for words in (
    ["convert", "me/plums", str(out / "c.jsonl"), "--to", "hh", "--json"],
    ["convert", "me/plums", str(out / "d.jsonl"), "--to", "hh", "--split", "test", "--json"],
    ["judge-bench", "me/plums", "--out", str(out / "b"), "-q", "--json"],
    ["convert", "me/figs", str(out / "e.jsonl"), "--to", "hh"],
):
    done = CliRunner().invoke(cli, words)
    said.append(str(done.exception) if done.exit_code else json.loads(done.stdout))
request = Request("load", out / "p", ["type=preferences", "dataset=me/plums"])
said.append(run_step(request, QuietProgress())["counts"])
print("SAID " + json.dumps(said))
"""


def test_pairs_come_from_the_hub_by_their_id(tmp_path: Path) -> None:
    rows = [{"prompt": Q, "chosen": GOOD, "rejected": f"No {i}."} for i in range(3)]
    with Hub("secret") as hub:
        text = [json.dumps(row) + "\n" for row in rows]
        hub.files["me/plums"] = {
            "train.jsonl": "".join(text).encode(),
            "test.jsonl": text[0].encode(),
        }
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-c", LOADED, str(tmp_path)],
            env={**kept, **own, "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
    assert "SAID " in done.stdout, done.stderr[-2000:]
    train, test, bench, missing, loaded = json.loads(done.stdout.split("SAID ")[1])
    assert (train["format"], train["written"], test["written"]) == ("trl", 3, 1)
    assert bench["pairs"]["n"] == 3
    assert "dataset 'me/figs' (split 'train') cannot be read" in missing
    assert loaded == {"preferences": 3}


def test_every_message_of_a_tree_that_has_several_ranked_answers_gives_pairs(
    tmp_path: Path,
) -> None:
    rows = [
        *OASST,
        node("w", "prompter", "Another?", "v"),
        node("x", "assistant", "A fig.", "w", 0) | {"model_name": "m"},
        node("y", "assistant", "A pear.", "w") | {"model_name": "n"},
        node("z", "prompter", "Thanks.", "w", 1),
        node("o", "assistant", "Lone.", "z", 0),
    ]
    first, second = read_labelled(write(tmp_path, rows))
    assert first.prompt.messages == [ASKED]
    assert second.prompt.messages == [
        ASKED,
        turn("assistant", GOOD),
        turn("user", "Another?"),
    ]
    assert (second.first.text, second.second.text, second.label) == ("A fig.", "A pear.", None)
    assert (first.authors, second.authors) == (None, ("m", "n"))


def kaggle(tmp_path: Path, **changes: Any) -> LabelledPair:
    (pair,) = read_labelled(write(tmp_path, [PUBLISHED["arena_55k"][0][0] | changes]))
    return pair


@pytest.mark.parametrize(
    ("won", "label"),
    [((1, 0, 0), 1.0), ((0, 0, 1), 0.5), ((0, 0, 0), None), (("1", "0", "0"), 1.0)],
)
def test_the_55k_says_who_won_in_three_columns(
    won: tuple[Any, Any, Any], label: float | None, tmp_path: Path
) -> None:
    names = ("winner_model_a", "winner_model_b", "winner_tie")
    assert kaggle(tmp_path, **dict(zip(names, won, strict=True))).label == label


def test_the_55k_has_a_turn_for_each_question(tmp_path: Path) -> None:
    said = {"response_a": json.dumps(["Hm.", BAD]), "response_b": json.dumps(["Hm.", GOOD])}
    pair = kaggle(tmp_path, prompt=json.dumps(["Hi.", Q]), **said)
    assert pair.prompt.messages == [turn("user", "Hi."), turn("assistant", "Hm."), ASKED]
    assert (pair.first.text, pair.second.text) == (BAD, GOOD)
    with pytest.raises(ConfigError, match="response_b has 2 turns, and prompt 1"):
        kaggle(tmp_path, response_b=said["response_b"])
    with pytest.raises(ConfigError, match=r"more than one of winner_model_a, .* is 1"):
        kaggle(tmp_path, winner_model_a=1)


def test_an_arena_names_its_questions_and_its_kinds_of_ties(tmp_path: Path) -> None:
    row = PUBLISHED["mt_bench"][0][0] | {"question_id": "0b1c", "winner": "tie (bothbad)"}
    (pair,) = reading = read_labelled(write(tmp_path, [row]))
    assert (reading.name, pair.label, pair.authors) == ("arena", 0.5, ("x", "y"))
    (plain,) = read_labelled(write(tmp_path, [row | {"winner": "tie"}]))
    assert plain.label == 0.5


def test_the_pairs_of_ppe_are_the_responses_that_it_names(tmp_path: Path) -> None:
    row = PUBLISHED["ppe_correctness"][0][0]
    both = [[1, 2], [2, 3], [-1, 0], [0, 2], [1]]
    reading = read_labelled(
        write(tmp_path, [row | {"sampled_conflict_pairs": both}]), on_error="skip"
    )
    assert [(p.first.text, p.second.text, p.label) for p in reading] == [
        (GOOD, "?", 1.0),
        (BAD, "?", 0.5),
    ]
    assert [said.partition("; ")[0].partition(": ")[2] for said in reading.skipped] == [
        "a pair is [2, 3]",
        "a pair is [-1, 0]",
        "a pair is [1]",
    ]


def test_ppe_names_one_model_for_both_of_its_answers(tmp_path: Path) -> None:
    pair = next(iter(read_labelled(write(tmp_path, PUBLISHED["ppe_correctness"][0]))))
    assert (pair.authors, pair.annotator) == (("x", "x"), None)


@pytest.mark.parametrize(
    "given",
    [
        {"function_call": {"name": "look", "arguments": '{"at": "plum"}'}},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [CALL | {"index": None}]},
    ],
)
def test_tool_calls_are_read_in_their_older_form_and_as_json(given: Row) -> None:
    found = read_turn(turn("assistant", None, **given), "x", "here")
    (call,) = found["tool_calls"]
    assert call["type"] == "function" and "index" not in call
    assert call["function"] == {"name": "look", "arguments": {"at": "plum"}}
    assert found["content"] == ""


def test_a_developer_is_the_system_and_names_are_those_of_tools() -> None:
    assert read_turn(turn("developer", "Be brief."), "x", "here") == turn("system", "Be brief.")
    assert read_turn(turn("User", Q, name="ann"), "x", "here") == ASKED
    thought = turn("assistant", GOOD, thinking="late", reasoning="first", reasoning_content="")
    assert read_turn(thought, "x", "here")["reasoning_content"] == "first"


def test_a_system_turn_is_given_only_to_turns_without_one() -> None:
    told = [turn("system", "Old."), ASKED]
    assert with_system(told, "New.") == told
    assert with_system([ASKED], " \n") == [ASKED]
    assert with_system([ASKED], "New.") == [turn("system", "New."), ASKED]


def test_only_a_transcript_that_an_answer_would_go_on_is_one() -> None:
    open_ended = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: \n"
    assert read_asked(open_ended, "x", "here") == [
        turn("user", "Hi"),
        turn("assistant", "Yes?"),
        turn("user", "Why?"),
    ]
    for text in ("\n\nHuman: Hi", "Hi\n\nAssistant:"):
        assert read_asked(text, "x", "here") == [turn("user", text)]
