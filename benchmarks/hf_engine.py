"""The in-process engine against plain transformers, on the same model, prompts and dtype.

    python benchmarks/hf_engine.py [--model FOLDER] [--device cpu|cuda] [--dtype auto|fp32|bf16]
        [--rows 32 64 128] [--repeats 3] [--quick] [--json]

Sampling: 64 prompts x 4 samples x 128 tokens. The opponent is `generate` on batches sorted by
length, at the best of several batch sizes (`--rows`), once with every answer at full length and
once with answers that end by themselves; tokens after an end do not count. Judging: both orders of
64 pairs by the probabilities of two labels, with one judgement overall and with three principles.
The opponents are forward passes over sorted padded batches: one for each order with the logits of
the last position alone, one with those of all positions, and one for each label, as evaluation
harnesses score choices. The sides alternate; ratios are of medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from rlaif.config.models import ModelSpec
from rlaif.constitution.model import load_constitution
from rlaif.core.records import Completion, Message, Prompt
from rlaif.data.sources import every_prompt
from rlaif.engines.base import GenerateRequest, Sampling, ScoreRequest
from rlaif.engines.local.hf import HfEngine, load
from rlaif.engines.model_folders import resolve
from rlaif.judges.build import build_judge
from rlaif.judges.pairwise import PairwiseJudge

ROOT = Path(__file__).parents[1]
PROMPTS = ROOT / "prompts/seeds/everyday.jsonl"
CONSTITUTION = ROOT / "constitutions/helpful.yaml"
ROWS = (32, 64, 128)
SCORE_ROWS = (8, 16)
DTYPES = {"auto": "auto", "fp32": "float32", "bf16": "bfloat16"}


def timed(work: Callable[[], int]) -> tuple[float, int]:
    """Seconds and what `work` counted."""
    began = time.perf_counter()
    count = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began, count


def in_turn(sides: dict[str, Callable[[], int]], repeats: int) -> dict[str, float]:
    """The median rate of each side, A B A B. What comes first pays for what a process does once, so
    the sides are to be warm."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            seconds, count = timed(work)
            rates[name].append(count / seconds)
            print(f"  {name}: {count} in {seconds:.1f} s = {count / seconds:.1f}/s", flush=True)
    return {name: statistics.median(values) for name, values in rates.items()}


def useful(row: list[int], ends: frozenset[int]) -> int:
    """Tokens up to the first end token, it included."""
    return next((i + 1 for i, token in enumerate(row) if token in ends), len(row))


class Plain:
    """The transformers model as its documentation uses it, beside an engine's tokenizer."""

    def __init__(self, folder: Path, engine: HfEngine):
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=engine.model.dtype)
        self.model = model.to(engine.device).eval()
        self.pad = engine.tokenizer.pad_token_id or 0
        self.ends = engine.end_ids

    def padded(self, part: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        """Token ids and mask, padded on the left."""
        width = max(map(len, part))
        ids = [[self.pad] * (width - len(row)) + row for row in part]
        mask = [[0] * (width - len(row)) + [1] * len(row) for row in part]
        device = self.model.device
        return {
            "input_ids": torch.tensor(ids, device=device),
            "attention_mask": torch.tensor(mask, device=device),
        }

    @torch.inference_mode()
    def sample(
        self, prompts: list[list[int]], samples: int, new: int, rows: int, full: bool
    ) -> int:
        """Tokens of `samples` answers to each prompt."""
        ordered, count = sorted(prompts, key=len), 0
        for start in range(0, len(ordered), rows // samples):
            batch = self.padded(ordered[start : start + rows // samples])
            made = self.model.generate(
                **batch,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                repetition_penalty=1.0,
                num_return_sequences=samples,
                max_new_tokens=new,
                min_new_tokens=new if full else None,
                pad_token_id=self.pad,
            )
            answers = made[:, batch["input_ids"].shape[1] :].tolist()
            count += sum(new if full else useful(row, self.ends) for row in answers)
        return count

    @torch.inference_mode()
    def judge(self, asked: list[list[int]], labels: list[int], rows: int, all_logits: bool) -> int:
        """Label probabilities of each; returns how many."""
        ordered = sorted(asked, key=len)
        for start in range(0, len(ordered), rows):
            batch = self.padded(ordered[start : start + rows])
            logits = self.model(
                **batch, use_cache=False, logits_to_keep=0 if all_logits else 1
            ).logits
            logits[:, -1].float().softmax(-1)[:, labels].tolist()
        return len(ordered)

    @torch.inference_mode()
    def judge_each_label(self, asked: list[list[int]], labels: list[int], rows: int) -> int:
        """The log probability of each label as a text of its own; returns how many were asked."""
        ordered = sorted(asked, key=len)
        for start in range(0, len(ordered), rows):
            part = ordered[start : start + rows]
            for label in labels:
                batch = self.padded([[*row, label] for row in part])
                logits = self.model(**batch, use_cache=False).logits
                logits[:, -2].float().log_softmax(-1)[:, label].tolist()
        return len(ordered)


def sampling_figures(
    engine: HfEngine,
    plain: Plain,
    prompts: list[Prompt],
    new: int,
    every_rows: Sequence[int],
    repeats: int,
) -> dict[str, float]:
    """Tokens a second of both sides."""
    requests = [
        GenerateRequest(
            f"{p.prompt_id}/{i}", p.messages, Sampling(max_new_tokens=new, seed=17 * i + 1)
        )
        for p in prompts
        for i in range(4)
    ]
    encoded = [engine.render(p.messages)[1] for p in prompts]
    figures: dict[str, float] = {}

    def ours() -> int:
        return sum(len(r.token_ids) for batch in engine.generate(requests) for r in batch)

    for name, full in (("full", True), ("natural", False)):
        engine.end_ids = frozenset() if full else plain.ends

        def theirs(rows: int, full: bool = full) -> Callable[[], int]:
            return lambda: plain.sample(encoded, 4, new, rows, full)

        print(f"sampling, {name} length", flush=True)
        sides = {"rlaif": ours} | {f"transformers x{rows}": theirs(rows) for rows in every_rows}
        rates = in_turn(sides, repeats)
        best = max(rate for side, rate in rates.items() if side != "rlaif")
        figures[f"generate.{name}.tokens_per_s"] = rates["rlaif"]
        figures[f"generate.{name}.plain_tokens_per_s"] = best
        figures[f"generate.{name}.speedup"] = rates["rlaif"] / best
    engine.end_ids = plain.ends
    return figures


def pairs_of(engine: HfEngine, prompts: list[Prompt]) -> dict[str, list[Completion]]:
    """Two answers of the model to each prompt, of differing lengths."""
    requests = [
        GenerateRequest(
            f"{p.prompt_id}/{i}", p.messages, Sampling(max_new_tokens=64 + 64 * i, seed=i + 1)
        )
        for p in prompts
        for i in range(2)
    ]
    texts = {r.request_id: r.text for batch in engine.generate(requests) for r in batch}
    return {
        p.prompt_id: [
            Completion(
                f"{p.prompt_id}/{i}",
                p.prompt_id,
                i,
                [Message(role="assistant", content=texts[f"{p.prompt_id}/{i}"])],
                "policy",
                "",
                {},
                "stop",
            )
            for i in range(2)
        ]
        for p in prompts
    }


def judging_figures(
    engine: HfEngine, plain: Plain, prompts: list[Prompt], repeats: int
) -> dict[str, float]:
    """Pairs a second of both sides, each pair in both orders."""
    answers = pairs_of(engine, prompts)
    constitution = load_constitution(CONSTITUTION)
    principles = [p.id for p in constitution.principles if p.text and p.check is None][:3]
    overall = PairwiseJudge(kind="pairwise", id="overall", by="policy")
    each = PairwiseJudge(kind="pairwise", id="principles", by="policy", principles=principles)
    judges = {
        "overall": build_judge(overall),
        "principles": build_judge(each, constitution),
    }
    figures: dict[str, float] = {}
    for name, judge in judges.items():
        calls = [call for p in prompts for call in judge.calls(p, answers[p.prompt_id], 0)]
        requests = [call.request for call in calls if isinstance(call.request, ScoreRequest)]
        print(f"judging, {name}: {len(requests)} requests", flush=True)
        for side in _judging_sides(engine, plain, requests[:4]).values():
            side()
        rates = in_turn(_judging_sides(engine, plain, requests), repeats)
        last = max(rate for side, rate in rates.items() if side.startswith("last"))
        figures[f"judge.{name}.pairs_per_s"] = rates["rlaif"] * len(prompts) / len(requests)
        figures[f"judge.{name}.speedup"] = rates["rlaif"] / last
        figures[f"judge.{name}.speedup_all_logits"] = rates["rlaif"] / rates["all logits x8"]
        figures[f"judge.{name}.speedup_each_label"] = rates["rlaif"] / rates["each label x8"]
    return figures


def _judging_sides(
    engine: HfEngine, plain: Plain, requests: list[ScoreRequest]
) -> dict[str, Callable[[], int]]:
    asked = [engine.render(r.messages, r.prefill)[1] for r in requests]
    labels = [engine.encoding.label_tokens(*item)[0] for item in requests[0].labels.items()]

    def last(rows: int) -> Callable[[], int]:
        return lambda: plain.judge(asked, labels, rows, False)

    return {
        "rlaif": lambda: sum(len(batch) for batch in engine.score(requests)),
        **{f"last logits x{rows}": last(rows) for rows in SCORE_ROWS},
        "all logits x8": lambda: plain.judge(asked, labels, 8, True),
        "each label x8": lambda: plain.judge_each_label(asked, labels, 8),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin/smollm2-135m-instruct")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="auto")
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS, help="of generate's batches")
    parser.add_argument("--repeats", type=int, default=3, help="of which the median counts")
    parser.add_argument("--quick", action="store_true", help="16 prompts, 64 tokens, one repeat")
    parser.add_argument("--only", choices=("sampling", "judging"))
    parser.add_argument("--json", action="store_true", help="last line: every figure")
    options = parser.parse_args()
    folder = resolve(options.model)
    spec = ModelSpec(path=options.model, device=options.device, dtype=DTYPES[options.dtype])
    engine = load(spec, folder, "policy")
    plain = Plain(folder, engine)
    count, new, repeats = (16, 64, 1) if options.quick else (64, 128, options.repeats)
    prompts = every_prompt(PROMPTS)[:count]
    print(f"{folder.name}, {engine.model.dtype}, {torch.get_num_threads()} threads", flush=True)
    figures: dict[str, float] = {}
    if options.only != "judging":
        figures |= sampling_figures(engine, plain, prompts, new, options.rows, repeats)
    if options.only != "sampling":
        figures |= judging_figures(engine, plain, prompts, repeats)
    for name, value in figures.items():
        print(f"{name:34} {value:9.2f}")
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
