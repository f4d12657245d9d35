"""Runs many commands of the command line, each in a process of its own that is forked from this one.

What a command has imported is imported here before the next one is forked, so it is loaded once.

Standard input holds a JSON list of lists of words. Standard output gets a JSON list of [exit code, output, errors].
`nothing_lost.py` starts this where a hundred commands would otherwise spend their time on importing.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import tempfile
from typing import Final, NoReturn

_CRASH: Final = 70  # after an exception; Python's own 1 is also the exit code of findings


def _become(words: list[str], out: int, err: int, loaded: int) -> NoReturn:
    """Be the command, in a process that was forked for it."""
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
    """End the process at once with what it has imported in a file, and with the exception if one is on its way."""
    try:
        if (error := sys.exc_info()[1]) is not None:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        modules = sys.modules.copy()  # a thread of the command may import still
        os.write(loaded, json.dumps([name for name, module in modules.items() if _is_importable(module)]).encode())
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run_one(words: list[str]) -> tuple[int, str, str]:
    """Run a command to its end; its exit code and what it wrote."""
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
    """Import what a command has imported; a module that only exists within another one is left out."""
    for name in names:
        if name not in sys.modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)


def main() -> None:
    """Run the commands in turn."""
    commands = json.load(sys.stdin)
    json.dump([run_one(words) for words in commands], sys.stdout)


if __name__ == "__main__":
    main()
