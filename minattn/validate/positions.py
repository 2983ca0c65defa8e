"""Positions that can be checked like a mechanism: `minattn check rotary file.py:function`.

    rotary   f(x, *, base, start, pairs) -> x turned, (B, H, T, D)
    morlet   f(log_omega, log_sigma, *, length, start, admissible, centre) -> (length, 2n)
    decay    f(slopes, *, Tq, Tk, align) -> a bias (H, Tq, Tk)

Below: each formula once more, plain, for the bounds. What depends on a position alone is computed
in float32 at least, as everybody does: bfloat16 cannot tell 1000 from 1001.
"""
from types import SimpleNamespace as Cache

import numpy as np

from minattn import attention
from minattn.positions import decay, morlet, rotary
from minattn.validate import families
from minattn.validate.arithmetic import Arithmetic

SIZES = {"B": 2, "H": 3, "Tq": 7, "Tk": 7, "D": 10, "Dv": 10}
LONG = {"Tq": 97, "Tk": 97, "D": 64}
LENGTHS = {"morlet": {"length": "Tk"}, "decay": {"Tq": "Tq", "Tk": "Tk"}}       # as options
OTHERS = {"rotary": {"base": 500.0, "start": 3}, "morlet": {"admissible": False, "start": 2},
          "decay": {"align": "start"}}                                          # options
FAR = {"Tq": 2, "Tk": 2500, "H": 2}                                             # distances > 2048
FULL = {"Tq": 1031, "Tk": 1031, "B": 1}                                         # > 4 blocks of 256
MANY = {"B": 9, "H": 17}
CASES = {                           # name: options, sizes, layout, that of the gradient coming in
    "rotary": {
        "T=7": ({}, {}), "base=50": ({"base": 50.0}, {}, "BTHD"),
        "interleaved": ({"pairs": "interleaved"}, {}), "start=1000": ({"start": 1000}, {}),
        "start=5,T=1": ({"start": 5}, {"Tq": 1, "Tk": 1}),
        "interleaved,base=50,start=37": ({"pairs": "interleaved", "base": 50.0, "start": 37}, {},
                                         "packed"),
        "D=2": ({"start": 3}, {"D": 2}, "gaps"), "T=97,D=64": ({}, LONG, "packed"),
        "interleaved,T=97,D=64": ({"pairs": "interleaved", "start": 64}, LONG, "BTHD"),
        "start=-3": ({"start": -3}, {}), "start=2047": ({"start": 2047}, {}, "packed", "BTHD"),
        "start=100003": ({"start": 100003}, {}), "D=256": ({}, {"D": 256}),
        "dy": ({}, {}, "contiguous", "BTHD"), "dy,D=64": ({}, LONG, "contiguous", "gaps"),
        "B=9,H=17": ({"start": 1}, MANY, "BTHD"), "T=1031": ({}, FULL),
        "interleaved,T=1031,start=-515": ({"pairs": "interleaved", "start": -515}, FULL, "gaps"),
        "T=515,D=136": ({"base": 50.0, "start": 510},
                        {"Tq": 515, "Tk": 515, "B": 1, "H": 2, "D": 136}, "mixed", "BTHD")},
    "morlet": {
        "T=7": ({}, {}), "start=5": ({"start": 5}, {}), "any": ({"admissible": False}, {}, "gaps"),
        "T=97,n=32": ({}, LONG), "any,start=-3": ({"admissible": False, "start": -3}, {}),
        "centre": ({"centre": families.bias("n"), "start": 2}, {}),
        "T=200,start=-150": ({"start": -150}, {"Tq": 200, "Tk": 200}),
        "dy": ({}, {}, "contiguous", "transposed"), "T=97,n=136": ({}, {**LONG, "D": 272}),
        "narrow,T=7": ({}, {}), "narrow,any,start=-3": ({"admissible": False, "start": -3}, {}),
        "wide,T=1031": ({}, FULL), "wide,T=129": ({"start": 3}, {"Tq": 129, "Tk": 129}),
        "wide,any,T=1031,start=-700": ({"admissible": False, "start": -700}, FULL, "gaps", "gaps"),
        "wide,centre,T=515": ({"centre": families.bias("n"), "start": 100},
                              {"Tq": 515, "Tk": 515, "D": 4})},
    "decay": {
        "Tq=5,Tk=7": ({}, {"Tq": 5}), "align=start": ({"align": "start"}, {"Tq": 5}),
        "T=97,H=8": ({}, {**LONG, "H": 8}, "gaps"), "Tq=7,Tk=5": ({}, {"Tk": 5}, "offset"),
        "Tq=1,Tk=97": ({}, {"Tq": 1, "Tk": 97}), "H=1": ({}, {"Tq": 5, "H": 1}),
        "Tq=2,Tk=2500": ({}, FAR), "dy": ({}, {"Tq": 5}, "contiguous", "transposed"),
        "H=33": ({}, {"H": 33, "Tq": 9}), "T=200": ({}, {"Tq": 200, "Tk": 200}),
        "T=300": ({}, {"Tq": 300, "Tk": 300, "H": 2}),
        "Tq=70,Tk=1031": ({}, {"Tq": 70, "Tk": 1031, "H": 2}),
        "Tq=321,Tk=150,align=start": ({"align": "start"}, {"Tq": 321, "Tk": 150})}}
BELLS = {"narrow": -3.0, "wide": 4.5}                       # added to log_sigma


def bells(kind):
    def edit(arrays, size):
        arrays["log_sigma"] += BELLS[kind]
    return edit if kind in BELLS else None


def plans(name):
    """The plans of a position's cases"""
    def length(symbol):
        return lambda size, rng: size[symbol]

    lengths = {n: length(symbol) for n, symbol in LENGTHS.get(name, {}).items()}
    for title, (options, sizes, *layouts) in CASES[name].items():
        layout, dy = [*layouts, "contiguous", "contiguous"][:2]
        yield families.Plan("positions", title, {**options, **lengths}, sizes, quick=True,
                            edit=bells(title.partition(",")[0]), layout=layout, dout_layout=dy)


def wide(x):
    """The arithmetic of positions beside numbers of this one"""
    narrow = x.arithmetic.dtype in ("float16", "bfloat16")
    return Arithmetic("float32", x.arithmetic.rng) if narrow else x.arithmetic


def lifted(x):
    return wide(x).array(np.asarray(x))


def lowered(y, x):
    """y as numbers of the arithmetic of x"""
    return x.arithmetic.array(x.arithmetic.round(np.asarray(y)))


def rotary_forward(x, *, base=10000.0, start=0, pairs="half"):
    """(a, b) -> (a cos - b sin, b cos + a sin) of the angle p base^(-2k/D)"""
    T, D = x.shape[-2:]
    p = wide(x).array(np.broadcast_to(start + np.arange(T)[:, None] + 0.0,
                                      (*x.shape[:-4], 1, 1, T, 1)))
    angle = p * wide(x).array(np.full(D // 2, float(base))) ** (-2 * np.arange(D // 2) / D)
    cos, sin = (x.arithmetic.array(np.asarray(f(angle))) for f in (np.cos, np.sin))
    return _turn(x, cos, sin, pairs), Cache(cos=cos, sin=sin, pairs=pairs)


def rotary_backward(dy, c):
    return {"x": _turn(dy, c.cos, -c.sin, c.pairs)}


def _turn(x, cos, sin, pairs):
    n = x.shape[-1] // 2
    a, b = (x[..., :n], x[..., n:]) if pairs == "half" else (x[..., 0::2], x[..., 1::2])
    y = a * cos - b * sin, b * cos + a * sin
    return np.concatenate(y, -1) if pairs == "half" else np.stack(y, -1).reshape(x.shape)


def morlet_forward(log_omega, log_sigma, *, length, admissible=True, centre=None, start=0):
    """cos and sin of omega p, under bells exp(-((p - centre) / sigma)^2 / 2)"""
    omega, sigma = np.exp(lifted(log_omega)), np.exp(lifted(log_sigma))
    capped, floored = omega > morlet.MAX_OMEGA, sigma < morlet.MIN_SIGMA
    omega, sigma = np.minimum(omega, morlet.MAX_OMEGA), np.maximum(sigma, morlet.MIN_SIGMA)
    projected = (omega * sigma < morlet.MIN_PRODUCT) & admissible
    omega = np.where(projected, morlet.MIN_PRODUCT / sigma, omega)
    omega, sigma = omega[..., None, :], sigma[..., None, :]                  # (..., 1, n)
    p = lifted(log_omega[..., None, :] * 0) + (start + np.arange(length))[:, None]
    offset = (p if centre is None else p - lifted(centre)) / sigma
    bell = np.exp(-offset * offset / 2)
    cosine, sine = bell * np.cos(omega * p), bell * np.sin(omega * p)
    pe = np.stack([cosine, sine], -1).reshape(*p.shape[:-1], 2 * p.shape[-1])
    return lowered(pe, log_omega), Cache(**locals())


def morlet_backward(dpe, c):
    dpe = lifted(dpe)
    dcosine, dsine = dpe[..., 0::2], dpe[..., 1::2]
    dlog_omega = ((dsine * c.cosine - dcosine * c.sine) * c.p).sum(axis=-2) * c.omega[..., 0, :]
    doffset = -(dcosine * c.cosine + dsine * c.sine) * c.offset
    dlog_sigma = -(doffset * c.offset).sum(axis=-2) - np.where(c.projected, dlog_omega, 0)
    grads = {"log_omega": np.where(c.projected | c.capped, 0, dlog_omega),
             "log_sigma": np.where(c.floored, 0, dlog_sigma)}
    if c.centre is not None:
        grads["centre"] = -(doffset / c.sigma).sum(axis=-2)
    return {name: lowered(x, c.log_omega) for name, x in grads.items()}


def decay_forward(slopes, *, Tq, Tk, align="end"):
    """-slope (i - j)"""
    i = np.arange(Tq)[:, None] + (Tk - Tq if align == "end" else 0)
    distance = (i - np.arange(Tk)) + 0.0
    return -slopes[..., None, None] * distance, Cache(distance=distance)


def decay_backward(dbias, c):
    return {"slopes": -(dbias * c.distance).sum(axis=(-2, -1))}


def _row(module, arguments, forward, backward):
    def by_name(*arrays, **options):
        return module.forward(**dict(zip(arguments, arrays)), **options)
    kind = Cache(forward=by_name, backward=module.backward, ARGUMENTS=arguments,
                 OPTIONS=module.OPTIONS, REFUSES=("scale",), ARXIV=module.ARXIV,
                 SUMMARY=module.SUMMARY)
    return attention.describe(module.__name__.rpartition(".")[2], kind, forward, backward)


ROWS = {row.name: row for row in (
    _row(rotary, {"x": "B H T D"}, rotary_forward, rotary_backward),
    _row(morlet, {"log_omega": "n", "log_sigma": "n"}, morlet_forward, morlet_backward),
    _row(decay, {"slopes": "H"}, decay_forward, decay_backward))}
ROWS["rope"] = ROWS["rotary"]                                # as models call it


def row(name):
    """The row of a position or of a mechanism"""
    return ROWS.get(name) or attention.mechanism(name)
