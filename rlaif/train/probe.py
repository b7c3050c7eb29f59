"""Reward models on fixed features: the starting model is run once over every answer, and a head is
fitted on the hidden states at the end of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlaif.config.distill import FitStep
from rlaif.core.errors import RlaifError
from rlaif.core.integrity import file_digest
from rlaif.core.records import Judgement, content_hash
from rlaif.core.resources import find_object
from rlaif.core.yamlio import suggest
from rlaif.engines.local.distance import fit_region
from rlaif.kernels.batching import fill_batches
from rlaif.kernels.device import release_freed_memory
from rlaif.kernels.heads import GatedHead, HeadConfig, LinearHead, OrdinalHead
from rlaif.preferences.aggregate import pointwise_values
from rlaif.train.checkpoint import export_head
from rlaif.train.depth import depths, hidden_at
from rlaif.train.fits import (
    Comparisons,
    Features,
    debias,
    fit_depth,
    fit_gate,
    fit_objectives,
    fit_ordinal,
    fit_quantiles,
)
from rlaif.train.loading import load_module
from rlaif.train.loop import TrainJob, TrainOutcome, TrainProgress, memory_advice, write_outcome
from rlaif.train.methods.heads import GatedDistill, LinearDistill, OrdinalDistill
from rlaif.train.model import TrainModel, prepare
from rlaif.train.reward_model import by_prompt
from rlaif.train.run import encode_data
from rlaif.train.tokenise import Example

VERBOSITY = "length"
"""The objective that every gated head adds to those that were rated: how long an answer is."""
DIGEST = ".digest"
"""What the file is called that has the checksum of hidden states."""
OWN = "score"
"""The objective where nothing but the pairs' own scores is known."""

Ratings = dict[str, dict[str, float]]
"""Objective to completion id to rating."""


def ratings(judgements: Sequence[Judgement]) -> Ratings:
    """What each judge said of each answer by itself, samples averaged, by judge, or by
    JUDGE/PRINCIPLE where the judge judges by principles. What has no value is absent."""
    groups: dict[str, list[Judgement]] = defaultdict(list)
    for j in judgements:
        if len(j.shown) == 1:
            groups[f"{j.judge}/{j.principle}" if j.principle else j.judge].append(j)
    found = {}
    for name in sorted(groups):
        values = {s: v for s, (v, _) in pointwise_values(groups[name]).items() if v is not None}
        if values:
            found[name] = values
    return found


def fit_reward_model(job: TrainJob[FitStep]) -> TrainOutcome:
    """Fit a head on the model in the job's start and write the reward model to `out`.

    The job's judgements rate the answers; without any the pairs' own scores do. Hidden states are
    kept in `work` as they are computed, so that a rerun goes on; the fit is done again, and is the
    same. Raises RlaifError.
    """
    options = job.options
    began = perf_counter()
    encoded = encode_data(job)
    examples = by_prompt(encoded.examples)
    with memory_advice(options):
        features = read_depths(
            examples, job.start, options, job.work, job.device, job.dtype, options.body_layers
        )
    head, metrics, depth = find_object(options.FIT)(job, examples, features)
    region = fit_region(features[depth].last.double().numpy())
    export_head(job.start, head, job.out, region, depth)
    tokens = sum(e.length for e in examples)
    name = str(job.dtype).removeprefix("torch.")
    steps = int(metrics.pop("steps", 1))
    outcome = TrainOutcome(steps, tokens, metrics, encoded.counts, perf_counter() - began, name)
    write_outcome(job.work, outcome)
    return outcome


def read_features(
    examples: Sequence[Example],
    start: Path,
    options: FitStep,
    work: Path,
    device: torch.device,
    dtype: torch.dtype,
) -> Features:
    """`read_depths` at the end of the whole model."""
    (found,) = read_depths(examples, start, options, work, device, dtype, "all").values()
    return found


@torch.no_grad()
def read_depths(
    examples: Sequence[Example],
    start: Path,
    options: FitStep,
    work: Path,
    device: torch.device,
    dtype: torch.dtype,
    layers: int | Literal["auto", "all"],
) -> dict[int, Features]:
    """By the number of layers passed, the hidden states of every answer and prompt, in the order of
    `examples`. They are kept by one file in `work` for each micro-batch."""
    module = load_module(start, device, reward=True)
    wanted = depths(module, layers)
    model = prepare(module, device, dtype, trainable=False)
    data = [[e.prompt_ids, list(e.completions)] for e in examples]
    folder = work / f"features-{content_hash(wanted, data, length=16)}"
    folder.mkdir(parents=True, exist_ok=True)
    sizes = [model.size(e.branches) for e in examples]
    order = sorted(range(len(examples)), key=lambda i: (-sizes[i], i))
    answers: dict[int, dict[int, Tensor]] = {d: {} for d in wanted}
    prompts: dict[int, dict[int, Tensor]] = {d: {} for d in wanted}
    for micro in fill_batches(order, [sizes[i] for i in order], model.token_budget(options)):
        path = folder / f"{micro[0]:08d}.safetensors"
        if not _is_whole(path):
            _compute_features(model, [examples[i] for i in micro], wanted, path)
        counts = [len(examples[i].completions) for i in micro]
        for name, states in load_file(path).items():
            last, prompt = torch.split(states, [sum(counts), len(micro)])
            answers[int(name)] |= zip(micro, torch.split(last, counts), strict=True)
            prompts[int(name)] |= zip(micro, prompt, strict=True)
    del model, module
    release_freed_memory()
    of = torch.tensor([i for i, e in enumerate(examples) for _ in e.completions])
    names = [e.prompt_id for e in examples]
    every = range(len(examples))
    return {
        d: Features(
            torch.cat([answers[d][i] for i in every]),
            torch.stack([prompts[d][i] for i in every]),
            of,
            names,
        )
        for d in wanted
    }


def _compute_features(
    model: TrainModel, rows: Sequence[Example], depths: tuple[int, ...], path: Path
) -> None:
    """Write, by depth, the hidden states at the end of each answer and then of each prompt."""
    layout = model.layout([e.branches for e in rows])
    # The first target of an example's first answer is predicted at the end of its prompt.
    firsts, place, sequence = [], 0, 0
    for example in rows:
        firsts.append(place)
        for _ in example.completions:
            place += layout.lengths[sequence]
            sequence += 1
    places = torch.cat([layout.last, layout.predict[firsts]])
    found = hidden_at(model, layout, places, depths)
    temporary = path.with_suffix(".partial")
    save_file({str(d): states.cpu().contiguous() for d, states in found.items()}, temporary)
    digest = file_digest(temporary)
    temporary.replace(path)
    path.with_suffix(DIGEST).write_text(digest)


def _is_whole(path: Path) -> bool:
    """Whether hidden states are here as they were computed; else they are computed again."""
    digest = path.with_suffix(DIGEST)
    return path.exists() and digest.exists() and digest.read_bytes() == file_digest(path).encode()


def comparisons(examples: Sequence[Example]) -> Comparisons:
    """Every pair, its answers by place among those of all examples."""
    rows = []
    start = 0
    for example in examples:
        for p in example.pairs:
            rows.append((start + p.chosen, start + p.rejected, p.prob, p.weight))
        start += len(example.completions)
    chosen, rejected, prob, weight = zip(*rows, strict=True)
    return Comparisons(
        torch.tensor(chosen), torch.tensor(rejected), torch.tensor(prob), torch.tensor(weight)
    )


def fit_linear_head(
    job: TrainJob[LinearDistill], examples: Sequence[Example], features: Mapping[int, Features]
) -> tuple[LinearHead, dict[str, float], int]:
    """The head, figures of the fit, and the depth of the least held-out loss."""
    pairs = comparisons(examples)
    depth, head, losses = fit_depth(features, pairs, job.seed)
    metrics = {f"held_out_loss/{d}": loss for d, loss in losses.items()}
    metrics |= {"held_out_loss": losses[depth], "layers": float(depth)}
    return head, {**metrics, "pairs": float(len(pairs.chosen))}, depth


def fit_ordinal_head(
    job: TrainJob[OrdinalDistill], examples: Sequence[Example], by_depth: Mapping[int, Features]
) -> tuple[OrdinalHead, dict[str, float], int]:
    """The head, figures of the fit, and the depth that was read."""
    options = job.options
    ((depth, features),) = by_depth.items()
    wanted = None if options.objective is None else [options.objective]
    names, labels = labels_of(examples, ratings(job.judgements), wanted)
    if len(names) > 1:
        raise RlaifError(
            f"ordinal: the answers were rated by {', '.join(names)}; set `objective` to one"
        )
    known = ~torch.isnan(labels[:, 0])
    values, level = binned(labels[known, 0], options.levels, names[0])
    head = OrdinalHead(HeadConfig("ordinal", features.last.shape[1], levels=values))
    chosen = Features(features.last[known], features.prompt, features.of[known], features.names)
    loss = fit_ordinal(head, chosen, level, job.seed)
    return head, {"held_out_nll": loss, "rated": float(known.sum())}, depth


def fit_gated_head(
    job: TrainJob[GatedDistill], examples: Sequence[Example], by_depth: Mapping[int, Features]
) -> tuple[GatedHead, dict[str, float], int]:
    """The head, figures of the fit, and the depth that was read."""
    options = job.options
    ((depth, features),) = by_depth.items()
    names, labels = labels_of(examples, ratings(job.judgements), options.objectives)
    gated = options.gate_layers if len(names) > 1 else 0
    if options.debias is not None:
        lengths = torch.tensor([float(len(b)) for e in examples for b in e.completions])
        names, labels = [*names, VERBOSITY], torch.cat([labels, shares(lengths)[:, None]], 1)
    torch.manual_seed(job.seed)
    head = GatedHead(
        HeadConfig(
            "gated",
            features.last.shape[1],
            tuple(names),
            VERBOSITY if options.debias is not None else None,
            options.quantile_count,
            options.lowest_share,
            gate_layers=gated,
            gate_width=options.gate_width,
            gate_temperature=options.gate_temperature,
        )
    )
    if options.quantile_count > 1:
        metrics = {"held_out_pinball": fit_quantiles(head, features, labels, job.seed)}
    else:
        errors = fit_objectives(head, features, labels, job.seed)
        metrics = {f"held_out_mse/{n}": e for n, e in zip(names, errors, strict=True)}
    if options.debias is not None:
        left = debias(head, features, options.debias)
        metrics |= {f"length_spearman/{n}": v for n, v in left.items()}
    # One objective needs no gate, and has a scale to learn all the same.
    steps = fit_gate(
        head, features, comparisons(examples), options.gate_steps, options.gate_batch, job.seed
    )
    for step, found in enumerate(steps):
        last = found
        if job.progress is not None:
            job.progress(TrainProgress(step + 1, options.gate_steps, found["loss"], 0.0, found))
    metrics |= {f"gate_{name}": value for name, value in last.items()}
    return head, {**metrics, "steps": options.gate_steps}, depth


def labels_of(
    examples: Sequence[Example], rated: Ratings, wanted: Sequence[str] | None
) -> tuple[list[str], Tensor]:
    """The names of K objectives and (A, K) the ratings of every answer, NaN where one is missing.

    Without judgements there is one, the pairs' own scores. Where none are `wanted` by name, an
    objective whose ratings are all the same is left out. Raises RlaifError where one that is wanted
    was not rated, or rated always the same, and where none is left.
    """
    ids = [name for e in examples for name in e.ids]
    if not rated:
        scores = [score for e in examples for score in e.scores]
        own = {name: s for name, s in zip(ids, scores, strict=True) if s is not None}
        rated = {OWN: own} if own else {}
    if not rated:
        raise RlaifError(
            "nobody rated these answers by themselves: the pairs have no scores and no judgements "
            "of single answers came with them. Give `--judgements`, or take a method that learns "
            "from pairs alone (bradley_terry, k_wise, linear)."
        )
    names = list(rated) if wanted is None else list(wanted)
    for name in names:
        if name not in rated:
            known = ", ".join(rated)
            raise RlaifError(f"nobody rated {name!r}{suggest(name, list(rated))}; known: {known}")
    labels = torch.tensor([[rated[n].get(i, float("nan")) for n in names] for i in ids])
    constant: dict[int, str] = {}
    for k, name in enumerate(names):
        values = labels[~torch.isnan(labels[:, k]), k]
        if len(torch.unique(values)) < 2:
            said = "has no rating of these answers" if not len(values) else "is always the same"
            constant[k] = f"objective {name!r} {said}: there is nothing to learn from it"
    if constant and (wanted is not None or len(constant) == len(names)):
        raise RlaifError(next(iter(constant.values())))
    kept = [k for k in range(len(names)) if k not in constant]
    return [names[k] for k in kept], labels[:, kept]


def binned(values: Tensor, most: int, name: str) -> tuple[tuple[float, ...], Tensor]:
    """The levels of some ratings, lowest first, and the level of each: the different values, or
    where there are more than `most` the means of that many bins of equal mass."""
    different = torch.unique(values)
    if len(different) <= most:
        return tuple(different.tolist()), torch.searchsorted(different, values)
    inner = torch.unique(torch.quantile(values, torch.linspace(0, 1, most + 1)[1:-1]))
    bins = torch.searchsorted(inner, values)
    used, level = torch.unique(bins, return_inverse=True)
    if len(used) < 2:
        raise RlaifError(f"objective {name!r}: nearly all ratings are the same")
    return tuple(float(values[bins == b].mean()) for b in used), level


def shares(values: Tensor) -> Tensor:
    """Each value's place among all, on (0, 1), ties sharing theirs: lengths without their tail."""
    _, place, counts = torch.unique(values, return_inverse=True, return_counts=True)
    middles: Tensor = counts.cumsum(0) - counts / 2
    return (middles / len(values))[place]
