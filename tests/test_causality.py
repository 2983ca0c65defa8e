"""The causality certificate: what passes, what fails which form, and in which words."""
import argparse
import dataclasses
import hashlib
import importlib
import json
import os
import re

import numpy as np
import pytest

from minattn import cli, data, model, runs
from minattn.attention import MECHANISMS, gated, softmax
from minattn.errors import InputError
from minattn.inspect.leak import leak
from minattn.validate.causality import causality

# the package may export its function by this name
module = importlib.import_module("minattn.validate.causality")
SETTINGS = [(name, options) for name in MECHANISMS for options in {
    "affine": [{"length": n, "phi": phi} for n in ("total", "visible", 19)
               for phi in ("linear_clip", "sigmoid")],
    "energy": [{"norm": norm} for norm in ("key", "prefix", "sequence", "none")]}.get(name, [{}])]


def expected(options):
    """Forms 1, 2, 3"""
    if options.get("norm") == "sequence":
        return ["fail", "fail", "fail"]
    return ["pass", "pass", "fail" if options.get("length") == "total" else "pass"]


def statuses(certificate):
    return list(certificate.forms.values())


def said(certificate, form):
    return "\n".join(certificate.findings[form])


# ----------------------------------------------------------------------------------------- kernels


@pytest.mark.parametrize("name, options", SETTINGS, ids=str)
def test_every_mechanism_of_the_registry(name, options):
    certificate = causality(name, options=options)
    assert statuses(certificate) == [*expected(options), "not covered"], str(certificate)
    assert certificate.ok == ("fail" not in expected(options))
    row = MECHANISMS[name]
    # the registry says the same
    assert bool(row.leak(**options)) == (certificate.forms["suffix"] == "fail")
    assert bool(row.recompute(**options)) == (certificate.forms["prefix"] == "fail")


@pytest.mark.parametrize("options", [{"window": 5}, {"scale": 3.0}, {"align": "start"}])
def test_options_that_keep_it_causal(options):
    assert causality("softmax", options=options).ok


def test_a_prefix_that_sees_itself_is_reported():
    certificate = causality("softmax", options={"prefix": 12})
    assert statuses(certificate) == ["fail", "fail", "fail", "not covered"]
    assert "from token 1, 3, 7 on" in said(certificate, "suffix")
    assert re.match("cut after 1, 3, 7, 15, .*, 66 tokens; what begins later takes a greater",
                    certificate.looked) and certificate.looked in str(certificate)


def test_the_words():
    text = str(causality("energy", options={"norm": "sequence"}))
    for words in ("energy (norm=sequence), 67 positions",
                  "output at position 1 changed when only token 66 changed",
                  "the gradient of output 2 with respect to input", "(energy) is", ", not 0",
                  r"f(x[:3])[1] differs from f(x)[1] by", "not covered"):
        assert words in text, text
    content = causality("softmax").to_json()
    assert json.loads(json.dumps(content)) == content
    assert content["ok"]
    assert content["forms"]["prefix"] == "pass"


def weights(q, k, causal, fill=-np.inf):
    s = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3])
    s = np.where(np.tri(*s.shape[2:], dtype=bool) | (not causal), s, fill)
    P = np.exp(s - s.max(axis=3, keepdims=True))
    return P / P.sum(axis=3, keepdims=True)


def plain(q, k, v, causal):
    return weights(q, k, causal) @ v


def off_by_one_mask(q, k, v, causal):
    s = np.where(np.tri(q.shape[2], k=1, dtype=bool), q @ k.swapaxes(2, 3), -np.inf)
    return np.exp(s - s.max(axis=3, keepdims=True)) @ v


def block_means(q, k, v, causal):
    """As nanochat 844: the mean over a block of 16 holds tokens that are still to come."""
    starts = np.arange(0, v.shape[2], 16)
    means = np.add.reduceat(v, starts, axis=2) / 16
    return plain(q, k, v, causal) + means[:, :, np.arange(v.shape[2]) // 16]


KERNELS = [      # (function, suffix, prefix, words of the first finding)
    (plain, "pass", "pass", ""),
    (lambda q, k, v, causal: plain(q, k, v, False), "fail", "fail",
     "output at position 0 changed when only token 66"),
    (off_by_one_mask, "fail", "fail", "output at position 0 changed when only token 1 changed"),
    (block_means, "fail", "fail", "changed when only token"),
    (lambda q, k, v, causal: weights(q, k, causal, -1e4) @ v, "fail", "pass",
     "is a finite number used for -infinity?"),
    (lambda q, k, v, causal: weights(q, k, causal, -1e9) @ v, "fail", "pass",
     "is a finite number used for -infinity?"),
    (lambda q, k, v, causal: plain(q, k, v, causal) / v.shape[2], "pass", "fail",
     "earlier outputs stay"),
    (lambda q, k, v, causal: 0 * v, "fail", "pass",
     "from token 1, 3, 7, 15, 16, .*it is ignored"),
    (lambda q, k, v, causal: v * (np.nan if v.shape[2] > 66 else 1), "fail", "fail",
     "at position 0 is not finite"),
]


@pytest.mark.parametrize("fn, suffix, prefix, words", KERNELS)
def test_a_user_s_numpy_kernel(fn, suffix, prefix, words):
    certificate = causality(fn, mechanism="softmax", seed=3)
    assert statuses(certificate) == [suffix, "not covered", prefix, "not covered"], str(certificate)
    assert "backward" in said(certificate, "gradient")
    assert re.search(words, said(certificate, "suffix")), str(certificate)


def test_a_finite_mask_is_found_with_any_seed():
    def fn(q, k, v, causal):
        return weights(q, k, causal, -1e9) @ v

    found = [causality(fn, mechanism="softmax", forms=("suffix",), sizes={"H": 1}, seed=seed).ok
             for seed in range(8)]
    assert not any(found)


def wrong_backward(how):
    def backward(dout, cache):
        return how(softmax.backward(dout, cache), dout)
    return softmax.forward, backward


def every_token(grads, dout):
    return {**grads, "v": grads["v"] + dout.sum(axis=2, keepdims=True)}


def next_token(grads, dout):
    return {**grads, "v": grads["v"] + np.roll(dout, 1, axis=2)}


def last_is_nan(grads, dout):
    return {**grads, "k": grads["k"] * np.where(np.arange(67) > 65, np.nan, 1)[:, None]}


BACKWARDS = [
    (lambda grads, dout: grads, "pass", "exactly 0 at every later input"),
    (every_token, "fail", r"with respect to input \d+ \(v\) is .*, not 0"),
    (next_token, "fail", r"the gradient of output 0 with respect to input 1 \(v\) is"),
    (lambda grads, dout: {name: 0 * g for name, g in grads.items()}, "fail", "it does not arrive"),
    (last_is_nan, "fail", "nan"),
    (lambda grads, dout: {"q": grads["q"]}, "not covered", "the gradient of k is missing"),
]


@pytest.mark.parametrize("how, status, words", BACKWARDS)
def test_a_backward_of_its_own_is_asked_for_form_2(how, status, words):
    certificate = causality(wrong_backward(how), mechanism="softmax")
    assert statuses(certificate) == ["pass", status, "pass", "not covered"], str(certificate)
    assert re.search(words, said(certificate, "gradient")), str(certificate)


def test_a_function_that_refuses_some_lengths_is_compared_at_the_others():
    def picky(q, k, v, causal):
        if q.shape[2] < 8:
            raise RuntimeError("block size is 8")
        return plain(q, k, v, causal)

    certificate = causality(picky, mechanism="softmax")
    assert statuses(certificate) == ["pass", "not covered", "pass", "not covered"]
    words = r"prefixes of 1, 3, 7 tokens are refused \(raised RuntimeError: block size is 8"
    assert re.search(words, said(certificate, "prefix"))
    longer = lambda *arrays, causal: picky(*(x if x.shape[2] == 67 else x[:, :, :7]
                                             for x in arrays), causal)
    found = causality(longer, mechanism="softmax", forms=("prefix",))
    assert found.forms["prefix"] == "not covered" and not found.ok
    assert causality(picky, mechanism="softmax", forms=("suffix",)).ok


def test_dropout_left_on_is_not_called_a_leak():
    rng = np.random.default_rng(0)
    certificate = causality(lambda q, k, v, causal: v * rng.random(v.shape), mechanism="softmax")
    assert set(statuses(certificate)) == {"not covered"} and not certificate.ok
    assert "two different results" in said(certificate, "suffix")


# ------------------------------------------------------------------------------------ whole models


def trained(attention, position="learned", T=64, **options):
    """A model far from its start, so that everything in it matters -> (params, buffers, config)"""
    config = model.Config(vocab_size=13, block_size=T, n_layer=2, n_head=2, n_embd=12,
                          attention=attention,
                          position=position, attention_options=options)
    params, buffers = model.init(config, 0)
    rng = np.random.default_rng(1)
    params = {name: a + 0.3 * rng.standard_normal(a.shape).astype(a.dtype) for name,
              a in params.items()}
    return params, {name: a + np.float32(0.4) for name, a in buffers.items()}, config


def windows(config, n=3):
    ids = np.random.default_rng(2).integers(0, config.vocab_size, (n, config.block_size + 1))
    return ids[:, :-1], ids[:, 1:]


MODELS = [("softmax", "learned", {}), ("sink", "rope", {}), ("energy", "decay", {"norm": "prefix"}),
          ("gaussian", "rope", {}), ("affine+gated", "sinusoidal", {"length": "visible"}),
          ("gated", "none", {}),
          ("energy,off_by_one", "morlet", {}), ("affine", "rope", {"length": "total"}),
          ("energy,softmax", "learned", {"norm": "sequence"})]


@pytest.mark.parametrize("attention, position, options", MODELS)
def test_whole_models(attention, position, options):
    parts = trained(attention, position, **options)
    certificate = causality(parts, tokens=windows(parts[2]))
    first = expected({"length": "total"} if options.get("length") == "total" else options)
    assert statuses(certificate) == [*first, first[2]], str(certificate)
    assert "nats per token, at 96 positions" in said(certificate, "loss")


def test_the_gradient_of_the_embedded_inputs_is_right():
    """Form 2 against central differences: a longer table moves one embedding at a time."""
    params, buffers, config = module._float64(*trained("energy", "rope", T=9))
    subject = module._model(params, buffers, config, "it", 9)
    x, i = subject.draw(0, np.random.default_rng(3)), 5
    found = subject.gradient(x, i, np.random.default_rng(4))["embedding"]
    mix = np.random.default_rng(4).standard_normal(config.vocab_size)
    longer = dataclasses.replace(config, vocab_size=config.vocab_size + 9)
    for n in (0, 3, 5, 6):
        step = 1e-5 * np.random.default_rng(n).standard_normal(config.n_embd)
        change = []
        for sign in (1, -1):
            rows = params["wte.weight"][x["tokens"][0]]
            rows[n] += sign * step
            table = {"wte.weight": np.concatenate([params["wte.weight"], rows])}
            tokens = config.vocab_size + np.arange(9)[None]
            logits = model.forward({**params, **table}, tokens, longer, buffers=buffers)[0]
            change.append(logits[0, i, :config.vocab_size] @ mix)
        assert np.isclose((change[0] - change[1]) / 2, found[n] @ step, rtol=1e-6, atol=1e-15), n
    assert np.abs(found[:6]).max() > 0.1


def test_leak_is_the_loss_of_generation():
    params, buffers, config = trained("energy", norm="sequence", T=16)
    x, y = windows(config)
    found = leak(params, buffers, config, x, y, [0, 4, 15])
    own = []
    for row, target in zip(x, y):
        for t in (0, 4, 15):
            logits = model.forward(params, row[None, :t + 1], config, buffers=buffers)[0][0, t]
            lse = np.log(np.exp(logits - logits.max()).sum()) + logits.max()
            own.append(lse - logits[target[t]])
    assert np.isclose(found.prefix_only, np.mean(own), rtol=1e-5) and found.n == 9
    whole = model.forward(params, x, config, targets=y, buffers=buffers)[1]
    assert np.isclose(leak(params, buffers, config, x, y, range(16)).teacher_forced, whole,
                      rtol=1e-5)
    assert abs(found.prefix_only - found.teacher_forced) > 1e-3
    params, buffers, config = trained("energy", T=16)
    found = leak(params, buffers, config, x, y, range(16))
    assert np.isclose(found.prefix_only, found.teacher_forced, rtol=1e-6)


def test_small_models_and_small_vocabularies():
    size = {"n_layer": 1, "n_head": 1, "n_embd": 2}
    params, buffers = model.init(config := model.Config(vocab_size=3, block_size=1, **size))
    assert statuses(causality((params, buffers, config)))[:3] == ["not covered"] * 3
    params, buffers = model.init(config := model.Config(vocab_size=1, block_size=8, **size))
    certificate = causality((params, buffers, config))
    assert certificate.forms["suffix"] == "not covered"
    assert "vocabulary of one" in said(certificate, "suffix")
    size["n_embd"] = 4
    params, buffers = model.init(config := model.Config(vocab_size=2, block_size=2, **size))
    assert statuses(causality((params, buffers, config)))[:3] == ["pass"] * 3


def run_folder(where, text, **options):
    vocabulary = data.Vocabulary(text)
    config = model.Config(vocab_size=len(vocabulary), block_size=16, n_layer=1, n_head=2, n_embd=8,
                          attention="energy",
                          attention_options=options)
    params, buffers = model.init(config, 0)
    corpus = {"name": "builtin", "sha256": hashlib.sha256(text.encode()).hexdigest(),
              "characters": len(text)}
    zeros = {name: np.zeros_like(a) for name, a in params.items()}
    with runs.create(where, config, {}, vocabulary.characters, corpus):
        runs.save_checkpoint(where, runs.Checkpoint(params, buffers, zeros, zeros, 0, 0.0))
    return where


def command(*words):
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.run(parser.parse_args([str(word) for word in words]))


def test_a_run_folder_brings_its_own_text(tmp_path, capsys):
    text = data.load_corpus("builtin").text
    causal = run_folder(tmp_path / "a", text)
    leaking = run_folder(tmp_path / "b", text, norm="sequence")
    assert command(causal, "--json", tmp_path / "found.json") == 0
    forms = json.loads((tmp_path / "found.json").read_text())["forms"]
    assert forms == dict.fromkeys(module.FORMS, "pass")
    assert command(leaking) == 1
    text = capsys.readouterr().out
    assert "teacher-forced" in text
    assert "when a prediction is made from its own prefix alone" in text
    other = run_folder(tmp_path / "c", text + "another text, and so another checksum")
    certificate = causality(other)
    assert certificate.ok
    assert "not at hand" in said(certificate, "loss")
    assert certificate.forms["loss"] == "not covered"


# ----------------------------------------------------------------------------- functions of tokens

TABLE = np.random.default_rng(0).standard_normal((11, 5))
TOKENS = [       # (function, suffix, prefix)
    (lambda t: np.cumsum(TABLE[t], axis=1) @ TABLE.T, "pass", "pass"),
    (lambda t: TABLE[t] @ TABLE.T + TABLE[t].mean(axis=1, keepdims=True) @ TABLE.T, "fail", "fail"),
    (lambda t: np.cumsum(TABLE[t], axis=1) @ TABLE.T / t.shape[1], "pass", "fail"),
    (lambda t: np.zeros((*t.shape, 11)), "fail", "pass"),
    (lambda t: (np.cumsum(TABLE[t], axis=1) @ TABLE.T).astype(np.float32), "pass", "pass"),
    (lambda t: (np.cumsum(TABLE[t], axis=1) @ TABLE.T).astype(np.float16), "pass", "not covered"),
]


@pytest.mark.parametrize("fn, suffix, prefix", TOKENS)
def test_numpy_functions_of_tokens(fn, suffix, prefix):
    assert statuses(causality(fn)) == [suffix, "not covered", prefix, "not covered"]


def torch_model(kind):
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.wte, self.wpe = torch.nn.Embedding(11, 8), torch.nn.Embedding(128, 8)
            self.layer = torch.nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

        def forward(self, tokens):
            T = tokens.shape[1]
            if kind == "indexed":
                x = self.wte.weight[tokens]
            else:
                x = self.wte(tokens.reshape(-1)).reshape(*tokens.shape, 8)
            x = x + self.wpe(torch.arange(T))
            if kind == "detached":
                x = x.detach()
            mask = torch.full((T, T), -torch.inf, dtype=x.dtype).triu(1)
            x = self.layer(x, src_mask=0 * mask.nan_to_num(neginf=0) if kind == "unmasked"
                           else mask)
            return x @ self.wte.weight.T

    return Net().double()


@pytest.mark.parametrize("kind, expected", [("looked up", ["pass"] * 3), ("indexed", ["pass"] * 3),
                                            ("unmasked", ["fail"] * 3),
                                            ("detached", ["pass", "not covered", "pass"])])
def test_torch_functions_of_tokens(kind, expected):
    certificate = causality(torch_model(kind), framework="torch")
    assert statuses(certificate)[:3] == expected, str(certificate)


def test_a_gradient_that_leaks_where_the_values_do_not():
    """The mean over all tokens adds exactly nothing to the value; its gradient reaches ahead."""
    torch = pytest.importorskip("torch")
    table = torch.tensor(TABLE)

    def fn(tokens):
        x = table[tokens]
        ahead = x.mean(1, keepdim=True)
        return torch.cumsum(x, 1) @ table.T + (ahead - ahead.detach()) @ table.T

    certificate = causality(fn, framework="torch")
    assert statuses(certificate)[:3] == ["pass", "fail", "pass"], str(certificate)


def test_torch_kernels():
    torch = pytest.importorskip("torch")
    sdpa = torch.nn.functional.scaled_dot_product_attention
    good = lambda q, k, v, causal: sdpa(q, k, v, is_causal=causal)
    assert statuses(causality(good, mechanism="softmax", framework="torch"))[:3] == ["pass"] * 3
    assert statuses(causality(good, mechanism="softmax", framework="torch",
                              dtype="float32"))[:3] == ["pass"] * 3
    half = causality(good, mechanism="softmax", framework="torch", dtype="bfloat16")
    assert statuses(half)[:3] == ["pass", "pass", "not covered"]
    assert "bfloat16 is too coarse" in str(half)
    blind = causality(lambda q, k, v, causal: sdpa(q, k, v), mechanism="softmax", framework="torch")
    assert statuses(blind)[:3] == ["fail"] * 3
    cut = causality(lambda q, k, v, causal: good(q, k, v, causal).detach(), mechanism="softmax",
                    framework="torch")
    assert statuses(cut)[:3] == ["pass", "not covered", "pass"]
    assert "cut off" in said(cut, "gradient")


@pytest.mark.slow
def test_jax_kernels_and_functions_of_tokens():
    jax = pytest.importorskip("jax")
    jnp = jax.numpy

    def kernel(q, k, v, causal):
        s = jnp.where(jnp.tri(q.shape[2], dtype=bool), q @ k.swapaxes(2, 3), -jnp.inf)
        return jax.nn.softmax(s, axis=-1) @ v

    assert statuses(causality(kernel, mechanism="softmax", framework="jax"))[:3] == ["pass"] * 3

    def fn(tokens):
        return fn.from_embeddings(fn.embed(tokens))

    fn.embed = lambda tokens: jnp.asarray(TABLE)[tokens]
    fn.from_embeddings = lambda x: jnp.cumsum(x, axis=1) @ jnp.asarray(TABLE).T
    assert statuses(causality(fn, framework="jax"))[:3] == ["pass"] * 3
    fn.from_embeddings = lambda x: (x + x.mean(axis=1, keepdims=True)) @ jnp.asarray(TABLE).T
    assert statuses(causality(fn, framework="jax"))[:3] == ["fail"] * 3
    assert causality(lambda t: fn(t), framework="jax").forms["gradient"] == "not covered"


# ------------------------------------------------------------------------------ command, bad input


def test_the_command_s_exit_codes(capsys):
    assert command("gated") == 0
    assert command("energy", "--option", "norm=sequence") == 1
    assert command("energy[norm=sequence]") == 1
    assert command("affine", "--option", "length=total") == 1
    assert command("affine[length=19]", "--length", "9") == 0
    assert command("affine", "--option", "length=19", "--length", "9") == 0
    assert command("affine", "--option", "length=total", "--forms", "suffix,gradient") == 0
    assert "affine (length=total), 67 positions" in capsys.readouterr().out
    assert command(f"{__name__}:plain", "--mechanism", "softmax") == 0


HOSTILE = """
import ctypes, os, sys, time
from minattn.attention import softmax
calls = []
def only_later(misbehave, first=2):
    def forward(q, k, v, **options):
        calls.append(1)
        if len(calls) > first:
            misbehave()
        return softmax.forward(q, k, v, **options)[0]
    return forward
exits = only_later(lambda: sys.exit(0))
ends = only_later(lambda: os._exit(0))
crashes = only_later(lambda: ctypes.string_at(0))
hangs = only_later(lambda: time.sleep(600))
exits_at_once = only_later(lambda: sys.exit(0), 0)
crashes_at_once = only_later(lambda: ctypes.string_at(0), 0)
hangs_at_once = only_later(lambda: time.sleep(600), 0)
def tokens(tokens):
    os._exit(0)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("name, code, words", [
    ("exits", 1, "tried to end the program: SystemExit: 0"), ("ends", 1, "exit code 0"),
    ("crashes", 1, "SIGSEGV"), ("hangs", 1, "did not come back within 0.3 s"),
    ("exits_at_once", 2, "cannot be run: tried to end the program"),
    ("crashes_at_once", 2, "calling hostile.py:crashes_at_once crashed the process"),
    ("hangs_at_once", 2, "cannot be run: did not come back within 0.3 s"),
    ("tokens", 2, "exit code 0")])
def test_whatever_a_function_does_it_is_not_called_causal(tmp_path, monkeypatch, capsys, name, code,
                                                          words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hostile.py").write_text(HOSTILE)
    target = ["causality", f"hostile.py:{name}", "--time-limit", "0.3" if "hang" in name else "30"]
    if name != "tokens":
        target += ["--mechanism", "softmax"]
    assert cli.main(target) == code
    said = capsys.readouterr()
    assert words in (said.out if code == 1 else said.err)
    if code == 1:                                            # the other forms were still asked
        assert "4 loss      not covered" in said.out and "2 gradient  not covered" in said.out


@pytest.mark.parametrize("target, options, message", [
    ("sotfmax", {}, "neither a run folder, nor module:function.*Did you mean 'softmax'"),
    ("nowhere:f", {}, "cannot import nowhere: ModuleNotFoundError"),
    ("minattn.model:nothing", {}, "minattn.model has nothing called 'nothing'"),
    (3, {}, "must be callable; got int"),
    (3, {"mechanism": "softmax"}, "must be callable"),
    (plain, {"mechanism": "sotfmax"}, "Did you mean 'softmax'"),
    (plain, {"mechanism": "softmax", "framework": "tensorflow"}, "framework must be one of"),
    (plain, {"mechanism": "softmax", "dtype": "float8"}, "dtype must be one of"),
    (plain, {"mechanism": "softmax", "forms": ("suffx",)}, "Did you mean 'suffix'"),
    (plain, {"mechanism": "softmax", "forms": 3}, "forms must be several"),
    (plain, {"mechanism": "softmax", "sizes": 3}, "sizes must be a dict"),
    (plain, {"mechanism": "softmax", "options": 3}, "options must be a dict"),
    (plain, {"mechanism": "softmax", "length": 1}, "length must be at least 2"),
    ("softmax", {"length": 99_999_999}, "length must be at least 2 and at most 131072"),
    (lambda q, k, v, w: q, {"mechanism": "softmax"}, "does not take the mechanism's arguments"),
    (lambda q, k, v, causal: q, {"mechanism": "softmax"}, "the output has shape"),
    (lambda q, k, v, causal: 1 / 0, {"mechanism": "softmax"}, "raised ZeroDivisionError"),
    (lambda t: TABLE[t][0], {}, r"must return logits \(B, T, V\)"),
    (lambda t: None, {}, "it returned NoneType"),
    (lambda t: TABLE[t + 99], {}, "cannot be run: raised IndexError"),
    ("softmax", {"seed": -1}, "seed must be an integer of at least 0"),
    ("softmax", {"options": {"norm": "key"}}, "unknown option 'norm'"),
    ("energy", {"options": {"norm": "kye"}}, "Did you mean 'key'"),
])
def test_bad_input_is_one_clear_sentence(target, options, message):
    with pytest.raises(InputError, match=message):
        causality(target, **options)


def test_bad_input_on_the_command_line(tmp_path):
    with pytest.raises(InputError, match="is not NAME=VALUE"):
        command("energy", "--option", "norm")
    with pytest.raises(InputError, match="given twice, as 'key' and 'sequence'"):
        command("energy[norm=key]", "--option", "norm=sequence")
    with pytest.raises(InputError, match="expected one mechanism"):
        command(f"{__name__}:plain", "--mechanism", "energy/softmax")
    with pytest.raises(InputError, match="no config.json"):
        command(tmp_path)
    with pytest.raises(InputError, match="cannot write"):
        command("gated", "--json", tmp_path)
    with pytest.raises(InputError, match="none of these questions"):
        command("gated", "--forms", "loss")


def test_gates_may_be_one_per_head():
    certificate = causality(gated.forward, mechanism="gated", backward=gated.backward,
                            sizes={"Dv|1": 1})
    assert statuses(certificate)[:3] == ["pass"] * 3


# ------------------------------------------------------------- where leaks lie, and what it takes


def leak_at(condition, T):
    """Causal attention but for these rows i (T,), which also see their next key"""
    def fn(q, k, v):
        i, j = np.arange(q.shape[2])[:, None], np.arange(q.shape[2])
        see = (j <= i) | (condition(i) & (j == i + 1))
        s = np.where(see, q @ k.swapaxes(2, 3) / np.sqrt(q.shape[3]), -np.inf)
        P = np.exp(s - s.max(axis=3, keepdims=True))
        return P / P.sum(axis=3, keepdims=True) @ v
    return causality(fn, mechanism="softmax", length=T, forms=("suffix",), sizes={"H": 1})


@pytest.mark.parametrize("edge, length", [(16, 67), (48, 67), (64, 67), (64, 160), (128, 160),
                                          (256, 300), (512, 600)])
def test_leaks_at_the_edges_of_tiles(edge, length):
    assert not leak_at(lambda i: i % edge == edge - 1, length).ok
    assert leak_at(lambda i: i < 0, length).ok               # it takes no `causal`, and is so


def test_leaks_that_begin_late_and_short_prefixes_that_differ_in_an_early_row():
    assert not leak_at(lambda i: i >= 128, 160).ok
    assert not leak_at(lambda i: i == 158, 160).ok

    def early(q, k, v, causal):
        out = plain(q, k, v, causal)
        out[:, :, 0] += v.shape[2] * 1e-6                    # the last row is right
        return out
    found = causality(early, mechanism="softmax", forms=("prefix",))
    assert "[0] differs from f(x)[0]" in said(found, "prefix")


BLOCKS = """
import numpy as np
from minattn.attention import softmax
def forward(q, k, v, *, causal=False):
    B, T, H, D = q.shape
    assert T % 16 == 0 and D in (32, 64), "sizes not supported"
    out, cache = softmax.forward(*(x.swapaxes(1, 2) for x in (q, k, v)), causal=causal)
    return out.swapaxes(1, 2), cache
def backward(dout, cache):
    grads = softmax.backward(dout.swapaxes(1, 2), cache)
    return {n: x.swapaxes(1, 2) for n, x in grads.items()}
E = np.random.default_rng(0).standard_normal((29, 32))
def model(tokens):
    assert tokens.shape[1] % 16 == 0, "whole blocks only"
    return np.cumsum(E[tokens], axis=1) @ E.T
"""


def test_the_command_takes_what_check_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blocks.py").write_text(BLOCKS)
    how = ["--mechanism", "softmax", "--sizes", "D=32,Dv=32,T=64", "--layout", "BTHD"]
    for target in (["blocks.py"], ["blocks.py:forward", "--backward", "blocks.py:backward"]):
        assert cli.main(["causality", *target, *how, "--time-limit", "300"]) == 0
        out = capsys.readouterr().out
        assert "1 suffix    pass" in out and "2 gradient  pass" in out and "3 prefix    pass" in out
        assert "prefixes of 16, 32, 48 tokens" in out and "sizes not supported" in out
    assert cli.main(["causality", "blocks.py:model", "--length", "64"]) == 0
    assert cli.main(["causality", "blocks.py", *how[:-1], "BHDT"]) == 2
    assert "layout must be one of" in capsys.readouterr().err
    assert cli.main(["causality", "blocks.py", "--mechanism", "softmax", "--sizes", "Tq=3"]) == 2
    assert "a size must be one of B, H, Hkv, D, Dv" in capsys.readouterr().err
