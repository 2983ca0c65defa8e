"""Golden vectors: the same bytes every time, right answers, a check that holds, a C program."""
import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minattn.attention import MECHANISMS, naive
from minattn.errors import InputError
from minattn.validate import arithmetic, cases, golden, vectors
from minattn.validate.report import write_file
from minattn.validate.results import compare, own_results, read

C_PROGRAM = Path(__file__).with_name("c") / "check_softmax.c"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The standard set, of every mechanism: half a minute"""
    where = tmp_path_factory.mktemp("whole")
    vectors.write(where)
    return where


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The vectors of three mechanisms"""
    where = tmp_path_factory.mktemp("vectors")
    with pytest.MonkeyPatch.context() as patch:
        some = {name: MECHANISMS[name] for name in ("softmax", "sink", "energy")}
        patch.setattr(golden, "MECHANISMS", some)
        vectors.write(where)
    return where


@pytest.fixture(scope="module")
def content(folder):
    return read(folder)


@pytest.fixture(scope="module")
def own(content):
    """This package's float32 results, as a program hands them in."""
    return {key: x for key, (_, x) in own_results(*content, "float32").items()}


def command(*words):
    parser = argparse.ArgumentParser()
    vectors.add_arguments(parser)
    return vectors.run(parser.parse_args([str(word) for word in words]))


# --------------------------------------------------------------------------------- what is written


@pytest.mark.slow
def test_the_standard_set_is_the_same_byte_for_byte(whole, tmp_path):
    program = "import sys; from minattn.validate import vectors; vectors.write(sys.argv[1])"
    environment = {"PYTHONHASHSEED": "7", "OPENBLAS_NUM_THREADS": "2",
                   "OPENBLAS_CORETYPE": "Nehalem",
                   # almost as on another machine
                   "PYTHONPATH": str(Path(vectors.__file__).parents[2])}
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, env=environment)
    for name in (vectors.INDEX, vectors.PAYLOAD, vectors.SCHEMA):
        assert (whole / name).read_bytes() == (tmp_path / name).read_bytes(), name


# those whose answers are held to the last bit; a new mechanism may join with a new digest
PINNED = ("softmax", "off_by_one", "sink", "gated", "affine", "energy", "gaussian")


def test_the_arithmetic_gives_these_bits_on_every_machine():
    """No BLAS, no libm, no generator: inputs by integer arithmetic, the mechanisms of PINNED."""
    def number(n, shape):
        return (np.arange(np.prod(shape)).reshape(shape) * (2 * n + 37) % 61 - 30) / 16
    digest = hashlib.sha256()
    for name in PINNED:
        mechanism = MECHANISMS[name]
        size = {"B": 2, "H": 3, "Tq": 5, "Tk": 7, "T": 7, "G": 3, "D": 3, "Dv": 2, "Dv|1": 2}
        arrays = {arg: number(n, [size[s] for s in shape.split()])
                  for n, (arg, shape) in enumerate(mechanism.arguments.items())}
        dout = number(9, (2, 3, 7, 3) if "x" in arrays else (2, 3, 5, 2))
        options = {"causal": True, "prefix": 2, **mechanism.settings()}
        if "q" in arrays:
            options["scale"] = 0.75
        case = cases.Case("", "", name, arrays, options, dout)
        for tensor, a in golden.answers(case).items():
            digest.update(tensor.encode() + (a + 0.0).astype("<f8").tobytes())  # (no minus zeros)
    assert digest.hexdigest() == "2e605541ed5503c9faa3ff8d31e4b68f2ee59c679699e77cbca2ec3126f66a80"


def test_exp_and_log_are_as_exact_as_the_machine_s():
    x = np.linspace(-690, 300, 20011)
    assert np.max(np.abs(arithmetic.exp(x) / np.exp(x) - 1)) < 4e-16
    assert arithmetic.exp(np.array([-np.inf, -1e4, 0.0])).tolist() == [0, 0, 1]
    y = np.concatenate([np.linspace(1, 3, 5000), np.logspace(0, 9, 5000)])
    assert np.max(np.abs(arithmetic.log(y) - np.log(y)) / np.maximum(np.log(y), 1)) < 4e-16
    assert np.allclose(arithmetic.power(x, 3), x**3, rtol=4e-16) and arithmetic.power(4.0, 0.5) == 2
    u = arithmetic.Arithmetic("float64", portable=True).array(np.linspace(-200, 200, 4001))
    log_sigmoid = np.minimum(u, 0) - np.log1p(np.exp(-np.abs(u)))
    u, log_sigmoid, sigmoid = np.asarray(u), np.asarray(log_sigmoid), np.asarray(naive.sigmoid(u))
    assert np.allclose(log_sigmoid, -np.logaddexp(0, -u), rtol=4e-16, atol=0)
    assert np.allclose(sigmoid, np.exp(-np.logaddexp(0, -u)), rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_is_to_nearest_even(dtype):
    if dtype == "bfloat16":
        target = pytest.importorskip("ml_dtypes").bfloat16
    else:
        target = np.dtype(dtype)
    x = np.random.default_rng(0).standard_normal(5000) * np.logspace(-3, 3, 5000)
    x = np.concatenate([x, 1 + np.arange(64) / 512, [0, -0.0, np.inf, -np.inf]])
    x = x.astype(np.float32).astype(float)
    assert np.array_equal(arithmetic.round_to(x, dtype), x.astype(target).astype(float))


def test_an_unknown_mechanism_is_refused_and_not_answered_as_softmax():
    case = next(golden.cases())
    with pytest.raises(InputError, match="Did you mean 'softmax'"):
        golden.answers(case._replace(mechanism="softmx"))


@pytest.mark.slow
def test_the_set_is_small_and_holds_every_mechanism_and_family(whole):
    index, _ = read(whole)
    assert sum(path.stat().st_size for path in whole.iterdir()) < 0.55e6 * len(MECHANISMS)
    names = [case["caseId"] for case in index["cases"]]
    assert len(set(names)) == len(names) > 200
    for name in MECHANISMS:
        families = {flag for case in index["cases"] if case["mechanism"] == name
                    for flag in case["flags"]}
        assert families >= {case.family for case in cases.cases(name)} - set(golden.APART), name
    assert {flag for case in index["cases"] for flag in case["flags"]} >= set(index["bugs"])
    variants = {(case["mechanism"], *(case["attributes"].get(option)
                                      for option in ("phi", "length", "norm")))
                for case in index["cases"]}
    norms = ("key", "prefix", "sequence", "none")
    assert variants >= {("energy", None, None, norm) for norm in norms}
    assert variants >= {("affine", "sigmoid", "total", None),
                        ("affine", "linear_clip", "visible", None)}


def test_the_index_keeps_to_its_schema(folder):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((folder / vectors.SCHEMA).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    index = json.loads((folder / vectors.INDEX).read_text())
    jsonschema.validate({**index, "cases": index["cases"][::25] + index["cases"][-8:]}, schema)
    index["cases"] = index["cases"][:1]
    index["cases"][0]["tensors"]["out"]["role"] = "guess"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(index, schema)


def test_the_safetensors_library_reads_the_same(folder, content):
    index, truth = content
    loaded = pytest.importorskip("safetensors.numpy").load_file(folder / vectors.PAYLOAD)
    assert loaded.keys() == truth.keys()
    assert all(np.array_equal(loaded[key], truth[key], equal_nan=True) for key in truth)
    listed = {f"{case['caseId']}/{name}": t for case in index["cases"] for name,
              t in case["tensors"].items()}
    assert listed.keys() == loaded.keys()
    assert all((tuple(t["shape"]), t["dtype"]) == (loaded[key].shape, loaded[key].dtype) for key,
               t in listed.items())


@pytest.mark.slow
def test_every_valid_case_has_an_answer_for_every_input(whole):
    index, truth = read(whole)
    for case in index["cases"]:
        roles = {name: about["role"] for name, about in case["tensors"].items()}
        outputs = {name for name in roles if roles[name] in ("output", "gradient")}
        if case["result"] == "invalid":
            assert case["note"] and not outputs
            continue
        inputs = {name for name in roles if roles[name] == "input"} - {"allowed", "alpha_ma"}
        assert outputs == {"out"} | {"d" + name for name in inputs}
        found = {"scores", "P", "lse", "delta"} & roles.keys()
        assert {"lse", "delta"} <= found or not (found or case["mechanism"] in PINNED)
        P = truth.get(f"{case['caseId']}/P")
        if P is not None and case["mechanism"] not in ("sink", "off_by_one"):
            assert np.all(np.isclose(P.sum(-1), 1) | (P.sum(-1) == 0))


# ------------------------------------------------------------------------------------ the checking


@pytest.mark.slow
def test_our_own_kernels_pass_in_float64_and_float32(whole):
    report = vectors.check(whole)
    assert report.ok, str(report)
    refused = [row for row in report.rows if row.tensor == "rejected"]
    assert len(refused) == 2 * len(golden.INVALID)
    assert all(row.status == "passed" for row in refused)
    missing = {row.tensor for row in report.having("not covered")}
    assert missing <= {"scores", "P", "lse", "delta"}, missing
    # room for other kernels
    assert max(row.error / row.bound for row in report.having("passed") if row.bound) < 0.8


def test_pytorch_s_own_attention_passes_in_float32_and_bfloat16(folder, content):
    torch = pytest.importorskip("torch")
    index, truth = content
    for dtype in (torch.float32, torch.bfloat16):
        results = {}
        for case in index["cases"]:
            a, name, on = case["attributes"], case["caseId"], torch.tensor(True)
            if case["mechanism"] != "softmax" or case["result"] == "invalid":
                continue
            x = {n: torch.tensor(truth[f"{name}/{n}"]) for n,
                 t in case["tensors"].items() if "budgets" not in t}
            Tq, Tk = x["q"].shape[2], x["k"].shape[2]
            p = torch.arange(Tq)[:, None] + (Tk - Tq if a["align"] == "end" else 0)
            j = torch.arange(Tk)
            see = on
            if a["causal"] or a["window"]:
                see = (j <= p) | (j < a["prefix"]) & (p < a["prefix"])
            see = see & (j > p - (a["window"] or 999)) & x.get("allowed", on)
            if not see.any(-1).all():
                continue                                     # NaN there, by PyTorch's own choice
            x = {n: b if b.dtype == torch.bool else b.to(dtype).requires_grad_() for n,
                 b in x.items()}
            mask = torch.where(see, x.get("bias", torch.zeros((), dtype=dtype)),
                               -torch.inf).to(dtype)
            sdpa = torch.nn.functional.scaled_dot_product_attention
            out = sdpa(x["q"], x["k"], x["v"], attn_mask=mask, scale=a["scale"])
            grads = torch.autograd.grad(out, [x[n] for n in "qkv"], x["dout"])
            precision = str(dtype).removeprefix("torch.")
            tensors = {"out": out, "dq": grads[0], "dk": grads[1], "dv": grads[2]}
            results.update({f"{name}/{n}": (precision, t.detach().double().numpy()) for n,
                            t in tensors.items()})
        report = compare(index, truth, results, None)
        assert report.ok and len(report.having("passed")) > 120, f"{dtype}\n{report}"


def wrong(results, content):
    """Results with one thing wrong in them -> (the tensor it is in, the results)"""
    first = "softmax-causal-T"
    q, k = content[1][f"{first}/q"], content[1][f"{first}/k"]
    same = results[f"{first}/dk"].copy()
    heads = results[f"{first}/out"][:, ::-1].copy()
    nan = results[f"{first}/dv"].copy()
    nan[1, 2, 3, 4] = np.nan
    yield f"{first}/dq", np.zeros_like(q)
    yield f"{first}/dk", same * np.float32(1 + 1e-5)
    yield f"{first}/dk", k
    yield f"{first}/out", heads
    yield f"{first}/out", results[f"{first}/out"].astype(np.float16).astype(np.float32)
    yield f"{first}/dv", nan
    yield f"{first}/dv", np.swapaxes(nan, 2, 3)
    yield f"{first}/out", heads[:1]
    holes, below = "softmax-fully_masked_row-holes/out", "sink-sink_far_below--20/dsink"
    yield holes, results[holes] + np.float32(1e-5)
    yield below, -results[below] + np.float32(1e-4)
    yield "energy-gate_all_closed-key/out", 0 * results["energy-gate_all_closed-key/out"]
    yield "no-such-case/out", q
    yield f"{first}/rejected", q
    yield "softmax-invalid-a-window-of-no-keys/out", q
    yield f"{first}/dzz", q


def test_whatever_is_wrong_is_found_and_nothing_else(folder, content, own):
    index, truth = content
    assert vectors.check(folder, own).ok
    mistakes = list(wrong(own, content))
    assert len(mistakes) == 15
    for key, x in mistakes:
        results = {name: ("float32", a) for name, a in {**own, key: x}.items()}
        report = compare(index, truth, results, None)
        # it was to be refused
        failed, key = report.having("failed"), key.replace("no-keys/out", "no-keys/rejected")
        assert [f"{row.case}/{row.tensor}" for row in failed] == [key], (key, str(report))
        assert not report.ok and failed[0].case in str(report)


def test_minus_infinity_is_due_where_nothing_is_visible(folder, content):
    key = "softmax-fully_masked_row-holes/lse"
    lse = content[1][key]
    assert np.isneginf(lse).any()
    assert vectors.check(folder, {key: lse}).ok
    assert not vectors.check(folder, {key: np.where(np.isneginf(lse), -1e30, lse)}).ok
    assert not vectors.check(folder, {key: np.where(np.isneginf(lse), np.nan, lse)}).ok
    with np.errstate(all="raise"):
        assert not vectors.check(folder, {key: np.full(lse.shape, 1e300)}).ok


def test_what_is_missing_is_not_covered_and_never_passed(folder, own):
    forward = {key: x for key, x in own.items() if key.startswith("softmax")
               and key.endswith("/out")}
    report = vectors.check(folder, forward)
    assert report.ok and len(report.having("passed")) == len(forward)
    assert {row.tensor for row in report.having("not covered")
            if row.case == "softmax-causal-T"} >= {"dq", "dv", "lse"}
    assert not vectors.check(folder, {"softmax-causal-T/rejected": np.zeros(0), **forward}).ok
    assert not vectors.check(folder, {}).ok


def test_a_wrong_shape_is_said(folder, own):
    key = "softmax-causal-T/dv"
    for x in (own[key].swapaxes(1, 2), own[key][:1]):
        assert "its shape must be (2, 3, 7, 5); got" in str(vectors.check(folder, {key: x}))
    assert vectors.check(folder, {key: own[key].ravel()}).ok  # as a raw file brings it


@pytest.mark.parametrize("code", ["f64", "f32", "f16", "bf16"])
def test_raw_files_and_safetensors_files_of_every_type_are_read(folder, content, tmp_path, code):
    """Answers rounded to a type pass in that type, and fail if they are held to a finer one."""
    types = {"f64": "<f8", "f32": "<f4", "f16": "<f2"}
    name = "softmax-causal-T"
    raw, packed = tmp_path / "raw", tmp_path / "packed.safetensors"
    raw.mkdir()
    tensors = {}
    for tensor in ("out", "dq", "dk", "dv"):
        x = content[1][f"{name}/{tensor}"]
        if code == "bf16":
            rounded = arithmetic.round_to(x, "bfloat16").astype("<f4")
            bits = (rounded.view("<u4") >> 16).astype("<u2")
        else:
            bits = x.astype(types[code])
        (raw / f"{name}.{tensor}.{code}.bin").write_bytes(bits.tobytes())
        tensors[f"{name}/{tensor}"] = bits
    header, end = {"__metadata__": {"by": "a test"}}, 0
    for key, bits in tensors.items():
        header[key] = {"dtype": code.upper(), "shape": bits.shape,
                       "data_offsets": [end, end + bits.nbytes]}
        end += bits.nbytes
    text = json.dumps(header).encode()
    payload = b"".join(bits.tobytes() for bits in tensors.values())
    packed.write_bytes(len(text).to_bytes(8, "little") + text + payload)
    for results in (raw, packed):
        report = vectors.check(folder, results)
        assert report.ok and len(report.having("passed")) == 4, str(report)
        if code in ("f16", "bf16"):
            assert len(vectors.check(folder, results, "float32").having("failed")) == 4
            assert len(vectors.check(folder, results, "float32").having("passed")) == 0


# ------------------------------------------------------------------------------ command, bad input


def test_the_command_says_how_it_went_by_its_exit_code(folder, own, tmp_path, capsys):
    good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    some = {key: x for key, x in own.items() if key.startswith("sink-causal")}
    good.write_bytes(vectors.pack(some))
    bad.write_bytes(vectors.pack({key: -x for key, x in some.items()}))
    assert command("check", folder, "--results", good) == 0
    assert ", 0 failed" in capsys.readouterr().out
    assert command("check", folder, "--results", bad, "--json", tmp_path / "report.json") == 1
    assert "expected" in capsys.readouterr().out
    rows = json.loads((tmp_path / "report.json").read_text())
    assert not rows["ok"]
    assert any(row["status"] == "failed" and row["error"] > row["bound"] for row in rows["rows"])
    good.write_bytes(vectors.pack({"sink-causal-T/elsewhere": np.zeros(3, np.float32)}))
    assert command("check", folder, "--results", good) == 1


def break_folder(folder, tmp_path, how):
    shutil.copytree(folder, tmp_path / "broken")
    how(tmp_path / "broken")
    return tmp_path / "broken"


@pytest.mark.parametrize("how, message", [
    (lambda f: (f / vectors.PAYLOAD).write_bytes(b"\0" * 99), "sha256 differs"),
    (lambda f: (f / vectors.PAYLOAD).unlink(), "is no folder of vectors"),
    (lambda f: (f / vectors.INDEX).unlink(), "is no folder of vectors"),
    (lambda f: (f / vectors.INDEX).write_text("{"), "is damaged"),
    (lambda f: (f / vectors.INDEX).write_text("{}"), "is damaged"),
])
def test_a_damaged_folder_is_one_clear_sentence(folder, tmp_path, how, message):
    with pytest.raises(InputError, match=message):
        vectors.check(break_folder(folder, tmp_path, how))


@pytest.mark.parametrize("name, content, message", [
    ("softmax-causal-T.out.f32.bin", b"\0\0\0", "ends in the middle of a number"),
    ("softmax-causal-T.out.bin", b"", "must be called"),
    ("softmax-causal-T.out.i32.bin", b"", "must be called"),
    ("x.safetensors", b"\xff" * 30, "is damaged"),
    ("x.safetensors", b"", "is damaged"),
    ("x.safetensors", b"\2\0\0\0\0\0\0\0[]", "is damaged"),
    ("readme.txt", b"", "holds no results"),
])
def test_bad_results_are_one_clear_sentence(folder, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        vectors.check(folder, tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "cases", lambda: pytest.fail("it came to the cases"))
    (tmp_path / "file").touch()
    for where in ("file", "file/below"):
        with pytest.raises(InputError, match=f"cannot write .*{where}: .*; name another folder"):
            vectors.write(tmp_path / where)


def test_other_bad_input(folder, tmp_path):
    with pytest.raises(InputError, match="cannot read results from"):
        vectors.check(folder, tmp_path / "nowhere")
    with pytest.raises(InputError, match="precision must be one of"):
        vectors.check(folder, {}, "float8")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_file(tmp_path / "file" / "x", b"")
    with pytest.raises(InputError, match="Did you mean 'softmax'"):
        vectors.header(tmp_path / "x.h", "sotfmax")
    (tmp_path / "only.rejected").write_text("")
    (tmp_path / "other.rejected").write_text("")
    assert command("check", folder, "--results", tmp_path) == 1
    (tmp_path / "only.rejected").unlink()
    (tmp_path / "other.rejected").rename(tmp_path / "softmax-invalid-a-negative-prefix.rejected")
    assert command("check", folder, "--results", tmp_path) == 0


# -------------------------------------------------------------------------------------------- in C


@pytest.mark.skipif(not (shutil.which("cc") or shutil.which("gcc")), reason="no C compiler")
def test_a_c_program_agrees_with_the_header_and_a_wrong_one_does_not(tmp_path):
    assert command("header", tmp_path / "vectors.h") == 0
    source = C_PROGRAM.read_text()
    assert source.count("\n") < 150
    compiler = shutil.which("cc") or shutil.which("gcc")

    def outcome(text, real):
        (tmp_path / "check.c").write_text(text)
        subprocess.run([compiler, "-std=c99", "-O1", "-Wall", "-Wextra", "-Werror",
                        f"-DREAL={real}", "-I", tmp_path,
                        "-o", tmp_path / "check", tmp_path / "check.c", "-lm"], check=True)
        done = subprocess.run([tmp_path / "check"], stdout=subprocess.PIPE, text=True)
        return done.returncode, done.stdout

    for real in ("double", "float"):
        code, said = outcome(source, real)
        assert code == 0 and "0 of 50 tensors are wrong" in said, said
    for old, new in (("dP[j] - delta", "dP[j]"), ("j > p &&", "j > p + 1 &&")):
        assert old in source
        code, said = outcome(source.replace(old, new), "float")
        assert code == 1 and "BAD" in said, (old, said)
