"""The fuzzer finds nothing in the receiver, and finds what is wrong with others within a few hundred pushes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

from fuzz.oracle import REASONS

HEADER = """
import logging, sys
from receiver import signature
from receiver.errors import Rejected, Rejection
from receiver.intake import group_commit, pushes
from receiver.journal import Outcome
verify, arrival, handler = signature.verify, pushes.arrival, pushes.PushHandler
group_commit.GroupCommit.__init__.__kwdefaults__.update(failing_seconds=60.0, wait_seconds=60.0)  # on a busy machine
"""
FOOTER = """
from fuzz.trial import run_round
figures = run_round("4", INPUTS)
print(*figures.results, *figures.findings.values(), sep="\\n")
sys.exit(len(figures.findings) and 3)
"""

FAULTS = {
    "accepts pushes without a signature": (
        "pushes.verify = lambda push, *a, **k: verify(push, *a, **k) if 'X-Dt-Signature' in push.headers else 'NAME'",
        "not the response to a push that is rejected",
    ),
    "accepts tokens for other bodies": (
        "signature._rejection_of_checksum = lambda given, actual: None",
        "not the response to a push that is rejected",
    ),
    "accepts tokens a second too long": (
        "signature.LEEWAY_SECONDS = 61",
        "not the response to a push that is rejected",
    ),
    "accepts the tokens of other organizations": (
        "signature.organization_id = lambda given: 'fuzzorganization0000'",
        "not the response to a push that is rejected",
    ),
    "rejects genuine pushes": (
        "def reject(*a, **k): raise Rejected(Rejection.EXPIRED)\npushes.verify = reject",
        "not the response to a push that is verified",
    ),
    "alters a byte": (
        "pushes.arrival = lambda body, name: arrival(body.replace(b'e', b'E', 1) if b' ' in body else body, name)",
        "the journal has other events than were accepted",
    ),
    "responds before it stores": (
        "group_commit.GroupCommit.submit = lambda self, arrival: Outcome.ACCEPTED",
        "the journal has other events than were accepted",
    ),
    "quarantines events of one type": (
        "pushes.arrival = lambda body, name: arrival(body + b'!' if b'co2' in body else body, name)",
        "not the response to a push that is verified",
    ),
    "logs a token": (
        "handler._log_rejected = lambda self, push, *a: logging.warning('rejected: %s', push.headers)",
        "is shown",
    ),
    "raises": (
        "handler._read_body = lambda self, push: (push.get_data(), None)[:1]",
        "line='internal error'",
    ),
}


def fuzz(fault: str, inputs: int) -> subprocess.CompletedProcess[str]:
    script = HEADER + fault + FOOTER.replace("INPUTS", str(inputs))
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_nothing_is_found_in_the_receiver_and_there_are_pushes_of_every_kind() -> None:
    result = fuzz("", 4000)
    assert (result.returncode, result.stderr) == (0, "")
    found = set(result.stdout.splitlines())
    documented = {"200 accepted", "200 duplicate", "200 quarantined", "400 malformed body", "408 request incomplete"}
    documented |= {"413 body too large", "503 signing key unknown"} | {f"400 {reason}" for reason in REASONS}
    assert found <= documented
    assert documented - found <= {"400 missing header X-Dt-Signature"}


@pytest.mark.parametrize(("fault", "finding"), FAULTS.values(), ids=FAULTS)
def test_a_receiver_is_found_that(fault: str, finding: str) -> None:
    result = fuzz(fault, 512)
    assert result.returncode == 3, result.stderr
    assert finding in result.stdout
