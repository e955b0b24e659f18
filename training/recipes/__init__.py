"""Recipes: from the name of one, and the user's options, to a plan that the training loop can run."""

from __future__ import annotations

import importlib

from training.config import Options, preset
from training.recipes.base import Plan


def plan(recipe: str, options: Options) -> Plan:
    """The recipe made concrete: data loaded, models ready to be built."""
    chosen = preset(recipe)
    chosen.check(options)
    made: Plan = importlib.import_module(chosen.module).plan(chosen, options)
    return made
