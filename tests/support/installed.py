"""An environment of its own with installed packages, and nothing of this checkout on its path."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Installed:
    """A virtual environment in `folder` with these packages: requirements, or paths of projects to build."""

    def __init__(self, folder: Path, packages: Sequence[str | Path]) -> None:
        self.folder = folder
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        (folder / "config.toml").write_text('[sinks.console]\ntype = "stdout"\n', encoding="utf-8")
        self.run("python", "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check", *packages)

    def run(self, command: str, *arguments: str | Path) -> str:
        """What a command of the environment prints on standard output; it must succeed."""
        done = subprocess.run(
            [self.folder / "venv" / "bin" / command, *arguments],
            cwd=self.folder,
            env={"PATH": os.environ["PATH"], "HOME": str(self.folder), **pip_settings()},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def pip_settings() -> dict[str, str]:
    """Where pip installs from on this machine."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
