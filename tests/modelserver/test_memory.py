"""The model server's memory: in huge pages where programs can ask for them, and given back once free."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serving.modelserver import huge_pages
from tests.modelserver import models
from tests.modelserver.conftest import StartServer
from tests.modelserver.process import IS_OURS, ServerProcess, until

PROGRAM = """
import os, sys
from pathlib import Path
from serving.modelserver import huge_pages
huge_pages.KERNEL_SETTING = Path(sys.argv[1])
print(os.getpid(), flush=True)
huge_pages.ask()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[2:], sys.flags.dont_write_bytecode)
"""
ASKED = "glibc.malloc.hugetlb=1"


def ask(setting: Path, **variables: str) -> list[str]:
    """What a program prints that asks, where `setting` is the kernel's file: its process ID, again if it was
    restarted, then its tunables and arguments.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM, str(setting), "an argument", ""],
        env=inherited | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.fixture
def madvise(tmp_path: Path) -> Path:
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never\n")
    return setting


def test_the_program_restarts_in_the_same_process_with_its_arguments(madvise: Path) -> None:
    before, after, said = ask(madvise)
    assert before == after
    assert said == f"{ASKED} ['an argument', ''] 1"


def test_other_tunables_stay(madvise: Path) -> None:
    assert ask(madvise, GLIBC_TUNABLES="glibc.malloc.check=0")[-1].startswith(
        f"glibc.malloc.check=0:{ASKED} "
    )


@pytest.mark.parametrize("chosen", ["glibc.malloc.hugetlb=0", ASKED])
def test_what_the_user_has_chosen_stays(madvise: Path, chosen: str) -> None:
    _, said = ask(madvise, GLIBC_TUNABLES=chosen)
    assert said.startswith(f"{chosen} ")


@pytest.mark.parametrize("text", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_no_restart_where_it_would_change_nothing(tmp_path: Path, text: str | None) -> None:
    setting = tmp_path / "enabled"
    if text is not None:  # a kernel built without huge pages has no such file
        setting.write_text(text)
    _, said = ask(setting)
    assert said.startswith("None ")


@pytest.mark.skipif(not IS_OURS, reason="of Sluice's own")
def test_a_server_has_huge_pages(server: ServerProcess) -> None:
    if not huge_pages.is_to_be_asked_for():
        pytest.skip(f"{huge_pages.KERNEL_SETTING} does not say [madvise]")
    rollup = Path(f"/proc/{server.process.pid}/smaps_rollup").read_text()
    sizes = {line.split(":")[0]: int(line.split()[1]) for line in rollup.splitlines() if line.endswith(" kB")}
    assert sizes["AnonHugePages"] > 0


@pytest.mark.skipif(not IS_OURS, reason="of Sluice's own")
def test_what_loading_leaves_free_is_given_back(start: StartServer, tmp_path: Path) -> None:
    """A model's constants are copied several times while it is loaded."""
    base = tmp_path / "large"
    models.large(base / "1")
    server = start("--model_name=large", f"--model_base_path={base}").wait_ready()
    used = psutil.Process(server.process.pid).memory_info
    loaded = used().rss
    until(lambda: used().rss < loaded - models.LARGE_BYTES, "memory is given back")
