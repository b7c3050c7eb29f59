"""How much of vLLM's own speed its engines here keep: offline, and through a server.

    python benchmarks/vllm_engine.py [--model PATH] [--prompts 256] [--new-tokens 64]
                                     [--concurrency 64] [--turns 5] [--quick] [--json]

Needs vLLM (`make test-vllm` makes an environment). Offline, `rlaif` is the engine `vllm` with its
results consumed, log-probs of the sampled tokens among them, and `raw` is `LLM.generate` of the
same `LLM` on the same token ids without log-probs, `raw_logprobs` with them; each turn begins with
an empty prefix cache. The goal is set by `raw`.
Through a server, `rlaif` is the engine `vllm-server` and `bare` a plain loop over `AsyncOpenAI`
with as many calls open, on the same server; once without the request cache, once with it (every
request is new, so each is looked up and written). No run folder's records are written. The ways
take turns, after one turn each that does not count, and every turn has seeds of its own. A rate is
tokens made per second; `of_WAY` is the ratio of the medians, `of_WAY_by_turn` are the turns'.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from rlaif.config.models import ModelSpec
from rlaif.engines.base import GenerateRequest, Sampling
from rlaif.engines.build import load_engine
from rlaif.engines.model_folders import resolve

MIN_RATIO = 0.95
Way = Callable[[int], int]
"""From the number of a turn to the tokens that were made in it."""


def requests(options: argparse.Namespace, turn: int) -> list[GenerateRequest]:
    """The prompts of every turn, with the turn's seeds."""
    first = turn * options.prompts
    return [
        GenerateRequest(
            f"r{first + i}",
            [{"role": "user", "content": f"Tell a short story about the number {i} and the sea."}],
            Sampling(max_new_tokens=options.new_tokens, temperature=1.0, seed=first + i),
        )
        for i in range(options.prompts)
    ]


def consumed(batches: Iterator[list[Any]]) -> int:
    """The tokens of all results. An answer that failed stops the measurement."""
    made = 0
    for batch in batches:
        for result in batch:
            assert result.error is None, result.error
            made += result.tokens_made
    return made


def compare(ways: dict[str, Way], turns: int) -> dict[str, Any]:
    """Tokens per second of all ways, taking turns, and what `rlaif` has of each other way's."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for turn in range(turns + 1):
        # Who goes first changes, so that a drift of the machine favours nobody.
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            began = time.perf_counter()
            made = ways[name](turn)
            if turn:
                rates[name].append(made / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    found: dict[str, Any] = {f"{n}_tokens_per_second": round(v, 2) for n, v in medians.items()}
    for name in names[1:]:
        found[f"of_{name}"] = round(medians["rlaif"] / medians[name], 4)
        pairs = zip(rates["rlaif"], rates[name], strict=True)
        found[f"of_{name}_by_turn"] = [round(a / b, 4) for a, b in pairs]
    return found


def offline(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The engine `vllm` next to its own `LLM`."""
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt

    engine: Any = load_engine(spec(options, "vllm"), folder, "offline")

    def ours(turn: int) -> int:
        engine.llm.reset_prefix_cache()
        return consumed(engine.generate(requests(options, turn)))

    def raw(turn: int, logprobs: int | None = None) -> int:
        engine.llm.reset_prefix_cache()
        sampling = [
            SamplingParams(
                max_tokens=r.sampling.max_new_tokens,
                temperature=1.0,
                seed=r.sampling.seed,
                logprobs=logprobs,
            )
            for r in requests(options, turn)
        ]
        outputs = engine.llm.generate(prompts, sampling, use_tqdm=False)
        return sum(len(o.outputs[0].token_ids) for o in outputs)

    try:
        prompts = [
            TokensPrompt(prompt_token_ids=engine.render(r.messages)[1])
            for r in requests(options, 0)
        ]
        same = partial(raw, logprobs=0)
        return compare({"rlaif": ours, "raw": raw, "raw_logprobs": same}, options.turns)
    finally:
        engine.close()


def served(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The engine `vllm-server` next to a bare client of its server."""
    import openai

    keys = {"limits": {"concurrency": options.concurrency}}
    engine: Any = load_engine(spec(options, "vllm-server", cache=False, **keys), folder, "served")
    cached = spec(options, "vllm-server", cache=True, **keys)
    path = engine.spec.path

    async def ask(turn: int) -> int:
        server = engine.running()
        client = openai.AsyncOpenAI(base_url=server.url, api_key=server.key)
        pending, made = iter(requests(options, turn)), 0

        async def work() -> None:
            nonlocal made
            for r in pending:
                answer = await client.chat.completions.create(
                    model=path,
                    messages=r.messages,
                    max_tokens=r.sampling.max_new_tokens,
                    temperature=1.0,
                    seed=r.sampling.seed,
                )
                made += answer.usage.completion_tokens

        async with client:
            await asyncio.gather(*(work() for _ in range(options.concurrency)))
        return made

    def ours(turn: int) -> int:
        return consumed(engine.generate(requests(options, turn)))

    def bare(turn: int) -> int:
        return asyncio.run(ask(turn))

    try:
        ways = {"rlaif": ours, "bare": bare}
        found = {"cache_off": compare(ways, options.turns)}
        # The cache decides nothing about the server, which stays.
        engine.spec = cached
        found["cache_on"] = compare(ways, options.turns)
        return found
    finally:
        engine.close()


def spec(options: argparse.Namespace, engine: str, **keys: Any) -> ModelSpec:
    """The model's settings; nothing but the engine differs."""
    data = {"path": options.model, "engine": engine, "dtype": options.dtype, "max_context": 512}
    return ModelSpec.model_validate(data | keys)


def main() -> None:
    """Measure, print, and exit with 1 below the goal."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="builtin/smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", choices=("offline", "served"))
    parser.add_argument("--quick", action="store_true", help="32 prompts, 32 tokens, 3 turns")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.prompts, options.new_tokens, options.turns = 32, 32, 3
        options.concurrency = 16
    folder = resolve(options.model)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        if options.only != "served":
            found["offline"] = offline(options, folder)
            print("offline", found["offline"], flush=True)
        os.environ["RLAIF_CACHE"] = cache
        if options.only != "offline":
            found["served"] = served(options, folder)
            print("served", found["served"], flush=True)
    ratios = [found["offline"]["of_raw"]] if "offline" in found else []
    ratios += [way["of_bare"] for way in found.get("served", {}).values()]
    reached = all(ratio >= MIN_RATIO for ratio in ratios)
    if options.json:
        settings = {k: getattr(options, k) for k in ("prompts", "new_tokens", "concurrency")}
        print(json.dumps({**found, "settings": settings, "goal": MIN_RATIO, "reached": reached}))
    sys.exit(0 if reached else 1)


if __name__ == "__main__":
    main()
