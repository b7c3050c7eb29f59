"""Auto-J's pairwise test set: human labels over scenarios."""

from __future__ import annotations

from rlaif.data.readers.base import coded_label, describe_pairs

FORMAT = describe_pairs(
    "Auto-J: prompt, `response 1`, `response 2`, label (0 first, 1 second, 2 tie), scenario",
    {
        "scenario": "subset",
        "label": "label",
        "prompt": "prompt",
        "response 1": "first",
        "response 2": "second",
    },
    coded_label({"0": 1.0, "1": 0.0, "2": 0.5}),
)
