"""Reading a run folder: as pandas frames, as a status, as a report's view, as exports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import yaml

from rlaif.config.arms import MAIN
from rlaif.config.on_policy import RolloutTrain
from rlaif.core.records import content_hash
from rlaif.core.store import Store
from rlaif.engines.remote.meter import Meter, meters_of
from rlaif.pipeline.constitutions import constitution_texts
from rlaif.pipeline.experiment_file import Experiment
from rlaif.pipeline.explain.run import explain_run
from rlaif.pipeline.labelling import arm_rows, labelling_rows
from rlaif.pipeline.manifest import read_manifest, read_rounds
from rlaif.pipeline.over_optimisation import proxy_rows
from rlaif.pipeline.prompt_file import PromptFile, read_rows
from rlaif.pipeline.reading import FileOfArm, load_arms
from rlaif.pipeline.revised import read_revisions
from rlaif.pipeline.rollouts import latest_rollout, marks, rollout_rows, unfinished_notes
from rlaif.pipeline.run_rows import (
    arena_rows,
    bench_rows,
    held_out_answers,
    list_lineage,
    make_round_row,
    pair_rows,
    report_step,
    settings_of,
)
from rlaif.pipeline.steps.choose import is_needless
from rlaif.pipeline.steps.evaluate import VALUES
from rlaif.report.arms import answer_sentences
from rlaif.report.gather import Sources, gather_shown
from rlaif.report.labels import curves_json, find_curves
from rlaif.report.merged import Page, make_page
from rlaif.report.rows import arms_of
from rlaif.report.view import ArmRow, RoundRow, RunView, Values

if TYPE_CHECKING:
    import pandas


SHOWN_APART = ("steps", "constitution", "constitutions")
"""Keys of the manifest that the report shows elsewhere."""


class Run:
    """A run folder, read on demand. The records are pandas frames, one row each."""

    def __init__(self, root: Path):
        self.root = root
        self.manifest = read_manifest(root)
        self.store = Store(root)

    def rows(self, kind: str) -> Iterator[dict[str, Any]]:
        """Every record of one kind with the step, seed, round and arms that it belongs to.

        `run_arms` are the names of the arms that share the record, separated by spaces.
        """
        for step in self.manifest["steps"]:
            extra = {"step": step["id"], "run_seed": step["seed"], "run_round": step["round"]}
            extra["run_arms"] = " ".join(step["arms"])
            extra["run_stage"] = step.get("stage", MAIN)
            folder = self.store.step(step["hash"])
            folder.check()
            for row in folder.rows(kind):
                yield row | extra

    def judgements_of(self, completions: Collection[str]) -> Iterator[dict[str, Any]]:
        """The judgements that are about some completions, or show them beside another."""

        def is_about(row: _About) -> bool:
            return row.subject in completions or any(name in completions for name in row.shown)

        for step in self.manifest["steps"]:
            yield from self.store.step(step["hash"]).rows_where("judgements", _About, is_about)

    def answers_to(self, calls: Collection[str]) -> Iterator[dict[str, Any]]:
        """The stored answers to some calls: what a verdict rests on. See `Judgement.rests_on`."""
        for step in self.manifest["steps"]:
            folder = self.store.step(step["hash"])
            yield from folder.rows_where("answers", _Called, lambda row: row.call_id in calls)

    def _load_frame(self, kind: str) -> pandas.DataFrame:
        import pandas

        return pandas.DataFrame(list(self.rows(kind)))

    @property
    def prompts(self) -> pandas.DataFrame:
        """The prompts, training and held out."""
        import pandas

        return pandas.DataFrame(list(self.prompt_rows()))

    def prompt_rows(self) -> Iterator[dict[str, Any]]:
        """The prompts as JSON, one held at a time."""
        for path in self._prompt_files():
            yield from read_rows(path)

    def prompt_records(self) -> PromptFile:
        """The prompts by id, as records that are read when they are asked for."""
        return PromptFile(self._prompt_files())

    def _prompt_files(self) -> list[Path]:
        """The file of the experiment's prompts, and those of questions about the run's answers."""
        made = [
            self.store.step(step["hash"])
            for step in self.manifest["steps"]
            if step["kind"] == "questions" and not any("pairs/" in name for name in step["inputs"])
        ]
        own = [folder.path / "questions.jsonl" for folder in made if folder.done() is not None]
        return [self.root / "prompts.jsonl", *own]

    @property
    def completions(self) -> pandas.DataFrame:
        """Every completion."""
        return self._load_frame("completions")

    @property
    def judgements(self) -> pandas.DataFrame:
        """Every judgement; `score` and `prob_first` are missing where there is no value."""
        return self._load_frame("judgements")

    @property
    def preferences(self) -> pandas.DataFrame:
        """Every preference."""
        return self._load_frame("preferences")

    @property
    def rounds(self) -> pandas.DataFrame:
        """One row per arm, seed, round and metric: mean, low, high, n."""
        import pandas

        return pandas.DataFrame(list(self.metric_rows()))

    def metric_rows(self) -> Iterator[dict[str, Any]]:
        """The rows of `rounds`."""
        for r in read_rounds(self.root):
            place = {"arm": r.arm, "seed": r.seed, "stage": r.stage, "round": r.round}
            about = {**place, "step": r.step, "model": r.policy_out}
            for name, interval in r.metrics["metrics"].items():
                yield {**about, "metric": name, **interval}

    def comparisons(self) -> list[dict[str, Any]]:
        """Per seed and round, the arms beside one another: {seed, round, arms, labels, deltas}.

        `labels` and `deltas` are by two arms, "FIRST/SECOND": how far their labels agree, and what
        the second's policy has over the first's, each figure with its interval.
        """
        return [
            {"seed": step["seed"], "round": step["round"], "point": self.point_of(step), **row}
            for step in self.manifest["steps"]
            if step["kind"] == "compare"
            for row in self.store.step(step["hash"]).read("comparison")
        ]

    def point_of(self, step: Mapping[str, Any]) -> int:
        """The place of an evaluation, or of a comparison of arms after it, among `points`."""
        name = step["id"].removesuffix(".arms") if step["kind"] == "compare" else step["id"]
        return self.points.get((step["round"], name), 0)

    @cached_property
    def points(self) -> dict[tuple[int, str], int]:
        """By round and id of an evaluation, its place on the page: 0 is M0. It is the round where
        no round has two."""
        steps = [step for step in self.manifest["steps"] if step["kind"] == "evaluate"]
        ids = list(dict.fromkeys(step["id"] for step in steps))
        places = sorted({(s["round"], ids.index(s["id"])) for s in steps if s["round"] > 0})
        alone = len({number for number, _ in places}) == len(places)
        return {
            (number, ids[place]): number if alone else point
            for point, (number, place) in enumerate(places, 1)
        }

    def values(self, arm: str, seed: int, point: int) -> Values:
        """By metric and prompt id, the values of one arm's evaluation at a point of the page; M0's
        are those of all evaluations. Empty where none are stored, as in runs of earlier
        versions."""
        found = [
            step
            for step in self.manifest["steps"]
            if step["kind"] == "evaluate"
            and (step["seed"], self.point_of(step)) == (seed, point)
            and (arm in step["arms"] or not step["arms"])
        ]
        values: dict[str, Mapping[str, float]] = {}
        for step in found:
            rows = self.store.step(step["hash"]).rows(VALUES)
            values |= {r["metric"]: r["values"] for r in rows if r["metric"] not in values}
        return values

    def round_rows(self) -> list[RoundRow]:
        """The evaluations as the page shows them: by `point` in place of the round, and with the
        name of the model. M0 is one row, with the figures of all evaluations."""
        found: dict[tuple[str, int, int], RoundRow] = {}
        for record in read_rounds(self.root):
            row = make_round_row(record)
            row["round"] = self.points.get((record.round, record.step), record.round)
            key = (row["arm"], row["seed"], row["round"])
            if key not in found:
                found[key] = row
            elif row["round"] == 0:
                first = found[key]["metrics"]
                first["metrics"] = {**row["metrics"]["metrics"], **first["metrics"]}
        shown = list(found.values())
        labels = {(row["round"], row["label"]) for row in shown}
        repeated = Counter(label for _, label in labels)
        for row in shown:
            if repeated[row["label"]] > 1:
                row["label"] = f"{row['label']} ({row['step']})"
        return shown

    @cached_property
    def _files(self) -> tuple[FileOfArm, dict[str, FileOfArm]]:
        return load_arms(self.root / "config.yaml")

    def experiment(self, arm: str | None = None) -> Experiment:
        """The experiment as it was run, or as one arm has it."""
        own, arms = self._files
        return own.experiment if arm is None else arms.get(arm, own).experiment

    def spec_of(self, step: Mapping[str, Any]) -> Any:
        """What the experiment says of a step of the manifest, in its arm and round; None for a step
        that another step brings along."""
        own, arms = self._files
        file = arms.get(step["arms"][0], own) if step["arms"] else own
        for place, stage in enumerate(file.experiment.all_stages):
            if stage.id == step.get("stage", MAIN):
                entries = file.at.get((place, step.get("number", step["round"])), stage.steps)
                return next((e.step for e in entries if e.step.id == step["id"]), None)
        return None

    def arms(self) -> dict[str, ArmRow]:
        """Who labelled each arm, of those that differ in their labels; empty without arms."""
        return arm_rows(self)

    def answers(self, page: Page) -> list[str]:
        """The answer of an experiment with arms, in sentences; see `rlaif.report.arms`."""
        return answer_sentences(page.comparisons, self.arms(), self.experiment().margin)

    def page(self) -> Page:
        """The run's rounds over all seeds, and what of them may be claimed."""
        experiment = self.experiment()
        rounds = self.round_rows()
        return make_page(
            rounds, self.comparisons(), self.values, experiment.primary, experiment.trained_judges
        )

    def status(self) -> dict[str, Any]:
        """Where the run stands, and per round every metric with its interval, and the alarms."""
        steps = [self._step_row(step) for step in self.manifest["steps"]]
        done = sum(step["state"] == "done" for step in steps)
        needed = sum(step["state"] != "stopped" for step in steps)
        page, labelling = self.page(), labelling_rows(self)
        rounds = [
            {
                "arm": r.arm,
                "seed": r.seed,
                "round": r.round,
                "stage": r.stage,
                "number": r.round if r.number is None else r.number,
                "step": r.step,
                "policy": r.policy_out,
                "against": r.against,
                "metrics": r.metrics["metrics"],
                "deltas": r.metrics["deltas"],
                "alarms": r.metrics["alarms"],
                "words": r.metrics["words"],
                "counts": r.counts,
            }
            for r in read_rounds(self.root)
        ]
        return {
            "name": self.manifest["name"],
            "state": "done" if done == needed else "unfinished",
            "steps_done": done,
            "steps_total": needed,
            "seconds": round(sum(step["seconds"] or 0.0 for step in steps), 1),
            "rounds": rounds,
            **_list_claims(page),
            "alarms": [
                {"arm": r["arm"], "seed": r["seed"], "round": r["round"], **alarm}
                for r in rounds
                for alarm in r["alarms"]
            ],
            "arms": self.comparisons(),
            "labels": labelling,
            "over_optimisation": proxy_rows(self),
            "training": self._latest_rollouts(),
            "curves": curves_json(find_curves(page.latest, labelling)),
            "remote": self.remote(),
            "steps": steps,
        }

    def _latest_rollouts(self) -> list[dict[str, Any]]:
        """Where each on-policy training that has begun and not ended stands."""
        found = []
        for step in self.manifest["steps"]:
            folder = self.store.step(step["hash"])
            if step["kind"] == "train" and folder.done() is None:
                spec = self.spec_of(step)
                latest = latest_rollout(folder.path)
                if isinstance(spec, RolloutTrain) and latest is not None:
                    place = {key: step[key] for key in ("seed", "arms", "round", "id")}
                    found.append({**place, "rollouts": spec.rollouts, **latest})
        return found

    def remote(self) -> dict[str, dict[str, Any]]:
        """`Meter.summary` of each model on a server, over all steps; empty if no server was
        asked."""
        total: dict[str, Meter] = {}
        for step in self.manifest["steps"]:
            folder = self.store.step(step["hash"])
            for model, meter in meters_of(folder.path, folder.done()).items():
                total.setdefault(model, Meter()).add(meter)
        return {model: meter.summary() for model, meter in sorted(total.items())}

    def _step_row(self, step: dict[str, Any]) -> dict[str, Any]:
        folder = self.store.step(step["hash"])
        marker = folder.done()
        found = {key: step[key] for key in ("seed", "arms", "round", "id", "kind", "hash")}
        found["state"] = "done" if marker else "missing"
        if found["state"] == "missing" and self.is_stopped(step):
            found["state"] = "stopped"
        found["seconds"] = marker["seconds"] if marker else None
        found["counts"] = marker["counts"] if marker else {}
        found["notes"] = marker.get("notes", []) if marker else unfinished_notes(folder.path)
        asked = list(meters_of(folder.path, marker).values())
        found["cost"] = sum(meter.cost for meter in asked) or None
        found["estimated_cost"] = sum(meter.estimated for meter in asked) or None
        found["errors"] = marker.get("errors", {}) if marker else {}
        found["kernels"] = marker.get("kernels", {}) if marker else {}
        return found

    def is_stopped(self, step: Mapping[str, Any]) -> bool:
        """Whether a step is of a round that was not needed, since its stage stopped rising."""
        return any(
            (step["seed"], step.get("stage", MAIN)) == (seed, stage)
            and step["number"] > last
            and is_needless(step["kind"], step["arms"], arms)
            for (seed, stage, arms), last in self._stopped_after.items()
        )

    @cached_property
    def _stopped_after(self) -> dict[tuple[int, str, tuple[str, ...]], int]:
        """The last round that ran of each stage with `until`, by seed, stage and arms."""
        steps = [step for step in self.manifest["steps"] if step["kind"] == "choose"]
        return {
            (step["seed"], step["stage"], tuple(step["arms"])): marker["stopped_after"]
            for step in steps
            if (marker := self.store.step(step["hash"]).done()) is not None
        }

    def records_key(self) -> str:
        """The hash of what a dataset is made from: the config, and which steps have made which
        records. A step that was made again with the same outcome changes nothing."""
        config = (self.root / "config.yaml").read_text(encoding="utf-8", errors="surrogatepass")
        folders = [self.store.step(step["hash"]) for step in self.manifest["steps"]]
        markers = [folder.done() or {} for folder in folders]
        made = [[marker.get(name) for name in ("hash", "counts", "digest")] for marker in markers]
        return content_hash(config, made)

    def key(self) -> str:
        """The hash of all that the run's page is made from: what was asked with which versions, and
        which steps are finished with which files, and when."""
        texts = [
            path.read_text(encoding="utf-8", errors="surrogatepass") if path.exists() else ""
            for name in ("config.yaml", "manifest.json", "rounds.jsonl")
            for path in [self.root / name]
        ]
        folders = [self.store.step(step["hash"]) for step in self.manifest["steps"]]
        return content_hash(texts, [folder.done() or marks(folder.path) for folder in folders])

    def view(self) -> RunView:
        """What the report shows. Records are read one by one; no more texts are held than it
        shows."""
        status = self.status()
        experiment = self.experiment()
        config = (self.root / "config.yaml").read_text(encoding="utf-8")
        loaded = yaml.safe_load(config)
        rounds = self.round_rows()
        sources = Sources(
            lambda: pair_rows(self.rows("preferences"), self.manifest),
            lambda: held_out_answers(self.manifest, self.store, self.point_of),
            self.judgements_of,
            self.answers_to,
            self.prompt_rows,
            lambda: read_revisions(self.store, self.manifest["steps"], self.prompt_rows),
        )
        return RunView(
            name=self.manifest["name"],
            description=str(loaded.get("description") or ""),
            state=status["state"],
            config_yaml=config,
            manifest={k: v for k, v in self.manifest.items() if k not in SHOWN_APART},
            lineage=list_lineage(self.manifest, self.store),
            remote=status["remote"],
            comparisons=self.comparisons(),
            rounds=rounds,
            steps=[report_step(step) for step in status["steps"]],
            rollouts=rollout_rows(self.store, self.manifest["steps"], loaded),
            proxies=status["over_optimisation"],
            benches=bench_rows(self.manifest, self.store),
            arenas=arena_rows(self.manifest, self.store),
            shown=gather_shown(sources, by_arm=len(arms_of(rounds)) > 1),
            constitutions=constitution_texts(self),
            key=self.key(),
            values=self.values,
            primary=experiment.primary,
            trained=experiment.trained_judges,
            arms=self.arms(),
            labelling=labelling_rows(self),
            margin=experiment.margin,
            staged=len(experiment.all_stages) > 1,
            settings=settings_of(experiment),
            flow=explain_run(self.manifest, experiment, self.store),
        )


def load_run(root: Path | str) -> Run:
    """The run in a folder. Raises ConfigError when it is no run folder."""
    return Run(Path(root))


class _About(msgspec.Struct):
    """The fields of a judgement that say which completions it is about."""

    subject: str
    shown: list[str]


class _Called(msgspec.Struct):
    """The field of an answer that says which call it answers."""

    call_id: str


def _list_claims(page: Page) -> dict[str, Any]:
    """What may be claimed, for programs: the primary metrics, and how each figure of each arm's
    last round stands."""
    return {
        "primary": page.primary,
        "claims": [
            {
                "arm": row["arm"],
                "metric": name,
                "standing": standing,
                "holm_p": page.claims.adjusted.get(f"{row['arm']}|{name}"),
            }
            for row in page.latest
            for name, standing in sorted(row["metrics"].get("standing", {}).items())
            if standing != "none" or name in page.primary
        ],
    }
