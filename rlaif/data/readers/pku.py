"""PKU-SafeRLHF: two responses with one label for helpfulness and one for safety."""

from __future__ import annotations

from rlaif.data.readers.base import Format, coded_label, describe_pairs


def _describe_labels(column: str, meaning: str) -> Format:
    return describe_pairs(
        f"PKU-SafeRLHF, labels of {meaning}: prompt, response_0, response_1, {column}",
        {
            "prompt": "prompt",
            "response_0": "first",
            "response_1": "second",
            "prompt_source": "subset",
            "response_0_source": "first_author",
            "response_1_source": "second_author",
            column: "label",
        },
        coded_label({"0": 1.0, "1": 0.0}),
    )


FORMAT = _describe_labels("better_response_id", "helpfulness")
FORMAT_SAFER = _describe_labels("safer_response_id", "safety")
