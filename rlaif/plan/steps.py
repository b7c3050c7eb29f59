"""Planning the steps that make samples, judgements and pairs."""

from __future__ import annotations

from typing import Any

from rlaif.config import LoadStep, PairStep, SampleStep
from rlaif.config.steps import SamplingKeys
from rlaif.data.instructed import chosen_members
from rlaif.engines.base import Model
from rlaif.plan.base import Planned, round_prompts, step_hash
from rlaif.plan.walk import Walk
from rlaif.yamlio import suggest


def plan_sample(walk: Walk, index: int, step: SampleStep) -> None:
    """Samples of this round's window of training prompts; earlier ones are no longer current."""
    ids = round_prompts(walk.inputs.prompts.train, step.prompts, walk.seed, walk.round)
    seed = f"{walk.seed}/{walk.round}"
    walk.replace([*walk.completions.values(), *walk.judgements.values()], step.id)
    walk.replace(walk.preferences, step.id)
    if step.pool is None:
        model = walk.model(index, step.by, "by")
        walk.completions = {step.id: sampled(walk, step, model, ids, seed, step.id)}
    else:
        walk.completions = _pooled(walk, index, step, ids, seed)
    walk.judgements, walk.preferences = {}, []
    for name, planned in walk.completions.items():
        walk.by_id[name, walk.round] = planned


def _pooled(
    walk: Walk, index: int, step: SampleStep, ids: list[str], seed: str
) -> dict[str, Planned]:
    """One step for each member of the pool, of the prompts that it is drawn for."""
    members = step.members()
    drawn = {name: chosen_members(len(members), step.n, name, seed) for name in ids}
    found = {}
    for number, member in enumerate(members):
        model = walk.model(index, member.by, "pool")
        mine = [name for name in ids if number in drawn[name]]
        if mine:
            # The number: members may be alike, and then their answers must not be.
            name = f"{step.id}/{number}"
            found[name] = sampled(walk, member, model, mine, f"{seed}/{number}", name)
    return found


def sampled(
    walk: Walk, step: SampleStep, model: Model, ids: list[str], sampling_seed: str, name: str
) -> Planned:
    """`model`'s answers to the prompts `ids`."""
    keys = step.model_dump(mode="json", include={"n", *SamplingKeys.model_fields}) | step.told()
    # A principle is drawn by what a prompt's id does not cover.
    origins = [walk.origins(ids)] if step.principles is not None else []
    digest = step_hash("sample", keys, model.identity(), ids, sampling_seed, *origins)
    return walk.add(
        Planned(
            digest,
            "sample",
            name,
            walk.seed,
            walk.round,
            step,
            models={"by": model},
            prompts=tuple(ids),
            options={"sampling_seed": sampling_seed},
        )
    )


def plan_load(walk: Walk, index: int, step: LoadStep) -> None:
    """Records of a file, which stand where a step's own would."""
    if step.type in ("pairs", "completions"):
        walk.replace([*walk.completions.values(), *walk.judgements.values()], step.id)
    if step.type == "pairs":
        ids = round_prompts(walk.inputs.prompts.train, None, walk.seed, walk.round)
        walk.pairs[step.id] = walk.by_id[step.id, walk.round] = loaded_pairs(walk, step, ids)
        walk.completions = dict(walk.pairs)
        walk.judgements = {}
        return
    labels = _how_read(step)
    own: tuple[str, ...] = ()
    if step.prompts == "other":
        own = tuple(sorted(p.prompt_id for p in walk.inputs.prompts.every()))
    read = [part for part in (labels, own) if part]
    digest = step_hash("load", step.type, walk.inputs.loaded_hash(step), walk.round, *read)
    planned = walk.add(Planned(digest, "load", step.id, walk.seed, walk.round, step, prompts=own))
    walk.by_id[step.id, walk.round] = planned
    if step.type == "completions":
        walk.completions = {step.id: planned}
        walk.judgements = {}
    elif step.type == "judgements":
        walk.judgements[step.id] = planned
    else:
        walk.preferences.append(planned)


def _how_read(step: LoadStep) -> dict[str, Any]:
    """The keys that decide how the rows of a file are read, where they are set."""
    return step.model_dump(
        mode="json", include={"format", "columns", "on_error", "prompts"}, exclude_defaults=True
    )


def loaded_pairs(walk: Walk, step: LoadStep, ids: list[str], name: str | None = None) -> Planned:
    """The labelled pairs of the file whose prompts are among `ids`."""
    read = _how_read(step)
    digest = step_hash("load", "pairs", walk.inputs.loaded_hash(step), read, ids)
    return walk.add(
        Planned(digest, "load", name or step.id, walk.seed, walk.round, step, prompts=tuple(ids))
    )


def plan_judge(walk: Walk, index: int, step: Any) -> None:
    """One judge's verdicts on the latest completions, or on those that `uses` names."""
    sources = walk.used(index, step.uses, walk.completions, ("sample", "filter", "load"))
    if not sources:
        raise walk.inputs.fail(index, f"judge {step.id!r} has no completions: sample first")
    planned = judged(walk, step, sources, walk.asked(index, step), step.id)
    walk.judgements[step.id] = planned
    walk.by_id[step.id, walk.round] = planned


def judged(
    walk: Walk,
    step: Any,
    sources: list[Planned],
    models: dict[str, Model],
    name: str,
    limit: int | None = None,
) -> Planned:
    """The verdicts of `step`'s judge on `sources`, on the first `limit` prompts or on all."""
    judge = walk.inputs.judges[step.id]
    # Loaded completions bring their own prompts: then no limit is known here, and all count.
    known = all(s.prompts for s in sources)
    prompts = tuple(dict.fromkeys(p for s in sources for p in s.prompts))[:limit] if known else ()
    parts = [s.hash for s in sources]
    identities = {role: model.identity() for role, model in sorted(models.items())}
    # A judge of one model is known by that model alone.
    identity = identities.get("by") if len(identities) < 2 else identities
    facts = walk.facts(prompts if known else None)
    about = (identity, parts, prompts, facts, walk.seed)
    return walk.add(
        Planned(
            step_hash("judge", judge.judge_hash, *about),
            "judge",
            name,
            walk.seed,
            walk.round,
            step,
            inputs={f"completions/{i}": s.hash for i, s in enumerate(sources)},
            models=models,
            prompts=prompts,
            # The steps of other wordings of the judge: what they asked in the same words stands.
            options={"kin": step_hash("judge", step.id, *about)},
        )
    )


def plan_pair(walk: Walk, index: int, step: PairStep) -> None:
    """Preferences from this round's judgements, which replace those before them."""
    if any("@" in name for name in step.uses or ()):
        message = "uses: a pair step takes this round's judgements; name them without `@`"
        raise walk.inputs.fail(index, message, "uses")
    if step.strategy == "reference":
        _paired_with_references(walk, index, step)
        return
    used = walk.used(index, step.uses, walk.judgements, ("judge", "load"))
    if not used:
        raise walk.inputs.fail(index, "pair has no judgements: add a judge step before it")
    fault = pair_fault(step, {p.id for p in used})
    if fault is not None:
        key, message = fault
        raise walk.inputs.fail(index, f"{key}: {message}", key)
    _refuse_unseen(walk, index, used)
    inputs = {f"judgements/{p.id}": p.hash for p in used}
    inputs |= {f"completions/{k}": p.hash for k, p in walk.completions.items()}
    if step.standardise == "initial":
        first = {p.id: walk.by_id.get((p.id, 1)) for p in used}
        inputs |= {f"initial/{i}": p.hash for i, p in first.items() if p is not None}
    weights = walk.principle_weights()
    keys = step.keys()
    digest = step_hash("pair", keys, inputs, weights, walk.seed, walk.round)
    _pairs(walk, step, digest, inputs, used, {"principle_weights": weights})


def _refuse_unseen(walk: Walk, index: int, judges: list[Planned]) -> None:
    """Refuse judges of this round's answers that are not among those that pairs are made of."""
    planned = {step.hash: step for step in walk.done}
    seen = {step.hash for step in walk.completions.values()}
    left = [step for step in walk.completions.values() if step.kind == "filter"]
    while left:
        # What a filter refused was judged, and rightly makes no pair.
        below = [planned[h] for h in left.pop().inputs.values() if h in planned]
        left += [step for step in below if step.kind == "filter" and step.hash not in seen]
        seen |= {step.hash for step in below}
    for judge in judges:
        judged = [h for name, h in judge.inputs.items() if name.startswith("completions/")]
        steps = [planned[h] for h in judged if h not in seen]
        unseen = next((step for step in steps if step.round == walk.round), None)
        if unseen is not None:
            only = ", ".join(sorted(walk.completions))
            raise walk.inputs.fail(
                index,
                f"this step sees the answers of {only} alone, and judge {judge.id!r} judged those "
                f"of {unseen.id} too, which would make no pair. Sample all answers in one step "
                "(`pool` names several models), or leave the others out of the judge's `uses`",
            )


def pair_fault(step: PairStep, judges: set[str]) -> tuple[str, str] | None:
    """The key at fault and what is wrong with it, where the weights or the consistency judge do not
    fit the ids of the judges that are there; None where they do."""
    for key, name in [
        *(("weights", n) for n in step.weights or {}),
        ("consistency", step.consistency),
    ]:
        if name is not None and name not in judges:
            return key, f"{name!r} is no judge before this step{suggest(name, sorted(judges))}"
    if step.weights is not None and not any(step.weights.values()):
        return "weights", "every weight is 0; nothing counts"
    if step.consistency in (step.weights or {}) or judges == {step.consistency}:
        return "consistency", (
            f"{step.consistency!r} is compared with the judges that choose the "
            "pairs; give it no weight, and have at least one other judge"
        )
    return None


def _paired_with_references(walk: Walk, index: int, step: PairStep) -> None:
    if not walk.completions:
        raise walk.inputs.fail(index, "pair has no completions: sample first")
    if not any(p.reference for p in walk.inputs.prompts.train):
        raise walk.inputs.fail(
            index,
            "strategy: no training prompt has a `reference` answer; give the prompts file that "
            "column, or name it with `prompts.columns.reference`",
            "strategy",
        )
    used = list(walk.completions.values())
    inputs = {f"completions/{k}": p.hash for k, p in walk.completions.items()}
    keys = step.keys()
    ids = tuple(p for u in used for p in u.prompts)
    digest = step_hash("pair", keys, inputs, walk.facts(ids or None), walk.round)
    _pairs(walk, step, digest, inputs, used, {})


def _pairs(
    walk: Walk,
    step: PairStep,
    digest: str,
    inputs: dict[str, str],
    used: list[Planned],
    options: dict[str, Any],
) -> None:
    prompts = tuple(dict.fromkeys(p for u in used for p in u.prompts))
    place = (walk.seed, walk.round)
    planned = walk.add(Planned(digest, "pair", step.id, *place, step, inputs, {}, prompts, options))
    walk.replace(walk.preferences, step.id)
    walk.preferences = [planned]
    walk.by_id[step.id, walk.round] = planned
