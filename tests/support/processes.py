"""Python code in processes of its own, which can import whatever tests can."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from receiver.testing.running import ROOT

TESTS = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{TESTS}"}


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """A process that runs this code with its standard input and output as pipes."""
    return subprocess.Popen(
        _command(code, arguments),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def run_python(code: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run this code to its end; `options` are those of subprocess.run."""
    given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(_command(code, arguments), cwd=ROOT, env=ENVIRONMENT, timeout=60, check=False, **given)


def _command(code: str, arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]
