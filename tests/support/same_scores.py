"""A tiny reward model, conversations for it, and their rewards by each way of asking for them."""

from __future__ import annotations

import json
import random
import threading
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlaif.core.progress import QuietProgress
from rlaif.core.records import Completion, content_hash, make_prompt, to_json
from rlaif.core.store import StepFolder, write_jsonl
from rlaif.pipeline.single_step import Request, run_step

WORDS = ("a", "plum", "is", "blue", "and", "the", "sky", "has", "no end", "bees", "make", "honey")
PAIRS = 104


def reward_model(start: Path, out: Path) -> Path:
    """The body of `start` with a random row of weights, exported as training exports one."""
    import torch
    from transformers import AutoConfig

    from rlaif.kernels.heads import HeadConfig, LinearHead
    from rlaif.train.checkpoint import export_head

    head = LinearHead(HeadConfig("linear", AutoConfig.from_pretrained(start).hidden_size))
    torch.manual_seed(3)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape))
    export_head(start, head, out)
    return out


def conversations(count: int = PAIRS) -> list[tuple[list[dict[str, str]], list[dict[str, str]]]]:
    """Pairs of conversations that end in another answer to one question, short and long."""
    draw = random.Random(7)
    pairs = []
    for number in range(count):
        asked = [{"role": "user", "content": f"{number}: {' '.join(draw.choices(WORDS, k=6))}?"}]
        if number % 3 == 0:
            asked.insert(0, {"role": "system", "content": "Be brief."})
        answers = [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(2)]
        first, second = ([*asked, {"role": "assistant", "content": text}] for text in answers)
        pairs.append((first, second))
    return pairs


def by_rlaif(folder: Path, chats: Sequence[list[dict[str, str]]], work: Path) -> list[float]:
    """As `rlaif score`: the records of a judge step."""
    completions, prompts = [], {}
    for number, chat in enumerate(chats):
        prompt = make_prompt(chat[:-1])
        prompts[prompt.prompt_id] = prompt
        completions.append(
            Completion(
                f"k{number}",
                prompt.prompt_id,
                number,
                [chat[-1]],
                *("me", "w", {}, "stop", None),
                digest=content_hash([chat[-1]]),
            )
        )
    StepFolder(work / "answers").append("completions", completions)
    write_jsonl(work / "answers" / "prompts.json", [to_json(p) for p in prompts.values()])
    (work / "rm.yaml").write_text(json.dumps({"path": str(folder), "dtype": "float32"}))
    model = str(work / "rm.yaml")
    request = Request(
        "judge",
        work / "scores",
        ["kind=reward_model", f"by={model}"],
        prompts=work / "answers",
        models={"by": model},
        inputs={"completions/0": str(work / "answers")},
    )
    run_step(request, QuietProgress())
    rows = StepFolder(work / "scores").rows("judgements")
    found = {row["subject"]: row["distribution"]["reward"] for row in rows}
    return [found[f"k{number}"] for number in range(len(chats))]


def by_template(folder: Path, chats: Sequence[list[dict[str, str]]]) -> list[float]:
    """A plain call of `apply_chat_template` and the classifier."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    found = []
    with torch.no_grad():
        for chat in chats:
            inputs = tokenizer.apply_chat_template(chat, return_tensors="pt", return_dict=True)
            found.append(model(**inputs).logits[0, 0].item())
    return found


def texts(folder: Path, chats: Sequence[list[dict[str, str]]]) -> list[str]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats]


def by_pipeline(folder: Path, chats: Sequence[list[dict[str, str]]]) -> list[float]:
    import torch
    from transformers import pipeline

    classify: Any = pipeline("text-classification", model=str(folder), dtype=torch.float32)
    keys = {"add_special_tokens": False, "function_to_apply": "none", "batch_size": 8}
    return [row["score"] for row in classify(texts(folder, chats), **keys)]


def by_classify(folder: Path, chats: Sequence[list[dict[str, str]]]) -> list[float]:
    """`/classify` of `rlaif serve reward`, as verl asks it."""
    from rlaif.config.models import ModelSpec
    from rlaif.engines.local.reward import load
    from rlaif.web.reward_app import RewardServer
    from rlaif.web.reward_server import RewardService

    service = RewardService(load(ModelSpec(path=str(folder), dtype="float32"), folder, "rm"))
    server = RewardServer(service, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        body = {"input": texts(folder, chats), "add_special_tokens": False}
        url = f"http://127.0.0.1:{server.port}/classify"
        request = urllib.request.Request(url, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=120) as answer:
            return [row["probs"][0] for row in json.load(answer)["data"]]
    finally:
        server.shutdown()
        thread.join()
        service.close()


def margins(rewards: Sequence[float]) -> list[float]:
    """Of each pair, whose conversations stand beside each other."""
    return [a - b for a, b in zip(rewards[::2], rewards[1::2], strict=True)]


def assert_same(found: Sequence[float], wanted: Sequence[float]) -> None:
    """The same sign, and margins within one per cent."""
    assert len(found) == len(wanted) >= 100
    assert [a > 0 for a in found] == [a > 0 for a in wanted]
    assert list(found) == pytest.approx(list(wanted), rel=0.01, abs=1e-6)
