"""The on-policy loop: sample, score, learn, and again."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rlaif.config.on_policy import RolloutTrain
from rlaif.core.errors import RlaifError
from rlaif.kernels.batching import plan_epoch
from rlaif.kernels.device import release_freed_memory
from rlaif.train import checkpoint, parallel
from rlaif.train.checkpoint import export
from rlaif.train.coefficients import Coefficients
from rlaif.train.costs import (
    Multiplier,
    acting_places,
    add_costs,
    cost_metrics,
    step_multipliers,
    without_unknown_costs,
)
from rlaif.train.critic import Critic, add_critic, drop_critic
from rlaif.train.dealing import Compute, follow_first
from rlaif.train.gates import (
    STOPPED_FILE,
    Hit,
    describe_rollbacks,
    is_applied,
    last_good,
    look,
    raise_stopped,
    read_rollbacks,
    warnings_of,
    write_rollbacks,
)
from rlaif.train.loop import (
    Task,
    TrainJob,
    TrainOutcome,
    make_optimizer,
    memory_advice,
    optimiser_step,
    progress_of,
    summary_of,
    write_outcome,
)
from rlaif.train.methods.on_policy_distillation import OnPolicyDistillationTrain
from rlaif.train.model import TrainModel, kernels_in_use
from rlaif.train.pool import POOL, read_pool
from rlaif.train.quantile_tokens import (
    add_quantile_tokens,
    check_tokenizer,
    drop_quantile_tokens,
    quantile_id,
)
from rlaif.train.redraws import Drawn, draw_groups
from rlaif.train.rewards import (
    Moments,
    fit_reference,
    reward_metrics,
    summed,
    updated,
)
from rlaif.train.rollout import Group, Rollout, add_advantages, measure
from rlaif.train.rollout_tasks import given_task, make_task, pool_task
from rlaif.train.run import (
    count_processes,
    encode_data,
    load_copy,
    load_frozen,
    load_trainable,
    request_of,
)
from rlaif.train.tokenise import Example, refuse_other_tokens

log = logging.getLogger(__name__)


def train_on_policy(job: TrainJob[RolloutTrain]) -> TrainOutcome:
    """Train the job's start on answers that its `collect` samples from it, in this process or in
    several of which it is the first. The job's preferences and texts are mixed in."""
    processes = count_processes(job.options, job.device)
    # The ranks that follow the first come here too, with a world above 1.
    if processes > 1 and parallel.world() == 1:
        with parallel.joined(request_of(job), processes, job.work):
            return _train_on_policy(job)
    return _train_on_policy(job)


def _train_on_policy(job: TrainJob[RolloutTrain]) -> TrainOutcome:
    options, work = job.options, job.work
    work.mkdir(parents=True, exist_ok=True)
    if job.reference is not None and options.compares:
        if isinstance(options, OnPolicyDistillationTrain):
            refuse_other_tokens(job.start, job.reference, None, "teacher")
        else:
            refuse_other_tokens(job.start, job.reference)
    if options.quantile_tokens:
        check_tokenizer(job.start, options.quantile_tokens, options.keeps_quantile_tokens)
    torch.manual_seed(job.seed)
    ptx: list[Example] = []
    if options.mixes_data:
        if not (job.preferences or job.texts):
            key = "given" if isinstance(options, OnPolicyDistillationTrain) else "ptx_weight"
            raise RlaifError(
                f"{key} mixes in given answers or texts, and there are none: run {options.method} "
                f"in an experiment after a pair or load step, or set `{key}: 0`"
            )
        ptx = encode_data(job).examples
    critic = None
    with memory_advice(options):
        model = load_trainable(job)
        if options.critic_kind is not None:
            # A critic of its own starts from the policy's weights.
            own = load_trainable(job) if options.critic_kind == "separate" else None
            critic = add_critic(model, own, len(acting_places(options.constraints)))
        if model.sharded:
            model.copy = load_copy(job)
        if options.quantile_tokens:
            add_quantile_tokens(model, options.quantile_tokens, job.seed)
        frozen = _reference_model(job, model)
    outcome = run_on_policy(job, model, frozen, critic, ptx)
    # The critic's weights are among the masters, and a policy's checkpoint has no place for them.
    if critic is not None:
        drop_critic(model)
    tokens = drop_quantile_tokens(model) if options.quantile_tokens else None
    model.gather()
    if parallel.rank() == 0:
        # Before the export: a model in `out` without its outcome would be trained again.
        write_outcome(work, outcome)
        kept = tokens if options.keeps_quantile_tokens else None
        export(model, job.start, job.out, options.lora, tokens=kept)
        checkpoint.clear(work)
    # As long as split weights are there, they hold the connection to the other ranks.
    del model, frozen, critic
    release_freed_memory()
    return outcome


def _reference_model(job: TrainJob[RolloutTrain], model: TrainModel) -> TrainModel | None:
    """The policy itself, whose adapters are to be switched off, or a second model in memory."""
    if not job.options.compares:
        return None
    if job.reference is None and job.options.lora is not None:
        return model
    folder = job.reference or job.start
    log.info("the reference or teacher is a second model in memory: %s", folder)
    return load_frozen(job, folder)


def run_on_policy(
    job: TrainJob[RolloutTrain],
    model: TrainModel,
    reference: TrainModel | None = None,
    critic: Critic | None = None,
    ptx: Sequence[Example] = (),
) -> TrainOutcome:
    """Train `model` in place, continuing from the latest checkpoint in the job's `work`.

    `reference`, or the teacher, is `model` itself when its adapters are to be switched off for it.
    Raises RlaifError on a non-finite loss or a rollout without any reward, GateStopped where a gate
    stops.
    """
    # A rollback goes on as a training does that was killed and has an earlier checkpoint.
    while (outcome := _run_from_checkpoint(job, model, reference, critic, ptx)) is None:
        release_freed_memory()
    return outcome


def _run_from_checkpoint(
    job: TrainJob[RolloutTrain],
    model: TrainModel,
    reference: TrainModel | None,
    critic: Critic | None,
    ptx: Sequence[Example],
) -> TrainOutcome | None:
    """As `run_on_policy`; None where a gate rolled back."""
    options, work = job.options, job.work
    follow = follow_first(job, model)
    per_rollout, every = options.epochs * options.sync_every, options.checkpoint_every
    past = follow(lambda: _apply_rollbacks(work, per_rollout))
    optimizer = make_optimizer(model, options)
    torch.manual_seed(job.seed)
    state = checkpoint.restore(work, model.masters, optimizer, job.fingerprint, model.sharded) or {}
    first, moving = int(state.get("rollout", 0)), Coefficients.restore(state, options)
    if state:
        model.sync()
    rows = checkpoint.keep_rows(work, first * per_rollout, state or None)
    pool = read_pool(work, state or None) if options.quantile_tokens else []
    model.refresh_copy()
    fitted = follow(lambda: _fit_reference(job, model, first > 0))

    save = partial(_save_checkpoint, job, model, optimizer)
    if options.rollback_keys and not state:
        save(moving, 0)
    for number in range(first, options.rollouts):
        if options.lag:
            _sample_ahead(job, model, number, follow)
        rollout, after = None, moving
        if options.is_given(number):
            assert reference is not None
            task = given_task(options, ptx, reference, number)
        else:
            rollout, after = _sample_rollout(
                job, model, number, len(past), moving, fitted, reference, critic, follow
            )
            hit = look(options.gates, rollout.metrics, number + 1)
            if hit is not None and _is_rolled_back(options, hit, past, work):
                return None
            if hit is not None:
                # Nothing new is to be saved where no rollout was learned from since the last
                # checkpoint.
                if number > first:
                    save(moving, number)
                follow(partial(raise_stopped, work, hit, number))
            if options.quantile_tokens:
                task = pool_task(rollout, pool, model, options, reference, work)
            else:
                task = make_task(rollout, options, moving.beta, reference, critic, ptx, number)
        figures = {} if rollout is None else rollout.metrics
        groups = () if rollout is None else rollout.groups
        # A pool's answers are ranked one by one.
        together = {} if options.quantile_tokens else {g.prompt_id: g.together for g in groups}
        marks = _mark_rows(options, number, moving, past)
        for row in _learn_rollout(job, task, model, optimizer, number, together):
            rows.append(row | marks | figures)
            _report_row(job, rows[-1])
        answers = sum(len(group.answers) for group in groups)
        beta = options.next_beta(moving.beta, figures.get("kl_reference"), answers)
        moving = replace(after, beta=beta)
        if (number + 1) % every == 0 and number + 1 < options.rollouts:
            save(moving, number + 1)
    return _make_outcome(model, options, rows, past)


def _save_checkpoint(
    job: TrainJob[RolloutTrain],
    model: TrainModel,
    optimizer: torch.optim.Optimizer,
    moving: Coefficients,
    done: int,
) -> None:
    """A checkpoint of the first `done` rollouts, with the coefficients after them. With a lag the
    answers to the next are in the store."""
    options = job.options
    per_rollout = options.epochs * options.sync_every
    kept = {"fingerprint": job.fingerprint, "rollout": done, **moving.to_json(options)}
    if options.quantile_tokens:
        kept["pool"] = checkpoint.describe_log(job.work / POOL)
    good = last_good(done, options.checkpoint_every)
    older = good * per_rollout if options.rollback_keys else None
    step, masters = done * per_rollout, model.masters
    checkpoint.save(job.work, step, masters, optimizer, kept, model.sharded, older)


def _mark_rows(
    options: RolloutTrain, number: int, moving: Coefficients, past: Sequence[Hit]
) -> dict[str, float]:
    """What the rows of a rollout say besides its figures: which it is, and after what."""
    marks = {"rollout": number + 1, "beta": moving.beta}
    if past:
        marks["rollbacks"] = len(past)
    if options.lag:
        marks["lag"] = min(number, options.lag)
    return marks


def _report_row(job: TrainJob[RolloutTrain], row: dict[str, Any]) -> None:
    """Log a step, and tell whoever watches."""
    checkpoint.write_row(job.work, row)
    if job.progress is not None:
        options = job.options
        steps = options.rollouts * options.epochs * options.sync_every
        job.progress(progress_of(row, steps))


def _apply_rollbacks(work: Path, per_rollout: int) -> list[Hit]:
    """The rollbacks so far, once the checkpoints after the last one's are dropped."""
    work.mkdir(parents=True, exist_ok=True)
    (work / STOPPED_FILE).unlink(missing_ok=True)
    past = read_rollbacks(work)
    if not is_applied(work):
        checkpoint.drop_after(work, past[-1]["to"] * per_rollout)
        write_rollbacks(work, past, applied=True)
    return past


def _fit_reference(
    job: TrainJob[RolloutTrain], model: TrainModel, begun: bool
) -> dict[str, Moments]:
    """See `fit_reference`."""
    collect = job.collect
    assert collect is not None, "on-policy training samples its answers"
    return fit_reference(lambda draw: collect(draw, model), job.options.terms, job.work, begun)


def _sample_ahead(
    job: TrainJob[RolloutTrain], model: TrainModel, learned: int, follow: Compute[Any]
) -> None:
    """Store the answers of the rollouts that are for the weights after `learned` rollouts: these
    will be gone when the answers are learned from. Those that are there are not sampled again."""
    collect, due = job.collect, job.options.due_rollouts(learned)

    def sample() -> None:
        """Computed by the first rank."""
        assert collect is not None
        for number in due:
            collect(number, model)

    with memory_advice(job.options):
        model.refresh_copy()
        follow(sample)


def _sample_rollout(
    job: TrainJob[RolloutTrain],
    model: TrainModel,
    number: int,
    rollbacks: int,
    moving: Coefficients,
    fitted: Mapping[str, Moments],
    reference: TrainModel | None,
    critic: Critic | None,
    follow: Compute[Any],
) -> tuple[Rollout, Coefficients]:
    """Rollout `number` with its advantages, and the coefficients with what it moves. These are
    taken over once it is learned from: a stop before that saves those before it."""
    options = job.options
    costs = options.constraints
    with memory_advice(options):
        if not options.lag:
            model.refresh_copy()
        drawn = follow(lambda: _draw_groups(job, model, number, rollbacks, moving.running, fitted))
        running = updated(moving.running, without_unknown_costs(drawn.every, costs), options.terms)
        multipliers = step_multipliers(moving.multipliers, costs, drawn.groups)
        rollout = _reward_groups(
            model, drawn.groups, options, {**fitted, **running}, multipliers, reference, critic
        )
    _require_reward(rollout, number, job.work)
    add_advantages(rollout, options, moving.beta)
    if options.redraws:
        rollout.metrics |= {"prompts_drawn": float(len(drawn.every)), "flat_groups": drawn.flat}
    return rollout, replace(moving, running=running, multipliers=multipliers)


def _is_rolled_back(options: RolloutTrain, hit: Hit, past: Sequence[Hit], work: Path) -> bool:
    """Whether a limit that a rollout reached is answered by a rollback, which is then kept. Not
    where the start policy itself reaches it, nor beyond `max_rollbacks`."""
    first = hit["rollout"] == 1 and not past
    if hit["level"] != "rollback" or first or len(past) >= options.gates.max_rollbacks:
        return False
    hit = {**hit, "to": last_good(hit["rollout"] - 1, options.checkpoint_every, past)}
    rollbacks = [*past, hit]
    if parallel.rank() == 0:
        log.warning("%s", describe_rollbacks(rollbacks)[-1])
        write_rollbacks(work, rollbacks, applied=False)
    return True


def _draw_groups(
    job: TrainJob[RolloutTrain],
    model: TrainModel,
    number: int,
    rollbacks: int,
    running: Mapping[str, Moments],
    fitted: Mapping[str, Moments],
) -> Drawn:
    """The answers of a rollout, after each rollback with seeds of their own; with dynamic sampling,
    of prompts whose answers differ in reward."""
    collect, terms, most = job.collect, job.options.terms, job.options.redraws
    assert collect is not None
    draw = partial(collect, number, None if job.options.lag else model)
    if rollbacks:
        draw = partial(draw, rollbacks=rollbacks)
    # The first answers are the start's, which knows no token.
    if job.options.quantile_tokens and number > 0:
        draw = partial(draw, lead=quantile_id(model, 1))
    if not most:
        groups = list(draw())
        return Drawn(groups, groups, math.nan)
    return draw_groups(
        lambda redraw: draw(redraw=redraw),
        lambda groups: summed(groups, terms, {**fitted, **updated(running, groups, terms)}),
        most,
    )


def _reward_groups(
    model: TrainModel,
    groups: Sequence[Group],
    options: RolloutTrain,
    moments: Mapping[str, Moments],
    multipliers: Sequence[Multiplier],
    reference: TrainModel | None,
    critic: Critic | None,
) -> Rollout:
    """The rollout of these answers, with their rewards and costs."""
    costs = options.constraints
    rewards = summed(without_unknown_costs(groups, costs), options.terms, moments)
    # Whole distributions are not kept: they are looked at in the loss.
    whole = isinstance(options, OnPolicyDistillationTrain) and options.divergence == "jsd"
    whole |= options.quantile_tokens > 0 and options.gates.kl is None
    rollout = measure(model, groups, rewards, options, None if whole else reference, critic)
    add_costs(rollout, costs, multipliers)
    rollout.metrics |= reward_metrics(groups, options.terms, moments)
    rollout.metrics |= cost_metrics(costs, multipliers, groups)
    return rollout


def _require_reward(rollout: Rollout, number: int, work: Path) -> None:
    """Raise RlaifError where no answer has a reward: there is nothing to learn from."""
    if all(bool(r.isnan().all()) for r in rollout.rewards):
        raise RlaifError(
            f"rollout {number + 1}: no answer has a reward. Look at the judgements in {work.parent}"
        )


def _make_outcome(
    model: TrainModel,
    options: RolloutTrain,
    rows: Sequence[dict[str, Any]],
    rollbacks: Sequence[Hit],
) -> TrainOutcome:
    return TrainOutcome(
        steps=sum("loss" in row for row in rows),
        tokens=sum(row["tokens"] for row in rows),
        metrics=summary_of(rows),
        seconds=sum(row["timing"]["seconds"] for row in rows),
        compute_dtype=str(model.dtype).removeprefix("torch."),
        kernels=kernels_in_use(model),
        notes=[*describe_rollbacks(rollbacks), *warnings_of(options.gates, rows)],
    )


def _learn_rollout(
    job: TrainJob[RolloutTrain],
    task: Task,
    model: TrainModel,
    optimizer: torch.optim.Optimizer,
    number: int,
    together: Mapping[str, str | None],
) -> Iterator[dict[str, Any]]:
    """The optimiser steps on rollout `number`, a row for each. `together` has the group of each
    prompt.

    Every rollout has its own step numbers, also those that it has too few pairs for: so the
    schedule ends where it should, and a resumed run counts as an uninterrupted one.
    """
    options = job.options
    per_rollout = options.epochs * options.sync_every
    step, total = number * per_rollout, options.rollouts * per_rollout
    if not task.examples:
        # Its rewards are known, and there is nothing to learn from them.
        timing = {"seconds": 0.0, "tokens_per_second": 0.0}
        yield {"step": step + 1, "tokens": 0, "timing": timing}
    sizes = [model.size(example.branches) for example in task.examples]
    groups = [together.get(example.prompt_id) for example in task.examples]
    budget = model.token_budget(options)
    for epoch in range(options.epochs):
        # Every epoch of every rollout has an order of its own.
        order = number * options.epochs + epoch
        size = options.step_examples
        batches = plan_epoch(sizes, size, budget, job.seed, order, groups)
        # Of a pool an epoch is a part.
        for batch in batches[: options.sync_every]:
            yield optimiser_step(task, model, optimizer, batch, options, step, total, job.work)
            step += 1
