"""Rewards from a server are asked for while the next answers are being sampled."""

from __future__ import annotations

import json
import time

from rlaif.engines.local.hf import HfEngine
from rlaif.pipeline.experiment import run_experiment
from tests.servers.scripted import ScriptedServer

GRPO = {
    "method": "grpo",
    "rewards": {"far": 1.0},
    "rollouts": 2,
    "n": 2,
    "batch_size": 3,
    "max_new_tokens": 6,
    "precision": "fp32",
    "learning_rate": 1e-3,
}
PATIENCE_SECONDS = 30


def score(body, choice):
    return f"Score: {len(body['messages'][-1]['content']) % 5 + 1}"


def test_a_judge_on_a_server_works_while_the_policy_samples(
    tmp_path, tiny_model, write_experiment, monkeypatch
):
    sampled, seen_between = HfEngine.generate, []

    def sampling(self, requests, done=frozenset()):
        for number, batch in enumerate(sampled(self, requests, done)):
            if number == 1:
                # One batch is out and the next is not: whoever waits for all of them asks nothing.
                until = time.monotonic() + PATIENCE_SECONDS
                while not server.asked and time.monotonic() < until:
                    time.sleep(0.01)
                seen_between.append(len(server.asked))
            yield batch

    with ScriptedServer(score) as server:
        monkeypatch.setattr(HfEngine, "generate", sampling)
        policy = {"path": str(tiny_model), "dtype": "float32", "system_prompt": "drop"}
        # A batch holds the answers to one prompt.
        policy |= {"batch_tokens": 130}
        models = {
            "policy": policy,
            "server": {"path": "m", "engine": "openai", "base_url": server.url, "cache": False},
        }
        path = write_experiment(
            tmp_path,
            tiny_model,
            models=models,
            rounds=1,
            judges=[{"id": "far", "kind": "rating", "by": "server", "max_new_tokens": 8}],
            steps=[{"train": GRPO}],
        )
        run_experiment(path, tmp_path / "out")
        assert len(server.asked) == 2 * 3 * 2
    assert seen_between
    assert seen_between[0] > 0
    [train] = (tmp_path / "out/steps").glob("*")
    lines = (train / "judgements.jsonl").read_text().splitlines()
    judged = [json.loads(line) for line in lines if line]
    assert len({row["call_id"] for row in judged}) == len(judged) == 12
