"""Linear attention: its two forms, what its features do, and what the recurrence costs."""
import tracemalloc

import numpy as np
import pytest
from attention_cases import assert_close, cotangent

from minattn import decode, model
from minattn.attention import linear, linear_recurrence
from minattn.attention_layer import KVCache
from minattn.errors import InputError
from minattn.validate.causality import causality
from minattn.validate.gradients import assert_gradients

SETTINGS = {"elu": {}, "lln": {"feature": "lln"}, "tensor": {"feature": "lln", "norm": "tensor"}}
FORMS = "rows", "recurrence"
every_setting = pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)


def qkv(T, H=4, G=4, D=5, Dv=6, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((2, heads, T, n)).astype(dtype)
            for name, heads, n in (("q", H, D), ("k", G, D), ("v", G, Dv))}


def run(arrays, form, monkeypatch, **options):
    """forward and backward in one of the two forms"""
    with monkeypatch.context() as patch:
        patch.setattr(linear_recurrence, "serves", lambda *a, **o: form == "recurrence")
        out, cache = linear.forward(**arrays, causal=True, **options)
    assert cache.recurrent == (form == "recurrence")
    return {"out": out, **linear.backward(cotangent(out), cache)}


@every_setting
@pytest.mark.parametrize("T", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("G", [4, 2, 1])
def test_the_recurrence_equals_the_rows(T, G, options, monkeypatch):
    arrays = qkv(T, G=G)
    rows, recurrence = (run(arrays, form, monkeypatch, **options) for form in FORMS)
    assert_close(recurrence, rows, 1e-12)


@every_setting
def test_gradients_of_the_recurrence(options):
    arrays = {name: x + np.where(x < 0, -0.1, 0.1) for name, x in qkv(170, G=2).items()}
    assert linear.forward(**arrays, causal=True, **options)[1].recurrent
    assert_gradients(linear.forward, linear.backward, arrays, causal=True, **options)


@every_setting
def test_the_recurrence_in_float32(options, monkeypatch):
    """No sum is further from the truth than that of the rows, but for the order of its terms."""
    arrays = qkv(1000)
    truth = run(arrays, "rows", monkeypatch, **options)
    single = {name: x.astype(np.float32) for name, x in arrays.items()}
    rows, recurrence = (run(single, form, monkeypatch, **options) for form in FORMS)
    for name, x in truth.items():
        assert recurrence[name].dtype == np.float32
        ours, theirs = (abs(y[name] - x).max() for y in (recurrence, rows))
        assert ours <= 4 * (theirs + np.finfo(np.float32).eps * abs(x).max()), name


def test_a_later_large_key_changes_no_earlier_row(monkeypatch):
    """LLN as published takes the largest exponent of all keys from each: 0 / 0 before that key."""
    top = np.random.default_rng(0).standard_normal((1, 1, 200)) * 3
    phi_q, phi_k = np.random.default_rng(1).random((2, 1, 1, 200, 4))
    v = np.random.default_rng(2).standard_normal((1, 1, 200, 3))
    before, *_ = linear_recurrence.forward(phi_q, phi_k, v, top)
    top[..., 150] += 2000                              # e^2000 would overflow
    out, cache, _ = linear_recurrence.forward(phi_q, phi_k, v, top)
    np.testing.assert_array_equal(out[:, :, :150], before[:, :, :150])
    np.testing.assert_allclose(out[:, :, 150:], np.broadcast_to(v[:, :, 150:151], (1, 1, 50, 3)))
    grads = linear_recurrence.backward(cotangent(out), cache)
    assert all(np.isfinite(x).all() for x in grads.values())


@pytest.mark.parametrize("feature", ["elu", "lln"])
def test_the_recurrence_is_causal(feature):
    """Longer than the certificate's usual length, at which rows are cheaper."""
    assert causality(f"linear[feature={feature}]", length=200).ok
    assert not causality("linear[feature=lln,norm=tensor]", length=200).ok


@pytest.mark.parametrize(("options", "served"), [
    ({"causal": True}, True), ({}, False), ({"causal": True, "window": 500}, False),
    ({"causal": True, "prefix": 3}, False), ({"causal": True, "dropout": 0.1}, True),
    ({"causal": True, "dropout": 0.1, "rng": np.random.default_rng(0)}, False),
    ({"causal": True, "bias": np.zeros(1)}, False),
    ({"causal": True, "return_weights": True}, False),
    ({"causal": True, "allowed": np.ones((1, 1, 1, 1), bool)}, False)])
def test_when_the_recurrence_serves(options, served):
    assert linear.forward(**qkv(300), **options)[1].recurrent == served
    assert not linear.forward(**qkv(60), **options)[1].recurrent         # rows are cheaper


@pytest.mark.parametrize(("options", "named"), [
    ({"dropout": 1.5}, "dropout"), ({"colour": 1}, "colour"), ({"align": "middle"}, "align"),
    ({"softcap": 5.0}, "softcap"), ({"log_length": np.ones(4)}, "log_length"), ({"rng": 3}, "rng")])
def test_bad_options_where_the_recurrence_would_serve(options, named):
    with pytest.raises(InputError, match=named):
        linear.forward(**qkv(300), causal=True, **options)


def test_lln_of_unit_rows():
    """sigma = 1 for q and k: alpha = beta = 2.1355, whatever their length."""
    _, cache = linear.forward(**qkv(5), feature="lln")
    assert abs(cache.scaled[0] - 2.1355) < 5e-5
    arrays = qkv(5)
    out, _ = linear.forward(**arrays, feature="lln")
    longer, _ = linear.forward(arrays["q"] * 3, arrays["k"] * 5, arrays["v"], feature="lln")
    np.testing.assert_allclose(longer, out, rtol=0, atol=1e-5)           # but for eps


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_kappa_of_zero_has_no_weight_and_no_gradient(dtype):
    arrays = qkv(6, dtype=dtype)
    arrays["k"][:, :, 2] = -1e4                        # phi(k) is 0 in either precision
    for causal in (False, True):
        out, cache, weights = linear.forward(**arrays, causal=causal, return_weights=True)
        assert (weights[..., 2] == 0).all()
        grads = linear.backward(cotangent(out), cache)
        assert all(np.isfinite(x).all() for x in (out, *grads.values()))
        assert (grads["k"][:, :, 2] == 0).all() and (grads["v"][:, :, 2] == 0).all()
    arrays["k"][:] = -1e4                              # a row without any weight
    out, cache = linear.forward(**arrays)
    grads = linear.backward(cotangent(out), cache)
    assert not any(x.any() for x in (out, *grads.values()))


@pytest.mark.parametrize("low", [-50, -200])
@pytest.mark.parametrize("form", FORMS)
def test_a_query_whose_features_are_all_small(form, low, monkeypatch):
    """Its factor cancels: with it kappa would be too small for float32, or for its gradient."""
    arrays = qkv(9)
    truth = run({**arrays, "q": -abs(arrays["q"]), "k": arrays["k"] - 40}, "rows", monkeypatch)
    arrays = {"q": low - abs(arrays["q"]), "k": arrays["k"] - 40, "v": arrays["v"]}
    assert_close(run(arrays, "rows", monkeypatch), truth, 1e-10)
    single = {name: x.astype(np.float32) for name, x in arrays.items()}
    found = run(single, form, monkeypatch)
    assert_close({name: x.astype(np.float64) for name, x in found.items()}, truth, 1e-4)


@pytest.mark.parametrize("options", [{}, {"feature": "lln"}], ids=["elu", "lln"])
def test_a_state_continues(options):
    """In pieces of any length, one token at a time too."""
    arrays, state, pieces = qkv(200, G=2), None, []
    whole = linear.forward(**arrays, causal=True, **options)[0]
    for piece in np.split(np.arange(200), [70, 71, 72, 140]):
        part = {name: x[:, :, piece] for name, x in arrays.items()}
        out, state = linear.continue_from(state, **part, **options)
        pieces.append(out)
    assert_close({"out": np.concatenate(pieces, axis=2)}, {"out": whole}, 1e-12)


@pytest.mark.parametrize(("attention", "others", "kept"), [
    ("linear", {}, True), ("linear[feature=lln]", {"position": "rope"}, True),
    ("linear+gated", {"n_kv_head": 1}, True), ("linear", {"window": 9}, False),
    ("linear", {"position": "decay"}, False)])
def test_generation_keeps_a_state_of_constant_size(attention, others, kept):
    config = model.Config(vocab_size=7, block_size=40, n_layer=2, n_head=2, n_embd=8,
                          attention=attention, **others)
    params, buffers = model.init(config, 0, np.float64)
    tokens = np.random.default_rng(1).integers(7, size=(2, 40))
    whole = model.forward(params, tokens, config, buffers=buffers)[0]
    for step in (False, True):
        past, sizes, decoder = KVCache(40), set(), decode.prepare(params, buffers, config)
        model.forward(params, tokens[:, :5], config, buffers=buffers, kv_cache=past)
        for n in range(5, 40):
            if step:
                last = decode.step(decoder, tokens[:, n], past)
            else:
                last = model.forward(params, tokens[:, n:n + 1], config, buffers=buffers,
                                     kv_cache=past)[0][:, 0]
            np.testing.assert_allclose(last, whole[:, n], rtol=0, atol=1e-12)
            sizes.add(sum(state.S.size for state in past.states.values()))
        assert bool(past.arrays) == (not kept) and len(sizes) == 1
    if kept:
        with pytest.raises(InputError, match="keeps no keys"):
            model.forward(params, tokens, config, buffers=buffers, kv_cache=KVCache(40), weights=[])


@pytest.mark.slow
@every_setting
def test_memory_of_a_long_sequence(options):
    """16,384 tokens, 4 heads of 32 channels: at most 100 MB beside the inputs."""
    rng = np.random.default_rng(0)
    q, k, v, dout = (rng.standard_normal((1, 4, 16384, 32)).astype(np.float32) for _ in range(4))
    tracemalloc.start()
    _, cache = linear.forward(q, k, v, causal=True, **options)
    linear.backward(dout, cache)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak <= 100e6
