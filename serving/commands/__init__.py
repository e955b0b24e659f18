"""The sub-commands of `sluice` that serve, ask and operate; `serving.cli` finds them as entry points."""
