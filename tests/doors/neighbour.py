"""A good client in a process of its own: `python -m tests.doors.neighbour URL FILE`.

Posts one image after the other until stdin ends, and two at least; then prints how long each answer took, in
seconds, as JSON. What it measures is so not the time of the test's own event loop.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

LEAST = 2  # of fewer there are no quantiles


def main(url: str, file: Path) -> None:
    """Post `file` to `url` again and again."""
    parts, image = urlsplit(url), file.read_bytes()
    ended = threading.Event()
    threading.Thread(target=_until_end, args=[ended], daemon=True).start()
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    seconds: list[float] = []
    while not ended.is_set() or len(seconds) < LEAST:
        began = time.perf_counter()
        connection.request("POST", parts.path, image, {"content-type": "application/octet-stream"})
        answer = connection.getresponse()
        body = answer.read()
        seconds.append(time.perf_counter() - began)
        assert answer.status == 200, body
    print(json.dumps(seconds))


def _until_end(ended: threading.Event) -> None:
    sys.stdin.read()
    ended.set()


@contextmanager
def neighbour(url: str, file: Path) -> Iterator[list[float]]:
    """A neighbour while the block runs; the list holds its seconds afterwards."""
    seconds: list[float] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.doors.neighbour", url, str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield seconds
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        seconds += json.loads(out)
    finally:
        process.kill()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
