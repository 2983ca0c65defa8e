"""Random calls of public functions: right arguments, of which one or two are mutated.

A call must raise InputError or give a right answer. Where a mutation leaves the mathematics as it
was (another integer type, other strides), the answer must be the one without the mutation.
"""
import warnings
from itertools import islice
from typing import NamedTuple

import numpy as np

from minattn import checks, data, generate, masks, model, muon, ops, optim
from minattn.attention import MECHANISMS, affine
from minattn.errors import InputError
from minattn.positions import decay, learned, morlet, rotary, sinusoidal

B, H, Tq, Tk, D, DV, N, C, V = 2, 3, 5, 7, 4, 6, 5, 4, 11
SIZES = {"B": B, "H": H, "G": H, "Gv": H, "Tq": Tq, "Tk": Tk, "T": Tk, "D": D, "Dv": DV, "Dv|1": DV}
INTEGERS = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64)
CONFIG = model.Config(vocab_size=V, block_size=6, n_layer=1, n_head=2, n_embd=8, dropout=0.1)
PARAMS, BUFFERS = model.init(CONFIG)


class Tensor:
    """What looks like an array of another library"""
    ndim, shape, dtype = 4, (B, H, Tq, D), "torch.float32x"


class Call(NamedTuple):
    name: str
    function: object
    arguments: dict


def calls(rng):
    """Every function, with arguments that are right: a list of Call. Backwards take gradients."""
    r = rng.standard_normal
    ids, x = rng.integers(0, V, N), r((N, C))
    tokens = rng.integers(0, V, (2, 5))
    options = {"scale": 0.5, "window": 3, "prefix": 2, "align": "end", "causal": True,
               "bias": r((H, Tq, Tk)), "allowed": rng.random((B, 1, 1, Tk)) < 0.8, "dropout": 0.0,
               "softcap": 3.0, "log_length": r(H), "rng": np.random.default_rng(0)}
    made = []

    def add(name, function, **arguments):
        made.append(Call(name, function, arguments))

    def pair(name, forward, backward, gradient="dy", **arguments):
        add(f"{name} forward", lambda **a: forward(**a)[0], **arguments)
        y, cache = forward(**arguments)
        dy = r(np.shape(y)) if np.ndim(y) else 0.5
        add(f"{name} backward", lambda **a: backward(*a.values(), cache), **{gradient: dy})

    for name, row in MECHANISMS.items():
        arrays = {n: r([checks.extent(s, SIZES) for s in shape.split()])
                  for n, shape in row.arguments.items()}
        some = {n: v for n, v in options.items() if rng.random() < 0.5}
        if "q" not in arrays:
            some = {n: v for n, v in some.items() if n not in ("bias", "allowed")}
        some = {n: v for n, v in some.items() if n not in row.refuses}
        pair(name, row.module.forward, row.module.backward, "dout", **arrays, **some)
    pair("linear", ops.linear_forward, ops.linear_backward, x=x, weight=r((C, 3)), bias=r(3))
    pair("layer_norm", ops.layer_norm_forward, ops.layer_norm_backward, x=x, weight=r(C), bias=r(C),
         eps=1e-5)
    pair("rms_norm", ops.rms_norm_forward, ops.rms_norm_backward, x=x, eps=1e-6)
    pair("gelu", ops.gelu_forward, ops.gelu_backward, x=x, form="exact")
    pair("embedding", ops.embedding_forward, ops.embedding_backward, ids=ids, weight=r((V, C)))
    pair("dropout", ops.dropout_forward, ops.dropout_backward, x=x, p=0.25,
         rng=np.random.default_rng(0))
    pair("cross_entropy", ops.cross_entropy_forward, ops.cross_entropy_backward, "dloss",
         logits=r((N, V)), targets=ids)
    pair("learned", learned.forward, learned.backward, length=3, weight=r((8, C)), start=2)
    pair("sinusoidal", sinusoidal.forward, sinusoidal.backward, length=3, n_embd=5, base=100.0,
         start=2)
    pair("rotary", rotary.forward, rotary.backward, x=r((2, 5, 4)), base=100.0, start=3,
         pairs=str(rng.choice(["half", "interleaved"])))
    pair("decay", decay.forward, decay.backward, Tq=4, Tk=5, slopes=r(3), align="end")
    pair("morlet", morlet.forward, morlet.backward, length=5, log_omega=r(3), log_sigma=r(3),
         admissible=True, centre=r(3), start=1)
    add("slopes", decay.alibi_slopes, n_head=3)
    add("morlet initial", morlet.initial, n=4)
    add("visible", masks.visible, Tq=Tq, Tk=Tk, causal=True, window=3, prefix=2, align="end")
    add("moving average", affine.update_moving_average, alpha_ma=r(H), alpha_logits=r((B, H, Tq)),
        phi="sigmoid", momentum=0.9, axes="head")
    add("learning rate", optim.learning_rate, step=3, lr=0.1, min_lr=0.01, warmup=2, steps=9)
    add("clip", optim.clip_factor, norm=3.0, clip=1.0)
    add("orthogonalise", muon.orthogonalise, u=r((3, 4)), steps=5)
    add("config", model.Config, vocab_size=V, block_size=6, n_layer=1, n_head=2, n_embd=8,
        dropout=0.1, gelu="exact", attention="energy[norm=prefix]", position="rope[base=100]",
        window=3)
    add("init", lambda **a: model.init(CONFIG, **a)[0]["wte.weight"], seed=3, dtype=np.float64)
    add("model", lambda **a: model.forward(PARAMS, config=CONFIG, buffers=BUFFERS, **a)[:2],
        tokens=tokens, targets=tokens, rng=np.random.default_rng(0))
    cache = model.forward(PARAMS, tokens, CONFIG, targets=tokens)[2]
    add("model backward", lambda **a: model.backward(cache, CONFIG, **a), dloss=1.0)
    add("model dlogits", lambda **a: model.backward(cache, CONFIG, **a),
        dlogits=r((2, 5, V)).astype(np.float32))
    add("stream", lambda **a: list(islice(generate.stream(PARAMS, BUFFERS, CONFIG, **a), 50)),
        prompt=ids, n_tokens=2, temperature=0.5, top_k=3, seed=1)
    add("batch", data.batch, ids=ids, batch_size=2, block_size=3, seed=1, step=2)
    add("blocks", data.blocks, ids=ids, block_size=2)
    add("split", data.split, ids=ids, val_fraction=0.2)
    return made


def mutation(name, value, rng):
    """-> another value, and whether the answer must stay as it was"""
    def one(options):
        return options[rng.integers(len(options))]
    anything = (None, "x", 1.5, [1.0], b"half", object, {}, 10**400, np.float64("nan"), 1j,
                Tensor())
    if isinstance(value, np.ndarray):
        if rng.random() < 0.3:
            return one((np.asfortranarray(value), _reversed(value), _readonly(value))), True
        if value.dtype.kind == "i" and rng.random() < 0.4:
            return value.astype(one(INTEGERS)), True
        return one((value.astype(np.float16), value.astype(complex), value.astype(object),
                    value.astype(value.dtype.newbyteorder()), value.astype(np.longdouble),
                    np.ma.masked_array(value, mask=value != value[..., :1]), value.astype(str),
                    value[None], value[..., None], value[:0], value[..., :0], value[..., :-1],
                    np.concatenate([value, value]), value[0], value.astype(np.int8), value.tolist(),
                    -value if value.dtype.kind == "i" else value.astype(bool),
                    _matrix(value),
                    value.astype(np.float32) if value.dtype == np.float64 else value.astype("f8"),
                    *anything)), False
    if isinstance(value, bool):
        return one((1, "True", np.array(True), *anything)), False
    if isinstance(value, int):
        if rng.random() < 0.5:
            return one(INTEGERS)(value), True
        return one((-1, 0, True, 2**31, 2**62, 2**63 - 1, 2**63, -2**63, np.array(value), 10**30,
                    float(value), np.uint64(2**64 - 1), np.timedelta64(3), np.float32(value),
                    *anything)), False
    if isinstance(value, float):
        if rng.random() < 0.3:
            return one((np.float64(value), np.longdouble(value))), True
        return one((0.0, -1.0, np.inf, -np.inf, 1e308, 5e-324, True, 0, np.array(value), "0.5",
                    *anything)), False
    return one((3, "", "None", np.array([1, 2]), ["half"], *anything)), False


def _matrix(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asmatrix(x) if x.ndim == 2 else x.ravel()


def _reversed(x):
    return x[::-1].copy()[::-1]


def _readonly(x):
    x = x.copy()
    x.flags.writeable = False
    return x


def attempt(rng, known):
    """One of these calls with a mutation -> a sentence about what is wrong, or None."""
    call = known[rng.integers(len(known))]
    names = list(call.arguments)
    name = names[rng.integers(len(names))]
    with np.errstate(all="ignore"):
        value, same = mutation(name, call.arguments[name], rng)
    return judge(call, {name: value}, same)


def judge(call, mutated, same):
    name, value = next(iter(mutated.items()))
    said = f"{call.name}: {name} = {_about(value)}"
    fresh = {n: np.random.default_rng(0) if isinstance(v, np.random.Generator) else v
             for n, v in call.arguments.items()}
    try:
        answer = call.function(**{**fresh, **mutated})
    except InputError as error:
        if same:
            return f"{said} is refused: {error}"
        return None if str(error).strip() and len(str(error)) < 1000 else f"{said}: no sentence"
    except Exception as error:
        return f"{said}: {type(error).__name__}: {str(error)[:80]}"
    if not same:
        return None if allowed(call, name, value) else f"{said} is taken"
    fresh.update((n, np.random.default_rng(0)) for n, v in fresh.items()
                 if isinstance(v, np.random.Generator))
    right = call.function(**fresh)
    with np.errstate(all="ignore"):
        same = equal(answer, right)
    if not same:
        return f"{said} gives another answer"
    return None


def allowed(call, name, value):
    """May a value of this kind be taken where the right one stood?"""
    right = call.arguments[name]
    if isinstance(value, np.ma.MaskedArray | np.matrix | Tensor) or isinstance(value, complex):
        return False
    if call.name == "embedding backward":                # its cache knows ids, but no dtype
        return type(value) is np.ndarray and value.shape == right.shape
    if isinstance(right, np.ndarray) and "backward" in call.name:
        same = np.shape(value) == right.shape and value.dtype == right.dtype
        return type(value) is np.ndarray and same
    if isinstance(right, int) and not isinstance(right, bool) and value is not None:
        return isinstance(value, int | np.integer | np.floating)
    return True


def equal(x, y):
    """The same numbers, to rounding: strides decide how sums are grouped."""
    if isinstance(x, dict):
        return all(equal(x[n], y[n]) for n in x)
    if isinstance(x, tuple | list):
        return len(x) == len(y) and all(map(equal, x, y))
    if isinstance(x, np.ndarray | float):
        close = dict(rtol=1e-5, atol=1e-6, equal_nan=True)
        return np.shape(x) == np.shape(y) and np.allclose(x, y, **close)
    return x == y


def _about(value):
    if isinstance(value, np.ndarray):
        return checks.kind(value)
    return f"{type(value).__name__} {checks.shown(value)}"
