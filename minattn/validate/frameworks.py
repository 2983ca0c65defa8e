"""One call of a function in its framework, from float64 cases and back to float64 results.

Each adapter answers the same questions: how do our numbers become your arrays, what did your
function return, and what are the gradients (by the framework's own differentiation, or by a
backward that came with the function).
"""
import contextlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minattn import attention, checks
from minattn.errors import InputError
from minattn.files import one_line
from minattn.validate import covering, packing, positions
from minattn.validate.precision import LOG

DTYPES = ("float64", "float32", "float16", "bfloat16")
LAYOUTS = ("BHTD", "BTHD")
COUNTS = {1: "one thing", 2: "two"}


class Finding(NamedTuple):
    """Something wrong, in plain words.

    Kinds: raised, arguments, hang, shape, dtype, gradient, values, not finite, modified inputs,
    not repeatable, shared output, depends on batch.
    """
    kind: str
    message: str


class Problem(Exception):
    """Problem(kind, message) ends a run with this finding."""
    finding = property(lambda self: Finding(*self.args))


class Target(NamedTuple):
    """What is to be checked."""
    forward: Callable
    backward: Callable | None
    name: str
    layout: str = "BHTD"      # of its arrays with four axes; "BTHD": tokens before heads
    lse: str = ""             # it returns (out, lse), base "e" or "2"
    hidden: tuple = ()        # options that it does not take and that are not given to it

    def turned(self, x):
        """Our array as the function's, or back again"""
        return x.swapaxes(1, 2) if self.layout == "BTHD" and x.ndim == 4 else x


class Run(NamedTuple):
    """What one call returned, as float64; a gradient not asked for or not there is missing."""
    tensors: dict           # "out", "dq", ...
    findings: tuple
    inputs_after: dict      # argument or option -> its values after the call
    given: dict             # the same as they were given
    returned: dict          # the same as tensors, as they came
    further: int            # outputs beyond these, which nothing is compared with
    hint: str               # what else it seems to return


def resolve(fn, backward=None, layout="BHTD", lse=None):
    """fn as check takes it -> Target. InputError if nothing in it can be called."""
    checks.choice("layout", layout, LAYOUTS)
    checks.choice("lse", lse or "e", ("e", "2"))
    if isinstance(fn, attention.Mechanism):
        fn = fn.module
    forward, own = fn, None
    if isinstance(fn, (tuple, list)) and len(fn) == 2:
        forward, own = fn
        fn = forward
    elif not callable(fn) and callable(getattr(fn, "forward", None)):      # a module with both
        forward, own = fn.forward, getattr(fn, "backward", None)
    elif not hasattr(fn, "parameters"):                      # (torch.nn.Module: autograd)
        own = getattr(fn, "backward", None)
    backward = own if backward is None else backward
    if not callable(forward):
        raise InputError("the function to check must be callable, or have forward and backward; "
                         f"got {type(forward).__name__}.")
    if backward is not None and not callable(backward):
        raise InputError(f"backward must be callable; got {type(backward).__name__}.")
    name = getattr(fn, "__name__", type(fn).__name__)
    return Target(forward, backward, one_line(name), layout, lse or "")


def adapter(framework, dtype, device="cpu"):
    """The adapter by name; InputError names what is unknown or not installed."""
    checks.choice("framework", framework, ADAPTERS)
    checks.choice("dtype", dtype, DTYPES)
    return ADAPTERS[framework](dtype, device)


class NumpyAdapter:
    name, autodiff, strided = "numpy", False, True
    kinds: dict[str, Any] = {"b": np.dtype(bool), "i": np.dtype(np.int32)}      # beside numbers

    def __init__(self, dtype, device="cpu"):
        if device != "cpu":
            raise InputError(f"NumPy arrays live on the cpu; got device {device!r}.")
        self.dtype, self.device, self.arrays = dtype, device, (np.ndarray, np.generic)
        if dtype == "bfloat16":
            try:
                import ml_dtypes
            except ImportError:
                raise InputError("bfloat16 arrays in NumPy need the package ml_dtypes: "
                                 "pip install ml_dtypes") from None
            self.type = np.dtype(ml_dtypes.bfloat16)
        else:
            self.type = np.dtype(dtype)

    def array(self, x, layout="contiguous", leaf=False, like=None):
        """Our numbers as a fresh array of this framework; booleans stay, integers have 32 bits.

        layout: one of covering.LAYOUTS, with NaN around it. leaf: takes a gradient. like: an array
        that has its type.
        """
        buffer, strides, offset = covering.place(x, layout)
        return covering.view(buffer.astype(self.type_of(x, like)), x.shape, strides, offset)

    def type_of(self, x, like=None):
        return self.kinds.get(x.dtype.kind, self.type) if like is None else like.dtype

    def numbers(self, x):
        return np.asarray(x).astype(np.float64)

    def fill(self, x, values):
        """Write our numbers into an array."""
        x[...] = values

    def belongs(self, x):
        return isinstance(x, self.arrays)

    def dtype_of(self, x):
        return str(x.dtype).rpartition(".")[2]

    def same_memory(self, x, y):
        return np.may_share_memory(x, y)

    def fell_back(self):
        """What of a compiled function ran uncompiled, in a sentence"""
        return ""

    def alive(self):
        """Does the device still compute? After some errors a GPU refuses every call."""
        return True

    def call(self, forward, args, kwargs, leaves, outputs=1):
        """-> what it returns; (outputs, their gradients) -> those of the leaves, for the last time
        unless keep=True; without leaves there is no gradient anywhere
        """
        with np.errstate(all="ignore"):
            return forward(*args, **kwargs), None


class TorchAdapter(NumpyAdapter):
    name, autodiff = "torch", True

    def __init__(self, dtype, device="cpu"):
        torch = _installed("torch")
        try:
            self.torch, self.dtype, self.device = torch, dtype, torch.device(device)
            torch.zeros(1, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise _no_device("torch", device, error) from None
        self.type, self.kinds = getattr(torch, dtype), {"b": torch.bool, "i": torch.int32}
        self.arrays = torch.Tensor

    def array(self, x, layout="contiguous", leaf=False, like=None):
        buffer, strides, offset = covering.place(x, layout)
        flat = self.torch.from_numpy(buffer).to(self.device).to(self.type_of(x, like))
        t = self.torch.as_strided(flat, x.shape, strides, offset)
        return t.requires_grad_() if leaf and x.dtype != bool else t

    def fill(self, x, values):
        x.data.copy_(self.torch.from_numpy(np.array(values)))

    def numbers(self, x):
        return x.detach().to("cpu", self.torch.float64).numpy().copy()

    def same_memory(self, x, y):
        start = x.untyped_storage().data_ptr()           # 0: empty
        return start != 0 and start == y.untyped_storage().data_ptr()

    def fell_back(self):
        compiler = sys.modules.get("torch._dynamo.utils")
        if compiler is None or not compiler.counters["graph_break"]:
            return ""
        why = next(iter(compiler.counters["graph_break"])).splitlines()[0]
        return f"PyTorch compiled your function in parts, and ran what lies between as it is: {why}"

    def alive(self):
        try:
            return self.torch.ones(1, device=self.device).item() == 1
        except RuntimeError:
            return False

    def call(self, forward, args, kwargs, leaves, outputs=1):
        if "torch._dynamo" in sys.modules:                   # every case has sizes of its own
            config = sys.modules["torch._dynamo"].config
            config.recompile_limit = config.accumulated_recompile_limit = 1 << 20
            sys.modules["torch._dynamo.utils"].counters.clear()
        with self.torch.set_grad_enabled(bool(leaves)):
            result = forward(*args, **kwargs)

            def grads(outs, douts, keep=False):
                for x, name in zip(outs, ("the output", "lse (exclude dlse?)")):
                    if not x.requires_grad:
                        raise Problem("gradient", f"no gradient at all: {name} is cut off from the "
                                                  "inputs (detach?)")
                found = self.torch.autograd.grad(outs, list(leaves.values()), douts,
                                                 allow_unused=True, retain_graph=keep)
                return dict(zip(leaves, found))
            return result, grads


class JaxAdapter(NumpyAdapter):
    name, autodiff, strided = "jax", True, False

    def __init__(self, dtype, device="cpu"):
        jax = _installed("jax")
        if dtype == "float64":
            jax.config.update("jax_enable_x64", True)
        try:
            self.jax, self.dtype, self.device = jax, dtype, jax.devices(device)[0]
            self.type, self.arrays = jax.numpy.dtype(dtype), jax.Array
        except RuntimeError as error:
            raise _no_device("jax", device, error) from None

    def array(self, x, layout="contiguous", leaf=False, like=None):
        return self.jax.device_put(x.astype(self.type_of(x, like)), self.device)

    def same_memory(self, x, y):
        return False                                         # never written again

    def call(self, forward, args, kwargs, leaves, outputs=1):
        """jax.vjp over the leaves, wherever they stand among the arguments."""
        if not leaves:
            return forward(*args, **kwargs), None
        of_leaves = function_of(leaves, forward, args, kwargs, outputs)
        outs, back, rest = self.jax.vjp(of_leaves, leaves, has_aux=True)
        return (*outs, *rest), lambda outs, douts, keep=False: back(tuple(douts))[0]


class MlxAdapter(JaxAdapter):
    name = "mlx"

    def __init__(self, dtype, device="cpu"):
        self.mlx = _installed("mlx.core")
        if device not in ("cpu", "gpu"):
            raise InputError(f"MLX has the devices cpu and gpu; got {device!r}.")
        self.mlx.set_default_device(getattr(self.mlx, device))
        self.dtype, self.device, self.type = dtype, device, getattr(self.mlx, dtype)
        self.kinds, self.arrays = {"b": self.mlx.bool_, "i": self.mlx.int32}, self.mlx.array

    def array(self, x, layout="contiguous", leaf=False, like=None):
        return self.mlx.array(np.ascontiguousarray(x), dtype=self.type_of(x, like))

    def numbers(self, x):
        wide = x.dtype in (self.mlx.float64, self.mlx.int32)
        return np.array(x if wide else x.astype(self.mlx.float32)).astype(np.float64)

    def call(self, forward, args, kwargs, leaves, outputs=1):
        of_leaves = function_of(leaves, forward, args, kwargs, outputs)

        def grads(outs, douts, keep=False):
            flat = lambda *values: list(of_leaves(dict(zip(leaves, values)))[0])
            return dict(zip(leaves, self.mlx.vjp(flat, list(leaves.values()), list(douts))[1]))
        return forward(*args, **kwargs), grads if leaves else None


class TinygradAdapter(MlxAdapter):
    name = "tinygrad"

    def __init__(self, dtype, device="cpu"):
        tinygrad = _installed("tinygrad")
        self.types = {n: getattr(tinygrad.dtypes, n) for n in DTYPES}
        self.dtype, self.device, self.type = dtype, device, self.types[dtype]
        self.kinds = {"b": tinygrad.dtypes.bool, "i": tinygrad.dtypes.int32}
        self.arrays = tinygrad.Tensor

    def array(self, x, layout="contiguous", leaf=False, like=None):
        return self.arrays(np.ascontiguousarray(x)).cast(self.type_of(x, like))

    def numbers(self, x):
        wide = x.dtype == self.types["float64"]
        return (x if wide else x.cast(self.types["float32"])).numpy().astype(np.float64)

    def dtype_of(self, x):
        return next((n for n, kind in self.types.items() if kind == x.dtype), str(x.dtype))

    def call(self, forward, args, kwargs, leaves, outputs=1):
        def grads(outs, douts, keep=False):
            total = sum((out * dout).sum() for out, dout in zip(outs, douts))
            return dict(zip(leaves, total.gradient(*leaves.values())))
        return forward(*args, **kwargs), grads if leaves else None


def function_of(leaves, forward, args, kwargs, outputs):
    """forward as a function of a dict of leaves -> so many outputs, and the rest"""
    place = {id(x): name for name, x in leaves.items()}

    def of_leaves(values):
        swap = lambda x: values[place[id(x)]] if id(x) in place else x
        result = forward(*[swap(x) for x in args], **{n: swap(x) for n, x in kwargs.items()})
        result = tuple(result) if isinstance(result, (tuple, list)) else (result,)
        return result[:outputs], result[outputs:]
    return of_leaves


def _installed(module):
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"the framework {package} is not installed: pip install {package}"
                         ) from None


def _no_device(framework, device, error):
    first = str(error).splitlines()[0]
    return InputError(f"{framework} cannot use device {device!r}: {first}")


ADAPTERS = {"numpy": NumpyAdapter, "torch": TorchAdapter, "jax": JaxAdapter, "mlx": MlxAdapter,
            "tinygrad": TinygradAdapter}


def run(target, adapter, case, arrays, wanted, between=None, dlse=None, refilled=False):
    """One forward and, for `wanted` gradients, one backward; Problem if nothing can be compared.

    dlse: a gradient that comes in through lse.
    between: called after the forward, as another layer would be. Then the backward runs twice,
    which may not change its result.
    refilled: called once before with the same arrays, in which other numbers stand.
    """
    row, findings = positions.row(case.mechanism), []
    by_hand = target.backward is not None
    turn = lambda name, x: x if name in case.options else target.turned(x)
    arrays, asked_for, without = packing.taken(case, arrays, target.forward)
    wanted = [name for name in wanted if name not in without]
    leaf = lambda name: name in wanted and not by_hand
    inputs = {n: adapter.array(target.turned(x), covering.of_input(case.layout, i + 1), leaf(n))
              for i, (n, x) in enumerate(arrays.items())}
    options = {n: adapter.array(x, case.aside, leaf(n)) if isinstance(x, np.ndarray) else x
               for n, x in asked_for.items() if n not in target.hidden}
    kwargs = {**{n: x for n, x in inputs.items() if n not in row.arguments}, **options}
    args, kwargs = fitted(target.forward, {n: inputs[n] for n in row.arguments}, kwargs)
    given = {**inputs, **options}
    dout = target.turned(case.cotangent)
    cotangent = adapter.array(dout, case.dout)
    leaves = {} if by_hand else {n: given[n] for n in wanted}
    asked = 2 if target.lse else 1
    if refilled:
        numbers = {n: turn(n, x) for n, x in {**arrays, **asked_for}.items()
                   if isinstance(x, np.ndarray) and x.dtype.kind in "bf" and n in given}
        for n, x in numbers.items():
            adapter.fill(given[n], x | True if x.dtype == bool else x / 2)
        with contextlib.suppress(Exception), np.errstate(all="ignore"):
            result, _ = adapter.call(target.forward, args, kwargs, leaves, asked)
            if by_hand and dlse is None:
                target.backward(cotangent, result[-1])
        for n, x in numbers.items():
            adapter.fill(given[n], x)
    result, differentiate = adapter.call(target.forward, args, kwargs, leaves,
                                         1 if dlse is None else 2)
    several = tuple(result) if isinstance(result, (tuple, list)) and len(result) else (result,)
    if len(several) < asked:
        raise Problem("shape", "an lse was asked for, so it must return (out, lse); it returned "
                               "one thing.")
    out, further, said = several[0], several[asked:len(several) - by_hand], ""
    _looks_right(adapter, "the output", out, dout.shape)
    tensors, returned, grads = {"out": target.turned(adapter.numbers(out))}, {"out": out}, {}
    if target.lse:
        lse = several[1]
        _looks_right(adapter, "lse", lse, case.cotangent.shape[:3], ("float32", "float64"))
        tensors["lse"], returned["lse"] = adapter.numbers(lse) * LOG[target.lse], lse
    elif any(tuple(getattr(x, "shape", ())) == case.cotangent.shape[:3] for x in further):
        said = ("your function seems to return (out, lse): --lse e, or --lse 2 for base 2, checks "
                "lse and its gradient")
    douts = [cotangent] if dlse is None else [cotangent, adapter.array(dlse, like=several[1])]
    if between is not None:
        between()
    if by_hand and wanted:
        if len(several) <= asked:
            what = "(out, lse, cache)" if target.lse else "(out, cache)"
            raise Problem("gradient", "with a backward of its own, forward must return "
                                      f"{what}; it returned {COUNTS[len(several)]}.")
        with np.errstate(all="ignore"):
            cache, dlses = several[-1], douts[1:]
            if between is not None:
                target.backward(adapter.array(dout, case.dout), cache, *dlses)
            grads = target.backward(cotangent, cache, *dlses)
        if not isinstance(grads, dict):
            raise Problem("gradient", "backward must return a dict from argument to gradient; "
                                      f"got {type(grads).__name__}.")
        grads = {**{str(n)[1:]: g for n, g in grads.items() if str(n)[:1] == "d"}, **grads}
        for name in row.buffers:                             # q, or dq as it may be called
            if grads.get(name) is not None and np.any(adapter.numbers(grads[name])):
                says = f"d{name} is not zero, but {name} is a running mean that takes no gradient."
                findings.append(Finding("gradient", says))
    elif wanted:
        if between is not None:
            with contextlib.suppress(RuntimeError):          # compiled: its memory is given away
                differentiate(several[:len(douts)], douts, keep=True)
        grads = differentiate(several[:len(douts)], douts)
    for name in wanted:
        if grads.get(name) is None:
            findings.append(Finding("gradient", f"the gradient of {name} is missing."))
            continue
        try:
            _looks_right(adapter, f"d{name}", grads[name], given[name].shape)
            tensors["d" + name] = turn(name, adapter.numbers(grads[name]))
            returned["d" + name] = grads[name]
        except Problem as problem:
            findings.append(problem.finding)
    given["dout"] = cotangent
    after = {n: turn(n, adapter.numbers(x)) for n, x in given.items()
             if adapter.belongs(x) and n not in without}
    return Run(tensors, tuple(findings), after, given, returned, len(further),
               said or adapter.fell_back())


def fitted(forward, arrays, options):
    """args and kwargs for the function: the arrays in order, or by name if only that fits; Problem
    if neither does, said by name."""
    signature = packing.signature(forward)
    ways = (list(arrays.values()), options), ([], {**arrays, **options})
    if signature is None:
        return ways[0]
    unknown = sorted(options.keys() - signature.parameters.keys())
    refused = [] if packing.takes_any_name(forward) else unknown
    said = []
    for args, kwargs in ways:
        try:
            signature.bind(*args, **{n: x for n, x in kwargs.items() if n not in refused})
        except TypeError as error:
            said.append(error)
            continue
        if refused:
            name = repr(refused[0])
            raise Problem("arguments",
                          f"does not take the option {name}; if that is meant, exclude {name}.")
        return args, kwargs
    wanted = ", ".join([*arrays, *(f"{n}=..." for n in options)])
    raise Problem("arguments",
                  f"does not take the mechanism's arguments, as f({wanted}): {said[0]}.")


def _looks_right(adapter, what, x, shape, dtypes=()):
    if not adapter.belongs(x):
        kind, package = type(x).__name__, type(x).__module__.partition(".")[0]
        raise Problem("dtype", f"{what} is of type {kind}, not an array of {adapter.name}"
                               f"{_meant(adapter.name, {package.removesuffix('lib')})}.")
    if tuple(x.shape) != tuple(shape):
        raise Problem("shape", f"{what} has shape {tuple(x.shape)}; expected {tuple(shape)}.")
    if adapter.dtype_of(x) not in (adapter.dtype, *dtypes):
        raise Problem("dtype", f"{what} is {adapter.dtype_of(x)}; {adapter.dtype} came in and must "
                               "come out.")


def _meant(framework, packages):
    """The framework that a function seems to be written in, if it got NumPy arrays"""
    other = next((x for x in ADAPTERS if x in packages and x != "numpy"), None)
    if framework != "numpy" or other is None:
        return ""
    return f"; it got NumPy arrays: for those of {other}, choose --framework {other}"


def raised(error, setup=None):
    """An exception from somebody's code as a finding: what it says, and the line it came from.

    setup: a check.Setup; NumPy arrays may have met a function of another framework. A Problem has
    its finding.
    """
    if isinstance(error, Problem):
        return error.finding
    here = os.path.dirname(__file__)
    frames = [(frame, line) for frame, line in traceback.walk_tb(error.__traceback__)
              if os.path.dirname(frame.f_code.co_filename) != here]
    where = hint = ""
    said = one_line(error)
    if frames:
        frame, line = frames[-1]
        where = f" ({os.path.basename(frame.f_code.co_filename)}, line {line})"
    if setup is not None:
        packages = {"torch"} if "Tensor" in said else set()
        for frame, _ in frames:
            # the globals it names, no others: a compiler leaves modules of its own among them
            used = [frame.f_globals.get(name) for name in frame.f_code.co_names]
            packages |= {x.__name__.partition(".")[0] for x in (*used, *frame.f_locals.values())
                         if inspect.ismodule(x)}
        hint = _meant(setup.adapter.name, packages)
    return Finding("raised", f"raised {type(error).__name__}: {said}{where}{hint}")
