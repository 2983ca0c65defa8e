"""What the tests of the whole model share: configurations, inputs, runs.

A run is a dict of arrays: "logits", "loss", "grad/NAME", then some AdamW steps as the trainer takes
them: "losses", "norms", "after/NAME", "after/logits". Both implementations give the same keys.
"""
import numpy as np

from minattn import model, optim, parallel, spec, train
from minattn.attention import MECHANISMS
from minattn.layers import layers
from minattn.positions import POSITIONS

SIZES = dict(vocab_size=19, block_size=11, n_layer=2, n_head=3, n_embd=18)     # heads of 6 channels
TINY = dict(vocab_size=11, block_size=5, n_layer=2, n_head=2, n_embd=8)       # of the saved results
ADAMW = dict(betas=(0.9, 0.99), eps=1e-8)
DECAY, CLIP = 0.1, 1.0
RATE = dict(lr=3e-3, min_lr=3e-4, warmup=2)


def settings(row, options):
    """How a config spells it: plain, then with each option's next value until all were there."""
    yield row.name
    others = {name: option.others() for name, option in options.items()}
    for n in range(max(map(len, others.values()), default=0)):
        yield str(spec.Part(row.name, {name: o[n] for name, o in others.items() if n < len(o)}))


COMBINED = {        # what the papers combine, and what differs by layer
    "off_by_one-sinusoidal": dict(attention="off_by_one", position="sinusoidal"),
    "affine-visible": dict(attention="affine[phi=sigmoid,length=visible]"),
    "affine+gated": dict(attention="affine+gated", position="rope", bias=True),
    "affine+gated-head-window": dict(attention="affine[length=visible]+gated[gate=head]", window=4),
    "energy-morlet": dict(attention="energy", position="morlet", bias=True, gelu="exact"),
    "energy-sequence-morlet": dict(attention="energy[norm=sequence]", position="morlet"),
    "energy+gated-decay": dict(attention="energy[norm=prefix]+gated", position="decay"),
    "gaussian-rope-SSSL": dict(attention="gaussian", position="rope", window_pattern="SSSL",
                               n_layer=4),
    "gaussian-rope_values": dict(attention="gaussian[rope_values=true]", position="rope", window=3),
    "gaussian-decay": dict(attention="gaussian", position="decay"),
    "sink-rope-window": dict(attention="sink", position="rope", window=3),
    "off_by_one+gated": dict(attention="off_by_one+gated", position="decay"),
    "energy/softmax": dict(attention="energy/softmax", n_layer=3),
    "sink/affine+gated/gaussian": dict(attention="sink/affine+gated/gaussian", n_layer=3,
                                       position="rope", qkv_bias=True),
    "energy[norm=none]/energy": dict(attention="energy[norm=none]/energy"),
    "learned+rope": dict(position="learned+rope"),
    "learned+morlet+decay": dict(position="learned+morlet+decay"),
    "biases-exact": dict(bias=True, qkv_bias=True, gelu="exact"),
    "grouped-softcap-rope": dict(n_kv_head=1, softcap=0.7, position="rope", qkv_bias=True),
    "grouped-norm-length-window": dict(attention="affine[length=visible]+gated/energy/sink",
                                       n_head=6, n_embd=36, n_kv_head=2, qk_norm=True, window=4,
                                       log_length=True, position="decay", n_layer=3),
    "gated-norm-length-softcap": dict(attention="gated/off_by_one", qk_norm=True, softcap=1.5,
                                      log_length=True, position="rope"),
}
CASES = {        # name -> fields of Config; each mechanism and each position with its options first
    **{text: dict(attention=text) for row in MECHANISMS.values()
       for text in settings(row, row.all_options())},
    **{text: dict(position=text) for row in POSITIONS.values()
       for text in settings(row, row.options) if text != model.Config.position},
    **COMBINED}
POOLED = {"linear[feature=lln,norm=tensor]"}      # statistics over the batch: samples touch
SAVED = ("softmax", "off_by_one-sinusoidal", "gated[gate=head]", "affine-visible", "affine+gated",
         "energy-morlet", "energy+gated-decay", "gaussian-rope-SSSL", "sink-rope-window",
         "biases-exact")


def config_of(case, **others):
    return model.Config(**{**SIZES, **CASES[case], **others})


def draw(name, shape, start, rng):
    """Values at which every branch is taken, away from where the formulas bend."""
    if name.endswith(("log_omega", "log_sigma")) and "position" in name:
        log = np.log([1.9, 0.7, 3.3] if "omega" in name else [4.0, 3.5, 2.5])    # around the cap
        return log[np.arange(shape[0]) % 3] + 0.1 * rng.uniform(size=shape)
    spread = {"weight": 0.25, "centre": 2.0}.get(name.rsplit(".", 1)[-1], 0.4)
    if "alpha_logits" in name:
        spread = 0.8                                  # a few logits leave (-5, 5)
    return start + spread * rng.standard_normal(shape)


def inputs(config, seed=0, batch=3):
    """Parameters away from the initial ones, buffers, and one batch: float32's numbers as float64.

    RandomState promises that its numbers never change, so the saved results need not hold their
    inputs.
    """
    rng = np.random.RandomState(seed)
    params, buffers = model.init(config, seed, np.float64)
    params = {name: draw(name, a.shape, a if a.ndim == 1 else 0, rng) for name, a in params.items()}
    buffers = {name: rng.uniform(0.3, 0.7, a.shape) for name, a in buffers.items()}
    params, buffers = ({name: a.astype(np.float32).astype(np.float64) for name, a in d.items()}
                       for d in (params, buffers))
    tokens = rng.randint(config.vocab_size, size=(batch, config.block_size + 1))
    return params, buffers, tokens[:, :-1], tokens[:, 1:]


def run_numpy(config, params, buffers, x, y, steps=5, clip=CLIP):
    logits, loss, cache = model.forward(params, x, config, targets=y, buffers=buffers,
                                        training=True)
    result = {"logits": logits, "loss": np.array(loss)}
    result.update((f"grad/{name}", g) for name, g in model.backward(cache, config).items())

    # a running mean, or another over the batch, is one per chunk: PyTorch has one
    chunks = 1 if buffers or config.attention in POOLED else 2
    beta1, beta2 = ADAMW["betas"]
    settings = train.Settings(**RATE, steps=steps, beta1=beta1, beta2=beta2, eps=ADAMW["eps"],
                              weight_decay=DECAY, clip=clip, chunks=chunks)
    state, losses, norms = parallel.start(params, buffers), [], []
    with parallel.workers(1) as pool:
        for _ in range(steps):
            loss, norm, _ = parallel.train_step(pool, state, x, y, config, settings)
            losses.append(loss)
            norms.append(norm)
    params, buffers = state.params, state.buffers
    result.update(losses=np.array(losses), norms=np.array(norms))
    result.update((f"after/{name}", a) for name, a in {**params, **buffers}.items())
    result["after/logits"] = model.forward(params, x, config, buffers=buffers)[0]
    return result


def run_torch(config, params, buffers, x, y, steps=5, clip=CLIP):
    import torch

    from minattn.torch_refs.gpt import GPT
    torch.set_num_threads(1)                          # small arrays: threads would only wait
    gpt = GPT.from_numpy(model.to_dict(config), params, buffers).train()
    x, y = torch.tensor(x), torch.tensor(y)
    logits, loss = gpt(x, y)
    loss.backward()
    result = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    result.update((f"grad/{name}", g) for name, g in gpt.gradients().items())

    gpt = GPT.from_numpy(model.to_dict(config), params, buffers).train()    # buffers as they were
    flat = list(gpt.parameters())
    matrices, others = ([p for p in flat if (p.ndim >= 2) is wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0}]
    adamw, losses, norms = torch.optim.AdamW(groups, **ADAMW), [], []
    for step in range(steps):
        for group in adamw.param_groups:
            group["lr"] = optim.learning_rate(step, steps=steps, **RATE)
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


def only_shifts(config, name):
    """Does this parameter only shift a normalised energy? Then nothing depends on it."""
    _, _, parameter = name.partition("/")
    if not parameter.endswith("energy.bias"):
        return False
    return layers(config)[int(parameter.split(".")[1])].options.get("norm") != "none"


def errors(config, params, ours, theirs):
    """The largest difference per key, relative to the largest entry.

    What only shifts a normalised energy has no gradient but rounding, and must stay what it was:
    it is compared with that, relative to the largest of all gradients or parameters.
    """
    assert ours.keys() == theirs.keys()
    largest = {kind: max(np.abs(a).max() for name, a in theirs.items() if name.startswith(kind))
               for kind in ("grad", "after")}
    found = {}
    for name, b in theirs.items():
        kind, _, parameter = name.partition("/")
        scale = np.abs(b).max()
        if only_shifts(config, name):
            b, scale = np.zeros_like(b) if kind == "grad" else params[parameter], largest[kind]
        assert ours[name].shape == b.shape and ours[name].dtype == b.dtype == np.float64, name
        found[name] = float(np.abs(ours[name] - b).max() / scale)
    return found


def assert_equal(config, params, ours, theirs, first=1e-11, later=1e-8):
    """`first` bounds the logits, the loss and all gradients; `later` what comes after steps."""
    found = errors(config, params, ours, theirs)
    after = ("losses", "norms", "after/")
    bounds = {name: later if name.startswith(after) else first for name in found}
    wrong = {name: e for name, e in found.items() if not e <= bounds[name]}
    assert not wrong, f"relative errors over {first} and {later}: {wrong}"
