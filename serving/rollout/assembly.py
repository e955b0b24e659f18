"""Puts a controller together from a gateway's parts and settings."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serving.backends.pool import Pool
from serving.catalog import Catalog
from serving.rollout.controller import Controller, Surroundings
from serving.rollout.desk import Desk
from serving.rollout.events import Announcer
from serving.rollout.feedback import Receipts, shared_key
from serving.rollout.leader import FolderCounts, FolderLeadership
from serving.rollout.plan import Plan
from serving.rollout.plan_file import load_plan
from serving.rollout.reconcile import Reconciler
from serving.rollout.steering import Steering
from serving.rollout.store import FileStore
from serving.settings import Settings
from serving.telemetry import Metrics

Published = Callable[[str], list[int]]
"""The versions of a model that are there to be loaded, as far as can be seen; empty if it cannot be seen."""


def build(
    settings: Settings,
    pool: Pool,
    catalog: Catalog,
    steering: Steering,
    metrics: Metrics,
    *,
    models_dir: Path,
    published: Published,
    on_config: Callable[[Any], None] | None = None,
) -> Controller:
    """A controller over the store that the settings name.

    Args:
        settings: What the gateway runs with; `rollout_store` is set.
        pool: The replicas.
        catalog: What is known of their models.
        steering: The gateway's own.
        metrics: Where the controller's metrics go.
        models_dir: Where the replicas find the models' folders.
        published: Which versions are there to be loaded.
        on_config: Is given the model config that a replica which starts now should read.

    Raises:
        InvalidInput, NotFound: The plan cannot be read.
    """
    assert settings.rollout_store is not None
    folder = settings.rollout_store
    base = models_dir.resolve()
    plan = Plan() if settings.rollout_plan is None else load_plan(settings.rollout_plan)
    identity = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
    around = Surroundings(
        store=FileStore(folder),
        steering=steering,
        pool=pool,
        catalog=catalog,
        reconciler=Reconciler(pool, lambda model: str(base / model), on_config),
        leadership=FolderLeadership(folder),
        source=FolderCounts(folder, identity),
        announcer=Announcer(metrics.registry),
        published=published,
        plan=plan,
    )
    return Controller(around, settings.rollout_interval_s)


def desk(settings: Settings, steering: Steering) -> Desk:
    """Where people administer the rollouts of the store that the settings name."""
    assert settings.rollout_store is not None
    plan = Plan() if settings.rollout_plan is None else load_plan(settings.rollout_plan)
    receipts = Receipts(shared_key(settings.rollout_store), steering)
    return Desk(FileStore(settings.rollout_store), receipts, plan)


def published_in(models_dir: Path) -> Published:
    """The versions in a folder of models."""

    def versions(model: str) -> list[int]:
        folder = models_dir / model
        if not folder.is_dir():
            return []
        return sorted(
            int(child.name) for child in folder.iterdir() if child.name.isdigit() and child.is_dir()
        )

    return versions
