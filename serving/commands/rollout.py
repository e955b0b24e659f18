"""The commands `sluice rollout …`."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from serving.commands.asking import Ca, trusting
from serving.commands.terminal import printable, user_errors
from serving.errors import FailedPrecondition, InvalidInput, NotFound, SluiceError

if TYPE_CHECKING:  # imported when a command runs, so that --help stays fast
    from serving.rollout.access import Access
    from serving.rollout.machine import Command
    from serving.rollout.plan import Plan
    from serving.rollout.record import Rollout

# The exit code of `watch` if it is neither promoted (0) nor rolled back (1), nor a fault of the command (2).
_UNTOLD = 3

rollout = typer.Typer(
    help="Let a new version in by evidence: start, watch, explain, simulate.", no_args_is_help=True
)

PlanFile = Annotated[
    Path | None, typer.Option("--plan", help="Plan, YAML or TOML.", show_default="the default plan")
]
Model = Annotated[str, typer.Argument(help="Name of the model.")]
Where = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="FOLDER",
        help="Folder of rollouts that the gateways share, or kubernetes://NAMESPACE.",
        show_default="the setting rollout_store, or rollout_namespace",
    ),
]
GatewayUrl = Annotated[
    str | None,
    typer.Option("--gateway", metavar="URL", help="A remote gateway, instead of a store."),
]
Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        "--api-key",
        envvar="SLUICE_API_KEY",
        help="The gateway's API key, scope admin; better set in the environment.",
    ),
]
RolloutId = Annotated[
    str | None, typer.Option("--id", help="One of `history`.", show_default="the model's newest")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_plan(path: Path | None) -> Plan:
    """The plan in a file, or the default plan."""
    from serving.rollout.plan import Plan
    from serving.rollout.plan_file import load_plan

    return Plan() if path is None else load_plan(path)


@rollout.command()
def check(plan: Annotated[Path, typer.Argument(help="Plan, YAML or TOML.")], as_json: AsJson = False) -> None:
    """Check a plan, and print it whole, with the defaults filled in. Errors point at the line."""
    with user_errors():
        import yaml

        values = read_plan(plan).model_dump(mode="json")
        print(json.dumps(values) if as_json else yaml.safe_dump(values, sort_keys=False), end="")
        if as_json:
            print()


@rollout.command()
def simulate(
    plan: PlanFile = None,
    rps: Annotated[float, typer.Option(help="Requests per second of the service.")] = 50.0,
    stable_error: Annotated[float, typer.Option(help="Share of stable's requests that fail.")] = 0.005,
    candidate_error: Annotated[
        float | None, typer.Option(help="The candidate's.", show_default="three times stable's")
    ] = None,
    stable_slow: Annotated[
        float, typer.Option("--latency", help="Share of stable's requests over the latency limit.")
    ] = 0.01,
    candidate_slow: Annotated[
        float | None, typer.Option("--candidate-latency", help="The candidate's.", show_default="stable's")
    ] = None,
    agreement: Annotated[float, typer.Option(help="Share of images on which both agree.")] = 0.97,
    incidents: Annotated[float, typer.Option(help="Incidents per hour that hit both versions.")] = 0.0,
    incident_error: Annotated[
        float, typer.Option(help="Share of requests that fail in one minute of it.")
    ] = 0.2,
    runs: Annotated[int, typer.Option(min=10, max=100_000, help="Rollouts to simulate of each kind.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same figures.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Answer before the fact: how often would a good version be rolled back, how soon a bad one be caught?

    The plan is run against simulated traffic by the code that decides real rollouts, next to the rules of
    Argo Rollouts and Flagger as their documentation gives them, and to a test that knows the true rates.
    """
    with user_errors():
        from serving.commands.rollout_console import print_report
        from serving.rollout.comparison import compare
        from serving.rollout.traffic import Traffic

        traffic = Traffic(
            rps=rps,
            stable_error=stable_error,
            candidate_error=min(1.0, 3.0 * stable_error) if candidate_error is None else candidate_error,
            stable_slow=stable_slow,
            candidate_slow=stable_slow if candidate_slow is None else candidate_slow,
            agreement=agreement,
            incidents_per_hour=incidents,
            incident_error=incident_error,
        )
        report = compare(read_plan(plan), traffic, runs=runs, seed=seed)
        if as_json:
            print(json.dumps(report.to_json()))
        else:
            print_report(report)


@rollout.command()
def start(
    model: Model,
    to: Annotated[int, typer.Option(help="Version to let in.")],
    plan: PlanFile = None,
    store: Where = None,
    gateway: GatewayUrl = None,
    key: Key = None,
    ca: Ca = None,
) -> None:
    """Start letting a version in. The gateways that share the store take it from here."""
    with user_errors():
        read = None if plan is None else read_plan(plan)
        started = _open(store, gateway, key, ca).start(model, to, read)
        where = "" if store is None else f" --store {shlex.quote(store)}"
        where = where if gateway is None else f" --gateway {shlex.quote(gateway)}"
        print(f"{started}: {model} → {to}; follow it: sluice rollout watch {shlex.quote(model)}{where}")


@rollout.command()
def status(
    model: Annotated[str | None, typer.Argument(help="Name of the model.", show_default="all")] = None,
    store: Where = None,
    gateway: GatewayUrl = None,
    key: Key = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Say where rollouts are, and why."""
    with user_errors():
        from rich.console import Console

        from serving.commands.rollout_console import view
        from serving.rollout.record import to_json

        opened = _open(store, gateway, key, ca)
        found, unreadable = [], []
        for name in [model] if model else opened.models():
            try:
                found.append(_load(opened, name))
            except FailedPrecondition as error:
                unreadable.append(error.message)
        if as_json:
            print(json.dumps([to_json(each) for each in found]))
        elif not (found or unreadable):
            print("there was no rollout yet")
        else:
            for each in found:
                Console().print(view(each))
        if unreadable:
            raise FailedPrecondition("\n".join(unreadable))


@rollout.command()
def watch(
    model: Model, store: Where = None, gateway: GatewayUrl = None, key: Key = None, ca: Ca = None
) -> None:
    """Watch a rollout until it ends. Exits with 1 if the version was rolled back, 3 if nobody can tell.

    If stdout is not a terminal, it prints a line for each move, and the full view at the end.
    """
    with user_errors(otherwise=_UNTOLD):
        from rich.console import Console
        from rich.live import Live

        from serving.commands.rollout_console import view
        from serving.rollout.machine import Phase, moved

        opened = _open(store, gateway, key, ca)
        current = _load(opened, model)
        shown = Console()
        if not shown.is_terminal:
            _print_state(current)
        with Live(view(current), console=shown, auto_refresh=False) as live:
            while not current.finished:
                time.sleep(0.5)
                before, current = current, _followed(opened, current)
                live.update(view(current), refresh=True)
                if not shown.is_terminal and moved(before.state, current.state):
                    _print_state(current)
        if not shown.is_terminal:
            print()  # there, Live ends its last picture without it
        raise typer.Exit(0 if current.state.phase is Phase.PROMOTED else 1)


@rollout.command()
def pause(
    model: Model, store: Where = None, gateway: GatewayUrl = None, key: Key = None, ca: Ca = None
) -> None:
    """Keep the weight where it is. Harm still rolls back."""
    _command(lambda: _open(store, gateway, key, ca), model, "pause")


@rollout.command()
def resume(
    model: Model, store: Where = None, gateway: GatewayUrl = None, key: Key = None, ca: Ca = None
) -> None:
    """Go on after a pause; time limits start again."""
    _command(lambda: _open(store, gateway, key, ca), model, "resume")


@rollout.command()
def promote(
    model: Model, store: Where = None, gateway: GatewayUrl = None, key: Key = None, ca: Ca = None
) -> None:
    """Promote now, without waiting for more evidence."""
    _command(lambda: _open(store, gateway, key, ca), model, "promote")


@rollout.command()
def abort(
    model: Model, store: Where = None, gateway: GatewayUrl = None, key: Key = None, ca: Ca = None
) -> None:
    """Roll back now."""
    _command(lambda: _open(store, gateway, key, ca), model, "abort")


@rollout.command()
def history(
    model: Model,
    store: Where = None,
    gateway: GatewayUrl = None,
    key: Key = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """List a model's rollouts, oldest first."""
    with user_errors():
        from serving.rollout.record import to_json

        found = _open(store, gateway, key, ca).history(model)
        if as_json:
            print(json.dumps([to_json(each) for each in found]))
            return
        if not found:
            print("there was no rollout yet")
        for each in found:
            phase, why = each.state.phase.value, printable(each.state.reason.text)
            print(f"{each.id}  {each.stable} → {each.candidate}  {phase}: {why}")


@rollout.command()
def explain(
    model: Model,
    id_: RolloutId = None,
    store: Where = None,
    gateway: GatewayUrl = None,
    key: Key = None,
    ca: Ca = None,
) -> None:
    """Show every decision of a rollout, with the evidence that it rests on."""
    with user_errors():
        from serving.rollout.explain import explain as explain_rollout

        for line in explain_rollout(_find(_open(store, gateway, key, ca), model, id_)):
            print(printable(line))


@rollout.command()
def replay(
    model: Model,
    id_: RolloutId = None,
    store: Where = None,
    gateway: GatewayUrl = None,
    key: Key = None,
    ca: Ca = None,
    as_json: AsJson = False,
) -> None:
    """Derive every decision again from what is stored. Exits with 1 if one comes out differently."""
    with user_errors():
        from serving.rollout.explain import replay as replay_rollout

        replayed = replay_rollout(_find(_open(store, gateway, key, ca), model, id_))
        lines = [
            {
                "before": each.event.before.phase.value,
                "after": each.event.after.phase.value,
                "outcome": each.event.outcome,
                "from_evidence": each.verdict is not None,
                "same": each.same,
            }
            for each in replayed
        ]
        if as_json:
            print(json.dumps(lines))
        else:
            for line in lines:
                origin = "evidence" if line["from_evidence"] else "report"
                agreed = "the same again" if line["same"] else "COMES OUT OTHERWISE"
                print(f"{line['before']} → {line['after']}  [{line['outcome']}, from {origin}]  {agreed}")
        raise typer.Exit(0 if all(each.same for each in replayed) else 1)


def _open(store: str | None, gateway: str | None, key: str | None, ca: Path | None) -> Access:
    """The rollouts in a store or at a gateway; without either those of the settings."""
    from serving import settings
    from serving.rollout.access import CLUSTER, GatewayAccess, open_store

    if store is not None and gateway is not None:
        raise InvalidInput("--store and --gateway are two places; pass one of them")
    if gateway is not None:
        return GatewayAccess(gateway, key, trusting(ca))
    if store is not None:
        return open_store(store)
    loaded = settings.load()
    if loaded.rollout_namespace is not None:
        return open_store(CLUSTER + loaded.rollout_namespace)
    if loaded.rollout_store is not None:
        return open_store(str(loaded.rollout_store))
    raise InvalidInput(
        "no store of rollouts is named: pass --store FOLDER, --store kubernetes://NAMESPACE or --gateway "
        "URL, or set SLUICE_ROLLOUT_STORE to the gateway's"
    )


def _load(access: Access, model: str) -> Rollout:
    found = access.load(model)
    if found is None:
        raise NotFound(
            f'model "{model}" had no rollout yet; there are: {", ".join(access.models()) or "none"}'
        )
    return found


def _followed(access: Access, before: Rollout) -> Rollout:
    """A rollout as it is now, though another one of its model may have begun since.

    Raises:
        SluiceError: It is gone, or can no longer be read.
    """
    try:
        newest = access.load(before.model)
        return newest if newest and newest.id == before.id else _find(access, before.model, before.id)
    except SluiceError as error:
        raise SluiceError(f"the rollout cannot be followed any more: {error.message}") from error


def _print_state(found: Rollout) -> None:
    """Print a rollout's phase and the reason for it as a line, flushed at once: stdout may be a pipe."""
    state = found.state
    step = f" {state.step + 1}" if state.phase.value == "canary" else ""
    print(f"{found.id}: {state.phase.value}{step}: {printable(state.reason.text)}", flush=True)


def _find(access: Access, model: str, id_: str | None) -> Rollout:
    """The rollout with an id, or the model's newest."""
    if id_ is None:
        return _load(access, model)
    known = {each.id: each for each in access.history(model)}
    if id_ not in known:
        there = ", ".join(known) or "none"
        raise NotFound(f'model "{model}" had no rollout {id_}; there are: {there}')
    return known[id_]


def _command(access: Callable[[], Access], model: str, what: Command) -> None:
    with user_errors():
        moved = access().order(model, what)
        print(f"{moved.id}: {moved.state.phase.value}")
