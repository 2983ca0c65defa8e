"""What a causality certificate is about: a kernel, a model, or a function of tokens."""
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from minattn.errors import InputError
from minattn.validate import cases, frameworks, packing

# A kernel's numbers are also taken this large (float16: the second): then visible scores lie far
# below any finite number that may stand for -infinity.
LARGE, LARGE16 = 1e5, 100.0
TOLERANCE = {"float64": 1e-12, "float32": 1e-4}


class Subject(NamedTuple):
    """A function of named arrays, in which positions lie along one axis."""
    name: str
    draw: Callable           # (way, rng, unlike) -> an input, in one of two ways; unlike another
    axes: dict  # name -> axis of the positions; arrays that have none do not count as content
    value: Callable          # x -> (T, n), the outputs by position
    gradient: Callable       # (x, i, rng) -> {name: (T, n)}, of a random mix of the outputs at i
    tolerance: Callable      # -> how exact a prefix must be, relative to outputs above 1


class NotCovered(Exception):
    """Why a form cannot be asked of this subject."""


def _kernel(fn, mechanism, framework, options, backward, dtype, device, length, sizes, layout):
    target = frameworks.resolve(fn, backward, layout)
    takes = packing.parameters(target.forward)               # empty: it does not tell
    if takes and "causal" not in takes and not packing.takes_any_name(target.forward):
        target = target._replace(hidden=("causal",))      # it is always causal
    adapter = frameworks.adapter(framework, dtype, device)
    size = {**cases.SIZES, "B": 1, "D": 5, "Dv": 3, **sizes}
    size["G"] = size.pop("Hkv", size["H"])
    size = cases.all_sizes({**size, "Tq": length, "Tk": length, "T": length})
    axes = {name: axis for name, shape in mechanism.arguments.items()
            for axis, symbol in enumerate(shape.split()) if symbol[0] == "T"}
    width = size["Dv" if "v" in mechanism.arguments else "D"]

    def draw(way, rng, unlike=None):
        x = cases.draw_arguments(mechanism, mechanism.arguments, size, rng)
        if way:
            x.update({name: x[name] * (LARGE16 if dtype == "float16" else LARGE) for name in axes})
            if "q" in x:                                     # its score with itself: far below 0
                x["k"] = -x["q"][:, ::x["q"].shape[1] // x["k"].shape[1]]
        return x

    def call(x, i=None, rng=None):
        T = x[next(iter(axes))].shape[2]
        dout = np.zeros((size["B"], size["H"], T, width))
        if i is not None:
            dout[:, :, i] = cases.draw((size["B"], size["H"], width), rng)
        asked = {"causal": True, **options}
        case = cases.Case("causality", "causality", mechanism.name, x, asked, dout)
        wanted = tuple(axes) if i is not None else ()
        done = frameworks.run(target, adapter, case, x, wanted)
        if done.findings:
            raise NotCovered(done.findings[0].message)
        return done.tensors

    def gradient(x, i, rng):
        if not adapter.autodiff and target.backward is None:
            raise NotCovered("a NumPy function needs a backward of its own for this: "
                             "give backward=, or a pair")
        try:
            grads = call(x, i, rng)
        except frameworks.Problem as problem:
            raise NotCovered(problem.finding.message) from None
        return {name: _by_position(grads["d" + name], axis) for name, axis in axes.items()}

    name = target.name.removeprefix("minattn.attention.")
    if options:
        name += f" ({', '.join(f'{option}={value}' for option, value in options.items())})"
    return Subject(name, draw, axes, lambda x: _by_position(call(x)["out"], 2), gradient,
                   lambda: _tolerance(dtype))


def _of_tokens(name, fn, V, T, gradient, tolerance):
    """fn: tokens (B, T) -> logits (B, T, V), both NumPy arrays."""
    def draw(way, rng, unlike=None):
        if unlike is None:
            return {"tokens": rng.integers(0, V, (2, T))}
        if V < 2:
            raise NotCovered("with a vocabulary of one token nothing can be changed")
        return {"tokens": (unlike["tokens"] + rng.integers(1, V, (2, T))) % V}

    def value(x):
        return _by_position(fn(x["tokens"]), 1)
    return Subject(name, draw, {"tokens": 1}, value, gradient, tolerance)


def _float64(params, buffers, config):
    params, buffers = ({name: np.asarray(a, np.float64) for name, a in arrays.items()}
                       for arrays in (params, buffers or {}))
    return params, buffers, config


def _model(params, buffers, config, name, length):
    from minattn import model

    def gradient(x, i, rng):
        """The gradient of the embedded inputs, as that of a table with a row for each position.

        Row V + n of a longer table repeats the embedding of the token at position n. Nothing
        predicts such a token, so its row gets gradient from the input only, although the table
        is also the output head.
        """
        tokens, V = x["tokens"][0], config.vocab_size
        n = len(tokens)
        longer = dataclasses.replace(config, vocab_size=V + n)
        table = {"wte.weight": np.concatenate([params["wte.weight"], params["wte.weight"][tokens]])}
        params_n, rows = {**params, **table}, V + np.arange(n)[None]
        cache = model.forward(params_n, rows, longer, buffers=buffers)[2]
        dlogits = np.zeros((1, n, V + n))
        dlogits[0, i, :V] = rng.standard_normal(V)
        return {"embedding": model.backward(cache, longer, dlogits=dlogits)["wte.weight"][V:]}

    def logits(tokens):
        return model.forward(params, tokens, config, buffers=buffers)[0]
    return _of_tokens(name, logits, config.vocab_size, min(length, config.block_size), gradient,
                      lambda: TOLERANCE["float64"])


def _function(fn, framework, device, length):
    if not callable(fn):
        raise InputError(f"the function to certify must be callable; got {type(fn).__name__}.")
    adapter, came = frameworks.adapter(framework, "float32", device), {}
    name = getattr(fn, "__name__", type(fn).__name__)

    def array(x):
        return adapter.array(x).long() if framework == "torch" else adapter.array(x)

    def value(x):
        out = fn(array(x))
        shape = tuple(getattr(out, "shape", ()))
        if not adapter.belongs(out) or len(shape) != 3 or shape[:2] != x.shape:
            got = shape if adapter.belongs(out) else type(out).__name__
            raise InputError(f"{name} must return logits (B, T, V) of {framework} for tokens "
                             f"(B, T); for {x.shape} it returned {got}.")
        came["dtype"] = adapter.dtype_of(out)
        return adapter.numbers(out)

    V = value(np.zeros((1, length), np.int64)).shape[2]      # as many tokens as logits

    def gradient(x, i, rng):
        tokens, mix = array(x["tokens"][:1]), rng.standard_normal(V)
        if framework == "torch":
            grads = _torch_gradient(adapter.torch, fn, tokens, i, mix)
        elif framework == "jax" and hasattr(fn, "from_embeddings"):
            out, back = adapter.jax.vjp(fn.from_embeddings, fn.embed(tokens))
            grads = back(adapter.jax.numpy.zeros_like(out).at[0, i].set(mix.astype(out.dtype)))
        else:
            raise NotCovered("a gradient needs framework torch, or jax and attributes embed and "
                             "from_embeddings")
        return {f"embedding {n}": adapter.numbers(g).reshape(tokens.shape[1], -1)
                for n, g in enumerate(grads)}

    return _of_tokens(name, value, V, length, gradient, lambda: _tolerance(came["dtype"]))


def _torch_gradient(torch, fn, tokens, i, mix):
    """The gradient of the mixed logits at position i, for each embedding of the tokens."""
    from torch.overrides import TorchFunctionMode
    leaves: list[Any] = []

    def is_tokens(a):
        if not isinstance(a, torch.Tensor) or a.is_floating_point() or a.numel() != tokens.numel():
            return False
        return bool((a.reshape(-1) == tokens.reshape(-1)).all())

    class Watch(TorchFunctionMode):
        """What looks the tokens up in a table gives an input that requires a gradient."""

        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            given = (*args, *(kwargs or {}).values())
            flat = [b for a in given for b in (a if isinstance(a, tuple) else (a,))]
            numbers = isinstance(out, torch.Tensor) and out.is_floating_point()
            if numbers and any(map(is_tokens, flat)):
                out = out.detach().requires_grad_()
                leaves.append(out)
            return out

    with torch.enable_grad(), Watch():
        out = fn(tokens)
    grads = []
    if leaves and out.requires_grad:
        mixed = (out[0, i] * torch.as_tensor(mix).to(out)).sum()
        grads = [g for g in torch.autograd.grad(mixed, leaves, allow_unused=True) if g is not None]
    if not grads:
        raise NotCovered("no path of gradients from a look-up of the tokens to the logits "
                         "(no_grad, detach, compiled?)")
    return grads


def _by_position(a, axis):
    """(.., T, ..) -> (T, n)"""
    return np.moveaxis(a, axis, 0).reshape(a.shape[axis], -1)


def _tolerance(dtype):
    if dtype not in TOLERANCE:
        raise NotCovered(f"{dtype} is too coarse to tell: use float64")
    return TOLERANCE[dtype]
