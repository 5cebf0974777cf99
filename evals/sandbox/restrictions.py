"""What a sandboxed program is under, on Linux: rlimits, landlock, another user, seccomp.

Landlock rules and BPF as the kernel documents them (Documentation/userspace-api/landlock.rst,
seccomp_filter.rst). Standard library only: the sandbox's fork server has nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import functools
import math
import os
import platform
import resource
import signal
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# one line each, for people
NOT_COVERED = (
    "flaws of the kernel, and timing or load by which a program is noticed",
    "a program written to cheat: it runs in the process that reports its success, so it can read "
    "the nonce and report its own success (no other program's)",
    "a program's disk use is looked at every 20 ms, and may be above its limit for as long; files "
    "that it deletes but keeps open or mapped are bounded by its memory limit only",
    "whether a file is there, its size and its times, where the user may enter its folder; never "
    "its content",
    "the machine's name, kernel, uptime and load, which a program may ask for",
)

FILE_BYTES, DISK_BYTES, DISK_ENTRIES = 4 * 2**20, 16 * 2**20, 256

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_NO_ONE = (1_999_999_999, 65_534)

_libc = ctypes.CDLL(None, use_errno=True)

# read write close fstat lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn
# pread64 readv writev sched_yield mremap madvise dup nanosleep getpid exit uname getcwd
# gettimeofday getrusage sysinfo times getuid getgid geteuid getegid getppid sigaltstack gettid
# futex sched_getaffinity getdents64 restart_syscall clock_gettime clock_getres clock_nanosleep
# exit_group openat newfstatat readlinkat faccessat pselect6 ppoll set_robust_list getrandom
# membarrier statx rseq faccessat2 pwrite64 fsync fdatasync ftruncate chdir mkdirat
# unlinkat renameat renameat2; on x86-64 also open stat lstat poll access select readlink rename
# mkdir rmdir unlink. Not truncate, chmod and the like: landlock does not (always) know them
ARCHITECTURES: dict[str, tuple[int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        (
            *(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 21, 23, 24, 25),
            *(28, 32, 35, 39, 60, 63, 79, 89, 96, 98, 99, 100, 102, 104, 107, 108, 110, 131),
            *(18, 74, 75, 77, 80, 82, 83, 84, 87, 258, 263, 264, 316),
            *(186, 202, 204, 217, 219, 228, 229, 230, 231, 257, 262, 267, 269, 270, 271, 273),
            *(318, 324, 332, 334, 439),
        ),
    ),
    "aarch64": (
        0xC00000B7,
        (
            *(17, 23, 48, 56, 57, 61, 62, 63, 64, 65, 66, 67, 72, 73, 78, 79, 80, 93, 94, 98),
            *(99, 101, 113, 114, 115, 123, 124, 128, 132, 134, 135, 139, 153, 160, 165, 169, 172),
            *(173, 174, 175, 176, 177, 178, 179, 214, 215, 216, 222, 226, 233, 278, 283, 291),
            *(293, 439, 68, 82, 83, 46, 49, 34, 35, 38, 276),
        ),
    ),
}

# calls of which only some commands (second argument) are allowed. fcntl: duplicating, flags and
# record locks; an owner set on a pipe would have the kernel signal that process for the program.
# ioctl: whether it is a terminal, and close on exec, which opening with an opener sets
_COMMANDS = {"fcntl": (0, 1, 2, 3, 4, 5, 6, 7, 1030), "ioctl": (0x5401, 0x5450, 0x5451)}
NARROWED = {
    "x86_64": {72: _COMMANDS["fcntl"], 16: _COMMANDS["ioctl"]},
    "aarch64": {25: _COMMANDS["fcntl"], 29: _COMMANDS["ioctl"]},
}

# the same numbers on every architecture
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE = 1 << 13, 1 << 14
# remove folder, remove file, make folder, make file; no links, devices, pipes or sockets
_CHANGE_DIR = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8


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


@functools.cache
def ruleset(private: str) -> int:
    """A descriptor of what landlock allows, made once by the server.

    Denied is every file access but reads of the standard library and use of the private folder;
    and, as far as the kernel knows of them, TCP, signals and abstract sockets.

    Raises:
        OSError: the kernel has no landlock.
    """
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
    rules = _syscall(
        _LANDLOCK_CREATE, attributes, ctypes.c_size_t(8 * len(words)), ctypes.c_uint32(0)
    )
    library = Path(os.__file__).parent
    with contextlib.suppress(PermissionError):
        for part in library.iterdir():
            # installed packages hold benchmarks' answers
            if part.name not in ("site-packages", "dist-packages"):
                _allow(rules, str(part), _READ_FILE)
    _allow(rules, str(library), _READ_DIR)
    # renames between its folders came with version 2, truncation with 3
    everything = _WRITE_FILE | _READ_FILE | _READ_DIR | _CHANGE_DIR
    everything |= (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    _allow(rules, private, everything)
    _allow(rules, "/dev/null", _READ_FILE | _WRITE_FILE)
    _allow(rules, "/dev/urandom", _READ_FILE)
    return lifted(rules)


def lifted(descriptor: int) -> int:
    """The same file under a number of 100 or more, out of the way of those a child gives out."""
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 100)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        where = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (PermissionError, FileNotFoundError):
        return  # what this user can't reach, or a link leads nowhere, needs no allowing
    rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, where))
    _syscall(_LANDLOCK_ADD, ctypes.c_int(rules), ctypes.c_int(1), rule, ctypes.c_uint32(0))
    os.close(where)


@functools.cache
def seccomp_filter(machine: str) -> bytes:
    """The BPF program that allows the listed calls and refuses the others with EPERM.

    Eight bytes an instruction (code, jump if true, jump if false, constant), little endian.
    Calls of another architecture, and x86-64's x32 ones, kill the process.

    Raises:
        KeyError: the machine isn't known.
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
    for number, commands in NARROWED[machine].items():
        program += [(equal, 0, 2 + 2 * len(commands), number), (load, 0, 0, 24)]
        for command in commands:
            program += [(equal, 0, 1, command), (give, 0, 0, allow)]
        program.append((give, 0, 0, refuse))
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
        resource.RLIMIT_FSIZE: (FILE_BYTES, FILE_BYTES),
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


def give_away(private: str) -> None:
    """Makes the folder that user's."""
    for user in _NO_ONE:
        try:
            os.chown(private, user, user)
        except OSError:
            continue
        return


def prepare(config: Mapping[str, Any]) -> None:
    """Makes what all children share, once.

    Raises:
        OSError: it can't be had here.
    """
    if config["locked"]:
        machine = platform.machine()
        if machine not in ARCHITECTURES:
            raise OSError(f"no list of system calls for {machine}")
        seccomp_filter(machine)
    if config["landlock"]:
        ruleset(config["tmp"])


def die_with_parent() -> None:
    """Has the kernel end this process when its parent ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def lock_down(config: Mapping[str, Any]) -> None:
    """Puts this process under everything `config` asks for, for good.

    Descriptors from 5 on are closed.

    Raises:
        OSError: something of it can't be had.
    """
    _limit(config)
    if config["locked"]:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if config["landlock"]:
        _syscall(_LANDLOCK_RESTRICT, ctypes.c_int(ruleset(config["tmp"])), ctypes.c_uint32(0))
    os.closerange(5, 4096)
    if config["drop"] and os.getuid() == 0:
        _become_no_one()
    _prctl(_PR_SET_DUMPABLE, 0)
    # after the change of user, which clears it
    die_with_parent()
    if config["locked"]:
        _restrict_calls()
