"""Preferences to token ids: boundaries, end tokens, sampled ids, long examples."""

from __future__ import annotations

from itertools import pairwise

import pytest
from msgspec.structs import replace

from rlaif.core.errors import EngineError, RlaifError
from rlaif.kernels.batching import fill_batches, padded_layout, plan_epoch
from rlaif.train.tokenise import encode, load_tokenizer


def _encode(preferences, tokenizer, token_ids=None, **changes):
    options = {"both": True, "max_length": 512, "overlong": "skip", "train_on_eos": True}
    return encode(preferences, tokenizer, token_ids or {}, **{**options, **changes})


def test_prompt_and_completion_spell_the_conversation(tokenizer, make_preferences):
    [preference] = make_preferences(1)
    [example] = _encode([preference], tokenizer).examples
    assert tokenizer.decode(example.prompt_ids) == (
        "<|im_start|>user\nSay <|im_end|>\n<|im_start|>assistant\n"
    )
    assert [tokenizer.decode(c) for c in example.completions] == ["yes 0<|im_end|>", "no<|im_end|>"]
    [bare] = _encode([preference], tokenizer, train_on_eos=False, both=False).examples
    assert [tokenizer.decode(c) for c in bare.completions] == ["yes 0"]


def test_sampled_ids_are_used_when_they_spell_the_answer(tokenizer, make_preferences):
    [preference] = make_preferences(1)
    end = tokenizer.eos_token_id
    sampled = tokenizer("yes 0", add_special_tokens=False)["input_ids"]
    unfinished = {"c0": sampled, "d0": [5, 6, 7]}
    result = _encode([preference], tokenizer, unfinished)
    # No end token was sampled, so none is learned; ids that spell another text are not used.
    assert result.examples[0].completions[0] == sampled
    assert tokenizer.decode(result.examples[0].completions[1]) == "no<|im_end|>"
    assert result.counts["retokenised"] == 1
    finished = {"c0": [*sampled, end]}
    kept = _encode([preference], tokenizer, finished).examples[0]
    cut = _encode([preference], tokenizer, finished, train_on_eos=False).examples[0]
    assert kept.completions[0] == [*sampled, end]
    assert cut.completions[0] == sampled


def test_an_answer_that_was_cut_is_not_taught_an_end(tokenizer, make_preferences):
    [preference] = make_preferences(1)
    cut = _encode([preference], tokenizer, unfinished=frozenset({"c0"})).examples[0]
    assert [tokenizer.decode(c) for c in cut.completions] == ["yes 0", "no<|im_end|>"]
    # Ids that do not spell the answer are made anew, and that gives it no end either.
    odd = _encode([preference], tokenizer, {"c0": [5, 6]}, unfinished=frozenset({"c0"}))
    assert odd.counts["retokenised"] == 1
    assert odd.examples[0].completions == cut.completions


def test_trimming_template(tokenizer, make_preferences):
    [preference] = make_preferences(1)
    trimmed = replace(preference, chosen=[{"role": "assistant", "content": "  yes  "}])
    before = tokenizer.chat_template
    tokenizer.chat_template = before.replace("m['content']", "m['content'] | trim")
    try:
        [example] = _encode([trimmed], tokenizer).examples
    finally:
        tokenizer.chat_template = before
    assert tokenizer.decode(example.completions[0]) == "yes<|im_end|>"


def test_overlong(tokenizer, make_preferences):
    preferences = make_preferences(2)
    whole = _encode(preferences, tokenizer).examples
    limit = whole[1].length - 1
    assert whole[0].length <= limit
    skipped = _encode(preferences, tokenizer, max_length=limit)
    assert [e.prompt_id for e in skipped.examples] == ["p0"]
    assert skipped.counts["overlong"] == 1
    with pytest.raises(RlaifError, match=r"p1.*max_length"):
        _encode(preferences, tokenizer, max_length=limit, overlong="refuse")
    cut = _encode(preferences, tokenizer, max_length=limit, overlong="truncate_left")
    assert cut.counts["truncated"] == 1
    assert cut.examples[1].prompt_ids == whole[1].prompt_ids[1:]
    assert cut.examples[1].completions == whole[1].completions
    hopeless = _encode(preferences, tokenizer, max_length=3, overlong="truncate_left")
    assert hopeless.examples == []
    assert hopeless.counts["overlong"] == 2


def test_empty_answers_are_counted(tokenizer, make_preferences):
    [preference] = make_preferences(1)
    silent = replace(preference, rejected=[{"role": "assistant", "content": ""}])
    assert _encode([silent], tokenizer, train_on_eos=False).counts["empty"] == 1
    assert len(_encode([silent], tokenizer).examples[0].completions[1]) == 1


def test_templates_that_cannot_work(tokenizer, make_preferences, tmp_path):
    before = tokenizer.chat_template
    try:
        tokenizer.chat_template = before.replace("assistant\n{% endif", "robot\n{% endif")
        with pytest.raises(EngineError, match="generation prompt"):
            _encode(make_preferences(1), tokenizer)
        tokenizer.chat_template = before.replace("m['content']", "m['content'] | upper")
        with pytest.raises(EngineError, match="changes the text"):
            _encode(make_preferences(1), tokenizer)
        tokenizer.chat_template = None
        tokenizer.save_pretrained(tmp_path)
        with pytest.raises(EngineError, match="chat template"):
            load_tokenizer(tmp_path)
    finally:
        tokenizer.chat_template = before


def test_padded_layout_points_at_the_tokens_before_the_targets():
    layout = padded_layout([([1, 2], [[3, 4]]), ([5, 6, 7], [[8]])])
    assert layout.input_ids.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert layout.predict.tolist() == [1, 2, 6]
    assert layout.targets.tolist() == [3, 4, 8]
    assert layout.lengths == [2, 1]
    assert layout.tokens == 8
    with pytest.raises(ValueError, match="prompt"):
        padded_layout([([], [[1]])])


def test_plan_covers_every_example_once_in_an_order_of_seed_and_epoch():
    sizes = [(7 * i) % 11 for i in range(23)]
    plan = plan_epoch(sizes, 8, 20, seed=1, epoch=0)
    flat = [i for batch in plan for micro in batch for i in micro]
    assert sorted(flat) == list(range(23))
    assert [sum(map(len, batch)) for batch in plan] == [8, 8, 7]
    assert plan == plan_epoch(sizes, 8, 20, seed=1, epoch=0)
    assert plan != plan_epoch(sizes, 8, 20, seed=1, epoch=1)
    assert plan != plan_epoch(sizes, 8, 20, seed=2, epoch=0)
    for batch in plan:
        ordered = [sizes[i] for micro in batch for i in micro]
        assert ordered == sorted(ordered, reverse=True)
        for micro, following in pairwise(batch):
            assert sum(sizes[i] for i in micro) <= 20
            assert sum(sizes[i] for i in [*micro, following[0]]) > 20


def test_an_example_over_the_budget_is_alone():
    assert fill_batches([3, 1, 2], [50, 30, 5], 20) == [[3], [1], [2]]


def test_a_batch_parts_no_group() -> None:
    groups = [None, "a", "b", "a", "b", None, "c", "c"]
    for epoch in range(5):
        batches = plan_epoch([3] * 8, 4, 6, 1, epoch, groups)
        flat = [[i for part in batch for i in part] for batch in batches]
        assert sorted(i for own in flat for i in own) == list(range(8))
        assert all(len(own) <= 4 for own in flat)
        assert all(len(part) <= 2 for batch in batches for part in batch)
        for name in "abc":
            members = {i for i, g in enumerate(groups) if g == name}
            assert sum(bool(members & set(own)) for own in flat) == 1
    assert plan_epoch([3] * 8, 4, 6, 1, 0, [None] * 8) == plan_epoch([3] * 8, 4, 6, 1, 0)
