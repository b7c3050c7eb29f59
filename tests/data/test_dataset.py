"""A run becomes a folder that `datasets` and TRL read, in every format, with a card."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from msgspec import structs

from rlaif.cli import cli
from rlaif.config.dataset import DatasetSpec
from rlaif.core.errors import ConfigError, StoreError
from rlaif.core.records import Completion, Judgement, make_prompt, to_json
from rlaif.core.store import Store
from rlaif.data.card import Facts, write_card
from rlaif.data.dataset import held_prompts, raw_row
from rlaif.data.describe import compare_pairs, describe_data
from rlaif.data.readers import read_labelled
from rlaif.data.readers.base import make_pair
from rlaif.data.readers.ultrafeedback import ASPECTS, read_raw
from rlaif.pipeline.experiment import run_experiment
from rlaif.pipeline.provenance import stages
from tests.pipeline.test_dataset import files
from tests.servers.hub import Hub

FORMATS = [
    "trl",
    "ultrafeedback",
    "ultrafeedback_binarized",
    "distilabel",
    "rewardbench",
    "openrlhf",
    "llama_factory",
    "verl",
]
REPLIES = [
    "Yes.",
    "One two three four.",
    "It is a thing that most people know from their childhood.",
]
RATED = "Text 1\nRating: 4\nText 2\nRating: 2\nText 3\nRating: N/A"
SCRIPT = {
    "rules": [
        {"match": "Rating:", "replies": [RATED]},
        {"match": ".", "replies": REPLIES},
    ]
}
STEPS: list[dict[str, Any]] = [
    {"sample": {"n": 3, "max_new_tokens": 8}},
    {"judge": {"id": "checks", "kind": "rules", "principles": ["brief"]}},
    {"judge": {"id": "aspects", "kind": "ultrafeedback", "by": "policy"}},
    {"pair": {"weights": {"checks": 1}}},
    {"filter": {"filters": [{"kind": "duplicates", "of": "answers"}]}},
]


def write(folder: Path, write_experiment: Callable[..., Path], **changes: Any) -> Path:
    model = {"path": "none", "engine": "fake", "script": "script.yaml"}
    keys = {
        "rounds": 1,
        "models": {"policy": model},
        "prompts": {"path": "prompts.jsonl", "holdout": 1},
        "steps": STEPS,
        "dataset": {"formats": FORMATS, "license": "cc-by-4.0", "test": 0.3},
    }
    path = write_experiment(folder, None, **{**keys, **changes})
    (folder / "script.yaml").write_text(yaml.safe_dump(SCRIPT), encoding="utf-8")
    return path


def test_datasets_whose_folders_are_called_the_same_are_kept_apart(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    found = []
    for share in (0.3, 0.6):
        place = tmp_path / str(share)
        place.mkdir()
        dataset = {"formats": ["trl"], "license": "cc-by-4.0", "test": share}
        run_experiment(write(place, write_experiment, dataset=dataset), place / "run")
        folder = place / "run" / "dataset"
        loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
        (file,) = (folder / "trl").glob("train-*.parquet")
        assert loaded["train"].to_list() == pyarrow.parquet.read_table(file).to_pylist()
        found.append(len(loaded["train"]))
    assert found[0] != found[1]


def test_every_format_of_a_run_is_read_again(
    tmp_path: Path, write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, write_experiment)
    done = CliRunner().invoke(
        cli,
        ["build", str(path), "--out", str(tmp_path / "run"), "-q", "--json"],
        catch_exceptions=False,
    )
    built = json.loads(done.stdout)
    folder = tmp_path / "run" / "dataset"
    assert built["folder"] == str(folder) and not built["lost"]
    pairs = built["rows"]["trl"]
    assert pairs["train"] > 0 and pairs["test"] > 0
    seen: dict[str, set[str]] = {}
    for name in FORMATS:
        loaded = datasets.load_dataset(str(folder), name, cache_dir=str(tmp_path / "cache"))
        sizes = {split.removesuffix("_prefs"): len(rows) for split, rows in loaded.items()}
        assert sizes == built["rows"][name], name
        for file in sorted((folder / name).iterdir()):
            found = list(read_labelled(file, name))
            split = file.stem.partition("-")[0].removesuffix("_prefs")
            if name == "ultrafeedback":
                assert found
                continue
            assert len(found) == pairs[split]
            seen.setdefault(split, {p.pair_id for p in found})
            assert {p.pair_id for p in found} == seen[split], name
            prompts = {p.prompt.prompt_id for p in found}
            assert not prompts & seen.get("prompts", set()) or split == "train"
    assert not seen["train"] & seen["test"]
    default = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    columns = ["prompt", "chosen", "rejected", "score_chosen", "score_rejected"]
    assert default["train"].column_names == columns
    assert len(list(read_labelled(folder))) == pairs["train"], "the folder is a dataset to us too"
    again = run_experiment(path, tmp_path / "run")
    assert again.ran == 0 and again.dataset is not None and again.dataset.rows == built["rows"]
    front, _, body = (folder / "README.md").read_text().removeprefix("---\n").partition("---\n")
    data = yaml.safe_load(front)
    assert data["license"] == "cc-by-4.0" and data["configs"][0]["default"]
    assert [c["config_name"] for c in data["configs"]] == FORMATS
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["judges"]["checks"] in body and manifest["constitution_hash"] in body
    assert "| duplicates of answers |" in body and "No human labels were at hand" in body
    assert "- pair: strategy best\\_vs\\_worst, by the mean" in body and "weights checks 1" in body
    assert "- sample: policy, temperature 0.8, at most 8 tokens" in body
    assert "not installed" not in body
    assert "answers were cut at the limit of tokens" in body
    from huggingface_hub import DatasetCard

    assert DatasetCard.load(folder / "README.md").data.to_dict()["license"] == "cc-by-4.0"


def test_peoples_judgements_are_counted_in_the_card(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    out = tmp_path / "run"
    run_experiment(write(tmp_path, write_experiment), out)
    steps = {s["id"]: s["hash"] for s in json.loads((out / "manifest.json").read_text())["steps"]}
    made = Store(out).step(steps["filter"]).read("preferences")
    rows = []
    for number, row in enumerate(made):
        for name, score in ((row["chosen_id"], float(number > 0)), (row["rejected_id"], 0.5)):
            judgement = Judgement(
                f"h_{name}",
                f"c_{name}",
                row["prompt_id"],
                "completion",
                [name],
                name,
                "people",
                "ann",
                "human",
                None,
                "ok",
                score,
            )
            rows.append(json.dumps(to_json(judgement)) + "\n")
    (tmp_path / "people.jsonl").write_text("".join(rows))
    load = {"load": {"id": "people", "type": "judgements", "path": "people.jsonl"}}
    run_experiment(write(tmp_path, write_experiment, steps=[*STEPS[:3], load, *STEPS[3:]]), out)
    card_text = (out / "dataset" / "README.md").read_text()
    assert f"in {len(made) - 1} of the {len(made)} pairs that they decided" in card_text
    assert "No human labels were at hand" not in card_text


def test_trl_trainers_functions_take_the_files(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    from trl import is_conversational, maybe_extract_prompt

    run_experiment(write(tmp_path, write_experiment), tmp_path / "run")
    for name in ("trl", "openrlhf"):
        loaded = datasets.load_dataset(
            str(tmp_path / "run" / "dataset"), name, cache_dir=str(tmp_path / "cache")
        )
        for row in loaded["train"]:
            assert is_conversational(row)
            extracted = maybe_extract_prompt(dict(row))
            assert extracted["prompt"][-1]["role"] == "user"
            assert extracted["chosen"] != extracted["rejected"]
            assert [turn["role"] for turn in extracted["chosen"]] == ["assistant"]


def test_trl_trains_on_the_dataset(
    tmp_path: Path, write_experiment: Callable[..., Path], tiny_model: Path
) -> None:
    from trl import DPOConfig, DPOTrainer

    run_experiment(write(tmp_path, write_experiment), tmp_path / "run")
    pairs = datasets.load_dataset(
        str(tmp_path / "run" / "dataset"), split="train", cache_dir=str(tmp_path / "cache")
    )
    options = DPOConfig(
        output_dir=str(tmp_path / "out"),
        max_steps=2,
        per_device_train_batch_size=2,
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    trainer = DPOTrainer(model=str(tiny_model), args=options, train_dataset=pairs)
    assert trainer.train().global_step == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": {"uses": "nobody"}}, "dataset.uses: 'nobody' is none of"),
        ({"dataset": {"overall": "nobody"}}, "dataset.overall: 'nobody' is no judge"),
        ({"dataset": {"formats": ["trl", "trl"]}}, "each format once"),
        ({"dataset": {"formats": ["csv"]}}, "csv"),
        ({"steps": STEPS[:2]}, "no step makes any"),
    ],
)
def test_a_dataset_that_cannot_be_is_refused(
    changes: dict[str, Any], words: str, tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    with pytest.raises(ConfigError, match=words):
        run_experiment(write(tmp_path, write_experiment, **changes), tmp_path / "run")


def test_all_tied_data_and_a_strange_folder_say_what_is_wrong(
    tmp_path: Path, write_experiment: Callable[..., Path]
) -> None:
    path = write(tmp_path, write_experiment, steps=STEPS[:4])
    same = {"default": "One two three.", "rules": []}
    (tmp_path / "script.yaml").write_text(yaml.safe_dump(same), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"pair made no pair.*tie on (\d+) of \1 prompts"):
        run_experiment(path, tmp_path / "run")
    path = write(tmp_path / "other", write_experiment)
    folder = tmp_path / "other" / "run" / "dataset"
    folder.mkdir(parents=True)
    (folder.parent / "steps").mkdir()
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(StoreError, match="was not written by rlaif"):
        run_experiment(path, folder.parent)
    assert (folder / "mine.txt").read_text() == "keep"


def test_pushing_without_a_login_stops_before_the_run(
    tmp_path: Path, write_experiment: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    path = write(tmp_path, write_experiment)
    out = tmp_path / "run"
    with pytest.raises(ConfigError, match="nobody is logged in"):
        CliRunner().invoke(
            cli,
            ["build", str(path), "--out", str(out), "--push", "me/mine"],
            catch_exceptions=False,
        )
    assert not out.exists()


UPLOAD = """
import sys
from pathlib import Path
from rlaif.data.dataset import check_login, upload_dataset
from rlaif.core.errors import ConfigError
for repo in sys.argv[2:]:
    try:
        check_login()
        upload_dataset(Path(sys.argv[1]), repo)
    except ConfigError as error:
        print(error)
"""


def pushed(folder: Path, url: str, token: str | None, *repos: str) -> str:
    """What is said by a process that pushes a folder to repositories of the hub at `url`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    # A home of its own: no login of whoever runs the tests is read, and none is written.
    own = {"HF_ENDPOINT": url, "HF_HOME": str(folder.parent / "home")}
    quiet = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    login = {} if token is None else {"HF_TOKEN": token}
    done = subprocess.run(
        [sys.executable, "-c", UPLOAD, str(folder), *repos],
        env={**kept, **own, **quiet, **login},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_a_folder_is_pushed_whole_to_a_private_repository(tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    (folder / "trl").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Plums\n")
    (folder / "trl" / "train.parquet").write_bytes(b"PAR1\x00\xff")
    with Hub("secret") as hub:
        assert pushed(folder, hub.url, "secret", "me/plums") == ""
        assert hub.files == {"me/plums": files(folder)}
        (made,) = hub.created
        assert (made["type"], made["visibility"]) == ("dataset", "private")
        assert "--push me/plums: " in pushed(folder, hub.url, "stolen", "me/plums")
        assert "nobody is logged in" in pushed(folder, hub.url, None, "me/plums")
        assert "--push a b/c: " in pushed(folder, hub.url, "secret", "a b/c")
        assert len(hub.created) == 1
    assert "--push me/plums: " in pushed(folder, hub.url, "secret", "me/plums")
    assert not (tmp_path / "home" / "token").exists()


ratings = st.none() | st.just("N/A") | st.integers(1, 5)


@given(
    given_=st.lists(st.fixed_dictionaries(dict.fromkeys(ASPECTS, ratings)), min_size=2, max_size=4)
)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_raw_rows_give_back_the_ratings(given_: list[dict[str, Any]]) -> None:
    prompt = make_prompt([{"role": "user", "content": "Name a fruit."}], source="seeds")
    completions, judgements = [], []
    for index, aspects in enumerate(given_):
        name = f"k_{index}"
        said = [{"role": "assistant", "content": f"Fruit {index}."}]
        completions.append(
            Completion(name, prompt.prompt_id, index, said, f"m{index}", "w", {}, "stop")
        )
        for aspect, rating in aspects.items():
            status: Any = {None: "unparsed", "N/A": "not_applicable"}.get(rating, "ok")
            score = (rating - 1) / 4 if status == "ok" else None
            key = f"j_{index}_{aspect}"
            judgements.append(
                Judgement(
                    key,
                    key,
                    prompt.prompt_id,
                    "completion",
                    [name],
                    name,
                    "uf",
                    "a",
                    "ai",
                    aspect,
                    status,
                    score,
                )
            )
    row = raw_row(prompt, completions, judgements)
    assert row is not None
    for completion, aspects in zip(row["completions"], given_, strict=True):
        for aspect, rating in aspects.items():
            shown = completion["annotations"][aspect]["Rating"]
            assert shown == (str(rating) if isinstance(rating, int) else rating)
    means = []
    for aspects in given_:
        known = [r for r in aspects.values() if isinstance(r, int)]
        means.append(sum(known) / len(known) if known else None)
    pairs = iter(read_raw(row, "here:1"))
    for first in range(len(means)):
        for second in range(first + 1, len(means)):
            pair = next(pairs)
            one, two = means[first], means[second]
            wanted = None if one is None or two is None else (one > two) + 0.5 * (one == two)
            assert pair.label == wanted
            assert pair.authors == (f"m{first}", f"m{second}")


def test_raw_rows_have_the_overall_judges_score_and_reasons() -> None:
    prompt = make_prompt([{"role": "user", "content": "Name a fruit."}])
    said = [{"role": "assistant", "content": "A plum."}]
    one = Completion("k", prompt.prompt_id, 0, said, "m", "w", {}, "stop", principle="honesty")
    judgement = Judgement(
        "j",
        "c",
        prompt.prompt_id,
        "completion",
        ["k"],
        "k",
        "all",
        "a",
        "ai",
        None,
        "ok",
        1.0,
        rationale="Good.",
    )
    row = raw_row(prompt, [one], [judgement], "all")
    assert row is not None
    (completion,) = row["completions"]
    assert (completion["overall_score"], completion["critique"]) == (10.0, "Good.")
    assert completion["principle"] == "honesty"
    assert all(a["Rating"] is None for a in completion["annotations"].values())
    # What the overall judge says under an aspect's name is no rating of that aspect.
    aspect = structs.replace(judgement, principle="honesty")
    other = structs.replace(aspect, judgement_id="o", call_id="o", judge="other", score=0.5)
    row = raw_row(prompt, [one], [aspect, other], "all")
    assert row is not None
    assert row["completions"][0]["annotations"]["honesty"]["Rating"] == "3"
    several = make_prompt(
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]
    )
    assert raw_row(several, [one], []) is None


@given(st.sets(st.integers(0, 999), max_size=40), st.floats(0, 0.99))
# Of so large a share every prompt would be held out, of so small a one none.
@example({1, 2}, 0.9)
@example({1, 2, 3}, 0.01)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_prompt_is_in_one_split_whoever_else_is_there(numbers: set[int], share: float) -> None:
    names = [f"p{n}" for n in numbers]
    held = held_prompts(names, share)
    assert held == held_prompts(reversed(names), share) and held <= set(names)
    if share > 0 and len(names) > 1:
        assert 1 <= len(held) < len(names)
    assert held_prompts(names, 0.0) == frozenset()


def test_the_funnel_counts_the_prompts_that_made_no_pair() -> None:
    counts = {"prompts": 16, "preferences": 12, "tied_prompts": 2}
    (row,) = stages("pair", {"counts": counts, "paired_prompts": 11})
    why = {"tied_prompts": 2, "no two answers fit its keys": 3}
    assert row == (16, 12, "prompts to pairs", why)


def test_names_cannot_break_the_card() -> None:
    facts = Facts(
        "a | b\n# c",
        [],
        {"train": 1},
        {"train": 1},
        [{"model": "<script>|x", "weights": "w", "answers": "1"}],
        [],
        None,
        [],
        {},
        [],
    )
    text = write_card(DatasetSpec(), facts)
    assert "<script>" not in text and "\n# c" not in text.partition("---\n\n")[2]


def test_the_card_renders_with_its_headings_and_tables() -> None:
    odd = "a | b `c` <i> *d* [e](f) \\ _g_"
    facts = Facts(
        odd,
        [{"config_name": "trl", "data_files": [{"split": "train", "path": "trl/train.parquet"}]}],
        {"train": 3, "test": 1},
        {"train": 2, "test": 1},
        [
            {"model": odd, "weights": "w", "answers": "1"},
            {"model": "m", "weights": "w", "answers": "2"},
        ],
        [{"judge": odd, "kind": "rules", "hash": "h"}],
        odd,
        [{"step": odd, "what": "pairs", "came": 4, "left": 3, "why": "below 1: 1"}] * 3,
        {"gap": "0.1"},
        ["A limit."],
        generators=[odd],
        pairing=[odd],
        example={"Chosen": odd * 40},
    )
    body = write_card(DatasetSpec(sources=["Mine."]), facts).split("---\n", 2)[2]
    page = MarkdownIt("commonmark").enable("table").parse(body)
    kinds = Counter(token.type for token in page)
    # The head and the rows of: funnel, models, judges, figures.
    assert kinds["table_open"] == 4
    assert kinds["th_open"] + kinds["td_open"] == 4 * 5 + 3 * 3 + 2 * 3 + 2 * 1
    inline = [part for token in page for part in token.children or ()]
    shown = {"text", "code_inline", "softbreak", "strong_open", "strong_close"}
    assert {part.type for part in inline} <= shown
    assert not kinds["html_block"]
    assert "3 pairs of 2 prompts (train), 1 pair of 1 prompt (test)" in body
    headings = [page[i + 1] for i, token in enumerate(page) if token.type == "heading_open"]
    said = ["".join(part.content for part in heading.children or ()) for heading in headings]
    assert said[0] == odd and "Known limits" in said and len(said) == 8


def pair(first: str, second: str, label: float | None, asked: str = "q") -> Any:
    return make_pair("f:1", [{"role": "user", "content": asked}], (first, second), label)


def test_what_is_odd_about_a_file_is_said() -> None:
    found = describe_data([pair("a b c", "a", 1.0), pair("a b c", "a", 1.0), pair("x y", "x", 1.0)])
    assert (found.pairs, found.prompts, found.repeated) == (3, 1, 1)
    assert found.longer_chosen == 1.0 and found.first_better == 1.0
    assert len(found.warnings) == 3
    tied = describe_data([pair("a", "b", 0.5), pair("a", "c", None)])
    assert (tied.ties, tied.unlabelled, tied.gap, tied.chosen_words) == (1, 1, None, None)
    assert tied.warnings == ["no pair has a winner: nothing can be learned from it"]


def test_files_are_compared_by_texts_and_not_by_order() -> None:
    one = [pair("a", "b", 1.0), pair("a", "c", 1.0), pair("a", "d", 0.5), pair("a", "e", 1.0)]
    two = [pair("b", "a", 0.0), pair("c", "a", 1.0), pair("a", "d", 1.0), pair("a", "f", 1.0)]
    found = compare_pairs(one, two)
    assert (found.both, found.only_first, found.only_second) == (3, 1, 1)
    assert (found.same_label, found.turned, found.other_label) == (1, 1, 1)


def test_the_data_commands(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{n}", "chosen": f"A plum {n}.", "rejected": "No."} for n in range(5)]
    file = tmp_path / "t.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": 3}]))

    def run(*args: str) -> Any:
        return CliRunner().invoke(cli, ["data", *args], catch_exceptions=False)

    stats = run("stats", str(file), "--json")
    assert json.loads(stats.stdout)["pairs"] == 5 and "t.jsonl:6" in stats.stderr
    assert "longer chosen    1.000" in run("stats", str(file)).stdout
    drawn = [json.loads(line) for line in run("sample", str(file), "--json").stdout.splitlines()]
    assert len(drawn) == 3 and run("sample", str(file)).stdout.count("[first]") == 3
    assert json.loads(run("diff", str(file), str(file), "--json").stdout)["same_label"] == 5
    filters, out = tmp_path / "filters.yaml", tmp_path / "out.jsonl"
    filters.write_text("filters: [{kind: contamination, against: [eval.jsonl]}]")
    (tmp_path / "eval.jsonl").write_text(json.dumps({"prompt": "Q3"}))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = run("filter", str(file), str(out), "--filters", str(filters))
    assert "4 prompts written" in done.stdout and "eval.jsonl: 1" in done.stdout
    assert len(out.read_text().splitlines()) == 4
    filters.write_text("filters: [{kind: private}]")
    with pytest.raises(ConfigError, match="prompts have no answers"):
        run("filter", str(file), str(out), "--filters", str(filters))
