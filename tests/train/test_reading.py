"""A reward model means the same here, in transformers and behind its card's code; templates that
think are trained and scored."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from rlaif.cli import cli
from rlaif.config.models import ModelSpec
from rlaif.core.chat import ChatSettings
from rlaif.core.errors import EngineError
from rlaif.core.records import Preference
from rlaif.engines.base import GenerateRequest, RewardRequest, Sampling, ScoreRequest
from rlaif.engines.build import load_engine
from rlaif.engines.local.reward import reward_position
from rlaif.train.average import average
from rlaif.train.methods.pairs import DpoTrain
from rlaif.train.methods.reward_models import BradleyTerryDistill
from rlaif.train.run import train
from tests.support.templates import GPT_OSS, QWEN3, R1, ZEPHYR
from tests.support.templates import tokenizer as made_tokenizer

QUESTIONS = ["Name a fruit.", "Think of the sky.", "What is kind?", "And the end?"]
ANSWERS = ["n", "A plum, I think.", "No.", "It is blue."]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny Llama with a template whose turns end in the end token and a line break."""
    return small(tmp_path_factory.mktemp("start"), ZEPHYR, "</s>", "metaspace")


def small(folder: Path, template: str, end: str, kind: str = "byte") -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    tok = made_tokenizer(kind, template, end)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tok),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tok.save_pretrained(folder)
    return folder


def conversation(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def pairs(good: str = "Yes, {}.", bad: str = "No") -> list[Preference]:
    return [
        Preference(
            f"r{i}",
            f"p{i}",
            0,
            [{"role": "user", "content": question}],
            [{"role": "assistant", "content": good.format(i)}],
            [{"role": "assistant", "content": bad}],
            *(1.0, 0.0, 1.0, 1.0, 1.0, "", "test", [], f"c{i}", f"d{i}"),
        )
        for i, question in enumerate(QUESTIONS)
    ]


@pytest.mark.parametrize("method", ["bradley_terry", "linear"])
def test_score_the_pipeline_and_a_plain_call_agree(tmp_path, start, method):
    """The code is the card's own."""
    data = tmp_path / "pairs.jsonl"
    rows = [
        {
            "prompt": p.prompt[0]["content"],
            "chosen": p.chosen[0]["content"],
            "rejected": p.rejected[0]["content"],
        }
        for p in pairs()
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": q}) + "\n" for q in QUESTIONS))
    ran("distill", data, *["--out", tmp_path / "rm", "--model", start], f"method={method}")
    folder = tmp_path / "rm/model"
    settings = {"path": str(folder), "dtype": "float32"}
    (tmp_path / "rm.yaml").write_text(json.dumps(settings))
    ran("sample", prompts, *["--out", tmp_path / "a", "--model", start], "max_new_tokens=6")
    out = tmp_path / "scores"
    ran("score", tmp_path / "a", "--model", tmp_path / "rm.yaml", "--out", out)
    said = {r["subject"]: r["distribution"]["reward"] for r in lines(out / "judgements.jsonl")}
    asked = {r["prompt_id"]: r["messages"] for r in lines(tmp_path / "a/prompts.json")}
    first, second = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)
    names: dict = {}
    run_there(folder, first, names)
    for row in lines(tmp_path / "a/completions.jsonl"):
        names["conversation"] = [*asked[row["prompt_id"]], *row["messages"]]
        run_there(folder, first[first.index("text = ") :], names)
        plain = names["reward"]
        run_there(folder, second, names)
        assert names["reward"] == pytest.approx(plain, abs=1e-5)
        assert said[row["completion_id"]] == pytest.approx(plain, abs=1e-5)
    assert len({round(v, 4) for v in said.values()}) > 1


def run_there(folder: Path, code: str, names: dict) -> None:
    before = Path.cwd()
    os.chdir(folder)
    try:
        exec(code, names)
    finally:
        os.chdir(before)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def ran(command, *arguments):
    sets = [w for a in arguments if "=" in str(a) for w in ("--set", a)]
    plain = [a for a in arguments if "=" not in str(a)]
    words = [str(a) for a in [command, *plain, *sets, "--quiet"]]
    result = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def rewards(folder: Path) -> list[float]:
    engine = load_engine(ModelSpec(path=str(folder), dtype="float32"), folder, "rm")
    requests = [
        RewardRequest(str(i), conversation(q, a)[:1], conversation(q, a)[1])
        for i, (q, a) in enumerate(zip(QUESTIONS, ANSWERS, strict=True))
    ]
    found = {r.request_id: r.reward for batch in engine.reward(requests) for r in batch}
    return [found[str(i)] for i in range(len(QUESTIONS))]


def plain(folder: Path, at: int) -> list[float]:
    """What transformers gives at a token counted from the conversation's end."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tok = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    found = []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        text = tok.apply_chat_template(conversation(question, answer), tokenize=False)
        ids = tok(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            ids = torch.tensor([ids[: len(ids) + 1 + at]])
            found.append(float(model(input_ids=ids).logits[0, 0]))
    return found


def test_an_older_export_is_read_where_it_was_trained(tmp_path, start):
    options = BradleyTerryDistill(learning_rate=3e-3, batch_size=2, epochs=3, precision="fp32")
    folder = tmp_path / "rm"
    train(options, pairs(), {}, start, None, folder, tmp_path / "w", 0)
    assert rewards(folder) == pytest.approx(plain(folder, -1), abs=1e-5)
    assert reward_position(folder) == "last"
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("reward_position") == "last"
    # Before the key was written: known by what lies beside the weights.
    (folder / "config.json").write_text(json.dumps(config))
    assert reward_position(folder) == "end_of_turn"
    assert rewards(folder) == pytest.approx(plain(folder, -2), abs=1e-5)
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    average([folder, other], tmp_path / "mean")
    assert reward_position(tmp_path / "mean") == "end_of_turn"
    (other / "config.json").write_text(json.dumps(config | {"reward_position": "last"}))
    with pytest.raises(EngineError, match="reward_position"):
        average([folder, other], tmp_path / "no")
    (other / "config.json").write_text(json.dumps(config | {"reward_position": "first"}))
    with pytest.raises(EngineError, match="'first'"):
        reward_position(other)


def test_other_people_s_reward_models_are_read_at_the_end(tmp_path, start):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(1)
    AutoModelForSequenceClassification.from_pretrained(start, num_labels=1).save_pretrained(
        tmp_path
    )
    AutoTokenizer.from_pretrained(start).save_pretrained(tmp_path)
    assert reward_position(tmp_path) == "last"
    assert rewards(tmp_path) == pytest.approx(plain(tmp_path, -1), abs=1e-5)


THINKERS = {
    "qwen3": (QWEN3, "<|im_end|>"),
    "r1": (R1, "<|end_of_sentence|>"),
    "gpt_oss": (GPT_OSS, "<|return|>"),
}


@pytest.mark.parametrize("name", THINKERS)
def test_templates_that_think_train_and_score(tmp_path, name):
    start = small(tmp_path / "start", *THINKERS[name])
    thought = pairs("<think>\nIt is {}.\n</think>\n\nYes.", "No, I think.")
    for options in (
        DpoTrain(batch_size=2, precision="fp32"),
        DpoTrain(batch_size=2, precision="fp32", reasoning="strip"),
        BradleyTerryDistill(batch_size=2, precision="fp32"),
    ):
        out = tmp_path / f"{options.method}-{options.reasoning}"
        outcome = train(options, thought, {}, start, None, out, tmp_path / f"{out}-w", 0)
        assert outcome.steps == 2 and math.isfinite(outcome.metrics["last_loss"])
    folder = tmp_path / "bradley_terry-keep"
    engine = load_engine(ModelSpec(path=str(folder), dtype="float32"), folder, "rm")
    (batch,) = engine.reward([RewardRequest("r", thought[0].prompt, thought[0].chosen[0])])
    assert math.isfinite(batch[0].reward)
    policy = load_engine(ModelSpec(path=str(start), dtype="float32"), start, "policy")
    text = thought[0].chosen[0]["content"]
    (scored,) = policy.score([ScoreRequest("s", thought[0].prompt, continuation=text)])
    given = policy.render(thought[0].prompt)[1]
    assert scored[0].prompt_tokens == len(given) and len(scored[0].token_logprobs) > 8


def test_template_variables_of_a_model_reach_sampling_training_and_its_identity(tmp_path):
    from rlaif.engines.base import Model

    start = small(tmp_path / "start", *THINKERS["qwen3"])
    quiet = ModelSpec(
        path=str(start), dtype="float32", chat_template_kwargs={"enable_thinking": False}
    )
    plain_spec = ModelSpec(path=str(start), dtype="float32")
    engines = [load_engine(spec, start, "policy") for spec in (plain_spec, quiet)]
    prompt = pairs()[0].prompt
    texts = [engine.render(prompt)[0] for engine in engines]
    assert texts[1] == texts[0] + "<think>\n\n</think>\n\n"
    request = GenerateRequest("g", prompt, Sampling(2, seed=1))
    counts = [next(iter(e.generate([request])))[0].prompt_tokens for e in engines]
    assert counts[1] > counts[0]
    identities = [Model("k", "policy", spec).identity() for spec in (plain_spec, quiet)]
    assert identities[1] == [*identities[0], {"chat_template_kwargs": {"enable_thinking": False}}]
    options = DpoTrain(batch_size=2, precision="fp32")
    tokens = [
        train(options, pairs(), {}, start, None, tmp_path / f"o{i}", tmp_path / f"w{i}", 0, chat=c)
        for i, c in enumerate((ChatSettings(), quiet.chat))
    ]
    assert tokens[0].metrics["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert tokens[0].metrics["last_loss"] != tokens[1].metrics["last_loss"]
