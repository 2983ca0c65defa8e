"""Which cases the golden vectors hold, and how wrong a result may be in each precision."""
import math
import re
from typing import NamedTuple

import numpy as np

from minattn.attention import MECHANISMS
from minattn.validate.cases import cases as kit_cases
from minattn.validate.literal import EPS, Arithmetic, answers

SMALL, LONG = {"D": 3, "Dv": 5}, 64                  # (nothing of more than 2 LONG tokens: the set is to stay small)
APART = ("batch_independence", "non_contiguous")     # families that files cannot ask for
SINKS = ["flash-attention 1973, 2102, vllm-metal 550: sink gradients wrong or missing"]
BUGS = {                                             # family -> bugs of known programs that it shows
    "score_shift": ["llm.c: the running maximum starts at -10000"],
    "dominant_score": ["minGPT 75, transformers 17121: a finite mask lets the future in"],
    "causal": ["triton 4541: causal ignored in the backward", "keras 23038: the mask dropped on the slow path",
               "TinyTorch 1785: mask polarity"],
    "one_token": ["pytorch 27461: an added zero key"],
    "tq_ne_tk": ["onnx 7297, pytorch 108108: causal alignment"],
    "fully_masked_row": ["pytorch 41508, flash-attention 443: NaN gradients"],
    "prime_sizes": ["labml 146: softmax over the wrong axis"],
    "sink_far_above": SINKS, "sink_far_below": SINKS,
}
INVALID = [      # (what is wrong, mechanism, options, {argument: what becomes of it}): to be refused
    ("q and k have different head sizes", "softmax", {}, {"k": lambda x: x[..., :2]}),
    ("k and v have different lengths", "softmax", {}, {"v": lambda x: x[:, :, :6]}),
    ("a window of no keys", "softmax", {"window": 0}, {}), ("a negative prefix", "softmax", {"prefix": -1}, {}),
    ("a sink for every head but one", "sink", {}, {"sink": lambda x: x[:2]}),
    ("an energy for every key but one", "energy", {}, {"energy": lambda x: x[..., :6]}),
    ("a width that is not a number", "gaussian", {}, {"log_sigma": lambda x: x * np.nan}),
    ("N = 0 keys", "affine", {"length": 0}, {}),
]


class Case(NamedTuple):
    id: str
    mechanism: str
    family: str
    attributes: dict     # the options of forward, each spelt out
    inputs: dict         # argument -> array; bias, allowed and dout too
    wrong: str           # what is wrong with it, if it is to be refused


def cases():
    """The standard set, in order: softmax in every case of the kit, the others in its quick ones, then invalid ones."""
    for mechanism in MECHANISMS:
        quick = mechanism != "softmax"
        wide = kit_cases(mechanism, sizes={"B": 1, "H": 1}, only=["odd_head_dim/*"], quick=quick)
        for case in (*kit_cases(mechanism, sizes=SMALL, quick=quick), *wide):
            if not (case.unmet or case.family in APART or case.cotangent.shape[2] > 2 * LONG):
                yield _spelt_out(case)
    for why, mechanism, options, edits in INVALID:
        case = _spelt_out(kit_cases(mechanism, sizes=SMALL, only=["causal/T"])[0])
        inputs = {name: edits[name](x) if name in edits else x for name, x in case.inputs.items()}
        yield case._replace(id=_file_name(f"{mechanism}-invalid-{why}"), family="invalid", wrong=why, inputs=inputs,
                            attributes={**case.attributes, **options})


def _spelt_out(case):
    full = (*case.cotangent.shape[:3], case.arrays.get("k", case.arrays.get("keys", case.cotangent)).shape[2])
    inputs = {**case.arrays, "dout": case.cotangent}
    rules = {"causal": False, "window": None, "prefix": 0, "align": "end"}
    if case.mechanism != "gaussian":
        rules["scale"] = 1 / math.sqrt(case.arrays["q"].shape[3])
    rules.update(MECHANISMS[case.mechanism].settings())
    for name, value in case.options.items():
        if not isinstance(value, np.ndarray):
            rules[name] = value
        elif name == "allowed":
            inputs[name] = np.broadcast_to(value, full)
        else:
            inputs[name] = value.reshape((1,) * (4 - value.ndim) + value.shape)
    return Case(_file_name(f"{case.mechanism}-{case.id}"), case.mechanism, case.family, rules, inputs, "")


def _file_name(text):
    return re.sub("[^a-zA-Z0-9_+-]+", "-", text)

PLAIN = [(False, False), (True, False), (False, True)]       # (backwards, fused): all but the first with noise


@np.errstate(all="ignore")                                              # a narrow format overflows in some cases
def budgets_of(case, truth):
    """tensor -> {precision: 2 (error of plain arithmetic + eps max|truth|)}, None where it cannot hold the case.

    Below the smallest normal number a machine may go on in equal steps, or take zero and then multiply: that is allowed
    for. float64 gets what float32 gets, less the 29 bits between them, four times over.
    """
    budgets = {name: {} for name in truth}
    numbers = [x for x in case.inputs.values() if x.dtype != bool]
    for dtype, eps in EPS.items():
        runs, noise = [], np.random.default_rng(0)
        if all(np.array_equal(Arithmetic(dtype).round(x), x) for x in numbers):
            for backwards, fused in PLAIN:
                noisy = backwards or fused
                copies = 4 if noisy and case.inputs["dout"].shape[2] < LONG else 1           # side by side: quicker
                many = {n: np.broadcast_to(x, (copies, *x.shape)) if x.ndim > 2 else x for n, x in case.inputs.items()}
                ar = Arithmetic(dtype, backwards, fused, noise if noisy else None)
                runs.append(answers(case.mechanism, case.attributes, many, ar))
        low = 2.0**-24 if dtype == "float16" else 2.0**-126 * max(1, *(np.abs(x).max() for x in numbers)) ** 2
        bounds = {}
        for name, expected in truth.items():
            at = np.isfinite(expected)
            error = np.max([np.where(at, np.abs(run[name] - expected), 0).max(initial=0) for run in runs] or np.nan)
            bounds[name] = 2 * (error + eps * np.abs(expected[at]).max(initial=0)) + low
        held = np.isfinite([*bounds.values()]).all()
        for name, bound in bounds.items():
            budgets[name][dtype] = float(f"{bound:.3e}") if held else None
            if dtype == "float32":
                budgets[name]["float64"] = float(f"{bound * 2.0**-27:.3e}") if held else None
    return budgets
