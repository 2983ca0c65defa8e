"""Golden vectors: cases with their answers in files, so that a program in any language can be checked.

    python -m minattn vectors write DIR                      # index.json, vectors.safetensors, schema.json
    python -m minattn vectors check DIR --results RESULTS    # what your program made of the inputs

The answers come from the papers' formulas with explicit (Tq, Tk) weights, a formulation of their own beside the kernels
of this package. They are the same to the bit on every machine, because nothing is asked of BLAS or libm: IEEE 754 fixes
+, -, *, / and sqrt to the last bit, exp and log are made from these below, and sums run in a stated order. So nothing
has to be rounded away: answers are full float64, within some 1e-15 of the truth. Inputs are those of the kit's cases, 8
significant bits each, exact in every precision that has their range; they hang on NumPy keeping its generator's stream.
"""
import hashlib
import json
from pathlib import Path

import numpy as np

from minattn import checks
from minattn.attention import MECHANISMS
from minattn.errors import InputError
from minattn.validate.golden import APART, BUGS, INVALID, LONG, budgets_of, cases  # noqa: F401
from minattn.validate.literal import Arithmetic, answers
from minattn.validate.results import INDEX, PAYLOAD, SCHEMA, Report, _rows, check, own_results, pack, read, unpack  # noqa: F401

INTERMEDIATE = {"scores": "B H Tq Tk", "P": "B H Tq Tk", "lse": "B H Tq", "delta": "B H Tq"}


def write(folder):
    """Write the standard set into a folder -> its index. The same bytes every time."""
    entries, tensors = [], {}
    for case in cases():
        truth = {} if case.wrong else answers(case.mechanism, case.attributes, case.inputs, Arithmetic())
        budgets = budgets_of(case, truth) if truth else {}
        if case.inputs["dout"].shape[2] >= LONG:
            del truth["scores"], truth["P"]                                  # large, and other cases have them
        entry = {"caseId": case.id, "mechanism": case.mechanism, "attributes": case.attributes, "flags": [case.family],
                 "result": "invalid" if case.wrong else "valid", "note": case.wrong, "tensors": {}}
        for name, x in {**case.inputs, **truth}.items():
            x = x if name in truth or x.dtype == bool else x.astype(np.float32)
            role = "input" if name in case.inputs else "intermediate" if name in INTERMEDIATE else "gradient"
            role = {"dout": "cotangent", "out": "output"}.get(name, role)
            entry["tensors"][name] = {"role": role, "dtype": str(x.dtype), "shape": list(x.shape),
                                      "axes": _axes(case.mechanism, name)}
            if name in truth:
                entry["tensors"][name]["budgets"] = budgets[name]
            tensors[f"{case.id}/{name}"] = x
        entries.append(entry)
    payload = pack(tensors)
    index = {"format": "minattn golden vectors", "version": 1, "schema": SCHEMA, "payload": PAYLOAD,
             "sha256": hashlib.sha256(payload).hexdigest(),
             "layout": "tensor caseId/name, little-endian, row-major, axes as listed", "bugs": BUGS, "cases": []}
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    text = json.dumps(index, indent=1).replace('"cases": []', f'"cases": [\n{lines}\n]') + "\n"
    schema = Path(__file__).with_name("vectors_schema.json").read_bytes()
    _save(Path(folder), {PAYLOAD: payload, INDEX: text.encode(), SCHEMA: schema})
    return {**index, "cases": entries}


def _axes(mechanism, name):
    row = MECHANISMS[mechanism]
    axes = {"bias": "B H Tq Tk", "allowed": "B H Tq Tk", "out": "B H Tq Dv", "dout": "B H Tq Dv", **INTERMEDIATE}
    for argument, shape in {**row.arguments, **row.optional}.items():
        axes[argument] = shape.replace("|1", "")
    return axes.get(name) or axes[name[1:]]                                  # dq has the axes of q


def _save(folder, files):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}; choose another place.") from None


C_TYPES = """\
/* The smallest golden vectors of %s attention. Written by: python -m minattn vectors header FILE */
#ifndef MINATTN_VECTORS_H
#define MINATTN_VECTORS_H
#include <math.h>

typedef struct {
    const char *name;          /* q k v dout allowed (given), out dq dk dv (due), scores P lse delta (on the way) */
    int shape[4];
    const double *data;        /* row-major; allowed is 0 or 1 */
    double bound64, bound32;   /* the largest error that a double or a float may have; -1: given */
} vector_tensor;

typedef struct {
    const char *id;
    int causal, window, prefix, align_start;   /* window 0: none. Query i sits at key i + Tk - Tq, or at i */
    double scale;
    int n_tensors;
    const vector_tensor *tensors;
} vector_case;
"""


def header(path, mechanism="softmax", count=10):
    """Write the smallest valid cases of a mechanism as a C header: numbers to include, no library to link."""
    checks.choice("mechanism", mechanism, MECHANISMS)
    chosen = [case for case in cases() if case.mechanism == mechanism and not case.wrong]
    chosen = sorted(chosen, key=lambda case: (sum(x.size for x in case.inputs.values()), case.id))[:count]
    lines, table = [C_TYPES % mechanism], []
    for n, case in enumerate(chosen):
        truth, rows, a = answers(case.mechanism, case.attributes, case.inputs, Arithmetic()), [], case.attributes
        budgets = budgets_of(case, truth)
        for name, x in {**case.inputs, **truth}.items():
            numbers = ", ".join("-INFINITY" if value == -np.inf else float(value).hex() for value in x.ravel())
            bound = {n: b or -1 for n, b in budgets.get(name, dict.fromkeys(("float64", "float32"))).items()}
            shape = ", ".join(map(str, (*x.shape, 1, 1, 1)[:4]))
            lines.append(f"static const double vector_{n}_{name}[] = {{{numbers}}};")
            rows.append(f'    {{"{name}", {{{shape}}}, vector_{n}_{name}, {bound["float64"]!r}, {bound["float32"]!r}}}')
        lines += [f"static const vector_tensor vector_{n}[] = {{", ",\n".join(rows), "};"]
        rules = f"{a['causal']:d}, {a['window'] or 0}, {a['prefix']}, {a['align'] == 'start':d}"
        table.append(f'    {{"{case.id}", {rules}, {a.get("scale", 1.0)!r}, {len(rows)}, vector_{n}}}')
    lines += [f"enum {{ N_VECTOR_CASES = {len(table)} }};", "static const vector_case vector_cases[N_VECTOR_CASES] = {"]
    text = "\n".join([*lines, ",\n".join(table), "};", "#endif", ""])
    _save(Path(path).parent, {Path(path).name: text.encode()})


def add_arguments(parser):
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = actions.add_parser("write", help="write the standard set into a folder")
    one.add_argument("where", metavar="DIR")
    one = actions.add_parser("check", help="check what a program made of the vectors in a folder")
    one.add_argument("where", metavar="DIR")
    one.add_argument("--results", help="a folder or .safetensors file; without it, our own kernels are checked")
    one.add_argument("--precision", help="hold every tensor to this precision's budget, whatever its own type is")
    one.add_argument("--json", metavar="FILE", help="write every row there")
    one = actions.add_parser("header", help="write the ten smallest cases of a mechanism as a C header")
    one.add_argument("where", metavar="FILE")
    one.add_argument("--mechanism", default="softmax", help="default %(default)s")


def run(args):
    """-> 0 all good, 1 something is wrong; InputError (exit code 2) where nothing could be checked."""
    if args.action == "header":
        header(args.where, args.mechanism)
        print(f"{args.where}: the smallest cases of {args.mechanism}")
        return 0
    if args.action == "write":
        n, size = len(write(args.where)["cases"]), (Path(args.where) / PAYLOAD).stat().st_size
        print(f"{args.where}: {n} cases, {size / 1e6:.1f} MB of tensors")
        return 0
    report = check(args.where, args.results, args.precision)
    print(report)
    if args.json:
        _save(Path(args.json).parent, {Path(args.json).name: json.dumps(report.to_json(), indent=1).encode()})
    if not report.having("passed") and not report.having("failed"):
        raise InputError(f"nothing in {args.results} answers any case of {args.where}.")
    return 0 if report.ok else 1
