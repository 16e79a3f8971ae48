"""The attacks of test_rendezvous_attacks.py from another host and as another user, each in a network namespace."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from netns import two_hosts

pytestmark = pytest.mark.slow
ATTACKS = Path(__file__).with_name("test_rendezvous_attacks.py")


def test_nobody_joins_from_another_host() -> None:
    chosen = ["-k", "nobody_joins or another_user_is_not_joined or meet_in_every_round"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ATTACKS), *chosen]
    with two_hosts() as (owner, attacker):
        environment = {
            **os.environ,
            "OWNER_ADDRESS": owner.address,
            "ATTACKER_ADDRESS": attacker.address,
            "ATTACKER_NAMESPACE": attacker.name,
        }
        there = ["ip", "netns", "exec", owner.name]
        done = subprocess.run([*there, *command], env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    # 16 after the owner listens, 6 before, and the control.
    assert "23 passed" in done.stdout, done.stdout
