"""Writes `prompts/events/planted.jsonl`: clicks whose position bias is known, and says what
`rlaif` makes of it.

    python benchmarks/engagement.py              # what raw and weighted clicks prefer
    python benchmarks/engagement.py --write      # writes the file anew

Each prompt of `prompts/seeds/answered.jsonl` has two answers: the written one, and the same one
wrapped in stock phrases. A ranker puts the wordy one first, but for one impression in ten, whose
order is drawn. Whoever looks at an answer clicks on the plain one with probability 0.8 and on the
wordy one with 0.25; the first place is always looked at, the second one time in five.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from rlaif.config.engagement import EngagementSpec
from rlaif.core.records import content_hash
from rlaif.data.events import read_events
from rlaif.preferences.engagement import weigh_engagement

ROOT = Path(__file__).parents[1]
FILE = ROOT / "prompts" / "events" / "planted.jsonl"
WRITTEN = ROOT / "prompts" / "seeds" / "answered.jsonl"
CLICKED = {"plain": 0.8, "wordy": 0.25}
EXAMINED = (1.0, 0.2)
DRAWN = 0.1
TIMES = 12
BEFORE = "That is a great question, and I would be more than happy to help you with it today!"
AFTER = (
    "I hope this helps! As always, it is important to note that this is only a general answer. "
    "Please do not hesitate to let me know if you have any other questions at all."
)


def draw(*parts: object) -> float:
    """A number on [0, 1), the same for the same parts."""
    return int(content_hash("planted clicks", *parts, length=13), 16) / 16**13


def make_rows() -> list[dict[str, Any]]:
    """The whole log, a row for each shown answer."""
    rows = []
    for number, line in enumerate(WRITTEN.read_text(encoding="utf-8").splitlines()):
        given = json.loads(line)
        prompt = given.get("prompt") or given["messages"][-1]["content"]
        texts = {"plain": given["reference"], "wordy": f"{BEFORE} {given['reference']} {AFTER}"}
        for time in range(TIMES):
            name = f"{number}.{time}"
            lot = draw("lot", name) < DRAWN
            order = ["plain", "wordy"] if lot and draw("side", name) < 0.5 else ["wordy", "plain"]
            for position, answer in enumerate(order, start=1):
                looked = draw("look", name, position) < EXAMINED[position - 1]
                rows.append(
                    {
                        "impression": name,
                        "prompt": prompt,
                        "response": texts[answer],
                        "position": position,
                        "random": lot,
                        "clicked": looked and draw("click", name, position) < CLICKED[answer],
                    }
                )
    return rows


def share_of_plain(examination: Any) -> tuple[float, dict[int, float], float]:
    """The share of the weight that prefers the plain answer, the examination by position, and the
    effective number of clicks."""
    spec = EngagementSpec(signal="clicked", examination=examination)
    made = weigh_engagement(read_events(FILE, False).impressions, spec)
    sides = [(p.chosen.answer.text, p.weight) for p in made.preferences if p.chosen]
    plain = sum(weight for text, weight in sides if not text.startswith(BEFORE))
    return plain / sum(weight for _, weight in sides), made.theta, made.effective


def main() -> None:
    """Write the file where asked, and print a row for each way of weighing it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="write the file anew")
    if parser.parse_args().write:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in make_rows())
        FILE.write_text("".join(lines), encoding="utf-8")
    print(f"planted: {CLICKED['plain'] / sum(CLICKED.values()):.3f} prefer the plain answer")
    for name, examination in (
        ("raw clicks", [1.0]),
        ("planted examination", list(EXAMINED)),
        ("random places", "random"),
        ("position model", "position_model"),
    ):
        share, theta, effective = share_of_plain(examination)
        places = ", ".join(f"{value:.3f}" for value in theta.values())
        print(f"{name:20} {share:.3f}  examination {places}  effective clicks {effective:.1f}")


if __name__ == "__main__":
    main()
