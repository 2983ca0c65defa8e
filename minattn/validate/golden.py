"""Golden vectors: which cases they hold, the answers, and how wrong a result may be."""
import math
import re

import numpy as np

from minattn import attention
from minattn.attention import MECHANISMS
from minattn.validate import precision
from minattn.validate.arithmetic import Arithmetic, fits
from minattn.validate.cases import cases as kit_cases
from minattn.validate.cases import roles

SMALL, LONG = {"D": 3, "Dv": 5}, 64                  # at most 2 LONG tokens: the set stays small
EVERY_CASE = ("softmax",)                            # the other mechanisms: the quick cases
APART = ("batch_independence", "non_contiguous", "combinations", "many_small_terms", "many_heads",
         "hidden_tiles", "packed", "decode", "wide_heads", "long_decode",
         "far_from_zero", "faint_tiles", "forget_far")                            # not in files
NARROW = ("float32", "float16", "bfloat16")
SINKS = ["flash-attention 1973, 2102, vllm-metal 550: sink gradients wrong or missing"]
BUGS = {  # family -> bugs of known programs that it shows
    "score_shift": ["llm.c: the running maximum starts at -10000"],
    "dominant_score": ["minGPT 75, transformers 17121: a finite mask lets the future in"],
    "causal": ["triton 4541: causal ignored in the backward",
               "keras 23038: the mask dropped on the slow path", "TinyTorch 1785: mask polarity"],
    "one_token": ["pytorch 27461: an added zero key"],
    "tq_ne_tk": ["onnx 7297, pytorch 108108: causal alignment"],
    "fully_masked_row": ["pytorch 41508, flash-attention 443: NaN gradients"],
    "prime_sizes": ["labml 146: softmax over the wrong axis"],
    "sink_far_above": SINKS, "sink_far_below": SINKS,
}
INVALID = [  # (what is wrong, mechanism, options, {argument: what becomes of it}): to be refused
    ("q and k have different head sizes", "softmax", {}, {"k": lambda x: x[..., :2]}),
    ("k and v have different lengths", "softmax", {}, {"v": lambda x: x[:, :, :6]}),
    ("a window of no keys", "softmax", {"window": 0}, {}),
    ("a negative prefix", "softmax", {"prefix": -1}, {}),
    ("a sink for every head but one", "sink", {}, {"sink": lambda x: x[:2]}),
    ("an energy for every key but one", "energy", {}, {"energy": lambda x: x[..., :6]}),
    ("a width that is not a number", "gaussian", {}, {"log_sigma": lambda x: x * np.nan}),
    ("N = 0 keys", "affine", {"length": 0}, {}),
]


def cases():
    """The valid cases of the standard set, in order, with every option spelt out."""
    for mechanism in MECHANISMS:
        quick = mechanism not in EVERY_CASE
        wide = kit_cases(mechanism, sizes={"B": 1, "H": 1}, only=["odd_head_dim/*"], quick=quick)
        for case in (*kit_cases(mechanism, sizes=SMALL, quick=quick), *wide):
            if not (case.unmet or case.family in APART or case.cotangent.shape[2] > 2 * LONG):
                yield _spelt_out(case)


def invalid_cases():
    """Cases that a program must refuse -> (what is wrong, case)"""
    for why, mechanism, options, edits in INVALID:
        case = _spelt_out(kit_cases(mechanism, sizes=SMALL, only=["causal/T"])[0])
        arrays = {name: edits[name](x) if name in edits else x for name, x in case.arrays.items()}
        yield why, case._replace(id=_file_name(f"{mechanism}-invalid-{why}"), family="invalid",
                                 arrays=arrays, options={**case.options, **options})


def _spelt_out(case):
    queries, keys, _ = roles(case.arrays)
    options = {"causal": False, "window": None, "prefix": 0, "align": "end"}
    mechanism = attention.mechanism(case.mechanism)
    if "scale" not in mechanism.refuses:
        options["scale"] = 1 / math.sqrt(queries.shape[3])
    options.update(mechanism.settings())
    for name, value in case.options.items():
        if isinstance(value, np.ndarray):
            value = value.reshape((1,) * (4 - value.ndim) + value.shape)
        if name == "allowed":
            value = np.broadcast_to(value, (*case.cotangent.shape[:3], keys.shape[2]))
        options[name] = value
    return case._replace(id=_file_name(f"{case.mechanism}-{case.id}"), options=options)


def _file_name(text):
    return re.sub("[^a-zA-Z0-9_+-]+", "-", text)


def split(case):
    """A case as files hold it -> the options that are no arrays, {name: array}"""
    arrays = {name: x for name, x in case.options.items() if isinstance(x, np.ndarray)}
    attributes = {name: x for name, x in case.options.items() if name not in arrays}
    return attributes, {**case.arrays, "dout": case.cotangent, **arrays}


def answers(case):
    """Output, gradients and intermediates, with the same bits on every machine."""
    found = precision.plain(case, Arithmetic("float64", portable=True))
    order = ["out", *("d" + name for name in split(case)[1])]
    return {name: found[name] for name in (*order, *found) if name in found}


def budgets_of(case, truth):
    """tensor -> {precision: the bound of precision.py}, None where it cannot hold the case.

    float64 gets what float32 gets, less the 29 bits between them, four times over.
    """
    budgets = {name: {} for name in truth}
    given, draws = precision.numbers(case), precision.FEW if case.cotangent.shape[2] < LONG else 1
    for dtype in NARROW:
        bounds = {}
        if fits(given, dtype):
            runs = precision.plain_runs(case, dtype, np.random.default_rng(0), draws=draws,
                                        portable=True)
            bounds = precision.bounds_of(truth, list(runs), dtype, given)
        held = bool(bounds) and np.isfinite(list(bounds.values())).all()
        for name in truth:
            budgets[name][dtype] = float(f"{bounds[name]:.3e}") if held else None
            if dtype == "float32":
                budgets[name]["float64"] = float(f"{bounds[name] * 2.0**-27:.3e}") if held else None
    return budgets
