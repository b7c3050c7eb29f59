"""The work of `judging.py` through distilabel 1.5.3, with the Python of an environment of its own.

    PYTHON benchmarks/judging_distilabel.py --url URL --calls N --concurrency N [--replicas N]

One task asks an `OpenAILLM` for the log-probs of one token. A batch is what is open at once, so
`concurrency` prompts, shared among `replicas` processes; the cache is on, as it is by default, and
the log is off, which costs a line a call. The last line printed is JSON: the seconds from the
moment at which every step is loaded to the finished dataset. So the start of distilabel's
processes is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

# Read when the package is imported, here and in the processes that it starts.
os.environ.setdefault("DISTILABEL_LOG_LEVEL", "WARNING")

from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import GeneratorStep, StepResources
from distilabel.steps.tasks import TextGeneration

WORDS = "The answer names a colour, a fruit and a reason, and says where it may be wrong. "


class Prompts(GeneratorStep):
    """The prompts of `judging.ask_bare`, and a note of when the first was asked for. The clock is
    the machine's, so another process's reading can be subtracted."""

    count: int
    began: str

    @property
    def outputs(self) -> list[str]:
        """One prompt a row."""
        return ["instruction"]

    def process(self, offset: int = 0) -> Any:
        """Batches of prompts from number `offset` on."""
        Path(self.began).write_text(str(time.monotonic()))
        for start in range(offset, self.count, self.batch_size):
            numbers = range(start, min(start + self.batch_size, self.count))
            texts = (f"Is this answer useful?\n{WORDS * 12}({i})" for i in numbers)
            yield [{"instruction": text} for text in texts], numbers.stop == self.count


def ask(url: str, count: int, concurrency: int, replicas: int, folder: Path) -> float:
    """Seconds of the whole work."""
    batch = concurrency // replicas
    settings = {
        "max_new_tokens": 1,
        "temperature": 1.0,
        "logprobs": True,
        "top_logprobs": 20,
    }
    with Pipeline(name="judging", cache_dir=folder / "cache") as pipeline:
        prompts = Prompts(count=count, began=str(folder / "began"), batch_size=concurrency)
        judged = TextGeneration(
            llm=OpenAILLM(model="m", base_url=url, api_key="none", generation_kwargs=settings),
            input_batch_size=batch,
            resources=StepResources(replicas=replicas),
        )
        prompts >> judged
    made = pipeline.run(use_cache=True)
    ended = time.monotonic()
    rows = made["default"]["train"]
    assert len(rows) == count, f"{len(rows)} of {count} judged"
    first = rows[0]["distilabel_metadata"]["statistics_text_generation_0"]
    assert first["output_tokens"], rows[0]
    return ended - float((folder / "began").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--url", required=True)
    parser.add_argument("--calls", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--replicas", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seconds = ask(
            options.url, options.calls, options.concurrency, options.replicas, Path(folder)
        )
    print(json.dumps({"seconds": seconds}))


if __name__ == "__main__":
    main()
