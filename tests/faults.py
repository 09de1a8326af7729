"""Commands in processes of their own, for tests that watch and kill them."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def launch(folder: Path, words: Sequence[str]) -> subprocess.Popen[str]:
    """Start a command that knows no Ray but its own; what it says goes to the end of `folder`/stderr."""
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_JOB_CONFIG_JSON_ENV_VAR")}
    with open(folder / "stderr", "a") as errors:
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)


def finish(process: subprocess.Popen[str], folder: Path, seconds: float = 240) -> Any:
    """What the command printed last, as JSON, once it has ended well."""
    out, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, said(folder)
    return json.loads(out.splitlines()[-1])


def wait_until(what: Callable[[], T], folder: Path, seconds: float = 200) -> T:
    """The first answer that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"it never came: {said(folder)}")


def said(folder: Path) -> str:
    """The end of what was said."""
    return (folder / "stderr").read_text()[-3000:]
