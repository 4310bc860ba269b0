"""The inside of the sandbox: ``python -I -S jail.py LIMITS COMMAND...`` gives up its rights and becomes COMMAND.

What the kernel offers is used, and nothing of it needs root:

- namespaces: no network interfaces, no view of other processes or their shared memory. When the jail ends, the kernel
  ends everything in it.
- Landlock: files can be written only in the current folder.
- seccomp: no sockets, no child processes (threads are fine), no signals to others, no tracing.
- resource limits: CPU seconds, memory, size of a file, open files.

LIMITS is JSON: ``cpu_seconds``, ``memory_bytes``, ``file_bytes``. ``python jail.py --probe`` prints as JSON what of
the first three there is. This file uses the standard library alone: it starts anew for every program.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys

_CLONE = {"user": 0x10000000, "network": 0x40000000, "processes": 0x20000000, "shared memory": 0x08000000}
_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SECCOMP_MODE_FILTER = 2

# Landlock rights (linux/landlock.h) that change the file system; from ABI 2 on REFER, from 3 on TRUNCATE.
_WRITE_FILE = 1 << 1
_WRITE_RIGHTS = {1: _WRITE_FILE | sum(1 << bit for bit in range(4, 13)), 2: 1 << 13, 3: 1 << 14}
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446

# System calls by architecture: the number of each that is refused. clone is looked into: a thread is allowed.
_SYSCALLS = {
    "x86_64": (
        0xC000003E,
        {"clone": 56, "clone3": 435},
        {
            "socket": 41, "fork": 57, "vfork": 58, "kill": 62, "ptrace": 101, "tkill": 200, "tgkill": 234,
            "process_vm_writev": 311, "io_uring_setup": 425, "pidfd_send_signal": 424, "unshare": 272, "setns": 308,
            "mount": 165, "bpf": 321, "perf_event_open": 298, "keyctl": 250,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {"clone": 220, "clone3": 435},
        {
            "socket": 198, "kill": 129, "tkill": 130, "tgkill": 131, "ptrace": 117, "process_vm_writev": 271,
            "io_uring_setup": 425, "pidfd_send_signal": 424, "unshare": 97, "setns": 268, "mount": 40, "bpf": 280,
            "perf_event_open": 241, "keyctl": 219,
        },
    ),
}  # fmt: skip
_CLONE_THREAD = 0x00010000
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38

_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> None:
    """Become the command; never returns."""
    limits, command = json.loads(arguments[0]), arguments[1:]
    _die_with_parent()
    if enter_namespaces() and (child := os.fork()):
        # The first process of the namespace: with it everything in there ends.
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os._exit(status if status >= 0 else 128 - status)
    _die_with_parent()
    set_limits(limits)
    confine_writes(os.getcwd())
    filter_system_calls()
    os.execv(command[0], command)


def enter_namespaces() -> bool:
    """No network, no other processes, no shared memory; False where the kernel does not allow it."""
    flags = 0
    for flag in _CLONE.values():
        flags |= flag
    return _libc.unshare(flags) == 0


def set_limits(limits: dict) -> None:
    for kind, value in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def confine_writes(folder: str) -> bool:
    """Allow changes of the file system below ``folder`` only; False where the kernel has no Landlock."""
    abi = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    rights = 0
    for since, more in _WRITE_RIGHTS.items():
        rights |= more if since <= abi else 0
    ruleset = _libc.syscall(_CREATE_RULESET, struct.pack("Q", rights), ctypes.c_size_t(8), 0)
    if ruleset < 0:
        return False
    for path, allowed in ((folder, rights), ("/dev/null", _WRITE_FILE)):
        at = os.open(path, os.O_PATH)
        if _libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, at), 0):
            return False
        os.close(at)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    restricted = _libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0
    os.close(ruleset)
    return restricted


def filter_system_calls() -> bool:
    """Refuse sockets, child processes and signals; False where the kernel or the architecture has no filter."""
    if os.uname().machine not in _SYSCALLS:
        return False
    architecture, clone, refused = _SYSCALLS[os.uname().machine]

    def load(offset: int) -> tuple:
        return (0x20, 0, 0, offset)  # BPF_LD | BPF_W | BPF_ABS of struct seccomp_data

    def give(value: int) -> tuple:
        return (0x06, 0, 0, value)  # BPF_RET

    def unless_equal(value: int, skip: int) -> tuple:
        return (0x15, 0, skip, value)  # BPF_JMP | BPF_JEQ

    program = [load(4), unless_equal(architecture, 1), (0x05, 0, 0, 1), give(_KILL), load(0)]
    # x86_64 also has the x32 calls, numbered from 2^30 on.
    program += [(0x35, 0, 1, 0x40000000), give(_ERRNO | _EPERM)]
    for number in refused.values():
        program += [unless_equal(number, 1), give(_ERRNO | _EPERM)]
    program += [unless_equal(clone["clone3"], 1), give(_ERRNO | _ENOSYS)]  # libc then takes clone, whose flags show
    program += [unless_equal(clone["clone"], 4), load(16), (0x45, 0, 1, _CLONE_THREAD), give(_ALLOW)]
    program += [give(_ERRNO | _EPERM), give(_ALLOW)]
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(buffer))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0) == 0


def probe() -> dict[str, bool]:
    """What this machine offers, each tried in a child of its own."""

    def works(attempt) -> bool:
        child = os.fork()
        if child == 0:
            os._exit(0 if attempt() else 1)
        return os.waitpid(child, 0)[1] == 0

    return {
        "namespaces": works(enter_namespaces),
        "landlock": works(lambda: confine_writes(os.getcwd())),
        "seccomp": works(filter_system_calls),
    }


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    if sys.argv[1:] == ["--probe"]:
        print(json.dumps(probe()))
    else:
        main(sys.argv[1:])
