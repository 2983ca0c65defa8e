"""Grades the exercises of lesson 05: sinks and gates."""

import numpy as np

from minattn.attention import gated, sink, softmax
from minattn.lessons.grading import Exercise, exercise
from minattn.validate.cases import cases


@exercise
def check_add_sink():
    """out (T, Dv), lse (T,), sink -> (T, Dv): plain attention's output, switched by a sink."""
    half = lambda out, lse, z: out * (1 / (1 + np.exp(z - lse)))[:, None]
    return Exercise(
        lambda out, lse, z: out * np.exp(lse - np.logaddexp(lse, z))[:, None],
        [given for given, _ in _plain("causal", "score_shift", "sink_far_above", "sink_far_below")],
        hints=[
            (
                lambda out, lse, z: out - half(out, lse, z),
                "That is what the sink took: the sign inside the sigmoid is wrong.",
            ),
            (
                lambda out, lse, z: out * (1 / (1 + np.exp(-lse)))[:, None],
                "That is sink = 0, whatever the sink is.",
            ),
            (
                lambda out, lse, z: out * (np.exp(lse) / (np.exp(lse) + np.exp(z)))[:, None],
                "exp overflows above 709: only the difference lse - sink is needed.",
            ),
        ],
        tolerance=1e-7,  # a sigmoid from tanh has few digits left where it is nearly 0
    )


@exercise
def check_sink_gradient():
    """dout, out, lse, sink -> dsink, judged by the package's backward."""

    def total(lse, z):
        return np.exp(lse - np.logaddexp(lse, z))

    def dots(dout, out):
        return (dout * out).sum(axis=1)

    inputs, answers = [], {}
    for (out, lse, z), (dout, dz) in _plain(
        "causal", "noncausal", "sink_far_above"
    ):  # far below, 1 - sigmoid has no digits left
        inputs.append((dout, out, lse, z))
        answers[dout.tobytes(), z] = dz
    return Exercise(
        lambda dout, out, lse, z: answers[dout.tobytes(), z],
        inputs,
        returns=("dsink",),
        hints=[
            (
                lambda d, o, lse, z: (total(lse, z) * (1 - total(lse, z)) * dots(d, o)).sum(),
                "The sign: sink stands in lse - sink.",
            ),
            (
                lambda d, o, lse, z: -((1 - total(lse, z)) * dots(d, o)).sum(),
                "One factor is missing: out is plain here, not yet scaled by the switch.",
            ),
            (
                lambda d, o, lse, z: -(total(lse, z) * dots(d, o)).sum(),
                "That is the switch's value where its slope belongs.",
            ),
            (
                lambda d, o, lse, z: -(total(lse, z) * (1 - total(lse, z)) * dots(d, o)).mean(),
                "All queries share the sink: their gradients add up, no mean.",
            ),
        ],
    )


@exercise
def check_gate_backward():
    """dout, ungated (T, Dv), gate_logits (T, Dv) or (T, 1) -> dungated, dgate_logits."""

    def reference(dout, ungated, g):
        four = [x[None, None] for x in (dout, ungated, g)]
        cache = gated.gate_forward(*four[1:])[1]
        grads = gated.gate_backward(four[0], cache)
        return grads["out"][0, 0], grads["gate_logits"][0, 0]

    def wrong(slope, total=np.sum):
        def backward(dout, ungated, g):
            gate = gated.sigmoid(g)
            dgate = dout * ungated
            return dout * gate, (
                total(dgate, axis=1, keepdims=True) if g.shape[1] == 1 else dgate
            ) * slope(gate)

        return backward

    rng = np.random.default_rng(0)
    inputs = [
        tuple(rng.standard_normal((T, n)) for n in sizes)
        for T, *sizes in ((7, 5, 5, 1), (11, 3, 3, 3), (1, 2, 2, 2))
    ]
    return Exercise(
        reference,
        inputs,
        returns=("dungated", "dgate_logits"),
        hints=[
            (wrong(lambda gate: gate), "The slope of the sigmoid has a second factor."),
            (
                wrong(lambda gate: 1),
                "dgate_logits is the gradient of the logit: the sigmoid's slope is missing.",
            ),
            (
                wrong(lambda gate: gate * (1 - gate), np.mean),
                "One gate for all channels collects the sum of them, not the mean.",
            ),
            (
                lambda d, o, g: (d * gated.sigmoid(g), reference(d, o, g + 0 * o)[1]),
                "One gate for all channels collects the sum of them.",
            ),
            (
                lambda d, o, g: (d, reference(d, o, g)[1]),
                "What reaches the ungated output passes through the gate too.",
            ),
        ],
    )


def _plain(*families):
    """((out, lse, z), (dout, dz)) for single heads of the validation kit's cases:
    plain attention's results, and the sink's gradient.
    """
    for case in cases("sink", only=families):
        q, k, v = (case.arrays[name][:1] for name in ("q", "k", "v"))
        dout = case.cotangent[:1]
        out, plain = softmax.forward(q, k, v, **case.options)
        for h, z in enumerate(case.arrays["sink"]):
            one = slice(h, h + 1)
            _, cache = sink.forward(
                q[:, one], k[:, one], v[:, one], case.arrays["sink"][one], **case.options
            )
            dz = sink.backward(dout[:, one], cache)["sink"][0]
            yield (
                (out[0, h].copy(), plain.lse[0, h].copy(), float(z)),
                (dout[0, h].copy(), float(dz)),
            )
