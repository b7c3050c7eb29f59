"""What each command hands on: every option at a value that is not its default, and no two alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from rlaif.analysis.bench.reward import RewardRequest
from rlaif.analysis.bench.run import BenchRequest
from rlaif.analysis.inverse_constitution.rank import Ranked
from rlaif.analysis.inverse_constitution.run import InferOptions, Inferred
from rlaif.cli import cli
from rlaif.core.progress import QuietProgress
from rlaif.core.records import Judgement, Preference, make_prompt, to_json
from rlaif.data.rows import HubData
from rlaif.pipeline.single_step import Request

MODULES = {
    "run_bench": "rlaif.analysis.bench.run",
    "run_reward_bench": "rlaif.analysis.bench.reward",
    "infer_principles": "rlaif.analysis.inverse_constitution.run",
    "run_votes": "rlaif.analysis.fit_weights",
    "judges_of": "rlaif.analysis.fit_weights",
    "pair_votes": "rlaif.analysis.fit_weights",
    "fitted": "rlaif.analysis.fit_weights",
    "measure_reach": "rlaif.analysis.reach",
    "run_step": "rlaif.pipeline.single_step",
    "run_experiment": "rlaif.pipeline.experiment",
    "dry_run_report": "rlaif.pipeline.forecast",
    "rendered": "rlaif.pipeline.preview",
    "read_labelled": "rlaif.data.readers",
    "convert_pairs": "rlaif.data.convert",
    "read_battles": "rlaif.metrics.battles",
    "fit": "rlaif.judges.rbr",
    "average": "rlaif.train.average",
    "import_constitution": "rlaif.data.constitutions",
    "load": "rlaif.engines.local.reward",
    "RewardServer": "rlaif.web.reward_app",
}


class Handed(Exception):
    """Ends a command where it hands its options on."""


Hand = Callable[..., tuple[Any, ...]]


@pytest.fixture
def hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hand:
    """`hand(function, *words)`: what a command in an empty folder gives a function, by place and
    then by name."""
    monkeypatch.chdir(tmp_path)

    def call(function: str, *words: str | Path | int | float) -> tuple[Any, ...]:
        got: list[Any] = []

        def take(*given: Any, **named: Any) -> None:
            got.extend((*given, named) if named else given)
            raise Handed

        with monkeypatch.context() as patched:
            patched.setattr(f"{MODULES[function]}.{function}", take)
            done = CliRunner().invoke(cli, [str(word) for word in words])
        assert isinstance(done.exception, Handed), (done.output, done.exception)
        return tuple(got)

    return call


def write_lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.yaml"
    path.write_text("{path: none, engine: fake, max_context: 321}", "utf-8")
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    rows = [{"prompt": f"Q{n}?", "chosen": "Yes.", "rejected": f"No {n}."} for n in range(5)]
    return write_lines(tmp_path / "some.pairs.jsonl", *rows)


def judgement(name: str, score: float) -> Judgement:
    return Judgement(name, name, "p", "completion", [name], name, "j", "m", "ai", None, "ok", score)


def preference(name: str) -> Preference:
    said: Any = [{"role": "user", "content": f"Q{name}?"}]
    yes, no = ([{"role": "assistant", "content": text}] for text in ("yes", "no"))
    return Preference(name, f"p{name}", 1, said, yes, no, 1, 0, 1, 1, 1, "", "", [], "a", "b")  # type: ignore[arg-type]


def test_judge_bench_hands_on_every_option(
    hand: Hand, pairs: Path, model: Path, tmp_path: Path
) -> None:
    words = ["judge-bench", pairs, "--judge", "longer", "--judge", "first", "--attack", "flattery"]
    words += ["--attack", "all", "--limit", 3, "--repeats", 4, "--author", "me", "--no-baselines"]
    words += ["--out", "there", "--constitution", "rules.yaml", "--model", model, "--seed", 6]
    request, labelled, progress = hand("run_bench", *words, "--quiet")
    assert (request.model.engine, request.model.max_context) == ("fake", 321)
    assert request == BenchRequest(
        name="some.pairs",
        judges=("longer", "first"),
        out=Path("there"),
        model=request.model,
        constitution="rules.yaml",
        baselines=False,
        attacks=("flattery", "all"),
        limit=3,
        repeats=4,
        author="me",
        seed=6,
    )
    assert len(labelled) == 5 and isinstance(progress, QuietProgress)
    request, _, progress = hand("run_bench", "judge-bench", pairs, "--model", model)
    assert request.out == Path("runs/judge-bench/some.pairs")
    assert not isinstance(progress, QuietProgress)


def test_reward_bench_hands_on_every_option(hand: Hand, pairs: Path, tmp_path: Path) -> None:
    train = write_lines(tmp_path / "train.jsonl", to_json(preference("t")))
    scored = write_lines(tmp_path / "scored.jsonl", to_json(judgement("s", 0.25)))
    gold = write_lines(tmp_path / "gold.jsonl", to_json(judgement("g", 0.75)))
    words = ["reward-bench", "rm", pairs, "--train", train, "--scored", scored, "--gold", gold]
    request, given, progress = hand(
        "run_reward_bench", *words, "--out", "there", "--seed", 6, "--quiet"
    )
    [trained] = request.train
    assert trained.prompt[-1]["content"] == "Qt?"
    assert request == RewardRequest(
        name="some.pairs",
        model=Path("rm"),
        out=Path("there"),
        train=[trained],
        scored=[judgement("s", 0.25)],
        gold=[judgement("g", 0.75)],
        seed=6,
    )
    assert len(given) == 5 and isinstance(progress, QuietProgress)


def test_reward_bench_of_a_steps_folder_measures_its_pairs(hand: Hand, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    write_lines(folder / "preferences.jsonl", *(to_json(preference(n)) for n in "ab"))
    train = write_lines(tmp_path / "train.jsonl", to_json(preference("t")))
    words = ["reward-bench", "rm", folder, "--out", "there"]
    for more in ([], ["--train", train]):
        request, given, _ = hand("run_reward_bench", *words, *more)
        assert [pair.prompt.messages[-1]["content"] for pair in given] == ["Qa?", "Qb?"]
        assert len(request.train) == len(more) // 2


def test_infer_hands_on_every_option_and_keeps_as_many_as_it_says(
    hand: Hand, pairs: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["constitution", "infer", pairs, "--out", "found.yaml", "--pairs", 9, "--propose", 7]
    words += ["--candidates", 5, "--keep", 2, "--model", model, "--seed", 6, "--work", "w"]
    labelled, asked, _, store, options, _ = hand("infer_principles", *words, "--quiet")
    assert options == InferOptions(pairs=9, proposing=7, candidates=5, seed=6)
    assert (len(labelled), asked.spec.max_context, store.root) == (5, 321, Path("w"))
    votes = {"for": 4, "against": 1, "not_applicable": 3, "invalid": 2}
    rows = tuple(
        Ranked(name, f"It is {name}.", 6, votes, 0.8, None, 0.625, share)
        for name, share in (("kind", 0.375), ("brief", 0.25), ("red", 0.125))
    )
    found = Inferred(rows, 8, 12, "eye", 0.75)
    monkeypatch.setattr(f"{MODULES['infer_principles']}.infer_principles", lambda *_: found)
    done = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert done.exit_code == 0
    assert "12 proposals, compared by eye" in done.output and "in 75.0% of 8 pairs" in done.output
    text = (tmp_path / "found.yaml").read_text("utf-8")
    made = yaml.safe_load(text)
    assert made["name"] == "found"
    assert made["description"] == ("Inferred from 8 labelled pairs of some.pairs.jsonl by model.")
    assert [(p["id"], p["text"], p["weight"]) for p in made["principles"]] == [
        ("kind", "It is kind.", 0.375),
        ("brief", "It is brief.", 0.25),
    ]
    assert "# 4 for, 1 against, 3 not applicable, 2 unreadable; proposed 6 times" in text


RULES = {"name": "two", "principles": [{"id": "kind", "text": "Be kind.", "weight": 4}]}


def test_fit_hands_on_every_option(
    hand: Hand, pairs: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULES), "utf-8")
    words = ["constitution", "fit", pairs, "--constitution", "rules.yaml", "--kind", "rating"]
    words += ["--folds", 3, "--model", model, "--seed", 6, "--quiet"]
    rules, kind = hand("judges_of", *words)
    assert (rules.principles[0].weight, kind) == (4.0, "rating")
    given, judges, spec, _, store, _, seed = hand("pair_votes", *words)
    assert (len(given), len(judges), spec.spec.max_context, seed) == (5, 1, 321, 6)
    assert judges[0].judge_hash != "" and store.root == pairs.with_suffix(".work")
    assert hand("pair_votes", *words, "--out", "o.yaml")[4].root == Path("o.work")
    assert hand("pair_votes", *words, "--out", "o.yaml", "--work", "w")[4].root == Path("w")
    monkeypatch.setattr(f"{MODULES['pair_votes']}.pair_votes", lambda *_: ["voted"])
    voted, used, folds, seed = hand("fitted", *words)
    assert (voted, used, folds, seed) == (["voted"], rules, 3, 6)


OF_RUNS = "rlaif.pipeline.constitutions"


def test_fit_on_a_run_hands_on_the_judges(
    hand: Hand, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("rlaif.pipeline.runs.load_run", lambda path: f"run of {path}")
    monkeypatch.setattr("rlaif.analysis.whatif.load_pairings", lambda *given: list(given))
    for name in ("rlaif.analysis.fit_weights.fitted_constitution", f"{OF_RUNS}.arms_alike"):
        monkeypatch.setattr(name, lambda *given: given)
    monkeypatch.setattr(f"{OF_RUNS}.judges_constitutions", lambda *given: ["apart", *given])
    words = ["constitution", "fit", "run", "--labels", pairs, "--judge", "b", "--judge", "a"]
    pairings, labels, judges, apart = hand("run_votes", *words, "--arm", "x")
    assert pairings == ["run of run", "x"]
    assert len(labels) == 5 and tuple(judges) == ("b", "a")
    assert apart == ["apart", "run of run", "x"]


def test_diff_goes_from_the_first_to_the_second(
    hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(RULES), "utf-8")
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(RULES | {"name": "b"}), "utf-8")
    monkeypatch.setattr("rlaif.pipeline.runs.load_run", lambda path: path)
    words = ["constitution", "diff", "a.yaml", "b.yaml", "--run", "here", "--arm", "x"]
    run, before, after, arm = hand("measure_reach", *words)
    assert (run, before.name, after.name, arm) == (Path("here"), "two", "b", "x")


STEP = ["--out", "there", "--set", "n=3", "--set", "x=y", "--seed", 6, "--quiet", "--json"]
SETTINGS = ("n=3", "x=y")
OUT = Path("there")


def test_a_step_on_files_hands_on_every_option(hand: Hand) -> None:
    request, progress = hand("run_step", "sample", "p.jsonl", "--model", "m", *STEP)
    assert isinstance(progress, QuietProgress)
    assert request == Request(
        "sample", OUT, SETTINGS, prompts=Path("p.jsonl"), models={"by": "m"}, seed=6
    )
    words = ["judge", "c", "--kind", "rating", "--constitution", "r.yaml", "--model", "m"]
    asked = Request(
        "judge",
        OUT,
        ("kind=rating", *SETTINGS),
        prompts=Path("c"),
        models={"by": "m"},
        inputs={"completions/0": "c"},
        constitution="r.yaml",
        seed=6,
    )
    assert hand("run_step", *words, *STEP)[0] == asked
    other = hand("run_step", *words, "--prompts", "p.jsonl", *STEP)[0]
    assert other.prompts == Path("p.jsonl")
    scored = hand("run_step", "score", "c", "--prompts", "p", "--model", "rm", "--out", "there")[0]
    assert scored == Request(
        "judge",
        OUT,
        ("kind=reward_model", "by=rm"),
        prompts=Path("p"),
        models={"by": "rm"},
        inputs={"completions/0": "c"},
    )
    paired = ["pair", "c", "js/one", "js/two", "--prompts", "p", "--constitution", "r.yaml"]
    judged = {"one": "js/one", "two": "js/two"}
    assert hand("run_step", *paired, *STEP)[0] == Request(
        "pair",
        OUT,
        SETTINGS,
        prompts=Path("p"),
        inputs={"completions/0": "c"}
        | {f"{role}/{n}": path for role in ("judgements", "initial") for n, path in judged.items()},
        constitution="r.yaml",
        seed=6,
    )
    words = ["evaluate", "c", "--against", "old", "--judgements", "js/one", "--judgements"]
    words += ["js/two", "--against-judgements", "ks/one", "--against-judgements", "ks/two"]
    assert hand("run_step", *words, "--constitution", "r.yaml", *STEP)[0] == Request(
        "evaluate",
        OUT,
        SETTINGS,
        prompts=Path("c"),
        inputs={
            "completions": "c",
            "judgements/one": "js/one",
            "judgements/two": "js/two",
            "initial/completions": "old",
            "initial/judgements/one": "ks/one",
            "initial/judgements/two": "ks/two",
        },
        constitution="r.yaml",
        seed=6,
    )


def test_a_training_on_files_hands_on_every_option(hand: Hand, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    words = ["train", "dpo", "made", "--model", "m", "--reference", "r", "--completions", "c"]
    request = hand("run_step", *words, "--beta", 0.3, "--epochs", 2, "--lora", *STEP)[0]
    assert request.settings[:2] == ["method=dpo", "lora={}"]
    assert set(request.settings[2:-2]) == {"beta=0.3", "epochs=2"}
    assert request.settings[-2:] == ["n=3", "x=y"]
    expected = Request(
        "train",
        OUT,
        request.settings,
        models={"start": "m", "reference": "r"},
        inputs={"preferences/0": "made", "completions/0": "c"},
        seed=6,
    )
    assert request == expected
    own = hand("run_step", "train", "dpo", "made", "--model", "m", "--out", "there")[0]
    assert own.models == {"start": "m", "reference": "m"} and own.settings == ["method=dpo"]
    (tmp_path / "rm").mkdir()
    words = ["train", "grpo", "p.jsonl", "--model", "m", "--reward", "rules", "--reward", "rm"]
    words += ["--reward", "rating", "--constitution", "r.yaml", "--rollouts", 4]
    request = hand("run_step", *words, *STEP)[0]
    assert (request.prompts, request.constitution, request.seed) == (Path("p.jsonl"), "r.yaml", 6)
    [other] = [name for name in request.models if name.startswith("judge/reward")]
    name = other.removeprefix("judge/")
    assert request.judges == [
        {"id": "rules", "kind": "rules"},
        {"id": name, "kind": "reward_model", "by": "rm"},
        {"id": "rating", "kind": "rating"},
    ]
    assert {other: "rm", "judge/rating": "m", "start": "m"}.items() <= request.models.items()
    terms = json.dumps([{"judge": n} for n in ("rules", name, "rating")])
    assert f"rewards={terms}" in request.settings and "rollouts=4" in request.settings


def test_a_distillation_hands_on_every_option(hand: Hand, pairs: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    words = ["distill", "made", "--judgements", "one", "--judgements", "two", "--model", "m"]
    request = hand("run_step", *words, "--on-error", "skip", *STEP)[0]
    assert request == Request(
        "distill",
        OUT,
        ("on_error=skip", *SETTINGS),
        models={"start": "m"},
        inputs={"preferences/0": "made", "judgements/0": "one", "judgements/1": "two"},
        seed=6,
    )
    # A file is brought in first, and is read as the options say.
    (tmp_path / "columns.yaml").write_text("{prompt: q, chosen: a, rejected: b}", "utf-8")
    words = ["distill", pairs, "--columns", "columns.yaml", "--on-error", "skip"]
    load = hand("run_step", *words, *STEP)[0]
    assert (load.kind, load.out, load.inputs) == ("load", OUT / "preferences", {"file": str(pairs)})
    assert load.settings[0] == "type=preferences"
    keys = dict(setting.split("=", 1) for setting in load.settings[1:])
    columns = json.loads(keys.pop("columns"))
    assert (columns["prompt"], columns["chosen"], columns["rejected"]) == ("q", "a", "b")
    assert {k: json.loads(v) for k, v in keys.items()} == {
        "path": str(pairs.resolve()),
        "on_error": "skip",
    }
    words = ["distill", "o/n", "--from", "trl", "--split", "test", "--config", "small"]
    keys = dict(s.split("=", 1) for s in hand("run_step", *words, *STEP)[0].settings[1:])
    assert {k: json.loads(v) for k, v in keys.items()} == {
        "dataset": "o/n",
        "format": "trl",
        "dataset_split": "test",
        "dataset_config": "small",
    }


def test_reading_hands_on_every_option(hand: Hand, tmp_path: Path) -> None:
    (tmp_path / "columns.yaml").write_text("{prompt: q, chosen: a, rejected: b}", "utf-8")
    reading = ["--from", "trl", "--columns", "columns.yaml", "--on-error", "fail"]
    hub = ["--split", "test", "--config", "small"]
    source, from_, columns, on_error = hand("read_labelled", "judge-bench", "o/n", *reading, *hub)
    assert source == HubData("o/n", "test", "small")
    assert (from_, on_error) == ("trl", "fail")
    assert (columns.prompt, columns.chosen, columns.rejected) == ("q", "a", "b")
    words = ["convert", "o/n", "out.jsonl", "--to", "ultrafeedback", *reading, *hub]
    source, out, to, from_, columns, on_error = hand("convert_pairs", *words)
    assert source == HubData("o/n", "test", "small") and out == Path("out.jsonl")
    assert (to, from_, columns.chosen, on_error) == ("ultrafeedback", "trl", "a", "fail")
    (tmp_path / "some.jsonl").write_text("{}\n", "utf-8")
    path, from_, columns, on_error = hand("read_battles", "winrate", "some.jsonl", *reading)
    assert (path, from_, on_error) == (tmp_path / "some.jsonl", "trl", "fail")
    assert columns.rejected == "b"


def test_a_run_hands_on_every_option(hand: Hand, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("{}", "utf-8")
    sets = ["--set", "a=1", "--set", "b=2", "--profile", "full"]
    given = hand("run_experiment", "run", "e.yaml", *sets)
    path, out, settings, progress, _, profile, strict, executor = given
    # What goes to a cluster: tests/cluster/test_ray.py.
    assert executor is None
    assert strict is False and hand("run_experiment", "run", "e.yaml", "--strict")[6] is True
    assert (path, out) == (tmp_path / "e.yaml", Path("runs/e-full"))
    assert (settings, profile) == (("a=1", "b=2"), "full")
    assert not isinstance(progress, QuietProgress)
    words = ["run", "e.yaml", "--out", "there", "-q"]
    assert hand("run_experiment", *words)[1] == Path("there")
    assert isinstance(hand("run_experiment", *words)[3], QuietProgress)
    stated = ["--flops", "4e14", "--device-memory", "80"]
    path, out, settings, as_json, profile, strict, flops, gib = hand(
        "dry_run_report", "run", "e.yaml", "--dry-run", "--json", "--strict", *stated, *sets
    )
    assert (flops, gib) == (4e14, 80.0)
    assert (out, settings, as_json, profile) == (Path("runs/e-full"), ("a=1", "b=2"), True, "full")
    assert strict is True
    words = ["prompt", "render", "e.yaml", "--judge", "j", "--prompt-id", "p", "--response", "one"]
    assert hand("rendered", *words, "--response-2", "two", *sets) == (
        tmp_path / "e.yaml",
        ("a=1", "b=2"),
        "j",
        "p",
        ["one", "two"],
        "full",
    )


def test_fitting_propositions_hands_on_margin_and_ridge(hand: Hand, tmp_path: Path) -> None:
    write_lines(tmp_path / "j.jsonl", to_json(judgement("s", 0.25)))
    write_lines(tmp_path / "p.jsonl", to_json(preference("t")))
    words = ["rbr-weights", "j.jsonl", "p.jsonl", "--out", "w.yaml"]
    write_lines(tmp_path / "r.jsonl", to_json(judgement("u", 0.75)))
    more = ("--margin", 2.5, "--ridge", 0.125, "--rewards", "r.jsonl")
    judged, given, margin, ridge, rewards = hand("fit", *words, *more)
    assert (judged, given) == ([judgement("s", 0.25)], [preference("t")])
    assert (margin, ridge, rewards) == (2.5, 0.125, [judgement("u", 0.75)])
    assert hand("average", "average", "one", "two", "--out", "there") == (
        (Path("one"), Path("two")),
        OUT,
    )


def test_pairs_are_drawn_by_the_seed_and_files_compared_in_their_order(
    pairs: Path, tmp_path: Path
) -> None:
    def said(*words: str | Path | int) -> str:
        done = CliRunner().invoke(cli, ["data", *map(str, words)], catch_exceptions=False)
        return done.stdout

    def drawn(seed: int) -> list[str]:
        lines = said("sample", pairs, "-n", 2, "--seed", seed, "--json").splitlines()
        return [json.loads(line)["prompt"][0]["content"] for line in lines]

    seeds = [tuple(drawn(seed)) for seed in range(6)]
    assert {len(names) for names in seeds} == {2} and len(set(seeds)) > 2
    assert drawn(4) == list(seeds[4])
    rows = [{"prompt": f"Q{n}?", "chosen": "Yes.", "rejected": f"No {n}."} for n in range(3)]
    rows += [{"prompt": "Z", "chosen": "a", "rejected": "b"}]
    fewer = write_lines(tmp_path / "fewer.jsonl", *rows)
    found = json.loads(said("diff", pairs, fewer, "--json"))
    assert (found["both"], found["only_first"], found["only_second"]) == (3, 2, 1)


def test_the_cache_is_pruned_as_far_as_the_options_say(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("RLAIF_CACHE", str(tmp_path))
    monkeypatch.setattr("time.time", lambda: 1_000_000.0)
    seen: list[Any] = []
    cache = "rlaif.engines.remote.cache.RequestCache"
    monkeypatch.setattr(f"{cache}.prune", lambda self, *given: seen.append(given) or 4)
    monkeypatch.setattr(f"{cache}.shrink", lambda self, limit: seen.append(limit) or 3)
    monkeypatch.setattr(f"{cache}.rows", lambda self, *given: seen.append(given) or iter([{}]))
    for words, dropped in (
        (["--model", "m"], 4),
        (["--unused-days", "2.5"], 4),
        (["--model", "m", "--unused-days", "2.5"], 4),
        (["--to-mb", "1.5"], 3),
        (["--all"], 4),
    ):
        done = CliRunner().invoke(cli, ["cache", "prune", *words], catch_exceptions=False)
        assert f"{dropped} answers dropped" in done.output
    old = 1_000_000.0 - 2.5 * 86_400
    assert seen == [(None, "m"), (old, None), (old, "m"), 1_500_000, (None, None)]
    words = ["cache", "export", str(tmp_path / "out.jsonl"), "--model", "m"]
    assert CliRunner().invoke(cli, words, catch_exceptions=False).exit_code == 0
    assert seen[-1] == ("m",)


def test_a_dataset_is_built_from_the_profile_and_settings(
    hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "e.yaml").write_text("{}", "utf-8")
    loaded: list[Any] = []

    def load(*given: Any) -> tuple[Any, None]:
        loaded.append(given)
        return SimpleNamespace(dataset=True), None

    monkeypatch.setattr("rlaif.pipeline.reading.load_experiment", load)
    monkeypatch.setattr("rlaif.pipeline.choice.Choice.check", lambda choice, experiment: None)
    words = ["build", "e.yaml", "--set", "a=1", "--set", "b=2", "--profile", "full", "--quiet"]
    path, out, settings, progress, _, profile = hand("run_experiment", *words)
    assert loaded == [(tmp_path / "e.yaml", ("a=1", "b=2"), "full")]
    assert (path, out) == (tmp_path / "e.yaml", Path("runs/e-full"))
    assert (settings, profile) == (("a=1", "b=2"), "full")
    assert isinstance(progress, QuietProgress)
    assert hand("run_experiment", *words, "--out", "there")[1] == OUT


def test_a_constitution_is_imported_under_its_name_and_a_reward_served_where_it_says(
    hand: Hand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["constitution", "import", "theirs.json", "--out", "mine.yaml", "--name", "mine"]
    assert hand("import_constitution", *words) == (Path("theirs.json"), "mine")
    monkeypatch.setattr("rlaif.engines.build.whole", lambda path: tmp_path / path)
    monkeypatch.setattr("rlaif.engines.build.refuse_no_reward_model", lambda folder: None)
    words = ["serve", "reward", "rm", "--host", "0.0.0.0", "--port", 1234, "--dtype", "float32"]
    spec, folder, name = hand("load", *words)
    assert (spec.path, spec.dtype, folder, name) == ("rm", "float32", tmp_path / "rm", "rm")
    monkeypatch.setattr("rlaif.engines.local.reward.load", lambda *given: given)
    monkeypatch.setattr("rlaif.web.reward_server.RewardService", lambda scorer: ["served", scorer])
    (tag, (_, served, _)), host, port = hand("RewardServer", *words)
    assert (tag, served, host, port) == ("served", tmp_path / "rm", "0.0.0.0", 1234)


def test_filtered_prompts_and_what_was_refused_go_to_their_own_files(
    pairs: Path, tmp_path: Path
) -> None:
    texts = ["A short one?", "A much longer question than the other?", "A short one?"]
    given = write_lines(tmp_path / "p.jsonl", *({"prompt": text} for text in texts))
    check = {"kind": "rule", "of": "prompt", "rule": "word_limits", "params": {"min": 1, "max": 4}}
    (tmp_path / "f.yaml").write_text(yaml.safe_dump({"filters": [check]}), "utf-8")
    kept, refused = tmp_path / "kept.jsonl", tmp_path / "refused.jsonl"
    words = ["data", "filter", given, kept, "--filters", tmp_path / "f.yaml", "--refused", refused]
    done = CliRunner().invoke(cli, [*map(str, words), "--json"], catch_exceptions=False)
    assert json.loads(done.output)["kept"] == 1
    [left] = [json.loads(line) for line in kept.read_text("utf-8").splitlines()]
    assert left["messages"][0]["content"] == texts[0]
    [out] = [json.loads(line) for line in refused.read_text("utf-8").splitlines()]
    assert out["id"] == make_prompt([{"role": "user", "content": texts[1]}]).prompt_id
