"""The README is true: every command in it runs."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY
from tests.support.processes import started

README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
    if line.strip()
]
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
MAKE = [command for command in COMMANDS if command.startswith("make ")]
OTHERS = [command for command in COMMANDS if not command.startswith("make ")]


def test_the_readme_has_commands() -> None:
    assert "make serve" in MAKE
    assert any(command.startswith("curl --data-binary") for command in OTHERS)


async def test_every_other_command_runs(digits_models: Path, tmp_path: Path) -> None:
    """In a folder like a clone, with a gateway up, one after the other as a reader would; and the Python."""
    (tmp_path / "serving" / "samples").mkdir(parents=True)
    shutil.copy(REPOSITORY / "serving" / "samples" / "seven.png", tmp_path / "serving" / "samples")
    async with started(["serve", f"--models={digits_models}"]) as live:
        for command in OTHERS:
            here = command.replace("localhost:8080", live.http_url.removeprefix("http://"))
            path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
            done = await asyncio.to_thread(
                subprocess.run,
                ["bash", "-c", here],
                cwd=tmp_path,
                env={**os.environ, "PATH": path, "SLUICE_URL": live.http_url, "PYTHONPATH": str(REPOSITORY)},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{command}: {done.stderr}"
            if "--data-binary" in command:
                assert '"label":"7"' in done.stdout
        (program,) = PYTHON
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", program.replace("http://localhost:8080", live.http_url)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("1 7\n", "")
