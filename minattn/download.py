"""Download a file whole or not at all: verified, within bounded time, moved into place at once."""
import hashlib
import os
import queue
import socket
import threading
import time
from typing import NamedTuple

from minattn.files import one_line, write

PATIENCE = 60.0   # seconds for a download that does make progress, all attempts together


class Source(NamedTuple):
    """Where a corpus comes from that is known by name, and how a copy is recognised."""
    title: str
    url: str
    sha256: str
    n_bytes: int


def fetch(source, timeout, attempts):
    """The bytes of a source, of the right size and sha256; else OSError with a short reason."""
    from urllib.error import HTTPError

    deadline = time.monotonic() + PATIENCE
    for attempt in range(attempts):
        if attempt > 0:
            time.sleep(0.25 * 2**attempt)
        try:
            content = _read(source, timeout, deadline)
        except (queue.Empty, TimeoutError):
            reason = f"no answer within {timeout:g} s"
        except HTTPError as error:
            reason = one_line(error)
            error.close()
            if error.code < 500:         # refused: asking again would not help
                break
        except Exception as error:       # a network can fail in any way, not only as an OSError
            cause = getattr(error, "reason", error)
            reason = one_line(cause) or type(error).__name__
            if isinstance(cause, socket.gaierror):   # offline
                break
        else:
            if len(content) < source.n_bytes:
                reason = f"only {len(content):,} of {source.n_bytes:,} bytes came"
            elif len(content) > source.n_bytes:
                reason = f"more than the expected {source.n_bytes:,} bytes came"
            elif hashlib.sha256(content).hexdigest() != source.sha256:
                reason = "what came has another sha256 than expected"
            else:
                return content
        if time.monotonic() > deadline:
            break
    raise OSError(reason)


def _read(source, timeout, deadline):
    """The bytes at source.url, up to just past n_bytes; queue.Empty after `timeout` s of silence.

    A separate thread talks to the network, because a socket's time-out bounds neither the look-up
    of a name nor a connection that tries many addresses in turn. If it stays silent, it is left
    behind.
    """
    from urllib.request import urlopen

    from tqdm import tqdm

    pieces = queue.SimpleQueue()   # bytes; at the end b"" or an exception

    def talk():
        try:
            missing = source.n_bytes + 1
            with urlopen(source.url, timeout=timeout) as response:
                while missing > 0 and (piece := response.read1(min(missing, 1 << 16))):
                    missing -= len(piece)
                    pieces.put(piece)
                    if time.monotonic() > deadline:
                        raise OSError(f"still not complete after {PATIENCE:g} s")
            pieces.put(b"")
        except Exception as error:       # raised again by the thread that waits
            pieces.put(error)

    threading.Thread(target=talk, daemon=True).start()
    content = b""
    with tqdm(total=source.n_bytes, unit="B", unit_scale=True, desc=source.title.lower(),
              disable=None) as bar:
        while piece := pieces.get(timeout=timeout):
            if isinstance(piece, Exception):
                raise piece
            content += piece
            bar.update(len(piece))
    return content


def keep(home, content):
    """Write `content` to `home` whole or not at all; OSError if it fails."""
    if home.is_file() and home.read_bytes() == content:          # another run was quicker
        return
    if os.path.lexists(home):
        raise FileExistsError(0, "another file is there")
    home.parent.mkdir(parents=True, exist_ok=True)
    write(home, content)
