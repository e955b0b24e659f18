"""Write the dashboards: `python -m k8s.dashboards`; with `--check`, exit 1 if one is out of date."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from k8s.dashboards import fleet, rollout, service

FOLDER = Path(__file__).parents[1] / "components" / "monitoring" / "dashboards"


def texts() -> Mapping[str, str]:
    """The JSON of each dashboard, by its file's name."""
    return {
        f"{module.__name__.rpartition('.')[2]}.json": JSONEncoder(sort_keys=True, indent=1).encode(
            module.dashboard().build()
        )
        + "\n"
        for module in (service, rollout, fleet)
    }


def main() -> None:
    """Write, or check."""
    stale = [
        name
        for name, text in texts().items()
        if not (FOLDER / name).is_file() or (FOLDER / name).read_text() != text
    ]
    if "--check" in sys.argv[1:]:
        if stale:
            sys.exit(f"error: {', '.join(stale)} out of date; run python -m k8s.dashboards")
        return
    for name in stale:
        (FOLDER / name).write_text(texts()[name])


if __name__ == "__main__":
    main()
