"""docs/doors.md names every path, RPC and kind of error, and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import httpx

from serving import errors, protos
from serving.rest.errors import STATUS_OF_KIND
from serving.rpc.errors import CODE_OF_KIND

TEXT = (Path(__file__).parents[2] / "docs" / "doors.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| `")
]


def names_in(cell: str) -> list[str]:
    return re.findall(r"`(test_\w+\.py)`", cell)


async def test_every_path_and_rpc_is_in_the_table(client: httpx.AsyncClient) -> None:
    listed = {row[0].strip("`") for row in ROWS if len(row) == 2}
    paths = (await client.get("/openapi.json")).json()["paths"]
    served = {
        f"{method.upper()} {path}"
        for path, operations in paths.items()
        for method in operations
        if path.startswith(("/v1/", "/v2"))
    }
    for service in (
        protos.IMAGE_CLASSIFICATION,
        protos.ROLLOUTS,
        protos.PREDICTION_SERVICE,
        protos.MODEL_SERVICE,
        protos.OPEN_INFERENCE,
    ):
        served |= {f"{service}/{method}" for method in protos.methods(service)}
    assert listed == served


def test_every_kind_is_in_the_table() -> None:
    listed = {row[0].strip("`"): (row[1], row[2]) for row in ROWS if len(row) == 4 and row[1].isdigit()}
    kinds = {kind.kind: (str(STATUS_OF_KIND[kind]), CODE_OF_KIND[kind].name) for kind in errors.all_kinds()}
    assert listed == kinds


def test_the_tests_that_are_named_exist() -> None:
    named = {name for row in ROWS for name in names_in(row[-1])}
    assert len(named) > 10
    for name in named:
        assert any(
            (Path(__file__).parents[1] / folder / name).is_file() for folder in ("doors", "rollout")
        ), name
