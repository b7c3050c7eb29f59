"""Data sets of labelled pairs by their published columns: one column map each, read as any map."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rlaif.config.columns import LabelColumns
from rlaif.data.readers.base import Format, at
from rlaif.data.readers.columns import mapped
from rlaif.data.rows import Row

WINNER: Mapping[str, Any] = {
    "first": "model_a",
    "second": "model_b",
    "tie": ["tie", "tie (bothbad)", "both_bad", "bothbad"],
}
"""What the arenas call who won. An answer that is as bad as the other is a tie."""
TLDR = "SUBREDDIT: r/{info.subreddit}\n\nTITLE: {info.title}\n\nPOST: {info.post}\n\nTL;DR:"
"""The prompt of the TL;DR models (arXiv 2009.01325, appendix B.2)."""
NEWS = "{info.article}\n\nTL;DR:"


class Preset(NamedTuple):
    """A column map; the columns besides its own that a file is known by; and a test of a row."""

    about: str
    columns: Mapping[str, Any]
    needed: tuple[str, ...] = ()
    fits: Callable[[Row], bool] = lambda _row: True


PRESETS: dict[str, Preset] = {
    "helpsteer3": Preset(
        "HelpSteer3: context, response1, response2, overall_preference (-3 to 3)",
        {
            "prompt": "context",
            "first": "response1",
            "second": "response2",
            "strength": "overall_preference",
            "subset": "domain",
        },
        ("overall_preference",),
    ),
    "helpsteer2_preference": Preset(
        "HelpSteer2 preferences: prompt, response_1, response_2, preference_strength (-3 to 3)",
        {
            "prompt": "prompt",
            "first": "response_1",
            "second": "response_2",
            "strength": "preference_strength",
        },
        ("preference_strength",),
    ),
    "helpsteer2": Preset(
        "HelpSteer and HelpSteer2: rows of prompt, response, helpfulness (0 to 4)",
        {
            "prompt": "prompt",
            "ranked": {"group": "prompt", "text": "response", "score": "helpfulness"},
        },
        ("helpfulness", "correctness", "coherence"),
    ),
    "nectar": Preset(
        "Nectar: prompt (a transcript), answers with rank, answer, model",
        {
            "prompt": "prompt",
            "ranked": {"answers": "answers", "text": "answer", "rank": "rank", "author": "model"},
            "annotator_kind": "ai",
        },
        fits=lambda row: at(row, "answers.0.rank") is not None,
    ),
    "stack_exchange": Preset(
        "Stack Exchange preferences: question, answers with text, pm_score",
        {
            "prompt": "question",
            "ranked": {
                "answers": "answers",
                "text": "text",
                "score": "pm_score",
                "author": "author",
            },
        },
        fits=lambda row: at(row, "answers.0.pm_score") is not None,
    ),
    "stack_exchange_paired": Preset(
        "Stack Exchange paired: question, response_j (the better one), response_k",
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
    ),
    "shp": Preset(
        "SHP: history, human_ref_A, human_ref_B, labels (1: A), score_A, score_B",
        {
            "prompt": "history",
            "first": "human_ref_A",
            "second": "human_ref_B",
            "label": "labels",
            "labels": {"first": 1, "second": 0},
            "first_score": "score_A",
            "second_score": "score_B",
            "subset": "domain",
        },
    ),
    "orca_dpo": Preset(
        "Orca DPO pairs: system, question, chosen, rejected",
        {"prompt": "question", "system": "system", "chosen": "chosen", "rejected": "rejected"},
        ("system",),
    ),
    "distilabel_orca": Preset(
        "distilabel's Orca pairs: system, input, chosen, rejected",
        {
            "prompt": "input",
            "system": "system",
            "chosen": "chosen",
            "rejected": "rejected",
            "annotator": "labelling_model",
            "annotator_kind": "ai",
        },
        ("system",),
    ),
    "judgebench": Preset(
        "JudgeBench: question, response_A, response_B, label (A>B or B>A), source",
        {
            "prompt": "question",
            "first": "response_A",
            "second": "response_B",
            "label": "label",
            "labels": {"first": "A>B", "second": "B>A", "tie": ["A=B", "B=A"]},
            "subset": "source",
            "annotator_kind": "rule",
        },
        ("label",),
    ),
    "ppe": Preset(
        "PPE human preferences: prompt, response_1, response_2, winner, model_a, model_b",
        {
            "prompt": "prompt",
            "first": "response_1",
            "second": "response_2",
            "label": "winner",
            "labels": WINNER,
            "first_author": "model_a",
            "second_author": "model_b",
        },
        ("winner",),
    ),
    "webgpt": Preset(
        "WebGPT comparisons: question.full_text, answer_0, answer_1, score_0, score_1",
        {
            "prompt": "question.full_text",
            "first": "answer_0",
            "second": "answer_1",
            "first_score": "score_0",
            "second_score": "score_1",
            "subset": "question.dataset",
        },
        ("score_0", "score_1"),
        lambda row: at(row, "question.full_text") is not None,
    ),
    "tldr": Preset(
        "TL;DR comparisons: info with post, title, subreddit; summaries with text; choice",
        {
            "prompt": TLDR,
            "first": "summaries.0.text",
            "second": "summaries.1.text",
            "label": "choice",
            "labels": {"first": 0, "second": 1},
            "first_author": "summaries.0.policy",
            "second_author": "summaries.1.policy",
            "annotator": "worker",
        },
        ("choice",),
        lambda row: at(row, "info.post") is not None,
    ),
    "tldr_news": Preset(
        "TL;DR comparisons of news: info with article; summaries with text; choice",
        {
            "prompt": NEWS,
            "first": "summaries.0.text",
            "second": "summaries.1.text",
            "label": "choice",
            "labels": {"first": 0, "second": 1},
            "first_author": "summaries.0.policy",
            "second_author": "summaries.1.policy",
            "annotator": "worker",
        },
        ("choice",),
        lambda row: at(row, "info.article") is not None,
    ),
}


def formats() -> dict[str, Format]:
    """The presets as formats, by name."""
    return {
        name: mapped(
            LabelColumns.model_validate(preset.columns), preset.about, preset.needed, preset.fits
        )
        for name, preset in PRESETS.items()
    }
