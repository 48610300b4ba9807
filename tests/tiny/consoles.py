"""Commands as processes of their own, ready at once: forked from one that has imported it all.

`python consoles.py` reads a line at a time: a JSON object is started in a child, whose number is
the answer; of a child's number the answer is its exit code.
"""

import contextlib
import gc
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

LIBRARIES = ("diffusers", "transformers", "sdatoms.cli.personalize", "sdatoms.diffusion.open")


class Forge:
    """Starts commands with a console of any kind."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "SDATOMS_CODE_CACHE": "0"},
        )

    def ask(self, question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, folder, words, out="out", err="err", encoding="utf-8", code=""):
        """Start `sdatoms WORDS` in a folder; returns the number of the process.

        Args:
            out: where standard output goes: a file's name, or `gone`, a pipe whose reader left,
                `closed`, or `/dev/full`.
            code: Python to run before.
        """
        given = {
            "words": [os.fsencode(word).decode("latin-1") for word in map(str, words)],
            "folder": str(folder),
            "out": out,
            "err": err,
            "encoding": encoding,
            "code": code,
        }
        return self.ask(given)

    def run(self, folder, words, out="out", err="err", encoding="utf-8", code=""):
        """`start`, to the end; returns the exit code and what was printed."""
        ended = self.ask(self.start(folder, words, out, err, encoding, code))
        found = [Path(folder) / name for name in (out, err)]
        return ended, *(path.read_bytes() if path.is_file() else b"" for path in found)

    def close(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def open_console(number, where, encoding):
    """Let a file descriptor, and Python's stream over it, write there."""
    if where == "closed":
        os.close(number)
        return None
    if where == "gone":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open(where, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(write, number)
    os.close(write)
    errors = "strict" if number == 1 else "backslashreplace"
    return open(number, "w", encoding=encoding, errors=errors, buffering=1, closefd=False)


def run_order(order):
    os.chdir(order["folder"])
    sys.stdout = sys.__stdout__ = open_console(1, order["out"], order["encoding"])
    sys.stderr = sys.__stderr__ = open_console(2, order["err"], order["encoding"])
    sys.argv = ["sdatoms", *(os.fsdecode(word.encode("latin-1")) for word in order["words"])]
    exec(order["code"], {})
    from sdatoms.__main__ import main

    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finish(code)


def finish(code):
    """End as Python does, but for taking the libraries down piece by piece."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        print(f"Exception ignored on flushing sys.stdout: {error}", file=sys.stderr)
        code = 120
    with contextlib.suppress(OSError):
        if sys.stderr:
            sys.stderr.flush()
    os._exit(code)


def serve():
    for name in LIBRARIES:
        __import__(name)
    gc.freeze()
    answers = os.fdopen(os.dup(1), "w")
    while line := sys.stdin.readline():
        order = json.loads(line)
        if isinstance(order, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(order, 0)[1])
        elif not (answer := os.fork()):
            answers.close()
            run_order(order)
            return
        answers.write(f"{answer}\n")
        answers.flush()


if __name__ == "__main__":
    serve()
