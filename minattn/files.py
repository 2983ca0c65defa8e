"""One place that reads files and one that writes them, for every command.

A file is written aside, synced and renamed into place, so that a kill or a full disk leaves what
was there. It is read only if it is a plain file: a link, pipe, device or folder that stands in its
place is refused before it is opened. JSON is checked against what is needed of it, and against its
own checksum where it has one.
"""
import hashlib
import json
import math
import os
import re
import secrets
import shlex
import shutil
import stat
import tempfile
import time
from contextlib import contextmanager
from errno import EDQUOT, EFBIG, ENOSPC, ENXIO
from pathlib import Path

from minattn.errors import InputError

MOST = 256 << 20                 # bytes of a file that is read whole
OLD = 60                         # seconds that no write takes
KINDS = {stat.S_IFLNK: "link", stat.S_IFDIR: "folder", stat.S_IFIFO: "pipe",
         stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
WORDS = {int: "an integer", float: "a finite number", str: "a text", bool: "true or false",
         dict: "an object", list: "a list", None: "null"}
CHECKSUM = "checksum"            # of a JSON file: the sha256 of all the rest


class Missing(InputError):
    """There is no such file."""


class CannotWrite(OSError):
    """A file could not be written: its path, why, what it needs, and a way out."""

    def __init__(self, path, error, size=0):
        super().__init__(error.errno, error.strerror or str(error))
        self.path, self.size = path, size
        self.way_out = "name another folder, or change what stands in the way"
        self.need = ""
        if error.errno in (ENOSPC, EDQUOT, EFBIG):
            self.way_out = "make room, or name a folder on another disk"
            self.need = f" (it needs {size:,} bytes{_free(path)})"

    def __str__(self):
        return f"cannot write {self.path}: {self.strerror}{self.need}; {self.way_out}."


def _free(path):
    try:
        return f"; {shutil.disk_usage(Path(path).parent).free:,} are free there"
    except OSError:
        return ""


def quoted(path):
    """A path as a shell takes it: quoted where it must be."""
    return shlex.quote(str(path))


def named(flag, text, what="folder"):
    """The path that the user gave, ~ expanded; InputError if it is empty."""
    if text == "":
        raise InputError(f"{flag} must name a {what}.")
    return Path(os.path.expanduser(text))


# ----------------------------------------------------------------------------------------- writing


def write(path, content, *, follow=False):
    """Write text or bytes aside, sync, and rename into place; CannotWrite, and nothing is left.

    follow: the user named this file, so a link is followed, and a pipe that a program reads, or a
    device, is written into.
    """
    path = Path(os.path.realpath(path) if follow else path)
    content = content.encode() if isinstance(content, str) else content
    with _sentence(path, content):
        if what := _odd(path):
            if not follow or what in ("folder", "link"):
                raise OSError(0, f"a {what} stands in its place")
            with open(path, "wb", opener=_open_odd) as file:
                file.write(content)
            return
    with written_aside(path, content):
        pass


@contextmanager
def written_aside(path, content):
    """Write text or bytes aside; the file takes its place once the body is done.

    For a body that removes what the new file replaces: if there is no room, nothing is removed.
    """
    path = Path(path)
    content = content.encode() if isinstance(content, str) else content
    aside = path.parent / (f"{path.name[:60]}.{secrets.token_hex(4)}.tmp")
    try:
        with _sentence(path, content), open(aside, "xb", opener=_open_new) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield
        with _sentence(path, content):
            os.replace(aside, path)
    except BaseException:
        _discard(aside)
        raise


@contextmanager
def _sentence(path, content):
    try:
        yield
    except OSError as error:
        raise CannotWrite(path, error, len(content)) from None


def check_writable(folder):
    """CannotWrite unless files can be made in this folder, which is made if it is missing."""
    with _sentence(folder, b""):
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()


def open_to_append(path):
    """A file of ours, unbuffered, never through a link."""
    return open(path, "ab", buffering=0, opener=_open_new)


def _open_new(path, flags):
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _open_odd(path, flags):
    """Open a pipe or device: a pipe that no program reads is an error, not a wait without end."""
    try:
        descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        if error.errno != ENXIO:
            raise
        raise OSError(ENXIO, "no program reads it") from None
    os.set_blocking(descriptor, True)
    return descriptor


def _discard(path):
    try:
        os.unlink(path)
    except OSError:
        pass


def write_json(path, content, *, indent=None):
    """An object as JSON with its own checksum, for read_json."""
    content = {**content, CHECKSUM: checksum(content)}
    write(path, json.dumps(content, indent=indent) + "\n")


def checksum(content):
    """The sha256 of an object, whatever the order of its keys and the spaces in its file."""
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def check_ours(folder, names, sign):
    """InputError where files of these names would be replaced that may be somebody else's.

    sign: a pattern; what fits it is always there before this program writes these files.
    """
    folder = Path(folder)
    there = [name for name in names if os.path.lexists(folder / name)]
    if there and next(folder.glob(sign), None) is None:
        raise InputError(f"{folder} holds {', '.join(there)}, and no {sign} that this program "
                         "wrote before: it may be yours, so nothing is replaced; move it, or "
                         "choose another folder.")


def sweep(folder, names, *, older=0):
    """Remove what a kill left of these files while they were written.

    The caller has the lock; or there is none, and older: seconds after which nobody writes them.
    """
    for entry in os.scandir(folder) if os.path.isdir(folder) else ():
        found = re.fullmatch(r"(.+)\.[0-9a-f]{8}\.tmp", entry.name)
        if (found and found[1] in names and entry.is_file(follow_symlinks=False)
                and time.time() - entry.stat().st_mtime >= older):
            _discard(entry.path)


# ----------------------------------------------------------------------------------------- reading


def _odd(path, *, follow=False):
    """What stands in a file's place that is no plain file, or None; FileNotFoundError is None."""
    try:
        mode = os.stat(path, follow_symlinks=follow).st_mode
    except FileNotFoundError:
        return None
    return KINDS.get(stat.S_IFMT(mode))


def check_plain(path, *, follow=False):
    """InputError for a link, pipe, device or folder in a file's place; Missing without any."""
    try:
        what = _odd(path, follow=follow)
        os.stat(path, follow_symlinks=follow)
    except FileNotFoundError:
        raise Missing(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:           # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {reason}.") from None
    if what:
        raise InputError(f"cannot read {path}: a {what} stands in its place; put a plain file "
                         "there.")


def read(path, *, most=MOST, follow=False):
    """The bytes of a plain file of at most `most`; InputError else, Missing without one.

    follow: the user named this file, so it may be a link to one.
    """
    check_plain(path, follow=follow)
    try:
        with open(path, "rb", opener=_open_followed if follow else _open_plain) as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):              # it was changed this very moment
                raise InputError(f"cannot read {path}: it is no plain file.")
            if about.st_size > most:
                raise InputError(f"cannot read {path}: it has more than {most:,} bytes, so this "
                                 "program did not write it.")
            return file.read()
    except FileNotFoundError:
        raise Missing(f"{path} does not exist.") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from None


def _open_followed(path, flags):
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _open_plain(path, flags):
    return _open_followed(path, flags | getattr(os, "O_NOFOLLOW", 0))


def read_text(path, *, most=MOST, follow=False):
    """The text of a UTF-8 file; InputError as read has, or if it is not UTF-8."""
    content = read(path, most=most, follow=follow)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: byte {error.start} is not UTF-8.") from None


def read_json(path, kind=dict, *, way_out="restore it, or remove it"):
    """A JSON file as write_json or an older version wrote it, without its checksum.

    kind: what it must be, see misfit. InputError names the file, what is wrong and the way out.
    """
    try:
        return parse_json(read_text(path), kind)
    except InputError as error:
        if str(error).startswith((str(path), "cannot read")):
            raise
        raise InputError(f"{path} is damaged: {error}; {way_out}.") from None


def parse_json(text, kind=dict):
    """A JSON text -> its content, checked; InputError says what is wrong."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise InputError("it is nested too deeply") from None
    except ValueError as error:
        raise InputError(f"it is not JSON ({error})") from None
    if isinstance(content, dict) and CHECKSUM in content:
        if content.pop(CHECKSUM) != checksum(content):
            raise InputError("its contents do not match their checksum")
    if wrong := misfit(content, kind):
        raise InputError(wrong)
    return content


def misfit(value, kind, name="it"):
    """What keeps a JSON value from being of a kind, in words; an empty string if nothing does.

    A kind is int, float (any finite number), str, bool, dict, list, None; [kind], a list of those;
    {key: kind}, an object with at least these keys ("key?" may be missing); {str: kind}, an object
    with any keys; or a tuple of kinds, of which one must fit.
    """
    if isinstance(kind, tuple):
        wrong = [misfit(value, one, name) for one in kind]
        return "" if "" in wrong else wrong[0]
    if isinstance(kind, list):
        if not isinstance(value, list):
            return f"{name} must be a list; got {short(value)}"
        return _first(misfit(x, kind[0], f"{name}[{n}]") for n, x in enumerate(value))
    if isinstance(kind, dict):
        if not isinstance(value, dict):
            return f"{name} must be an object; got {short(value)}"
        if str in kind:
            return _first(misfit(x, kind[str], key) for key, x in value.items())
        return _first(_entry(value, key, one) for key, one in kind.items())
    if kind is None:
        right = value is None
    elif kind is int:
        right = isinstance(value, int) and not isinstance(value, bool)
    elif kind is float:
        right = isinstance(value, int | float) and not isinstance(value, bool) and _finite(value)
    else:
        right = isinstance(value, kind)
    return "" if right else f"{name} must be {WORDS[kind]}; got {short(value)}"


def _entry(value, key, kind):
    name = key.removesuffix("?")
    if name not in value:
        return "" if name != key else f"it has no {name}"
    return misfit(value[name], kind, name)


def _first(problems):
    return next(filter(None, problems), "")


def _finite(number):
    try:
        return math.isfinite(number)
    except OverflowError:                                # an integer beyond every float
        return False


def short(value, most=60):
    """A value in an error: its repr, cut."""
    try:
        text = repr(value)
    except (RecursionError, ValueError):     # ValueError: an integer of thousands of digits
        return type(value).__name__
    return text if len(text) <= most else text[:most] + "..."


def one_line(text, most=200):
    """A message from outside, fit for a terminal: one line, no control characters, not endless."""
    try:
        text = str(text)[:10 * most]
    except Exception as error:               # somebody's own __str__
        text = f"(its text cannot be read: {type(error).__name__})"
    text = "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
    return text if len(text) <= most else text[:most] + "..."
