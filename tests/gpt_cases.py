"""What the tests of the whole model share: configurations, inputs, and one way to run each implementation.

A run is a dict of arrays: "logits", "loss", "grad/NAME", then some AdamW steps as the trainer takes them, and
"losses", "norms", "after/NAME", "after/logits". Both implementations give the same keys.
"""
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from minattn import model, optim, parallel

SIZES = dict(vocab_size=19, block_size=11, n_layer=2, n_head=3, n_embd=18)        # heads of 6 channels
TINY = dict(vocab_size=11, block_size=5, n_layer=2, n_head=2, n_embd=8)           # of the saved results
ADAMW = dict(lr=3e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
CLIP = 1.0

CASES = {
    "softmax": {},
    "off_by_one": dict(attention="off_by_one"),
    "sink": dict(attention="sink"),
    "gated": dict(attention="gated"),
    "gated-head": dict(attention="gated", attention_options={"gate": "head"}),
    "affine": dict(attention="affine"),
    "affine-visible": dict(attention="affine", attention_options={"length": "visible", "phi": "sigmoid"}),
    "affine-13-before-layer": dict(attention="affine", attention_options={"length": 13, "use": "before", "axes": "layer", "momentum": 0.7}),
    "energy": dict(attention="energy"),
    "energy-prefix": dict(attention="energy", attention_options={"norm": "prefix"}),
    "energy-sequence": dict(attention="energy", attention_options={"norm": "sequence"}),
    "energy-none": dict(attention="energy", attention_options={"norm": "none"}),
    "gaussian": dict(attention="gaussian"),
    "gaussian-raw": dict(attention="gaussian", attention_options={"qk_norm": False, "sigma_init": 1.7}),
    "none": dict(position="none"),
    "sinusoidal": dict(position="sinusoidal", position_options={"base": 100.0}),
    "rope": dict(position="rope"),
    "rope-interleaved": dict(position="rope", position_options={"pairs": "interleaved", "base": 50.0}),
    "decay": dict(position="decay"),
    "morlet": dict(position="morlet"),
    "morlet-centre": dict(position="morlet", position_options={"admissible": False, "centre": True}),
    # what the papers combine
    "affine+gated": dict(attention="affine+gated", position="rope", bias=True),
    "affine+gated-head-window": dict(attention="affine+gated", attention_options={"gate": "head", "length": "visible"}, window=4),
    "energy-morlet": dict(attention="energy", position="morlet", bias=True, gelu="exact"),
    "energy-sequence-morlet": dict(attention="energy", position="morlet", attention_options={"norm": "sequence"}),
    "energy+gated-decay": dict(attention="energy+gated", position="decay", attention_options={"norm": "prefix"}),
    "gaussian-rope-SSSL": dict(attention="gaussian", position="rope", window_pattern="SSSL", n_layer=4),
    "gaussian-rope_values": dict(attention="gaussian", position="rope", attention_options={"rope_values": True}, window=3),
    "gaussian-decay": dict(attention="gaussian", position="decay"),
    "sink-rope-window": dict(attention="sink", position="rope", window=3),
    "off_by_one+gated": dict(attention="off_by_one+gated", position="decay"),
    "energy,softmax": dict(attention="energy,softmax", n_layer=3),
    "sink,affine+gated,gaussian": dict(attention="sink,affine+gated,gaussian", n_layer=3, position="rope", qkv_bias=True),
    "learned+rope": dict(position="learned+rope"),
    "learned+morlet+decay": dict(position="learned+morlet+decay"),
    "biases-exact": dict(bias=True, qkv_bias=True, gelu="exact"),
}
SAVED = ("softmax", "off_by_one", "gated-head", "affine-visible", "affine+gated", "energy-morlet", "energy-prefix",
         "gaussian-rope-SSSL", "sink-rope-window", "sinusoidal", "energy+gated-decay", "biases-exact")


def config_of(case, **sizes):
    """`sizes` stand in for SIZES; a case that asks for more layers gets them, unless sizes are given."""
    return model.Config(**{**SIZES, **CASES[case], **sizes})


def draw(name, shape, start, rng):
    """Values at which every branch is taken, away from where the formulas bend."""
    if "morlet" in name and "centre" not in name:     # above, below and beyond the cap, each by a clear distance
        pick = np.arange(shape[0]) % 3
        return (np.log([1.9, 0.7, 3.3]) if "omega" in name else np.log([4.0, 3.5, 2.5]))[pick] + 0.1 * rng.random(shape)
    spread = {"weight": 0.25, "centre": 2.0}.get(name.rsplit(".", 1)[-1], 0.4)
    if "alpha_logits" in name:
        spread = 0.8                                  # a few logits leave (-5, 5)
    return start + spread * rng.standard_normal(shape)


def inputs(config, seed=0, batch=3):
    """Parameters away from the initial ones, buffers, and one batch: float64, but each number is one of float32."""
    rng = np.random.default_rng(seed)
    params, buffers = model.init(config, seed, np.float64)
    params = {name: draw(name, a.shape, a if "norm" in name or a.ndim == 1 else 0, rng) for name, a in params.items()}
    buffers = {name: rng.uniform(0.3, 0.7, a.shape) for name, a in buffers.items()}
    params, buffers = ({name: a.astype(np.float32).astype(np.float64) for name, a in d.items()} for d in (params, buffers))
    tokens = rng.integers(config.vocab_size, size=(batch, config.block_size + 1))
    return params, buffers, tokens[:, :-1], tokens[:, 1:]


def run_numpy(config, params, buffers, x, y, steps=5, clip=CLIP):
    logits, loss, cache = model.forward(params, x, config, targets=y, buffers=buffers, training=True)
    result = {"logits": logits, "loss": np.array(loss)}
    result.update((f"grad/{name}", g) for name, g in model.backward(cache, config).items())

    p, params, decayed = optim.flatten(params, "2d")
    order = sorted(params, key=lambda name: params[name].__array_interface__["data"][0])
    shapes = {name: params[name].shape for name in order}
    g, m, v = np.zeros_like(p), np.zeros_like(p), np.zeros_like(p)
    grads, losses, norms = optim.views_of(g, shapes), [], []
    chunks = 1 if buffers else 2                      # a running mean is one per chunk: PyTorch has one
    options = dict(ADAMW)
    lr, decay = options.pop("lr"), options.pop("weight_decay")
    with ThreadPoolExecutor(1) as pool:
        for step in range(1, steps + 1):
            loss, buffers = parallel.loss_and_gradients(pool, params, buffers, x, y, config, chunks=chunks, out=grads)
            norms.append(optim.global_norm(grads))
            g *= optim.clip_factor(norms[-1], clip)
            parallel.adamw(pool, p, g, m, v, decayed, step, lr, decay, **options)
            losses.append(loss)
    result.update(losses=np.array(losses), norms=np.array(norms))
    result.update((f"after/{name}", a) for name, a in {**params, **buffers}.items())
    result["after/logits"] = model.forward(params, x, config, buffers=buffers)[0]
    return result


def run_torch(config, params, buffers, x, y, steps=5, clip=CLIP):
    import torch

    from minattn.torch_refs.gpt import GPT
    gpt = GPT.from_numpy(model.to_dict(config), params, buffers).train()
    x, y = torch.tensor(x), torch.tensor(y)
    logits, loss = gpt(x, y)
    loss.backward()
    result = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    result.update((f"grad/{name}", g) for name, g in gpt.gradients().items())

    gpt = GPT.from_numpy(model.to_dict(config), params, buffers).train()         # the buffers as they were
    flat = list(gpt.parameters())
    groups = [{"params": [p for p in flat if p.ndim >= 2]}, {"params": [p for p in flat if p.ndim < 2], "weight_decay": 0.0}]
    adamw, losses, norms = torch.optim.AdamW(groups, **ADAMW), [], []
    for _ in range(steps):
        loss = gpt(x, y)[1]
        adamw.zero_grad()
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(flat, clip or float("inf")).item())
        adamw.step()
        losses.append(loss.item())
    result.update(losses=np.array(losses), norms=np.array(norms))
    state = {name.replace("/", "."): a.detach().numpy() for name, a in gpt.state_dict().items()}
    result.update((f"after/{name}", a) for name, a in state.items())
    with torch.no_grad():
        result["after/logits"] = gpt.eval()(x)[0].numpy()
    return result


def errors(ours, theirs):
    """The largest difference per key, relative to the largest entry; a gradient that is truly 0 (what only shifts a
    normalised energy) relative to the largest of all gradients."""
    assert ours.keys() == theirs.keys()
    largest = max(np.abs(a).max() for name, a in theirs.items() if name.startswith("grad/"))
    found = {}
    for name, b in theirs.items():
        a, scale = ours[name], np.abs(b).max()
        assert a.shape == b.shape and a.dtype == b.dtype == np.float64, name
        if name.startswith("grad/") and scale < 1e-13 * largest:
            scale = largest
        found[name] = float(np.abs(a - b).max() / scale)
    return found


def worst(ours, theirs):
    """(error, key) before any step, and after the steps"""
    found = errors(ours, theirs)
    later = ("losses", "norms", "after/")
    return [max((e, name) for name, e in found.items() if name.startswith(later) is after) for after in (False, True)]
