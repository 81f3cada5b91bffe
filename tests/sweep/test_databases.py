"""A study in a database: SQLite, a real PostgreSQL server, Optuna's gRPC proxy."""

import getpass
import importlib.util
import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Toy

PASSWORD = "correct-horse"
FOUR = ("hydra.sweeper.n_trials=4", "pause=0.02")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(port: int) -> None:
    give_up = time.monotonic() + 30
    while time.monotonic() < give_up:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(f"nobody listens on port {port}")


def program(name: str) -> str | None:
    """Find a PostgreSQL program; Debian keeps them off the path."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *map(str, places)]))


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """Start a PostgreSQL server of our own on loopback; return its address, with a password."""
    initdb, postgres = program("initdb"), program("postgres")
    if not (initdb and postgres):
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    if not any(map(importlib.util.find_spec, ("psycopg", "psycopg2"))):
        pytest.skip("no driver is installed (pip install 'psycopg[binary]')")
    user = getpass.getuser()
    if os.getuid() == 0:  # the server refuses to run as root
        try:
            user = pwd.getpwnam("postgres").pw_name
        except KeyError:
            pytest.skip("there is no user postgres, and root may not run the server")
    switch = ["runuser", "-u", user, "--"] if os.getuid() == 0 else []
    folder = Path(tempfile.mkdtemp(prefix="llmexp-pg-"))
    (folder / "password").write_text(PASSWORD)
    if switch:
        for path in (folder, folder / "password"):
            shutil.chown(path, user)
    port, data = free_port(), folder / "data"
    login = ["-U", "tester", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-N"]
    made = [*switch, initdb, "-D", str(data), *login]
    subprocess.run(made, check=True, capture_output=True, cwd=folder)
    server = subprocess.Popen(
        [*switch, postgres, "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        start_new_session=True,
    )
    try:
        wait_for(port)
        yield f"postgresql://tester:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        os.killpg(server.pid, signal.SIGINT)
        server.wait(30)
        shutil.rmtree(folder)


@pytest.fixture
def grpc() -> Iterator[str]:
    """Start Optuna's proxy in front of a journal; return its address."""
    if importlib.util.find_spec("grpc") is None:
        pytest.skip("grpcio is not installed (pip install grpcio protobuf)")
    port, folder = free_port(), tempfile.mkdtemp(prefix="llmexp-grpc-")
    serve = (
        "from optuna.storages import run_grpc_proxy_server\n"
        "from llmexp.sweep.storage import connect\n"
        f"journal = connect({folder + '/study.journal'!r})\n"
        f"run_grpc_proxy_server(journal, host='127.0.0.1', port={port})"
    )
    server = subprocess.Popen([sys.executable, "-c", serve], cwd=Path(__file__).parents[2])
    try:
        wait_for(port)
        yield f"grpc://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()
        shutil.rmtree(folder)


def assert_survives(toy: "Toy", setting: str, **environment: str) -> None:
    """Two workers on one study, one of them killed: four trials, each once."""
    command = (*FOUR, f"hydra.sweeper.storage={setting}")
    one, two = (toy.start(*command, **environment) for _ in range(2))
    toy.until(lambda: len(toy.job_pids()) >= 2)
    one.kill()
    one.wait()
    said = two.communicate(timeout=120)[0]
    assert two.returncode == 0, said
    toy.run(*command, **environment)
    assert toy.states() == ["finished"] * 4
    assert toy.evaluated() == {str(number): 6 for number in range(4)}


@pytest.mark.slow
def test_sqlite(toy: "Toy") -> None:
    toy.address = f"sqlite:///{toy.folder}/study.db"
    assert_survives(toy, toy.address)


@pytest.mark.slow
def test_postgresql_with_its_password_in_the_environment_only(toy: "Toy", postgresql: str) -> None:
    toy.address = postgresql
    assert_survives(toy, "${oc.env:LLMEXP_STORAGE}", LLMEXP_STORAGE=postgresql)
    for path in (toy.folder / "multirun").rglob("*"):
        assert not path.is_file() or PASSWORD not in path.read_bytes().decode(errors="replace")


@pytest.mark.slow
def test_postgresql_with_its_password_in_pgpassword(toy: "Toy", postgresql: str) -> None:
    public = postgresql.replace(f":{PASSWORD}", "")
    toy.run(
        "hydra.sweeper.n_trials=1",
        f"hydra.sweeper.storage={public}",
        "hydra.sweeper.study_name=other",
        PGPASSWORD=PASSWORD,
    )
    assert "cannot be opened" in toy.run(f"hydra.sweeper.storage={public}", code=1, PGPASSWORD="no")


@pytest.mark.slow
def test_grpc_proxy(toy: "Toy", grpc: str) -> None:
    toy.address = grpc
    assert_survives(toy, grpc)


@pytest.mark.slow
def test_the_dashboard_opens_the_study(toy: "Toy") -> None:
    if importlib.util.find_spec("optuna_dashboard") is None:
        pytest.skip("optuna-dashboard is not installed (pip install optuna-dashboard)")
    toy.run("hydra.sweeper.n_trials=2", "hydra/launcher=basic")
    port, journal = free_port(), toy.folder / "multirun" / "toy" / "study.journal"
    dashboard = [str(Path(sys.executable).parent / "optuna-dashboard"), str(journal)]
    server = subprocess.Popen([*dashboard, "--port", str(port)], stderr=subprocess.DEVNULL)
    try:
        wait_for(port)
        address = f"http://127.0.0.1:{port}/api/studies/0"
        with urllib.request.urlopen(address, timeout=30) as answer:
            shown = json.load(answer)
    finally:
        server.kill()
        server.wait()
    assert [trial["state"] for trial in shown["trials"]] == ["Complete"] * 2
    assert {p["name"] for p in shown["union_search_space"]} == {"optimizer.lr", "train.batch_size"}
