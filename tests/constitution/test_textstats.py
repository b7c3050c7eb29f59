"""Words, sentences, repetition, endings, phrases and patterns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlaif.constitution import textstats as ts
from rlaif.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("... --- !", []),
        (
            "Don’t pay 1,000.50 for well-known foo_bar",
            ["Don’t", "pay", "1,000.50", "for", "well-known", "foo_bar"],
        ),
        ("end.Start", ["end", "Start"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("cafe\u0301 naïve", ["cafe\u0301", "naïve"]),
        ("水が沸く", ["水", "が", "沸", "く"]),
        ("привет, мир", ["привет", "мир"]),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert ts.words(text) == expected


@given(st.text(st.characters(max_codepoint=0x205F), max_size=30) | st.text("aB1é½.,'’_- \xad"))
def test_words_are_the_same_beside_another_script(text: str) -> None:
    # One Chinese character has the pattern for all scripts used in place of the quick one.
    assert ts.words(f"{text} 水") == [*ts.words(text), "水"]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("No end", 1),
        ("One. Two! Three?", 3),
        ("Dr. Smith came at 5 p.m. on Monday. He left.", 2),
        ("Pi is 3.14 or so.", 1),
        ('He said "stop." Then he left.', 2),
        ("1. Boil the eggs.\n2. Cool them.", 2),
        ("水在沸腾。是的！好", 3),
        ("...\n---\nOne.", 1),
        ("A line\nanother line", 2),
    ],
)
def test_sentences(text: str, count: int) -> None:
    assert len(ts.sentences(text)) == count


def test_distinct_and_repetition() -> None:
    assert ts.distinct_n("a b a b", 2) == pytest.approx(2 / 3)
    assert ts.repetition("a b a b", 2) == pytest.approx(1 / 3)
    assert ts.distinct_n("one", 2) is None
    assert ts.repetition("one", 2) == 0.0
    assert ts.repetition("The cat the CAT", 1) == 0.5
    with pytest.raises(ValueError, match="at least 1"):
        ts.distinct_n("a b", 0)


@given(st.text(max_size=200), st.integers(1, 4))
def test_distinct_and_repetition_are_complements(text: str, n: int) -> None:
    distinct, repeated = ts.distinct_n(text, n), ts.repetition(text, n)
    assert 0.0 <= repeated < 1.0
    if distinct is not None:
        assert 0.0 < distinct <= 1.0
        assert distinct + repeated == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot assist you with this request.", True),
        ("I’m not able to provide medical advice.", True),
        ("I must respectfully decline.", True),
        ("As an AI language model, I don't have access to that.", True),
        ("I am unable to answer this.", True),
        ("I can't believe how easy it is to help: use vinegar.", False),
        ("You can't write that in one line of Python.", False),
        ("Sorry about your loss. Call her today.", False),
        ("Use warm water.", False),
        ("", False),
        ("Boil it. " * 60 + "I cannot help with that.", False),
    ],
)
def test_is_refusal(text: str, refuses: bool) -> None:
    assert ts.is_refusal(text) is refuses


def test_stock_phrases() -> None:
    text = "As an AI language model, yes. I hope  this\nhelps! Let me know if you have any doubt."
    assert ts.stock_phrases(text) == [
        "as an ai language model",
        "i hope this helps",
        "let me know if you have any",
    ]
    # In the order of the table, which is neither that of the text nor of the alphabet.
    assert ts.stock_phrases("Glad to help. Let me know if you need more.") == [
        "let me know if you need",
        "glad to help",
    ]
    assert ts.stock_phrases("Boil the eggs for nine minutes.") == []
    assert len(set(ts.STOCK_PHRASES)) == len(ts.STOCK_PHRASES)
    assert all(phrase == phrase.casefold() for phrase in ts.STOCK_PHRASES)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("- a\n- b", 2),
        ("- a", 1),
        ("1. a\n2) b\n (3) c", 3),
        ("a) x\n\tb) y", 2),
        ("Well - this is no list", 0),
        ("-5 degrees\n3.5 km", 0),
    ],
)
def test_list_items(text: str, items: int) -> None:
    assert len(ts.list_items(text)) == items
    assert ts.has_list(text) is (items >= 2)


def test_headings_outside_code() -> None:
    assert ts.headings("# A\n```\n# comment\n```\n## B\n#no") == ["# A", "## B"]


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("It is done.", True),
        ("It is done", False),
        ("Is it done?)", True),
        ("He said “yes.”", True),
        ("**Done!**", True),
        ("Great! 👍🏽", True),
        ("Great! ❤\ufe0f", True),
        ("完成了。", True),
        ("هل انتهى؟", True),
        ("यह हो गया।", True),
        ("```py\nprint(1)\n```", True),
        ("```py\nprint(1).", False),
        ('{"a": 1}', True),
        ("| a | b |\n|---|---|\n| 1 | 2 |", True),
        ("Buy:\n- eggs\n- milk", True),
        ("Buy:\n- eggs.\n- mil", False),
        ("Buy:\n- eggs,\n- milk,", False),
        ("[1] says that it is", False),
        ("It is in the list [1]", False),
        ("| a | b |\n|", False),
        ("1. Boil.\n2.", False),
        ("The things are:", False),
        ("One, two,", False),
        ("...", False),
        ("", False),
        ("  \n", False),
    ],
)
def test_is_finished(text: str, finished: bool) -> None:
    assert ts.is_finished(text) is finished


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t",
        "\u200b\u200d\ufeff",
        "...",
        "```",
        "[]",
        "\x00",
        "«»",
        "\u3164",
        "\u2800",
        "\u0301",
    ],
)
def test_blank(text: str) -> None:
    assert ts.is_blank(text)


@pytest.mark.parametrize("text", ["a", "7", "👍", "水", " x "])
def test_not_blank(text: str) -> None:
    assert not ts.is_blank(text)


def test_key_terms() -> None:
    assert ts.key_terms("How do I boil eggs?") == {"boil", "egg"}
    assert ts.key_terms("What is it, and why?") == set()
    for form in ("boils", "boiled", "boiling"):
        assert ts.key_terms(form) == {"boil"}
    assert ts.key_terms("stories") == ts.key_terms("story")
    assert ts.key_terms("stopped") == ts.key_terms("stop")
    assert ts.key_terms("red-wine") == {"red", "win"}
    assert ts.key_terms("Explain 7 or 12 to me") == {"7", "12"}
    # A stem keeps three letters, and one s of two is no ending.
    assert ts.key_terms("bring") == {"bring"}
    assert ts.key_terms("glasses") == ts.key_terms("glass") == {"glass"}
    assert ts.key_terms("the cat’s tail") == {"cat", "tail"}


def test_term_overlap() -> None:
    assert ts.term_overlap("How do I boil eggs?", "Boiling an egg is easy.") == 1.0
    assert ts.term_overlap("How do I boil eggs?", "Take an egg.") == 0.5
    assert ts.term_overlap("How do I boil eggs?", "") == 0.0
    assert ts.term_overlap("Why?", "Because.") is None


def test_flesch_ease() -> None:
    easy = ts.flesch_ease("The cat sat on the mat. It was a warm day and the sun was out.")
    hard = ts.flesch_ease(
        "Notwithstanding considerable institutional heterogeneity, contemporary organisations "
        "systematically underestimate environmental externalities regarding infrastructure."
    )
    assert easy is not None
    assert hard is not None
    assert easy > 90
    assert hard < 0
    assert ts.flesch_ease("Too short.") is None
    assert (
        ts.flesch_ease("Это довольно длинное предложение на русском языке, в нём много слов.")
        is None
    )
    # Six words to a sentence, twelve words and fourteen syllables.
    known = ts.flesch_ease("The cat sat on the table. The dog lay on a sofa.")
    assert known == pytest.approx(206.835 - 1.015 * 6 - 84.6 * 14 / 12)
    # Lines of code are no sentences.
    code = "\n```\nprint(1)\nprint(2)\nprint(3)\n```\n"
    assert ts.flesch_ease(f"The cat sat on the table. The dog lay on a sofa.{code}") == known


TEN = "The cat sat on the mat and saw a dog"


def test_ten_words_can_be_measured_and_numbers_are_none() -> None:
    # Ten words of one syllable in one sentence.
    known = pytest.approx(206.835 - 1.015 * 10 - 84.6)
    assert ts.flesch_ease(TEN) == known
    assert ts.flesch_ease(f"{TEN} 12 345") == known
    assert ts.flesch_ease(TEN.removesuffix(" dog") + " 12 345") is None


@pytest.mark.parametrize(
    ("word", "syllables"),
    [
        ("cat", 1),
        ("make", 1),
        ("table", 2),
        ("jumped", 1),
        ("wanted", 2),
        ("statement", 2),
        ("being", 2),
        ("piano", 3),
        ("Hmm", 1),
        ("the", 1),
    ],
)
def test_syllables(word: str, syllables: int) -> None:
    assert ts._count_syllables(word) == syllables


def test_letters_of_the_prose_say_whether_it_is_foreign() -> None:
    code = "\n```\n" + "print(value)\n" * 9 + "```"
    assert ts.is_foreign(f"Варите яйца.{code}")
    # A third of the letters, and two of fifteen.
    assert ts.is_foreign("Đây là một câu tiếng Việt.")
    assert not ts.is_foreign("A naïve café owner.")
    assert not ts.is_foreign(f"Boil it.{code.replace('value', 'яйца и вода')}")


def test_a_fence_that_is_left_open_is_code_to_the_end() -> None:
    assert ts.without_code("Say:\n```py\nx = 1\ny = 2").split() == ["Say:"]
    assert ts.without_code("One\n```\nx\n```\ntwo\n```\ny\n```").split() == ["One", "two"]


def test_patterns_are_guarded() -> None:
    assert ts.matches(r"\bcat\b", "a cat")
    assert not ts.matches(r"\bcat\b", "a CAT")
    assert ts.matches(r"\bcat\b", "a CAT", ignore_case=True)
    with pytest.raises(ValueError, match="not a regular expression"):
        ts.compile_pattern("(")
    with pytest.raises(ValueError, match="1 to 500"):
        ts.compile_pattern("a" * 501)
    with pytest.raises(ValueError, match="1 to 500"):
        ts.compile_pattern("")


def test_a_pattern_that_backtracks_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ts, "PATTERN_SECONDS", 0.05)
    with pytest.raises(ConfigError, match="nested repetition"):
        ts.matches(r"^(?:a|a)*$", "a" * 60 + "b")


@given(st.text())
def test_nothing_raises_on_any_text(text: str) -> None:
    for function in (ts.words, ts.sentences, ts.list_items, ts.headings, ts.stock_phrases):
        function(text)
    for predicate in (ts.is_refusal, ts.has_list, ts.is_finished, ts.is_blank):
        assert predicate(text) in (True, False)
    ts.flesch_ease(text)
    if ts.is_blank(text):
        assert ts.words(text) == []
        assert not ts.is_finished(text)
    overlap = ts.term_overlap("How do I boil eggs?", text)
    assert overlap is not None
    assert 0.0 <= overlap <= 1.0
