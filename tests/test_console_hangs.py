"""A journal or a registry that hangs or is away: the page says so in one sentence, and pushes go on."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator

import gevent
import pytest
from conftest import StartReceiver
from support.console import CONFIG, PASSWORDS, get
from support.pushes import event

from receiver.intake.native_thread import Crew


@pytest.fixture
def silent_server() -> Iterator[int]:
    """The port of a server that accepts connections and never responds, as a database that hangs."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


def sentence(html: bytes) -> str:
    found = re.search(r'<p class="lead">(.*?)</p>', html.decode(), re.DOTALL)
    assert found
    return found[1]


def test_a_registry_that_hangs_is_one_sentence_and_pushes_go_on(
    silent_server: int, start_receiver: StartReceiver
) -> None:
    url = f"postgresql://user:secret-of-the-url@127.0.0.1:{silent_server}/registry"
    config = f'[sensors]\nurl = "{url}"\n[receiver]\nhost = "127.0.0.1"\ndeliver = false\n'
    receiver = start_receiver(config, ready=False, **PASSWORDS)
    waiting = [threading.Thread(target=get, args=(receiver, "/console/sensors")) for _ in range(8)]
    for thread in waiting:
        thread.start()
    for n in range(20):
        assert receiver.push(event(f"while the registry hangs {n}")) == (200, "accepted")
    assert receiver.http.request("GET", f"{receiver.url}/healthz").status == 200
    response = get(receiver, "/console/sensors")
    assert response.status == 503
    assert sentence(response.data).endswith(".")
    assert b"secret-of-the-url" not in response.data
    for thread in waiting:
        thread.join(60)


def test_a_registry_that_is_not_there_yet_is_no_error_of_the_overview(start_receiver: StartReceiver) -> None:
    receiver = start_receiver('[receiver]\nhost = "127.0.0.1"\ndeliver = false\n', ready=False, **PASSWORDS)
    assert get(receiver, "/console/").status == 200
    response = get(receiver, "/console/sensors")
    assert (response.status, sentence(response.data)) == (
        404,
        "There is no registry of sensors yet; the dispatcher creates it.",
    )


def test_a_registry_that_is_disabled_is_said_to_be(start_receiver: StartReceiver) -> None:
    receiver = start_receiver(f"{CONFIG}[sensors]\nenabled = false\n", **PASSWORDS)
    assert get(receiver, "/console/").status == 200
    assert sentence(get(receiver, "/console/silence").data) == (
        "The registry of sensors is disabled in config.toml [sensors]."
    )


def test_a_call_that_hangs_takes_one_thread_and_nobody_waits_for_it_for_long() -> None:
    crew, release = Crew(2), threading.Event()
    with pytest.raises(TimeoutError):
        crew.call(release.wait, 0.2)
    assert crew.call(lambda: "the other thread", 20) == "the other thread"
    with pytest.raises(TimeoutError):
        crew.call(release.wait, 0.2)
    with pytest.raises(TimeoutError):
        crew.call(lambda: "no thread is left", 0.2)
    release.set()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            assert crew.call(lambda: "again", 0.2) == "again"
            break
        except TimeoutError:
            continue


def test_other_greenlets_go_on_while_a_call_hangs() -> None:
    crew, release, seen = Crew(1), threading.Event(), []
    hanging = gevent.spawn(crew.call, release.wait, 20)
    for n in range(3):
        gevent.sleep(0.01)
        seen.append(n)
    release.set()
    assert hanging.get(timeout=20)
    assert seen == [0, 1, 2]


def test_the_exception_of_a_call_is_raised_in_its_greenlet() -> None:
    def fail() -> None:
        raise LookupError("of the call")

    with pytest.raises(LookupError, match="of the call"):
        Crew(1).call(fail, 20)
