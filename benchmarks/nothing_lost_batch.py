"""Runs many omniges commands, each in a separate process that is forked from this process.

After each command, this process imports the modules that the command imported, so that later commands need not load
them. `nothing_lost.py` uses this program for about a hundred commands, which would otherwise need most of their time
for imports.

Standard input is a JSON list of commands, each a list of words. Standard output is a JSON list of [exit code, output,
errors].
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tempfile
from typing import Final, NoReturn

_CRASH: Final = 70  # exit code after an exception, because Python's 1 is also the exit code of findings


def _become(words: list[str], out: int, err: int, loaded: int) -> NoReturn:
    """Run a command in a forked process, and exit."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (out, 1), (err, 2)):
        os.dup2(source, target)
    sys.argv = ["omniges", *words]
    code = _CRASH
    try:
        importlib.import_module("omniges.cli").main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        _leave(code, loaded)


def _leave(code: int, loaded: int) -> NoReturn:
    """Write the names of the imported modules to a file, print the current exception if there is one, and exit."""
    try:
        if (error := sys.exc_info()[1]) is not None:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        modules = sys.modules.copy()  # a copy, because a thread of the command may still import
        os.write(loaded, json.dumps([name for name, module in modules.items() if _is_importable(module)]).encode())
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run_one(words: list[str]) -> tuple[int, str, str]:
    """Run a command in a forked process; return its exit code, standard output and standard error."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as loaded:
        child = os.fork()
        if child == 0:
            _become(words, out.fileno(), err.fileno(), loaded.fileno())
        _, status = os.waitpid(child, 0)
        texts = []
        for stream in (out, err, loaded):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    _load(json.loads(texts[2] or "[]"))
    return os.waitstatus_to_exitcode(status), texts[0], texts[1]


def _is_importable(module: object) -> bool:
    return getattr(getattr(module, "__spec__", None), "origin", None) is not None


def _load(names: list[str]) -> None:
    """Import the modules that a command imported; skip modules that cannot be imported by name."""
    for name in names:
        if name not in sys.modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def main() -> None:
    """Run the commands one after the other."""
    commands = json.load(sys.stdin)
    json.dump([run_one(words) for words in commands], sys.stdout)


if __name__ == "__main__":
    main()
