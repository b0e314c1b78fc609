"""Whether this machine is fit to compile KWDB and to run it; pure over machine.py's facts.

Sources: KWDB's documentation (8 GiB, ext4 on SSD, no network file systems, clocks within 500 ms, 1048576 open files,
vm.max_map_count=10000000), its systemd unit (memlock unlimited), and measurements of real builds (one C++ compiler up
to 0.9 GB, Go's link 2 GB).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from kwdb_build.files import human_bytes
from kwdb_build.model import CheckResult, Verdict

if TYPE_CHECKING:
    from pathlib import Path

    from kwdb_build.host.machine import Clock, MachineFacts

_GIB = 1 << 30
_LEAST_BYTES = 3 * _GIB
_ADVISED_BYTES = 8 * _GIB
_MAP_COUNT = 10_000_000
_OPEN_FILES = 1_048_576
_CLOCK_ERROR_S = 0.5
_NETWORK = ("nfs", "cifs", "smb", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "afs", "ocfs2", "gfs2")
_MEMORY = ("tmpfs", "ramfs")
_LOCAL = ("ext4", "xfs", "btrfs", "zfs", "ext3", "f2fs")
_CPU_NAMES = {"sse3": "pni", "sse4": "sse42", "pclmul": "pclmulqdq", "bmi": "bmi1"}
"""gcc's name -> the kernel's, where they differ in more than dots and underscores (sse4.2 and sse4_2)."""
_CPU_OPTION = re.compile(r"(?<![\w-])-m(sse[\d.]+|ssse3|avx[\w]*|bmi2?|popcnt|aes|pclmul)\b")
CPU_FILES = ("kwbase/Makefile", "CMakeLists.txt", "kwdbts2/CMakeLists.txt", "common/CMakeLists.txt")


def check_memory(facts: MachineFacts, jobs: int) -> CheckResult:
    """Memory for the compile jobs that cores and memory allow."""
    found = (
        f"{human_bytes(facts.memory_bytes)}, {human_bytes(facts.available_bytes)} available, {facts.cores} cores: "
        f"-j{jobs}"
    )
    verdict, fix = Verdict.OK, ""
    if facts.memory_bytes < _LEAST_BYTES:
        verdict, fix = Verdict.FAIL, "the compiler or the linker would be killed: build on a larger machine"
    elif min(facts.memory_bytes, facts.available_bytes) < _ADVISED_BYTES:
        verdict, fix = Verdict.WARN, f"free memory, or go on slowly with --jobs {jobs}"
    required = "8 GiB; 0.9 GB a C++ job and 2 GB for Go's link"
    return CheckResult(name="memory", verdict=verdict, required=required, found=found, fix=fix)


def check_disk(facts: MachineFacts, needed_bytes: int, home: Path) -> CheckResult:
    """Room for the build below home."""
    enough = facts.free_bytes >= needed_bytes
    return CheckResult(
        name="disk space", verdict=Verdict.OK if enough else Verdict.FAIL,
        required=f"{human_bytes(needed_bytes)} for the build", found=f"{human_bytes(facts.free_bytes)} free",
        where=str(home), fix="" if enough else "free space there, or choose another place with --home",
    )


def wanted_cpu_flags(texts: dict[str, str]) -> dict[str, str]:
    """CPU features that a tree's build files compile for: gcc's name ('sse4.2') -> where it was seen."""
    found: dict[str, str] = {}
    for file, text in texts.items():
        for number, line in enumerate(text.splitlines(), start=1):
            for option in _CPU_OPTION.findall(line) if not line.lstrip().startswith("#") else ():
                found.setdefault(option, f"{file}:{number}")
    return found


def _has_cpu(option: str, flags: frozenset[str]) -> bool:
    wanted = _CPU_NAMES.get(option, option).replace(".", "")
    return any(flag.replace("_", "") == wanted for flag in flags)


def check_cpu(facts: MachineFacts, wanted: dict[str, str]) -> CheckResult:
    """The processor has the instructions that the compiler is told to use."""
    where = ", ".join(sorted(set(wanted.values())))
    if facts.architecture != "x86_64":
        return CheckResult(
            name="CPU features", verdict=Verdict.SKIP, found=f"{facts.architecture}: the tree asks for none there"
        )
    required = " ".join(sorted(wanted)) or "none"
    if facts.cpu_flags is None:
        return CheckResult(name="CPU features", verdict=Verdict.UNKNOWN, required=required, where=where,
                           found="/proc/cpuinfo names none")
    missing = sorted(option for option in wanted if not _has_cpu(option, facts.cpu_flags))
    return CheckResult(
        name="CPU features", verdict=Verdict.FAIL if missing else Verdict.OK, required=required, where=where,
        found=f"missing: {' '.join(missing)}" if missing else "all",
        fix="this processor cannot run the result" if missing else "",
    )


def check_kernel(
    facts: MachineFacts, *, nofile: tuple[int, int] | None = None, memlock: tuple[int, int] | None = None
) -> tuple[CheckResult, ...]:
    """Memory maps, open files and locked memory. nofile, memlock: those of the running server, else our own count."""
    whose = "of this shell" if nofile is None else "of the running server"
    soft_files = (nofile or facts.nofile)[0]
    soft_lock = (memlock or facts.memlock)[0]
    return (
        _at_least(
            "vm.max_map_count", facts.max_map_count, _MAP_COUNT,
            f"sysctl -w vm.max_map_count={_MAP_COUNT} (and in /etc/sysctl.d/ to keep it)",
        ),
        _at_least(f"open files {whose}", None if soft_files == 0 else soft_files, _OPEN_FILES,
                  f"ulimit -n {_OPEN_FILES} before the start, or LimitNOFILE={_OPEN_FILES} in its unit"),
        _at_least(f"locked memory {whose} (bytes)", soft_lock, -1,
                  "ulimit -l unlimited before the start, or LimitMEMLOCK=infinity in its unit"),
    )


def _at_least(name: str, found: int | None, wanted: int, fix: str) -> CheckResult:
    """-1 is unlimited on both sides. KWDB starts with less, so less is a warning."""
    required = "unlimited" if wanted < 0 else f"{wanted} or more"
    if found is None:
        return CheckResult(name=name, verdict=Verdict.UNKNOWN, required=required, found="not found out", fix=fix)
    enough = found == -1 or 0 <= wanted <= found
    shown = "unlimited" if found == -1 else str(found)
    return CheckResult(
        name=name, verdict=Verdict.OK if enough else Verdict.WARN, required=required, found=shown,
        fix="" if enough else fix,
    )


def check_clock(found: Clock | None) -> CheckResult:
    """Clocks of a cluster must agree within 500 ms; a single node's times only need to be right."""
    required = "kept by NTP, within 0.5 s"
    fix = "systemctl enable --now chrony (chronyd), or systemd-timesyncd"
    if found is None:
        return CheckResult(name="clock", verdict=Verdict.UNKNOWN, required=required, found="not found out", fix=fix)
    if not found.synchronised:
        return CheckResult(name="clock", verdict=Verdict.WARN, required=required,
                           found="the kernel says that nothing keeps it", fix=fix)
    if found.max_error_s > _CLOCK_ERROR_S:
        return CheckResult(name="clock", verdict=Verdict.WARN, required=required,
                           found=f"may be wrong by {found.max_error_s:.1f} s", fix=fix)
    return CheckResult(name="clock", verdict=Verdict.OK, required=required,
                       found=f"kept, wrong by {found.max_error_s:.3f} s at most")


def check_file_system(place: Path, kind: str) -> CheckResult:
    """A store belongs on a local disk: it is mmapped and its locks must hold."""
    name, required = f"file system of the store {place}", "a local one; ext4 is advised"
    if not kind:
        return CheckResult(name=name, verdict=Verdict.UNKNOWN, required=required, found="not found out")
    if kind.startswith(_NETWORK):
        return CheckResult(name=name, verdict=Verdict.WARN, required=required, found=f"{kind}: a network file system",
                           fix="move the store to a local disk")
    if kind in _MEMORY:
        return CheckResult(name=name, verdict=Verdict.WARN, required=required, found=f"{kind}: gone after a restart",
                           fix="move the store to a disk")
    if kind in {"overlay", "aufs"}:
        return CheckResult(name=name, verdict=Verdict.WARN, required=required,
                           found=f"{kind}: a container's own layer, gone with the container",
                           fix="put the store on a volume")
    if kind in _LOCAL:
        return CheckResult(name=name, verdict=Verdict.OK, required=required, found=kind)
    return CheckResult(name=name, verdict=Verdict.UNKNOWN, required=required, found=f"{kind}: not known here")


def check_ports(in_use: dict[int, str], wanted: dict[int, str]) -> tuple[CheckResult, ...]:
    """wanted: port -> what it is for. For a machine on which no server runs yet."""
    return tuple(
        CheckResult(
            name=f"port {port}", verdict=Verdict.WARN if port in in_use else Verdict.OK,
            required=f"free, for {purpose}",
            found=f"taken by {in_use[port]}" if port in in_use else "free",
            fix=f"choose another by kwbase's flags, or end {in_use[port]}" if port in in_use else "",
        )
        for port, purpose in wanted.items()
    )
