"""Ids on disk are a set, packed ids a list, and neither changes a hash."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rlaif.core.ids import Ids, IdSet, as_ids, sort_ids, unite_ids
from rlaif.core.records import content_hash, stream_hash

MADE = [f"p_{content_hash(number)}" for number in range(6)]
# Other letters, other lengths, capitals, and what strict UTF-8 does not have.
OTHERS = ["p_1", "", "ü", "\ud800", f"q_{content_hash(1)}", MADE[0].upper(), MADE[1][:-1]]
NAMES = st.lists(st.sampled_from([*MADE, *OTHERS]), max_size=12)
ONE_KIND = st.lists(st.sampled_from(MADE), max_size=12)


@given(first=NAMES, second=NAMES)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_a_set_on_disk_is_a_set_in_the_order_of_ids(first: list[str], second: list[str]) -> None:
    found, known = IdSet(first), set(first)
    for name in second:
        assert found.is_new(name) == (name not in known)
        known.add(name)
    assert list(found) == sorted(known)
    assert len(found) == len(known)
    for name in first:
        found.discard(name)
        known.discard(name)
    assert set(found) == known
    assert all((name in found) == (name in known) for name in [*MADE, *OTHERS])


@given(names=NAMES | ONE_KIND, cut=st.slices(12))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_packed_ids_are_the_list(names: list[str], cut: slice) -> None:
    packed = Ids(names)
    assert packed == names
    assert len(packed) == len(names)
    assert packed[cut] == names[cut]
    assert [packed[place] for place in range(-len(names), len(names))] == [*names, *names]
    assert all((name in packed) == (name in names) for name in [*MADE, *OTHERS])
    assert as_ids(packed) is packed
    ordered = sort_ids(names)
    assert ordered == sorted(set(names))
    assert all((name in ordered) == (name in names) for name in [*MADE, *OTHERS])
    # A plan's hashes are those that lists gave.
    assert stream_hash("a", packed, {"b": 1}) == content_hash("a", names, {"b": 1})


def test_equal_digits_after_another_letter_are_other_ids() -> None:
    assert Ids([f"p_{content_hash(1)}"]) != Ids([f"q_{content_hash(1)}"])


def test_many_packed_ids_are_hashed_and_unpacked_in_parts() -> None:
    names = [f"p_{content_hash(number)}" for number in range(3000)]
    packed = Ids(names)
    assert list(packed) == names
    assert stream_hash(packed) == content_hash(names)
    # 12 bytes for each: what the packing is for.
    assert len(packed._packed) == 12 * len(names)


def test_ids_of_equal_parts_are_the_first_and_of_others_each_once() -> None:
    first = Ids(MADE)
    assert unite_ids([first, Ids(MADE), tuple(MADE)]) is first
    assert unite_ids([Ids(MADE[:4]), Ids(MADE[2:]), OTHERS]) == [*MADE, *OTHERS]
    assert unite_ids([]) == ()


def test_who_reads_a_set_holds_it() -> None:
    """Its database is closed when nobody does."""
    names = iter(IdSet(MADE))
    assert list(names) == sorted(MADE)
