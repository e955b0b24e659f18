"""The command `models`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from serving.commands.asking import ApiKey, Ca, Url, ask, connection, read_as_a_gateways
from serving.commands.terminal import console, printable, user_errors


def models(
    url: Url = "http://127.0.0.1:8080",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    api_key: ApiKey = None,
    ca: Ca = None,
) -> None:
    """List the models and versions of a running gateway, with their states."""
    with user_errors():
        from rich.table import Table

        table = Table("model", "version", "state", "replicas", "error")
        with connection(url, api_key, ca) as client, read_as_a_gateways(client):
            answer = ask(client, "GET", "/v1/models").json()
            for each in answer["models"]:
                for found in each["versions"]:
                    table.add_row(
                        each["name"],
                        str(found["version"]),
                        found["state"],
                        str(found["available_on"]),
                        printable(found["error"] or ""),
                    )
        if as_json:
            print(json.dumps(answer))
        else:
            console().print(table)
