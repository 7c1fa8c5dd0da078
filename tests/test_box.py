"""deploy/README.md, followed command by command on a machine of its own: install, and behind nginx."""

from __future__ import annotations

import re
import shutil

import pytest
from conftest import wait_until
from support.box import Box, box, installed, rows

__all__ = ["box", "installed"]


def test_the_receiver_is_installed_and_runs_as_its_own_user(installed: Box) -> None:
    installed.run("sudo receiver send http://localhost:8000/ --type touch --count 3")
    wait_until(lambda: rows(installed) == 3, what="the rows")
    owners = installed.run("find /var/lib/receiver -printf '%U\\n' | sort -u")
    assert owners == installed.run("id -u receiver")
    assert installed.run("cd /opt/receiver && git status --short") == ""
    assert "Traceback" not in installed.log


needs_nginx = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/bin") is None, reason="nginx is not installed"
)


@needs_nginx
def test_behind_nginx_a_push_arrives(installed: Box) -> None:
    installed.follow("nginx")
    shown = installed.follow("Test it")
    assert re.match(r"HTTP/1.1 200 OK\r?\n", shown[shown.index("HTTP/") :])
    assert "200 accepted" in shown
    assert re.search(r"^archive ", shown, re.MULTILINE)


@needs_nginx
def test_behind_nginx_the_log_names_the_address_of_a_rejected_push(installed: Box) -> None:
    installed.follow("nginx")
    push = "curl -s --interface 127.0.0.7 -H 'X-Forwarded-For: 192.0.2.1' -d '' http://sensors.example.com/"
    assert installed.run(push) == "missing header X-Dt-Signature"
    wait_until(lambda: "push rejected: " in installed.log, what="the line in the log")
    assert "(from 127.0.0.7, " in installed.log


@needs_nginx
@pytest.mark.parametrize("port", ["", ":8080"], ids=["the usual port", "another port"])
def test_behind_nginx_the_console_accepts_its_own_forms_and_no_others(port: str, installed: Box) -> None:
    """A browser sends no Sec-Fetch-Site over plain HTTP, so that Origin is compared with Host."""
    installed.run("echo CONSOLE_PASSWORD=a-long-password >> /etc/receiver.env; systemctl restart receiver")
    installed.wait_until_ready()
    installed.follow("nginx")
    installed.run("curl -sf -o /dev/null http://sensors.example.com/healthz")  # nginx has started when it responds
    installed.run("sed -i 's/listen 80;/& listen 8080;/' /etc/nginx/sites-available/receiver && nginx -s reload")
    site = f"http://sensors.example.com{port}"

    def resume(origin: str) -> str:
        code = "-s -o /dev/null -w '%{http_code}'"
        path = "console/sinks/archive/resume"
        return installed.run(f"curl {code} -u admin:a-long-password -H 'Origin: {origin}' -d '' {site}/{path}", None)

    wait_until(lambda: resume("http://evil.example") == "403", what="nginx on the new port")
    assert resume(site) == "409"  # the sink is not paused


def test_what_is_not_in_its_folder_is_read_only_for_the_service(installed: Box) -> None:
    installed.run("""install -d -o receiver /opt/elsewhere
        sed -i 's|/var/lib/receiver/events|/opt/elsewhere/events|' /etc/receiver/config.toml""")
    installed.follow("Change the configuration")
    installed.wait_until_ready()
    wait_until(lambda: "Read-only file system" in installed.log, what="the reason in the log")
