"""Files that outlast the process: every lasting write of llmexp goes through this package.

* disk    the single operations (open, write, fsync, rename, ...), each behind one hook for tests
* files   whole files and whole folders that appear at once or not at all
* lines   a JSON-lines file that only grows
* lock    one process per run folder
* faults  kill or fail at the n-th operation: how the tests prove the rest

Nothing here imports torch. POSIX only: flock, and fsync of a folder.
"""

from llmexp.durable.files import (
    Writer,
    discard,
    encode,
    free_bytes,
    make_folder,
    publish_directory,
    remove_directory,
    remove_leftovers,
    replace_directory,
    sha256,
    sync_tree,
    temporary,
    write_bytes,
    write_json,
    write_text,
)
from llmexp.durable.lines import JsonLines, read_lines
from llmexp.durable.lock import Lock

__all__ = [
    "JsonLines",
    "Lock",
    "Writer",
    "discard",
    "encode",
    "free_bytes",
    "make_folder",
    "publish_directory",
    "read_lines",
    "remove_directory",
    "remove_leftovers",
    "replace_directory",
    "sha256",
    "sync_tree",
    "temporary",
    "write_bytes",
    "write_json",
    "write_text",
]
