"""Implementations that are wrong on purpose: whoever claims to find bugs should find these.

A mutant is minattn/validate/mutants_base.py, one plain dense implementation of every mechanism, with a line or two
changed: each row below says what is wrong in words and then shows the change. Some are bugs that shipped in a library
people use; `bug` says where. A kit that lets one of them pass has a hole, and a family of cases without which all of
them would still be found must say why it is there: python -m minattn validate-self.
"""
import difflib
import re
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from minattn.errors import InputError
from minattn.validate import mutants_base


class Mutant(NamedTuple):
    name: str
    mechanism: str
    wrong: str                # what is wrong, in one sentence
    edits: tuple              # ((text in the base, what stands there instead), ...)
    backward: bool = False    # the forward is right, the gradients are not
    bug: str = ""             # the released software in which it happened

    def load(self):
        """A fresh module with forward and backward of this mutant."""
        text = self.source()
        module = ModuleType(f"minattn.validate.mutants.{self.name}")
        exec(compile(text, f"<mutant {self.name}>", "exec"), module.__dict__)
        module.forward = getattr(module, self.mechanism + "_forward")
        module.backward = getattr(module, self.mechanism + "_backward")
        return module

    def source(self):
        """The whole text; InputError where the base no longer holds the line that was to be changed."""
        text = base()
        for old, new in self.edits:
            if (found := text.count(old)) != 1:
                raise InputError(f"mutant {self.name!r}: {old!r} stands {found} times in mutants_base.py, not once.")
            text = text.replace(old, new)
        return text

    def diff(self):
        """The change, as a unified diff without context."""
        lines = difflib.unified_diff(base().splitlines(), self.source().splitlines(), lineterm="", n=0)
        return "\n".join(line for line in lines if not re.match(r"---|\+\+\+|@@", line))


@lru_cache(maxsize=1)
def base():
    return Path(mutants_base.__file__).read_text(encoding="utf-8")


def none(mechanism):
    """The base itself, with nothing wrong."""
    return Mutant("none", mechanism, "nothing is wrong", ())


def _forward(name, mechanism, wrong, *edits, bug=""):
    return Mutant(name, mechanism, wrong, edits, False, bug)


def _backward(name, mechanism, wrong, *edits, bug=""):
    return Mutant(name, mechanism, wrong, edits, True, bug)


# lines of the base that several mutants change
DOTS = "dots = q @ k.swapaxes(2, 3)"
SCORES = "s = scale * dots"
HIDE = "s = np.where(see, s, -np.inf)"
MAX = "m = s.max(axis=3, keepdims=True)"
FINITE_MAX = "m = np.where(m == -np.inf, 0, m)"
EXP = "e = np.exp(s - m)"
SINK = "e_sink = np.exp(sink[:, None, None] - m)"
TOTAL = "total[total == 0] = 1"
WEIGHTS = "P = e / total"
OUT = "out = P @ v"
SEE = "see = np.broadcast_to(visible(Tq, Tk, **mask), shape)"
RULE = "if causal or window is not None:"
WINDOW = "see &= j > p - window"
PREFIX = "((j < prefix) & (p < prefix))"
ALLOWED = "return see & allowed"
ALIGN = 'p = np.arange(Tq)[:, None] + (Tk - Tq if align == "end" else 0)'
DV = "dv = P.swapaxes(2, 3) @ dout"
DELTA = "delta = (dout * c.out).sum(axis=3, keepdims=True)"
DS = "ds = P * (dP - delta)"
DBIAS = 'grads["bias"] = sum_to(ds, c.bias.shape)'
DSINK = 'grads["sink"] = -(P_sink * delta).sum(axis=(0, 2, 3))'
GATE = "g = sigmoid(gate_logits)"
DGATE = 'grads["gate_logits"] = dg * c.g * (1 - c.g)'
BETA = "beta = (alpha_ma[:, None, None] - alpha) / n"
ONES = "ones = core.see.astype(q.dtype)"
DALPHA = "dalpha = dalpha - dbeta / c.n"
LAST = '{"prefix": p, "sequence": np.array([Tk - 1])}.get(norm, np.arange(Tk))'
VAR = "var = (centred * centred).sum(axis=3, keepdims=True) / n"
ENERGY = "out, core = attend(q, k, v, gate=log_g, **options)"
UNGATED = "above = attend(q, k, v, **options)[1]; "
INV = "inv = np.exp(-2 * log_sigma)[:, None, None]"
KEY_BIAS = "key_bias = -0.5 * norm * inv"
RECOMPUTED = "np.exp(c.raw - c.lse)"

SOFTMAX = (
    # scores
    _forward("missing_scale", "softmax", "scores are not divided by sqrt(D)",
             ("scale = 1 / math.sqrt(D)", "scale = 1.0")),
    _forward("scale_by_dimension", "softmax", "scores are divided by D", ("scale = 1 / math.sqrt(D)", "scale = 1 / D")),
    _forward("scale_ignored", "softmax", "the caller's own scale is ignored", ("if scale is None:", "if True:")),
    _forward("keys_reversed", "softmax", "keys are read from the last to the first",
             (DOTS, "dots = q @ k[:, :, ::-1].swapaxes(2, 3)")),
    _forward("heads_swapped", "softmax", "queries meet the keys of another head",
             (DOTS, "dots = q @ k[:, ::-1].swapaxes(2, 3)")),
    _forward("channels_beyond_64", "softmax", "channels beyond the 64 of a tile do not count",
             (DOTS, "dots = q[..., :64] @ k[..., :64].swapaxes(2, 3)")),
    _forward("float16_scores", "softmax", "scores are made in float16",
             (DOTS, "dots = (q.astype(np.float16) @ k.astype(np.float16).swapaxes(2, 3)).astype(q.dtype)")),
    _forward("scores_clamped", "softmax", "scores are clamped to +-1e5 against overflow",
             (SCORES, "s = np.clip(scale * dots, -1e5, 1e5)")),
    _forward("zero_scores_hidden", "softmax", "scores that are exactly 0 are taken for masked ones",
             (SCORES, "s = np.where(dots == 0, -np.inf, scale * dots)")),
    _forward("zero_query_divided", "softmax", "each query is divided by its largest entry and later multiplied: zeros give 0 / 0",
             (DOTS, "most = np.abs(q).max(axis=3, keepdims=True); dots = ((q / most) @ k.swapaxes(2, 3)) * most")),
    _forward("reads_as_contiguous", "softmax", "strides are ignored: memory is read as if it had no gaps",
             ("shape = (B, H, Tq, Tk)", "shape = (B, H, Tq, Tk); q = q if q.flags.c_contiguous else "
              "np.ravel(root(q))[:q.size].reshape(q.shape)"),
             ("def attend(", "def root(x):\n    return x if x.base is None else root(x.base)\n\n\ndef attend(")),
    _forward("writes_into_q", "softmax", "the scale is multiplied into the caller's own q",
             (DOTS, "q *= scale; dots = q @ k.swapaxes(2, 3)"), (SCORES, "s = dots")),
    # masks
    _forward("allowed_flipped", "softmax", "True in `allowed` hides instead of showing",
             (ALLOWED, "return see & (allowed if allowed is True else ~allowed)"), bug="TinyTorch #1785"),
    _forward("allowed_added", "softmax", "`allowed` is added to the scores as 0 and 1",
             (HIDE, "s = np.where(visible(Tq, Tk, **{**mask, 'allowed': True}), s, -np.inf) + mask.get('allowed', 0)")),
    _forward("allowed_or_causal", "softmax", "a key is seen if either mask shows it",
             (ALLOWED, "return see | (False if allowed is True else allowed)")),
    _forward("allowed_of_first_sample", "softmax", "every sequence gets the padding of the first",
             (ALLOWED, "return see & (True if allowed is True else allowed[:1])")),
    _forward("mask_of_first_key", "softmax", "a mask per key is read with stride 0: each sequence is all seen or all hidden",
             (ALLOWED, "return see & (allowed if allowed is True or allowed.shape[2] > 1 else allowed[..., :1])")),
    _forward("causal_ignored", "softmax", "the causal mask is not applied", (RULE, "if window is not None:")),
    _forward("causal_on_fast_path_only", "softmax", "when D is no multiple of 8 a slower path runs, without any mask",
             (SEE, "see = np.broadcast_to(visible(Tq, Tk, **({} if D % 8 else mask)), shape)"), bug="keras #23038"),
    _forward("causal_sees_next", "softmax", "each query sees one key of the future", ("(j <= p)", "(j <= p + 1)")),
    _forward("causal_hides_itself", "softmax", "a query does not see its own key", ("(j <= p)", "(j < p)")),
    _forward("causal_always", "softmax", "the causal mask is applied unasked", (RULE, "if True:")),
    _forward("mask_minus_1e4", "softmax", "hidden scores are set to -1e4 instead of -inf",
             (HIDE, "s = np.where(see, s, -1e4)"), bug="minGPT #75"),
    _forward("mask_minus_1e9", "softmax", "hidden scores are set to -1e9 instead of -inf, and empty rows to 0",
             (HIDE, "s = np.where(see, s, -1e9)"), (WEIGHTS, "P = e / total * see.any(axis=3, keepdims=True)")),
    _forward("trace_of_the_future", "softmax", "hidden keys keep a weight of exp(-25) of the largest",
             (HIDE, "s = np.where(see, s, np.where(see, s, -np.inf).max(axis=3, keepdims=True) - 25)")),
    _forward("mask_smallest_number", "softmax", "hidden scores are set to the smallest number: an empty row averages all",
             (HIDE, "s = np.where(see, s, np.finfo(s.dtype).min)"), bug="transformers #17121"),
    _forward("window_plus_one", "softmax", "a window of W shows W + 1 keys", (WINDOW, "see &= j >= p - window")),
    _forward("window_sees_future", "softmax", "a window alone does not imply causal", (RULE, "if causal:")),
    _forward("wide_window_no_mask", "softmax", "a window as wide as the sequence switches every mask off",
             (ALLOWED, "return (see | (window is not None and window >= Tk)) & allowed")),
    _forward("prefix_ignored", "softmax", "the prefix stays causal", (f" | {PREFIX}", "")),
    _forward("prefix_plus_one", "softmax", "the prefix is one token too long",
             (PREFIX, "((j <= prefix) & (p <= prefix))")),
    _forward("prefix_beats_window", "softmax", "inside the prefix the window is not applied",
             (WINDOW, f"see &= (j > p - window) | {PREFIX}")),
    _forward("always_aligned_at_start", "softmax", "query i sits at key i, also when there are more keys",
             (ALIGN, "p = np.arange(Tq)[:, None]"), bug="onnx #7297, pytorch #108108"),
    _forward("always_aligned_at_end", "softmax", 'align="start" is ignored',
             (ALIGN, "p = np.arange(Tq)[:, None] + Tk - Tq")),
    _forward("one_query_unmasked", "softmax", "a single query sees every key, whatever was asked",
             (SEE, "see = np.broadcast_to(visible(Tq, Tk, **(mask if Tq > 1 else {})), shape)")),
    # softmax
    _forward("softmax_over_queries", "softmax", "the softmax runs over the queries instead of the keys",
             (MAX, "m = s.max(axis=2, keepdims=True)"),
             ("total = e.sum(axis=3, keepdims=True)", "total = e.sum(axis=2, keepdims=True)"), bug="labml #146"),
    _forward("maximum_from_minus_1e4", "softmax", "the running maximum starts at -1e4",
             (MAX, "m = np.maximum(s.max(axis=3, keepdims=True), -1e4)"), bug="llm.c"),
    _forward("no_maximum", "softmax", "exp of the scores as they are", (FINITE_MAX, "m = 0 * total_of(m)"),
             ("def attend(", "def total_of(m):\n    return np.zeros_like(m)\n\n\ndef attend(")),
    _forward("old_maximum_kept", "softmax", "numerators of an earlier block of 64 keys are not rescaled to a new maximum",
             (EXP, "e = np.concatenate([np.exp(b - np.maximum(b.max(axis=3, keepdims=True), -1e30)) "
              "for b in np.split(s, range(64, Tk, 64), axis=3)], axis=3)")),
    _forward("last_keys_dropped", "softmax", "keys after the last whole block of 32 are left out",
             (SEE, SEE + " & ((np.arange(Tk) < Tk // 32 * 32) | (Tk < 32))")),
    _forward("repeated_keys_once", "softmax", "a key like the one before it does not count",
             (EXP, "e = np.exp(s - m); e[..., 1:] *= (k[:, :, None, 1:] != k[:, :, None, :-1]).any(axis=4)")),
    _forward("unnormalised", "softmax", "weights are not divided by their sum", (WEIGHTS, "P = e")),
    _forward("nan_in_empty_rows", "softmax", "a row that sees nothing is 0 / 0", (TOTAL, "pass"),
             (FINITE_MAX, "pass"), bug="pytorch #41508"),
    # values
    _forward("mean_of_values", "softmax", "a plain average of the visible values",
             (WEIGHTS, "P = (see / np.maximum(see.sum(axis=3, keepdims=True), 1)).astype(q.dtype)")),
    _forward("values_of_first_sample", "softmax", "every sequence gets the values of the first", (OUT, "out = P @ v[:1]")),
    _forward("float16_weights", "softmax", "weights times values is added up in float16",
             (OUT, "out = (P.astype(np.float16) @ v.astype(np.float16)).astype(v.dtype)")),
    _forward("tf32_weights", "softmax", "weights are cut to the 10 bits of TF32 before the product",
             (OUT, "out = (P.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) @ v")),
    _forward("small_values_flushed", "softmax", "values below 1e-20 count as 0",
             (OUT, "out = P @ np.where(np.abs(v) < 1e-20, 0, v)")),
    _forward("output_saturates", "softmax", "outputs are clipped at +-1000", (OUT, "out = np.clip(P @ v, -1000, 1000)")),
    _forward("scaled_by_batch", "softmax", "values are divided by the largest of the whole batch, the output multiplied",
             (OUT, "most = np.abs(v).max(); out = (P @ (v / most)) * most")),
    _forward("all_zeros", "softmax", "output and gradients are zeros", (OUT, "out = 0 * (P @ v)"), (DV, "dv = 0 * v"),
             (DS, "ds = 0 * P"), bug="KernelBench #165"),
    _forward("one_nan", "softmax", "one element is NaN", (OUT, "out = P @ v; out[0, 0, -1, -1] = np.nan")),
    _forward("noise", "softmax", "the output is noise that correlates with the answer by 0.09",
             (OUT, "out = P @ v; out += 11 * out.std() * np.random.default_rng(0).standard_normal(out.shape, out.dtype)"),
             bug="mlir-air #1427"),
    _forward("float64_out", "softmax", "the output is float64 though the inputs are not",
             ("    return out, c\n", "    return out.astype(np.float64), c\n")),
    _forward("heads_after_tokens", "softmax", "the output is (B, Tq, H, Dv)",
             ("    return out, c\n", "    return out.swapaxes(1, 2), c\n")),
)

SOFTMAX_BACKWARD = (
    _backward("dv_not_transposed", "softmax", "dv = P dout instead of P^T dout",
              (DV, "dv = (P if c.Tq == c.Tk else P.swapaxes(2, 3)) @ dout")),
    _backward("rowsum_dropped", "softmax", "ds = P dP, without rowsum(dout * out)", (DS, "ds = P * dP")),
    _backward("rowsum_of_out", "softmax", "rowsum(out) for rowsum(dout * out): right for a cotangent of ones",
              (DELTA, "delta = c.out.sum(axis=3, keepdims=True)")),
    _backward("dq_unscaled", "softmax", "dq lacks the scale", ("dq = c.scale * (ds @ k)", "dq = ds @ k")),
    _backward("dk_from_k", "softmax", "dk = ds^T k instead of ds^T q",
              ("dk = c.scale * (ds.swapaxes(2, 3) @ q)", "dk = c.scale * (ds.swapaxes(2, 3) @ (k if c.Tq == c.Tk else q))")),
    _backward("dk_of_last_block", "softmax", "dk is overwritten by each block of 64 queries, not added up",
              ("dk = c.scale * (ds.swapaxes(2, 3) @ q)",
               "last = slice((c.Tq - 1) // 64 * 64, None); dk = c.scale * (ds[:, :, last].swapaxes(2, 3) @ q[:, :, last])")),
    _backward("mask_ignored_backward", "softmax", "the backward makes the weights again without the mask",
              ("P = c.P", f"P = {RECOMPUTED}"), bug="triton #4541"),
    _backward("window_ignored_backward", "softmax", "the backward makes the weights again without the window",
              ("P = c.P", "P = c.P if c.mask.get('window') is None else "
               f"{RECOMPUTED} * visible(c.Tq, c.Tk, **{{**c.mask, 'window': None}})")),
    _backward("nan_behind_empty_rows", "softmax", "the forward guards empty rows, the backward divides 0 by 0",
              ("P = c.P", "P = c.e / c.e.sum(axis=3, keepdims=True)"), bug="flash-attention #443"),
    _backward("float16_dp", "softmax", "dP is made in float16", ("dP = dout @ v.swapaxes(2, 3)",
              "dP = (dout.astype(np.float16) @ v.astype(np.float16).swapaxes(2, 3)).astype(v.dtype)")),
    _backward("dv_kept_between_calls", "softmax", "the buffer of dv is not cleared between calls",
              ("def attend_backward(dout, c):", "def attend_backward(dout, c, kept={}):"),
              (DV, "dv = kept[v.shape] = kept.get(v.shape, 0) + P.swapaxes(2, 3) @ dout")),
    _backward("bias_gradient_of_one_query", "softmax", "the gradient of a bias per key is not summed over the queries",
              (DBIAS, 'one = c.bias.shape[-2] == 1; grads["bias"] = sum_to(ds[:, :, :1] if one else ds, c.bias.shape)')),
    _backward("bias_gradient_scaled", "softmax", "the gradient of the bias is multiplied by the scale",
              (DBIAS, 'grads["bias"] = c.scale * sum_to(ds, c.bias.shape)')),
    _backward("bias_gradient_missing", "softmax", "the bias gets no gradient", (DBIAS, "pass")),
)

SINKS = (
    _forward("sink_ignored", "sink", "the sink does not enter the denominator", (SINK, "e_sink = 0 * m")),
    _forward("sink_without_exp", "sink", "the sink's logit is added to the denominator as it stands",
             (SINK, "e_sink = np.abs(sink)[:, None, None] * np.exp(-m)")),
    _forward("sink_not_shifted", "sink", "the row maximum is subtracted from the scores but not from the sink",
             (SINK, "e_sink = np.exp(sink)[:, None, None] + 0 * m")),
    _forward("maximum_without_sink", "sink", "the row maximum leaves out the sink, whose exp overflows",
             ("m = np.maximum(m, sink[:, None, None])", "pass")),
    _forward("maximum_is_sink", "sink", "the sink is subtracted for the maximum",
             ("m = np.maximum(m, sink[:, None, None])", "m = sink[:, None, None] + np.zeros_like(m)")),
    _forward("sink_of_first_head", "sink", "every head gets the sink of the first",
             ("return attend(q, k, v, sink=sink, **options)", "return attend(q, k, v, sink=0 * sink + sink[0], **options)")),
    _forward("sink_clamped_above", "sink", "the sink is clamped at 10",
             ("return attend(q, k, v, sink=sink, **options)", "return attend(q, k, v, sink=np.minimum(sink, 10), **options)")),
    _forward("sink_clamped_below", "sink", "the sink is clamped at -10",
             ("return attend(q, k, v, sink=sink, **options)", "return attend(q, k, v, sink=np.maximum(sink, -10), **options)")),
    _forward("sink_scaled", "sink", "the sink is divided by sqrt(D) like a score",
             ("return attend(q, k, v, sink=sink, **options)",
              "return attend(q, k, v, sink=sink / q.dtype.type(q.shape[3] ** 0.5), **options)")),
    _forward("one_token_shortcut", "sink", "with a single key its weight is taken to be 1",
             (WEIGHTS, "P = e / total if Tk > 1 else np.where(see, 1, e)")),
    _backward("sink_gradient_zero", "sink", "the sink gets a gradient of zeros",
              (DSINK, 'grads["sink"] = np.zeros_like(c.sink)'), bug="flash-attention #1973"),
    _backward("sink_gradient_sign", "sink", "the sink's gradient has the wrong sign",
              (DSINK, 'grads["sink"] = (P_sink * delta).sum(axis=(0, 2, 3))'), bug="flash-attention #2102"),
    _backward("sink_gradient_one_sample", "sink", "the sink's gradient is not summed over the batch",
              (DSINK, 'grads["sink"] = -(P_sink * delta)[0].sum(axis=(1, 2))')),
    _backward("sink_forgotten_backward", "sink", "the backward's weights sum to one, as if there were no sink",
              ("P = c.P", "rows = c.P.sum(axis=3, keepdims=True); P = c.P / np.where(rows == 0, 1, rows)"),
              bug="vllm-metal #550"),
    _backward("sink_weight_by_subtraction", "sink", "the sink's weight is taken as 1 - rowsum(P), which rounds to nothing",
              ("P_sink = c.e_sink / c.total", "P_sink = 1 - c.P.sum(axis=3, keepdims=True)")),
    _forward("one_after_maximum", "off_by_one", "1 is added after the maximum was subtracted", (SINK, "e_sink = np.ones_like(m)")),
    _forward("plain_softmax", "off_by_one", "nothing is added", (SINK, "e_sink = 0 * m")),
    _forward("zero_key_shifts_mask", "off_by_one", "an added zero key moves the causal mask by one: the future is seen",
             (SEE, "see = np.broadcast_to(visible(Tq, Tk + 1, **{**mask, 'allowed': True})[:, :Tk] "
              "& mask.get('allowed', True), shape)"), bug="pytorch #27461"),
    _backward("one_forgotten_backward", "off_by_one", "the backward's weights sum to one",
              ("P = c.P", "rows = c.P.sum(axis=3, keepdims=True); P = c.P / np.where(rows == 0, 1, rows)")),
)

GATED = (
    _forward("gate_without_sigmoid", "gated", "the logits themselves are the gate", (GATE, "g = gate_logits + 0")),
    _forward("gate_tanh", "gated", "tanh in place of the sigmoid", (GATE, "g = np.tanh(gate_logits)")),
    _forward("gate_of_key", "gated", "each value is gated by its own token, before attention",
             ("Pv, core = attend(q, k, v, **options)\n    " + GATE,
              "g = sigmoid(gate_logits); Pv, core = attend(q, k, v * g if q.shape[2] == k.shape[2] else v, **options)\n"
              "    g = g if q.shape[2] != k.shape[2] else np.ones_like(g)")),
    _forward("gate_cut_off", "gated", "a gate below sigmoid(-10) is taken as 0",
             (GATE, "g = np.where(gate_logits < -10, 0, sigmoid(gate_logits))")),
    _backward("gate_derivative_halved", "gated", "the derivative of the sigmoid lacks 1 - g",
              (DGATE, 'grads["gate_logits"] = dg * c.g')),
    _backward("gate_derivative_overflows", "gated", "the sigmoid's derivative is made from exp(-x) and overflows",
              (DGATE, 'y = np.exp(-c.gate_logits); grads["gate_logits"] = dg * y / (1 + y) ** 2')),
    _backward("gate_gradient_first_channel", "gated", "the gradient of a gate per head is that of its first channel",
              ("dg = sum_to(dg, c.g.shape)", "dg = dg[..., :c.g.shape[3]]")),
    _backward("attention_hears_ungated", "gated", "the gradient enters attention without passing the gate",
              ("dPv = dout * c.g", "dPv = dout")),
)

AFFINE = (
    _forward("beta_on_masked_keys", "affine", "beta is added to hidden keys as well", (ONES, "ones = np.ones_like(core.s)")),
    _forward("beta_undivided", "affine", "beta is not divided by N", (BETA, "beta = alpha_ma[:, None, None] - alpha")),
    _forward("beta_without_alpha", "affine", "beta = alpha_ma / N", (BETA, "beta = alpha_ma[:, None, None] / n + 0 * alpha")),
    _forward("beta_not_before_ma", "affine", "while alpha_ma is zero there is no beta",
             (BETA, BETA + " * q.dtype.type(alpha_ma.any())")),
    _forward("ma_of_first_head", "affine", "every head gets the alpha_ma of the first", (BETA, "beta = (alpha_ma[0] - alpha) / n")),
    _forward("total_counts_visible", "affine", 'length="total" counts the visible keys',
             ('{"total": k.shape[2], ', '{"total": n_seen, ')),
    _forward("visible_counts_total", "affine", 'length="visible" counts all keys', ('"visible": n_seen}', '"visible": k.shape[2]}')),
    _forward("length_ignored", "affine", "a length given as a number is ignored", (".get(length, length)", ".get(length, k.shape[2])")),
    _forward("nothing_visible", "affine", "a row that sees nothing divides by 0", ("n_seen = np.maximum(core.see.sum(axis=3, keepdims=True), 1)",
             "n_seen = core.see.sum(axis=3, keepdims=True)")),
    _forward("alpha_not_clipped", "affine", "alpha leaves [0, 1]", ("alpha = np.clip(x * 0.1 + 0.5, 0, 1)", "alpha = x * 0.1 + 0.5")),
    _forward("running_sum_without_window", "affine", "the sum of values starts at the first key, whatever the window",
             (ONES, "ones = np.broadcast_to(visible(q.shape[2], k.shape[2], **{**core.mask, 'window': None, "
              "'causal': core.mask.get('causal') or core.mask.get('window') is not None}), core.s.shape).astype(q.dtype)")),
    _forward("sigmoid_everywhere", "affine", "phi is always the sigmoid", ('if phi == "sigmoid":', "if True:")),
    _backward("ma_differentiated", "affine", "gradients flow into the running mean alpha_ma as if it were mean(alpha)",
              (DALPHA, DALPHA + " - (dbeta / c.n).mean(axis=(0, 2), keepdims=True)")),
    _backward("beta_not_differentiated", "affine", "alpha's gradient leaves out its part in beta", (DALPHA, "pass")),
    _backward("dv_without_beta", "affine", "dv leaves out the sum of values",
              ('grads["v"] = grads["v"] + c.ones.swapaxes(2, 3) @ (c.beta * dout)', "pass")),
    _backward("slope_outside_clip", "affine", "the slope of the clip is 0.1 everywhere",
              ("slope = np.where(np.abs(x) < 5, 0.1, 0).astype(x.dtype)", "slope = np.full_like(x, 0.1)")),
    _backward("slope_at_kinks", "affine", "the slope is 0.1 at the kinks themselves", ("np.abs(x) < 5", "np.abs(x) <= 5")),
    _backward("attention_hears_unscaled", "affine", "the gradient enters attention without alpha", ("dPv = c.alpha * dout", "dPv = dout")),
)

ENERGIES = (
    _forward("statistics_of_the_future", "energy", 'norm="prefix" takes mean and deviation over the whole sequence',
             (LAST, LAST.replace("p,", "np.full(Tq, Tk - 1),", 1))),
    _forward("key_statistics_of_the_future", "energy", 'norm="key" takes mean and deviation over the whole sequence',
             (LAST, LAST.replace("np.arange(Tk)", "np.full(Tk, Tk - 1)"))),
    _forward("statistics_without_own_key", "energy", 'norm="key" counts only the keys before',
             (LAST, LAST.replace("np.arange(Tk)", "np.arange(Tk) - 1"))),
    _forward("statistics_of_the_window", "energy", "mean and deviation run over the window only",
             ("member = np.arange(Tk) <= last[:, None]", "member = (np.arange(Tk) <= last[:, None]) "
              "& (np.arange(Tk) > last[:, None] - (options.get('window') or Tk))")),
    _forward("statistics_aligned_at_end", "energy", 'norm="prefix" ignores align="start"',
             ('p = np.arange(Tq) + (Tk - Tq if options.get("align", "end") == "end" else 0)', "p = np.arange(Tq) + Tk - Tq")),
    _forward("unbiased_deviation", "energy", "the variance is divided by n - 1", (VAR, VAR.replace("/ n", "/ np.maximum(n - 1, 1)"))),
    _forward("one_pass_variance", "energy", "the variance is mean(e^2) - mean(e)^2, which loses its digits far from zero",
             (VAR, "var = np.maximum((e * e * member).sum(axis=3, keepdims=True) / n - mean * mean, 0)")),
    _forward("deviation_without_floor", "energy", "equal energies are divided by a deviation of 0",
             ("rstd = 1 / np.maximum(np.sqrt(var), 1e-8)", "rstd = 1 / np.sqrt(var)")),
    _forward("epsilon_outside_root", "energy", "1e-8 is added to the deviation instead of the variance",
             ("1 / np.sqrt(var + 1e-8)", "1 / (np.sqrt(var) + 1e-8)")),
    _forward("tau_added", "energy", "tau has the wrong sign", ("above = z - tau[:, None, None]", "above = z + tau[:, None, None]")),
    _forward("alpha_ignored", "energy", "alpha does not enter the gate", ("u = alpha[:, None, None] * above", "u = above + 0")),
    _forward("gate_not_logged", "energy", "the gate itself is added to the scores, not its logarithm",
             ("log_g = np.minimum(u, 0) - np.log1p(np.exp(-np.abs(u)))", "log_g = sigmoid(u)")),
    _forward("not_renormalised", "energy", "weights are gated after the softmax and not renormalised",
             (ENERGY, "plain = attend(q, k, v, **options)[1]; out, core = attend(q, k, v, gate=log_g, **options)\n"
              "    core.P = core.P * np.exp(core.lse - plain.lse); out = core.out = core.P @ v")),
    _forward("renormaliser_clamped", "energy", "the sum of gated weights is clamped at 1e-8, as published: closed gates give 0",
             (ENERGY, "plain = attend(q, k, v, **options)[1]; out, core = attend(q, k, v, gate=log_g, **options)\n"
              "    core.P = core.P * np.minimum(1, np.exp(core.lse - plain.lse) / 1e-8); out = core.out = core.P @ v")),
    _backward("log_gate_derivative", "energy", "the derivative of log sigmoid is taken as 1", (" * sigmoid(-c.u)", "")),
    _backward("tau_gradient_sign", "energy", "the gradient of tau has the wrong sign", ('grads["tau"] = -c.alpha', 'grads["tau"] = c.alpha')),
    _backward("alpha_gradient_without_tau", "energy", "the gradient of alpha leaves out tau", ("(du * c.above)", "(du * c.z)")),
    _backward("statistics_detached", "energy", "mean and deviation are taken as constants", ('if c.norm != "none":', "if False:")),
    _backward("deviation_detached", "energy", "the deviation is taken as a constant", ("drstd = dz * (c.e - c.mean)", "drstd = 0 * dz")),
)

GAUSSIAN = (
    _forward("kernel_without_half", "gaussian", "exp(-d^2 / sigma^2) without the half", (INV, "inv = 2 * np.exp(-2 * log_sigma)[:, None, None]")),
    _forward("key_norms_forgotten", "gaussian", "a dot product, not a distance", (KEY_BIAS, "key_bias = 0 * norm * inv")),
    _forward("sigma_not_squared", "gaussian", "divides by sigma, not by its square", (INV, "inv = np.exp(-log_sigma)[:, None, None]")),
    _forward("sigma_of_first_head", "gaussian", "every head has the width of the first",
             (INV, "inv = np.exp(-2 * np.full_like(log_sigma, log_sigma[0]))[:, None, None]")),
    _forward("sigma_clamped", "gaussian", "log sigma is clamped at 5", (INV, "inv = np.exp(-2 * np.minimum(log_sigma, 5))[:, None, None]")),
    _forward("tiny_sigma_is_identity", "gaussian", "for a tiny sigma a token keeps to itself, though others are just like it",
             (KEY_BIAS, KEY_BIAS + "\n    if inv.min() > 1e4 and keys is None:\n        "
              "options['allowed'] = options.get('allowed', True) & np.eye(x.shape[2], dtype=bool)[None, None]")),
    _forward("token_left_out", "gaussian", "a token does not see itself", (SEE, SEE + " & ~np.eye(Tq, Tk, dtype=bool)")),
    _forward("epsilon_in_denominator", "gaussian", "the denominator holds an epsilon of 1e-6, as published",
             (TOTAL, "total = total + q.dtype.type(1e-6)")),
    _forward("kernel_underflows", "gaussian", "exp(-d^2 / (2 sigma^2)) as it stands: where all distances are large, 0 / 0",
             (MAX, "m = -gate.swapaxes(2, 3) if Tq == Tk else s.max(axis=3, keepdims=True)")),
    _backward("value_role_forgotten", "gaussian", "dx leaves out the token's part as a value", ("dk = dk + dv", "dk = dk + 0 * dv")),
    _backward("key_role_forgotten", "gaussian", "dx leaves out the token's part as a key", ("dx = dx + dk", "dx = dx + dv")),
    _backward("key_norm_constant", "gaussian", "|x_j|^2 is taken as a constant", ("dk = dk - c.k * c.inv * ds.sum(axis=2)[..., None]", "pass")),
    _backward("log_sigma_gradient_halved", "gaussian", "d log sigma lacks the factor 2", ('grads["log_sigma"] = -2 *', 'grads["log_sigma"] = -1 *')),
    _backward("log_sigma_without_norms", "gaussian", "d log sigma leaves out the key norms",
              ("s = c.core.scale * c.core.dots + c.key_bias", "s = c.core.scale * c.core.dots")),
    _backward("values_have_no_gradient", "gaussian", "values that were given apart get no gradient",
              ('grads["values"] = dv', 'grads["values"] = 0 * dv')),
)

MUTANTS = {m.name: m for group in (SOFTMAX, SOFTMAX_BACKWARD, SINKS, GATED, AFFINE, ENERGIES, GAUSSIAN) for m in group}
