"""The chapter on upgrades of docs/heroku.md, followed command by command: an upstream change meets one of one's own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from support.pages import Page

BLOCKS = re.findall(
    r"^```\n(.*?)^```$", Page("docs/heroku.md").text.partition("\n## Upgrade\n")[2], re.DOTALL | re.MULTILINE
)
UPGRADE, CONFLICT, OWN_FILE = BLOCKS[:3]
OWN = ("# retention_days = 7 ", "retention_days = 30 ")
NEIGHBOUR = ("# min_free_mb = 100 ", "# min_free_mb = 200 ")


class Repositories:
    """Upstream, a clone of it with a change of its user, and what is pushed to Heroku."""

    def __init__(self, folder: Path) -> None:
        self.upstream, self.own, self.heroku = folder / "upstream", folder / "own", folder / "heroku"
        self.upstream.mkdir()
        shutil.copy(ROOT / "config.toml", self.upstream)
        self.run(self.upstream, "git init -q -b main && git add -A && git commit -qm First")
        self.run(folder, "git clone -q upstream own && git init -q --bare -b main heroku")
        self.run(self.own, "git remote add heroku ../heroku")

    def run(self, folder: Path, script: str, code: int = 0) -> str:
        """What a script prints, up to the first command that fails."""
        author = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.com"}
        committer = {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.com"}
        done = subprocess.run(
            ["sh", "-ec", script],
            cwd=folder,
            env={**os.environ, **author, **committer, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout

    def change(self, folder: Path, change: tuple[str, str], name: str = "config.toml") -> None:
        text = (folder / name).read_text()
        assert change[0] in text
        (folder / name).write_text(text.replace(*change))
        self.run(folder, "git commit -qam Change")

    @property
    def deployed(self) -> str:
        return self.run(self.heroku, "git show main:config.toml")


@pytest.fixture
def repositories(tmp_path: Path) -> Repositories:
    return Repositories(tmp_path)


def migrate(folder: Path) -> subprocess.CompletedProcess[str]:
    """The release phase."""
    return subprocess.run(
        [sys.executable, "-m", "receiver", "migrate"],
        cwd=ROOT,
        env={**os.environ, "RECEIVER_CONFIG": str(folder / "config.toml")},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_changes_in_different_places_are_merged(repositories: Repositories) -> None:
    repositories.change(repositories.own, OWN)
    repositories.change(repositories.upstream, ("# log_format", "# log_format "))
    repositories.run(repositories.own, UPGRADE)
    assert OWN[1] in repositories.deployed
    assert "# log_format " in repositories.deployed


def test_a_change_next_to_ones_own_deploys_nothing_until_it_is_resolved(repositories: Repositories) -> None:
    repositories.change(repositories.own, OWN)
    own = (repositories.own / "config.toml").read_text()
    repositories.change(repositories.upstream, NEIGHBOUR)
    shown = repositories.run(repositories.own, UPGRADE, code=1)
    assert re.search(r"CONFLICT .* in config\.toml", shown)
    assert repositories.run(repositories.heroku, "git branch") == ""
    released = migrate(repositories.own)
    assert (released.returncode, len(released.stderr.splitlines())) == (1, 1)
    assert "not valid TOML" in released.stderr
    repositories.run(repositories.own, CONFLICT)
    assert "+" + OWN[1] in repositories.run(repositories.own, "git diff HEAD^2 config.toml")
    repositories.run(repositories.own, UPGRADE)
    assert repositories.deployed == own
    assert migrate(repositories.own).returncode == 0


def test_a_file_of_ones_own_is_in_the_way_of_no_upgrade(repositories: Repositories) -> None:
    repositories.run(repositories.own, OWN_FILE.replace("heroku config:set", "true"))
    repositories.change(repositories.own, OWN, "my.toml")
    repositories.change(repositories.upstream, NEIGHBOUR)
    repositories.run(repositories.own, UPGRADE)
    assert NEIGHBOUR[1] in repositories.deployed
    assert OWN[1] in repositories.run(repositories.heroku, "git show main:my.toml")
