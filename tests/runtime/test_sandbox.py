import subprocess
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from areal_mega.runtime.sandbox import MEBIBYTE, Limits, isolation, run

SLOW = Limits(seconds=60)


def needs(*parts):
    missing = [part for part in parts if not isolation()[part]]
    return pytest.mark.skipif(bool(missing), reason=f"this kernel offers no {', '.join(missing)}")


def test_a_program_reads_and_writes():
    ended = run("print(input()[::-1])", b"abc\n", SLOW)
    assert (ended.status, ended.stdout) == ("ok", b"cba\n")


def test_an_error_is_reported():
    ended = run("raise ValueError('no')", limits=SLOW)
    assert ended.status == "error" and b"ValueError: no" in ended.stderr


@pytest.mark.parametrize(
    "source",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "input(); import os; os.close(1); os.close(2)\nwhile True: pass",
    ],
)
def test_it_is_killed_on_time(source):
    started = time.monotonic()
    ended = run(source, b"\n", Limits(seconds=2))
    assert ended.status == "time" and time.monotonic() - started < 30


@needs("seccomp")
@pytest.mark.parametrize(
    "source",
    [
        "import socket; socket.socket()",
        "import socket; socket.create_connection(('127.0.0.1', 1))",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import multiprocessing as m; p = m.Process(target=print); p.start()",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.kill(-1, 9)",
    ],
)
def test_no_network_no_processes_no_signals(source):
    ended = run(source, limits=SLOW)
    assert ended.status == "error" and b"PermissionError" in ended.stderr


@needs("seccomp")
def test_threads_are_allowed():
    ended = run("import threading as t; a = t.Thread(target=print, args=(5,)); a.start(); a.join()", limits=SLOW)
    assert ended.stdout == b"5\n"


@needs("landlock")
def test_files_can_be_written_in_its_folder_only(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("here")
    for source in (
        f"open({str(victim)!r}, 'w')",
        f"import os; os.remove({str(victim)!r})",
        f"import os; os.mkdir({str(tmp_path / 'x')!r})",
    ):
        ended = run(source, limits=SLOW)
        assert ended.status == "error" and b"PermissionError" in ended.stderr
    assert victim.read_text() == "here"
    assert run("open('x', 'w').write('ok'); print(open('x').read())", limits=SLOW).stdout == b"ok\n"


@needs("namespaces")
def test_other_processes_are_out_of_sight_and_there_is_no_network():
    assert run("import os; print(os.getpid())", limits=SLOW).stdout == b"1\n"
    interfaces = run("import socket; print(*(name for _, name in socket.if_nameindex()))", limits=SLOW).stdout
    assert interfaces.split() in ([], [b"lo"])


def test_memory_file_size_and_output_are_limited():
    memory = run("x = 'a' * (1 << 30)", limits=Limits(seconds=60, memory=512 * MEBIBYTE))
    assert memory.status == "error" and b"MemoryError" in memory.stderr
    file = run("open('x', 'wb').write(b'a' * (32 << 20))", limits=SLOW)
    assert file.status == "error"
    output = run("while True: print('x' * 1000)", limits=Limits(seconds=60, output=MEBIBYTE))
    assert output.status == "output" and len(output.stdout) <= MEBIBYTE


def test_nothing_of_the_environment_is_handed_over(monkeypatch):
    monkeypatch.setenv("API_KEY", "secret")
    ended = run("import os; print(dict(os.environ))", limits=SLOW)
    assert b"secret" not in ended.stdout and ended.status == "ok"


def test_nothing_is_left():
    marker = f"marker-{uuid.uuid4().hex}"
    sleeper = f"[sys.executable, '-c', 'import time; time.sleep(1000)', '{marker}']"
    run(f"import os, sys\nopen('{marker}', 'w')\nos.execv(sys.executable, {sleeper})", limits=Limits(seconds=3))
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert marker not in listing
    assert not list(Path(tempfile.gettempdir()).glob(f"areal-sandbox-*/{marker}"))
