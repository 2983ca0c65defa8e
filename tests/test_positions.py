"""Positions: gradients against differences and PyTorch, and what each encoding promises."""
import inspect

import gpt_cases
import numpy as np
import pytest

from minattn import layers, model
from minattn.checks import defaults
from minattn.errors import InputError
from minattn.positions import POSITIONS, decay, learned, morlet, rotary, sinusoidal
from minattn.validate.gradients import assert_gradients

SEEDS = (0, 1, 2)
PAIRS = ("half", "interleaved")
B, H, T, D, N = 2, 3, 7, 10, 5   # D must be even; N = C/2 pairs


@pytest.fixture
def refs():
    pytest.importorskip("torch")
    from minattn import torch_refs
    return torch_refs


def check_gradient(forward, backward, arrays, seed):
    """Central differences in random directions through all arrays."""
    slopes = assert_gradients(forward, backward, arrays, seeds=(seed, seed + 10, seed + 20))
    assert {slope.argument for slope in slopes} == arrays.keys()


def check_torch(literal, forward, backward, arrays, seed=0):
    """Output and gradients against PyTorch's formula and autograd, float64."""
    import torch
    tensors = {name: torch.tensor(array, requires_grad=True) for name, array in arrays.items()}
    expected = literal(**tensors)
    out, cache = forward(**arrays)
    cotangent = np.random.default_rng(seed).standard_normal(out.shape)
    expected.backward(torch.tensor(cotangent))
    close(out, expected.detach().numpy())
    grads = backward(cotangent, cache)
    assert grads.keys() == tensors.keys()
    for name, tensor in tensors.items():
        close(grads[name], tensor.grad.numpy())


def close(actual, expected, rtol=1e-11):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=rtol * np.abs(expected).max())


def morlet_arrays(seed, centre=False):
    """Pairs on both sides of the cap (1.09), the floor (-6.9) and omega sigma = 5, near none."""
    rng = np.random.default_rng(seed)
    arrays = {"log_omega": [-0.5, 0.3, 0.8, 1.5, 0.1], "log_sigma": [0.9, 2.1, 0.4, 1.2, -8.0]}
    arrays = {name: array + rng.uniform(-0.1, 0.1, N) for name, array in arrays.items()}
    return arrays | ({"centre": rng.uniform(0, T, N)} if centre else {})


# ------------------------------------------------------------------------------------- the registry


def test_registry_tells_the_truth_about_every_module():
    for name, position in POSITIONS.items():
        assert position.name == name and position.summary.endswith(".")
        assert position.kind in ("embedding", "rotation", "bias", "none")
        if position.module is not None:
            signature = inspect.signature(position.module.forward).parameters
            assert position.arguments.keys() <= signature.keys()
            where = ("start", "dtype", "align")   # facts about the call, not about the encoding
            options = {n: p.default for n, p in signature.items()
                       if p.kind is p.KEYWORD_ONLY and n not in where}
            assert defaults(position.options) == options


# ------------------------------------------------------------------------------------------ learned


@pytest.mark.parametrize("seed", SEEDS)
def test_learned_gradient(seed):
    weight = np.random.default_rng(seed).standard_normal((11, 5))
    forward = lambda weight: learned.forward(7, weight, start=3)
    check_gradient(forward, learned.backward, {"weight": weight}, seed)


def test_learned_torch(refs):
    weight = np.random.default_rng(0).standard_normal((11, 5))
    check_torch(lambda weight: refs.positions.learned(7, weight, start=3),
                lambda weight: learned.forward(7, weight, start=3), learned.backward,
                {"weight": weight})


def test_learned_gives_a_copy():
    weight = np.ones((11, 5))
    pe, _ = learned.forward(7, weight)
    pe += 1
    assert (weight == 1).all()


# --------------------------------------------------------------------------------------- sinusoidal


@pytest.mark.parametrize("C", (10, 11))
def test_sinusoidal_is_the_papers_formula(C):
    pe, cache = sinusoidal.forward(7, C, base=500.0, start=3)
    for t in range(7):
        for c in range(C):
            wave = np.cos if c % 2 else np.sin
            assert pe[t, c] == pytest.approx(wave((3 + t) / 500.0 ** ((c - c % 2) / C)), abs=1e-15)
    assert sinusoidal.backward(np.ones_like(pe), cache) == {}


# ------------------------------------------------------------------------------------------- rotary


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("seed", SEEDS)
def test_rotary_gradient(seed, pairs):
    x = np.random.default_rng(seed).standard_normal((B, H, T, D))
    forward = lambda x: rotary.forward(x, base=100.0, start=5, pairs=pairs)
    check_gradient(forward, rotary.backward, {"x": x}, seed)


@pytest.mark.parametrize("pairs", PAIRS)
def test_rotary_is_the_papers_matrix(pairs):
    x = np.random.default_rng(0).standard_normal((T, D))
    y, _ = rotary.forward(x, base=100.0, start=5, pairs=pairs)
    for t in range(T):
        R = np.zeros((D, D))
        for k in range(D // 2):
            a, b = (2 * k, 2 * k + 1) if pairs == "interleaved" else (k, k + D // 2)
            angle = (5 + t) * 100.0 ** (-2 * k / D)
            R[a, a], R[a, b] = np.cos(angle), -np.sin(angle)
            R[b, a], R[b, b] = np.sin(angle), np.cos(angle)
        np.testing.assert_allclose(y[t], R @ x[t], rtol=0, atol=1e-14)


@pytest.mark.parametrize("pairs", PAIRS)
def test_rotary_torch(refs, pairs):
    x, options = np.random.default_rng(0).standard_normal((B, H, T, D)), {"base": 100.0, "start": 5}
    check_torch(lambda x: refs.rotary(x, pairs=pairs, **options),
                lambda x: rotary.forward(x, pairs=pairs, **options), rotary.backward, {"x": x})


@pytest.mark.parametrize("pairs", PAIRS)
def test_rotary_scores_depend_on_the_distance_only(pairs):
    q, k = np.random.default_rng(0).standard_normal((2, 1, D))
    # 13 times the same
    q, k = (rotary.forward(np.repeat(x, 13, axis=0), pairs=pairs)[0] for x in (q, k))
    scores = q @ k.T
    for distance in range(-12, 13):
        diagonal = np.diagonal(scores, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=0, atol=1e-13)
    assert np.ptp(scores[0]) > 0.1   # and they do depend on it


def test_rotary_layouts_are_one_rotation_renumbered():
    x = np.random.default_rng(0).standard_normal((B, H, T, D))
    # 0, D/2, 1, D/2 + 1, ...: half -> interleaved
    order = np.arange(D).reshape(2, D // 2).T.ravel()
    half, _ = rotary.forward(x, pairs="half")
    interleaved, _ = rotary.forward(x[..., order], pairs="interleaved")
    assert np.array_equal(half[..., order], interleaved)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("pairs", PAIRS)
def test_rotary_does_not_mind_strides(pairs, dtype):
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((B, T, 3 * H * D + 1)).astype(dtype)[..., 1:]   # pairs not aligned
    base = rng.standard_normal((D, H, T, B)).astype(dtype)
    views = {
        "a slice of qkv": qkv.reshape(B, T, 3, H, D)[:, :, 1].transpose(0, 2, 1, 3),
        "channels first": base.transpose(3, 1, 2, 0),
        "backwards": base.transpose(3, 1, 2, 0)[..., ::-1],
        "the same for all heads": np.broadcast_to(base.reshape(B, H, T, D)[:, :1], (B, H, T, D)),
        "the same for all channels": np.broadcast_to(base.reshape(B, H, T, D)[..., :1],
                                                     (B, H, T, D)),
        "overlapping": np.lib.stride_tricks.sliding_window_view(base.ravel()[:T + D - 1], D),
    }
    for name, view in views.items():
        before = view.copy()
        y, cache = rotary.forward(view, start=3, pairs=pairs)
        contiguous, _ = rotary.forward(np.ascontiguousarray(view), start=3, pairs=pairs)
        np.testing.assert_allclose(y, contiguous, rtol=0, atol=4 * np.finfo(dtype).eps,
                                   err_msg=name)
        dx = rotary.backward(view, cache)["x"]
        back, _ = rotary.forward(dx, start=3, pairs=pairs)
        np.testing.assert_allclose(back, view, rtol=0, atol=20 * np.finfo(dtype).eps, err_msg=name)
        assert np.array_equal(view, before) and y.dtype == dx.dtype == dtype, name
    y, _ = rotary.forward(views["a slice of qkv"], pairs=pairs)
    assert y.transpose(0, 2, 1, 3).flags.c_contiguous


def test_rotary_table_cannot_be_spoiled():
    x = np.ones((T, D))
    y, cache = rotary.forward(x)
    with pytest.raises(ValueError):
        cache.rotation[:] = 0
    y[:] = 0
    assert not (rotary.forward(x)[0] == 0).any()
    assert rotary.forward(x)[1].rotation is cache.rotation


def test_rotary_float32_angles_are_exact_far_out():
    far = rotary.forward(np.ones((1, D), np.float32), start=10**6)[0]
    np.testing.assert_allclose(far, rotary.forward(np.ones((1, D)), start=10**6)[0], atol=3e-7)


# -------------------------------------------------------------------------------------------- decay


@pytest.mark.parametrize("align", ("end", "start"))
def test_decay_is_the_papers_formula(align):
    slopes = np.random.default_rng(0).uniform(0.1, 1, 3)
    bias, _ = decay.forward(5, 7, slopes, align=align)
    for h in range(3):
        for i in range(5):
            for j in range(7):
                assert bias[h, i,
                            j] == pytest.approx(-((i + 2 if align == "end" else i) - j) * slopes[h])


@pytest.mark.parametrize("align", ("end", "start"))
@pytest.mark.parametrize("seed", SEEDS)
def test_decay_gradient(seed, align):
    slopes = np.random.default_rng(seed).uniform(0.1, 1, 3)
    forward = lambda slopes: decay.forward(5, 7, slopes, align=align)
    check_gradient(forward, decay.backward, {"slopes": slopes}, seed)


@pytest.mark.parametrize("align", ("end", "start"))
def test_decay_torch(refs, align):
    slopes = np.random.default_rng(0).uniform(0.1, 1, 3)
    check_torch(lambda slopes: refs.decay_bias(5, 7, slopes, align=align),
                lambda slopes: decay.forward(5, 7, slopes, align=align), decay.backward,
                {"slopes": slopes})


@pytest.mark.parametrize("dtype, tolerance", ((np.float64, 1e-14), (np.float32, 1e-5)))
def test_decay_tiles_make_up_the_whole(dtype, tolerance):
    rng = np.random.default_rng(0)
    slopes, ds = rng.uniform(0.1, 1,
                             3).astype(dtype), rng.standard_normal((2, 3, 11, 13)).astype(dtype)
    whole, cache = decay.forward(11, 13, slopes)
    tiles, p = decay.DecayBias(slopes), np.arange(11) + 2
    accumulator = tiles.gradient()
    kept = accumulator["slopes"]
    assert not kept.any()
    for batch in (slice(0, 1), slice(1, 2)):
        for rows in (slice(0, 4), slice(4, 11)):
            for keys in (slice(0, 7), slice(7, 8), slice(8, 13)):
                at, j = p[rows], np.arange(keys.start, keys.stop)
                tile = tiles.tile(batch, slice(0, 3), at, j)
                assert tile.shape == (1, 3, len(at), len(j))
                assert tile.dtype == dtype and np.array_equal(tile[0], whole[:, rows, keys])
                tiles.tile_backward(ds[batch, :, rows, keys], batch, slice(0, 3), at, j,
                                    accumulator)
    assert accumulator["slopes"] is kept and kept.dtype == dtype   # added in place
    close(kept, decay.backward(ds.sum(axis=0), cache)["slopes"], tolerance)


def test_alibi_slopes():
    # the paper's example
    assert np.array_equal(decay.alibi_slopes(8), [2.0**-h for h in range(1, 9)])
    np.testing.assert_allclose(np.log2(decay.alibi_slopes(3)), [-8 / 3, -16 / 3, -8])


# ------------------------------------------------------------------------------------------- morlet


@pytest.mark.parametrize("centre", (False, True))
@pytest.mark.parametrize("admissible", (False, True))
@pytest.mark.parametrize("seed", SEEDS)
def test_morlet_gradient(seed, admissible, centre):
    forward = lambda **arrays: morlet.forward(T, **arrays, admissible=admissible, start=1)
    check_gradient(forward, morlet.backward, morlet_arrays(seed, centre), seed)


@pytest.mark.parametrize("admissible", (False, True))
def test_morlet_is_the_published_formula(admissible):
    log_omega, log_sigma = np.array([0.0, 0.0, 1.5, 1.5, 0.0]), np.log([4.9, 5.1, 9.0, 1.0, 1e-4])
    pe, _ = morlet.forward(T, log_omega, log_sigma, admissible=admissible)
    clamped = (1.0, 4.9), (1.0, 5.1), (0.95 * np.pi, 9.0), (0.95 * np.pi, 1.0), (1.0, 1e-3)
    for k, (omega, sigma) in enumerate(clamped):
        if admissible and omega * sigma < 5:
            omega = 5 / sigma
        for p in range(T):
            bell = np.exp(-(p**2) / (2 * sigma**2))
            assert pe[p, 2 * k] == pytest.approx(np.cos(omega * p) * bell, abs=1e-14)
            assert pe[p, 2 * k + 1] == pytest.approx(np.sin(omega * p) * bell, abs=1e-14)


@pytest.mark.parametrize("centre", (False, True))
@pytest.mark.parametrize("admissible", (False, True))
def test_morlet_torch(refs, admissible, centre):
    options = {"length": T, "start": 1, "admissible": admissible}
    check_torch(lambda **tensors: refs.morlet(**tensors, **options),
                lambda **arrays: morlet.forward(**arrays, **options), morlet.backward,
                morlet_arrays(0, centre))


def morlet_gradients(log_omega, log_sigma, **options):
    pe, cache = morlet.forward(T, np.array(log_omega), np.array(log_sigma), **options)
    return morlet.backward(np.random.default_rng(0).standard_normal(pe.shape), cache)


def test_morlet_clamps_stop_gradients():
    #                           free  capped  floored  both
    log_omega, log_sigma = [0.5, 1.5, 0.5, 1.5], [1.5, 1.5, -8.0, -8.0]
    centre = np.full(4, 2.0)   # so that the narrow bells stand on a position with a wave of its own
    grads = morlet_gradients(log_omega, log_sigma, admissible=False, centre=centre)
    assert np.array_equal(grads["log_omega"] != 0, [True, False, True, False])
    assert np.array_equal(grads["log_sigma"][2:], [0, 0]) and (grads["log_sigma"][:2] != 0).all()
    omega, sigma, product = morlet.effective(np.array(log_omega), np.array(log_sigma),
                                             admissible=False)
    assert omega[1] == omega[3] == 0.95 * np.pi and sigma[2] == sigma[3] == 1e-3
    assert np.array_equal(product, omega * sigma)


def test_morlet_clamps_let_gradients_pass_at_equality(monkeypatch):
    monkeypatch.setattr(morlet, "MAX_OMEGA", 1.0)   # e^0 = 1 exactly
    monkeypatch.setattr(morlet, "MIN_SIGMA", 1.0)
    grads = morlet_gradients([0.0, 1e-9], [0.0, -1e-9], admissible=False)
    assert grads["log_omega"][0] != 0 and grads["log_omega"][1] == 0
    assert grads["log_sigma"][0] != 0 and grads["log_sigma"][1] == 0
    monkeypatch.setattr(morlet, "MIN_PRODUCT", 1.0)   # omega sigma = 1: nothing to project either
    assert np.array_equal(morlet_gradients([0.0, -1e-9], [0.0, 0.0])["log_omega"] != 0,
                          [True, False])


def test_morlet_torch_at_equality(refs, monkeypatch):
    """As torch.clamp: at the bound itself, the gradient passes."""
    import torch
    monkeypatch.setattr(morlet, "MAX_OMEGA", 1.0)
    monkeypatch.setattr(morlet, "MIN_SIGMA", 1.0)

    def literal(log_omega, log_sigma):
        """The reference, its own bounds out of reach"""
        return refs.morlet(T, torch.exp(log_omega).clamp(max=1).log(),
                           torch.exp(log_sigma).clamp(min=1).log(), admissible=False)

    arrays = {"log_omega": np.array([0.0, 1e-9]), "log_sigma": np.array([0.0, -1e-9])}
    check_torch(literal, lambda **a: morlet.forward(T, **a, admissible=False), morlet.backward,
                arrays)


def test_morlet_admissibility_hands_the_gradient_to_sigma():
    log_omega, log_sigma = np.array([0.2, 0.2]), np.array([0.7, 2.0])   # products 2.5, 9.0
    omega, sigma, product = morlet.effective(log_omega, log_sigma)
    assert product[0] < 5 and omega[0] == 5 / sigma[0]
    assert omega[0] * sigma[0] == pytest.approx(5, abs=1e-14)
    assert product[1] > 5 and omega[1] == np.exp(0.2)
    grads = morlet_gradients(log_omega, log_sigma)
    free = morlet_gradients(np.log(omega), log_sigma, admissible=False)
    assert grads["log_omega"][0] == 0
    assert grads["log_omega"][1] == pytest.approx(free["log_omega"][1])
    # log omega = log 5 - log sigma
    expected = free["log_sigma"] - np.array([free["log_omega"][0], 0])
    np.testing.assert_allclose(grads["log_sigma"], expected, rtol=1e-12)


def test_morlet_wide_bells_are_sinusoids():
    log_omega = np.random.default_rng(0).uniform(-2, 1, N)
    pe, cache = morlet.forward(T, log_omega, np.full(N, 25.0), start=3)
    angle = (3 + np.arange(T))[:, None] * np.exp(log_omega)
    np.testing.assert_allclose(pe[:, 0::2], np.cos(angle), atol=1e-15)
    np.testing.assert_allclose(pe[:, 1::2], np.sin(angle), atol=1e-15)
    distance = np.arange(T)[:, None] - np.arange(T)
    # RoPE's: relative, not absolute
    kernel = np.cos(np.exp(log_omega) * distance[..., None]).sum(axis=-1)
    np.testing.assert_allclose(pe @ pe.T, kernel, atol=1e-13)


def test_morlet_centre_moves_the_bell_only():
    arrays = morlet_arrays(0)
    zero = morlet.forward(T, **arrays, centre=np.zeros(N))[0]
    assert np.array_equal(zero, morlet.forward(T, **arrays)[0])
    pe = morlet.forward(T, **arrays, centre=np.full(N, 3.0))[0]
    amplitude = np.hypot(pe[:, 0::2], pe[:, 1::2])
    np.testing.assert_allclose(amplitude[3], 1, rtol=1e-14)
    np.testing.assert_allclose(amplitude[4], amplitude[2], rtol=1e-14)
    np.testing.assert_allclose(pe[3, 0::2], np.cos(3 * morlet.effective(**arrays)[0]), atol=1e-13)


def test_morlet_initial_is_as_published():
    log_omega, log_sigma = morlet.initial(64)
    omega, sigma = np.exp(log_omega), np.exp(log_sigma)
    assert omega[0] == 1 and omega[-1] == pytest.approx(0.99 * np.pi)
    assert log_omega.dtype == np.float64
    np.testing.assert_allclose(np.diff(log_omega), np.log(0.99 * np.pi) / 63)
    np.testing.assert_allclose(omega * sigma, 5)
    pe, _ = morlet.forward(21, log_omega, log_sigma)
    strength = np.sqrt((pe**2).sum(axis=1) / 64)   # root mean square amplitude of the pairs
    np.testing.assert_allclose(strength[[0, 1, 5, 10, 20]], [1, 0.93, 0.31, 0.042, 6.2e-5],
                               rtol=0.02)


def test_morlet_survives_extreme_widths():
    for log_sigma in (-700.0, 80.0, 700.0):
        grads = morlet_gradients([0.3], [log_sigma])
        assert all(np.isfinite(grad).all() for grad in grads.values()), log_sigma


# --------------------------------------------------------------------------- what all of them share


ENCODED = [text for row in POSITIONS.values() if row.kind in ("embedding", "rotation")
           for text in gpt_cases.settings(row, row.options)]
X = np.random.default_rng(7).standard_normal((23, D))


def encode(text, length, start, dtype):
    """What a config's position gives for some positions -> output, cache, backward"""
    config = model.Config(block_size=23, n_layer=1, n_head=1, n_embd=D, position=text)
    (row, options), = layers.positions(config)
    module = row.module
    if row.kind == "rotation":
        x = X[start:start + length].astype(dtype)
        return *module.forward(x, start=start, **options), module.backward
    params, prefix = gpt_cases.inputs(config)[0], f"position.{row.name}."
    arrays = {name.removeprefix(prefix): a.astype(dtype) for name, a in params.items()
              if name.startswith(prefix)}
    return *module.embed(length, D, dtype, start, **{**options, **arrays}), module.backward


@pytest.mark.parametrize("case", ENCODED)
def test_start_continues_where_the_prefix_ended(case):
    whole, _, _ = encode(case, 23, 0, np.float64)
    for start, length in ((0, 5), (5, 17), (22, 1), (11, 0)):
        part, _, _ = encode(case, length, start, np.float64)
        np.testing.assert_allclose(part, whole[start:start + length], rtol=0, atol=1e-15)


@pytest.mark.parametrize("case", ENCODED)
def test_float32_stays_float32(case):
    # a NumPy integer must not promote
    single, cache, backward = encode(case, T, np.int64(3), np.float32)
    double, cache64, _ = encode(case, T, 3, np.float64)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=2e-5)
    cotangent = np.random.default_rng(0).standard_normal(single.shape)
    grads, grads64 = backward(cotangent.astype(np.float32), cache), backward(cotangent, cache64)
    for name, grad in grads.items():
        assert grad.dtype == np.float32, name
        np.testing.assert_allclose(grad, grads64[name], atol=2e-4)


def test_float32_decay():
    bias, cache = decay.forward(5, 7, decay.alibi_slopes(3).astype(np.float32))
    assert bias.dtype == decay.backward(bias, cache)["slopes"].dtype == np.float32


F = np.ones(3)
NAN = np.array([1.0, np.nan, 1.0])


@pytest.mark.parametrize("call, words", (
    (lambda: learned.forward(8, np.ones((11, 5)), start=4),
     ("weight", "axis 0", "block_size", "12", "11")),
    (lambda: learned.forward(-1, np.ones((11, 5))), ("length", "-1")),
    (lambda: learned.forward(2, np.ones((11, 5)), start=-1), ("start", "-1")),
    (lambda: learned.forward(2, np.ones(11)), ("weight", "block_size, C", "(11,)")),
    (lambda: learned.forward(2, np.ones((11, 5), int)), ("weight", "float32", "int64")),
    (lambda: learned.forward(2, NAN[:, None]), ("weight", "finite", "nan")),
    (lambda: sinusoidal.forward(-1, 4), ("length", "-1")),
    (lambda: sinusoidal.forward(2, 0), ("n_embd", "0")),
    (lambda: sinusoidal.forward(2, 4, base=0), ("base", "0")),
    (lambda: sinusoidal.forward(2, 4, dtype=int), ("dtype", "float32", "int64")),
    (lambda: rotary.forward(np.ones((2, 7))), ("x", "axis -1", "D", "even", "7")),
    (lambda: rotary.forward(np.ones((2, 6), int)), ("x", "float32", "int64")),
    (lambda: rotary.forward(np.ones(6)), ("x", "(..., T, D)", "(6,)")),
    (lambda: rotary.forward([[1.0, 2.0]]), ("x", "array", "list")),
    (lambda: rotary.forward(np.ones((2, 6)), pairs="halves"), ("pairs", "interleaved", "'halves'")),
    (lambda: rotary.forward(np.ones((2, 6)), base=-1.0), ("base", "-1.0")),
    (lambda: rotary.forward(np.ones((2, 6)), start=0.5), ("start", "integer", "0.5")),
    (lambda: decay.alibi_slopes(0), ("n_head", "0")),
    (lambda: decay.forward(-1, 3, F), ("Tq", "-1")),
    (lambda: decay.forward(3, -1, F), ("Tk", "-1")),
    (lambda: decay.forward(3, 3, F, align="middle"), ("align", "end", "start", "'middle'")),
    (lambda: decay.forward(3, 3, np.ones((3, 1))), ("slopes", "(H)", "(3, 1)")),
    (lambda: decay.forward(3, 3, NAN), ("slopes", "finite", "(1,)", "nan")),
    (lambda: decay.DecayBias(np.ones(3, int)), ("slopes", "float32", "int64")),
    (lambda: decay.DecayBias(NAN), ("slopes", "finite", "nan")),
    (lambda: morlet.forward(-1, F, F), ("length", "-1")),
    (lambda: morlet.forward(3, F, np.ones(4)), ("log_sigma", "axis 0", "3", "log_omega", "4")),
    (lambda: morlet.forward(3, np.ones(3, int), F), ("log_omega", "float32", "int64")),
    (lambda: morlet.forward(3, F, F.astype(np.float32)),
     ("log_sigma", "float32", "log_omega", "float64")),
    (lambda: morlet.forward(3, NAN, F), ("log_omega", "finite", "nan")),
    (lambda: morlet.forward(3, F, NAN), ("log_sigma", "finite", "nan")),
    (lambda: morlet.forward(3, F, F, centre=np.ones(4)),
     ("centre", "axis 0", "3", "log_omega", "4")),
    (lambda: morlet.forward(3, F, F, centre=NAN), ("centre", "finite", "nan")),
    (lambda: morlet.forward(3, F, F, start=1.0), ("start", "integer", "1.0")),
    (lambda: morlet.initial(0), ("n", "0")),
))
def test_errors_say_what_came_and_what_was_expected(call, words):
    with pytest.raises(InputError) as caught:
        call()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
