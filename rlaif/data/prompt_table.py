"""The prompts of an experiment on disk, and the prompts of several sources by id.

A prompt is a kilobyte in memory. Here each is a line in a scratch database (`rlaif.core.ids`), and
is decoded when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import islice
from typing import overload

from rlaif.core.ids import Ids, from_blob, open_scratch, to_blob
from rlaif.core.records import Prompt
from rlaif.core.rowfiles import line_of, record_of


class PromptTable(Sequence[Prompt]):
    """Different prompts in the order in which they came. Some may be marked."""

    def __init__(self, prompts: Iterable[Prompt] = ()):
        self._db = open_scratch(
            self,
            "CREATE TABLE prompts "
            "(place INTEGER PRIMARY KEY, id BLOB UNIQUE, body BLOB, marked INTEGER)",
        )
        self._count = 0
        for prompt in prompts:
            self.put(prompt)

    def add(self, prompt: Prompt, marked: bool = False) -> bool:
        """One more prompt, unless there is one with its id. Returns whether there was none."""
        done = self._db.execute(
            "INSERT OR IGNORE INTO prompts (id, body, marked) VALUES (?, ?, ?)",
            (to_blob(prompt.prompt_id), line_of(prompt), marked),
        )
        self._count += done.rowcount
        return done.rowcount > 0

    def put(self, prompt: Prompt) -> None:
        """One more prompt, or another one in the place of that with its id."""
        if not self.add(prompt):
            row = (line_of(prompt), to_blob(prompt.prompt_id))
            self._db.execute("UPDATE prompts SET body = ? WHERE id = ?", row)

    def take_smallest(self, count: int, marked: bool = False) -> list[Prompt]:
        """Take out the `count` prompts of smallest id, in the order of ids; of all, or of those
        that are `marked`."""
        where = "WHERE marked " if marked else ""
        query = f"SELECT body FROM prompts {where}ORDER BY id LIMIT ?"
        found = [record_of(Prompt, body) for (body,) in self._db.execute(query, (count,))]
        self.remove(prompt.prompt_id for prompt in found)
        return found

    def remove(self, names: Iterable[str]) -> None:
        """Take out the prompts with some ids."""
        rows = ((to_blob(name),) for name in names)
        self._count -= self._db.executemany("DELETE FROM prompts WHERE id = ?", rows).rowcount

    def remove_marked(self) -> None:
        """Take out the marked prompts."""
        self._count -= self._db.execute("DELETE FROM prompts WHERE marked").rowcount

    def has_marked(self) -> bool:
        """Whether any prompt is marked."""
        return self._db.execute("SELECT 1 FROM prompts WHERE marked LIMIT 1").fetchone() is not None

    def keep_first(self, count: int) -> None:
        """Take out all but the first prompts."""
        later = "SELECT place FROM prompts ORDER BY place LIMIT -1 OFFSET ?"
        self._db.execute(f"DELETE FROM prompts WHERE place IN ({later})", (count,))
        self._count = min(self._count, count)

    def ids(self) -> Iterator[str]:
        """The ids in their own order."""
        return self._read_ids("id")

    def find(self, prompt_id: str) -> Prompt | None:
        """The prompt with an id, or None where there is none."""
        blob = (to_blob(prompt_id),)
        row = self._db.execute("SELECT body FROM prompts WHERE id = ?", blob).fetchone()
        return None if row is None else record_of(Prompt, row[0])

    def has(self, prompt_id: str) -> bool:
        """Whether there is a prompt with an id."""
        if not self._count:
            return False
        blob = (to_blob(prompt_id),)
        return self._db.execute("SELECT 1 FROM prompts WHERE id = ?", blob).fetchone() is not None

    def by_id(self) -> Mapping[str, Prompt]:
        """The prompts by id, in their order."""
        return _ById(self)

    def _read_ids(self, order: str) -> Iterator[str]:
        for (blob,) in self._db.execute(f"SELECT id FROM prompts ORDER BY {order}"):
            yield from_blob(blob)

    def __iter__(self) -> Iterator[Prompt]:
        for (body,) in self._db.execute("SELECT body FROM prompts ORDER BY place"):
            yield record_of(Prompt, body)

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, place: int) -> Prompt: ...

    @overload
    def __getitem__(self, place: slice) -> list[Prompt]: ...

    def __getitem__(self, place: int | slice) -> Prompt | list[Prompt]:
        if isinstance(place, slice):
            start, stop, step = place.indices(len(self))
            if step < 1:
                return list(self)[place]
            return list(islice(self, start, stop, step))
        number = range(len(self))[place]
        return next(islice(self, number, None))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented


def sorted_ids(prompts: Sequence[Prompt]) -> Ids:
    """The ids of some prompts in their own order."""
    if isinstance(prompts, PromptTable):
        return Ids(prompts.ids())
    return Ids(sorted(prompt.prompt_id for prompt in prompts))


class _Prompts(ValuesView[Prompt]):
    """The values of a mapping that reads them in one go, and not each by its id."""

    def __init__(self, mapping: Mapping[str, Prompt], read: Callable[[], Iterator[Prompt]]):
        super().__init__(mapping)
        self._read = read

    def __iter__(self) -> Iterator[Prompt]:
        return self._read()


class _ById(Mapping[str, Prompt]):
    """The prompts of a table by id."""

    def __init__(self, table: PromptTable):
        self._table = table

    def __getitem__(self, prompt_id: str) -> Prompt:
        found = self._table.find(prompt_id)
        if found is None:
            raise KeyError(prompt_id)
        return found

    def __contains__(self, prompt_id: object) -> bool:
        return isinstance(prompt_id, str) and self._table.has(prompt_id)

    def __iter__(self) -> Iterator[str]:
        return self._table._read_ids("place")

    def __len__(self) -> int:
        return len(self._table)

    def values(self) -> ValuesView[Prompt]:
        return _Prompts(self, self._table.__iter__)


class PromptsById(Mapping[str, Prompt]):
    """The prompts of several sources by id, in the order in which ids come first; of those with one
    id that of the last source counts. Sources may grow."""

    def __init__(self, sources: Iterable[Mapping[str, Prompt]]):
        self.sources = list(sources)

    def __getitem__(self, prompt_id: str) -> Prompt:
        for source in reversed(self.sources):
            found = source.get(prompt_id)
            if found is not None:
                return found
        raise KeyError(prompt_id)

    def __contains__(self, prompt_id: object) -> bool:
        return any(prompt_id in source for source in self.sources)

    def __iter__(self) -> Iterator[str]:
        for number, source in enumerate(self.sources):
            before = self.sources[:number]
            yield from (n for n in source if not any(n in other for other in before))

    def __len__(self) -> int:
        filled = [source for source in self.sources if source]
        return len(filled[0]) if len(filled) == 1 else sum(1 for _ in self)

    def values(self) -> ValuesView[Prompt]:
        """The prompts, each source read in one go."""
        return _Prompts(self, self._read_prompts)

    def _read_prompts(self) -> Iterator[Prompt]:
        for number, source in enumerate(self.sources):
            before, after = self.sources[:number], self.sources[:number:-1]
            for prompt in source.values():
                name = prompt.prompt_id
                if not any(name in other for other in before):
                    yield next((other[name] for other in after if name in other), prompt)
