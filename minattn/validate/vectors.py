"""Golden vectors: cases with their answers in files, to check a program in any language.

    python -m minattn vectors write DIR  # index.json, vectors.safetensors, schema.json
    python -m minattn vectors check DIR --results RESULTS    # what your program made of the inputs

The answers are those of attention/naive.py, the same to the bit on every machine, because neither
BLAS nor libm takes part: IEEE 754 fixes +, -, *, / and sqrt to the last bit, exp and log are made
from these (arithmetic.py), and sums run in a stated order. The inputs are those of the kit's cases,
8 significant bits each, exact in every precision that has their range; they rely on NumPy's
generator not changing.
"""
import hashlib
import json
from pathlib import Path

import numpy as np

from minattn import attention, files
from minattn.errors import InputError
from minattn.validate import golden
from minattn.validate.golden import LONG, answers, budgets_of
from minattn.validate.report import write_file
from minattn.validate.results import INDEX, PAYLOAD, SCHEMA, check, pack

INTERMEDIATE = {"scores": "B H Tq Tk", "P": "B H Tq Tk", "lse": "B H Tq", "delta": "B H Tq"}
ROLES = {"dout": "cotangent", "out": "output", **dict.fromkeys(INTERMEDIATE, "intermediate")}
AXES = {"bias": "B H Tq Tk", "allowed": "B H Tq Tk", "out": "B H Tq Dv", **INTERMEDIATE}


def write(folder):
    """Write the standard set into a folder -> its index. The same bytes every time."""
    try:
        files.check_writable(folder)                         # before the work, not after it
    except files.CannotWrite as error:
        raise InputError(str(error)) from None
    files.check_ours(folder, (INDEX, SCHEMA), PAYLOAD)       # the payload is written first
    files.sweep(folder, (PAYLOAD, INDEX, SCHEMA), older=files.OLD)
    entries, tensors = [], {}
    every = [("", case) for case in golden.cases()] + list(golden.invalid_cases())
    for wrong, case in every:
        attributes, inputs = golden.split(case)
        truth = {} if wrong else answers(case)
        budgets = {} if wrong else budgets_of(case, truth)
        if case.cotangent.shape[2] >= LONG:                  # large, and other cases have them
            truth = {name: x for name, x in truth.items() if name not in ("scores", "P")}
        entry = {"caseId": case.id, "mechanism": case.mechanism, "attributes": attributes,
                 "flags": [case.family], "result": "invalid" if wrong else "valid", "note": wrong,
                 "tensors": {}}
        for name, x in inputs.items():
            x = x if x.dtype == bool else x.astype(np.float32)
            entry["tensors"][name] = _about(case, name, x, ROLES.get(name, "input"))
            tensors[f"{case.id}/{name}"] = x
        for name, x in truth.items():
            about = _about(case, name, x, ROLES.get(name, "gradient"))
            entry["tensors"][name] = {**about, "budgets": budgets[name]}
            tensors[f"{case.id}/{name}"] = x
        entries.append(entry)
    payload = pack(tensors)
    index = {"format": "minattn golden vectors", "version": 1, "schema": SCHEMA, "payload": PAYLOAD,
             "sha256": hashlib.sha256(payload).hexdigest(),
             "layout": "tensor caseId/name, little-endian, row-major, axes as listed",
             "bugs": golden.BUGS, "cases": []}
    index[files.CHECKSUM] = files.checksum({**index, "cases": entries})
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    text = json.dumps(index, indent=1).replace('"cases": []', f'"cases": [\n{lines}\n]') + "\n"
    schema = Path(__file__).with_name("vectors_schema.json").read_bytes()
    for name, content in {PAYLOAD: payload, INDEX: text.encode(), SCHEMA: schema}.items():
        write_file(Path(folder) / name, content, follow=False)
    return {**index, "cases": entries}


def _about(case, name, x, role):
    mechanism = attention.mechanism(case.mechanism)
    axes = {**AXES, **mechanism.arguments, **mechanism.optional}
    shape = axes.get(name) or axes[name[1:]]                 # dq has the axes of q
    return {"role": role, "dtype": str(x.dtype), "shape": list(x.shape),
            "axes": shape.replace("|1", "")}


def header(path, mechanism="softmax", count=10):
    """Write the smallest valid cases of a mechanism as a C header, to include without a library."""
    attention.mechanism(mechanism)
    chosen = [case for case in golden.cases() if case.mechanism == mechanism]
    chosen.sort(key=lambda case: (sum(x.size for x in golden.split(case)[1].values()), case.id))
    types = Path(__file__).with_name("vectors_types.h").read_text(encoding="utf-8")
    lines, table = [types % mechanism], []
    for n, case in enumerate(chosen[:count]):
        truth, rows = answers(case), []
        budgets, (a, inputs) = budgets_of(case, truth), golden.split(case)
        for name, x in {**inputs, **truth}.items():
            numbers = ", ".join("-INFINITY" if value == -np.inf else float(value).hex()
                                for value in x.ravel())
            bounds = [budgets.get(name, {}).get(dtype) or -1 for dtype in ("float64", "float32")]
            shape = ", ".join(map(str, (*x.shape, 1, 1, 1)[:4]))
            lines.append(f"static const double vector_{n}_{name}[] = {{{numbers}}};")
            rows.append(f'    {{"{name}", {{{shape}}}, vector_{n}_{name}, '
                        f"{bounds[0]!r}, {bounds[1]!r}}}")
        lines += [f"static const vector_tensor vector_{n}[] = {{", ",\n".join(rows), "};"]
        rules = f"{a['causal']:d}, {a['window'] or 0}, {a['prefix']}, {a['align'] == 'start':d}"
        scale = a.get("scale", 1.0)
        table.append(f'    {{"{case.id}", {rules}, {scale!r}, {len(rows)}, vector_{n}}}')
    lines += [f"enum {{ N_VECTOR_CASES = {len(table)} }};",
              "static const vector_case vector_cases[N_VECTOR_CASES] = {", ",\n".join(table),
              "};", "#endif", ""]
    write_file(path, "\n".join(lines))


def add_arguments(parser):
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    one = actions.add_parser("write", help="write the standard set into a folder")
    one.add_argument("where", metavar="DIR")
    one = actions.add_parser("check",
                             help="check the results of another program on these vectors")
    one.add_argument("where", metavar="DIR")
    one.add_argument("--results",
                     help="a folder or .safetensors file; without it, our own kernels are checked")
    one.add_argument("--precision",
                     help="hold every tensor to this precision's budget, whatever its own type is")
    one.add_argument("--json", metavar="FILE", help="write all results as JSON")
    one = actions.add_parser("header",
                             help="write the ten smallest cases of a mechanism as a C header")
    one.add_argument("where", metavar="FILE")
    one.add_argument("--mechanism", default="softmax", help="default %(default)s")


def run(args):
    """-> 0 all good, 1 something is wrong; InputError (exit code 2) if nothing could be checked."""
    where = Path(args.where).expanduser()
    if args.action == "header":
        header(where, args.mechanism)
        print(f"{where}: the smallest cases of {args.mechanism}")
        return 0
    if args.action == "write":
        n = len(write(where)["cases"])
        size = (where / PAYLOAD).stat().st_size
        print(f"{where}: {n} cases, {size / 1e6:.1f} MB of tensors")
        return 0
    report = check(where, args.results, args.precision)
    print(report)
    if args.json is not None:
        write_file(args.json, json.dumps(report.to_json(), indent=1))
    if not report.having("passed") and not report.having("failed"):
        raise InputError(f"nothing in {args.results} answers any case of {where}.")
    return 0 if report.ok else 1
