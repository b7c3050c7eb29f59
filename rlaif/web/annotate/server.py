"""`rlaif annotate`: a database made or opened, and its pages served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlaif.core.errors import ConfigError
from rlaif.data.vote_store import VoteStore
from rlaif.web.annotate.access import NAME, OWNER, Access, Viewer, address_of
from rlaif.web.annotate.app import make_app
from rlaif.web.serving import SocketServer, listen


@dataclass(frozen=True)
class Place:
    """Where the server listens: port 0 is a free one. `public` is the address that people open, if
    it is another."""

    host: str = "127.0.0.1"
    port: int = 0
    public: str | None = None


class AnnotationServer(SocketServer):
    """The pages of a database on a socket that it listens on from the start. Raises ConfigError
    for names that cannot stand in a link, and where there is nothing to listen on."""

    def __init__(self, store: VoteStore, people: Sequence[str], place: Place):
        check_people(people)
        # Before it listens: an address that nobody could open is no reason to take the port.
        address_of(place.host, place.port, place.public)
        listening = listen(place.host, place.port)
        port = int(listening.getsockname()[1])
        self.access = Access(store.secret, people)
        self.address = address_of(place.host, port, place.public)
        super().__init__(listening, make_app(store, self.access, self.address))

    def link(self, viewer: Viewer) -> str:
        """A viewer's link."""
        return f"{self.address.base}/open/{self.access.token(viewer)}"

    def links(self) -> dict[str, str]:
        """Each person's link by name."""
        people = [viewer for viewer in self.access.viewers if viewer.role == "person"]
        return {viewer.name: self.link(viewer) for viewer in people}

    @property
    def owner_link(self) -> str:
        """The owner's link."""
        return self.link(OWNER)


def check_people(people: Sequence[str]) -> None:
    """Raises ConfigError for names that cannot stand in a link, or stand there twice."""
    for name in people:
        if NAME.fullmatch(name) is None:
            raise ConfigError(
                f"--people: {name!r} is no name; 1 to 40 letters, digits, dots, - and _ were "
                "expected, the first a letter or digit"
            )
    lowered = [name.lower() for name in people]
    twice = next((name for name in lowered if lowered.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"--people names {twice!r} twice")
    if not people:
        raise ConfigError("--people names nobody; give names such as ada,ben")
