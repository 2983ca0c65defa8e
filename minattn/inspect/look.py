"""Run a trained model on a text once and keep what every layer and head did."""
from typing import NamedTuple

import numpy as np

from minattn import masks, model
from minattn.attention_layer import attention_parameters
from minattn.inspect import statistics
from minattn.layers import layers


class Inside(NamedTuple):
    """What one layer did with a text."""
    name: str               # its mechanism, as it is spelled
    weights: np.ndarray     # (B, H, T, T)
    visible: np.ndarray     # (T, T) bool
    computed: dict          # label -> (H, B, ...), what it computed from the text: gates, alpha
    learned: dict           # label -> (values (H,), initial value; None for a buffer)


def look(params, buffers, config, ids):
    """Run a model on ids (B, T) once -> [Inside], one per layer. Errors: minattn.model.forward.

    A mechanism's module says what it computed: computed(cache) -> {label: (B, H, ...)}.
    """
    stack, T, inside = [], ids.shape[1], []
    cache = model.forward(params, ids, config, buffers=buffers, weights=stack)[2]
    for layer, w, (_, attn, *_) in zip(layers(config), stack, cache.layers):
        prefix = f"h.{layer.index}.attn."
        computed = _computed(layer.mechanism, attn.attention) | _computed(layer.gate, attn.gate)
        learned = {}
        for name, (shape, first) in attention_parameters(layer, config).items():
            per_head = layer.mechanism.arguments.get(name, "H") == "H"
            if per_head and shape == (config.n_head,):
                value = params[prefix + name]
                if name in layer.mechanism.parameters and name.startswith("log_"):
                    name, value, first = name.removeprefix("log_"), np.exp(value), np.exp(first)
                learned[name] = value, first
        for name in layer.mechanism.buffers:
            learned[name] = buffers[prefix + name], None
        visible = masks.visible(T, T, causal=True, window=layer.window)
        inside.append(Inside(layer.name, w, visible, computed, learned))
    return inside


def _computed(mechanism, cache):
    tell = getattr(mechanism.module, "computed", None) if mechanism else None
    found = tell(cache) if tell else {}
    return {label: np.moveaxis(x, 1, 0) for label, x in found.items()}


def labels(inside, what):
    """Every label under "computed" or "learned", in order."""
    return list(dict.fromkeys(label for layer in inside for label in getattr(layer, what)))


def even(layer):
    """For comparison: the same layer with weights spread evenly over the visible keys."""
    seen = layer.visible.sum(axis=1, keepdims=True)
    w = (layer.visible / seen)[None, None]
    return Inside(f"even, {seen.max()} keys", w, layer.visible, {}, {})


def top_sink(layer):
    """The key that is a sink most often -> keys (H,), fractions (H,)

    Only keys that enough queries see count: half as many as the most visible key has.
    """
    seen = layer.visible.sum(axis=0)
    fraction = statistics.sink_fraction(layer.weights, visible=layer.visible)
    fraction = np.where(2 * seen >= seen.max(), fraction, -1)
    return fraction.argmax(axis=1), fraction.max(axis=1)


def table(inside):
    """Rows of strings: column names, a row per layer and head, one per window for even weights."""
    more = [f"mean {label}" for label in labels(inside, "computed")] + labels(inside, "learned")
    sums_differ = any(np.abs(layer.weights.sum(axis=3) - 1).max() > 1e-3 for layer in inside)
    names = ["layer", "head", "attention", "entropy", "first token", "top sink"]
    if sums_differ:
        names.append("row sum")
    rows = [(*names, *more)]
    references = {even(layer).name: even(layer) for layer in inside}
    for n, layer in [*enumerate(inside), *(("-", layer) for layer in references.values())]:
        total, spread = statistics.row_sums(layer.weights)
        entropy = statistics.entropy(layer.weights)
        first = statistics.first_token_mass(layer.weights, layer.visible)
        keys, fractions = top_sink(layer)
        for h in range(layer.weights.shape[1]):
            sink = f"key {keys[h]}: {fractions[h]:.0%}" if fractions[h] > 0 else "none"
            row = [str(n), "-" if n == "-" else str(h), layer.name, f"{entropy[h]:.2f}",
                   f"{first[h]:.3f}", sink]
            if sums_differ:
                row.append(f"{total[h]:.2f} +- {spread[h]:.2f}")
            found = {f"mean {label}": values[h].mean() for label, values in layer.computed.items()}
            found |= {label: values[h] for label, (values, _) in layer.learned.items()}
            row += [f"{found[label]:.3g}" if label in found else "-" for label in more]
            rows.append(tuple(row))
    return rows
