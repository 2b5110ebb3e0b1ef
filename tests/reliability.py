"""What the tests of reliability share: a command in this process, and processes that are killed."""
import contextlib
import io
import itertools
import os
import resource
import signal
import stat
import sys
import time
import warnings
from pathlib import Path

from manifoldgd.cli import main
from manifoldgd.core import STRAY


class Done:
    "What a command that has ended leaves to look at."

    def __init__(self, status, out, error, seconds):
        self.status = status
        self.out = out
        self.error = error
        self.seconds = seconds

    @property
    def lines(self):
        "What was said on the standard error stream, warnings left out."
        lines = self.error.splitlines()
        return [line for line in lines if not line.startswith("manifoldgd: warning: ")]


def command(*arguments):
    "Run a command line in this process; a minute without an end is an error."
    said, told = io.StringIO(), io.StringIO()
    formatted = warnings.formatwarning
    signal.alarm(60)
    start = time.process_time()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(told):
            status = main([str(argument) for argument in arguments])
    except SystemExit as stop:
        status = stop.code
    finally:
        signal.alarm(0)
        warnings.formatwarning = formatted
    return Done(status, said.getvalue(), told.getvalue(), time.process_time() - start)


def expect_refused(done, words, status=(1, 2)):
    "Check that a command ended with one clear line, and soon."
    assert done.status in status, (done.status, done.error)
    assert len(done.lines) == 1, done.error
    line = done.lines[0]
    assert line.startswith("manifoldgd: "), line
    assert line.isprintable(), line
    assert words in line, line
    for noise in ("Traceback", "fault of the program", " at 0x", "\x1b"):
        assert noise not in done.error, done.error
    assert done.seconds < 5, done.seconds


def files_of(folder):
    "All files of a folder, as bytes by their path; what processes leave for each other is not."
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        ours = any(STRAY.fullmatch(part) for part in path.parts) or path.suffix == ".lock"
        if not ours and stat.S_ISREG(path.lstat().st_mode):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


# Processes


def in_child(work, *arguments):
    "Do something in a process of its own, and return the number of its exit status or signal."
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.waitstatus_to_exitcode(status)
    status = 1
    try:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        status = work(*arguments) or 0
    finally:
        os._exit(status)


NAMING = ("replace", "link", "rename")  # the calls that give a file or folder its name


class Writes:
    "Counts the moments in which a process may be killed: before and after every write."

    def __init__(self, at=None, cut=False):
        self.at = at  # the moment in which to be killed; None: never
        self.cut = cut  # leave half of the temporary file
        self.moments = itertools.count()
        self.seen = 0

    def moment(self, source):
        "Be killed if it is time."
        self.seen = next(self.moments) + 1
        if self.seen - 1 != self.at:
            return
        if self.cut and os.path.isfile(source):
            os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def wrapped(self, call):
        "A call that gives a name, with a moment before and one after it."

        def wrapped(source, target, **rest):
            self.moment(source)
            result = call(source, target, **rest)
            self.moment("")  # what has its name is whole
            return result

        return wrapped

    @contextlib.contextmanager
    def watched(self):
        "Watch all writes of this process, for the time of the block."
        calls = {name: getattr(os, name) for name in NAMING}
        try:
            for name, call in calls.items():
                setattr(os, name, self.wrapped(call))
            yield self
        finally:
            for name, call in calls.items():
                setattr(os, name, call)


def killed_at(moment, work):
    "Do something in a process that is killed at one of its writes, perhaps with half a file."

    def watched():
        with Writes(moment, cut=moment % 4 == 0).watched():
            work()

    status = in_child(watched)
    assert status == -signal.SIGKILL, status


def on_full_disk(work, size):
    "Do something in a process whose files may not grow beyond a size."

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        return work()

    return in_child(limited)
