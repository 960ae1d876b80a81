import socket
import sys

import pytest
from synthetic import explained
from typer.testing import CliRunner

from voxplain.cli import app
from voxplain.io import save_run
from voxplain.serve import starting


def call(*arguments):
    return CliRunner().invoke(app, ["view", *map(str, arguments), "--no-open"])


@pytest.fixture
def started(monkeypatch):
    """What would have been served, instead of serving it."""
    seen = {}

    def serve(build, listening, access, ready):
        listening.close()
        seen.update(access=access, port=access.port)
        ready(access.url)

    monkeypatch.setattr(starting, "needed", lambda: None)
    monkeypatch.setattr(starting, "run", serve)
    return seen


def test_a_run_is_served_on_this_machine_without_a_token(started, tmp_path):
    made = call(save_run(explained(), tmp_path / "one"), "--port", 0)
    assert made.exit_code == 0, made.stderr
    assert f"http://127.0.0.1:{started['port']}/ " in made.stderr
    assert started["access"].token is None


def test_elsewhere_the_address_ends_in_a_token(started, tmp_path):
    made = call(save_run(explained(), tmp_path / "one"), "--port", 0, "--host", "0.0.0.0")
    assert f"/?token={started['access'].token} " in made.stderr
    assert len(started["access"].token) > 20


def test_what_is_wrong_is_said_in_one_line_before_anything_is_served(started, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "no run.json" in call(tmp_path / "empty").stderr
    place = save_run(explained(), tmp_path / "one")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        answer = call(place, "--port", taken.getsockname()[1])
    assert answer.exit_code == 1
    assert "--port 0" in answer.stderr
    (place / "sample.nii.gz").write_bytes(b"")
    assert call(place).exit_code == 2
    assert not started


def test_without_the_packages_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(ImportError, match=r"voxplain\[viewer\]"):
        starting.needed()
