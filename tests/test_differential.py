"""Differential attention and collaborative heads: what only they promise."""
import threading

import numpy as np
import pytest
from attention_cases import MASKS, VARIANTS, assert_close, inputs, options_of, run

from minattn import model
from minattn.attention import collaborative, differential, differential_1, softmax, versioned
from minattn.errors import InputError
from minattn.layers import layers

SIZES = dict(vocab_size=19, block_size=11, n_layer=2, n_head=3, n_embd=36)
every_mask = pytest.mark.parametrize("mask", MASKS)


def arrays_of(name, mask=None):
    return inputs(VARIANTS[name], mask), options_of(VARIANTS[name], mask or "none")


# ---------------------------------------------------------------------------------------- version 2


@every_mask
def test_the_second_map_is_subtracted(mask):
    """Both maps by themselves, in softmax attention; equal maps leave 1 - lambda of one."""
    arrays, options = arrays_of("differential", mask)
    q, k, v, logits = arrays.values()
    first, second = (softmax.forward(q[:, i::2], k, v, **options)[0] for i in (0, 1))
    lam = 1 / (1 + np.exp(-logits[..., None]))
    out, _, weights = differential.forward(**arrays, **options, return_weights=True)
    np.testing.assert_allclose(out, first - lam * second, rtol=0, atol=1e-14)
    sums = np.where((weights != 0).any(axis=3), 1 - lam[..., 0], 0)
    np.testing.assert_allclose(weights.sum(axis=3), sums, rtol=0, atol=1e-13)
    q[:, 1::2] = q[:, 0::2]
    np.testing.assert_allclose(differential.forward(**arrays, **options)[0], (1 - lam) * first,
                               rtol=0, atol=1e-14)


def test_a_pair_reads_one_group():
    """One head of keys and values serves all three pairs, as if it were there three times."""
    arrays, options = arrays_of("differential", "causal")
    grouped = {**arrays, "k": arrays["k"][:, :1], "v": arrays["v"][:, :1]}
    repeated = {**arrays, **{key: grouped[key].repeat(3, axis=1) for key in "kv"}}
    ours = run(VARIANTS["differential"], grouped, **options)
    theirs = run(VARIANTS["differential"], repeated, **options)
    for key in ("dk", "dv"):
        theirs[key] = theirs[key].sum(axis=1, keepdims=True)
    assert_close(ours, theirs, 1e-13)


def test_pairs_are_made_of_an_even_number_of_heads():
    arrays, _ = arrays_of("differential")
    with pytest.raises(InputError, match=r"q: axis 1 \(2H\) must be 4; got 5"):
        differential.forward(**{**arrays, "q": arrays["q"][:, :5]})


def test_a_generator_that_is_none():
    arrays, _ = arrays_of("differential")
    with pytest.raises(InputError, match="rng must be a numpy.random.Generator"):
        differential.forward(**arrays, dropout=0.5, rng=threading.Lock())


# ---------------------------------------------------------------------------------------- version 1


def test_lambda_init():
    """The values of the paper, layers from 0."""
    found = [differential_1.lambda_init(layer) for layer in range(6)]
    np.testing.assert_allclose(found, [0.2, 0.356, 0.471, 0.556, 0.619, 0.666], atol=5e-4)


def test_one_visible_key_hides_lambda():
    """The norm undoes 1 - lambda, until that is as small as the root of its epsilon."""
    arrays, _ = arrays_of("differential_1", "window1")
    zero = {key: 0 * arrays[key] for key in differential_1.LAMBDAS}

    def out(lam):
        """lambda = exp(lq1 . lk1) - 1 + 0.2"""
        lq1, lk1 = np.zeros((2, len(arrays["lam_q1"])))
        lq1[0], lk1[0] = 1, np.log(lam + 0.8)
        given = {**arrays, **zero, "lam_q1": lq1, "lam_k1": lk1, "v": 10 * arrays["v"]}
        return differential_1.forward(**given, window=1)[0]

    np.testing.assert_allclose(out(0.5), out(0.1), rtol=1e-3)
    np.testing.assert_allclose(out(1.5), -out(0.5), rtol=1e-3)         # 1 - lambda has turned
    assert abs(out(1 - 1e-9)).max() < 1e-4


def test_the_layer_gives_its_index():
    config = model.Config(**SIZES, attention="differential[version=1]")
    assert [layer.options for layer in layers(config)] == [{"layer_index": n} for n in (0, 1)]
    given = model.Config(**SIZES, attention="differential_1[layer_index=4]")
    assert [layer.options for layer in layers(given)] == [{"layer_index": 4}] * 2


def test_the_version_chooses_the_row():
    assert versioned("differential", {"version": 1, "layer_index": 2})[0].name == "differential_1"
    assert versioned("differential", {"version": 2}) == versioned("differential", {})
    with pytest.raises(InputError, match="version must be one of 2, 1; got 3"):
        model.Config(**SIZES, attention="differential[version=3]")
    with pytest.raises(InputError, match="differential has no attention option 'layer_index'"):
        model.Config(**SIZES, attention="differential[layer_index=2]")
    params = [model.init(model.Config(**SIZES, attention=text))[0]
              for text in ("differential[version=1]", "differential_1")]
    assert {name: x.shape for name, x in params[0].items()} == {
        name: x.shape for name, x in params[1].items()}


def test_widths_that_do_not_fit():
    with pytest.raises(InputError, match="have 3 channels per head; expected an even number"):
        model.Config(**{**SIZES, "n_embd": 18}, attention="differential_1", position="rope")
    with pytest.raises(InputError, match="have 0 channels per head; expected at least 1"):
        model.Config(**{**SIZES, "n_embd": 3}, attention="differential_1")
    with pytest.raises(InputError, match="have 7 channels per head; expected an even number"):
        model.Config(**SIZES, attention="collaborative[key_width=7]", position="rope")
    with pytest.raises(InputError, match="collaborative cannot group its keys"):
        model.Config(**SIZES, attention="collaborative", n_kv_head=1)


# ------------------------------------------------------------------------------ collaborative heads


@every_mask
def test_a_mix_block_by_block_is_softmax(mask):
    """Shared channels, of which each head takes its own: heads side by side."""
    arrays, options = arrays_of("softmax", mask)
    q, k, v = arrays.values()
    (B, H, _, D), Tk = q.shape, k.shape[2]
    shared = {name: x.swapaxes(1, 2).reshape(B, 1, x.shape[2], H * D)
              for name, x in (("q", q), ("k", k))}
    blocks = np.repeat(np.eye(H), D, axis=1)
    ours = collaborative.forward(**shared, v=v, mix=blocks, content=np.zeros((B, H, Tk)), **options)
    np.testing.assert_allclose(ours[0], softmax.forward(q, k, v, **options)[0], rtol=0, atol=1e-13)


def test_collaborative_has_no_scale():
    arrays, _ = arrays_of("collaborative")
    with pytest.raises(InputError, match="scale"):
        collaborative.forward(**arrays, scale=1.0)
