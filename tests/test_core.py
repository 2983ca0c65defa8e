"""The attention core and its masks: against loops, against dense formulas, and in the corners."""

from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from attention_cases import assert_close, padding

from minattn import masks
from minattn.attention import core
from minattn.attention.core import attend, attend_backward
from minattn.attention.rules import Rule, visible_keys
from minattn.errors import InputError
from minattn.positions.decay import DecayBias
from minattn.validate.gradients import assert_gradients, directional

B, H, TQ, TK, D, DV = 2, 3, 5, 7, 11, 13


def qkv(Tq=TQ, Tk=TK, D=D, Dv=DV, seed=0, B=B, H=H, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return tuple(
        rng.standard_normal((B, H, T, n)).astype(dtype) for T, n in ((Tq, D), (Tk, D), (Tk, Dv))
    )


def grid(x):
    """Multiples of 1/8: products and sums of a few of these, and shifts by whole numbers, are
    exact.
    """
    return np.round(8 * x) / 8


def seeing(Tq, Tk, causal=False, window=None, prefix=0, align="end"):
    """The mask's definition, one pair at a time."""
    see = np.zeros((Tq, Tk), bool)
    for i, j in product(range(Tq), range(Tk)):
        p = i + Tk - Tq if align == "end" else i
        ok = True
        if causal or window is not None:
            ok = j <= p or (p < prefix and j < prefix)
        if window is not None:
            ok = ok and p - j < window
        see[i, j] = ok
    return see


def dense(q, k, v, scale=None, bias=0.0, sink=None, allowed=True, **rules):
    """out, lse and weights, written with whole arrays."""
    see = seeing(q.shape[2], k.shape[2], **rules) & allowed
    s = np.einsum("bhid,bhjd->bhij", q, k) * (q.shape[3] ** -0.5 if scale is None else scale) + bias
    see = np.broadcast_to(see, s.shape)
    top = np.max(s, axis=3, keepdims=True, where=see, initial=-1e9)
    e = np.where(see, np.exp(np.where(see, s - top, 0)), 0)
    total = e.sum(axis=3, keepdims=True)
    if sink is not None:
        top = np.where(see.any(axis=3, keepdims=True), top, 0)
        total = total + np.exp(sink[:, None, None] - top)
    P = e / np.where(total > 0, total, 1)
    lse = np.where(total > 0, np.log(np.where(total > 0, total, 1)) + top, -np.inf)[..., 0]
    return P @ v, lse, P


def result(q, k, v, dlse=None, seed=1, **options):
    """Everything that a forward and a backward give, under names; dout is drawn from the seed."""
    out, cache, weights = attend(q, k, v, return_weights=True, **options)
    dout = np.random.default_rng(seed).standard_normal(out.shape).astype(out.dtype)
    grads = attend_backward(dout, cache, dlse)
    if "bias" in grads and not isinstance(options["bias"], np.ndarray):
        biases = grads.pop("bias")
        for n, grad in enumerate(biases if isinstance(biases, tuple) else (biases,)):
            grads.update(grad if isinstance(grad, dict) else {f"bias{n}": grad})
    return {
        "out": out,
        "lse": cache.lse,
        "weights": weights,
        **{"d" + name: grad for name, grad in grads.items()},
    }


# -------------------------------------------------------------------------------------------- masks

LENGTHS = [(7, 7), (5, 7), (7, 5), (1, 7), (7, 1), (1, 1)]
lengths = pytest.mark.parametrize(("Tq", "Tk"), LENGTHS, ids=[f"{Tq}x{Tk}" for Tq, Tk in LENGTHS])


def all_rules(Tk):
    """Every combination of causal, window, prefix and align, as keyword arguments."""
    windows, prefixes = (None, 1, 2, max(Tk - 1, 1), Tk, Tk + 5), (0, 1, 3, Tk, Tk + 2)
    for causal, window, prefix, align in product(
        (False, True), windows, prefixes, ("end", "start")
    ):
        yield {"causal": causal, "window": window, "prefix": prefix, "align": align}


@lengths
def test_visible_is_what_a_loop_finds(Tq, Tk):
    for rules in all_rules(Tk):
        np.testing.assert_array_equal(
            masks.visible(Tq, Tk, **rules), seeing(Tq, Tk, **rules), err_msg=str(rules)
        )


@pytest.mark.parametrize(
    ("align", "rows"),
    [
        ("end", ["1110000", "1111000", "1111100", "1111110", "1111111"]),
        ("start", ["1000000", "1100000", "1110000", "1111000", "1111100"]),
    ],
)
def test_causal_by_eye(align, rows):
    assert [
        "".join(map(str, row.astype(int))) for row in masks.visible(5, 7, causal=True, align=align)
    ] == rows


@pytest.mark.parametrize(
    ("rules", "rows"),
    [
        ({"window": 2}, ["10000", "11000", "01100", "00110", "00011"]),
        ({"causal": True, "prefix": 3}, ["11100", "11100", "11100", "11110", "11111"]),
        ({"window": 2, "prefix": 3}, ["11100", "11100", "01100", "00110", "00011"]),
        ({"prefix": 3}, ["11111"] * 5),
    ],
    ids=["window2", "prefix3", "window2-prefix3", "prefix3-not_causal"],
)
def test_rules_by_eye(rules, rows):
    assert ["".join(map(str, row.astype(int))) for row in masks.visible(5, 5, **rules)] == rows


@lengths
def test_edges_cover_exactly_what_is_seen(Tq, Tk):
    for rules in all_rules(Tk):
        see = seeing(Tq, Tk, **rules)
        p = masks.positions(Tq, Tk, rules["align"])
        lo, hi = masks.intervals(masks.make(**rules), p, Tk)
        for first in range(Tq):
            for last in range(first + 1, Tq + 1):
                left, a, b, right = masks.edges(lo[first:last], hi[first:last])
                assert 0 <= left <= a <= b <= right <= Tk, rules
                block, at = see[first:last], (rules, first, last)
                assert not block[:, :left].any() and not block[:, right:].any(), at
                assert block[:, a:b].all(), at


def test_edges_are_tight():
    """What makes a window cheap: a block of rows looks at no more keys than its rows see together.
    """
    expected = {
        (41, 44, 51, 54): {"window": 10},
        (0, 0, 51, 54): {"causal": True},
        (0, 0, 60, 60): {"causal": True, "prefix": 60},
        (0, 0, 52, 54): {"causal": True, "prefix": 52},
    }
    for edges, rules in expected.items():
        lo, hi = masks.intervals(masks.make(**rules), np.arange(100), 100)
        assert masks.edges(lo[50:54], hi[50:54]) == edges


def holes(B, H, Tq, Tk):
    return np.random.default_rng(3).random((B, H, Tq, Tk)) < 0.6


ALLOWED = {
    "none": lambda Tq, Tk: None,
    "padding": lambda Tq, Tk: padding(B, H, Tq, Tk),
    "keys-per_head": lambda Tq, Tk: holes(B, H, 1, Tk),
    "pairs": lambda Tq, Tk: holes(B, H, Tq, Tk),
    "queries": lambda Tq, Tk: holes(B, 1, Tq, 1),
}


@lengths
@pytest.mark.parametrize("allowed", ALLOWED.values(), ids=ALLOWED.keys())
def test_sums_over_what_is_seen(Tq, Tk, allowed):
    rng, allowed = np.random.default_rng(0), allowed(Tq, Tk)
    v, x = rng.standard_normal((B, H, Tk, DV)), rng.standard_normal((B, H, Tq, DV))
    for rules in all_rules(Tk):
        seen = masks.seen(Tq, Tk, masks.make(**rules), allowed)
        see = np.broadcast_to(
            seeing(Tq, Tk, **rules) & (True if allowed is None else allowed), (B, H, Tq, Tk)
        )
        np.testing.assert_array_equal(np.broadcast_to(masks.dense(seen, float), see.shape), see)
        np.testing.assert_allclose(
            masks.sum_seen(v, seen), see @ v, rtol=0, atol=1e-13, err_msg=str(rules)
        )
        heard = see.swapaxes(2, 3) @ x
        np.testing.assert_allclose(
            masks.sum_seeing(x, seen), heard, rtol=0, atol=1e-13, err_msg=str(rules)
        )
        count = np.broadcast_to(masks.count_seen(seen), (B, H, Tq))
        np.testing.assert_array_equal(count, see.sum(axis=3), err_msg=str(rules))


def test_running_sums_in_float32_keep_their_digits():
    """A window's sum is a difference of two long running sums: in float32 it would lose a
    thousandfold here.
    """
    v = (1e3 + np.random.default_rng(0).standard_normal((1, 1, 10_000, 1))).astype(np.float32)
    seen = masks.seen(10_000, 10_000, masks.make(window=3))
    sums = masks.sum_seen(v, seen)
    expected = v[0, 0, -3:, 0].sum(dtype=np.float64)
    assert sums.dtype == np.float32 and abs(sums[0, 0, -1, 0] - expected) <= 1e-7 * expected


# ----------------------------------------------------------------------------- values and gradients

RULES = {
    "none": {},
    "causal": {"causal": True},
    "causal-start": {"causal": True, "align": "start"},
    "window1": {"window": 1},
    "window2": {"window": 2},
    "window-T-1": {"window": 6},
    "window-T": {"window": 7},
    "window-T+5": {"window": 12},
    "prefix3": {"causal": True, "prefix": 3},
    "window2-prefix3": {"window": 2, "prefix": 3},
}
rules = pytest.mark.parametrize("rules", RULES.values(), ids=RULES.keys())


@lengths
@rules
def test_forward_is_the_dense_formula(Tq, Tk, rules):
    q, k, v = qkv(Tq, Tk)
    sink, bias = np.array([0.5, -1, 2]), np.random.default_rng(2).standard_normal((H, 1, Tk))
    for extra in (
        {},
        {"sink": sink},
        {"bias": bias, "scale": 0.7},
        {"allowed": padding(B, H, Tq, Tk)},
    ):
        out, cache, P = attend(q, k, v, return_weights=True, **rules, **extra)
        for actual, expected in zip((out, cache.lse, P), dense(q, k, v, **rules, **extra)):
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


LONG = [(T, name) for T in (97, 131) for name in RULES] + [(1025, "causal"), (1025, "window2")]


@pytest.mark.parametrize(("T", "rules"), LONG)
def test_long(T, rules):
    q, k, v, rules = *qkv(T, T, D=7, Dv=5, B=1, H=1), RULES[rules]
    assert len(list(core._tiles(1, 1, T, T, masks.make(**rules)))) > 1
    out, cache, P = attend(q, k, v, return_weights=True, **rules)
    for actual, expected in zip((out, cache.lse, P), dense_long(q, k, v, **rules)):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def dense_long(q, k, v, **rules):
    """dense, with the mask from masks.visible: a loop over a million pairs would take a second."""
    return dense(q, k, v, allowed=masks.visible(q.shape[2], k.shape[2], **rules))


@pytest.mark.parametrize("D", [1, 3, 59, 111])
def test_odd_head_sizes(D):
    q, k, v = qkv(D=D, Dv=112 - D)
    out, cache = attend(q, k, v)
    np.testing.assert_allclose(out, dense(q, k, v)[0], rtol=0, atol=1e-12)
    assert_gradients(lambda **a: attend(**a), attend_backward, {"q": q, "k": k, "v": v}, seeds=(0,))


OPTIONS = {
    "plain": {},
    "scale": {"scale": 0.3},
    "sink": {"sink": np.array([0.5, -1, 2])},
    "bias": {"bias": np.random.default_rng(2).standard_normal((H, TQ, TK))},
    "allowed": {"allowed": holes(B, H, TQ, TK)},
    "sink-bias-allowed": {
        "sink": np.array([0.5, -1, 2]),
        "allowed": padding(B, H, TQ, TK),
        "bias": np.random.default_rng(2).standard_normal((B, 1, 1, TK)),
    },
}
options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def split(options):
    """What is differentiated, and the rest."""
    arrays = {name: options[name] for name in ("bias", "sink") if name in options}
    return arrays, {name: x for name, x in options.items() if name not in arrays}


@options
@rules
def test_gradients(options, rules):
    arrays, rest = split(options)
    arrays = {**dict(zip("qkv", qkv())), **arrays}
    slopes = assert_gradients(attend, attend_backward, arrays, seeds=(0,), **rest, **rules)
    assert {s.argument for s in slopes} == arrays.keys()


@pytest.mark.parametrize(
    "options",
    [OPTIONS[name] for name in ("plain", "scale", "sink", "bias")],
    ids=["plain", "scale", "sink", "bias"],
)
@rules
def test_gradient_through_the_log_sum_exp(options, rules):
    arrays, rest = split(options)
    arrays = {**dict(zip("qkv", qkv())), **arrays}

    def both(**arrays):
        out, cache = attend(**arrays, **rest, **rules)
        return np.concatenate([out, cache.lse[..., None]], axis=3)

    dboth = np.random.default_rng(5).standard_normal((B, H, TQ, DV + 1))
    grads = attend_backward(
        np.ascontiguousarray(dboth[..., :-1]), attend(**arrays, **rest, **rules)[1], dboth[..., -1]
    )
    for seed in range(3):
        for slope in directional(both, arrays, grads, dboth, seed=seed):
            assert slope.error <= 1e-7, slope


# -------------------------------------------------------------------------------------------- tiles

TILINGS = {
    "one_row": {"ROWS": 1, "TILE": 1},
    "two_rows": {"ROWS": 2, "TILE": 64},
    "three_rows": {"ROWS": 3},
    "recomputed": {"KEEP_BYTES": 0},
    "two_rows-recomputed": {"ROWS": 2, "TILE": 64, "KEEP_BYTES": 0},
}


@pytest.mark.parametrize("G", [4, 2, 1])
@pytest.mark.parametrize("keep", [core.KEEP_BYTES, 0])
def test_wide_products_are_cut(G, keep, monkeypatch):
    """The scores of 100 keys in one product, and 32 keys at a time"""
    rng, results = np.random.default_rng(0), []
    q, dout = rng.standard_normal((2, 2, 4, 70, 5))
    k, v = rng.standard_normal((2, 2, G, 100, 5))
    monkeypatch.setattr(core, "KEEP_BYTES", keep)
    for small in (core.SMALL, 1):
        monkeypatch.setattr(core, "SMALL", small)
        parts = len(core.small_blocks(q, k.swapaxes(2, 3)))
        assert parts == (1 if small > 1 else 4)
        out, cache = core.attend(q, k, v, causal=True)
        results.append({"out": out, **core.attend_backward(dout, cache)})
    for name, a in results[0].items():
        np.testing.assert_allclose(results[1][name], a, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
@rules
@options
def test_tiles_change_nothing(tiling, rules, options, monkeypatch):
    options = {**options, **rules}
    bias = (options["bias"], DecayBias(np.array([0.1, 0.2, 0.3]))) if "bias" in options else None
    args, options = qkv(), {**options, "bias": bias}
    whole = result(*args, **options)
    for name, value in tiling.items():
        monkeypatch.setattr(core, name, value)
    assert "ROWS" not in tiling or len(list(core._tiles(B, H, TQ, TK, masks.make(**rules)))) > 1
    assert_close(result(*args, **options), whole, 1e-12)


@pytest.mark.parametrize(
    ("together", "groups"),
    [
        (2 * H, [(0, 2, 0, H), (2, 4, 0, H), (4, 5, 0, H)]),
        (2, [(b, b + 1, h, min(h + 2, H)) for b in range(5) for h in (0, 2)]),
    ],
    ids=["sequences", "heads"],
)
def test_tiles_group(together, groups, monkeypatch):
    monkeypatch.setattr(core, "TILE", together * TQ * TK)
    tiles = list(core._tiles(5, H, TQ, TK, masks.make()))
    assert [(b.start, b.stop, h.start, h.stop) for b, h, _ in (t.queries for t in tiles)] == groups
    args, bias = qkv(B=5), np.random.default_rng(0).standard_normal((5, 1, TQ, 1))
    small = result(*args, bias=bias, allowed=padding(5, H, TQ, TK) | (np.arange(TK) == 0))
    monkeypatch.undo()
    assert_close(
        small, result(*args, bias=bias, allowed=padding(5, H, TQ, TK) | (np.arange(TK) == 0)), 1e-12
    )


def test_a_window_is_computed_in_a_band():
    T = 512
    assert sum(map(core._size, core._tiles(1, 1, T, T, masks.make(window=16)))) < T * T / 5


def test_weights_are_not_kept_when_they_are_large(monkeypatch):
    q, k, v = qkv()
    assert attend(q, k, v)[1].kept is not None
    monkeypatch.setattr(core, "KEEP_BYTES", q.itemsize * B * H * TQ * TK - 1)
    assert attend(q, k, v)[1].kept is None
    assert (
        attend(q, k, v, dropout=0.5, rng=np.random.default_rng(0))[1].kept is not None
    )  # the mask must be


# --------------------------------------------------------------------------------------------- bias

SHAPES = [
    tuple(n if on else 1 for n, on in zip((B, H, TQ, TK), chosen))
    for chosen in product((0, 1), repeat=4)
]
SHAPES += [(TQ, TK), (H, TQ, TK), (H, 1, TK), (TK,), ()]


@pytest.mark.parametrize("shape", SHAPES, ids=["x".join(map(str, s)) or "scalar" for s in SHAPES])
@pytest.mark.parametrize(("rows", "tile"), [(64, 1 << 17), (2, 2 * TK)], ids=["one_tile", "tiles"])
def test_bias_of_every_shape(shape, rows, tile, monkeypatch):
    monkeypatch.setattr(core, "ROWS", rows)
    monkeypatch.setattr(core, "TILE", tile)
    rng = np.random.default_rng(0)
    q, k, v = qkv()
    bias = np.asarray(rng.standard_normal(shape))
    out, _ = attend(q, k, v, bias=bias)
    np.testing.assert_allclose(out, dense(q, k, v, bias=bias)[0], rtol=0, atol=1e-12)
    full = np.broadcast_to(bias, (B, H, TQ, TK)).copy()
    grad = result(q, k, v, bias=full)["dbias"]
    four = (1,) * (4 - len(shape)) + shape
    summed = grad.sum(axis=tuple(a for a, n in enumerate(four) if n == 1), keepdims=True)
    np.testing.assert_allclose(
        result(q, k, v, bias=bias)["dbias"], summed.reshape(shape), rtol=0, atol=1e-13
    )
    assert_gradients(attend, attend_backward, {"q": q, "k": k, "v": v, "bias": bias}, seeds=(0,))


def test_tuple_of_biases():
    rng = np.random.default_rng(0)
    args, slopes = qkv(), np.array([0.1, 0.2, 0.3])
    one, two = rng.standard_normal((H, TQ, TK)), rng.standard_normal((TK,))
    steps = (np.arange(TK) - np.arange(TQ)[:, None] - TK + TQ) * slopes[:, None, None]  # -(p - j) m
    whole = result(*args, bias=one + two + steps)
    parts = result(*args, bias=(one, DecayBias(slopes), two))
    np.testing.assert_allclose(parts["out"], whole["out"], rtol=0, atol=1e-13)
    assert parts["dbias2"].shape == two.shape
    np.testing.assert_allclose(parts["dbias0"], whole["dbias"], rtol=0, atol=1e-13)
    np.testing.assert_allclose(parts["dbias2"], whole["dbias"].sum(axis=(0, 1)), rtol=0, atol=1e-13)
    dslopes = np.sum(whole["dbias"] * steps, axis=(1, 2)) / slopes
    np.testing.assert_allclose(parts["dslopes"], dslopes, rtol=0, atol=1e-12)


def test_a_bias_that_makes_its_own_tiles_alone():
    """Its gradient comes back alone too; a constant one has none."""
    args, slopes = qkv(), np.array([0.1, 0.2, 0.3])
    assert_close(result(*args, bias=DecayBias(slopes)), result(*args, bias=(DecayBias(slopes),)), 0)
    out, cache = attend(*args, bias=DecayBias(slopes, learned=False))
    assert attend_backward(out, cache)["bias"] is None


@pytest.mark.parametrize("form", ["none", "array", "tuple", "empty"])
def test_own_biases_have_their_gradients_apart(form):
    rng, decay = np.random.default_rng(0), DecayBias(np.array([0.1, 0.2, 0.3]))
    own, theirs = rng.standard_normal((H, 1, TK)), rng.standard_normal((TQ, TK))
    bias, rest = {
        "none": (None, ()),
        "array": (theirs, (theirs,)),
        "tuple": ((theirs,), (theirs,)),
        "empty": ((), ()),
    }[form]
    args, dout = qkv(), rng.standard_normal((B, H, TQ, DV))
    expected = attend_backward(dout, attend(*args, bias=(own, decay, *rest))[1])
    grads = attend_backward(dout, attend(*args, own_bias=(own, decay), bias=bias)[1])
    down, ddecay = grads.pop("own_bias")
    np.testing.assert_array_equal(down, expected["bias"][0])
    np.testing.assert_array_equal(ddecay["slopes"], expected["bias"][1]["slopes"])
    assert ("bias" in grads) == bool(rest)
    if rest:
        (dbias,) = grads["bias"] if form == "tuple" else (grads["bias"],)
        np.testing.assert_array_equal(dbias, expected["bias"][2])
    for name in "qkv":
        np.testing.assert_array_equal(grads[name], expected[name])


def test_tuple_of_no_biases():
    assert_close(result(*qkv(), bias=()), result(*qkv()), 0)


# ------------------------------------------------------------------------------------------ softcap


def capped_dense(q, k, v, cap, scale=None, bias=0.0, **options):
    """dense, its products capped: they come in as a bias beside products of 0."""
    scale = q.shape[3] ** -0.5 if scale is None else scale
    products = np.einsum("bhid,bhjd->bhij", q, k) * scale
    return dense(0 * q, k, v, bias=cap * np.tanh(products / cap) + bias, **options)


@pytest.mark.parametrize("cap", [0.5, 2.0])
@options
@rules
def test_softcap_is_the_dense_formula(options, rules, cap):
    q, k, v = qkv()
    out, cache, P = attend(q, k, v, softcap=cap, return_weights=True, **options, **rules)
    for actual, expected in zip(
        (out, cache.lse, P), capped_dense(q, k, v, cap, **options, **rules)
    ):
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


@options
@rules
def test_softcap_gradients(options, rules):
    arrays, rest = split(options)
    arrays = {**dict(zip("qkv", qkv())), **arrays}
    assert_gradients(
        attend, attend_backward, arrays, seeds=(0,), **rest, **rules, softcap=0.7
    )


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
@options
def test_softcap_in_tiles(tiling, options, monkeypatch):
    options, args = {**options, "causal": True}, qkv()
    whole = result(*args, **options, softcap=0.7)
    for name, value in tiling.items():
        monkeypatch.setattr(core, name, value)
    assert_close(result(*args, **options, softcap=0.7), whole, 1e-12)


def test_softcap_with_dropout_and_a_bias_in_tiles():
    """Every part of the backward at once: the bias gets its gradient before rescore may overwrite
    it.
    """
    arrays = {
        **dict(zip("qkv", qkv())),
        "sink": np.array([0.5, -1, 2]),
        "bias": np.random.default_rng(2).standard_normal((H, TQ, TK)),
    }
    assert_gradients(lambda **a: dropped(**a, softcap=0.7), attend_backward, arrays)


def test_softcap_for_one_query():
    (q, k, v), bias = qkv(1), np.random.default_rng(2).standard_normal((H, 1, TK))
    one = core.attend_last(0.3 * q, k, v, bias=bias, softcap=0.7)
    np.testing.assert_allclose(
        one, attend(q, k, v, scale=0.3, bias=bias, softcap=0.7)[0], rtol=0, atol=1e-14
    )


# -------------------------------------------------------------------- groups, lengths, other rules


@pytest.mark.parametrize("groups", [(1, 1), (2, 2), (2, 1), (4, 2)])
@pytest.mark.parametrize("tiling", [{}, {"ROWS": 2, "TILE": 8, "KEEP_BYTES": 0}], ids=str)
def test_grouped_keys_are_repeated_ones(groups, tiling, monkeypatch):
    for name, value in tiling.items():
        monkeypatch.setattr(core, name, value)
    rng, (G, Gv) = np.random.default_rng(3), groups
    q, k, v = (rng.standard_normal((B, h, T, d))
               for h, T, d in ((4, TQ, D), (G, TK, D), (Gv, TK, DV)))
    every = [np.repeat(x, 4 // x.shape[1], axis=1) for x in (q, k, v)]
    expected = result(*every, causal=True)
    for name, n in (("dk", G), ("dv", Gv)):
        expected[name] = expected[name].reshape(B, n, 4 // n, TK, -1).sum(axis=2)
    assert_close(result(q, k, v, causal=True), expected, 1e-12)
    one = core.attend_last(q[:, :, -1:] * D**-0.5, k, v)
    np.testing.assert_allclose(one, attend(q[:, :, -1:], k, v)[0], rtol=0, atol=1e-14)


@lengths
@rules
@pytest.mark.parametrize("allowed", [None, padding, holes])
def test_log_length_counts_the_visible_keys(Tq, Tk, rules, allowed):
    (q, k, v), a = qkv(Tq, Tk), np.array([0.5, -1, 2])
    extra = {} if allowed is None else {"allowed": allowed(B, H, Tq, Tk)}
    see = np.broadcast_to(seeing(Tq, Tk, **rules) & extra.get("allowed", True), (B, H, Tq, Tk))
    n = np.maximum(see.sum(axis=3), 1)
    expected = dense(q * (a[:, None] * np.log(n))[..., None], k, v, **rules, **extra)[0]
    out, cache = attend(q, k, v, log_length=a, **rules, **extra)
    np.testing.assert_allclose(out, expected, rtol=0, atol=1e-12)
    in_float32 = (x.astype(F32) for x in (q, k, v))
    assert attend(*in_float32, log_length=a.astype(F32), **rules, **extra)[0].dtype == F32
    assert_gradients(attend, attend_backward, dict(q=q, k=k, v=v, log_length=a), seeds=(0,),
                     **rules, **extra)


class Clipped(Rule):
    """P = max(s, 0)^2 / n, with scores squared before biases: a rule of no paper."""
    saves = 1

    def rescore(self, s):
        return s * s, s

    def rescore_backward(self, ds, s):
        return 2 * s * ds

    def forward(self, s, rescored, heads=slice(None)):
        n = visible_keys(s)
        r = np.maximum(s, 0)
        return r * r / n, (r, n)

    def backward(self, dP, P, saved):
        r, n = saved
        return dP * 2 * r / n


@pytest.mark.parametrize("tiling", TILINGS.values(), ids=TILINGS.keys())
@rules
def test_any_rule_in_tiles(rules, tiling, monkeypatch):
    """A rule that rescales, with a bias, padding and dropout, against whole arrays."""
    (q, k, v), rng = qkv(), np.random.default_rng(4)
    bias, allowed = rng.standard_normal((H, TQ, TK)) - 1, padding(B, H, TQ, TK)
    for name, value in tiling.items():
        monkeypatch.setattr(core, name, value)
    see = np.broadcast_to(seeing(TQ, TK, **rules) & allowed, (B, H, TQ, TK))
    s = np.einsum("bhid,bhjd->bhij", q, k) * D**-0.5
    P = np.where(see, np.maximum(s * s + bias, 0) ** 2, 0) / np.maximum(
        see.sum(axis=3, keepdims=True), 1)
    options = dict(rule=Clipped(), allowed=allowed, **rules)
    out, cache, weights = attend(q, k, v, bias=bias, return_weights=True, **options)
    np.testing.assert_allclose(weights, P, rtol=0, atol=1e-13)
    np.testing.assert_allclose(out, P @ v, rtol=0, atol=1e-13)
    assert_gradients(attend, attend_backward, dict(q=q, k=k, v=v, bias=bias), seeds=(0,), **options,
                     softcap=1.5, dropout=0.3, rng=Redraw())
    assert cache.lse is None


def Redraw():
    """A generator of the same numbers at each use, for central differences."""
    class Again:
        def __getattr__(self, name):
            return getattr(np.random.default_rng(8), name)
    return Again()


def test_any_rule_for_one_query():
    (q, k, v), bias = qkv(1), np.random.default_rng(2).standard_normal((H, 1, TK))
    one = core.attend_last(0.3 * q, k, v, bias=bias, softcap=0.7, rule=Clipped())
    np.testing.assert_allclose(
        one, attend(q, k, v, scale=0.3, bias=bias, softcap=0.7, rule=Clipped())[0], atol=1e-14)


# --------------------------------------------------------------------------------------------- sink


def test_sink_is_one_more_key():
    (q, k, v), sink, rng = qkv(), np.array([0.5, -1, 2]), np.random.default_rng(0)
    k1, v1 = (
        np.concatenate([np.zeros_like(x[:, :, :1]), x], axis=2) for x in (k, v)
    )  # a key of zeros: score 0,
    bias = np.zeros((H, 1, TK + 1))
    bias[:, 0, 0] = sink  # and its logit as a bias
    with_key, cache1 = attend(q, k1, v1, bias=bias)
    with_sink, cache = attend(q, k, v, sink=sink)
    np.testing.assert_allclose(with_sink, with_key, rtol=0, atol=1e-13)
    np.testing.assert_allclose(cache.lse, cache1.lse, rtol=0, atol=1e-13)
    dout, dlse = rng.standard_normal(with_key.shape), rng.standard_normal((B, H, TQ))
    dsink = attend_backward(dout, cache1, dlse)["bias"][:, 0, 0]
    np.testing.assert_allclose(
        attend_backward(dout, cache, dlse)["sink"], dsink, rtol=0, atol=1e-12
    )


# ------------------------------------------------------------------------------------------ dropout


def dropped(**arrays):
    return attend(**arrays, causal=True, dropout=0.4, rng=np.random.default_rng(6))


@pytest.mark.parametrize("rows", [64, 2], ids=["one_tile", "tiles"])
def test_dropout_gradients(rows, monkeypatch):
    monkeypatch.setattr(core, "ROWS", rows)
    arrays = {**dict(zip("qkv", qkv())), **split(OPTIONS["sink"])[0], **split(OPTIONS["bias"])[0]}
    assert_gradients(dropped, attend_backward, arrays)


def test_dropout_of_weights():
    q, k, v = qkv(64, 64)
    _, _, P = attend(q, k, v, return_weights=True)
    out, _, weights = attend(
        q, k, v, return_weights=True, dropout=0.25, rng=np.random.default_rng(0)
    )
    kept = weights != 0
    assert abs(kept.mean() - 0.75) < 0.01
    np.testing.assert_allclose(weights[kept], P[kept] / 0.75, rtol=1e-13)
    np.testing.assert_allclose(out, weights @ v, rtol=0, atol=1e-13)
    again = attend(q, k, v, dropout=0.25, rng=np.random.default_rng(0))[0]
    np.testing.assert_array_equal(out, again)
    np.testing.assert_array_equal(
        attend(q, k, v, dropout=0.25)[0], attend(q, k, v)[0]
    )  # without a generator


# --------------------------------------------------------------------------------------- empty rows


def nothing_seen(case):
    """(arguments, options, the rows that see nothing)"""
    if case == "allowed":
        allowed = np.ones((B, H, TQ, TK), bool)
        allowed[0, 1, 3] = allowed[:, :, 1] = False
        return qkv(), {"allowed": allowed}, ~allowed.any(axis=3)
    if case == "allowed-none":
        return qkv(), {"allowed": np.zeros((1, 1, 1, 1), bool)}, np.ones((B, H, TQ), bool)
    if case == "allowed-causal":
        allowed = np.ones((B, 1, 1, TK), bool)
        allowed[1, ..., :4] = False  # padding on the left
        empty = np.zeros((B, H, TQ), bool)
        empty[1, :, :2] = True
        return qkv(), {"allowed": allowed, "causal": True}, empty
    return qkv(7, 5), {"causal": True}, np.broadcast_to(np.arange(7) < 2, (B, H, 7))  # by align


@pytest.mark.parametrize("case", ["allowed", "allowed-none", "allowed-causal", "align"])
@pytest.mark.parametrize(
    "tiling",
    [{}, {"KEEP_BYTES": 0}, {"ROWS": 1, "KEEP_BYTES": 0}],
    ids=["kept", "recomputed", "recomputed-rows"],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.filterwarnings("error")
def test_rows_that_see_nothing(case, tiling, dtype, monkeypatch):
    for name, value in tiling.items():
        monkeypatch.setattr(core, name, value)
    args, options, empty = nothing_seen(case)
    args = tuple(x.astype(dtype) for x in args)
    r = result(*args, dlse=None, **options)
    assert (
        (r["out"][empty] == 0).all()
        and (r["lse"][empty] == -np.inf).all()
        and (r["weights"][empty] == 0).all()
    )
    assert (r["dq"][empty] == 0).all() and np.isfinite(r["lse"][~empty]).all()
    assert all(np.isfinite(r[name]).all() for name in ("out", "weights", "dq", "dk", "dv"))
    np.testing.assert_allclose(r["weights"].sum(axis=3), ~empty, rtol=0, atol=1e-6)
    sink = np.array([0.5, -1, 2], dtype)
    r = result(*args, sink=sink, **options)
    assert (r["out"][empty] == 0).all() and np.isfinite(r["dsink"]).all()
    np.testing.assert_array_equal(
        r["lse"][empty], np.broadcast_to(sink[:, None], empty.shape)[empty]
    )


def test_rows_that_see_nothing_give_no_gradient_to_anyone():
    args, options, empty = nothing_seen("allowed")
    out, cache = attend(*args, bias=np.zeros((TQ, TK)), **options)
    dout = np.where(empty[..., None], np.random.default_rng(0).standard_normal(out.shape), 0)
    for grad in attend_backward(dout, cache).values():
        np.testing.assert_array_equal(grad, 0)


# ----------------------------------------------------------------------------------------- numerics


@pytest.mark.parametrize("shift", [1e2, -1e2, 1e4, -1e4, 1e6, -1e6])
def test_shifted_scores_give_the_same_weights(shift):
    """Exactly the same: the scores are multiples of 1/256, so that adding the shift loses nothing.
    """
    q, k, v = (grid(x) for x in qkv())
    sink = grid(np.array([0.5, -1, 2]))
    for extra in ({}, {"causal": True}, {"sink": sink}):
        plain = result(q, k, v, scale=0.25, bias=np.zeros(1), **extra)
        moved = {**extra, "sink": sink + shift} if "sink" in extra else extra
        moved = result(q, k, v, scale=0.25, bias=np.full(1, shift), **moved)
        np.testing.assert_allclose(moved.pop("lse"), plain.pop("lse") + shift, rtol=1e-15)
        for name in plain.keys() - {"dsink"}:
            np.testing.assert_array_equal(moved[name], plain[name], err_msg=name)
        if "sink" in extra:
            np.testing.assert_allclose(moved["dsink"], plain["dsink"], rtol=1e-9)


@pytest.mark.parametrize("shift", [1e4, -1e6])
def test_shifted_scores_when_the_weights_are_made_again(shift, monkeypatch):
    """exp(s - lse) cannot be better than the digits that lse has left: eps * shift."""
    monkeypatch.setattr(core, "KEEP_BYTES", 0)
    q, k, v = (grid(x) for x in qkv())
    plain, moved = (
        result(q, k, v, scale=0.25, bias=np.full(1, b), causal=True) for b in (0.0, shift)
    )
    for name in ("out", "weights"):
        np.testing.assert_array_equal(moved[name], plain[name])
    for name in ("dq", "dk", "dv"):
        np.testing.assert_allclose(
            moved[name], plain[name], rtol=0, atol=10 * np.finfo(float).eps * abs(shift)
        )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("keep", [1 << 27, 0], ids=["kept", "recomputed"])
@pytest.mark.filterwarnings("error")
def test_one_dominant_score(dtype, keep, monkeypatch):
    monkeypatch.setattr(core, "KEEP_BYTES", keep)
    q, k, v = qkv(dtype=dtype)
    bias = np.zeros((TQ, TK), dtype)
    bias[np.arange(TQ), [2, 0, 3, 1, 6]] = 1e4
    r = result(q, k, v, bias=bias)
    np.testing.assert_array_equal(r["out"], v[:, :, [2, 0, 3, 1, 6]])
    assert all(np.isfinite(x).all() for x in r.values())


@pytest.mark.filterwarnings("error")
def test_a_dominant_score_in_the_future_changes_nothing():
    """A finite mask (-1e4, -1e9) would let it in."""
    q, k, v = qkv(TK)
    bias = np.where(masks.visible(TK, TK, causal=True), 0, 1e12)
    assert_close(
        result(q, k, v, bias=bias, causal=True), result(q, k, v, bias=0 * bias, causal=True), 0
    )


def test_equal_scores_give_a_plain_mean():
    q, k, v = qkv()
    out, cache = attend(0 * q, k, v)
    np.testing.assert_allclose(
        out, np.broadcast_to(v.mean(axis=2, keepdims=True), out.shape), rtol=0, atol=1e-15
    )
    np.testing.assert_allclose(cache.lse, np.log(TK), rtol=1e-15)


@pytest.mark.parametrize("size", [1e-30, 1e-150])
def test_tiny_values_scale_through(size):
    q, k, v = qkv()
    tiny, plain = result(q, k, size * v), result(q, k, v)
    for name in ("out", "dq", "dk"):
        np.testing.assert_allclose(
            tiny[name] / size, plain[name], rtol=0, atol=1e-14 * np.abs(plain[name]).max()
        )


def test_large_values_scale_through():
    q, k, v = qkv()
    large, plain = result(q, k, 1e100 * v), result(q, k, v)
    np.testing.assert_allclose(large["dq"] / 1e100, plain["dq"], rtol=0, atol=1e-14)


# ----------------------------------------------------------------------------------------- promises


@pytest.mark.parametrize(
    "name", ["causal", "window1", "window2", "window-T", "prefix3", "window2-prefix3"]
)
def test_the_future_changes_nothing_at_all(name):
    """Equal to the last bit, with tiles of several shapes around the cut, and the rest does change.
    """
    T, rules = 67, RULES[name]
    q, k, v = qkv(T, T)
    before = result(q, k, v, **rules)
    for cut in (3, 7, 31, 63, 64, 66):
        changed = [x.copy() for x in (q, k, v)]
        for x, noise in zip(changed, qkv(T, T, seed=8)):
            x[:, :, cut:] = 100 * noise[:, :, cut:]
        after = result(*changed, **rules)
        for name in ("out", "lse"):
            np.testing.assert_array_equal(after[name][:, :, :cut], before[name][:, :, :cut])
            assert (after[name][:, :, cut:] != before[name][:, :, cut:]).all()


def test_samples_do_not_touch():
    q, k, v = qkv()
    before = result(q, k, v)
    q[0], k[0], v[0] = 3 * q[0] + 1, 0, 7
    after = result(q, k, v)
    for name in before:
        np.testing.assert_array_equal(after[name][1], before[name][1])
        assert (after[name][0] != before[name][0]).any()


LAYOUTS = {
    "heads_last": lambda x: np.ascontiguousarray(x.swapaxes(1, 2)).swapaxes(1, 2),
    "fortran": np.asfortranarray,
    "reversed": lambda x: np.ascontiguousarray(x[:, :, ::-1, ::-1])[:, :, ::-1, ::-1],
    "every_other": lambda x: np.repeat(np.repeat(x, 2, axis=3), 3, axis=2)[:, :, 1::3, ::2],
    "read_only": lambda x: np.frombuffer(x.tobytes()).reshape(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_memory_layout_does_not_matter(layout):
    options = {"bias": np.random.default_rng(2).standard_normal((B, H, TQ, TK)), "causal": True}
    args = qkv()
    plain = result(*args, **options)
    before = [x.copy() for x in args]
    other = result(*map(layout, args), **{**options, "bias": layout(options["bias"])})
    assert_close(other, plain, 1e-13)
    for x, y in zip(args, before):
        np.testing.assert_array_equal(x, y)


def test_one_array_shared_along_a_broadcast_axis():
    q, k, v = qkv()
    k1, v1 = (np.broadcast_to(x[:, :1], x.shape) for x in (k, v))  # grouped-query: strides of 0
    assert_close(result(q, k1, v1), result(q, k1.copy(), v1.copy()), 1e-13)


def test_arguments_are_left_alone():
    arrays = {
        **dict(zip("qkv", qkv())),
        "bias": np.random.default_rng(0).random((1, 1, TQ, TK)),
        "sink": np.zeros(H),
        "allowed": holes(B, H, TQ, TK),
    }
    before = {name: x.copy() for name, x in arrays.items()}
    out, cache = attend(**arrays)
    dout, dlse = np.ones_like(out), np.ones((B, H, TQ))
    first = attend_backward(dout, cache, dlse)
    second = attend_backward(dout, cache, dlse)  # the cache survives a first use
    for name, x in arrays.items():
        np.testing.assert_array_equal(x, before[name])
    assert (dout == 1).all() and (dlse == 1).all()
    assert_close(second, first, 0)


def test_threads_do_not_disturb_each_other(monkeypatch):
    monkeypatch.setattr(core, "ROWS", 8)
    jobs = [(qkv(40, 40, seed=s), {"causal": True, "dropout": 0.2 * (s % 2)}) for s in range(4)] * 4

    def work(job):
        args, options = job
        return result(*args, **options, rng=np.random.default_rng(1))

    with ThreadPoolExecutor(4) as pool:
        for job, parallel in zip(jobs, pool.map(work, jobs)):
            alone = work(job)
            for name in alone:
                np.testing.assert_array_equal(parallel[name], alone[name])


@pytest.mark.parametrize(
    "Tq, Tk, D, Dv", [(1, 1, 1, 1), (1, 7, 1, 3), (5, 1, 3, 1), (1, 7, 11, 13)]
)
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_sizes_of_one(Tq, Tk, D, Dv, causal):
    q, k, v = qkv(Tq, Tk, D, Dv)
    np.testing.assert_allclose(
        attend(q, k, v, causal=causal)[0], dense(q, k, v, causal=causal)[0], rtol=0, atol=1e-13
    )
    assert_gradients(attend, attend_backward, {"q": q, "k": k, "v": v}, causal=causal)
    if Tk == 1:
        assert not attend_backward(np.ones((B, H, Tq, Dv)), attend(q, k, v)[1])[
            "q"
        ].any()  # nothing to choose


@pytest.mark.parametrize(
    "empty", [{"B": 0}, {"Tq": 0}, {"Tk": 0}], ids=["no_batch", "no_queries", "no_keys"]
)
def test_sizes_of_zero(empty):
    q, k, v = qkv(**empty)
    r = result(q, k, v, causal=True)
    assert r["out"].shape == q.shape[:3] + (DV,) and not r["out"].any()
    assert r["dq"].shape == q.shape and r["dk"].shape == k.shape and r["dv"].shape == v.shape


def test_float32_in_float32_out():
    args = qkv(dtype=np.float32)
    r = result(
        *args,
        bias=np.zeros((TQ, TK), np.float32),
        sink=np.zeros(H, np.float32),
        scale=np.float64(0.5),
    )
    assert {x.dtype for x in r.values()} == {np.dtype(np.float32)}


# ---------------------------------------------------------------------------------------- bad input

F32 = np.float32
BAD = {
    "q-list": ({"q": [[1.0]]}, "q must be a NumPy array of shape (B, H, Tq, D); got list"),
    "q-axes": ({"q": np.zeros((TQ, D))}, "q must have 4 axes (B, H, Tq, D); got shape (5, 11)"),
    "q-integers": ({"q": np.zeros((B, H, TQ, D), int)}, "q must be float32 or float64; got int64"),
    "k-float16": (
        {"k": np.zeros((B, H, TK, D), np.float16)},
        "k must be float32 or float64; got float16",
    ),
    "k-float32": ({"k": np.zeros((B, H, TK, D), F32)}, "k has dtype float32, but q has float64"),
    "k-heads": ({"k": np.zeros((B, 2, TK, D))},
                "k: its number of heads must divide q's, 3; got 2."),
    "v-heads": ({"v": np.zeros((B, 0, TK, DV))},
                "v: its number of heads must divide q's, 3; got 0."),
    "softcap-0": ({"softcap": 0}, "softcap (None: off) must be above 0; got 0."),
    "log-length": ({"log_length": np.zeros(H + 1)}, "log_length: axis 0 (H) must be 3; got 4"),
    "sink-and-rule": ({"sink": np.zeros(H), "rule": Clipped()},
                      "a sink needs softmax weights; Clipped rows have none."),
    "v-tokens": ({"v": np.zeros((B, H, TQ, DV))}, "v: axis 2 (Tk) must be 7 as in k; got 5"),
    "sink-scalar": ({"sink": 0.0}, "sink must be a NumPy array"),
    "sink-shape": ({"sink": np.zeros(H + 1)}, "sink: axis 0 (H) must be 3; got 4"),
    "sink-float32": ({"sink": np.zeros(H, F32)}, "sink has dtype float32"),
    "sink-nan": ({"sink": np.array([0, np.nan, 0])}, "sink must be finite; entry (1,) is nan"),
    "bias-shape": (
        {"bias": np.zeros((TQ, TK + 1))},
        "bias must broadcast to (B, H, Tq, Tk) = (2, 3, 5, 7); got",
    ),
    "bias-axes": ({"bias": np.zeros((1,) * 5)}, "bias must broadcast"),
    "bias-float32": (
        {"bias": np.zeros((TQ, TK), F32)},
        "bias must have q's dtype, float64; got float32",
    ),
    "bias-number": ({"bias": 0.5}, "bias must be an array or have a tile method; got float"),
    "allowed-floats": (
        {"allowed": np.ones((TQ, TK))},
        "allowed must be a boolean array, True = may attend; got float",
    ),
    "allowed-shape": ({"allowed": np.ones((TK, TQ), bool)}, "allowed must broadcast to"),
    "scale-text": ({"scale": "auto"}, "scale must be a finite number; got 'auto'"),
    "scale-inf": ({"scale": np.inf}, "scale must be a finite number"),
    "causal-number": ({"causal": 1}, "causal must be True or False; got 1"),
    "weights-array": ({"return_weights": np.ones(2)}, "return_weights must be True or False; got"),
    "rule-number": ({"rule": 3}, "rule must be a Rule, as in minattn.attention.rules; got 3."),
    "rule-class": ({"rule": Clipped}, "rule must be a Rule"),
    "rule-empty": ({"rule": Rule()}, "rule must be a Rule"),
    "window-0": ({"window": 0}, "window must be at least 1; got 0"),
    "window-negative": ({"window": -3}, "window must be at least 1; got -3"),
    "window-float": ({"window": 2.5}, "window must be an integer; got 2.5"),
    "prefix-negative": ({"prefix": -1}, "prefix must be at least 0; got -1"),
    "align-middle": ({"align": "middle"}, "align must be one of end, start; got 'middle'"),
    "align-typo": ({"align": "strat"}, "Did you mean 'start'?"),
    "dropout-1": ({"dropout": 1.0}, "dropout must be at least 0 and at most 0.999; got 1.0"),
    "option-typo": ({"causl": True}, "unknown option 'causl'"),
    "option-list": (
        {"causl": True},
        "attention takes scale, softcap, log_length, bias, causal, window, prefix, allowed, align, "
        "dropout, rng, return_weights.",
    ),
    "option-hint": ({"widnow": 3}, "Did you mean 'window'?"),
}


@pytest.mark.parametrize(("change", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input(change, message):
    with pytest.raises(InputError) as caught:
        attend(**{**dict(zip("qkv", qkv())), **change})
    assert message in str(caught.value)


@pytest.mark.parametrize("options", [{"scale": 1e39}, {"scale": 1e-60}, {"softcap": 1e39},
                                     {"softcap": 1e-46}, {"softcap": 10**300}], ids=str)
def test_numbers_that_the_arrays_cannot_hold(options):
    """Not 0 or infinity in their place, and then NaN."""
    q, k, v = (x.astype(F32) for x in qkv())
    with pytest.raises(InputError, match="must be a number that float32 can hold; got 1"):
        attend(q, k, v, **options)


@pytest.mark.parametrize("number", [np.float16, np.float32, np.float64, np.longdouble])
def test_numbers_of_numpy_keep_the_arrays_precision(number):
    q, k, v = (x.astype(F32) for x in qkv())
    options = {name: number(0.5) for name in ("scale", "softcap", "dropout")}
    out, cache = attend(q, k, v, **options, rng=np.random.default_rng(0))
    right, _ = attend(q, k, v, scale=0.5, softcap=0.5, dropout=0.5, rng=np.random.default_rng(0))
    assert np.array_equal(out, right) and cache.kept[0][0].dtype == F32


@pytest.mark.parametrize(
    ("dout", "message"),
    [
        (np.zeros((B, H, TQ, D)), "dout: axis 3 (Dv) must be 13; got 11"),
        (np.zeros((B, H, TQ, DV), F32), "dout has dtype float32"),
    ],
    ids=["shape", "dtype"],
)
def test_bad_cotangent(dout, message):
    with pytest.raises(InputError) as caught:
        attend_backward(dout, attend(*qkv())[1])
    assert message in str(caught.value)
