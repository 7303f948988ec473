"""The shipped fraud example from its generator to its first fortnight: a critical model waits for a person."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from examples.fraud.generate import START
from tests.e2e import running
from tests.reference.fraud_package import SPEC

pytestmark = pytest.mark.slow
ROOT = SPEC.parents[2]
FIRST, LAST = START + timedelta(days=45), START + timedelta(days=60)


def test_generate_up_approve_up(tmp_path: Path) -> None:
    home, spec = tmp_path / "ws", Path(shutil.copy(SPEC, tmp_path / "fraud.yaml"))
    generate = [sys.executable, "-m", "examples.fraud.generate", str(tmp_path / "data"), "--rows", "12000"]
    subprocess.run([*generate, "--days", "70"], cwd=ROOT, check=True, capture_output=True)
    up = ("up", spec, "--replay", f"{FIRST:%Y-%m-%d}", "--until", f"{LAST:%Y-%m-%d}", "--json")
    try:
        asked = running.steady(*up, home=home)
        assert asked.code == 1
        assert "a model of tier critical is promoted by a person's answer" in asked.err
        [question] = running.steady("status", "--json", home=home).json["approvals"]
        assert (question["action"], question["roles"]) == ("promote", ["approver"])
        assert f"steady approve {question['id']}" in asked.err
        assert running.wait_until_gone(home) == {}

        assert running.steady("approve", question["id"], "--comment", "seen", home=home).code == 0
        done = running.steady(*up, home=home)

        assert done.code == 0, done.err
        summary = done.json
        assert [(v["version"], v["role"]) for v in summary["versions"]] == [("1", "champion")]
        assert summary["overall"]["served"] > 0.75
        assert summary["traffic"]["n_errors"] == 0
        assert summary["approvals"][0]["status"] == "used"
        assert running.steady("audit", "verify", "--json", home=home).json["ok"]
        assert running.mlflow_counts(home) == {"runs": 1, "versions": 1}
        assert running.wait_until_gone(home) == {}
    finally:
        running.end(home)
