"""Rows of a run as its manifest has them, written by hand: several stages, rounds and arms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

ARMS = ("first", "second", "third", "fourth")


class Rows:
    """Rows in the making; `add` returns the hash of the new one."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        kind: str,
        name: str,
        place: tuple[str, int, int],
        reads: dict[str, str] | None = None,
        models: dict[str, str] | None = None,
        makes: str = "",
        arms: Sequence[str] = ARMS,
        does: Sequence[str] = (),
        settings: Sequence[str] = (),
    ) -> str:
        """A step at `place` (stage, round in it, round of all) that reads hashes by name; `models`
        by role are hashes of the steps that make them, or names of given ones."""
        digest = f"h{len(self.rows)}"
        labels = {row["hash"]: row["models"].get("made", [""])[0] for row in self.rows}
        found = {
            role: [labels[m], f"train:{m}"] if m in labels else [m, f"weights:{m}"]
            for role, m in (models or {}).items()
        }
        if makes:
            found["made"] = [makes, f"train:{digest}"]
        self.rows.append(
            {
                "hash": digest,
                "kind": kind,
                "id": name,
                "stage": place[0],
                "number": place[1],
                "round": place[2],
                "seed": 1,
                "arms": list(arms),
                "inputs": reads or {},
                "models": found,
                "does": list(does),
                "settings": list(settings),
            }
        )
        return digest


def many_steps() -> list[dict[str, Any]]:
    """Two stages, three rounds in the second, four arms that part in it: 30 steps of the file."""
    made = Rows()
    place = ("supervised", 1, 1)
    loads = [
        made.add("load", f"demos{n}", place, does=[f"demonstrations from set-{n}.jsonl"])
        for n in range(5)
    ]
    sft = made.add(
        "train", "sft", place, {f"preferences/{n}": h for n, h in enumerate(loads)},
        {"start": "M0"}, "sft", does=["sft"],
    )  # fmt: skip
    policy = dict.fromkeys(ARMS, sft)
    for number in (1, 2, 3):
        place = ("align", number, number + 1)
        for arm in ARMS:
            policy[arm] = _round(made, place, arm, policy[arm], sft)
    return made.rows


def _round(made: Rows, place: tuple[str, int, int], arm: str, policy: str, sft: str) -> str:
    only = [arm]
    samples = {
        name: made.add(
            "sample", name, place, {}, {"by": policy}, arms=only, does=["4 answers to each of 500"]
        )
        for name in ("compared", "answers")
    }
    judges = [
        made.add(
            "judge", f"judge{n}", place, {"completions/0": samples["compared"]}, {"by": "labeller"},
            arms=only, does=["pairwise"],
        )
        for n in range(9)
    ]  # fmt: skip
    reads = {f"judgements/judge{n}": h for n, h in enumerate(judges)}
    reads |= {"completions/compared": samples["compared"]}
    pair = made.add("pair", "prefs", place, reads, arms=only, does=[f"in the manner of {arm}"])
    rm = made.add("distill", "rm", place, {"preferences/0": pair}, {"start": "M0"}, "rm", only)
    scored = made.add(
        "judge", "reward", place, {"completions/0": samples["answers"]}, {"by": rm}, arms=only
    )
    best = made.add(
        "filter", "best", place,
        {"completions/0": samples["answers"], "judgements/reward": scored}, arms=only,
    )  # fmt: skip
    tuned = made.add(
        "train", "tuned", place, {"completions/0": best}, {"start": sft}, f"tuned@{place[1]}", only
    )
    dpo = [
        made.add(
            "train", f"dpo{n}", place, {"preferences/0": pair},
            {"start": tuned, "reference": policy}, f"dpo{n}@{place[1]}", only,
        )
        for n in range(3)
    ]  # fmt: skip
    mean = made.add(
        "average", "mean", place, {}, {f"member/{n}": h for n, h in enumerate(dpo)},
        f"mean@{place[1]}", only,
    )  # fmt: skip
    made.add("distill", "idle", place, {"preferences/0": pair}, {"start": rm}, "idle", only)
    made.add("evaluate", "evaluate", place, {}, {"policy": mean, "initial": "M0"}, arms=only)
    return mean
