"""The same case in the form in which a function takes it: packed sequences, and a paged cache.

Both are masks to minattn, and to a function that takes neither of these by name:

    packed   several sequences side by side in one: `segments` (1, T), the number of each token's
             sequence, or `cu_seqlens` (n + 1,), where they begin and the last one ends
    decode   one query per sample against a cache of `lengths` (B,) keys: with `block_table`
             (B, pages), k and v are pools of pages (pool, G, PAGE, D) in any order
"""
import inspect

import numpy as np

PAGE = 16
OTHERS = 2.0**12          # what stands in the places of a pool that belong to nobody


def form(case, forward):
    """The option by which this function takes the case, or an empty string"""
    known = {"packed": ("cu_seqlens", "segments"), "decode": ("block_table",)}.get(case.family, ())
    return next((name for name in known if name in parameters(forward)), "")


def signature(forward):
    """The signature of a function; None for built-in ones, which do not tell"""
    try:
        return inspect.signature(forward)
    except (ValueError, TypeError):
        return None


def parameters(forward):
    """Its parameters by name: none of a built-in function"""
    told = signature(forward)
    return told.parameters if told else {}


def takes_any_name(forward):
    return any(p.kind == p.VAR_KEYWORD for p in parameters(forward).values())


def taken(case, arrays, forward):
    """arrays and options as the function takes them, and the names that get no gradient"""
    name, options = form(case, forward), dict(case.options)
    if not name:
        return arrays, options, ()
    allowed = options.pop("allowed")
    if name == "block_table":
        lengths = allowed.sum(axis=-1).reshape(-1)
        pools = {n: paged(arrays[n])[0] for n in ("k", "v")}
        table = paged(arrays["k"])[1]
        return {**arrays, **pools}, {**options, name: table, "lengths": lengths}, ("k", "v")
    starts, segments = np.unique(allowed.argmax(axis=-1), return_inverse=True)
    ends = np.append(starts, allowed.shape[-1])
    return arrays, {**options, name: ends if name == "cu_seqlens" else segments.reshape(1, -1)}, ()


def paged(x):
    """(B, G, T, D) -> the pool of its pages, and where they stand in it: (B, pages)"""
    B, G, T, D = x.shape
    pages = -(-T // PAGE)
    table = np.random.default_rng(0).permutation(B * pages + 3)[:B * pages].reshape(B, pages)
    pool = np.full((B * pages + 3, G, PAGE, D), OTHERS)
    for b in range(B):
        for n in range(pages):
            part = x[b, :, n * PAGE:(n + 1) * PAGE]
            pool[table[b, n], :, :part.shape[1]] = part
    return pool, table
