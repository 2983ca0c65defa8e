"""Corpora, characters and batches. Downloads come from 127.0.0.1; no test needs a network."""
import hashlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from minattn import builtin_corpus, data, download
from minattn.data import Vocabulary, batch, blocks, load_corpus, split
from minattn.errors import InputError

BODY = b"FIRST TESTER:\nIs this the file?\n\n" * 8191      # several socket reads long
FILE = "tinyshakespeare.txt"


# ---------------------------------------------------------------- the built-in corpus


@pytest.fixture(scope="module")
def plays():
    return builtin_corpus.text()


def test_builtin_text_is_pinned(plays):
    """If this fails on purpose, every published result on the built-in corpus changes too."""
    assert len(plays) == 1_000_000
    sha256 = hashlib.sha256(plays.encode()).hexdigest()
    assert sha256 == "21545d9ac6affc547c987a0cba4fb2c238620195bb6d5e4eba25492345fbba9d"


def test_builtin_text_is_quick():
    start = time.process_time()
    builtin_corpus.text()
    assert time.process_time() - start < 1.0                # about 0.1 s here


def test_builtin_text_depends_on_seed_and_starts_alike(plays):
    assert builtin_corpus.text(4999) == plays[:4999]
    assert builtin_corpus.text(4999, seed=2) != plays[:4999]
    assert len(builtin_corpus.text(1)) == 1
    with pytest.raises(ValueError, match="at least 1, got 0"):
        builtin_corpus.text(0)


def test_builtin_text_reads_like_a_play(plays):
    assert set(plays) <= set("\n !',-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
    assert len(set(plays)) >= 58                            # nearly all of them occur
    assert max(len(line) for line in plays.split("\n")) <= 80
    speakers = Counter(re.findall(r"^([A-Z ]+):$", plays, re.MULTILINE))
    assert set(speakers) == set(builtin_corpus.CAST)
    assert min(speakers.values()) > 200
    assert len(set(re.findall(r"[a-z]+", plays))) > 600
    assert plays.count("ACT ONE") >= 10 and plays.count("SCENE TWO") >= 50
    assert plays.count("Exeunt.") >= 100
    assert plays.count("?") > 1000 and plays.count("!") > 1000


def test_builtin_grammar(plays):
    """Verbs agree with their nouns, "an" stands before vowels, sentences begin with capitals."""
    words = builtin_corpus.WORDS
    found = Counter()
    for noun, verb in re.findall(r"The ([a-z-]+) who ([a-z]+) the", plays):
        plural = noun in words["p1s"] + words["p2s"]
        assert plural == (verb in words["v"]), f"the {noun} who {verb}"
        found[verb in words["v"]] += 1
    for noun, verb in re.findall(r"\b([a-z]+) (is|are) not the", plays):
        assert verb == ("are" if noun in words["i"] else "is"), f"that {noun} {verb}"
    assert min(found.values()) > 50                         # both numbers occur
    assert not re.search(r"\b[Aa] [aeiou]", plays) and not re.search(r"\b[Aa]n [^aeiou]", plays)
    assert re.search(r"\ban [aeiou]", plays)
    assert not re.search(r"^[A-Z ]+:\n[a-z]|[.?!]\s[a-z]", plays, re.MULTILINE)
    assert not re.search(r"[{}%_]|  |\n\n\n", plays)


def test_builtin_scenes_hang_together(plays):
    """Nobody speaks who is not on stage, and nobody speaks to themselves."""
    here, before = set(), None
    for paragraph in plays[:200_000].split("\n\n")[:-1]:
        speaker = paragraph.partition(":\n")[0] if ":\n" in paragraph else None
        if paragraph.startswith("Enter "):
            here |= set(re.split(r", | and ", paragraph[6:-1]))
        elif paragraph.startswith("Exit "):
            here.remove(paragraph[5:-1])
        elif paragraph == "Exeunt.":
            here, before = set(), None
        elif speaker:
            assert speaker in here
            assert speaker != before
            before = speaker


# ---------------------------------------------------------------- texts from files


def test_builtin_by_name(plays):
    assert load_corpus("builtin") == ("builtin", plays, "built in")


def test_own_text(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeffÉté\r\nà Paris\nfin\r\n".encode())
    assert load_corpus(path) == (str(path), "Été\nà Paris\nfin\n", str(path))
    assert load_corpus(str(path)).text.startswith("Été")


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is empty"),
    (b"\xef\xbb\xbf", "is empty"),
    (b"abc\0def", "byte 3 is NUL, so it is binary or UTF-16; save it as UTF-8"),
    ("text\n".encode("utf-16"), "byte 3 is NUL"),
    (b"\xef\xbb\xbfcaf\xe9 au lait", "is not UTF-8: byte 6 is 0xe9"),
])
def test_text_that_is_none(tmp_path, content, message):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"mine.txt.*{message}"):
        load_corpus(path)


@pytest.mark.parametrize(("name", "message"), [
    ("TinyShakespear", "no corpus or file called 'TinyShakespear'; did you mean 'tinyshakespeare'"),
    ("BUILTIN", "did you mean 'builtin'"),
    ("no/such/file.txt",
     "no corpus or file called 'no/such/file.txt'; the corpora by name are tiny"),
    (".", "'.' is a directory"),
    ("x" * 300, "cannot be read"),
    ("a\0b", "cannot be read"),
])
def test_path_that_leads_nowhere(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_corpus(name)
    assert "\n" not in str(caught.value)


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "secret.txt"
    path.write_text("x")

    def deny(self):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(Path, "read_bytes", deny)           # a mode of 000 would not stop root
    with pytest.raises(InputError, match=r"secret.txt' cannot be read \(Permission denied\)"):
        load_corpus(path)


# ---------------------------------------------------------------- TinyShakespeare, found locally


@pytest.fixture
def fetch(tmp_path, monkeypatch):
    """load_corpus() on a machine without any corpus yet -> (corpus, what was said)."""
    monkeypatch.delenv("MINATTN_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")

    def call(url="http://127.0.0.1:9/", **options):
        said = []
        sha256 = hashlib.sha256(BODY).hexdigest()
        source = download.Source("TinyShakespeare", url, sha256, len(BODY))
        monkeypatch.setitem(data.SOURCES, "tinyshakespeare", source)
        corpus = load_corpus(**{"data_dir": tmp_path / "data", "say": said.append, "timeout": 2.0,
                                **options})
        return corpus, said
    return call


def put(folder, content):
    folder.mkdir()
    (folder / FILE).write_bytes(content)
    return folder / FILE


def test_found_in_data_dir(fetch, tmp_path):
    path = put(tmp_path / "data", BODY)
    assert fetch() == (("tinyshakespeare", BODY.decode(), str(path)), [])


def test_what_a_kill_left_of_a_download_is_swept(fetch, tmp_path):
    """Once it is old: a young one may still be written by another process."""
    folder = put(tmp_path / "data", BODY).parent
    left = [folder / f"{FILE}.{n}1234567.tmp" for n in (0, 1)]
    for path in left:
        path.write_bytes(b"half of it")
    os.utime(left[0], (1e9, 1e9))
    fetch()
    assert not left[0].exists() and left[1].exists()


def test_found_in_the_folder_of_the_environment(fetch, tmp_path, monkeypatch):
    path = put(tmp_path / "elsewhere", BODY)
    monkeypatch.setenv("MINATTN_DATA", str(path.parent))
    assert fetch() == (("tinyshakespeare", BODY.decode(), str(path)), [])
    assert not (tmp_path / "data").exists()


def test_wrong_local_file_is_named_passed_over_and_kept(fetch, tmp_path, monkeypatch):
    wrong = put(tmp_path / "data", b"my notes")
    right = put(tmp_path / "elsewhere", BODY)
    monkeypatch.setenv("MINATTN_DATA", str(right.parent))
    corpus, said = fetch()
    assert corpus.where == str(right)
    assert len(said) == 1 and str(wrong) in said[0]
    assert "sha256 differs" in said[0] and "\n" not in said[0]
    assert wrong.read_bytes() == b"my notes"


def test_unreadable_local_file_is_passed_over(fetch, tmp_path):
    (tmp_path / "data" / FILE).mkdir(parents=True)
    corpus, said = fetch(download=False)
    assert corpus.name == "builtin"
    assert "cannot read" in said[0] and "a folder stands in its place" in said[0]
    assert len(said) == 2


def test_download_can_be_switched_off(fetch, monkeypatch):
    monkeypatch.setattr(data, "fetch", None)
    corpus, said = fetch(download=False)
    assert corpus.name == "builtin" and len(said) == 1 and "switched off" in said[0]


def test_the_real_corpus(tmp_path, monkeypatch):
    folder = os.environ.get("MINATTN_DATA")
    if not folder or not (Path(folder) / FILE).exists():
        pytest.skip(f"needs the real TinyShakespeare: set MINATTN_DATA to a folder with {FILE}")
    corpus = load_corpus(data_dir=tmp_path, download=False)
    assert corpus.name == "tinyshakespeare" and len(corpus.text) == 1_115_394
    vocabulary = Vocabulary(corpus.text)
    ids = vocabulary.encode(corpus.text)
    assert len(vocabulary) == 65 and vocabulary.decode(ids) == corpus.text
    assert [len(part) for part in split(ids)] == [1_003_854, 111_540]          # as nanoGPT


# ---------------------------------------------------------------- TinyShakespeare, downloaded


@pytest.fixture
def server():
    """A web server that counts requests and answers each from server.script; the last repeats."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            script = self.server.script
            act = script[min(self.server.requests, len(script) - 1)]
            self.server.requests += 1
            act(self)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = False                            # server_close() waits for all of them
    httpd.requests, httpd.over = 0, threading.Event()
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/input.txt"
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield httpd
    httpd.over.set()                                        # lets the stalled requests go
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def naps(monkeypatch):
    """time.sleep only takes notes."""
    naps = []
    monkeypatch.setattr(download.time, "sleep", naps.append)
    return naps


def send(body, length=None):
    def act(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body) if length is None else length))
        handler.end_headers()
        handler.wfile.write(body)
    return act


def fail(code):
    return lambda handler: handler.send_error(code)


def stall(handler):
    handler.server.over.wait(10)


def stall_halfway(handler):
    send(BODY[:1000], len(BODY))(handler)
    handler.wfile.flush()
    stall(handler)


def endless(handler):
    send(BODY + b"m", 1 << 40)(handler)
    handler.wfile.flush()
    stall(handler)                                          # waiting for the rest takes long


def hang_up(handler):
    handler.connection.shutdown(socket.SHUT_RDWR)


def drip(handler):
    try:
        send(b"", len(BODY))(handler)
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.server.over.wait(0.01)
    except OSError:
        pass                                                # the client left


def files(tmp_path):
    return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())


def test_download(fetch, server, tmp_path):
    server.script = [send(BODY)]
    path = tmp_path / "data" / FILE
    assert fetch(server.url) == (("tinyshakespeare", BODY.decode(), str(path)), [])
    assert path.read_bytes() == BODY and files(tmp_path) == [FILE]
    assert fetch(server.url)[0].where == str(path)          # and the next time it is there
    assert server.requests == 1


def test_download_is_moved_into_place_whole(fetch, server, tmp_path, monkeypatch):
    server.script = [send(BODY)]
    events = []
    replace = os.replace

    def watched_fsync(number):
        events.append(("fsync", os.fstat(number).st_size))

    def watched_replace(part, home):
        events.append(("replace", Path(part).parent == Path(home).parent,
                       Path(part).read_bytes() == BODY, Path(home).exists()))
        replace(part, home)
    monkeypatch.setattr(download.os, "fsync", watched_fsync)
    monkeypatch.setattr(download.os, "replace", watched_replace)
    fetch(server.url)
    assert events == [("fsync", len(BODY)), ("replace", True, True, False)]


def test_progress_bar_counts_the_bytes(fetch, server, monkeypatch):
    class Bar:
        def __init__(self, total, **_):
            seen.update(total=total, n=0)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            seen["closed"] = True

        def update(self, n):
            seen["n"] += n
    seen = {}
    monkeypatch.setattr("tqdm.tqdm", Bar)
    server.script = [send(BODY)]
    fetch(server.url)
    assert seen == {"total": len(BODY), "n": len(BODY), "closed": True}


@pytest.mark.parametrize(("act", "reason", "requests"), [
    (send(BODY[:-1] + b"X"), "another sha256", 3),
    (send(BODY[:777], len(BODY)), f"only 777 of {len(BODY):,} bytes", 3),
    (endless, f"more than the expected {len(BODY):,} bytes", 3),
    (hang_up, "closed", 3),
    (fail(503), "503", 3),
    (fail(404), "HTTP Error 404", 1),                       # asking again would not help
    (stall, "no answer within 0.1 s", 3),
    (stall_halfway, "no answer within 0.1 s", 3),
])
def test_download_that_fails(fetch, server, naps, tmp_path, plays, act, reason, requests):
    server.script = [act]
    start = time.monotonic()
    corpus, said = fetch(server.url, timeout=0.1 if "0.1" in reason else 2.0)
    assert time.monotonic() - start < 2
    assert corpus == ("builtin", plays, "built in")
    assert len(said) == 1 and "\n" not in said[0] and said[0].count(". ") <= ("0.1 s" in reason)
    assert "built-in corpus" in said[0] and reason in said[0]
    assert str(tmp_path / "data" / FILE) in said[0]
    assert server.requests == requests
    assert len(naps) == requests - 1 and sum(naps) < 2      # short waits, none at the end
    assert files(tmp_path) == []
    for thread in threading.enumerate():                    # what was left behind ends by itself
        if "talk" in thread.name:
            thread.join(1)
            assert not thread.is_alive()


def test_download_that_succeeds_the_second_time(fetch, server, naps, tmp_path):
    server.script = [fail(500), send(BODY)]
    corpus, said = fetch(server.url)
    assert corpus.text == BODY.decode() and said == [] and server.requests == 2 and len(naps) == 1


def test_download_that_drips_is_given_up(fetch, server, monkeypatch):
    monkeypatch.setattr(download, "PATIENCE", 0.15)
    server.script = [drip]
    corpus, said = fetch(server.url)
    assert corpus.name == "builtin" and "not complete after 0.15 s" in said[0]
    assert server.requests == 1


def test_default_patience_is_short():
    """A server that never answers: attempts * time-out plus the naps between them."""
    defaults = load_corpus.__kwdefaults__
    naps = sum(0.25 * 2**attempt for attempt in range(1, defaults["attempts"]))
    assert defaults["attempts"] * defaults["timeout"] + naps < 15


def test_no_name_server(fetch, naps, monkeypatch):
    calls = []

    def unknown(*address, **_):
        calls.append(address)
        raise socket.gaierror(-2, "Name or service not known")
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    corpus, said = fetch("http://example.invalid/input.txt")
    assert corpus.name == "builtin" and len(said) == 1 and "Name or service not known" in said[0]
    assert len(calls) == 1 and naps == []


def test_name_server_that_never_answers(fetch, naps, monkeypatch):
    over = threading.Event()

    def hang(*_, **__):
        over.wait(10)
        raise socket.gaierror(-3, "too late")
    monkeypatch.setattr(socket, "getaddrinfo", hang)
    start = time.monotonic()
    corpus, said = fetch("http://example.invalid/input.txt", timeout=0.1)
    over.set()
    assert corpus.name == "builtin" and "no answer within 0.1 s" in said[0]
    assert time.monotonic() - start < 2


def test_nonsense_for_a_url(fetch, naps):
    corpus, said = fetch("nonsense")
    assert corpus.name == "builtin" and "unknown url type" in said[0]


def test_folder_that_cannot_be_written(fetch, server, tmp_path):
    server.script = [send(BODY)]
    (tmp_path / "data").write_text("a file where the folder should be")
    corpus, said = fetch(server.url)
    assert corpus == ("tinyshakespeare", BODY.decode(), server.url)
    assert "verified but could not be kept" in said[-1] and "\n" not in said[-1]
    assert files(tmp_path) == ["data"]


def test_disk_that_fills_up_leaves_nothing_behind(fetch, server, tmp_path, monkeypatch):
    def full(number):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(download.os, "fsync", full)
    server.script = [send(BODY)]
    corpus, said = fetch(server.url)
    assert corpus.text == BODY.decode() and corpus.where == server.url
    assert len(said) == 1 and "No space left on device" in said[0]
    assert files(tmp_path) == []


def test_download_does_not_replace_a_wrong_file(fetch, server, tmp_path):
    wrong = put(tmp_path / "data", b"my notes")
    server.script = [send(BODY)]
    corpus, said = fetch(server.url)
    assert corpus.text == BODY.decode() and corpus.where == server.url
    assert "sha256 differs" in said[0] and "another file is there" in said[1] and len(said) == 2
    assert wrong.read_bytes() == b"my notes" and files(tmp_path) == [FILE]


def test_another_run_was_quicker(tmp_path, monkeypatch):
    path = put(tmp_path / "data", BODY)
    monkeypatch.setattr(download.os, "replace", None)           # must not be needed
    download.keep(path, BODY)
    assert files(tmp_path) == [FILE]


# ---------------------------------------------------------------- characters and numbers


def test_vocabulary_round_trip():
    text = "naïve café, 日本 \U0001f600\nzz \udcff"          # a lone surrogate too
    vocabulary = Vocabulary(text)
    assert vocabulary.characters == "".join(sorted(set(text))) and len(vocabulary) == len(set(text))
    ids = vocabulary.encode(text)
    assert ids.dtype == np.uint16 and ids.shape == (len(text),)
    assert list(ids) == [vocabulary.characters.index(character) for character in text]
    assert vocabulary.decode(ids) == text
    assert vocabulary.decode(ids.tolist()) == text
    assert vocabulary.decode(ids.astype(np.int64)) == text
    assert vocabulary.encode("").shape == (0,) and vocabulary.decode([]) == ""
    assert Vocabulary(vocabulary.characters).characters == vocabulary.characters


@pytest.mark.parametrize(("text", "unknown"), [
    ("abé", "'é'"),                                         # above all that is known
    ("Ab", "'A'"),                                          # below
    ("abc€cd", "'d€'"),                                     # between and above: each named once
])
def test_unknown_characters(text, unknown):
    with pytest.raises(InputError, match=f"vocabulary: {unknown}; it has these 4: 'abce'"):
        Vocabulary("cabe").encode(text)


def test_long_lists_of_characters_are_cut():
    everything = "".join(map(chr, range(0x4e00, 0x4e00 + 997)))
    with pytest.raises(InputError, match="and 897 more") as caught:
        Vocabulary(everything).encode("?")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("ids", [[0, 3], [-1], [0.0, 1.0]])
def test_unknown_ids(ids):
    with pytest.raises(InputError, match="ids must be integers from 0 to 2, got"):
        Vocabulary("abc").decode(ids)


def test_empty_vocabulary():
    with pytest.raises(InputError, match="has 0"):
        Vocabulary("")


@pytest.mark.parametrize("text", [None, b"abc", ["a"], 3])
def test_what_is_no_text_has_no_vocabulary_and_no_ids(text):
    for call in (Vocabulary, Vocabulary("abc").encode):
        with pytest.raises(InputError, match="text must be a string"):
            call(text)


def test_too_large_vocabulary():
    with pytest.raises(InputError, match="has 65537"):
        Vocabulary("".join(map(chr, range(0x10000, 0x10000 + 65_537))))


# ---------------------------------------------------------------- windows


@pytest.mark.parametrize(("n", "fraction", "n_train"), [
    (1_115_394, 0.1, 1_003_854), (7, 0.1, 6), (11, 0.5, 5), (5, 0, 5)])
def test_split(n, fraction, n_train):
    ids = np.arange(n)
    train, val = split(ids, fraction)
    assert len(train) == n_train
    np.testing.assert_array_equal(np.concatenate([train, val]), ids)
    assert fraction != 0.1 or len(split(ids)[0]) == n_train


@pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
def test_split_outside(fraction):
    with pytest.raises(InputError, match="val_fraction must be"):
        split(np.arange(7), fraction)


def test_batch_windows():
    B, T, N = 5, 7, 53
    ids = np.arange(100, 100 + N, dtype=np.uint16)
    x, y = batch(ids, B, T, seed=3, step=11)
    assert x.shape == y.shape == (B, T) and x.dtype == y.dtype == np.int64
    assert x.flags.c_contiguous and y.flags.c_contiguous
    np.testing.assert_array_equal(y, x + 1)                 # the next character everywhere
    np.testing.assert_array_equal(x - x[:, :1], np.tile(np.arange(T), (B, 1)))


def test_batch_reaches_both_ends():
    T, N = 7, 10                                            # three places for a window
    starts = [batch(np.arange(N), 3, T, seed=0, step=step)[0][:, 0] for step in range(20)]
    assert set(np.concatenate(starts).tolist()) == {0, 1, 2}


def test_batch_is_a_function_of_seed_and_step():
    ids = np.arange(10_007)
    straight = [batch(ids, 3, 5, seed=1337, step=step)[0] for step in range(6)]
    np.random.seed(0)  # noqa: NPY002                         the global generator has no say, and is left alone
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for step in (5, 2, 4):
        np.testing.assert_array_equal(batch(ids, 3, 5, seed=1337, step=step)[0], straight[step])
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert len({x.tobytes() for x in straight}) == 6
    assert not np.array_equal(batch(ids, 3, 5, seed=1338, step=0)[0], straight[0])


def test_batch_draws_are_pinned():
    """If NumPy changed its streams, a run resumed under the new version would see other batches."""
    x, _ = batch(np.arange(10_007), 3, 5, seed=1337, step=7)
    assert x[:, 0].tolist() == [7518, 780, 1678]


def test_blocks():
    T = 5
    for N, n in [(6, 1), (10, 1), (11, 2), (13, 2)]:
        x, y = blocks(np.arange(N, dtype=np.uint16), T)
        assert x.dtype == y.dtype == np.int64 and x.shape == y.shape == (n, T)
        np.testing.assert_array_equal(x.ravel(), np.arange(n * T))       # each once, in order
        np.testing.assert_array_equal(y, x + 1)


@pytest.mark.parametrize("cut", [lambda ids, T: batch(ids, 3, T, seed=0, step=0), blocks])
def test_text_too_short(cut):
    cut(np.arange(8), 7)                                    # just long enough
    with pytest.raises(InputError, match="block_size 7 needs at least 8 characters.* has 7;"):
        cut(np.arange(7), 7)
    with pytest.raises(InputError, match="block_size must be at least 1; got 0"):
        cut(np.arange(7), 0)


def test_batch_outside():
    with pytest.raises(InputError, match="batch_size must be at least 1; got 0"):
        batch(np.arange(7), 0, 3, seed=0, step=0)
    with pytest.raises(InputError, match="seed must be at least 0; got -1"):
        batch(np.arange(7), 2, 3, seed=-1, step=0)


def test_import_is_cheap():
    code = ("import sys, minattn.data\n"
            "assert not {'tqdm', 'urllib.request', 'ssl'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], cwd=Path(data.__file__).parents[1], check=True)
