"""The descriptor sets are what the installed packages and the .proto files say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tensorflow_serving.apis import predict_pb2

import protos
from serving.protos import PredictRequest


def test_descriptor_sets_are_up_to_date(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "protos.generate", str(tmp_path)], check=True, capture_output=True)
    for name in ("tensorflow_serving.binpb", "sluice.binpb"):
        committed = (Path(protos.__file__).parent / name).read_bytes()
        assert (tmp_path / name).read_bytes() == committed, f"{name} is out of date: run `make protos`"


def test_the_private_pool_lives_beside_the_packages_own_messages() -> None:
    """In one process: both sets of classes work, and read each other's bytes."""
    ours = PredictRequest(output_filter=["scores"])
    ours.model_spec.name = "digits"
    theirs = predict_pb2.PredictRequest.FromString(ours.SerializeToString())
    assert theirs.model_spec.name == "digits"
    assert list(theirs.output_filter) == ["scores"]
    assert type(theirs) is not type(ours)
    assert PredictRequest.FromString(theirs.SerializeToString()) == ours
