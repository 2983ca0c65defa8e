"""The checks of lesson 05 accept every right solution and no plausible wrong one."""
import numpy as np
from exercises import held_to

from minattn.lessons import lesson_05


def sigmoid(u):
    e = np.exp(-np.abs(u))
    return np.where(u >= 0, 1, e) / (1 + e)


def switched_by_rows(out, lse, z):
    y = np.zeros_like(out)
    for i in range(len(out)):
        m = max(lse[i], z)
        y[i] = out[i] * np.exp(lse[i] - m) / (np.exp(lse[i] - m) + np.exp(z - m))
    return y


RIGHT = [
    (lesson_05.check_add_sink, lambda out, lse, z: out * sigmoid(lse - z)[:, None]),
    (lesson_05.check_add_sink, switched_by_rows),
    (lesson_05.check_sink_gradient, lambda dout, out, lse, z: -(sigmoid(lse - z) * sigmoid(z - lse) * (dout * out).sum(axis=1)).sum()),
    (lesson_05.check_sink_gradient, lambda dout, out, lse, z: -sum(
        sigmoid(lse[i] - z) * (1 - sigmoid(lse[i] - z)) * np.dot(dout[i], out[i]) for i in range(len(out)))),
    (lesson_05.check_gate_backward, lambda dout, u, g: (dout * sigmoid(g), (
        (dout * u) if g.shape[1] > 1 or u.shape[1] == 1 else (dout * u).sum(axis=1)[:, None]) * sigmoid(g) * sigmoid(-g))),
]

WRONG = [
    (lesson_05.check_add_sink, lambda out, lse, z: out, ""),
    (lesson_05.check_add_sink, lambda out, lse, z: out * sigmoid(z - lse)[:, None], "turned"),
    (lesson_05.check_add_sink, lambda out, lse, z: out * sigmoid(lse)[:, None], "sink = 0"),
    (lesson_05.check_add_sink, lambda out, lse, z: out * (lse - z)[:, None], ""),
    (lesson_05.check_add_sink, lambda out, lse, z: out * (np.exp(lse) / (np.exp(lse) + np.exp(z)))[:, None], "nan"),
    (lesson_05.check_sink_gradient, lambda d, o, lse, z: (sigmoid(lse - z) * sigmoid(z - lse) * (d * o).sum(axis=1)).sum(), "sign"),
    (lesson_05.check_sink_gradient, lambda d, o, lse, z: -(sigmoid(lse - z) * (d * o).sum(axis=1)).sum(), "slope"),
    (lesson_05.check_sink_gradient, lambda d, o, lse, z: -(sigmoid(z - lse) * (d * o).sum(axis=1)).sum(), "One factor is missing"),
    (lesson_05.check_sink_gradient, lambda d, o, lse, z: -(sigmoid(lse - z) * sigmoid(z - lse) * (d * o).sum(axis=1)).mean(), ""),
    (lesson_05.check_sink_gradient, lambda d, o, lse, z: -sigmoid(lse - z) * sigmoid(z - lse) * (d * o).sum(axis=1), "shape"),
    (lesson_05.check_gate_backward, lambda d, u, g: (d * sigmoid(g), d * u * sigmoid(g) * sigmoid(-g)), "shape"),
    (lesson_05.check_gate_backward, lambda d, u, g: (
        d * sigmoid(g), (d * u).sum(axis=1, keepdims=g.shape[1] == 1).reshape(-1, 1) * sigmoid(g) * sigmoid(-g)), "dgate_logits should"),
    (lesson_05.check_gate_backward, lambda d, u, g: (
        d * sigmoid(g), (d * u if g.shape[1] > 1 else (d * u).mean(axis=1, keepdims=True)) * sigmoid(g) * sigmoid(-g)), "not the mean"),
    (lesson_05.check_gate_backward, lambda d, u, g: (
        d * sigmoid(g), (d * u if g.shape[1] > 1 else (d * u).sum(axis=1, keepdims=True)) * sigmoid(g)), "second factor"),
    (lesson_05.check_gate_backward, lambda d, u, g: (
        d * sigmoid(g), d * u if g.shape[1] > 1 else (d * u).sum(axis=1, keepdims=True)), "slope is missing"),
    (lesson_05.check_gate_backward, lambda d, u, g: (
        d, (d * u if g.shape[1] > 1 else (d * u).sum(axis=1, keepdims=True)) * sigmoid(g) * sigmoid(-g)), "dungated"),
]


test_right_solutions_pass, test_wrong_solutions_are_told_why, test_open_exercises_are_not_yet = held_to(RIGHT, WRONG)
