"""Puts a controller together from a gateway's parts and settings."""

from __future__ import annotations

import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.backends.pool import Pool
from serving.catalog import Catalog
from serving.errors import InvalidInput
from serving.processes.upstream import absolute
from serving.rollout.controller import Controller, Surroundings
from serving.rollout.desk import Desk
from serving.rollout.events import Announcer
from serving.rollout.feedback import KEY_BYTES, TTL_S, Receipts, shared_key
from serving.rollout.leader import CountSource, FolderCounts, FolderLeadership, Leadership
from serving.rollout.memory import FolderMemory
from serving.rollout.plan import Plan
from serving.rollout.plan_file import load_plan
from serving.rollout.reconcile import Reconciler
from serving.rollout.steering import Steering
from serving.rollout.store import FileStore, Store
from serving.settings import Settings
from serving.telemetry.metrics import Metrics


def build(
    settings: Settings,
    pool: Pool,
    catalog: Catalog,
    steering: Steering,
    metrics: Metrics,
    shared: Shared,
    *,
    models_dir: Path | str,
    on_config: Callable[[Any], None] | None = None,
) -> Controller:
    """A controller over what the gateways share.

    Args:
        settings: What the gateway runs with.
        pool: The replicas.
        catalog: What is known of their models.
        steering: The gateway's own.
        metrics: Where the controller's metrics go.
        shared: What the gateways share.
        models_dir: Where the replicas find the models' folders, or the URL of a bucket.
        on_config: Called with the model config that a replica which starts now should read.
    """
    base = absolute(models_dir)
    around = Surroundings(
        store=shared.store,
        steering=steering,
        pool=pool,
        catalog=catalog,
        reconciler=Reconciler(pool, lambda model: f"{base}/{model}", on_config),
        leadership=shared.leadership,
        source=shared.source,
        announcer=Announcer(metrics.registry),
        plan=shared.plan,
    )
    return Controller(around, settings.rollout_interval_s)


@dataclass(frozen=True, slots=True)
class Shared:
    """What the gateways of one service share, in a folder or in a cluster, as the settings say."""

    store: Store
    leadership: Leadership
    source: CountSource
    receipts: Receipts
    plan: Plan

    @property
    def desk(self) -> Desk:
        """Where people administer the rollouts."""
        return Desk(self.store, self.receipts, self.plan)


@contextmanager
def shared_by(
    settings: Settings, steering: Steering, metrics: Metrics, models_dir: Path | str
) -> Iterator[Shared]:
    """What the gateways share, while the block runs.

    Args:
        settings: What the gateway runs with.
        steering: The gateway's own.
        metrics: Where the metrics of what is shared go.
        models_dir: As that of `build`.

    Raises:
        InvalidInput: The settings contradict each other, or the plan cannot be read.
    """
    plan = Plan() if settings.rollout_plan is None else load_plan(settings.rollout_plan)
    identity = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
    if settings.rollout_namespace is None:
        assert settings.rollout_store is not None
        folder = settings.rollout_store
        steering.memory = FolderMemory(folder, TTL_S)
        store = FileStore(folder)
        store.note_models(absolute(models_dir))
        yield Shared(
            store,
            FolderLeadership(folder),
            FolderCounts(folder, identity),
            Receipts(shared_key(folder), steering, steering.memory),
            plan,
        )
        return
    with _in_cluster(settings, steering, metrics, plan, identity) as shared:
        yield shared


@contextmanager
def _in_cluster(
    settings: Settings, steering: Steering, metrics: Metrics, plan: Plan, identity: str
) -> Iterator[Shared]:
    from serving.rollout.kubernetes import KubernetesStore
    from serving.rollout.lease import LeaseLeadership
    from serving.rollout.model_rollout import cluster_client
    from serving.rollout.prometheus import PrometheusCounts, SteeringCollector

    if settings.prometheus_url is None:
        raise InvalidInput("rollout_namespace needs prometheus_url: one gateway sees only its own requests")
    assert settings.rollout_namespace is not None
    client = cluster_client(settings.rollout_namespace)
    store = KubernetesStore(client)
    metrics.registry.register(SteeringCollector(steering, metrics.class_group))
    secret = _feedback_key(settings.feedback_key_file)
    threading.Thread(target=store.follow, name="modelrollouts", daemon=True).start()
    try:
        yield Shared(
            store,
            LeaseLeadership(client, identity),
            PrometheusCounts(settings.prometheus_url, settings.prometheus_selector),
            Receipts(secret, steering, steering.memory),
            plan,
        )
    finally:
        store.close()


def _feedback_key(file: Path | None) -> bytes:
    """The key that signs prediction ids; raises InvalidInput if a file's is short enough to be guessed."""
    if file is None:
        return secrets.token_bytes(KEY_BYTES)
    key = file.read_bytes()
    if len(key) < KEY_BYTES:
        raise InvalidInput(
            f"feedback_key_file: {file} holds {len(key)} bytes; what signs prediction ids is {KEY_BYTES} "
            "random ones, the same for every gateway"
        )
    return key
