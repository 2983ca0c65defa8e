"""From a text to batches: fetch a corpus, number its characters, cut windows out of it.

    corpus = load_corpus("tinyshakespeare")
    vocabulary = Vocabulary(corpus.text)
    train, val = split(vocabulary.encode(corpus.text))
    x, y = batch(train, batch_size=12, block_size=64, seed=1337, step=0)      # y is x, one character later
"""
import difflib
import hashlib
import os
import queue
import socket
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minattn import builtin_corpus
from minattn.errors import InputError

CORPORA = ("tinyshakespeare", "builtin")
FILE_NAME = "tinyshakespeare.txt"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
N_BYTES = 1_115_394
PATIENCE = 60.0   # seconds for a download that does make progress, all attempts together


class Corpus(NamedTuple):
    name: str    # "tinyshakespeare", "builtin", or the path given: what was really loaded
    text: str
    where: str   # the file, the URL or "built in"


# ---------------------------------------------------------------- corpora


def load_corpus(name_or_path="tinyshakespeare", *, data_dir="data", say=print, download=True,
                url=URL, sha256=SHA256, n_bytes=N_BYTES, timeout=4.0, attempts=3):
    """Load a text to train on -> Corpus(name, text, where).

    "tinyshakespeare" is looked for in data_dir, then in the folder that the environment variable MINATTN_DATA
    names, then downloaded and kept in data_dir; every copy must have the expected sha256. When all of that
    fails, one sentence says why and the built-in corpus comes back instead (Corpus.name tells), so that a
    first run always has something to train on. "builtin" is that corpus: plays written by a small grammar.
    Anything else is the path of a UTF-8 text; a byte-order mark is dropped and "\\r\\n" becomes "\\n". Write
    ./builtin for a file that is called like a corpus.

    `say` receives one-line messages. `timeout` is the longest silence of the network, in seconds, before an
    attempt is given up; a server that never answers costs about attempts * timeout. download=False stays off
    the network.

    Raises InputError for a path that is missing, a directory, empty, unreadable, binary, or not UTF-8.
    """
    name = os.fspath(name_or_path)
    if name == "builtin":
        return Corpus("builtin", builtin_corpus.text(), "built in")
    if name != "tinyshakespeare":
        return Corpus(name, _read_text(name), name)

    home = Path(data_dir) / FILE_NAME
    places = [home]
    if os.environ.get("MINATTN_DATA"):
        places.append(Path(os.environ["MINATTN_DATA"]) / FILE_NAME)
    for place in places:
        try:
            content = place.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            say(f"{place} cannot be read ({error.strerror or error}), so it is passed over.")
            continue
        if hashlib.sha256(content).hexdigest() == sha256:
            return Corpus(name, content.decode("utf-8"), str(place))
        say(f"{place} is not TinyShakespeare as expected (its sha256 differs), so it is passed over.")

    try:
        if not download:
            raise OSError("downloading is switched off")
        content = _download(url, sha256, n_bytes, timeout, attempts)
    except OSError as error:
        say(f"TinyShakespeare could not be fetched ({error}): using the built-in corpus instead; "
            f"to use the real one, put it at {home} or name its folder in MINATTN_DATA.")
        return Corpus("builtin", builtin_corpus.text(), "built in")
    try:
        _keep(home, content)
    except OSError as error:
        say(f"TinyShakespeare was downloaded and verified but could not be kept at {home} "
            f"({error.strerror or error}), so the next run will download it again.")
        return Corpus(name, content.decode("utf-8"), url)
    return Corpus(name, content.decode("utf-8"), str(home))


def about(corpus):
    """What a run folder keeps of its corpus: its name, checksum and length."""
    digest = hashlib.sha256(corpus.text.encode()).hexdigest()
    return {"name": corpus.name, "sha256": digest, "characters": len(corpus.text)}


def run_text(known, **options):
    """The text of a run, from what its folder keeps of the corpus; options as load_corpus takes them.

    Raises InputError if the corpus has changed or cannot be found.
    """
    corpus = load_corpus(known["name"], **options)
    if about(corpus)["sha256"] != known["sha256"]:
        raise InputError(f"the corpus is not the one this run began with ({known['name']}, "
                         f"{known['characters']:,} characters); found {corpus.name} with "
                         f"{len(corpus.text):,}.")
    return corpus.text


def _read_text(path):
    place = Path(os.path.expanduser(path))
    if os.path.isdir(place):
        raise InputError(f"{path!r} is a directory; give the path of one text file.")
    if os.path.exists(place) and not os.path.isfile(place):
        raise InputError(f"{path!r} is a device or a pipe; give the path of one text file.")
    try:
        content = place.read_bytes()
    except FileNotFoundError:
        near = difflib.get_close_matches(path.lower(), CORPORA, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the corpora by name are {' and '.join(CORPORA)}."
        raise InputError(f"there is no corpus or file called {path!r}; {hint}") from None
    except (OSError, ValueError) as error:   # ValueError: a NUL byte in the path itself
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path!r} cannot be read ({reason}); give the path of a readable text.") from None
    if b"\0" in content:
        raise InputError(f"{path!r} is not a plain text: byte {content.index(0)} is NUL, so it is binary or "
                         "UTF-16; save it as UTF-8.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path!r} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}, which "
                         "cannot stand there; save the file as UTF-8.") from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text:
        raise InputError(f"{path!r} is empty; a corpus needs some text.")
    return text


def _download(url, sha256, n_bytes, timeout, attempts):
    """The bytes at `url`, of the right size and sha256; else OSError with the reason in a few words."""
    from urllib.error import HTTPError

    deadline = time.monotonic() + PATIENCE
    for attempt in range(attempts):
        if attempt > 0:
            time.sleep(0.25 * 2**attempt)
        try:
            content = _fetch(url, n_bytes, timeout, deadline)
        except (queue.Empty, TimeoutError):
            reason = f"no answer within {timeout:g} s"
        except HTTPError as error:
            reason = str(error)
            error.close()
            if error.code < 500:         # refused: asking again would not help
                break
        except Exception as error:  # noqa: BLE001  a network can fail in any way; not all of them are OSErrors
            cause = getattr(error, "reason", error)
            reason = " ".join(str(cause).split()) or type(error).__name__
            if isinstance(cause, socket.gaierror):   # offline
                break
        else:
            if len(content) < n_bytes:
                reason = f"only {len(content):,} of {n_bytes:,} bytes came"
            elif len(content) > n_bytes:
                reason = f"more than the expected {n_bytes:,} bytes came"
            elif hashlib.sha256(content).hexdigest() != sha256:
                reason = "what came has another sha256 than expected"
            else:
                return content
        if time.monotonic() > deadline:
            break
    raise OSError(reason)


def _fetch(url, n_bytes, timeout, deadline):
    """The bytes at `url`, up to just past n_bytes; queue.Empty after `timeout` seconds of silence.

    A thread of its own talks to the network, because a socket's time-out bounds neither the look-up of a name
    nor a connection that tries many addresses in turn. When it stays silent it is left behind.
    """
    from urllib.request import urlopen

    from tqdm import tqdm

    pieces = queue.SimpleQueue()   # bytes; at the end b"" or an exception

    def talk():
        try:
            missing = n_bytes + 1
            with urlopen(url, timeout=timeout) as response:
                while missing > 0 and (piece := response.read1(min(missing, 1 << 16))):
                    missing -= len(piece)
                    pieces.put(piece)
                    if time.monotonic() > deadline:
                        raise OSError(f"still not complete after {PATIENCE:g} s")
            pieces.put(b"")
        except Exception as error:  # noqa: BLE001  raised again by the thread that waits
            pieces.put(error)

    threading.Thread(target=talk, daemon=True).start()
    content = b""
    with tqdm(total=n_bytes, unit="B", unit_scale=True, desc="tinyshakespeare", disable=None) as bar:
        while piece := pieces.get(timeout=timeout):
            if isinstance(piece, Exception):
                raise piece
            content += piece
            bar.update(len(piece))
    return content


def _keep(home, content):
    """Write `content` to `home` whole or not at all; OSError if it cannot be, or if another file is there."""
    if home.is_file() and home.read_bytes() == content:            # another run was quicker
        return
    if os.path.lexists(home):
        raise FileExistsError(0, "another file is there")
    home.parent.mkdir(parents=True, exist_ok=True)
    part = home.with_name(f"{home.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, home)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------- characters and numbers


class Vocabulary:
    """The distinct characters of a text, sorted; the number of a character is its place among them.

    `characters` is the sorted str; Vocabulary(vocabulary.characters) is the same vocabulary again.
    Raises InputError for an empty text, or one with more distinct characters than a uint16 can number.
    """

    def __init__(self, text):
        self.characters = "".join(sorted(set(text)))
        if not 0 < len(self.characters) <= 1 << 16:
            raise InputError(f"a vocabulary has 1 to 65,536 distinct characters; the text has {len(self)}.")

    def __len__(self):
        return len(self.characters)

    def encode(self, text):
        """text (str of N characters) -> ids (N,) uint16. Raises InputError for characters it lacks."""
        known, codes = _code_points(self.characters), _code_points(text)
        above = int(known[-1]) + 1                                 # stands for all that lie past the highest
        id_of = np.full(above + 1, -1, np.int32)
        id_of[known] = np.arange(len(known))
        ids = id_of[np.minimum(codes, above)]                      # (N,)
        if ids.min(initial=0) < 0:
            unknown = "".join(sorted(set(text) - set(self.characters)))
            raise InputError(f"the text has characters that the vocabulary lacks: {_shown(unknown)}; "
                             f"it has these {len(self)}: {_shown(self.characters)}.")
        return ids.astype(np.uint16)

    def decode(self, ids):
        """ids (N,) of any integer type -> str of N characters. Raises InputError for an id it lacks."""
        ids = np.asarray(ids)
        if ids.size == 0:
            return ""
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= len(self):
            raise InputError(f"ids must be integers from 0 to {len(self) - 1}, "
                             f"got {ids.dtype} from {ids.min()} to {ids.max()}.")
        return _code_points(self.characters)[ids].tobytes().decode("utf-32-le", "surrogatepass")


def _code_points(text):
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")   # (N,)


def _shown(characters, most=100):
    return repr(characters[:most]) + (f" and {len(characters) - most} more" if len(characters) > most else "")


# ---------------------------------------------------------------- windows


def split(ids, val_fraction=0.1):
    """Cut ids (N,) in two, unshuffled views: train, the first int((1 - val_fraction) * N), and val, the rest.

    Raises InputError unless 0 <= val_fraction < 1.
    """
    if not 0 <= val_fraction < 1:
        raise InputError(f"val_fraction must be at least 0 and below 1, got {val_fraction}.")
    n = int((1 - val_fraction) * len(ids))
    return ids[:n], ids[n:]


def batch(ids, batch_size, block_size, seed, step):
    """Draw random windows of ids (N,) -> x, y, each (batch_size, block_size) int64; y is x one place later.

    A pure function of its arguments: step 700 draws the same windows in a run that was resumed as in one that
    was not, and no generator has to be saved. Raises InputError if ids is too short for one window, or for a
    size or seed out of range.
    """
    B, T = batch_size, block_size
    if B < 1:
        raise InputError(f"batch_size must be at least 1, got {B}.")
    if seed < 0:
        raise InputError(f"seed must be at least 0, got {seed}.")
    _check_length(ids, T)
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step])))
    starts = random.integers(len(ids) - T, size=B)                 # (B,)  at most, y ends on the last id
    at = starts[:, None] + np.arange(T)                            # (B, T)
    return ids[at].astype(np.int64), ids[at + 1].astype(np.int64)


def blocks(ids, block_size):
    """Cut ids (N,) into consecutive windows that do not overlap -> x, y, each (n, block_size) int64.

    For evaluation. n = (N - 1) // block_size; what is left at the end, shorter than a block, is dropped.
    Raises InputError if ids is too short for one window, or for a block_size below 1.
    """
    T = block_size
    _check_length(ids, T)
    n = (len(ids) - 1) // T
    x = ids[:n * T].reshape(n, T)                                  # (n, T)
    y = ids[1:n * T + 1].reshape(n, T)                             # (n, T)
    return x.astype(np.int64), y.astype(np.int64)


def _check_length(ids, block_size):
    if block_size < 1:
        raise InputError(f"block_size must be at least 1, got {block_size}.")
    if len(ids) < block_size + 1:
        raise InputError(f"block_size {block_size} needs at least {block_size + 1} characters, but this part "
                         f"of the text has {len(ids)}; use a longer text or a smaller block_size.")
