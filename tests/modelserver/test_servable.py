"""A session, without a server."""

from __future__ import annotations

import weakref
from pathlib import Path

from serving.modelserver.servable import LoadOptions, Session


def test_a_closed_session_has_freed_its_graph(zoo: Path) -> None:
    session = Session(zoo / "half_plus_two_frozen" / "1", LoadOptions())
    graph = weakref.ref(session._graph)
    session.close()
    assert graph() is None
