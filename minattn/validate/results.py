"""Golden vectors, read: files of tensors, and a program's results compared with the answers."""
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save

from minattn import attention, checks, files
from minattn.errors import InputError
from minattn.validate.arithmetic import FORMATS

INDEX, PAYLOAD, SCHEMA = "index.json", "vectors.safetensors", "schema.json"
ROLES = ("input", "cotangent", "output", "gradient", "intermediate")
CODES = {"F64": ("float64", "<f8"), "F32": ("float32", "<f4"), "F16": ("float16", "<f2"),
         "BF16": ("bfloat16", "<u2"), "BOOL": ("bool", "|b1")}

TENSOR_KIND = {"role": str, "dtype": str, "shape": [int], "axes": str,
               "budgets?": {str: (float, None)}}
CASE_KIND = {"caseId": str, "mechanism": str, "attributes": {str: (float, str, bool, None)},
             "flags": [str], "result": str, "note": str, "tensors": {str: TENSOR_KIND}}
INDEX_KIND = {"format": str, "version": int, "sha256": str, "cases": [CASE_KIND]}
FORMAT = "minattn golden vectors"


def pack(tensors):
    """Arrays -> the bytes of a safetensors file, in an order given by names and sizes alone."""
    return save({key: np.ascontiguousarray(x) for key, x in tensors.items()})


def unpack(content, where):
    """A safetensors file -> {key: (precision, array)}; float16 and bfloat16 come as float32."""
    try:
        return {key: (CODES[about["dtype"]][0],
                      _numbers(about["data"], about["dtype"]).reshape(about["shape"]))
                for key, about in deserialize(content)}
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{where} is damaged, or holds other types than {', '.join(CODES)} "
                         f"({type(error).__name__}: {files.one_line(error)}).") from None


def _numbers(content, code):
    x = np.frombuffer(content, CODES[code][1])
    if code == "BF16":
        return (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float32) if code == "F16" else x


def read_results(where):
    """What a program wrote -> {"caseId/tensor": (precision, array)}.

    `where` is a safetensors file with keys caseId/tensor, or a folder of such files and of raw
    ones, named caseId.tensor.f32.bin (or f64, f16, bf16): little-endian, row-major. A case that the
    program refused, as it should refuse the invalid ones, is an empty tensor caseId/rejected or a
    file caseId.rejected.
    """
    where, results = Path(where).expanduser(), {}
    if not where.exists():
        raise InputError(f"cannot read results from {where}: there is no such file or folder.")
    try:
        for path in sorted(where.iterdir()) if where.is_dir() else [where]:
            case_id, *rest = path.name.split(".")
            if path.suffix == ".safetensors":
                results.update(unpack(files.read(path, follow=True), path))
            elif rest == ["rejected"]:
                results[f"{case_id}/rejected"] = "float32", np.zeros(0)
            elif path.suffix == ".bin":
                results[f"{case_id}/{rest[0]}"] = _raw(path, rest)
    except OSError as error:
        raise InputError(f"cannot read results from {where}: {error.strerror}.") from None
    if not results:
        raise InputError(f"{where} holds no results: neither .safetensors nor "
                         f"caseId.tensor.f32.bin files.")
    return results


def _raw(path, rest):
    if len(rest) != 3 or rest[1].upper() not in CODES:
        raise InputError(f"{path} must be called caseId.tensor.f32.bin (or f64, f16, bf16).")
    code, content = rest[1].upper(), files.read(path, follow=True)
    try:
        return CODES[code][0], _numbers(content, code)
    except ValueError:
        raise InputError(f"{path} ends in the middle of a number of type {rest[1]}.") from None


def read(folder):
    """A folder of vectors -> its index, {"caseId/tensor": array}; InputError if it is damaged."""
    folder = Path(folder)
    again = f"write them with: python -m minattn vectors write {files.quoted(folder)}"
    try:
        index = files.read_json(folder / INDEX, INDEX_KIND, way_out=again)
        payload = files.read(folder / PAYLOAD)
    except files.Missing as error:
        raise InputError(f"{folder} is no folder of vectors: {error} {again}") from None
    if index["format"] != FORMAT or index["version"] != 1:
        raise InputError(f"{folder / INDEX} is of another format: {index['format']!r}, version "
                         f"{index['version']}; this program reads {FORMAT!r}, version 1.")
    if index["sha256"] != hashlib.sha256(payload).hexdigest():
        raise InputError(f"{folder / PAYLOAD} is not the one that {INDEX} describes: "
                         f"its sha256 differs.")
    truth = {key: x for key, (_, x) in unpack(payload, folder / PAYLOAD).items()}
    for case in index["cases"]:
        if wrong := _wrong(case, truth):
            raise InputError(f"{folder / INDEX} is damaged: case {case['caseId']} {wrong}; "
                             f"{again}.")
    return index, truth


def _wrong(case, truth):
    """What keeps a case of an index from being used, or None."""
    mechanism, tensors, name = case["mechanism"], case["tensors"], case["caseId"]
    if mechanism not in attention.MECHANISMS:
        return f"is of the mechanism {mechanism!r}, which there is not"
    if case["result"] not in ("valid", "invalid"):
        return f"is neither valid nor invalid, but {case['result']!r}"
    for tensor, about in tensors.items():
        x = truth.get(f"{name}/{tensor}")
        if x is None or list(x.shape) != about["shape"] or str(x.dtype) != about["dtype"]:
            return f"has a tensor {tensor} that {PAYLOAD} lacks, or has otherwise"
        if about["role"] not in ROLES:
            return f"has a tensor {tensor} of the role {about['role']!r}"
    if "dout" not in tensors or case["result"] == "valid" and "budgets" not in str(tensors):
        return "has no cotangent, or no answer"
    return None


class Row(NamedTuple):
    case: str
    tensor: str
    status: str               # "passed", "failed" or "not covered"
    precision: str = ""
    error: float = 0.0        # the largest
    bound: float = 0.0
    rms: float = 0.0          # of the error, relative to that of the truth
    note: str = ""

    def __str__(self):
        return (f"{self.case:40} {self.tensor:13} {self.error:8.1e} {self.bound:8.1e} "
                f"{self.rms:8.1e}  {self.note}")


class Comparison(NamedTuple):
    """Every tensor of a program's results beside the answer."""
    rows: list

    def having(self, status):
        return [row for row in self.rows if row.status == status]

    @property
    def ok(self):
        return bool(self.having("passed")) and not self.having("failed")

    def to_json(self):
        return {"ok": self.ok, "rows": [row._asdict() for row in self.rows]}

    def __str__(self):
        lines, failed = [], self.having("failed")
        if failed:
            lines = [f"{'case':40} {'tensor':13} {'error':>8} {'bound':>8} {'rms':>8}",
                     *map(str, failed)]
        measured = [row for row in self.having("passed") if row.bound]
        if measured:
            row = max(measured, key=lambda row: row.error / row.bound)
            lines.append(f"closest that passed: {row.case} {row.tensor}, "
                         f"at {row.error / row.bound:.0%} of its bound")
        counts = [f"{len(self.having(s))} {s}" for s in ("passed", "failed", "not covered")]
        return "\n".join([*lines, f"tensors: {', '.join(counts)}"])


def check(folder, results=None, precision=None):
    """Compare what a program made of the vectors in a folder with the answers -> Comparison

    results    a file or folder (see read_results), or {"caseId/tensor": array}; None: our kernels
    precision  each tensor is held to the budget of its own type, or of this one
    """
    index, truth = read(folder)
    if precision is not None:
        checks.choice("precision", precision, [x for x in FORMATS if x != "tf32"])
    if results is None:
        both = (compare(index, truth, own_results(index, truth, dtype), dtype)
                for dtype in ("float64", "float32"))
        return Comparison([row for found in both for row in found.rows])
    if isinstance(results, dict):
        results = {key: (str(x.dtype), x) for key, x in results.items()}
    else:
        results = read_results(results)
    return compare(index, truth, results, precision)


def compare(index, truth, results, precision=None):
    """Results {"caseId/tensor": (precision, array)} beside the answers -> Comparison"""
    rows, given = [], {}
    for key in results:
        case, _, tensor = key.partition("/")
        given.setdefault(case, set()).add(tensor)
    for case in index["cases"]:
        name, tensors = case["caseId"], given.pop(case["caseId"], set())
        if case["result"] == "invalid":
            status = "not covered"
            if tensors:
                status = "failed" if tensors - {"rejected"} else "passed"
            rows.append(Row(name, "rejected", status, note=f"to be refused: {case['note']}"))
            continue
        if "rejected" in tensors:
            rows.append(Row(name, "rejected", "failed", note="a valid case was refused"))
        for tensor, about in case["tensors"].items():
            if "budgets" in about:
                came, x = results.get(f"{name}/{tensor}", ("", None))
                row = Row(name, tensor, "not covered", precision or came)
                rows.append(_compare(row, x, truth[f"{name}/{tensor}"], about["budgets"]))
        given[name] = tensors - case["tensors"].keys() - {"rejected"}
    strange = sorted((name, tensor) for name, tensors in given.items() for tensor in tensors)
    rows += [Row(*key, "failed", note="the index has no such tensor") for key in strange]
    return Comparison(rows)


@np.errstate(all="ignore")                       # the numbers are another program's: NaN, too large
def _compare(row, x, expected, budgets):
    bound = budgets.get(row.precision)
    if x is None:
        return row._replace(note="not in the results")
    if bound is None:
        return row._replace(note=f"{row.precision} cannot hold this case")
    row = row._replace(status="failed", error=np.inf, bound=bound)
    if x.size != expected.size or x.ndim != 1 and x.shape != expected.shape:
        return row._replace(note=f"its shape must be {expected.shape}; got {x.shape}")
    x = x.reshape(expected.shape).astype(float)
    error = np.where(x == expected, 0, np.abs(x - expected))                 # both may be -inf
    error[np.isnan(error)] = np.inf
    at = tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))
    right = np.where(np.isfinite(expected), expected, 0)
    return row._replace(status="passed" if error[at] <= bound else "failed", error=float(error[at]),
                        rms=float(np.sqrt((error**2).sum() / max((right**2).sum(), 1e-300))),
                        note=f"at {at}: expected {expected[at]:.9g}, got {x[at]:.9g}")


def own_results(index, truth, dtype):
    """This package's kernels on the inputs of every case, as any program would take part."""
    results = {}
    for case in index["cases"]:
        name, module = case["caseId"], attention.mechanism(case["mechanism"]).module
        x = {n: truth[f"{name}/{n}"] for n, about in case["tensors"].items()
             if about["role"] in ("input", "cotangent")}
        x = {n: a if a.dtype == bool else a.astype(dtype) for n, a in x.items()}
        dout = x.pop("dout")
        try:
            out, cache = module.forward(**x, **case["attributes"])[:2]
            grads = {f"d{n}": a for n, a in module.backward(dout, cache).items()}
        except InputError:
            results[f"{name}/rejected"] = dtype, np.zeros(0)
            continue
        except (TypeError, ValueError, OverflowError, MemoryError) as error:
            raise InputError(f"case {name} of these vectors cannot be run: "
                             f"{files.one_line(error)}.") from None
        results.update({f"{name}/{n}": (dtype, a) for n, a in {"out": out, **grads}.items()})
    return results
