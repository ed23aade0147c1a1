"""The kernel's constants by name, for programs and for how they are shown. Data only."""

from __future__ import annotations

import os
from collections.abc import Mapping

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_RECURSIVE = 0x8000

AT = {
    "AT_SYMLINK_NOFOLLOW": AT_SYMLINK_NOFOLLOW,
    "AT_REMOVEDIR": 0x200,
    "AT_EMPTY_PATH": AT_EMPTY_PATH,
    "AT_RECURSIVE": AT_RECURSIVE,
}
# linux/mount.h
MS = {
    "MS_RDONLY": 1,
    "MS_NOSUID": 2,
    "MS_NODEV": 4,
    "MS_NOEXEC": 8,
    "MS_SYNCHRONOUS": 16,
    "MS_REMOUNT": 32,
    "MS_MANDLOCK": 64,
    "MS_DIRSYNC": 128,
    "MS_NOSYMFOLLOW": 256,
    "MS_NOATIME": 1024,
    "MS_NODIRATIME": 2048,
    "MS_BIND": 4096,
    "MS_MOVE": 8192,
    "MS_REC": 16384,
    "MS_SILENT": 32768,
    "MS_UNBINDABLE": 1 << 17,
    "MS_PRIVATE": 1 << 18,
    "MS_SLAVE": 1 << 19,
    "MS_SHARED": 1 << 20,
    "MS_RELATIME": 1 << 21,
    "MS_STRICTATIME": 1 << 24,
    "MS_LAZYTIME": 1 << 25,
}
UMOUNT = {"MNT_FORCE": 1, "MNT_DETACH": 2, "MNT_EXPIRE": 4, "UMOUNT_NOFOLLOW": 8}
MOUNT_ATTR = {
    "MOUNT_ATTR_RDONLY": 1,
    "MOUNT_ATTR_NOSUID": 2,
    "MOUNT_ATTR_NODEV": 4,
    "MOUNT_ATTR_NOEXEC": 8,
    "MOUNT_ATTR_NOATIME": 0x10,
    "MOUNT_ATTR_STRICTATIME": 0x20,
    "MOUNT_ATTR_NODIRATIME": 0x80,
    "MOUNT_ATTR_IDMAP": 0x100000,
    "MOUNT_ATTR_NOSYMFOLLOW": 0x200000,
}
OPEN_TREE = {"OPEN_TREE_CLONE": 1, "OPEN_TREE_CLOEXEC": os.O_CLOEXEC, **AT}
MOVE_MOUNT = {
    "MOVE_MOUNT_F_SYMLINKS": 1,
    "MOVE_MOUNT_F_AUTOMOUNTS": 2,
    "MOVE_MOUNT_F_EMPTY_PATH": 4,
    "MOVE_MOUNT_T_SYMLINKS": 0x10,
    "MOVE_MOUNT_T_AUTOMOUNTS": 0x20,
    "MOVE_MOUNT_T_EMPTY_PATH": 0x40,
    "MOVE_MOUNT_SET_GROUP": 0x100,
    "MOVE_MOUNT_BENEATH": 0x200,
}
FSOPEN = {"FSOPEN_CLOEXEC": 1}
FSMOUNT = {"FSMOUNT_CLOEXEC": 1}
FSCONFIG = {
    "FSCONFIG_SET_FLAG": 0,
    "FSCONFIG_SET_STRING": 1,
    "FSCONFIG_SET_BINARY": 2,
    "FSCONFIG_SET_PATH": 3,
    "FSCONFIG_SET_PATH_EMPTY": 4,
    "FSCONFIG_SET_FD": 5,
    "FSCONFIG_CMD_CREATE": 6,
    "FSCONFIG_CMD_RECONFIGURE": 7,
    "FSCONFIG_CMD_CREATE_EXCL": 8,
}
O = {  # noqa: E741 - the kernel's prefix
    name: value
    for name in [
        "O_WRONLY",
        "O_RDWR",
        "O_CREAT",
        "O_EXCL",
        "O_NOCTTY",
        "O_TRUNC",
        "O_APPEND",
        "O_NONBLOCK",
        "O_DSYNC",
        "O_DIRECT",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_NOATIME",
        "O_CLOEXEC",
        "O_PATH",
    ]
    if (value := getattr(os, name, 0))
}
CLOSE_RANGE = {"CLOSE_RANGE_UNSHARE": 2, "CLOSE_RANGE_CLOEXEC": 4}
FCNTL = {"F_DUPFD": 0, "F_GETFD": 1, "F_SETFD": 2, "F_SETFL": 4, "F_DUPFD_CLOEXEC": 1030}
SECCOMP_FILTER = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
    "SECCOMP_FILTER_FLAG_NEW_LISTENER": 8,
    "SECCOMP_FILTER_FLAG_TSYNC_ESRCH": 16,
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
}
# linux/prctl.h
PR = {
    "PR_SET_PDEATHSIG": 1,
    "PR_SET_DUMPABLE": 4,
    "PR_SET_KEEPCAPS": 8,
    "PR_SET_NAME": 15,
    "PR_CAPBSET_DROP": 24,
    "PR_SET_SECUREBITS": 28,
    "PR_SET_TIMERSLACK": 29,
    "PR_SET_CHILD_SUBREAPER": 36,
    "PR_SET_NO_NEW_PRIVS": 38,
    "PR_CAP_AMBIENT": 47,
}
PR_CAP_AMBIENT = {
    "PR_CAP_AMBIENT_RAISE": 2,
    "PR_CAP_AMBIENT_LOWER": 3,
    "PR_CAP_AMBIENT_CLEAR_ALL": 4,
}
# linux/capability.h
CAPABILITIES = {
    name: number
    for number, name in enumerate(
        [
            "chown",
            "dac_override",
            "dac_read_search",
            "fowner",
            "fsetid",
            "kill",
            "setgid",
            "setuid",
            "setpcap",
            "linux_immutable",
            "net_bind_service",
            "net_broadcast",
            "net_admin",
            "net_raw",
            "ipc_lock",
            "ipc_owner",
            "sys_module",
            "sys_rawio",
            "sys_chroot",
            "sys_ptrace",
            "sys_pacct",
            "sys_admin",
            "sys_boot",
            "sys_nice",
            "sys_resource",
            "sys_time",
            "sys_tty_config",
            "mknod",
            "lease",
            "audit_write",
            "audit_control",
            "setfcap",
            "mac_override",
            "mac_admin",
            "syslog",
            "wake_alarm",
            "block_suspend",
            "audit_read",
            "perfmon",
            "bpf",
            "checkpoint_restore",
        ]
    )
}
RESOURCES = {
    f"RLIMIT_{name.upper()}": number
    for number, name in enumerate(
        [
            "cpu",
            "fsize",
            "data",
            "stack",
            "core",
            "rss",
            "nproc",
            "nofile",
            "memlock",
            "as",
            "locks",
            "sigpending",
            "msgqueue",
            "nice",
            "rtprio",
            "rttime",
        ]
    )
}


def flag_names(value: int, table: Mapping[str, int]) -> str:
    """Spell a set of flags, what has no name in hexadecimal.

    Returns:
        For example ``"MS_BIND|MS_REC"``; ``"0"`` for none.
    """
    parts = []
    for name, flag in table.items():
        if flag and value & flag == flag:
            parts.append(name)
            value &= ~flag
    if value or not parts:
        parts.append(f"{value:#x}" if value else "0")
    return "|".join(parts)


def value_name(value: int, table: Mapping[str, int]) -> str:
    """Spell one of several values; "" if it has no name."""
    return next((name for name, number in table.items() if number == value), "")
