"""Sluice's model server, which prints a line once it takes calls; for the benchmark."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Run the server to its end; SIGTERM ends both."""
    (path,) = (flag.partition("=")[2] for flag in sys.argv if flag.startswith("--grpc_socket_path="))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # else the child would outlive this process
    child = subprocess.Popen([sys.executable, "-m", "serving.modelserver", *sys.argv[1:]])
    try:
        while not Path(path).exists() and child.poll() is None:
            time.sleep(0.1)
        print(path, flush=True)
        child.wait()
    finally:
        child.terminate()
        child.wait()


if __name__ == "__main__":
    main()
