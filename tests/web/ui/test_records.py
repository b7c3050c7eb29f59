"""What a prompt's page shows of an answer: its verdicts, and what these rest on."""

from __future__ import annotations

from pathlib import Path

from rlaif.web.ui.extract import key_of
from rlaif.web.ui.index import grow_index, open_index
from rlaif.web.ui.records import Place, Reader, list_answers, show_answers
from tests.support.browsed import STEPS, completion, judgement, source_of, write_records


def test_a_verdict_rests_on_the_last_answer_to_its_call(tmp_path: Path) -> None:
    """A call that was asked again has several stored answers, in files of several steps too."""
    source = source_of(tmp_path / "run", ["red?"])
    write_records(source.root, 0, "completions", [completion("p", "k1", "red")])
    for step, texts in ((1, ["first", "second"]), (2, ["third", "last"])):
        for text in texts:
            answers = [
                {"call_id": call, "role": "judge", "shown": ["k1"], "answer": {"text": said}}
                for call, said in (("c1", f"{text} of c1"), (f"c{step + 1}", text))
            ]
            write_records(source.root, step, "answers", answers)
    rows = [judgement("p", "j1", ["k1"], 0.5, rests_on=["c3", "c1", "c2", "unknown"])]
    write_records(source.root, 2, "judgements", rows)
    path = tmp_path / "index.sqlite"
    grow_index(path, source)
    places = {n: [Place(f"step{n}", "judge", 1, 3, ())] for n in range(1, len(STEPS) + 1)}
    with open_index(path, source.key) as db, Reader(source) as reader:
        assert db is not None
        answers = list_answers(db, "p")
        assert [key for _, key in answers] == [key_of("k1")]
        (shown,) = show_answers(db, reader, places, "p", answers)
    ((judge, (entry,)),) = shown["judges"]
    assert (shown["id"], judge, entry["place"].step) == ("k1", "self", "step3")
    assert [answer["raw"] for answer in entry["behind"]] == ["last", "last of c1", "second"]
