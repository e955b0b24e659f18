"""`python -m serving.modelserver --port=8500 --model_name=digits --model_base_path=/models/digits`."""

from __future__ import annotations

import sys

from serving import grpc_environment
from serving.modelserver import huge_pages, main

if __name__ == "__main__":
    grpc_environment.prepare()
    huge_pages.ask()
    sys.exit(main(sys.argv[1:]))
