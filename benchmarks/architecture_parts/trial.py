"""One architecture, tried: a tiny random model trained, distilled, exported and scored by rlaif,
and every number beside that of plain transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from architecture_parts.configs import NotText, small_config
from rlaif.config.methods import DISTILLATIONS, METHODS
from rlaif.config.models import ModelSpec
from rlaif.core.errors import RlaifError
from rlaif.core.records import Preference
from rlaif.engines.base import RewardRequest
from rlaif.engines.local.reward import load as load_reward
from rlaif.train.loading import load_module
from rlaif.train.model import prepare
from rlaif.train.run import train
from rlaif.train.tokenise import encode, load_tokenizer

CPU = torch.device("cpu")
LOGPROBS, GRADIENTS, MARGINS = 1e-4, 1e-3, 1e-4
"""The most that may differ in fp32: log-probs (nats), gradients relative to their norm, margins."""
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QUESTIONS = ("Why?", "Name a plum.", "Say it.", "What now? Tell me.")
PAIRS = [(q, f"yes, {q.lower()} {i}", "no" * (1 + i)) for i, q in enumerate(QUESTIONS)]
TRAINING = {"batch_size": 2, "precision": "fp32", "learning_rate": 1e-2, "schedule": "constant"}


class Refused(Exception):
    """rlaif said in a sentence why it does not take the model."""


class Differs(Exception):
    """A number is not that of plain transformers."""


@contextmanager
def refusals() -> Iterator[None]:
    """What rlaif refuses with a sentence, apart from what it crashes on."""
    try:
        yield
    except RlaifError as error:
        raise Refused(str(error)) from error


def tokenizer() -> Any:
    """One token a byte, and three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
    )
    made.chat_template = TEMPLATE
    return made


def preferences() -> list[Preference]:
    """Four prompts, a pair each."""
    return [
        Preference(
            preference_id=f"r{i}",
            prompt_id=f"p{i}",
            round=0,
            prompt=[{"role": "user", "content": prompt}],
            chosen=[{"role": "assistant", "content": chosen}],
            rejected=[{"role": "assistant", "content": rejected}],
            score_chosen=1.0,
            score_rejected=0.0,
            margin=1.0,
            prob=1.0,
            weight=1.0,
            reason="",
            source="benchmark",
            judgement_ids=[],
            chosen_id=f"c{i}",
            rejected_id=f"d{i}",
        )
        for i, (prompt, chosen, rejected) in enumerate(PAIRS)
    ]


def trial(name: str, place: Path) -> Iterator[dict[str, Any]]:
    """What is found of the architecture `name`, as soon as it is found."""
    start = place / "start"
    yield {"class": build(name, start)}
    yield from training(start, place)
    yield {"stage": "the reward model"}
    yield from distilling(start, place)


def build(name: str, folder: Path) -> str:
    """A random model of the architecture in `folder`; the name of its class. Raises NotText where
    plain transformers has none that reads text alone and that loads what it saved."""
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    made = tokenizer()
    special = {"pad_token_id": made.pad_token_id, "eos_token_id": made.eos_token_id}
    config = small_config(CONFIG_MAPPING[name], len(made), special)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for param in model.parameters():
            # Weights that were all equal would hide what is done with them.
            noise = torch.randn_like(param)
            param.copy_(param + 0.1 * noise if param.dim() < 2 else noise * param.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    rows = rows_of(folder)
    try:
        before = torch.cat(plain_logprobs(model, rows))
    except Exception as error:
        raise NotText(f"text alone is not enough for it: {in_a_line(error)}") from error
    again = torch.cat(plain_logprobs(plain(folder), rows))
    if not torch.isfinite(before).all():
        raise NotText("its log-probs are not finite with random weights")
    off = float((before - again).abs().max())
    if off > LOGPROBS:
        raise NotText(f"transformers does not load what it saved: log-probs differ by {off:.2g}")
    return type(model).__name__


def in_a_line(error: BaseException) -> str:
    """The class of an error and its words, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def plain(folder: Path) -> Any:
    """The model as plain transformers loads it, in fp32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def examples_of(folder: Path) -> list[tuple[list[int], list[list[int]]]]:
    """The prompts and answers as training encodes them."""
    options: dict[str, Any] = {"max_length": 400, "overlong": "refuse", "train_on_eos": True}
    found = encode(preferences(), load_tokenizer(folder), {}, both=True, **options)
    return [(e.prompt_ids, list(e.completions)) for e in found.examples]


def rows_of(folder: Path) -> list[tuple[list[int], list[int]]]:
    """Each answer with its prompt."""
    return [(prompt, branch) for prompt, branches in examples_of(folder) for branch in branches]


def logits_of(model: Any, ids: list[int]) -> Tensor:
    """(T, V) logits of one row, by the model's own forward."""
    row = torch.tensor([ids])
    given = {"input_ids": row, "attention_mask": torch.ones_like(row)}
    try:
        logits: Tensor = model(**given, use_cache=False).logits
    except TypeError:
        logits = model(**given).logits
    return logits[0].float()


def plain_logprobs(model: Any, rows: list[tuple[list[int], list[int]]]) -> list[Tensor]:
    """The log-probs of every answer's tokens, row by row."""
    found = []
    for prompt, branch in rows:
        steps = torch.arange(len(prompt) - 1, len(prompt) + len(branch) - 1)
        logprobs = logits_of(model, prompt + branch).log_softmax(-1)
        found.append(logprobs[steps, torch.tensor(branch)])
    return found


def training(start: Path, place: Path) -> Iterator[dict[str, Any]]:
    """The first step beside plain transformers, then DPO and what it exports."""
    with refusals():
        model = prepare(load_module(start, CPU), CPU, torch.float32)
    yield {"packed": model.packed, "left_out": list(model.choice.reasons)}
    rows = rows_of(start)
    reference = plain(start)
    wanted = torch.cat(plain_logprobs(reference, rows))
    found = model.token_logprobs(model.layout(examples_of(start)))
    slope = torch.linspace(-1, 1.5, len(wanted))
    off = float((found - wanted).detach().abs().max())
    yield {"logprobs": off}
    if not off <= LOGPROBS:
        raise Differs(f"log-probs differ by {off:.2g}")
    try:
        (wanted * slope).sum().backward()
    except AssertionError:
        # Plain transformers has no gradient without chance; training must say so.
        reference = None
    if reference is not None:
        (found * slope).sum().backward()
        worst, which = gradient_difference(model.masters, dict(reference.named_parameters()))
        yield {"gradients": worst}
        if not worst <= GRADIENTS:
            raise Differs(f"the gradient of {which} differs by {worst:.2g} of its norm")
    yield {"stage": "DPO"}
    options = METHODS["dpo"].model_validate({"method": "dpo", **TRAINING})
    out = place / "dpo"
    with refusals():
        train(options, preferences(), {}, start, None, out, place / "dpo-work", 0, "cpu")
    yield {"stage": "the export"}
    yield exported(start, out, rows)


def gradient_difference(ours: dict[str, Tensor], theirs: dict[str, Any]) -> tuple[float, str]:
    """The largest difference of a parameter's gradients relative to their norm, or to a thousandth
    of the largest norm where that is more; and which it is."""
    norms = {n: float(p.grad.norm()) for n, p in theirs.items() if p.grad is not None}
    least = 1e-3 * max(norms.values())
    worst = (0.0, "none")
    for name, param in theirs.items():
        if not param.requires_grad:
            continue
        own, wanted = ours[name].grad, param.grad
        if own is None:
            own = torch.zeros_like(param)
        off = float((own - (0 if wanted is None else wanted)).norm())
        worst = max(worst, (off / max(norms.get(name, 0.0), least), name))
    return worst


@torch.no_grad()
def exported(start: Path, out: Path, rows: list[tuple[list[int], list[int]]]) -> dict[str, Any]:
    """Whether the weights moved, and whether plain transformers has them from the folder."""
    before = dict(load_module(start, CPU).named_parameters())
    masters = dict(load_module(out, CPU).named_parameters())
    moved = sum(not torch.equal(before[n], p) for n, p in masters.items())
    loaded = plain(out)
    for name, param in loaded.named_parameters():
        if not torch.equal(param, masters[name].bfloat16().float()):
            raise Differs(f"the exported {name} is not what was trained")
    if not moved:
        raise Differs("no weight moved")
    first = torch.cat(plain_logprobs(loaded, rows))
    second = torch.cat(plain_logprobs(plain(out), rows))
    if float((first - second).abs().max()) > LOGPROBS:
        raise Differs("a second load of the export gives other log-probs")
    return {"moved": moved, "tensors": len(masters)}


def distilling(start: Path, place: Path) -> Iterator[dict[str, Any]]:
    """A reward model of all weights, scored by rlaif and by plain transformers."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = place / "reward"
    options = DISTILLATIONS["bradley_terry"].model_validate({"method": "bradley_terry", **TRAINING})
    with refusals():
        train(options, preferences(), {}, start, None, out, place / "reward-work", 0, "cpu")
        engine = load_reward(ModelSpec(path=str(out), dtype="float32", device="cpu"), out, "reward")
    talks = [[{"role": "user", "content": q}, said] for q, *both in PAIRS for said in answers(both)]
    requests = [RewardRequest(str(i), talk[:-1], talk[-1]) for i, talk in enumerate(talks)]
    with refusals():
        results = {r.request_id: r for batch in engine.reward(requests) for r in batch}
    ours = torch.tensor([results[str(i)].reward for i in range(len(talks))])
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval()
    writer = AutoTokenizer.from_pretrained(out)
    theirs = []
    for talk in talks:
        row = writer.apply_chat_template(talk, return_tensors="pt", return_dict=True)
        with torch.no_grad():
            logits = model(row["input_ids"], attention_mask=row["attention_mask"]).logits
        theirs.append(float(logits[0, 0]))
    wanted = torch.tensor(theirs)
    margins = (ours[::2] - ours[1::2]) - (wanted[::2] - wanted[1::2])
    off, size = float(margins.abs().max()), float((wanted[::2] - wanted[1::2]).abs().mean())
    yield {"margins": off, "margin_size": size}
    if not off <= MARGINS:
        raise Differs(f"margins of about {size:.2g} differ by {off:.2g}")
    if not size > 0:
        raise Differs("all margins are 0")


def answers(texts: list[str]) -> list[dict[str, str]]:
    """Two answers as messages."""
    return [{"role": "assistant", "content": text} for text in texts]
