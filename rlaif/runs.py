"""Reading a run folder: as pandas frames, as a status, as a report's view, as exports."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rlaif.engines.meter import Meter, read_meters
from rlaif.manifest import read_manifest
from rlaif.records import Prompt, from_json, to_json
from rlaif.report.view import HeldOutRow, LineageRow, RoundRow, RunView, StepRow
from rlaif.rounds import read_rounds
from rlaif.store import Store

if TYPE_CHECKING:
    import pandas


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
            for row in self.store.step(step["hash"]).read(kind):
                yield row | extra

    def _frame(self, kind: str) -> pandas.DataFrame:
        import pandas

        return pandas.DataFrame(list(self.rows(kind)))

    @property
    def prompts(self) -> pandas.DataFrame:
        """The prompts, training and held out."""
        import pandas

        return pandas.DataFrame(_jsonl(self.root / "prompts.jsonl"))

    def prompt_records(self) -> dict[str, Prompt]:
        """The prompts by id, as records."""
        rows = _jsonl(self.root / "prompts.jsonl")
        return {row["prompt_id"]: from_json(Prompt, row) for row in rows}

    @property
    def completions(self) -> pandas.DataFrame:
        """Every completion."""
        return self._frame("completions")

    @property
    def judgements(self) -> pandas.DataFrame:
        """Every judgement; `score` and `prob_first` are missing where there is no value."""
        return self._frame("judgements")

    @property
    def preferences(self) -> pandas.DataFrame:
        """Every preference."""
        return self._frame("preferences")

    @property
    def rounds(self) -> pandas.DataFrame:
        """One row per arm, seed, round and metric: mean, low, high, n."""
        import pandas

        rows = [
            {"arm": r.arm, "seed": r.seed, "round": r.round, "metric": name, **interval}
            for r in read_rounds(self.root)
            for name, interval in r.metrics["metrics"].items()
        ]
        return pandas.DataFrame(rows)

    def comparisons(self) -> list[dict[str, Any]]:
        """Per seed and round, the arms beside one another: {seed, round, arms, labels, deltas}.

        `labels` and `deltas` are by two arms, "FIRST/SECOND": how far their labels agree, and what
        the second's policy has over the first's, each figure with its interval.
        """
        return [
            {"seed": step["seed"], "round": step["round"], **row}
            for step in self.manifest["steps"]
            if step["kind"] == "compare"
            for row in self.store.step(step["hash"]).read("comparison")
        ]

    def status(self) -> dict[str, Any]:
        """Where the run stands, and per round every metric with its interval, and the alarms."""
        steps = [self._step_row(step) for step in self.manifest["steps"]]
        done = sum(step["state"] == "done" for step in steps)
        rounds = [
            {
                "arm": r.arm,
                "seed": r.seed,
                "round": r.round,
                "policy": r.policy_out,
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
            "state": "done" if done == len(steps) else "unfinished",
            "steps_done": done,
            "steps_total": len(steps),
            "seconds": round(sum(step["seconds"] or 0.0 for step in steps), 1),
            "rounds": rounds,
            "alarms": [
                {"arm": r["arm"], "seed": r["seed"], "round": r["round"], **alarm}
                for r in rounds
                for alarm in r["alarms"]
            ],
            "arms": self.comparisons(),
            "remote": self.remote(),
            "steps": steps,
        }

    def remote(self) -> dict[str, dict[str, Any]]:
        """What each model on a server was asked in all steps and runs of them, as `Meter.summary`
        has it; empty where no server was asked."""
        total: dict[str, Meter] = {}
        for step in self.manifest["steps"]:
            for model, meter in read_meters(self.store.step(step["hash"]).path).items():
                total.setdefault(model, Meter()).add(meter)
        return {model: meter.summary() for model, meter in sorted(total.items())}

    def _step_row(self, step: dict[str, Any]) -> dict[str, Any]:
        marker = self.store.step(step["hash"]).done()
        found = {key: step[key] for key in ("seed", "arms", "round", "id", "kind", "hash")}
        found["state"] = "done" if marker else "missing"
        found["seconds"] = marker["seconds"] if marker else None
        found["counts"] = marker["counts"] if marker else {}
        found["notes"] = marker.get("notes", []) if marker else []
        asked = list(read_meters(self.store.step(step["hash"]).path).values())
        found["cost"] = sum(meter.cost for meter in asked) or None
        found["estimated_cost"] = sum(meter.estimated for meter in asked) or None
        found["errors"] = marker.get("errors", {}) if marker else {}
        return found

    def view(self) -> RunView:
        """What the report shows."""
        status = self.status()
        config = (self.root / "config.yaml").read_text(encoding="utf-8")
        judgements: dict[str, list[dict[str, Any]]] = {}
        for row in _unique(self.rows("judgements"), "judgement_id"):
            for shown in row["shown"] if len(row["shown"]) > 1 else [row["subject"]]:
                judgements.setdefault(shown, []).append(row)
        return RunView(
            name=self.manifest["name"],
            description=str(yaml.safe_load(config).get("description") or ""),
            state=status["state"],
            config_yaml=config,
            manifest={k: v for k, v in self.manifest.items() if k not in ("steps", "constitution")},
            lineage=self._lineage(),
            remote=status["remote"],
            comparisons=self.comparisons(),
            rounds=[_round_row(r) for r in read_rounds(self.root)],
            steps=[_report_step(step) for step in status["steps"]],
            prompts={p["prompt_id"]: p for p in _jsonl(self.root / "prompts.jsonl")},
            completions={c["completion_id"]: c for c in self.rows("completions")},
            judgements_by_subject=judgements,
            preferences=[
                row | {"seed": row["run_seed"], "arm": row["run_arms"]}
                for row in _unique(
                    self.rows("preferences"), "preference_id", "run_seed", "run_arms"
                )
                if row["chosen"] and row["rejected"]
            ],
            heldout=list(self._held_out()),
            constitution_yaml=_constitution_text(self.manifest),
        )

    def _held_out(self) -> Iterator[HeldOutRow]:
        for step in self.manifest["steps"]:
            if step["kind"] == "evaluate":
                digest = step["inputs"]["completions"]
                policy = step["models"]["policy"][0]
                # M0 and a policy that all arms share belong to none of them.
                shared = len(step["arms"]) == max(len(self.manifest["arms"]), 1)
                for row in self.store.step(digest).read("completions"):
                    yield {
                        "seed": step["seed"],
                        "round": step["round"],
                        "model": policy if shared else f"{policy} {' '.join(step['arms'])}",
                        "prompt_id": row["prompt_id"],
                        "completion_id": row["completion_id"],
                    }

    def _lineage(self) -> list[LineageRow]:
        constitution = self.manifest["constitution"]
        rows: list[LineageRow] = [
            {"kind": "model", "name": name, "hash": key, "detail": "given"}
            for name, key in self.manifest["models"].items()
        ]
        for step in self.manifest["steps"]:
            if step["kind"] in ("distill", "train"):
                marker = self.store.step(step["hash"]).done() or {}
                start = step["models"]["start"][0]
                made = step["models"]["made"][0]
                arms = f", arm {' '.join(step['arms'])}" if self.manifest["arms"] else ""
                name = f"{made} (seed {step['seed']}{arms})"
                digest = marker.get("weights_hash", "not trained yet")
                detail = f"trained from {start} by step {step['hash']}"
                rows.append({"kind": "model", "name": name, "hash": digest, "detail": detail})
        rows += [
            {
                "kind": "judge",
                "name": name,
                "hash": digest,
                "detail": "options, template, principles",
            }
            for name, digest in self.manifest["judges"].items()
        ]
        if constitution:
            detail = (
                f"version {constitution['version']}, {len(constitution['principles'])} principles"
            )
            digest = self.manifest["constitution_hash"]
            rows.append(
                {
                    "kind": "constitution",
                    "name": constitution["name"],
                    "hash": digest,
                    "detail": detail,
                }
            )
        prompts = self.manifest["prompts"]
        detail = f"{prompts['train']} for training, {prompts['heldout']} held out"
        rows.append(
            {"kind": "prompts", "name": "prompts", "hash": prompts["hash"], "detail": detail}
        )
        return rows


def load_run(root: Path | str) -> Run:
    """The run in a folder. Raises ConfigError when it is no run folder."""
    return Run(Path(root))


def trl_rows(run: Run) -> list[dict[str, Any]]:
    """The run's preferences in TRL's explicit-prompt conversational format; answers that stand
    alone in its unpaired one."""
    return [
        (_trl_pair(row) if row["chosen"] and row["rejected"] else _trl_single(row))
        | {"prompt_id": row["prompt_id"], "round": row["run_round"], "seed": row["run_seed"]}
        | ({"arms": row["run_arms"]} if run.manifest["arms"] else {})
        for row in run.rows("preferences")
    ]


def _trl_pair(row: dict[str, Any]) -> dict[str, Any]:
    keys = ("prompt", "chosen", "rejected", "margin", "score_chosen", "score_rejected")
    return {key: row[key] for key in keys if row[key] is not None}


def _trl_single(row: dict[str, Any]) -> dict[str, Any]:
    answer = row["chosen"] or row["rejected"]
    return {"prompt": row["prompt"], "completion": answer, "label": bool(row["chosen"])}


def _jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8", errors="surrogatepass")
    return [json.loads(line) for line in text.split("\n") if line]


def _unique(rows: Iterator[dict[str, Any]], *keys: str) -> Iterator[dict[str, Any]]:
    seen: set[tuple[Any, ...]] = set()
    for row in rows:
        name = tuple(row[key] for key in keys)
        if name not in seen:
            seen.add(name)
            yield row


def _round_row(record: Any) -> RoundRow:
    row = to_json(record)
    wanted = ("arm", "seed", "round", "policy_in", "policy_out", "counts", "metrics")
    return {key: row[key] for key in wanted}  # type: ignore[return-value]


def _report_step(step: dict[str, Any]) -> StepRow:
    return {
        "seed": step["seed"],
        "arms": step["arms"],
        "round": step["round"],
        "id": step["id"],
        "kind": step["kind"],
        "hash": step["hash"],
        "seconds": step["seconds"],
        "reused": False,
        "counts": step["counts"],
        "cost": step["cost"],
        "estimated_cost": step["estimated_cost"],
        "errors": step["errors"],
    }


def _constitution_text(manifest: dict[str, Any]) -> str:
    constitution = manifest["constitution"]
    if not constitution:
        return ""
    cleaned = {k: v for k, v in constitution.items() if k != "principles"}
    cleaned["principles"] = [
        {k: v for k, v in p.items() if v not in (None, [], {})} for p in constitution["principles"]
    ]
    return yaml.safe_dump(cleaned, sort_keys=False, allow_unicode=True, width=90)
