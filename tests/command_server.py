"""Runs commands of omniges in processes that have imported everything already.

A test of a command waits two to ten seconds for imports of torch and its companions and a fraction of one for the
command. One process for each worker of pytest imports them once and forks a child for each command: its own arguments,
folder, variables of the environment, exit code and output, as with a new interpreter. A script of a test may run in
place of a command, for what kills or signals itself. Tests of what a command imports, of signals that come from
elsewhere and of variables that libraries read when they are loaded start interpreters of their own.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

TESTS = Path(__file__).parent
TIMEOUT_S = 100
HEAVY = (
    *("omniges.commands.models", "omniges.commands.shards", "omniges.codecs.encode", "omniges.codecs.registry"),
    *(
        "omniges.codecs.text_vae.network",
        "omniges.codecs.audio_vae",
        "omniges.evaluation.run",
        "omniges.generation.run",
    ),
    *("omniges.pipeline.run", "omniges.pretrained.convert", "omniges.trainer.train", "omniges.verify.run"),
    *("omniges.visualize.pictures", "matplotlib.figure", "pyarrow.parquet", "webdataset"),
)


class CommandServer:
    """The process that forks; ends with the interpreter that started it."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=TESTS.parent, text=True
        )

    def run(
        self, words: tuple[str, ...], script: str | None = None, variables: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command, or a script with these arguments as `python -c` would, and wait for its end."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            outputs = [str(Path(folder, name)) for name in ("stdout", "stderr")]
            request = {"words": words, "script": script, "variables": dict(variables or {})}
            request |= {"folder": os.getcwd(), "outputs": outputs}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], TIMEOUT_S)[0]:
                self._process.kill()
                server.cache_clear()
                raise subprocess.TimeoutExpired(words, TIMEOUT_S)
            code = int(self._process.stdout.readline())
            found = [Path(output).read_bytes().decode() for output in outputs]
        return subprocess.CompletedProcess(words, code, *found)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@cache
def server() -> CommandServer:
    """The server of this process."""
    started = CommandServer()
    atexit.register(started.close)
    return started


def _become(request: dict[str, Any]) -> NoReturn:
    """Be the process of one command, and end without taking down all that was imported, which takes seconds."""
    os.chdir(request["folder"])
    null = os.open(os.devnull, os.O_RDONLY)
    streams = [null, *(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) for path in request["outputs"])]
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.environ.update(request["variables"])
    paths = request["variables"].get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [path for path in paths if path and path not in sys.path]
    script = request["script"]
    sys.argv = ["omniges" if script is None else "-c", *request["words"]]
    code: object = 1
    try:
        if script is None:
            from omniges.cli import main

            main()
        else:
            exec(compile(script, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102 - a test's own
            code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - shown as the interpreter would
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


def _serve() -> None:
    import importlib

    gc.disable()
    for name in HEAVY:
        importlib.import_module(name)
    from omniges.cli import app
    from omniges.errors import UsageFault
    from omniges.storage.librosa_import import load_librosa

    load_librosa()
    with contextlib.suppress(UsageFault):  # no such file; typer has then loaded what it loads late
        app(["inspect", f"{__file__}/"], standalone_mode=False)
    gc.freeze()  # a child's collector would write to, and so copy, every page
    gc.enable()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        status = os.waitpid(child, 0)[1]
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file, which no command has
    _serve()
