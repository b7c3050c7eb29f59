"""What a program can see in a text without a model: words, sentences, repetition, stock phrases.

Pure functions. Words are found in every script; the word lists (refusals, stock phrases, stopwords,
suffixes) are English.
"""

from __future__ import annotations

import functools
import re
import unicodedata

import regex

from rlaif.core.errors import ConfigError

MIN_READING_WORDS = 10
MAX_PATTERN_LENGTH = 500
PATTERN_SECONDS = 2.0

# Han and kana are written without spaces: each character counts as a word there.
_WORD = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}&&[\p{L}\p{N}]]"
    r"|(?!\p{DI})[\p{L}\p{N}--\p{Han}--\p{Hiragana}--\p{Katakana}]"
    r"[\p{L}\p{M}\p{N}--\p{Han}--\p{Hiragana}--\p{Katakana}]*"
    r"(?:['’.,_\-][\p{L}\p{M}\p{N}--\p{Han}--\p{Hiragana}--\p{Katakana}]+)*",
    regex.VERSION1,
)
# Texts of these characters, as most Western ones are, need no classes of all scripts: the pattern
# after this one finds the same words in them in a fifth of the time. None of them is Han, kana, a
# mark, or an invisible letter.
_WESTERN = re.compile("[\0-\u024f\u2010-\u2027\u2030-\u205e]*")
_LETTERS = "".join(regex.findall(r"[\p{L}\p{N}]", "".join(map(chr, range(0x250)))))
_WESTERN_WORD = re.compile(rf"[{_LETTERS}]+(?:['’.,_\-][{_LETTERS}]+)*")
# Fillers and the blank Braille cell are letters or symbols by category, and invisible.
_SAID = regex.compile(r"(?!\p{DI}|\u2800)(?:[\p{L}\p{N}]|(?![\x00-\x7F])\p{S})")
_FINAL = ".!?…。！？｡．؟۔।॥։።"
_CLOSERS = "\"'”’»›)]}）】」』〉》*_"
_FENCE = regex.compile(r"^[ \t]*(?:```|~~~)", regex.MULTILINE)
_BREAK = regex.compile(
    rf"(?<=[.!?…؟۔।॥։።][{regex.escape(_CLOSERS)}]*)\s+|(?<=[。！？｡．]+[”’」』）]*)(?![。！？｡．”’」』）])"
)
_ABBREVIATION = regex.compile(
    r"(?:^|[\s(])(?:mr|mrs|ms|dr|prof|st|vs|e\.g|i\.e|etc|approx|no|fig|inc|ltd|p\.m|a\.m|\p{Lu})\.$",
    regex.IGNORECASE,
)
_ITEM = regex.compile(
    r"^[ \t]*(?:[-*+•‣–]|\(?\d{1,3}[.)]|\(?[a-zA-Z][.)])[ \t]+(\S.*)$", regex.MULTILINE
)
_BARE_MARKER = regex.compile(r"^[ \t]*(?:[-*+•‣–]|\(?\d{1,3}[.)]|#{1,6})[ \t]*$")
_HEADING = regex.compile(r"^#{1,6}[ \t]+\S.*$", regex.MULTILINE)


def words(text: str) -> list[str]:
    """The words of `text` in order, as written.

    Apostrophes, hyphens and digit separators inside a word do not split it ("don't", "well-known",
    "3.5"). Chinese and Japanese characters count one each. Thai, Lao, Khmer and Burmese, which are
    written without spaces, come out as long runs.
    """
    found: list[str] = []
    pattern = _WESTERN_WORD if _WESTERN.fullmatch(text) else _WORD
    for match in pattern.findall(text):
        # "end.Start" is two words with a space forgotten; "3.5" is one number.
        if ("." in match or "," in match) and not any(c.isdigit() for c in match):
            found += [part for part in regex.split(r"[.,]", match) if part]
        else:
            found.append(match)
    return found


def is_blank(text: str) -> bool:
    """True when nothing is said: only spaces, ASCII punctuation or invisible characters."""
    return _SAID.search(text) is None


def sentences(text: str) -> list[str]:
    """The sentences of `text`: split at sentence-final punctuation and at line ends.

    Common English abbreviations and list numbers do not end a sentence; pieces without a word are
    not counted.
    """
    found: list[str] = []
    for line in text.splitlines():
        pending = ""
        for piece in _BREAK.split(line):
            pending = f"{pending} {piece}".strip() if pending else piece.strip()
            if _ABBREVIATION.search(pending) or _BARE_MARKER.match(pending):
                continue
            found.append(pending)
            pending = ""
        found.append(pending)
    return [piece for piece in found if words(piece)]


def _list_ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    if n < 1:
        raise ValueError(f"n must be at least 1 (got {n})")
    folded = [word.casefold() for word in words(text)]
    return [tuple(folded[i : i + n]) for i in range(len(folded) - n + 1)]


def distinct_n(text: str, n: int) -> float | None:
    """Different n-grams of words over all of them, in (0, 1]; None with fewer than `n` words."""
    grams = _list_ngrams(text, n)
    return len(set(grams)) / len(grams) if grams else None


def repetition(text: str, n: int) -> float:
    """Share of n-grams of words that repeat an earlier one, in [0, 1); 0.0 for a short text."""
    grams = _list_ngrams(text, n)
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def _fold_text(text: str) -> str:
    return " ".join(text.replace("’", "'").casefold().split())


_CANNOT = (
    r"(?:can ?not|can't|could not|couldn't|won't|will not|unable to|not able to"
    r"|not (?:going|willing) to|not comfortable|must decline to|have to decline to"
    r"|not allowed to|not permitted to)"
)
_DEED = (
    r"(?:help|assist|provide|give|offer|answer|fulfil|fulfill|comply|do that|do this|support"
    r"|discuss|share|write|create|generate|engage|continue|participate|complete|advise|comment"
    r"|recommend|with (?:that|this))"
)
_REFUSAL = regex.compile(
    rf"\bi(?:'m| am| must| have)?(?: \w+){{0,2}} ?{_CANNOT}(?: \w+){{0,3}} {_DEED}\b"
    rf"|\b(?:sorry|apologi[sz]e|afraid)\b[^.!?]{{0,40}}\bi? ?{_CANNOT}\b"
    r"|\bi (?:must|have to|need to) (?:respectfully )?(?:decline|refuse)\b"
    r"|\bi (?:decline|refuse) to\b"
    r"|\bas an? (?:ai|language model)[^.!?]{0,60}"
    r"\b(?:can ?not|can't|unable|not able|do not have|don't have)\b"
    r"|\b(?:this|that|your) request (?:goes against|violates)\b"
)


def is_refusal(text: str) -> bool:
    """True when the opening (first 300 characters) declines to answer, in English."""
    return _REFUSAL.search(_fold_text(text)[:300]) is not None


STOCK_PHRASES: tuple[str, ...] = (
    "as an ai language model",
    "as an ai assistant",
    "as an ai,",
    "as a language model",
    "as a large language model",
    "i'm just an ai",
    "i am just an ai",
    "i hope this helps",
    "hope that helps",
    "i hope this information",
    "let me know if you have any",
    "let me know if you need",
    "feel free to ask",
    "feel free to reach out",
    "please don't hesitate",
    "don't hesitate to ask",
    "if you have any other questions",
    "if you have any further questions",
    "is there anything else i can",
    "happy to help",
    "glad to help",
    "i'd be happy to",
    "that's a great question",
    "what a great question",
    "great question!",
    "thank you for your question",
    "thank you for asking",
    "thank you for reaching out",
    "it's important to note that",
    "it is important to note that",
    "it's worth noting that",
    "it is worth noting that",
    "it's important to remember that",
    "it is important to remember that",
    "in today's fast-paced world",
    "in this day and age",
    "at the end of the day",
    "in conclusion,",
    "to sum up,",
    "as previously mentioned",
    "i understand your concern",
    "i understand that you",
    "remember, everyone is different",
    "there is no one-size-fits-all",
    "plays a crucial role in",
    "delve into",
    "rich tapestry",
    "my knowledge cutoff",
    "as of my last update",
)


def stock_phrases(text: str) -> list[str]:
    """The stock phrases in `text`, each once, in the order of `STOCK_PHRASES` (English)."""
    plain = _fold_text(text)
    return [phrase for phrase in STOCK_PHRASES if phrase in plain]


def list_items(text: str) -> list[str]:
    """The items of bulleted, numbered and lettered lists, without their markers."""
    return [item.strip() for item in _ITEM.findall(text)]


def has_list(text: str) -> bool:
    """True with two list items or more; one dash or number alone is no list."""
    return len(list_items(text)) >= 2


def headings(text: str) -> list[str]:
    """The Markdown headings (`# ...` to `###### ...`) outside code fences, as written."""
    inside = False
    found: list[str] = []
    for line in text.splitlines():
        if _FENCE.match(line):
            inside = not inside
        elif not inside and _HEADING.match(line):
            found.append(line.strip())
    return found


def _ends_sentence(line: str) -> bool:
    bare = line.rstrip().rstrip(_CLOSERS + "`").rstrip()
    while bare and unicodedata.category(bare[-1]) in ("So", "Sk", "Mn", "Cf"):
        # An emoji after the full stop, with its joiners and skin tones.
        bare = bare[:-1].rstrip()
    return bool(bare) and bare[-1] in _FINAL


def is_finished(text: str) -> bool:
    """True when the text does not look cut off.

    It must hold a word and end in sentence-final punctuation of any script (closing quotes,
    brackets and emoji may follow), in a closed code fence, a table row or a bracketed value, or in
    an item of a list none of whose items ends in punctuation.
    """
    stripped = text.strip()
    if not words(stripped):
        return False
    fences = len(_FENCE.findall(stripped))
    last = stripped.splitlines()[-1].strip()
    if fences % 2:
        return False
    if fences and _FENCE.match(last):
        return True
    if _BARE_MARKER.match(last):
        return False
    if last.startswith("|") and last.endswith("|") and len(last) > 2:
        return True
    if stripped[0] in "{[" and stripped[-1] in "}]":
        return True
    if _ends_sentence(last):
        return True
    items = list_items(stripped)
    if len(items) >= 2 and last.endswith(items[-1]) and not last.endswith((",", ":", ";")):
        return not any(_ends_sentence(item) for item in items)
    return False


_STOPWORDS = """
a about above actually after again against all almost already also although always am among an and
another any anyone anything are aren't around as ask at away be became because been before being
below best better between both but by came can can't cannot come could couldn't describe did
didn't do does doesn't doing don't done down during each either else enough ever every everyone
everything example explain few find first for from further gave get gets getting give given gives
go goes going good got had has hasn't have haven't having he he's help her here hers herself him
himself his how however i i'd i'll i'm i've if in instead into is isn't it it's its itself just
keep know least less let let's like list little long look lot made main make makes making many may
maybe me mean means might mine more most much must my myself name need needs never new next no nor
not now of off often ok okay on once one ones only or other others our ours out over own part
people person please put quite rather really right said same say see she should shouldn't show
simple simply since so some someone something soon still such suggest sure take tell than thank
that that's the their theirs them themselves then there there's these they they're thing things
think this those though three through to together too try two under until up upon us use used
using very want wants was wasn't way ways we we're well went were weren't what what's when where
whether which while who who's whom whose why will with within without won't word words work would
wouldn't write yes yet you you'd you'll you're you've your yours yourself
"""
STOPWORDS: frozenset[str] = frozenset(_STOPWORDS.split())

_SUFFIXES = ("ingly", "edly", "ation", "ing", "ies", "ied", "ers", "ed", "ly", "er", "es", "s")


def _stem_word(word: str) -> str:
    """A crude stem of 3 letters or more, so that "boil", "boils" and "boiling" agree."""
    bare = word.removesuffix("'s").replace("'", "")
    for suffix in _SUFFIXES:
        if suffix == "s" and bare.endswith("ss"):
            break
        if bare.endswith(suffix) and len(bare) - len(suffix) >= 3:
            bare = bare.removesuffix(suffix) + ("y" if suffix in ("ies", "ied") else "")
            break
    if len(bare) > 3 and bare[-1] == bare[-2] and bare[-1] not in "aeiouls":
        bare = bare[:-1]
    return bare.removesuffix("e") if len(bare) > 3 else bare


def _stem_words(text: str) -> set[str]:
    parts = [p for w in words(text) for p in w.replace("’", "'").casefold().split("-")]
    return {_stem_word(p) for p in parts if p not in STOPWORDS and (len(p) >= 3 or p.isdigit())}


def key_terms(question: str) -> set[str]:
    """The stems of the content words of an English question; empty when it has none.

    Stopwords, task verbs ("explain", "write") and words under three letters are left out.
    """
    return _stem_words(question)


def term_overlap(question: str, text: str) -> float | None:
    """Share of the question's key terms that `text` uses, in [0, 1]; None without key terms."""
    wanted = key_terms(question)
    if not wanted:
        return None
    return len(wanted & _stem_words(text)) / len(wanted)


_CODE_BLOCK = regex.compile(r"```.*?(?:```|\Z)", regex.DOTALL)


def without_code(text: str) -> str:
    """`text` without its code fences and what is in them."""
    return str(_CODE_BLOCK.sub(" ", text))


_VOWELS = regex.compile(r"[aeiouy]+")
_EXTRA = regex.compile(
    r"(?<![ctg])i[ao]|(?<![ctgs])iou|(?<=[ct])iou(?!s)|[^aeiouqg]ua|eo(?!p)|ien[tc]|creat"
    r"|(?<=[aeo])ing|oem|[aei]a(?=$|s$)"
)
_SILENT_END = regex.compile(
    r"(?:[^aeiouyl]e|[aeiouy]le|[^aeiouytd]ed|[^aeiouyscxzghl]es|[aeiouy]les)$"
)
_SILENT_MIDDLE = regex.compile(r"(?<=[aeiou][^aeiouy])e(?:ment|ly|some|thing|fore|ful)")


def _count_syllables(word: str) -> int:
    """Syllables of an English word, estimated from its vowel groups; at least 1.

    Hyphenation dictionaries do worse: they leave out breaks near word edges ("a-bout", "ver-y")
    and counted 33 of 127 common words wrongly, of which this counts 9 wrongly.
    """
    bare = word.casefold()
    count = len(_VOWELS.findall(bare)) + len(_EXTRA.findall(bare))
    count -= len(_SILENT_MIDDLE.findall(bare))
    count -= _SILENT_END.search(bare) is not None
    return max(1, count)


def flesch_ease(text: str) -> float | None:
    """Flesch reading ease of English prose; None under ten words or outside the Latin script."""
    prose = without_code(text)
    found = [w for w in words(prose) if any(c.isalpha() for c in w)]
    if len(found) < MIN_READING_WORDS or is_foreign(text):
        return None
    per_sentence = len(found) / max(1, len(sentences(prose)))
    per_word = sum(_count_syllables(word) for word in found) / len(found)
    return 206.835 - 1.015 * per_sentence - 84.6 * per_word


def is_foreign(text: str) -> bool:
    """Whether the prose of `text` is for the most part in letters that English has not."""
    prose = without_code(text)
    if prose.isascii():
        return False
    letters = [c for c in prose if c.isalpha()]
    return sum(c.isascii() for c in letters) < 0.8 * len(letters)


@functools.lru_cache(maxsize=512)
def compile_pattern(pattern: str, ignore_case: bool = False) -> regex.Pattern[str]:
    """A user's regular expression, of 1 to 500 characters; ValueError when it is not one."""
    if not 1 <= len(pattern) <= MAX_PATTERN_LENGTH:
        raise ValueError(
            f"a pattern must have 1 to {MAX_PATTERN_LENGTH} characters (not {len(pattern)})"
        )
    try:
        return regex.compile(pattern, regex.IGNORECASE if ignore_case else 0)
    except (regex.error, RecursionError, OverflowError) as error:
        raise ValueError(f"not a regular expression: {error}") from None


def matches(pattern: str, text: str, ignore_case: bool = False) -> bool:
    """Whether the pattern is found anywhere in `text`.

    A pattern that backtracks for more than two seconds raises ConfigError: it would stall a run.
    """
    try:
        found = compile_pattern(pattern, ignore_case).search(text, timeout=PATTERN_SECONDS)
    except TimeoutError:
        raise ConfigError(
            f"pattern {pattern!r} took more than {PATTERN_SECONDS:g} s on a text of {len(text)} "
            "characters; rewrite it without nested repetition such as (a+)+"
        ) from None
    return found is not None
