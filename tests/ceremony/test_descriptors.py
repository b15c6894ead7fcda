"""A worker raises its limit of descriptors at the start."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import resource
hard = min(2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
from ceremony import descriptors
from ceremony.settings import read_settings
from ceremony.worker import worker_of_process
import asyncio
async def made():
    return worker_of_process(read_settings({"log": "sqlite:///tmp/never-opened.db"}))
asyncio.run(made())
print(descriptors.limit() == hard, descriptors.left_to_clients() == hard // 2)
"""


def test_a_worker_may_open_as_many_descriptors_as_the_hard_limit_allows() -> None:
    # specification 22.12
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "True True", done.stdout
    assert "few_descriptors" in done.stdout + done.stderr
