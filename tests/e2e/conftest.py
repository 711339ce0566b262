"""What every end-to-end test uses: the program, a small model, text, and a terminal to type into."""

import os
import pathlib
import pty
import select
import subprocess
import time

import pytest

PROGRAM = os.environ["MSA_PROGRAM"]
SOURCE = pathlib.Path(os.environ["MSA_SOURCE_DIR"])
TIMEOUT_SECONDS = 300  # a hang; a sanitizer build on a busy machine takes its time


def run_msa(*words, stdin=b"", **kwargs):
    """Run the program; the result has bytes in stdout and stderr."""
    return subprocess.run(
        [PROGRAM, *map(str, words)],
        input=None if "stdin_file" in kwargs else stdin,
        stdin=kwargs.pop("stdin_file", None),
        stdout=kwargs.pop("stdout", subprocess.PIPE),
        stderr=subprocess.PIPE,
        timeout=TIMEOUT_SECONDS,
        **kwargs,
    )


@pytest.fixture
def msa():
    return run_msa


@pytest.fixture
def fails():
    """Run the program and expect one line of complaint that holds a text, and nothing on stdout."""

    def check(status, text, *words, **kwargs):
        result = run_msa(*words, **kwargs)
        message = result.stderr.decode()
        assert result.returncode == status, message
        assert text in message.splitlines()[0], message
        assert message.startswith("msa")
        assert not result.stdout
        return message

    return check


def has_gpu():
    return b"\n  cuda:0 " in run_msa("doctor").stdout


GPU = has_gpu()
needs_gpu = pytest.mark.skipif(not GPU, reason="no Hopper GPU here")
needs_no_gpu = pytest.mark.skipif(GPU, reason="a GPU is here")


class Terminal:
    """The program on a pseudo-terminal: what a person sees and types."""

    def __init__(self, *words, columns=80):
        self.master, slave = pty.openpty()
        environment = dict(os.environ, TERM="xterm", LC_ALL="C.UTF-8", COLUMNS=str(columns))
        self.process = subprocess.Popen(
            [PROGRAM, *map(str, words)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=self._take_terminal,
        )
        os.close(slave)
        self.seen = b""

    @staticmethod
    def _take_terminal():
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    def type(self, data):
        time.sleep(0.2)  # no person is faster; the prompt shows a moment before the terminal is raw
        os.write(self.master, data if isinstance(data, bytes) else data.encode())

    def wait_for(self, text, timeout=TIMEOUT_SECONDS):
        """Read until text appears after what was waited for last; returns what came before it."""
        wanted, end = text.encode(), time.monotonic() + timeout
        while wanted not in self.seen:
            left = end - time.monotonic()
            ready = left > 0 and select.select([self.master], [], [], left)[0]
            assert ready, f"no {text!r} in {self.seen[-400:]!r}"
            try:
                data = os.read(self.master, 65536)
            except OSError:
                data = b""
            assert data, f"the program ended; no {text!r} in {self.seen[-400:]!r}"
            self.seen += data
        before, self.seen = self.seen.split(wanted, 1)
        return before

    def finish(self, timeout=TIMEOUT_SECONDS):
        """Drain the output and return the exit status."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:
                    break
                if not data:
                    break
                self.seen += data
        return self.process.wait(timeout=max(1, end - time.monotonic()))

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal():
    """Make Terminal objects that are ended with the test."""
    opened = []

    def make(*words, **kwargs):
        opened.append(Terminal(*words, **kwargs))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A folder with the smallest random model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    result = run_msa("make-model", folder, "--preset", "tiny", "--seed", 1)
    assert result.returncode == 0, result.stderr.decode()
    return folder


GOLDEN_FOLDERS = [SOURCE / "tests/golden/data", SOURCE.parent / "shared/golden"]


@pytest.fixture(scope="session")
def golden():
    """golden(name): that part of the golden data, or a skip where this checkout does not have it."""

    def find(name):
        for folder in GOLDEN_FOLDERS:
            if (folder / name).exists():
                return folder / name
        return pytest.skip(f"golden data {name} is not here")

    return find
