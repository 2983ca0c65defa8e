"""From a text to batches: fetch a corpus, number its characters, cut windows out of it.

    corpus = load_corpus("tinyshakespeare")
    vocabulary = Vocabulary(corpus.text)
    train, val = split(vocabulary.encode(corpus.text))
    x, y = batch(train, batch_size=12, block_size=64, seed=1337, step=0)      # y is x, 1 later
"""
import difflib
import hashlib
import os
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minattn import builtin_corpus, checks, files, memory
from minattn.download import Source, fetch, keep
from minattn.errors import InputError

SOURCES = {    # name -> Source; a copy is kept as NAME.txt
    "tinyshakespeare": Source(
        "TinyShakespeare",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed", 1_115_394),
}
CORPORA = (*SOURCES, "builtin")


class Corpus(NamedTuple):
    name: str    # "tinyshakespeare", "builtin", or the path given: what was really loaded
    text: str
    where: str   # the file, the URL or "built in"


# ---------------------------------------------------------------- corpora


def load_corpus(name_or_path="tinyshakespeare", *, data_dir="data", say=print, download=True,
                url=None, timeout=4.0, attempts=3):
    """Load a text to train on -> Corpus(name, text, where).

    A corpus of SOURCES is looked for in data_dir, then in the folder that the environment variable
    MINATTN_DATA names, then downloaded and kept in data_dir; every copy must have the expected
    sha256. If all of that fails, one sentence says why and the built-in corpus comes back instead
    (see Corpus.name), so a first run always has something to train on. "builtin" is that corpus:
    plays written by a small grammar. Anything else is the path of a UTF-8 text; a byte-order mark
    is dropped and "\\r\\n" becomes "\\n". Write ./builtin for a file that is named like a corpus.

    `say` receives one-line messages. `timeout` is the longest silence of the network, in seconds,
    before an attempt is given up; a server that never answers costs about attempts * timeout.
    download=False stays off the network; `url` names another place of the same bytes, a mirror.

    Raises InputError for a path that is missing, a directory, empty, unreadable, binary, or not
    UTF-8.
    """
    name = os.fspath(name_or_path)
    if name == "builtin":
        return Corpus("builtin", builtin_corpus.text(), "built in")
    if name not in SOURCES:
        return Corpus(name, _read_text(name), name)

    source, home = SOURCES[name], Path(data_dir) / f"{name}.txt"
    if url is not None:
        source = source._replace(url=url)
    files.sweep(home.parent, (home.name,), older=files.OLD)
    content, where = _find(source, home, say)
    if content is None:
        try:
            if not download:
                raise OSError("downloading is switched off")
            content, where = fetch(source, timeout, attempts), home
        except OSError as error:
            say(f"{source.title} could not be fetched ({error}): using the built-in corpus "
                f"instead; to use the real one, put it at {home} or name its folder in "
                "MINATTN_DATA.")
            return load_corpus("builtin")
        try:
            keep(home, content)
        except OSError as error:
            say(f"{source.title} was downloaded and verified but could not be kept at {home} "
                f"({error.strerror or error}), so the next run will download it again.")
            where = source.url
    return Corpus(name, content.decode("utf-8"), str(where))


def about(corpus):
    """What a run folder keeps of its corpus: its name, checksum and length."""
    digest = hashlib.sha256(corpus.text.encode()).hexdigest()
    path = os.path.abspath(os.path.expanduser(corpus.name)) if corpus.name not in CORPORA else None
    return {"name": corpus.name, "path": path, "sha256": digest, "characters": len(corpus.text)}


def run_text(known, wanted=None, **options):
    """The text of a run, from what its folder keeps of the corpus; options as load_corpus has.

    It is looked for under the name it had, then at the place it had; or, wanted, under that name
    alone. Raises InputError if the corpus has changed or cannot be found.
    """
    places, problem = [known["name"], known.get("path")], None
    for place in [wanted] if wanted is not None else [place for place in places if place]:
        try:
            corpus = load_corpus(place, **options)
        except InputError as error:
            problem = problem or error
            continue
        if about(corpus)["sha256"] == known["sha256"]:
            return corpus.text
        problem = problem or InputError(
            "the corpus differs from the one this run was trained on "
            f"({known['name']}, {known['characters']:,} characters); found {corpus.name} with "
            f"{len(corpus.text):,}.")
    raise problem


def _find(source, home, say):
    """The verified copy at `home` or in MINATTN_DATA -> (bytes, path), or (None, None)."""
    places = [home]
    if os.environ.get("MINATTN_DATA"):
        places.append(Path(os.environ["MINATTN_DATA"]) / home.name)
    for place in places:
        try:
            content = files.read(place, follow=True)
        except files.Missing:
            continue
        except InputError as error:
            say(f"{error} Skipped.")
            continue
        if hashlib.sha256(content).hexdigest() == source.sha256:
            return content, place
        say(f"{place} is not {source.title} as expected (its sha256 differs); skipped.")
    return None, None


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
        hint = f"the corpora by name are {' and '.join(CORPORA)}."
        if near:
            hint = f"did you mean {near[0]!r}?"
        raise InputError(f"there is no corpus or file called {path!r}; {hint}") from None
    except (OSError, ValueError) as error:   # ValueError: a NUL byte in the path itself
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path!r} cannot be read ({reason}); "
                         "give the path of a readable text.") from None
    if b"\0" in content:
        raise InputError(f"{path!r} is not a plain text: byte {content.index(0)} is NUL, so it is "
                         "binary or UTF-16; save it as UTF-8.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path!r} is not UTF-8: byte {error.start} is "
                         f"0x{content[error.start]:02x}; save the file as UTF-8.") from None
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if not text:
        raise InputError(f"{path!r} is empty.")
    return text


# ---------------------------------------------------------------- characters and numbers


class Vocabulary:
    """The distinct characters of a text, sorted; a character's number is its place among them.

    `characters` is the sorted str; Vocabulary(vocabulary.characters) is the same vocabulary again.
    Raises InputError for an empty text, or one with more distinct characters than uint16 numbers.
    """

    def __init__(self, text):
        checks.text("a vocabulary's text", text)
        self.characters = "".join(sorted(set(text)))
        if not 0 < len(self.characters) <= 1 << 16:
            raise InputError("a vocabulary has 1 to 65,536 distinct characters; "
                             f"the text has {len(self)}.")

    def __len__(self):
        return len(self.characters)

    def encode(self, text):
        """text (str of N characters) -> ids (N,) uint16; InputError for characters it lacks."""
        checks.text("the text", text)
        known, codes = _code_points(self.characters), _code_points(text)
        above = int(known[-1]) + 1                               # stands for all above the highest
        id_of = np.full(above + 1, -1, np.int32)
        id_of[known] = np.arange(len(known))
        ids = id_of[np.minimum(codes, above)]                      # (N,)
        if ids.min(initial=0) < 0:
            raise InputError(self._lacks(text))
        return ids.astype(np.uint16)

    def _lacks(self, text):
        unknown = "".join(sorted(set(text) - set(self.characters)))
        hint = ""
        for form in ("NFC", "NFD"):
            if not set(unicodedata.normalize(form, text)) - set(self.characters):
                hint = f" Normalised to {form}, as the vocabulary is, the text fits."
        return ("the text contains characters outside the vocabulary: "
                f"{_shown(unknown)}{_code_points_shown(unknown)}; it has these {len(self)}: "
                f"{_shown(self.characters)}.{hint}")

    def decode(self, ids):
        """ids (N,) of any integer type -> str of N characters; InputError for an id it lacks."""
        ids = np.asarray(ids)
        if ids.size == 0:
            return ""
        if ids.dtype.kind not in "iu" or ids.min() < 0 or ids.max() >= len(self):
            raise InputError(f"ids must be integers from 0 to {len(self) - 1}, "
                             f"got {ids.dtype} from {ids.min()} to {ids.max()}.")
        return _code_points(self.characters)[ids].tobytes().decode("utf-32-le", "surrogatepass")


def _code_points(text):
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")   # (N,)


def _code_points_shown(characters, most=5):
    """What letters that look alike are, for those beyond ASCII that combine: (U+0301)"""
    marks = [f"U+{ord(c):04X}" for c in characters if unicodedata.combining(c)]
    return f" ({', '.join(marks[:most])})" if marks else ""


def _shown(characters, most=100):
    more = f" and {len(characters) - most} more" if len(characters) > most else ""
    return repr(characters[:most]) + more


# ---------------------------------------------------------------- windows


def split(ids, val_fraction=0.1):
    """Cut ids (N,) into two views, unshuffled -> train, val.

    train is the first int((1 - val_fraction) * N) ids, val the rest. Raises InputError unless
    0 <= val_fraction < 1.
    """
    _check_ids(ids)
    val_fraction = checks.number("val_fraction", val_fraction)
    if not 0 <= val_fraction < 1:
        raise InputError(f"val_fraction must be at least 0 and below 1, got {val_fraction}.")
    n = int((1 - val_fraction) * len(ids))
    return ids[:n], ids[n:]


def batch(ids, batch_size, block_size, seed, step):
    """Draw random windows of ids (N,) -> x, y, each (batch_size, block_size) int64.

    y is x one place later. A pure function of its arguments: step 700 draws the same windows in a
    run that was resumed as in one that was not, and no generator has to be saved. Raises InputError
    if ids is too short for one window, or for a size or seed out of range.
    """
    B = checks.number("batch_size", batch_size, 1, integer=True)
    seed = checks.number("seed", seed, 0, integer=True)
    step = checks.number("step", step, 0, integer=True)
    T = _check_length(ids, block_size)
    memory.weigh(f"a batch of {B:,} x {T:,} tokens", 16 * B * T, "choose a smaller batch_size")
    random = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, step])))
    starts = random.integers(len(ids) - T, size=B)                 # (B,)  y may end on the last id
    at = starts[:, None] + np.arange(T)                            # (B, T)
    return ids[at].astype(np.int64), ids[at + 1].astype(np.int64)


def blocks(ids, block_size):
    """Cut ids (N,) into consecutive windows -> x, y, each (n, block_size) int64.

    For evaluation; windows do not overlap. n = (N - 1) // block_size; an incomplete block at the
    end is dropped. Raises InputError if ids is too short for one window, or if block_size < 1.
    """
    T = _check_length(ids, block_size)
    n = (len(ids) - 1) // T
    x = ids[:n * T].reshape(n, T)                                  # (n, T)
    y = ids[1:n * T + 1].reshape(n, T)                             # (n, T)
    return x.astype(np.int64), y.astype(np.int64)


def _check_ids(ids):
    if type(ids) not in checks.PLAIN or ids.dtype.kind not in "iu" or ids.ndim != 1:
        raise InputError("ids must be a NumPy array of integers with one axis; "
                         f"got {checks.kind(ids)}.")


def _check_length(ids, block_size):
    """-> block_size as Python's int"""
    _check_ids(ids)
    block_size = checks.number("block_size", block_size, 1, integer=True)
    if len(ids) < block_size + 1:
        raise InputError(f"block_size {block_size} needs at least {block_size + 1} characters, but "
                         f"this part of the text has {len(ids)}; use a longer text or a smaller "
                         "block_size.")
    return block_size
