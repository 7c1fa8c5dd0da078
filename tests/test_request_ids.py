"""The id of each request: the client's own if it is safe to log, otherwise a new one."""

from __future__ import annotations

import re

from conftest import RunningReceiver


def request_id(receiver: RunningReceiver, given: str | None) -> str:
    headers = {} if given is None else {"X-Request-Id": given}
    return receiver.http.request("POST", receiver.url, headers=headers).headers["X-Request-Id"]


def test_a_valid_id_from_the_client_is_returned(shared_receiver: RunningReceiver) -> None:
    valid = ["a", "A-7_z", "0" * 64]
    assert [request_id(shared_receiver, given) for given in valid] == valid


def test_a_missing_or_invalid_id_is_replaced_with_a_new_one(shared_receiver: RunningReceiver) -> None:
    invalid = [None, "", "a b", "0" * 65, "a,b", "\u00e9", 'a"', "a%0a"]
    new = [request_id(shared_receiver, given) for given in invalid]
    assert [each for each in new if not re.fullmatch("[0-9a-f]{32}", each)] == []
    assert len(set(new)) == len(new)
