"""A machine of its own for the commands of deploy/README.md: with its own /etc, /opt, /var/lib, network and processes.

Only root can have one. What needs other machines, packages and certificates, is not run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from receiver.testing.running import ROOT, wait_until
from support.pages import Page

CAN_UNSHARE = (
    subprocess.run(
        ["unshare", "--mount", "--net", "--pid", "--fork", "true"], check=False, capture_output=True
    ).returncode
    == 0
)
PAGE = Page("deploy/README.md")
LATER = """
[sinks.later]
type = "webhook"
url = "http://127.0.0.1:9"
allow_private = true
"""
"""A sink at which everything stays pending."""

NOT_RUN = re.compile(r"sudo (apt-get|certbot) ")
PYTHON = Path(sys.base_prefix)
PACKAGES = Path(sysconfig.get_path("purelib")).resolve()

SET_UP = r"""
set -e
mount -t tmpfs -o mode=755 tmpfs /mnt
mkdir /mnt/bin /mnt/etc /mnt/keep /mnt/local
cp -a /etc/. /mnt/etc
mount --bind /mnt/etc /etc
number=0
for kept in "$PYTHON" "$PACKAGES"; do
    number=$((number + 1))
    mkdir /mnt/keep/$number
    mount --bind "$kept" /mnt/keep/$number
done
for hidden in /opt /root /var/lib /var/log /run; do
    mount -t tmpfs -o mode=755 tmpfs $hidden
done
mkdir -p /var/lib/nginx /var/log/nginx
number=0
for kept in "$PYTHON" "$PACKAGES"; do
    number=$((number + 1))
    [ -e "$kept" ] || { mkdir -p "$kept"; mount --bind /mnt/keep/$number "$kept"; }
done
mount --bind /usr/local/bin /mnt/local
mount -t tmpfs -o mode=755 tmpfs /usr/local/bin
for program in $(ls /mnt/local); do ln -s /mnt/local/$program /usr/local/bin/$program; done
cp "$SUPPORT/systemctl.py" /mnt/bin/systemctl
printf '#!/bin/sh\nif [ "$1" = -u ]; then shift; exec runuser -u "$@"; fi\nexec "$@"\n' > /mnt/bin/sudo
chmod +x /mnt/bin/*
ip link set lo up
echo '127.0.0.1 sensors.example.com' >> /etc/hosts
rm -f /etc/nginx/sites-enabled/default
userdel receiver 2>/dev/null || true
git config --system user.name Somebody
git config --system user.email somebody@example.com
export PATH="/mnt/bin:$PYTHON/bin:$PATH:/usr/sbin"
export PIP_NO_INDEX=1
unset PYTHON
set +e
"""


def environment(folder: str) -> str:
    """Commands that create a virtual environment with the packages of the tests, and `pip`."""
    return f"""python3 -m venv --without-pip {folder} &&
echo {PACKAGES} > {folder}/lib/python3.{sys.version_info.minor}/site-packages/others.pth &&
printf '#!/bin/sh\\nexec {folder}/bin/python -m pip "$@"\\n' > {folder}/bin/pip && chmod +x {folder}/bin/pip"""


class Box:
    """A shell of root on that machine, and the repository that it clones."""

    def __init__(self, folder: Path) -> None:
        self.upstream = folder / "upstream"
        self._copy_repository()
        self._shell = subprocess.Popen(
            ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "bash"],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        support = ROOT / "tests" / "support"
        self.run(f"PYTHON='{PYTHON}' PACKAGES='{PACKAGES}' SUPPORT='{support}'\n{SET_UP}")

    def run(self, script: str, code: int | None = 0) -> str:
        """What a script of bash prints. Its exit code must be this one, unless that is None."""
        assert self._shell.stdin
        assert self._shell.stdout
        self._shell.stdin.write(f'{script}\necho "=====$?"\n')
        self._shell.stdin.flush()
        lines = []
        for line in self._shell.stdout:
            if ended := re.fullmatch(r"(.*)=====(\d+)\n", line):
                output = "".join([*lines, ended[1]])
                assert code in (None, int(ended[2])), f"exit code {ended[2]} of {script}\n{output}"
                return output
            lines.append(line)
        raise AssertionError(f"the shell ended in {script}\n{''.join(lines)}")

    def follow(self, heading: str, number: int = 0, **placeholders: str) -> str:
        """Run the commands of a block below a heading of the page, in order, until one fails."""
        text = PAGE.text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
        block = re.findall(r"^```\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[number]
        commands = [line for line in block.splitlines() if not NOT_RUN.match(line)]
        script = " &&\n".join(commands).replace("<this repository>", str(self.upstream)).replace("https://", "http://")
        for name, value in placeholders.items():
            script = script.replace(name, value)
        return self.run(self.with_packages(script))

    def with_packages(self, script: str) -> str:
        """A script that clones the repository: what a box installs from the network, it has from the tests."""
        clone = f"git clone {self.upstream} /opt/receiver"
        made = environment("/opt/receiver/.venv")
        return script.replace(clone, f"{clone} --quiet &&\n{made}")

    def change_upstream(self, script: str) -> None:
        """Commit a change to the repository that the box has cloned."""
        subprocess.run(
            [
                "sh",
                "-ec",
                f"{script}\ngit add -A\ngit -c user.name=U -c user.email=u@example.com commit --allow-empty -qm Change",
            ],
            cwd=self.upstream,
            check=True,
        )

    def wait_until_ready(self) -> None:
        wait_until(
            lambda: self.run("curl -s -o /dev/null -w '%{http_code}' localhost:8000/readyz", None) == "200",
            60,
            what="200 from /readyz",
        )

    @property
    def log(self) -> str:
        """What the service has logged."""
        return self.run("cat /mnt/log")

    def close(self) -> None:
        self._shell.kill()  # and with it all processes of the box
        self._shell.communicate(timeout=20)

    def _copy_repository(self) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        for name in listed.stdout.decode().split("\0"):
            source = ROOT / name
            if name and not name.startswith("tests/") and source.is_file():
                target = self.upstream / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        subprocess.run(["git", "init", "-q", "-b", "main"], cwd=self.upstream, check=True)
        self.change_upstream("true")


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    if not CAN_UNSHARE or shutil.which("curl") is None:
        pytest.skip("only root may have a machine of its own, and it needs curl")
    box = Box(tmp_path)
    yield box
    box.close()


@pytest.fixture
def installed(box: Box) -> Box:
    box.follow("Install")
    box.wait_until_ready()
    return box


def rows(box: Box) -> int:
    """How many rows the files of the sink have."""
    return int(box.run("cat /var/lib/receiver/events*.csv 2>/dev/null | grep -vc ^event_id", None))
