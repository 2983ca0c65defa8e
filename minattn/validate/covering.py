"""Which settings meet in one case: a covering array, so that the list is nobody's imagination.

A factor is a setting with its values: the lengths, the kind of mask, the layout in memory, ... In
the rows that `covering` chooses, every value of each factor meets every value of each other factor
(strength 2), or any two others (strength 3). One array is over all factors; another one leaves
masks and biases out, as kernels have paths of their own for that.
"""
from functools import lru_cache

import numpy as np

LENGTHS = ((64, 64), (65, 65), (128, 128), (97, 97), (1, 300), (33, 160), (16, 192), (150, 70),
           (5, 7))
WIDTHS = ((64, 64), (128, 128), (16, 16), (11, 13), (72, 40), (192, 128))
HEADS = ((3, 3), (6, 6), (1, 1), (6, 2), (5, 1))          # of queries and keys
SEE = ("all", "causal", "W=1", "W=5", "W=mid", "W>Tk", "W implied", "prefix=3", "prefix=mid",
       "prefix,W")
# names of axes: a form of a mask or a bias, which broadcasts to B H Tq Tk
ALLOWED = ("", "right B 1 1 Tk", "left B 1 1 Tk", "both B 1 1 Tk", "both B H 1 Tk", "B H Tq Tk",
           "B 1 Tq Tk", "1 H Tq Tk", "Tq Tk", "B H Tq 1")
BIAS = ("", "B H Tq Tk", "B 1 Tq Tk", "1 H Tq Tk", "Tq Tk", "H 1 Tk", "B 1 1 Tk", "Tk",
        "B H Tq 1", "-inf B 1 Tq Tk")
SMALL = (1, 2, 3, 4, 5, 8, 16, 17, 32, 33, 64, 65, 128)    # sizes to try when a case shrinks
QUICK = 16                # rows of each array that --quick takes
LARGE_QUICK = 2           # and of LARGE
SHORT = 16                # so few queries and keys, in all, have more heads and samples: ...
CROWD = 9                 # ... at least so many, as grids of blocks and tables often end at 8
# sizes beyond most blocks, tiles and grids: what is seen, lengths, widths, samples, heads ...
LARGE = (("causal", (257, 257), (72, 136), 3, (9, 9)),
         ("causal", (385, 385), (136, 72), 9, (1, 1)), ("all", (1, 1031), (64, 64), 9, (4, 1)),
         ("causal", (1031, 1031), (24, 16), 9, (1, 1)),
         ("causal", (130, 1291), (16, 64), 3, (2, 2)), ("W=mid", (515, 515), (64, 16), 5, (1, 1)),
         ("all", (323, 323), (264, 264), 3, (2, 2)),
         ("prefix=mid", (512, 512), (64, 64), 3, (2, 1)),
         ("causal", (521, 140), (24, 24), 3, (18, 1)),
         ("W implied", (300, 515), (16, 16), 5, (2, 2)))
# ... and for every form of a mask and a bias
LONG = (("causal", (257, 257), (40, 24), 2, (4, 2)), ("all", (130, 389), (24, 72), 3, (3, 3)),
        ("prefix,W", (321, 130), (16, 40), 2, (3, 3)))
LAYOUTS = ("contiguous", "BTHD", "packed", "mixed", "expanded", "offset", "transposed", "gaps")


@lru_cache(maxsize=64)
def covering(sizes, strength=2):
    """Numbers of values per factor -> rows of one value each, in which every combination of
    `strength` factors' values meets; greedy, and 0 wherever another value would add nothing."""
    start = np.cumsum((0, *sizes))
    values = [np.arange(start[i], start[i + 1]) for i in range(len(sizes))]
    factor = np.repeat(np.arange(len(sizes)), sizes)
    missing = np.ones((start[-1],) * strength, bool)
    for a in range(strength):                                # the values of one factor never meet
        for b in range(a):
            shape = [1] * strength
            shape[a] = shape[b] = start[-1]
            missing &= (factor[:, None] != factor).reshape(shape)
    rows, order = [], sorted(range(len(sizes)), key=lambda i: -sizes[i])
    while missing.any():
        first, left = [], missing
        while left.ndim:                                     # what is missing most often
            counts = left.reshape(len(left), -1).sum(axis=1)
            first.append(int(counts.argmax()))
            left = left[first[-1]]
        row = {factor[v]: v for v in first}
        for i in order:
            if i not in row:
                met = np.array(list(row.values()))
                gain = missing[np.ix_(values[i], *(met,) * (strength - 1))]
                row[i] = values[i][gain.reshape(len(values[i]), -1).sum(axis=1).argmax()]
        met = np.array(list(row.values()))
        missing[np.ix_(*(met,) * strength)] = False
        rows.append(tuple(int(row[i] - start[i]) for i in range(len(sizes))))
    return rows


def nearest(sizes, names, wanted):
    """"Tq Tk" and two numbers -> for each the nearest of the sizes that are named, if any are"""
    return tuple(min(sizes.get(name, (n,)), key=lambda m: abs(m - n))
                 for name, n in zip(names.split(), wanted))


def heads(sizes, H, G):
    """The same for heads of queries and of keys, whose number divides the first, where one does"""
    pairs = [(h, g) for h in sizes.get("H", (H,)) for g in sizes.get("G", (h if H == G else G,))]
    return min(pairs, key=lambda x: (x[0] % x[1] > 0, abs(x[0] - H) + abs(x[1] - G)))


def factors(mechanism, sizes, fixed, without):
    """{factor: its values}, the usual one first, less what is fixed or asks for one of `without`"""
    shapes = {**mechanism.arguments, **mechanism.optional}
    symbols = {s for shape in shapes.values() for s in shape.split()}
    found = {
        "lengths": [nearest(sizes, "Tq Tk", x) for x in LENGTHS],
        "width": [nearest(sizes, "D Dv", x) for x in WIDTHS],
        "B": [*nearest(sizes, "B B B", (2, 1, 5))],
        "heads": [heads(sizes, *x) for x in HEADS],
        "see": SEE, "align": ("end", "start"), "allowed": ALLOWED, "bias": BIAS,
        "layout": LAYOUTS, "aside": LAYOUTS[:1] + LAYOUTS[4:], "dout": LAYOUTS[:3] + LAYOUTS[4:],
        "scale": (None, 0.25, 0.0, -0.125), "softcap": (None, 2.0), "log_length": (False, True)}
    if mechanism.optional:
        found["extra"] = [tuple(mechanism.optional)[:n] for n in range(len(mechanism.optional) + 1)]
    if "Dv|1" in symbols:
        found["Dv|1"] = (None, 1)
    if "H" in shapes.values():
        found["sign"] = (1, -1)
    for name, option in mechanism.options.items():
        if name not in fixed:
            found[name] = (option.default, *option.others())
    if "G" not in symbols:
        found["heads"] = [(H, H) for H, _ in found["heads"]]
    for name, values in found.items():
        good = [x for x in dict.fromkeys(values) if not asks(name, x, mechanism) & without
                and not (name == "heads" and x[0] % x[1])]
        found[name] = good or list(values[:1])
    return {n: x for n, x in found.items() if n not in mechanism.refuses}


def asks(name, value, mechanism):
    """What one setting asks of a function, in the words of --exclude"""
    if name == "see":
        rules = {"W": {"window", "causal"}, "W implied": {"window"}, "all": set()}
        found = rules.get(value, rules["W"] if "W" in value else {"causal"})
        return found | ({"prefix", "causal"} if "prefix" in value else set())
    if name == "lengths":
        return {"Tq!=Tk"} if value[0] != value[1] else set()
    if name == "heads":
        return {"grouped"} if value[0] != value[1] else set()
    if name == "bias" and value:
        return {"bias", "bias=-inf"} if "-inf" in value else {"bias"}
    if name == "allowed" and value:
        return {"allowed"}
    if name in ("layout", "aside", "dout"):
        return {"strided"} if value != "contiguous" else set()
    if name == "extra":
        return set(value)
    if name in mechanism.options:
        return {name, f"{name}={value}"} if value != mechanism.options[name].default else set()
    if name in ("B", "width", "Dv|1", "sign") or value is None or value is False:    # not 0.0
        return set()
    if value in ("", "end"):
        return set()
    return {name, f"{name}={value}"}


def rows(mechanism, sizes, fixed, without, strength=2):
    """The rows as {factor: value}, and whether --quick takes it: without masks and biases first"""
    every = factors(mechanism, sizes, fixed, frozenset(without))
    bare = {**every, "allowed": [""], "bias": [""]}
    found = []
    for some in (bare, every):
        names, values = list(some), list(some.values())
        for number, row in enumerate(covering(tuple(map(len, values)), strength)):
            row = {n: x[i] for n, x, i in zip(names, values, row)}
            found.append((crowded(row, sizes), number < QUICK))
    usual = {n: [x[0]] for n, x in every.items()}
    for some, table in (usual, LARGE), (bare, LARGE[2:]), (every, LONG * 4):
        for number, place in enumerate(table):
            row = {n: x[(number + i) % len(x)] for i, (n, x) in enumerate(some.items())}
            found.append((large(row, place, every, sizes), some is usual and number < LARGE_QUICK))
    unique = {repr(row): (row, quick) for row, quick in reversed(found)}
    return list(unique.values())[::-1]


def crowded(row, sizes):
    """The row with a multiple of its heads and samples, where sequences are short"""
    (H, G), B = row["heads"], row["B"]
    if sum(row["lengths"]) <= SHORT:
        if not sizes.keys() & {"H", "G"}:
            H, G = (-(-CROWD // H) * n for n in (H, G))
        if "B" not in sizes:
            B *= -(-CROWD // B)
    return {**row, "heads": (H, G), "B": B}


def large(row, place, every, sizes):
    """The row with other sizes, or those nearest that are named, and what is seen"""
    see, lengths, width, B, (H, G) = place
    if row.get("extra") == () or all(x == y for x, y in every["lengths"]):
        lengths = (max(257, lengths[0]),) * 2
    H, G = heads(sizes, H, G)
    if H % G or all(x == y for x, y in every["heads"]):
        G = H
    return {**row, "lengths": nearest(sizes, "Tq Tk", lengths),
            "width": nearest(sizes, "D Dv", width), "B": nearest(sizes, "B", (B,))[0],
            "heads": (H, G), "see": see if see in every["see"] else row["see"]}


def named(row, every):
    """The settings that are not the usual ones, in a line: "Tq=64,Tk=192,W=mid,bias=BHTqTk" """
    usual, size = {n: x[0] for n, x in every.items()}, size_of(row)
    known = {**size_of(usual), "Tq": None, "Tk": None, "G": size["H"]}
    parts = [f"{n}={size[n]}" for n in ("Tq", "Tk", "D", "Dv", "B", "H", "G")
             if size[n] != known[n]]
    for name, value in row.items():
        if name not in SIZED and value != usual[name]:
            value = "+".join(value) if isinstance(value, tuple) else value
            parts.append(str(value) if name == "see" else f"{name}={value}")
    return ",".join(parts).replace(" ", "")


SIZED = ("lengths", "width", "B", "heads")
STEPS = ("B", "H G", "H", "G", "Tq Tk", "Tq", "Tk", "D Dv", "D", "Dv")


def plainer(row, part, every, sizes):
    """Rows with a plainer setting, or sizes (a part out of STEPS) that are smaller and equal, the
    smallest first; `sizes` stay as they are. every: as `factors` gives it"""
    if part not in STEPS:
        return [{**row, part: x} for x in every[part][:min(3, every[part].index(row[part]))]]
    size, symbols = size_of(row), part.split()
    alone = {"H": "G", "G": "H", "Tq": "Tk", "Tk": "Tq"}.get(part)
    if sizes.keys() & {*symbols} or alone and size[part] == size[alone]:
        return []
    found = [{**size, **dict.fromkeys(symbols, n)} for n in SMALL
             if n < max(size[s] for s in symbols)]
    return [{**row, "B": n["B"], "heads": (n["H"], n["G"]), "lengths": (n["Tq"], n["Tk"]),
             "width": (n["D"], n["Dv"])} for n in found if n["H"] % n["G"] == 0]


def holds(row, small, every):
    """Has a row every setting in which a smaller one is not the usual, and no smaller size?"""
    size, least = size_of(row), size_of(small)
    return (all(row[n] == x for n, x in small.items() if n not in SIZED and x != every[n][0])
            and all(size[n] >= x for n, x in least.items()))


def size_of(row):
    """The sizes by symbol"""
    (Tq, Tk), (D, Dv), (H, G) = row["lengths"], row["width"], row["heads"]
    if row.get("extra") == ():                               # one array gives queries and keys
        Tq = Tk
    return {"B": row["B"], "H": H, "G": G, "Tq": Tq, "Tk": Tk, "D": D, "Dv": Dv,
            "Dv|1": row.get("Dv|1") or Dv, "T": Tk}


def rules(row):
    """The options that are no arrays"""
    size, see = size_of(row), row["see"]
    middle = size["Tk"] // 2 + 1
    found = {}
    if see not in ("all", "W implied"):
        found["causal"] = True
    if "W" in see:
        windows = {"W=1": 1, "W=5": 5, "W=mid": middle, "W>Tk": size["Tk"] + 3}
        found["window"] = windows.get(see, size["Tk"] // 3 + 1)
    if "prefix" in see:
        found["prefix"] = 3 if see == "prefix=3" else middle
    if row["align"] != "end" and size["Tq"] != size["Tk"]:
        found["align"] = row["align"]
    found.update({n: row[n] for n in ("scale", "softcap") if row.get(n) is not None})
    return found


def mask(form, size, rng):
    """A form out of ALLOWED -> a boolean array"""
    kind, *axes = form.split()
    if kind not in ("right", "left", "both"):
        return rng.random(_shape([kind, *axes], size)) < 0.7
    B, Tk = size["B"] * (size["H"] if "H" in axes else 1), size["Tk"]
    most = Tk // 2 + 1
    left, right = rng.integers(0, most, B) // 2 * 2, rng.integers(0, most, B)
    j = np.arange(Tk)
    see = np.ones((B, Tk), bool)
    if kind != "right":
        see &= j >= left[:, None]
    if kind != "left":
        see &= j < Tk - right[:, None]
    return see.reshape(_shape(axes, size))


def bias(form, size, rng):
    """A form out of BIAS -> an array; with -inf: a mask to be added, which hides whole rows too"""
    kind, *axes = form.split()
    if kind != "-inf":
        return rng.standard_normal(_shape([kind, *axes], size))
    x = rng.standard_normal(_shape(axes, size))
    x[rng.random(x.shape) < 0.2] = -np.inf
    x[..., size["Tq"] // 2, :] = -np.inf
    return x


def _shape(axes, size):
    return [1 if s == "1" else size[s] for s in axes]


# ------------------------------------------------------------------------------- layouts in memory

GUARD = 64                # numbers around an array in memory, none of which may be read


def place(x, layout):
    """x inside a larger buffer filled with NaN -> the buffer (1-D), strides, offset, in numbers.

    BTHD: heads after tokens, the layout of most models; packed: so, and cut out of one array of q,
    k and v; expanded: a stride of 0 wherever x repeats along an axis; gaps: BTHD with every other
    number of the last axis; offset: one number off a round address. (mixed: another one for each of
    the inputs, see `of_input`.)
    """
    order = list(range(x.ndim))                              # of the axes in memory
    if layout in ("BTHD", "packed", "gaps") and x.ndim > 2:
        order[1], order[2] = 2, 1
    if layout == "transposed" and x.ndim > 1:
        order[-2:] = order[:-3:-1]
    strides, step = [0] * x.ndim, 2 if layout == "gaps" else 1
    for axis in reversed(order):
        if layout == "packed" and x.ndim > 2 and axis == 2:
            step *= 3                                        # from token to token: q, k and v
        strides[axis] = step
        step *= x.shape[axis]
    if layout == "expanded":
        for axis in range(x.ndim):
            if x.shape[axis] > 1 and (x == x.take([0], axis)).all():
                strides[axis] = 0
    offset = GUARD + (layout == "offset")
    length = offset + sum((n - 1) * s for n, s in zip(x.shape, strides)) + 1 + GUARD
    guard = {"b": True, "i": 2.0**30}.get(x.dtype.kind, np.nan)
    buffer = np.full(max(length, 2 * GUARD), guard)
    view(buffer, x.shape, strides, offset)[...] = x
    return buffer, strides, offset


def of_input(layout, number):
    """The layout of the input of this number"""
    return LAYOUTS[number % 3] if layout == "mixed" else layout


def view(buffer, shape, strides, offset):
    """The array of this shape in a buffer (1-D), strides in numbers"""
    strides = [s * buffer.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(buffer[offset:], shape, strides)
