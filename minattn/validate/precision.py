"""How wrong may an implementation be? Twice as wrong as plain arithmetic in the same precision.

    error <= 2 * (error of plain arithmetic + eps * max|truth|)        for each tensor

Truth is minattn's own result in float64. Plain arithmetic is attention/naive.py: dense and literal,
with every result rounded to the precision, and sums taken one term after another (see
arithmetic.py).

A single run can be exact by luck, and the rule would then demand exactness of everybody. So it runs
several times more with random rounding, and the largest error counts.
"""
import math
import zlib
from typing import Any, NamedTuple

import numpy as np

from minattn.attention import naive
from minattn.attention.core import attend_backward
from minattn.validate import positions
from minattn.validate.arithmetic import FORMATS, Arithmetic, Native, blur, fits
from minattn.validate.cases import Case, draw, seen
from minattn.validate.families import KINKED

DRAWS = 16              # runs with random rounding, in each of two forms (see `plain`) ...
FEW = 4                 # ... or so many, where all their scores together would be more than ...
WORK = 1 << 18
LARGE = ("combinations", "long_decode", "faint_tiles", "forget_far")   # with cheap runs
MANY = 1 << 15          # scores: of so many the first sample serves for all, ...
MOST = 1 << 19          # ... and of so many few runs
BLOCK = 32              # terms that a cheap run adds up at once
SLACK = 2
LSE = ("softmax", "off_by_one", "sink")        # whose lse may be an output
LARGEST_LSE = 2.0**21   # beyond, its rounding in float32 alone spoils weights made from it
LOG = {"e": 1.0, "2": math.log(2)}             # of the base of an lse


def plain(case, arithmetic, *, draws=0, early=False, dlse=None):
    """The naive pair in an arithmetic -> {"out", "dq", ..., and "scores", "P", "lse", "delta"}

    draws: run so many times, side by side along a new first axis.
    early: scale the queries before their product with the keys, not the scores after it, or what
    EARLY has instead; and the backward makes the weights again (see `again`). Both are plain;
    where large terms cancel, their errors differ much.
    dlse: the gradient that comes in through lse, if one does.
    """
    def lift(x):
        return arithmetic.array(np.broadcast_to(x, (draws, *x.shape)) if draws else x)

    mechanism = positions.row(case.mechanism)
    usual = mechanism.naive_forward, mechanism.naive_backward
    forward, backward = (early and early_pair(mechanism)) or usual
    arrays = {name: lift(x) for name, x in case.arrays.items()}
    options = {name: arithmetic.array(x) for name, x in case.options.items()}
    with np.errstate(all="ignore"):
        out, cache = forward(**arrays, **options)
        core = innermost(cache)
        if dlse is not None:
            core.dlse = lift(dlse)
        weights = getattr(core, "P", None)
        if early and hasattr(core, "lse"):
            core.P = again(core, arithmetic)
        grads = backward(lift(case.cotangent), cache)
        if early and "sink" in grads:
            grads["sink"] = grads["sink"] - through_maximum(core, lift(case.cotangent))
        core.P = weights
    if overflows(cache):                                     # -inf would pass for a hidden key
        out = np.full(out.shape, np.inf)
    tensors = {"out": out, **{"d" + name: x for name, x in grads.items()}, **intermediates(cache)}
    return {name: np.asarray(x) for name, x in tensors.items()}


def overflows(cache):
    """Is the score of a key that is seen too large for the precision?"""
    core = innermost(cache)
    while not hasattr(cache, "dots") and hasattr(cache, "core"):
        cache = cache.core
    return hasattr(cache, "dots") and (np.isinf(cache.dots.dots) & core.see).any()


def again(core, arithmetic):
    """The weights from scores and log-sum-exp, as flash attention does: powers of 2, with products
    and differences that round once. Its scores are computed anew, and may be rounded otherwise
    than those in the lse. In half precision such kernels compute this in float32."""
    if FORMATS[arithmetic.dtype].wide != arithmetic.dtype or np.abs(core.lse).max() > LARGEST_LSE:
        return core.P
    s, anew = np.where(np.isfinite(core.s), core.s, 0), 0.0
    if arithmetic.rng is not None:
        anew = blur(s, arithmetic.dtype, arithmetic.rng, 4) - s
    log2_e = float(np.asarray(1 / math.log(2), arithmetic.dtype))
    exp = arithmetic.functions.get(np.exp, np.exp)
    exponent = (np.asarray(core.s) + anew) * log2_e - np.asarray(core.lse * log2_e)
    return arithmetic.array(arithmetic.round(exp(math.log(2) * exponent)))


def through_maximum(core, dout):
    """What a sink that is the largest score of its row also gets, if the maximum that is subtracted
    passes on its gradient: the row's sum of ds, 0 but for rounding."""
    ds = core.P * (dout @ naive.T(core.v) - core.delta)
    sums = ds.sum(axis=-1, keepdims=True) - core.e_sink / core.total * core.delta
    largest = (core.s <= naive.per_head(core.sink)).all(axis=-1, keepdims=True)
    return np.where(largest, sums, 0).sum(axis=(-4, -2, -1))


def intermediates(cache):
    """What lies between the scores and the weights, from the cache of `naive.weigh` -> name: array

    scores  (..., Tq, Tk), -inf where hidden      P      (..., Tq, Tk), their softmax
    lse     (..., Tq), log of its denominator     delta  (..., Tq), rowsum(P * dP)
    """
    cache = innermost(cache)
    if not hasattr(cache, "delta"):                          # a mechanism that does not use `weigh`
        return {}
    sees = cache.see.any(axis=-1) | (cache.sink is not None)
    return {"scores": cache.s, "P": cache.P, "lse": np.where(sees, cache.lse[..., 0], -np.inf),
            "delta": cache.delta[..., 0]}


def innermost(cache):
    while hasattr(cache, "core"):
        cache = cache.core
    return cache


def early_pair(mechanism):
    """The naive pair with scaled queries; what EARLY has, if anything, where no scale is taken."""
    if "scale" in mechanism.refuses:
        return EARLY.get(mechanism.name)

    def forward(q, *, scale=None, **rest):
        if scale is None:
            scale = q.shape[-1] ** -0.5
        out, cache = mechanism.naive_forward(q=q * scale, scale=1, **rest)
        return out, naive.Cache(core=cache, scale=scale)

    def backward(dout, c):
        grads = mechanism.naive_backward(dout, c.core)
        return {**grads, "q": grads["q"] * c.scale}
    return forward, backward


def gaussian_forward(x, log_sigma, *, keys=None, values=None, **options):
    """(x / sigma^2) key^T - |key|^2 / (2 sigma^2), as fast kernels do: |x|^2 cancels."""
    k = x if keys is None else keys
    v = k if values is None else values
    inv = np.exp(-2 * naive.per_head(log_sigma))
    key_bias = -0.5 * inv * (k * k).sum(axis=-1)[..., None, :]
    out, core = naive.attend(x * inv, k, v, scale=1, own_bias=key_bias, **options)
    return out, naive.Cache(**locals())


def gaussian_backward(dout, c):
    grads, ds = naive.attend_backward(dout, c.core)
    dx, dv = grads.pop("q") * c.inv, grads.pop("v")
    dk = grads.pop("k") - c.k * (c.inv * ds.sum(axis=-2)[..., None])
    grads["log_sigma"] = -2 * (ds * (c.core.dots.s + c.key_bias)).sum(axis=(-4, -2, -1))
    return {**grads, **naive.by_role(dx, dk, dv, c)}


def linear_forward(q, k, v, *, feature="elu", norm="rms", bias=None, **options):
    """(phi(q) . phi(k)) v, divided by the sum at the end, as the recurrence does."""
    if feature != "elu":
        out, core = naive.linear_forward(q, k, v, feature=feature, norm=norm, bias=bias, **options)
        return out, naive.Cache(core=core)
    phi_q, phi_k = (np.where(x > 0, x + 1, np.exp(np.minimum(x, 0))) for x in (q, k))
    keys, values = (naive.repeat(x, q.shape[-3]) for x in (phi_k, v))
    factor = naive.rows_that_see(q.shape[-2], k.shape[-2], **options).astype(float)
    if bias is not None:
        factor = np.exp(bias) * factor
    kappa = phi_q @ naive.T(keys) * factor
    total = kappa.sum(axis=-1, keepdims=True)
    total = np.where(total == 0, 1, total)
    out = kappa @ values / total
    return out, naive.Cache(**locals())


def linear_backward(dout, c):
    if hasattr(c, "core"):
        return naive.linear_backward(dout, c.core)
    dtop = dout / c.total
    dtotal = -(dtop * c.out).sum(axis=-1, keepdims=True)
    dkappa = dtop @ naive.T(c.values) + dtotal
    ddots = dkappa * c.factor
    dv = naive.sum_groups(naive.T(c.kappa) @ dtop, c.v.shape[-3])
    dk = naive.sum_groups(naive.T(ddots) @ c.phi_q, c.k.shape[-3])
    grads = {"q": ddots @ c.keys * np.minimum(c.phi_q, 1), "v": dv,
             "k": dk * np.minimum(c.phi_k, 1)}
    if c.bias is not None:
        grads["bias"] = naive.sum_to(dkappa * c.kappa, c.bias.shape)
    return grads


EARLY = {"gaussian": (gaussian_forward, gaussian_backward),
         "linear": (linear_forward, linear_backward)}


def plain_runs(case, dtype, rng, *, draws, repeats=1, portable=False, dlse=None):
    """One run rounded to nearest, then random ones, `draws` side by side, in both forms."""
    yield plain(case, Arithmetic(dtype, portable=portable), dlse=dlse)
    for early in (False, True) * repeats:
        yield plain(case, Arithmetic(dtype, rng, portable), draws=draws, early=early, dlse=dlse)
    if FORMATS[dtype].wide != dtype:             # inside, a kernel may compute with more digits
        wide = Arithmetic(FORMATS[dtype].wide, rng, portable)
        yield plain(case, wide, draws=draws, early=True, dlse=dlse)


def first_sample(case):
    """The case with its first sample alone"""
    arrays = {n: x[:1] if x.ndim > 2 else x for n, x in case.arrays.items()}
    options = {n: x[:1] if np.ndim(x) == 4 else x for n, x in case.options.items()}
    return Case(case.id, case.family, case.mechanism, arrays, options, case.cotangent[:1],
                seed=case.seed)


def cheap_runs(case, dtype, rng, dlse=None, many=False):
    """Runs for large cases, where the largest of many errors depends little on luck: random ones,
    and the last in NumPy's own arithmetic. In a sum of equal terms all roundings may go one way."""
    native = FORMATS[dtype].eps <= FORMATS["float32"].eps
    for number in range(3 if many else 5 if native else 6):
        arithmetic = Arithmetic(dtype, rng, block=BLOCK)
        yield plain(case, arithmetic, early=number % 2 == 0, dlse=dlse)
    wide = FORMATS[dtype].wide
    last = Native(wide) if native else Arithmetic(wide, rng, block=BLOCK)
    yield plain(case, last, early=not native, dlse=dlse)


class Yardstick(NamedTuple):
    """The right answer of a case, and how far from it an implementation may be."""
    truth: dict             # "out", "dq", ... -> float64 array
    bounds: dict            # the same names -> largest error allowed
    reason: str = ""        # why there is no yardstick in this precision; then the bounds are empty
    dlse: Any = None        # the gradient that comes in through an lse, of the base asked for


def truth(case, lse="", dlse=None):
    """minattn's own forward and backward, in float64 -> {"out": ..., "dq": ..., ...}

    lse: also "lse"; dlse: the gradient that comes in through it
    """
    module = positions.row(case.mechanism).module
    out, cache = module.forward(**case.arrays, **case.options)
    grads = module.backward(case.cotangent, cache)
    if dlse is not None:
        grads = {n: x for n, x in attend_backward(case.cotangent, cache, dlse).items()
                 if n in grads}
    found = {"out": out, **{"d" + n: x for n, x in grads.items()}}
    return {**found, "lse": cache.lse} if lse else found


def gradient_of_lse(case, lse):
    """A random dlse for lse of base e or 2, as numbers that come in, and as the gradient of ours"""
    rng = np.random.default_rng([case.seed, zlib.crc32(f"{case.id}/lse".encode())])
    dlse = draw(case.cotangent.shape[:3], rng) * seen(case.arrays, case.options).any(axis=-1)
    return dlse, dlse / LOG[lse]


def numbers(case):
    """Every array of a case that holds numbers."""
    given = (*case.arrays.values(), case.cotangent, *case.options.values())
    return [x for x in given if isinstance(x, np.ndarray) and x.dtype != bool]


def yardstick(case, dtype, lse="", through_lse=False):
    """Truth and bounds of one case in one precision; the bounds are kept for the next time.

    lse: an output of this base is checked too; through_lse: a gradient comes in through it.
    """
    dlse, ours = gradient_of_lse(case, lse) if through_lse else (None, None)
    right, key = truth(case, lse, ours), (id(case), dtype, lse, through_lse)
    if key not in _kept:
        if len(_kept) >= 8192:
            _kept.clear()
        _kept[key] = case, _bounds(case, right, dtype, ours)     # with the case its id stays in use
    return Yardstick(right, *_kept[key][1], dlse)


_kept: dict = {}


def _bounds(case, right, dtype, dlse):
    """{tensor: largest error allowed}, and why there are none"""
    given = numbers(case)
    if not fits(given, dtype):
        return {}, f"its inputs lie outside the range of {dtype}"
    scores = right["out"][..., 0].size * max(x.shape[2] if x.ndim > 2 else 1
                                               for x in case.arrays.values())
    scores = max(scores, right["out"].size // 64)
    draws = min(WORK // scores, DRAWS)  # at once, or one by one where there are many scores
    draws, repeats = (draws, 1) if draws >= FEW else (1, FEW)
    name = f"{case.mechanism}/{case.id}/{dtype}"
    rng = np.random.default_rng([case.seed, zlib.crc32(name.encode())])
    few = case.family in LARGE
    whole, B = right, len(case.cotangent)
    many = MOST if case.mechanism in KINKED else MANY        # a threshold makes samples differ
    if few and scores > many and B > 1:
        one, its = first_sample(case), None if dlse is None else dlse[:1]
        part = truth(one, "e" if "lse" in right else "", its)
        if all(x.shape == right[n].shape or np.abs(x).max() > np.abs(right[n]).max() / 4
               for n, x in part.items()):                    # it may see nothing
            case, dlse, right, given = one, its, part, numbers(one)
    if few:
        runs = list(cheap_runs(case, dtype, rng, dlse, scores > MOST))
    else:
        runs = list(plain_runs(case, dtype, rng, draws=draws, repeats=repeats, dlse=dlse))
    bounds = bounds_of(right, runs, dtype, given, few)
    if not np.isfinite(list(bounds.values())).all():         # those that scale the queries first
        bounds = bounds_of(right, runs[0 if few else 2::2], dtype, given, few)
    floor = min(FORMATS[dtype].eps, 2.0**-23)**2             # far below what anything can see
    floor *= np.abs(case.cotangent).max() * np.abs(right["out"]).max()
    bounds.update({n: max(x, floor) for n, x in bounds.items() if right[n].ndim == 1})
    for n in bounds if whole is not right else ():
        if whole[n].shape == right[n].shape:                 # a sum over all samples
            bounds[n] *= B
        else:                                                # errors grow with the numbers
            bounds[n] *= max(1, np.abs(whole[n]).max() / np.abs(right[n]).max())
    if not np.isfinite(list(bounds.values())).all():
        return {}, f"plain {dtype} arithmetic overflows here, so there is nothing to compare with"
    return bounds, ""


def bounds_of(truth, runs, dtype, given, few=False):
    """The rule above -> {tensor: largest error allowed}; -inf in the truth does not count.

    What lies between scores and weights is not in every run: another form may have none of it.
    """
    fmt = FORMATS[dtype]
    underflow = fmt.tiny * fmt.eps
    if dtype != "float16":      # a machine may flush subnormal numbers to 0, then multiply
        largest = (float(np.abs(x[np.isfinite(x)]).max(initial=0)) for x in given)
        underflow = fmt.tiny * max(1.0, *largest) ** 2
    bounds = {}
    for name, x in truth.items():
        finite = np.isfinite(x)
        right = np.where(finite, x, 0)
        errors = [np.where(finite, np.abs(run[name] - right), 0) for run in runs if name in run]
        error = max(float(e.max(initial=0)) for e in errors)
        if few:                                              # all of them may be near 0 by luck
            spread = sum(e * e for e in errors).max(initial=0) / len(errors)
            error = max(error, 3 * math.sqrt(spread))
        largest = float(np.abs(right).max(initial=0))
        bounds[name] = SLACK * (error + fmt.eps * largest) + underflow
    return bounds
