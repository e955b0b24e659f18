"""`curl`, as people type it."""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from serving.commands.serve import SAMPLE
from tests.doors.conftest import Live

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")


def curl(*arguments: str) -> Any:
    done = subprocess.run(["curl", "-sS", "-m", "30", *arguments], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def best(answer: Any, place: int = 0) -> tuple[str, int]:
    return answer["results"][place]["classes"][0]["label"], answer["version"]


def test_every_way_to_send_an_image_gets_the_same_class(live: Live, tmp_path: Path) -> None:
    url = f"{live.http_url}/v1/models/digits:classify"
    packed = tmp_path / "seven.png.gz"
    packed.write_bytes(gzip.compress(SAMPLE.read_bytes()))
    body = tmp_path / "body.json"
    body.write_text(json.dumps({"images": [{"b64": base64.b64encode(SAMPLE.read_bytes()).decode()}]}))
    png = ("-H", "Content-Type: image/png")
    answers = [
        curl("--data-binary", f"@{SAMPLE}", *png, url),
        curl("--data-binary", f"@{SAMPLE}", *png, f"{live.http_url}/v1/classify"),
        curl("--data-binary", f"@{SAMPLE}", *png, url.replace(":classify", "/labels/stable:classify")),
        curl("-H", "Transfer-Encoding: chunked", "--data-binary", f"@{SAMPLE}", *png, url),
        curl("-F", f"images=@{SAMPLE}", "-F", f"images=@{SAMPLE}", url),
        curl("-F", f"images=@{SAMPLE}", "-F", "top_k=3", url),
        curl("--data-binary", f"@{packed}", "-H", "Content-Encoding: gzip", *png, url),
        curl("-d", f"@{body}", url),
        curl("-d", f"@{body}", "-H", "Content-Type: application/json", url),
        curl("--http1.0", "--data-binary", f"@{SAMPLE}", *png, url),
    ]
    assert {best(answer) for answer in answers} == {(live.label, live.version)}


def test_predict_as_in_tensorflow_servings_guide(live: Live) -> None:
    image = base64.b64encode(SAMPLE.read_bytes()).decode()
    body = json.dumps({"signature_name": "serving_bytes", "instances": [{"image_bytes": {"b64": image}}]})
    answer = curl("-d", body, f"{live.http_url}/v1/models/digits:predict")
    (scores,) = answer["predictions"]
    assert scores.index(max(scores)) == live.index
    status = curl(f"{live.http_url}/v1/models/digits")
    assert [(each["version"], each["state"]) for each in status["model_version_status"]] == [
        (str(live.version), "AVAILABLE")
    ]
