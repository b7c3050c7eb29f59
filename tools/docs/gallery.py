"""The gallery of the documentation: a page for each shipped experiment, with its picture, its
evidence and its file.

    python tools/docs/gallery.py FOLDER

draws the pictures, from the plans; an experiment whose data is the user's is drawn with made-up
pairs. The pages are made by the hook, which needs none of our packages.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / "experiments"
EVIDENCE = EXPERIMENTS / "EVIDENCE.md"
OF_DATA = {"ai_vs_human": 200}
"""Experiments that need a file of labelled pairs, by how many made-up ones stand for it."""
NOT_RUN = "Not run yet at this size."
INTRODUCTION = (
    "Every experiment that comes with the project: its picture, drawn from its plan, its file, and "
    "what came out when its small size was run ([all evidence](../evidence.md))."
)


def list_experiments() -> list[str]:
    """The shipped experiments."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def draw_pictures(folder: Path) -> None:
    """NAME.svg of each experiment, as `rlaif explain` draws it."""
    from rlaif.pipeline.explain.plan import explain_file
    from rlaif.report.flow_svg import draw_flow

    folder.mkdir(parents=True, exist_ok=True)
    for name in list_experiments():
        with TemporaryDirectory() as made:
            given = []
            if name in OF_DATA:
                path = Path(made) / "pairs.jsonl"
                path.write_text(_made_up_pairs(OF_DATA[name]), "utf-8")
                given = [f"data={path}"]
            flow = explain_file(EXPERIMENTS / f"{name}.yaml", given)
            picture = draw_flow(flow, standalone=True).replace(f"{made}/", "")
        (folder / f"{name}.svg").write_text(f"{picture}\n", "utf-8")


def _made_up_pairs(count: int) -> str:
    rows = (
        {"prompt": f"Question {number}?", "chosen": f"Yes, {number}.", "rejected": "No."}
        for number in range(count)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def read_evidence(page: str) -> dict[str, str]:
    """What EVIDENCE.md says of each system that was run."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {name: text.strip("\n") for name, text in found.items() if name in list_experiments()}


def read_header(text: str) -> str:
    """The comment at the head of an experiment as paragraphs; indented lines are commands."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# yaml-language-server"):
            lines.append(line[1:].removeprefix(" "))
    return "\n".join(lines).strip()


def make_pages() -> Iterator[tuple[str, str]]:
    """(page, Markdown) of the gallery."""
    evidence = read_evidence(EVIDENCE.read_text("utf-8"))
    rows = []
    for name in list_experiments():
        text = (EXPERIMENTS / f"{name}.yaml").read_text("utf-8")
        about = " ".join(str(yaml.safe_load(text).get("description", "")).split())
        said = evidence.get(name, NOT_RUN)
        parts = [
            f"# {name}",
            read_header(text),
            f"    rlaif run experiments/{name}.yaml",
            f'<img src="{name}.svg" alt="The steps of {name} and what goes from one to the next">',
            "## Evidence",
            said,
            "## The file",
            f"```yaml\n{text}```",
        ]
        yield f"gallery/{name}.md", "\n\n".join(parts) + "\n"
        first = next((line[2:] for line in said.splitlines() if line.startswith("- ")), NOT_RUN)
        rows.append(f"| [{name}]({name}.md) | {about} | {first} |")
    table = "\n".join(["| experiment | what it does | the first result |", "|---|---|---|", *rows])
    yield "gallery/index.md", f"# Gallery\n\n{INTRODUCTION}\n\n{table}\n"


if __name__ == "__main__":
    draw_pictures(Path(sys.argv[1]))
