"""What each layer of a model is: the texts of its config, parsed, looked up and checked."""
from functools import lru_cache
from typing import NamedTuple

from minattn import checks, spec
from minattn.attention import MECHANISMS, Mechanism, mechanism, versioned
from minattn.errors import InputError
from minattn.positions import position


class Layer(NamedTuple):
    """What one layer does, read off the config."""
    index: int
    name: str                  # as it is spelled: "energy[norm=prefix]+gated"
    mechanism: Mechanism
    options: dict              # of the mechanism's forward
    layer_options: dict        # of the layer around it
    gate: Mechanism | None     # a gate on top of the mechanism's output
    window: int | None
    rotation: tuple | None     # (position module, its options): rotates q and k
    bias: tuple | None         # (position module, its options): adds to the scores

    def sizes(self, config):
        """The length of every axis of the mechanism's arguments, batch and tokens apart."""
        C, H = config.n_embd, config.n_head
        widths = {"D": C // H, "Dv": C // H}
        if self.mechanism.head_sizes:
            widths.update(self.mechanism.head_sizes(C, H, **self.layer_options))
        return {"H": H, "G": config.n_kv_head or H, **widths}

    def heads(self, argument, config):
        """Heads and width of an argument (B, heads, T, width)."""
        _, heads, _, width = self.mechanism.arguments[argument].split()
        sizes = self.sizes(config)
        return checks.extent(heads, sizes), checks.extent(width, sizes)

    @property
    def keeps_state(self):
        """Does generation keep a state of constant size, in the place of keys and values?"""
        return bool(self.mechanism.continue_from) and self.window is None and self.bias is None

    def reads(self, symbol):
        """The arguments of the mechanism with this axis."""
        return [name for name, shape in self.mechanism.arguments.items() if symbol in shape.split()]


def layers(config):
    """The layers of a config; InputError for a name or an option that nothing knows."""
    built = _layers(config)
    used = [row for layer in built for row in (layer.mechanism, layer.gate) if row]
    if any(MECHANISMS.get(row.name) is not row for row in used):     # a name was registered again
        _layers.cache_clear()
        built = _layers(config)
    return built


@lru_cache(maxsize=64)
def _layers(config):
    texts = spec.parse("attention", config.attention)
    by_kind = {}
    for row, options in positions(config):
        if row.kind in ("rotation", "bias"):
            if row.kind in by_kind:
                raise InputError(f"position {config.position!r}: one {row.kind} at most.")
            by_kind[row.kind] = row.module, options
    built = [_layer(parts) for parts in texts]
    for row, *_ in built:
        _check_core_options(config, row)
    made = []
    for i, window in enumerate(_windows(config)):
        row, options, *rest = built[i % len(built)]
        if "layer_index" in row.options:
            options = {"layer_index": i, **options}
        made.append(Layer(i, spec.show([texts[i % len(texts)]]), row, options, *rest, window,
                          by_kind.get("rotation"), by_kind.get("bias")))
        _check_widths(made[-1], config)
    return tuple(made)


def _check_core_options(config, row):
    """Raise InputError for an option of the model that means nothing for one of its mechanisms."""
    for name in ("softcap", "log_length"):
        if getattr(config, name) and name in row.refuses:
            raise InputError(f"{name} means nothing for {row.name}: leave it out.")
    for name in ("n_kv_head", "qk_norm"):
        if getattr(config, name) and "q" not in row.arguments:
            raise InputError(f"{name} needs queries and keys, and {row.name} has none: leave it "
                             "out.")
    if config.n_kv_head and not any("G" in shape.split() for shape in row.arguments.values()):
        raise InputError(f"{row.name} cannot group its keys: leave n_kv_head out.")


def _check_widths(layer, config):
    """Raise InputError where heads of a width of their own do not fit the model."""
    if not layer.mechanism.head_sizes:
        return
    _, D = layer.heads("q", config)
    if not D or layer.rotation and D % 2:
        raise InputError(f"{layer.name}: queries and keys have {D} channels per head; expected "
                         f"{'an even number' if D else 'at least 1'}: change n_embd or n_head.")


def _layer(parts):
    """Parsed parts -> mechanism, options, layer_options, gate"""
    first, *more = parts
    gate, (row, own) = None, versioned(first.name, first.options)
    first = spec.Part(row.name, own)
    if row.on_top_of:
        more, row, first = [first, *more], mechanism(row.on_top_of), spec.Part(row.on_top_of, {})
    checks.options("attention option", first.name, first.options, row.all_options())
    layer_options = checks.defaults(row.layer_options)
    given = dict(first.options)
    if more:
        gate = mechanism(more[0].name)
        if len(more) > 1 or not gate.on_top_of:
            raise InputError(f"attention {spec.show([parts])!r}: only '+gated' can be put on top "
                             "of another mechanism.")
        checks.options("attention option", gate.name, more[0].options, gate.all_options())
        layer_options.update(checks.defaults(gate.layer_options))
        given.update(more[0].options)
    layer_options.update((n, value) for n, value in given.items() if n in layer_options)
    options = {n: value for n, value in given.items() if n in row.options}
    return row, options, layer_options, gate


def positions(config):
    """The encodings of a config, in order: ((row, {option: value}), ...)"""
    (parts, *more) = spec.parse("position", config.position)
    if more:
        raise InputError(f"position {config.position!r} cannot alternate with "
                         "'/': all layers share one position encoding.")
    found = []
    for part in parts:
        row = position(part.name)
        checks.options("position option", row.name, part.options, row.options)
        if row.name in (other.name for other, _ in found):
            raise InputError(f"position {row.name!r} is given twice in {config.position!r}.")
        found.append((row, {**checks.defaults(row.options), **part.options}))
        C, H = config.n_embd, config.n_head
        if row.even == "n_embd" and C % 2:
            raise InputError(f"n_embd must be even for {row.name} positions; got {C}.")
        if row.even == "n_embd / n_head" and C // H % 2:
            raise InputError(f"n_embd / n_head must be even for {row.name}; got {C} / {H}.")
    return tuple(found)


def embeddings(config):
    """Those of the encodings that are added to the token embeddings."""
    return [(row, options) for row, options in positions(config) if row.kind == "embedding"]


def _windows(config):
    """The window of each layer."""
    if config.window is not None and config.window_pattern:
        raise InputError("give window or window_pattern, not both.")
    if config.window is not None:
        checks.number("window", config.window, 1, integer=True)
    for letter in config.window_pattern:
        checks.choice("each letter of window_pattern", letter, ("S", "L"))
    if not config.window_pattern:
        return [config.window] * config.n_layer
    sizes = {"S": max(1, config.block_size // 2), "L": None}
    letters = config.window_pattern
    pattern = [sizes[letters[i % len(letters)]] for i in range(config.n_layer)]
    return pattern[:-1] + [None]
