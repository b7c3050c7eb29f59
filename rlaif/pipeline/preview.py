"""What the policy or a judge will see for one record: the exact text and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlaif.config.models import REMOTE, RESERVED_MODELS
from rlaif.core.errors import ConfigError
from rlaif.core.records import Completion, Prompt, content_hash
from rlaif.core.yamlio import suggest
from rlaif.data.prompt_table import PromptsById
from rlaif.engines.base import Engine, GenerateRequest, RewardRequest, ScoreRequest
from rlaif.engines.build import load_engine
from rlaif.engines.model_folders import resolve
from rlaif.pipeline.plan.base import PlanInputs
from rlaif.pipeline.prepare import prepare


def rendered(
    path: Path,
    overrides: Sequence[str],
    judge: str | None,
    prompt_id: str | None,
    responses: Sequence[str],
    profile: str | None = None,
) -> list[dict[str, Any]]:
    """[{title, text, tokens, pieces}]: the policy's prompt, or each call of a judge."""
    inputs = prepare(path, overrides, profile=profile)
    prompt = _find_prompt(inputs, prompt_id)
    if judge is None:
        engine = _load_engine(inputs, "policy")
        return [
            _show_text(
                engine, f"policy, prompt {prompt.prompt_id}", *engine.render(prompt.messages)
            )
        ]
    if judge not in inputs.judges:
        raise ConfigError(f"--judge {judge}: no such judge{suggest(judge, list(inputs.judges))}")
    spec = inputs.experiment.all_judges()[judge]
    completions = [_make_completion(prompt, text, index) for index, text in enumerate(responses)]
    chosen = inputs.judges[judge]
    calls = chosen.calls(prompt, completions if chosen.comparative else completions[:1], 0)
    asked = [(call, call.request) for call in calls if call.request is not None]
    if not asked:
        raise ConfigError(f"judge {judge} asks no model about prompt {prompt.prompt_id}")
    names = spec.asks()
    engines = {name: _load_engine(inputs, name) for name in {names[call.role] for call, _ in asked}}
    return [
        _show_text(
            engines[names[call.role]],
            f"{judge}, principle {call.principle}, prompt {prompt.prompt_id}",
            *_rendered_request(engines[names[call.role]], request),
        )
        for call, request in asked
    ]


def _rendered_request(
    engine: Engine, request: GenerateRequest | ScoreRequest | RewardRequest
) -> tuple[str, list[int]]:
    if isinstance(request, RewardRequest):
        return engine.render([*request.messages, request.answer])
    return engine.render(request.messages, request.prefill)


def _find_prompt(inputs: PlanInputs, prompt_id: str | None) -> Prompt:
    prompts = PromptsById(inputs.prompts.by_id())
    if prompt_id is None:
        return inputs.prompts.heldout[0]
    if prompt_id not in prompts:
        raise ConfigError(f"--prompt-id {prompt_id}: no such prompt among {len(prompts)}")
    return prompts[prompt_id]


def _load_engine(inputs: PlanInputs, name: str) -> Engine:
    spec = inputs.experiment.models["policy" if name in RESERVED_MODELS else name]
    folder = None if spec.engine == "fake" or spec.engine in REMOTE else resolve(spec.path)
    return load_engine(spec, folder, name)


def _show_text(engine: Engine, title: str, text: str, tokens: list[int]) -> dict[str, Any]:
    tokenizer = getattr(engine, "tokenizer", None)
    pieces = [tokenizer.decode([t]) for t in tokens] if tokenizer else text.split()
    return {"title": title, "text": text, "tokens": tokens, "pieces": pieces}


def _make_completion(prompt: Prompt, text: str, index: int) -> Completion:
    return Completion(
        completion_id=f"k_shown{index}",
        prompt_id=prompt.prompt_id,
        sample_index=index,
        messages=[{"role": "assistant", "content": text}],
        model="",
        weights_hash="",
        sampling={},
        finish_reason="stop",
        digest=content_hash(text),
    )
