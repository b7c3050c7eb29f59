"""One round by hand: sample, judge, pair, train. Its output goes to runs/one_round."""

from pathlib import Path

import rlaif
from rlaif.config.models import ModelSpec
from rlaif.config.steps import PairStep
from rlaif.core.records import content_hash
from rlaif.core.resources import find
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.engines.model_folders import resolve
from rlaif.judges.yes_no import YesNoJudge
from rlaif.preferences.pairing import Candidate, make_preference
from rlaif.train.methods.pairs import DpoTrain

spec = ModelSpec(path="builtin/smollm2-135m-instruct", system_prompt="drop")
folder, options = resolve(spec.path), PairStep()
engine = rlaif.load_engine(spec, folder, "M0")
constitution = rlaif.load_constitution(find("constitutions/concise_helper.yaml"))
judge = rlaif.build_judge(YesNoJudge(kind="yes_no", principles=["useful"]), constitution)

pairs, tokens = [], {}
for question in ("Why is the sky blue?", "How do I keep bread fresh?", "What is a prime number?"):
    prompt = rlaif.make_prompt([{"role": "user", "content": question}])
    asked = [
        GenerateRequest(f"{prompt.prompt_id}/{i}", prompt.messages, Sampling(48, 0.8, seed=i))
        for i in range(4)
    ]
    answers = []
    for i, made in enumerate(r for batch in engine.generate(asked) for r in batch):
        turn = [{"role": "assistant", "content": made.text}]
        how = ("M0", engine.weights_hash, {}, made.finish_reason, made.token_ids)
        digest = content_hash(turn)
        answer = rlaif.Completion(made.request_id, prompt.prompt_id, i, turn, *how, digest=digest)
        answers.append(answer)
        tokens[answer.completion_id] = made.token_ids
    calls = {call.call_id: call for call in judge.calls(prompt, answers, seed=7)}
    results = [r for batch in engine.score([c.request for c in calls.values()]) for r in batch]
    verdicts = [j for r in results for j in judge.read(calls[r.request_id], r, "M0")]
    scores = rlaif.candidate_scores(verdicts)
    scored = [Candidate(a, s) for a in answers if (s := scores[a.completion_id]) is not None]
    for pair in rlaif.prompt_pairs(prompt, scored, options, seed=7):
        pairs.append(make_preference(prompt, pair, options, 1, {}, {judge.id: scores}))

train = DpoTrain(learning_rate=2e-5, batch_size=2)
out = Path("runs/one_round")
paths = {"start": folder, "reference": None, "out": out / "model", "work": out / "work"}
outcome = rlaif.train_model(train, pairs, tokens, seed=7, chat=spec.chat, **paths)
print(f"{len(pairs)} pairs, {outcome.steps} optimiser steps, model in {paths['out']}")
