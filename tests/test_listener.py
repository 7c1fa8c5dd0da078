"""The address to listen on: what [receiver] host may say, IPv4 and IPv6 together, and what `check` finds out."""

from __future__ import annotations

import socket
from contextlib import closing
from pathlib import Path

import pytest
from conftest import TEST_SECRET, RunningReceiver
from support.commands import CONSOLE, JOURNAL, STRONG_SECRET, Operator, Shell

from receiver import listener
from receiver.errors import ConfigError, ReceiverError
from receiver.listener import bind, is_in_use, listen
from receiver.settings import load
from receiver.simulator import Simulator
from receiver.testing.ports import reserve_port
from receiver.variables import SECRET

HOSTS = [
    "0.0.0.0",
    "127.0.0.1",
    "192.0.2.7",
    "::",
    "::1",
    "2001:db8::1",
    "::ffff:192.0.2.1",
    "fe80::1%eth0",
    "localhost",
    "my-host.example.com",
    "my_app",
    "example.com.",
    "3com.example",
]
NO_HOSTS = [
    "",
    " ",
    "*",
    "[::]",
    "[::1]",
    "[::1]:8000",
    "::1]",
    "127.0.0.1:8000",
    "localhost:8000",
    ":8000",
    "0.0.0.0/0",
    " 127.0.0.1",
    "127.0.0.1\n",
    "::12345",
    ":::",
    "http://127.0.0.1",
    "unix:/run/receiver.sock",
    "/run/receiver.sock",
    "a b",
    "bücher.example",
    "0.0.0.0,::",
]
PROBLEM = (
    'give an address without brackets and port, such as "127.0.0.1", "0.0.0.0" for all of IPv4 or "::" for all of IPv6 '
    "and IPv4; the port is set by the environment variable PORT"
)


def load_host(host: str, folder: Path) -> str:
    text = host.replace("\n", "\\n")
    (folder / "config.toml").write_text(f'[receiver]\nhost = "{text}"\n', encoding="utf-8")
    return load({"RECEIVER_CONFIG": str(folder / "config.toml"), SECRET: STRONG_SECRET}).receiver.host


@pytest.mark.parametrize("host", HOSTS)
def test_an_address_or_a_host_name_is_a_host(host: str, tmp_path: Path) -> None:
    assert load_host(host, tmp_path) == host


@pytest.mark.parametrize("host", NO_HOSTS)
def test_anything_else_is_a_problem_that_says_what_to_write(host: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_host(host, tmp_path)
    assert caught.value.problems == (f"config.toml [receiver]: host = {host!r}: {PROBLEM}",)


def accepts(host: str, port: int) -> bool:
    """Whether a connection to this address is accepted."""
    try:
        socket.create_connection((host, port), timeout=10).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.parametrize(
    ("host", "ipv4", "ipv6"),
    [
        ("0.0.0.0", True, False),
        ("127.0.0.1", True, False),
        ("localhost", True, False),
        ("::1", False, True),
        ("::", True, True),
        ("::ffff:127.0.0.1", True, False),
    ],
)
def test_two_colons_are_ipv6_and_ipv4_together_and_every_other_address_is_itself(
    host: str, ipv4: bool, ipv6: bool
) -> None:
    port = reserve_port()
    with closing(listen(host, port)):
        assert (accepts("127.0.0.1", port), accepts("::1", port)) == (ipv4, ipv6)


def test_a_host_name_with_addresses_of_both_kinds_is_bound_to_that_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    both = [info for host in ("::1", "127.0.0.1") for info in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **named: both)
    with closing(bind("localhost", 0)) as bound:
        assert bound.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(("host", "client"), [("::", "127.0.0.1"), ("::", "[::1]"), ("::1", "[::1]")])
def test_the_receiver_can_be_reached_over_ipv6_as_over_ipv4(
    host: str, client: str, tmp_path: Path, operator: Operator
) -> None:
    config = f'[receiver]\nhost = "{host}"\n{JOURNAL}{CONSOLE}'
    receiver = RunningReceiver(tmp_path, config, None, {"WEB_CONCURRENCY": "1"})
    receiver.url = f"http://{client}:{receiver.port}"
    try:
        receiver.start()
        assert f"receiving on {host} port {receiver.port}\n" in receiver.log
        assert receiver.push(Simulator().body("touch")) == (200, "accepted")
        assert receiver.push(b"", {})[0] == 400
        code, out, errors = operator.run("send", receiver.url, "--type", "touch", **{SECRET: TEST_SECRET})
        assert (code, len(out), errors) == (0, 1, [])
        assert receiver.stop() == 0
    finally:
        receiver.kill_all()
    assert "Traceback" not in receiver.log


IN_USE = (
    "warning: {host} port {port} is in use, perhaps by this receiver itself; if it does not run, stop the program that "
    "uses it, or set PORT to another one"
)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_check_warns_of_a_port_that_is_in_use(host: str, operator: Operator) -> None:
    operator.configure(f'[receiver]\nhost = "{host}"\n{JOURNAL}{CONSOLE}')
    port = reserve_port()
    assert operator.run("check", PORT=str(port)).errors == []
    with closing(listen(host, port)):
        code, out, errors = operator.run("check", PORT=str(port))
    assert (code, len(out), errors) == (0, 1, [IN_USE.format(host=host, port=port)])
    assert operator.run("check", PORT=str(port)).errors == []


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("192.0.2.1", "Cannot assign requested address"),
        ("2001:db8::1", "Cannot assign requested address"),
        ("8000", "Cannot assign requested address"),
    ],
)
def test_check_and_serve_report_an_address_that_is_not_of_this_machine(
    host: str, reason: str, operator: Operator, shell: Shell
) -> None:
    port = str(reserve_port())
    error = f"error: cannot listen on {host} port {port}: {reason}; set [receiver] host to an address of this machine"
    operator.configure(f'[receiver]\nhost = "{host}"\n{JOURNAL}{CONSOLE}')
    assert operator.run("check", PORT=port) == (1, [], [error])
    shell.configure(f'[receiver]\nhost = "{host}"\n{JOURNAL}{CONSOLE}')
    assert shell.run("serve", PORT=port).errors[-1:] == [error]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied; set PORT to one above 1023"),
        (
            OSError(97, "Address family not supported by protocol"),
            'Address family not supported by protocol; this machine has no IPv6: set [receiver] host to "0.0.0.0"',
        ),
        (
            socket.gaierror(-2, "Name or service not known"),
            "Name or service not known; set [receiver] host to an address of this machine",
        ),
        (OSError(22, "Invalid argument"), "Invalid argument; set [receiver] host to an address of this machine"),
    ],
)
def test_check_and_listen_say_why_an_address_cannot_be_bound(
    error: OSError, line: str, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(host: str, port: int) -> socket.socket:
        raise error

    monkeypatch.setattr(listener, "bind", fail)
    operator.configure(f"{JOURNAL}{CONSOLE}")
    assert operator.run("check", PORT="80") == (1, [], [f"error: cannot listen on 0.0.0.0 port 80: {line}"])
    for attempt in (listen, is_in_use):
        with pytest.raises(ReceiverError, match=r"cannot listen on 0\.0\.0\.0 port 80"):
            attempt("0.0.0.0", 80)


def test_a_socket_that_cannot_be_bound_is_closed(recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(OSError, match="Cannot assign"):
        bind("192.0.2.1", reserve_port())
    assert list(recwarn) == []


def test_check_receives_nothing(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that came while `check` has the port would lose its push."""
    monkeypatch.setattr(socket.socket, "listen", lambda *given: pytest.fail("it listens"))
    operator.configure(f"{JOURNAL}{CONSOLE}")
    assert operator.run("check", PORT=str(reserve_port())).errors == []
