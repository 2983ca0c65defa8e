"""How much memory is there? What needs more is refused in one sentence, before any of it is made.

    memory.weigh("these scores", B * H * T * T * 4, "shorten the sequence")
"""
import os

from minattn.errors import InputError

SMALL = 1 << 26        # bytes that are not worth a look at the machine
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def weigh(what, size, advice):
    """Raise InputError if `size` bytes are more than there are; the sentence ends in the advice."""
    if size < SMALL:
        return
    there, why = available()
    if size > there:
        raise InputError(f"{what} would need {shown(size)} of memory, and {shown(there)} are "
                         f"available{why}: {advice}.")


def available():
    """-> bytes that can still be had, and which limit they come from, in words

    The smallest of: free memory and swap, the limit of the container (cgroup), and the limit of
    this process's address space (ulimit -v). What a system does not tell counts as no limit.
    """
    limits = [(_free(), ""), (_container(), " in this container"),
              (_address_space(), " below the limit of the address space (ulimit -v)")]
    return min((limit for limit in limits if limit[0] is not None), default=(2**63, ""))


def shown(size):
    """12345678 -> "12.3 MB" """
    for power, unit in ((9, "GB"), (6, "MB")):
        if size >= 10**power:
            rounded = size // 10**(power - 1)                  # whole numbers: it may be huge
            if len(str(rounded)) > 30:
                return "more than 10^30 bytes"
            return f"{rounded // 10:,}.{rounded % 10} {unit}"
    return f"{max(size, 0) // 1000} kB"


def _free():
    try:
        with open("/proc/meminfo") as lines:
            found = dict(line.split(":") for line in lines)
        return sum(int(found[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _container():
    for path in CGROUPS:                  # what is in use includes files that the system can drop
        try:
            with open(path) as limit:
                return int(limit.read())
        except (OSError, ValueError):                          # "max": no limit
            continue
    return None


def _address_space():
    try:
        import resource
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        with open("/proc/self/statm") as pages:
            return max(0, limit - int(pages.read().split()[0]) * resource.getpagesize())
    except (ImportError, OSError, ValueError):
        return None
