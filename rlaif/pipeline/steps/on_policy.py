"""On-policy training: rollouts and their rewards are completions and judgements of this step, so
they are kept, can be looked at, and are not made twice after a kill."""

from __future__ import annotations

import random
import shutil
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from transformers import AutoConfig

from rlaif.config.models import REMOTE
from rlaif.config.on_policy import RolloutTrain
from rlaif.config.rewards import REFERENCE_ANSWERS
from rlaif.core.chat import CUT, TemplateRefusal, is_unicode
from rlaif.core.errors import RlaifError, StoreError
from rlaif.core.records import (
    Completion,
    Judgement,
    Prompt,
    content_hash,
    from_json,
    turns_of,
)
from rlaif.engines.base import GenerateRequest, GenerateResult, Model, Sampler, Sampling
from rlaif.engines.local.encoding import load_encoding
from rlaif.judges.base import Judge, roles_of
from rlaif.metrics.metrics import measure_unfamiliarity
from rlaif.pipeline.plan.base import group_prompts, round_prompts, widen_to_groups
from rlaif.pipeline.steps.asking import Kept, verdicts
from rlaif.pipeline.steps.context import StepContext
from rlaif.pipeline.steps.episodes import (
    Episode,
    Start,
    play_episodes,
    read_turns,
    turn_sampling,
)
from rlaif.pipeline.steps.valued import Judged, Valuation, Valued
from rlaif.train.dealing import open_policy
from rlaif.train.loop import TrainJob, TrainOutcome
from rlaif.train.model import TrainModel
from rlaif.train.policy_weights import PolicyWeights
from rlaif.train.redraws import Redraw
from rlaif.train.rollout import Answer, Group
from rlaif.train.run import find_trainer

Draw = tuple[int, ...]
"""A rollout's number (from 0; below 0 answers of the start policy), and after rollbacks how many
there have been: what tells its answers from all others."""


def train_on_rollouts(context: StepContext, job: TrainJob[RolloutTrain]) -> TrainOutcome:
    """Do a job whose answers are sampled from its policy, and judged, in this step's folder."""
    rollouts = Rollouts(context, job.start)
    job = replace(job, collect=rollouts.collect, spec=context.planned.models["start"].spec)
    outcome = find_trainer(job)(job)
    shutil.rmtree(rollouts.weights, ignore_errors=True)
    left_out = {"overlong_prompts": rollouts.overlong}
    if rollouts.refused:
        left_out["refused_prompts"] = rollouts.refused
    return replace(outcome, skipped=left_out)


class Rollouts:
    """Samples from the policy in training and asks the judges. What is stored is not made again."""

    def __init__(self, context: StepContext, folder: Path):
        self.context = context
        self.step: RolloutTrain = context.planned.step
        spec = context.planned.models["start"].spec
        config = AutoConfig.from_pretrained(folder)
        self.encoding = load_encoding(folder, spec, config, "policy")
        self.weights = context.folder.path / "work" / "rollout"
        self.refused = 0
        self.prompts = self._fitting_prompts()
        self.overlong = len(context.chosen_prompts()) - len(self.prompts) - self.refused
        self.terms = self.step.terms
        self.valuation = Valuation(
            self.terms,
            self.step.constraints,
            context.planned.options["turned_costs"],
            context.planned.judges,
            context.planned.options["principle_weights"],
            self.step.adds_terms,
        )
        self.fitted = [i for i, term in enumerate(self.terms) if term.fits_reference]
        # All at once: a rollout asks for its answers by id.
        rows = context.folder.read("completions")
        self.completions = {row["completion_id"]: from_json(Completion, row) for row in rows}
        self.turns = read_turns(context.folder)
        self.kept = Kept(context.folder)

    def collect(
        self,
        number: int,
        model: TrainModel | None,
        /,
        *,
        redraw: Redraw | None = None,
        rollbacks: int = 0,
        lead: int | None = None,
    ) -> list[Group]:
        """Rollout `number` (from 0) with the values of the reward's terms, or a redraw of it. Below
        0: answers that `normalise: reference` is fitted on, with the values of such terms alone.
        After so many rollbacks the same prompts are answered with other seeds. `lead` is a token
        that the policy sees before every prompt. Without a `model` all answers must be stored:
        raises StoreError where some are not."""
        draw = (number, rollbacks) if rollbacks else (number,)
        places = range(len(self.terms)) if number >= 0 else self.fitted
        if redraw is None:
            prompts = self._choose_prompts(number, places)
        else:
            prompts = self._choose_others(number, redraw)
        wanted = self.valuation.prompts_by_judge(prompts, places, costs=number >= 0)
        made = self._sample_and_judge(draw, prompts, model, wanted, lead)
        judged = {
            name: self._judge_answers(self.context.planned.judges[name], asked, made)
            for name, asked in wanted.items()
        }
        values = self.valuation.value(prompts, judged, places, made)
        watched = _watch_distances(judged)
        groups = []
        for prompt in prompts:
            answers = [self._make_answer(c, values, watched) for c in made[prompt.prompt_id]]
            kept = tuple(a for a in answers if a is not None)
            if kept:
                _, ids_of_prompt = self.encoding.render(prompt.messages)
                groups.append(Group(prompt.prompt_id, ids_of_prompt, kept, prompt.group, lead))
        if not groups and redraw is None:
            raise RlaifError(
                f"{_name_rollout(draw)}: no prompt could be answered; see the errors in "
                f"{self.context.folder.path / 'completions.jsonl'}"
            )
        return groups

    def _choose_prompts(self, number: int, places: Sequence[int]) -> list[Prompt]:
        """The prompts of a rollout. The window moves on with every one, so all prompts are used
        before one comes again."""
        every = self.prompts
        if number < 0:
            every = [p for p in every if any(self.terms[i].is_for(p) for i in places)]
            wanted = -(-REFERENCE_ANSWERS // self.step.n)
            count = min(len(every), widen_to_groups((p.group for p in every), wanted))
            place = -number
        else:
            count = self.step.batch_size * self.step.sync_every
            # Rounds go on with the window where the one before has stopped.
            place = max(0, self.context.planned.round - 1) * self.step.rollouts + number + 1
        ids = round_prompts(every, count, self.context.planned.seed, place)
        return [self.context.prompts[i] for i in ids]

    def _choose_others(self, number: int, redraw: Redraw) -> list[Prompt]:
        """Prompts that this rollout has not asked yet, in an order of each redraw's own."""
        planned = self.context.planned
        units = group_prompts(p for p in self.prompts if p.prompt_id not in redraw.asked)
        place = (planned.seed, planned.round, number, redraw.place)
        random.Random(content_hash("redraw", *place)).shuffle(units)
        ids: list[str] = []
        for unit in units:
            if len(ids) >= redraw.count:
                break
            ids += unit
        return [self.context.prompts[i] for i in sorted(ids)]

    def _fitting_prompts(self) -> list[Prompt]:
        """The prompts that leave room for an answer. Raises RlaifError when they are too few."""
        step, context = self.step, self.encoding.context
        # A quantile token stands before the prompt.
        room = min(step.max_length, context) - step.max_new_tokens - bool(step.quantile_tokens)
        every = self.context.chosen_prompts()
        fitting = []
        for prompt in every:
            length = self._prompt_length(prompt)
            if length is None:
                self.refused += 1
            elif length <= room:
                fitting.append(prompt)
            elif step.overlong == "refuse":
                raise RlaifError(
                    f"prompt {prompt.prompt_id} has {length} tokens; with max_new_tokens "
                    f"({step.max_new_tokens}) that is more than max_length ({step.max_length}) or "
                    f"the model's context ({context}). Shorten it, raise `max_length`, or set "
                    "`overlong: skip`."
                )
        # A group is sampled whole or not at all.
        whole = {prompt.prompt_id for prompt in fitting}
        parted = {p.group for p in every if p.prompt_id not in whole} - {None}
        kept = [prompt for prompt in fitting if prompt.group not in parted]
        count = step.batch_size * step.sync_every
        if count > len(kept):
            long = len(every) - len(kept) - self.refused
            why = (
                f"; {long} more are over {room} tokens, which is what `max_length` "
                f"({step.max_length}) or the model's context ({context}) leaves beside "
                f"`max_new_tokens` ({step.max_new_tokens})"
            )
            raise RlaifError(
                f"a rollout needs {count} prompts (batch_size x sync_every), and there are "
                f"{len(kept)}{why if long else ''}"
            )
        return kept

    def _prompt_length(self, prompt: Prompt) -> int | None:
        """Tokens of the prompt, None where the chat template refuses it and such are skipped."""
        if not is_unicode(m["content"] for m in prompt.messages):
            # The engine will refuse it, and say why in its record.
            return 0
        try:
            return len(self.encoding.render(prompt.messages)[1])
        except TemplateRefusal as error:
            if self.step.on_error == "fail":
                raise TemplateRefusal(f"prompt {prompt.prompt_id}: {error}") from None
            return None

    @contextmanager
    def _open_policy(self, draw: Draw, model: TrainModel, lead: int | None) -> Iterator[Sampler]:
        """The policy of this moment: the trained module itself, or an engine of its kind that has
        been given its weights."""
        # A hash would mean reading all weights: the step and the rollout name them as well.
        planned = self.context.planned
        digest = f"{planned.hash}@{'.'.join(map(str, draw))}"
        start = planned.models["start"]
        if start.spec.engine == "hf":
            encoding = replace(self.encoding, lead=lead)
            with open_policy(model, encoding, start.spec, digest) as engine:
                yield engine
            return
        weights = PolicyWeights(model, self.weights)
        yield self.context.engines.with_weights(start, weights, digest)

    def _sample_and_judge(
        self,
        draw: Draw,
        prompts: Sequence[Prompt],
        model: TrainModel | None,
        wanted: Mapping[str, Sequence[Prompt]],
        lead: int | None,
    ) -> dict[str, list[Completion]]:
        """The answers by prompt. Judges on a server are asked about those that are there, of the
        prompts that are `wanted` of them, while the next are sampled; what they said is then found
        by `_judge_answers`."""
        remote = [self.context.planned.judges[name] for name in wanted]
        remote = [judge for judge in remote if self._is_remote(judge)]
        made: dict[str, list[Completion]] = {}
        # One at a time: what they say goes into one log.
        beside, asked = ThreadPoolExecutor(max_workers=1), []
        try:
            for ready in self._sample_answers(draw, prompts, model, lead):
                made |= ready
                for judge in remote:
                    known = [p for p in wanted[judge.id] if p.prompt_id in ready]
                    asked.append(beside.submit(self._judge_answers, judge, known, ready))
                # A spent budget or a refused key ends the sampling too.
                for answered in asked:
                    if answered.done():
                        answered.result()
            for answered in asked:
                answered.result()
        finally:
            beside.shutdown(cancel_futures=True)
        return made

    def _is_remote(self, judge: Judge) -> bool:
        models = self._models_of_judge(judge).values()
        return bool(models) and all(model.spec.engine in REMOTE for model in models)

    def _sample_answers(
        self, draw: Draw, prompts: Sequence[Prompt], model: TrainModel | None, lead: int | None
    ) -> Iterator[dict[str, list[Completion]]]:
        """The answers by prompt, as soon as a prompt has all of its own."""
        requests: list[GenerateRequest] = []
        starts: list[Start] = []
        asked: dict[str, tuple[Prompt, int]] = {}
        waiting: dict[str, list[str]] = defaultdict(list)
        for prompt in prompts:
            for index in range(self.step.n):
                name = "k_" + content_hash(
                    self.context.planned.hash, *draw, prompt.prompt_id, index
                )
                asked[name] = (prompt, index)
                waiting[prompt.prompt_id].append(name)
                sampling = self._make_sampling(draw, prompt, index)
                if prompt.environment is None:
                    requests.append(GenerateRequest(name, prompt.messages, sampling))
                else:
                    turns = turn_sampling(sampling)
                    starts.append(Start(name, prompt, index, prompt.messages, turns))
        # Where all answers are stored no policy is opened.
        missing = asked.keys() - self.completions.keys()
        if missing and model is None:
            raise StoreError(
                f"{_name_rollout(draw)}: {len(missing)} of {len(asked)} answers are not in "
                f"{self.context.folder.path}, and the weights that sampled them are gone. Delete "
                "this folder to train again from the start."
            )
        if missing and model is not None:
            with self._open_policy(draw, model, lead) as engine:
                for batch in engine.generate(requests, self.completions.keys()):
                    self._store(
                        self._make_completion(r, *asked[r.request_id], draw, engine) for r in batch
                    )
                    yield self._take_complete(waiting)
                for over in self._play(starts, engine):
                    self._store(
                        e.as_turns(
                            self._make_completion(e.result, *asked[e.start.name], draw, engine)
                        )
                        for e in over
                        if e.start.name not in self.completions
                    )
                    yield self._take_complete(waiting)
        yield self._take_complete(waiting)

    def _play(self, starts: Sequence[Start], engine: Sampler) -> Iterator[list[Episode]]:
        """The episodes, as a turn ends them."""
        folder, longest = self.context.folder, self.step.max_length
        return play_episodes(starts, engine, self.encoding, longest, folder, self.turns)

    def _store(self, made: Iterable[Completion]) -> None:
        """Keep new answers, on disk too."""
        new = list(made)
        self.context.folder.append("completions", new)
        self.completions |= {c.completion_id: c for c in new}

    def _take_complete(self, waiting: dict[str, list[str]]) -> dict[str, list[Completion]]:
        """The prompts whose answers are all there, taken out of `waiting`."""
        ready = [p for p, names in waiting.items() if self.completions.keys() >= set(names)]
        return {p: [self.completions[name] for name in waiting.pop(p)] for p in ready}

    def _make_sampling(self, draw: Draw, prompt: Prompt, index: int) -> Sampling:
        """How an answer is sampled. The seed does not know the rewards, so that trainings which
        differ in these alone begin with the same answers."""
        planned = self.context.planned
        place = (planned.seed, planned.round, *draw, prompt.prompt_id, index)
        seed = int(content_hash("rollout", *place, length=8), 16)
        return Sampling(
            self.step.max_new_tokens,
            self.step.temperature,
            stop=tuple(self.step.stop),
            seed=seed & 0x7FFFFFFF,
        )

    def _make_completion(
        self, result: GenerateResult, prompt: Prompt, index: int, draw: Draw, engine: Sampler
    ) -> Completion:
        failed = result.finish_reason == "failed" or result.cut
        return Completion(
            completion_id=result.request_id,
            prompt_id=prompt.prompt_id,
            sample_index=index,
            messages=[] if failed else [{"role": "assistant", "content": result.text}],
            model=f"{self.context.planned.models['made'].label}, {self._name_origin(draw)}",
            weights_hash=engine.weights_hash,
            sampling=asdict(self._make_sampling(draw, prompt, index)),
            finish_reason="failed" if failed else result.finish_reason,
            token_ids=result.token_ids,
            logprobs=result.logprobs or None,
            system_prompt=self.encoding.chat.system_prompt,
            rendered_hash=result.rendered_hash,
            digest=content_hash(result.text),
            error=CUT if result.cut else result.error,
            reasoning=result.reasoning or None,
        )

    def _name_origin(self, draw: Draw) -> str:
        """The rollout and, where older weights sample it, how many they have learned from."""
        name, lag = _name_rollout(draw), self.step.lag
        learned = max(0, draw[0] - lag)
        return f"{name}, sampled after {learned}" if lag and draw[0] >= 0 else name

    def _judge_answers(
        self, judge: Judge, prompts: Sequence[Prompt], made: dict[str, list[Completion]]
    ) -> dict[str, list[Judgement]]:
        groups = [(p, made[p.prompt_id]) for p in prompts]
        found: dict[str, list[Judgement]] = defaultdict(list)
        for judgement in verdicts(
            judge,
            self._models_of_judge(judge),
            self.context.engines,
            groups,
            self.context.planned.seed,
            self.kept,
        ):
            found[judgement.prompt_id].append(judgement)
        return found

    def _models_of_judge(self, judge: Judge) -> dict[str, Model]:
        """The judge's models by role."""
        place, planned = f"judge/{judge.id}", self.context.planned.models
        named = {n.removeprefix(f"{place}/"): m for n, m in planned.items()}
        own = {role: named[role] for role in roles_of(judge) if role in named}
        # A judge of one model goes by its place alone.
        return own | ({"by": planned[place]} if place in planned else {})

    def _make_answer(
        self,
        completion: Completion,
        values: Mapping[str, Valued],
        watched: dict[str, dict[str, float]],
    ) -> Answer | None:
        if completion.finish_reason == "failed" or not completion.token_ids:
            return None
        known = values[completion.completion_id]
        return Answer(
            completion.token_ids,
            completion.logprobs or [],
            known.values,
            completion.finish_reason == "stop",
            watched.get(completion.completion_id, {}),
            known.idle,
            known.strata,
            known.costs,
            tuple(turns_of(completion)),
        )


def _name_rollout(draw: Draw) -> str:
    """A rollout as people count them."""
    number, *rollbacks = draw
    if number < 0:
        return f"start, draw {-number}"
    return f"rollout {number + 1}" + "".join(f", after rollback {n}" for n in rollbacks)


def _watch_distances(judged: Judged) -> dict[str, dict[str, float]]:
    """Per completion: each reward model's out-of-distribution distance."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for rows in (rows for by_prompt in judged.values() for rows in by_prompt.values()):
        for judgement in rows:
            found[judgement.subject] |= measure_unfamiliarity(judgement)
    return found
