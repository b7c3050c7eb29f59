"""Judge texts by a server, as a judge step does; run as a program, to be killed.

python -m tests.support.judging URL FOLDER COUNT CONCURRENCY
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlaif.config.models import ModelSpec
from rlaif.constitution.model import Constitution
from rlaif.core.errors import RlaifError
from rlaif.core.records import Completion, Judgement, content_hash, make_prompt
from rlaif.core.store import Store
from rlaif.engines.base import Model
from rlaif.engines.build import EnginePool
from rlaif.judges.base import Call, Judge
from rlaif.judges.build import build_judge
from rlaif.judges.yes_no import YesNoJudge
from rlaif.pipeline.steps.judge import ask_model


def yes_no() -> Judge:
    """A judge with one call per text."""
    spec = YesNoJudge(kind="yes_no", by="server", template="prompts/judges/yes_no_short.j2")
    principle = {"id": "right", "text": "The answer is right."}
    constitution = Constitution.model_validate({"name": "one", "principles": [principle]})
    return build_judge(spec, constitution)


def server_model(url: str, **keys: Any) -> Model:
    """The model that the server at `url` serves."""
    data = {"path": "m", "engine": "openai", "base_url": url, **keys}
    spec = ModelSpec.model_validate(data)
    return Model(f"server:{url}:m", "server", spec)


def calls(judge: Judge, count: int) -> Iterator[Call]:
    """The calls for `count` different answers to as many prompts."""
    for i in range(count):
        prompt = make_prompt([{"role": "user", "content": f"What is {i} plus one?"}])
        text = f"It is {i + 1}."
        completion = Completion(
            completion_id=f"k{i}",
            prompt_id=prompt.prompt_id,
            sample_index=0,
            messages=[{"role": "assistant", "content": text}],
            model="",
            weights_hash="",
            sampling={},
            finish_reason="stop",
            digest=content_hash(text),
        )
        yield from judge.calls(prompt, [completion], 0)


def judged(out: Path, model: Model, count: int, budget: float | None = None) -> list[Judgement]:
    """Go on judging in the folder `out`; what this run added."""
    store = Store(out)
    folder = store.step("judging")
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.repair()
    done = {row["call_id"] for row in folder.read("judgements")}
    judge, pool = yes_no(), EnginePool(store, budget=budget)
    added: list[Judgement] = []
    with pool.account.meters.kept_in(folder.path):
        for batch in ask_model(judge, model, pool, list(calls(judge, count)), done):
            folder.append("judgements", batch)
            added += batch
    return added


if __name__ == "__main__":
    url, out, count, concurrency = sys.argv[1:]
    # A loopback server answers in less than a second, or never.
    model = server_model(url, limits={"concurrency": int(concurrency), "total_seconds": 1.0})
    try:
        judged(Path(out), model, int(count))
    except RlaifError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
