"""Where a study lives: a journal file, SQLite, PostgreSQL, MySQL, or Optuna's gRPC proxy."""

import importlib.util
import json
import os
import warnings
from pathlib import Path
from urllib.parse import urlsplit

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from llmexp import durable
from llmexp.errors import RequestError, RunError
from llmexp.sweep.locks import Lock

ENV_STORAGE = "LLMEXP_STORAGE"  # a URL with a password travels here, never through a file
DATABASES = ("sqlite", "postgresql", "mysql")
DRIVERS = {"postgresql": ("psycopg", "psycopg2"), "mysql": ("pymysql", "MySQLdb")}


def locate(storage: str | None, folder: Path, *, literal: bool) -> str:
    """Return the address of a storage, a file name or a URL; by default <folder>/study.journal.

    `literal`: the address stands as such in the config, which is written to files. Raises
    RequestError if there is a password in it then, and for what is no address.
    """
    if not storage:
        return str((folder / "study.journal").absolute())
    if "://" not in storage:
        return str(Path(storage).absolute())
    kind = urlsplit(storage).scheme.split("+")[0]
    if kind not in (*DATABASES, "grpc"):
        raise RequestError(
            f"hydra.sweeper.storage={storage}: {kind}:// is not known; give a file name for a "
            f"journal, or a URL of {', '.join((*DATABASES, 'grpc'))}."
        )
    if literal and urlsplit(storage).password:
        raise RequestError(
            "hydra.sweeper.storage holds a password, and configs are written into run folders. "
            "Put the password into PGPASSWORD or ~/.pgpass, or the whole URL into a variable: "
            f"{ENV_STORAGE}=... and 'hydra.sweeper.storage=${{oc.env:{ENV_STORAGE}}}'"
        )
    return storage


def public(address: str) -> str:
    """Return the address without its password."""
    password = urlsplit(address).password if "://" in address else None
    return address.replace(f":{password}@", ":***@") if password else address


def connect(address: str) -> BaseStorage:
    """Open a storage; raise RequestError if its driver is missing, RunError if it is silent."""
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" not in address:
        Path(address).parent.mkdir(parents=True, exist_ok=True)
        return JournalStorage(JournalFileBackend(address, lock_obj=WriterLock(Path(address))))
    try:
        if address.startswith("grpc://"):
            from optuna.storages import GrpcStorageProxy

            url = urlsplit(address)
            proxy = GrpcStorageProxy(host=url.hostname or "localhost", port=url.port or 13000)
            proxy.wait_server_ready(timeout=30)
            return proxy
        return RDBStorage(_with_driver(address), engine_kwargs={"pool_pre_ping": True})
    except ImportError as error:
        raise RequestError(
            f"{public(address)} needs a driver that is not installed ({error}): "
            "pip install 'psycopg[binary]' (postgresql://), pymysql (mysql://), "
            "grpcio protobuf (grpc://)"
        ) from error
    except Exception as error:
        raise RunError(f"The storage {public(address)} cannot be opened: {error}") from error


def _with_driver(address: str) -> str:
    """Name the driver that is installed if an address names none: SQLAlchemy's choice changes."""
    scheme, _, rest = address.partition("://")
    found = [name for name in DRIVERS.get(scheme, ()) if importlib.util.find_spec(name)]
    return f"{scheme}+{found[0]}://{rest}" if found else address


class WriterLock:
    """The lock of a journal, kept by the kernel: Optuna's own outlives a killed writer."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._lock = Lock(journal.with_name(f".{journal.name}.lock"))

    def acquire(self) -> bool:
        """Wait for the lock and clear the way for a new line; raise RunError after a minute."""
        if not self._lock.acquire(seconds=60.0):
            raise RunError(f"{self._lock.path} has been locked for a minute: is a process stopped?")
        _cut_torn_end(self._journal)
        return True

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()


def repair(journal: Path) -> int:
    """Make a journal readable again whose last write was torn; return the bytes set aside.

    Optuna refuses a journal with an unreadable line for ever. What is set aside is kept next to it,
    and a line written behind a torn one is saved. Only for when no one else has the journal open.
    """
    if not journal.is_file():
        return 0
    with Lock(journal.with_name(f".{journal.name}.lock")):
        content = journal.read_bytes()
        kept: list[bytes] = []
        torn: list[bytes] = []
        for line in content.splitlines(keepends=True):
            good, bad = _mend(line)
            kept += good
            torn += bad
        _set_aside(journal, b"".join(torn))
        if b"".join(kept) != content:
            durable.write_bytes(journal, b"".join(kept))
        return sum(map(len, torn))


def _cut_torn_end(journal: Path) -> None:
    """Set aside what a killed writer left of its last line: ours would be glued to it.

    Only for the owner of the lock, to whom an end without a newline is nobody's work in progress.
    The file is cut in place, since others have it open.
    """
    if not journal.is_file():
        return
    with journal.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        if end == 0 or os.pread(file.fileno(), 1, end - 1) == b"\n":
            return
        content = journal.read_bytes()
        torn = content[content.rfind(b"\n") + 1 :]
        _set_aside(journal, torn)
        file.truncate(end - len(torn))


def _set_aside(journal: Path, torn: bytes) -> None:
    if torn:
        with journal.with_name(f"{journal.name}.torn").open("ab") as aside:
            aside.write(torn + b"\n")


def _mend(line: bytes) -> tuple[list[bytes], list[bytes]]:
    """Split a line into the record it holds, if any, and what is torn."""
    starts = [0] + [at for at in range(1, len(line)) if line.startswith(b'{"op_code"', at)]
    for start in starts:
        record = line[start:].rstrip(b"\r\n")
        try:
            readable = isinstance(json.loads(record), dict)
        except ValueError:
            continue
        if readable:
            return [record + b"\n"], [line[:start]] if start else []
    return [], [line]
