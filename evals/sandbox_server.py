"""The sandbox's fork server: a bare interpreter that runs programs in locked-down children.

Started by `mixloop.evals.sandbox` as a script (`python -I -S`), so it imports nothing of mixloop
and nothing outside the standard library. One JSON line in (`program`, `nonce`), one out
(`passed`, `why`). A child is a fork: it never executes a file, so an interpreter that lies in a
folder the child may not enter is no obstacle.

What a child is under, in this order: rlimits (CPU, memory, processes, file size, open files),
landlock (reads of the standard library only, no writes, no TCP, no signals to or sockets of
others), an unprivileged user when the server is root, and a seccomp list of allowed system calls
(no fork, exec, sockets, signals, ptrace or mounts). Its output goes to /dev/null.

Not covered: covert timing channels, kernel flaws, and a program written to attack the scorer
inside its own process, which can forge its own success (nobody else's).
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Mapping
from typing import Any, NoReturn

# modules a program may want: a child of another user can't always reach their files
PRELOADED = (
    "abc array base64 bisect calendar cmath collections collections.abc contextlib copy datetime "
    "decimal enum fractions functools hashlib heapq inspect io itertools json math numbers "
    "operator queue random re socket statistics string struct textwrap threading time traceback "
    "types typing unicodedata unittest uuid encodings.ascii encodings.base64_codec "
    "encodings.cp1252 encodings.hex_codec encodings.idna encodings.latin_1 encodings.rot_13 "
    "encodings.utf_16 encodings.utf_32"
)

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_OUTPUT, _NONCE = 3, 4
_NO_ONE = (1_999_999_999, 65_534)

_libc = ctypes.CDLL(None, use_errno=True)

# read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
# pread64 readv writev sched_yield mremap madvise dup nanosleep getpid exit uname fcntl getcwd
# gettimeofday getrusage sysinfo times getuid getgid geteuid getegid getppid sigaltstack gettid
# futex sched_getaffinity getdents64 restart_syscall clock_gettime clock_getres clock_nanosleep
# exit_group openat newfstatat readlinkat faccessat pselect6 ppoll set_robust_list getrandom
# membarrier statx rseq faccessat2; on x86-64 also open stat lstat poll access select readlink
ARCHITECTURES: dict[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        (
            *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 21, 23, 24, 25),
            *(28, 32, 35, 39, 60, 63, 72, 79, 89, 96, 98, 99, 100, 102, 104, 107, 108, 110, 131),
            *(186, 202, 204, 217, 219, 228, 229, 230, 231, 257, 262, 267, 269, 270, 271, 273),
            *(318, 324, 332, 334, 439),
        ),
    ),
    "aarch64": (
        0xC00000B7,
        (
            *(17, 23, 25, 48, 56, 57, 61, 62, 63, 64, 65, 66, 67, 72, 73, 78, 79, 80, 93, 94, 98),
            *(99, 101, 113, 114, 115, 123, 124, 128, 132, 134, 135, 139, 153, 160, 165, 169, 172),
            *(173, 174, 175, 176, 177, 178, 179, 214, 215, 216, 222, 226, 233, 278, 283, 291),
            *(293, 439),
        ),
    ),
}

# the same numbers on every architecture
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_READ_FILE, _READ_DIR, _WRITE_FILE = 1 << 2, 1 << 3, 1 << 1


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _prctl(option: int, value: Any, pointer: Any = 0) -> None:
    arguments = (ctypes.c_ulong(value), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0))
    _check(_libc.prctl(option, *arguments), f"prctl {option}")


def _syscall(number: int, *arguments: Any) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), f"system call {number}")


def landlock_abi() -> int:
    """The kernel's landlock version; 0 where there is none."""
    version = _libc.syscall(
        ctypes.c_long(_LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint32(1)
    )
    return max(0, int(version))


def _restrict_landlock() -> None:
    """Denies every file access but reads of the standard library, and TCP, signals, sockets."""
    abi = landlock_abi()
    if abi < 1:
        raise OSError("landlock is not available")
    file_rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)
    words = [(1 << file_rights) - 1]
    if abi >= 4:
        words.append(3)  # bind and connect TCP
    if abi >= 6:
        words.append(3)  # abstract sockets and signals of others
    attributes = ctypes.create_string_buffer(struct.pack(f"={len(words)}Q", *words))
    ruleset = _syscall(
        _LANDLOCK_CREATE, attributes, ctypes.c_size_t(8 * len(words)), ctypes.c_uint32(0)
    )
    _allow(ruleset, os.__file__.rpartition("/")[0], _READ_FILE | _READ_DIR)
    _allow(ruleset, "/dev/null", _READ_FILE | _WRITE_FILE)
    _allow(ruleset, "/dev/urandom", _READ_FILE)
    _syscall(_LANDLOCK_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        where = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except PermissionError:
        return  # what this user can't reach needs no allowing
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, where))
    _syscall(_LANDLOCK_ADD, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint32(0))
    os.close(where)


def seccomp_filter(machine: str) -> bytes:
    """The BPF program that allows the listed calls and refuses the others with EPERM.

    Eight bytes an instruction (code, jump if true, jump if false, constant), little endian.
    Calls of another architecture, and x86-64's x32 ones, kill the process. Raises KeyError for
    a machine that isn't known.
    """
    audit, allowed = ARCHITECTURES[machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    kill, refuse, allow = 0x80000000, 0x00050000 | 1, 0x7FFF0000
    program = [
        (load, 0, 0, 4),
        (equal, 1, 0, audit),
        (give, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, 0, 1, 0x40000000),
        (give, 0, 0, kill),
    ]
    for number in allowed:
        program += [(equal, 0, 1, number), (give, 0, 0, allow)]
    program.append((give, 0, 0, refuse))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def _restrict_calls() -> None:
    code = seccomp_filter(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: a 16-bit count, padding, a pointer
    program = ctypes.create_string_buffer(
        struct.pack("@HxxxxxxQ", len(code) // 8, ctypes.addressof(buffer))
    )
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program)


def _limit(config: Mapping[str, Any]) -> None:
    seconds = math.ceil(config["timeout"])
    limits = {
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_AS: (config["memory"], config["memory"]),
        resource.RLIMIT_FSIZE: (0, 0),
        resource.RLIMIT_NOFILE: (32, 32),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_NPROC: (0, 0),
        resource.RLIMIT_MEMLOCK: (0, 0),
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, limit)


def _become_no_one() -> None:
    """Gives up root for a user that owns nothing (RLIMIT_NPROC is ignored for root)."""
    os.setgroups([])
    for user in _NO_ONE:
        try:
            os.setresgid(user, user, user)
            os.setresuid(user, user, user)
        except OSError as error:
            # a user namespace may not map the first choice
            if user == _NO_ONE[-1]:
                raise OSError(error.errno, "can't become another user") from error
        else:
            return


def _lock_down(config: Mapping[str, Any]) -> None:
    _limit(config)
    if config["locked"]:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if config["landlock"]:
        _restrict_landlock()
    if config["drop"] and os.getuid() == 0:
        _become_no_one()
    _prctl(_PR_SET_DUMPABLE, 0)
    # after the change of user, which clears it
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if config["locked"]:
        _restrict_calls()


def _child(program: str, config: Mapping[str, Any], output: int, nonce: int) -> NoReturn:
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        # both above the numbers they are about to take
        output, nonce = os.dup2(output, 100), os.dup2(nonce, 101)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        os.dup2(output, _OUTPUT)
        os.dup2(nonce, _NONCE)
        os.closerange(5, 4096)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _lock_down(config)
    except BaseException as error:
        os.write(_OUTPUT, f"{error}".encode()[:200])
        os._exit(1)
    os.write(_OUTPUT, b"S")
    try:
        exec(compile(program, "<program>", "exec"), {})
        os.write(_OUTPUT, os.read(_NONCE, 64))
    except BaseException as error:
        os.write(_OUTPUT, b"!" + type(error).__name__.encode()[:60])
    finally:
        os._exit(0)


def run_program(program: str, nonce: bytes, config: Mapping[str, Any]) -> dict[str, Any]:
    """Runs one program in a child and says whether it came to its end without an error.

    The nonce waits in a pipe the harness reads only after the program, so exiting early, however
    cleanly, is a failure. `locked` is false when the child could not be locked down; then the
    program was not run.
    """
    result, output = os.pipe()
    waiting, key = os.pipe()
    os.write(key, nonce)
    try:
        child = os.fork()
    except OSError as error:
        for end in (result, output, waiting, key):
            os.close(end)
        return {"locked": False, "passed": False, "why": f"no process to run it in: {error}"}
    if child == 0:
        _child(program, config, output, waiting)
    for end in (output, waiting, key):
        os.close(end)
    written, timed_out = _read(result, time.monotonic() + 2 * config["timeout"] + 1)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(result)
    if not written.startswith(b"S"):
        why = written.decode("ascii", "replace") or f"child ended with status {status}"
        return {"locked": False, "passed": False, "why": why}
    passed = written[1:] == nonce
    return {"locked": True, "passed": passed, "why": _why(written, status, timed_out, passed)}


def _read(pipe: int, deadline: float) -> tuple[bytes, bool]:
    """What the child wrote (at most 256 bytes) until it closed its end or the time was up."""
    written = b""
    while len(written) < 256:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return written, True
        part = os.read(pipe, 256 - len(written))
        if not part:
            break
        written += part
    return written, False


def _why(written: bytes, status: int, timed_out: bool, passed: bool) -> str:
    if passed:
        return ""
    if timed_out:
        return "timeout"
    if written[1:2] == b"!":
        name = written[2:].decode("ascii", "replace")
        return "".join(c for c in name if c.isalnum() or c == "_")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        return f"ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return "ended before its end"


def main() -> None:
    """Serves until its input ends."""
    config = json.loads(sys.argv[1])
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in PRELOADED.split():
        __import__(name)
    # program texts and answers go over descriptors a child closes first
    for line in sys.stdin.buffer:
        request = json.loads(line)
        answer = run_program(request["program"], request["nonce"].encode(), config)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
