# %% [markdown]
# # 05 · Sinks and gates: how can a head say nothing?
#
# **The question.** The weights of a softmax row sum to 1, whatever the scores are. What
# does a head do when no key deserves anything? **Time:** 30 minutes to read, 60 with
# the exercises. **You need:** softmax attention and its gradient ([lesson
# 01](01_softmax_attention.ipynb)). (The letters: [notation](NOTATION.md).)

# %%
import numpy as np

from minattn import attention, data, lessons, model, optim, parallel, plots
from minattn.inspect import maps, statistics
from minattn.lessons import grader_05

# %% [markdown]
# ## The picture: a unit that must be spent
#
# One query looks at $T$ keys. Its scores $s_j$ become weights
# $P_j = e^{s_j} / \sum_k e^{s_k}$. Lower every score by the same $c$, as if every key
# had become a worse match: numerator and denominator both shrink by a factor $e^{-c}$,
# and **nothing changes**. Softmax knows which key is best; it cannot know whether the
# best is any good.
#
# Put one more number into the denominator, $e^{\text{sink}}$, that belongs to no key
# and no value. Its logarithm is the **sink**: a logit (a number before the exponential,
# like a score) that takes its share and hands over nothing. Now the weights can be
# small:
#
# $$ P_j = \frac{e^{s_j}}{e^{\text{sink}} + \sum_k e^{s_k}} $$
#
# (arXiv 2602.23057, eq. 3; with $\text{sink} = 0$ the extra number is 1: *off-by-one
# softmax*, eq. 2.)

# %%
rng = np.random.default_rng(0)
s = np.array([1.0, -0.3, 0.4, 2.1, -1.2])  # (T,)  the scores of one query
lower = np.linspace(-6, 12, 200)           # all scores lowered by this much


def total_weight(s, sink):
    """s (..., T), one sink -> (...): the sum of the weights, without the sink"""
    e = np.exp(s)
    return (e / (np.exp(sink) + e.sum(axis=-1, keepdims=True))).sum(axis=-1)

# %% tags=["plot"]
# Picture: sum of the weights of a row while all scores are lowered. Softmax stays at 1;
# with a sink it falls to 0 along a sigmoid, the earlier the larger the sink.
def draw(moved):
    curves = ((-np.inf, "softmax: no sink", "-"), (-3, "sink $= -3$", "-."),
              (0, "off-by-one: sink $= 0$", "--"), (moved, f"sink $= {moved}$", ":"))
    fig, ax = plots.figure(6.8, 3.8)
    for sink, name, style in curves:
        ax.plot(lower, total_weight(s - lower[:, None], sink), style, lw=2, label=name)
    ax.set(xlabel="every score is lowered by", ylabel="sum of the weights",
           title="Only with a sink can a row be silent", ylim=(-0.03, 1.05))
    ax.legend(frameon=False)
    return fig


lessons.slider(draw, "sink of the dotted curve", range(-9, 10), start=3)

# %% [markdown]
# The curves with a sink have one shape, moved sideways. Which shape? Write
# $\ell = \ln \sum_k e^{s_k}$ for the logarithm of the plain denominator (`lse`,
# "log-sum-exp", in the package). The weights sum to
#
# $$ \frac{e^{\ell}}{e^{\text{sink}} + e^{\ell}}
#    = \frac{1}{1 + e^{-(\ell - \text{sink})}}
#    = \mathrm{sigmoid}(\ell - \text{sink}), $$
#
# where $\mathrm{sigmoid}(u) = 1 / (1 + e^{-u})$ is the *sigmoid*. So a sink is a soft
# switch on ordinary attention: it compares $\ell$, how well the keys match all
# together, with the sink, and scales all weights of the row by the result.


# %%
def sigmoid(u):
    """1 / (1 + exp(-u)) without overflow at either end"""
    e = np.exp(-np.abs(u))
    return np.where(u >= 0, 1, e) / (1 + e)


lse = np.log(np.exp(s).sum())
print(f"sum of the weights with sink = 0: {total_weight(s, 0):.6f}"
      f"   sigmoid(lse - sink): {sigmoid(lse - 0):.6f}")

# %% [markdown]
# ## Attention with a sink, in a dozen lines
#
# One text, one head: $q, k$ are $(T, D)$, $v$ is $(T, D_v)$, and the sink is one
# number. As in lesson 01 the row maximum is subtracted first, and the sink takes part
# in that maximum: otherwise $e^{\text{sink} - \max}$ overflows when the sink is far
# above all scores.


# %%
def sink_forward(q, k, v, sink):
    """-> out (T, Dv), P (T, T) the weights, P_sink (T,) what the sink took"""
    T, D = q.shape
    s = q @ k.T / np.sqrt(D)                              # (T, D), (D, T) -> (T, T)
    s[~np.tri(T, dtype=bool)] = -np.inf                   # the future is hidden
    m = np.maximum(s.max(axis=1), sink)                   # (T,)    the sink counts here
    P, P_sink = np.exp(s - m[:, None]), np.exp(sink - m)  # (T, T), (T,)
    total = P_sink + P.sum(axis=1)                        # (T,)    the denominator
    P, P_sink = P / total[:, None], P_sink / total
    return P @ v, P, P_sink                               # (T, T), (T, Dv) -> (T, Dv)


q, k, v = rng.standard_normal((3, 7, 5))  # T = 7, D = Dv = 5
out, P, P_sink = sink_forward(q, k, v, 0.7)
print("weights and sink sum to 1:", np.allclose(P.sum(axis=1) + P_sink, 1))

# %% [markdown]
# ## Exercise 1: a sink for a kernel that has none
#
# A fast softmax *kernel* (a tuned program for attention) gives you `out` $(T, D_v)$ and
# `lse` $(T,)$ of *plain* attention, and you cannot change it. Compute the output with a
# sink from them. (Mind the extremes: `lse - sink` may be a thousand, or minus a
# thousand.)


# %% tags=["exercise"]
def add_sink(out, lse, sink):
    """out (T, Dv), lse (T,), sink a number -> (T, Dv): the output with a sink

    out, lse: of plain softmax attention
    """
    ...


grader_05.check_add_sink(add_sink);


# %% tags=["solution"]
def add_sink(out, lse, sink):
    return out * sigmoid(lse - sink)[:, None]


grader_05.check_add_sink(add_sink);

# %% [markdown]
# ## The gradient: the sink is a key whose value is zero
#
# Nothing new has to be derived. Think of the sink as one more key, with the sink as its
# score and a value of zeros; then all of lesson 01 holds. Let $L$ be the loss, $dx$
# short for $\partial L / \partial x$, and $do_i$ what arrives at output $o_i$ (`dout`).
# A weight has the gradient $dP_{ij} = do_i \cdot v_j$; for the sink it is 0, because
# its value is. The softmax rule $ds_{ij} = P_{ij} (dP_{ij} - \delta_i)$ has the row
# constant $\delta_i = \sum_j P_{ij}\, dP_{ij} = do_i \cdot o_i$ (the sink adds nothing
# to the sum), and for the sink itself
#
# $$ d\text{sink} = \sum_i P_{\text{sink},i}\,(0 - \delta_i)
#    = -\sum_i P_{\text{sink},i}\; do_i \cdot o_i . $$
#
# In words: if the output should grow, the sink should fall, and more so where it holds
# much of the row.


# %%
def sink_backward(dout, q, k, v, sink):
    """dout (T, Dv) -> dq, dk (T, D), dv (T, Dv), dsink (a number)"""
    out, P, P_sink = sink_forward(q, k, v, sink)
    dv = P.T @ dout                   # (T, T), (T, Dv) -> (T, Dv)
    dP = dout @ v.T                   # (T, Dv), (Dv, T) -> (T, T)
    delta = (dout * out).sum(axis=1)  # (T,)
    ds = P * (dP - delta[:, None]) / np.sqrt(q.shape[1])  # (T, T)
    dsink = -(P_sink * delta).sum()
    return ds @ k, ds.T @ q, dv, dsink


dout = rng.standard_normal(out.shape)  # random: ones would hide bugs (lesson 18)
ours = dict(zip(("q", "k", "v", "sink"), sink_backward(dout, q, k, v, 0.7)))
above, below = (np.sum(dout * sink_forward(q, k, v, 0.7 + h)[0]) for h in (1e-6, -1e-6))
print("dsink by hand", f"{ours['sink']:.8f}",
      "  by finite differences", f"{(above - below) / 2e-6:.8f}")

one = (q[None, None], k[None, None], v[None, None])           # (1, 1, T, D)
theirs, cache = attention.sink.forward(*one, np.array([0.7]), causal=True)
grads = attention.sink.backward(dout[None, None], cache)
far = {f"d{name}": np.abs(grads[name] - ours[name]).max() for name in ours}
far = {"out": np.abs(theirs[0, 0] - out).max(), **far}

# %%
print("largest difference from minattn:",
      ", ".join(f"{name} {value:.0e}" for name, value in far.items()))

# %% [markdown]
# ## Exercise 2: the same gradient by another way
#
# Exercise 1 wrote the output as $\mathrm{sigmoid}(\ell_i - \text{sink})$ times the
# plain one. Differentiate *that* with respect to the sink: the answer uses plain `out`
# and plain `lse` only. (The derivative of the sigmoid:
# $\mathrm{sigmoid}' = \mathrm{sigmoid} (1 - \mathrm{sigmoid})$.)


# %% tags=["exercise"]
def sink_gradient(dout, out, lse, sink):
    """dout, out (T, Dv), lse (T,), sink a number -> dsink, a number

    out, lse: of plain softmax attention
    """
    ...


grader_05.check_sink_gradient(sink_gradient);


# %% tags=["solution"]
def sink_gradient(dout, out, lse, sink):
    t = sigmoid(lse - sink)                                 # (T,)
    return -(t * (1 - t) * (dout * out).sum(axis=1)).sum()  # minus: it is lse - sink


grader_05.check_sink_gradient(sink_gradient);

# %% [markdown]
# ## A gate: the query decides
#
# The switch $\mathrm{sigmoid}(\ell_i - \text{sink})$ is made from the scores. One can
# also *learn* a switch: **gated attention** multiplies the output by a sigmoid whose
# logit $u_i$ is a linear function of the query's own token $x_i$, one per channel or
# one per head (arXiv 2505.06708; 2602.23057, eq. 4 and 5):
#
# $$ o_i = (P v)_i \odot \mathrm{sigmoid}(u_i), \qquad u_i = x_i W_g $$
#
# ($\odot$ multiplies entry by entry.) Note what it is made from: the gate of token $i$
# sees token $i$, and no key.

# %%
x = rng.standard_normal((7, 4))       # (T, C)   the tokens, C channels
W_g = rng.standard_normal((4, 5))     # (C, Dv)  (C, 1) would be one gate for the head
gate_logits = x @ W_g                 # (T, C), (C, Dv) -> (T, Dv)
ungated = sink_forward(q, k, v, -np.inf)[0]  # (T, Dv)  sink -inf: no sink
out = ungated * sigmoid(gate_logits)  # (T, Dv)

theirs = attention.gated.forward(*one, gate_logits[None, None], causal=True)[0]
print("largest difference from minattn:", f"{np.abs(theirs[0, 0] - out).max():.0e}")

# %% [markdown]
# ## Exercise 3: the gate's gradient
#
# Find the gradient of each factor. Handle both kinds of gate: a gate that scales all
# channels collects the gradient of all of them.


# %% tags=["exercise"]
def gate_backward(dout, ungated, gate_logits):
    """dout, ungated (T, Dv), gate_logits (T, Dv) or (T, 1) -> dungated, dgate_logits"""
    ...


grader_05.check_gate_backward(gate_backward);


# %% tags=["solution"]
def gate_backward(dout, ungated, gate_logits):
    gate = sigmoid(gate_logits)
    dgate = dout * ungated
    if gate_logits.shape[1] == 1:
        dgate = dgate.sum(axis=1, keepdims=True)
    return dout * gate, dgate * gate * (1 - gate)


grader_05.check_gate_backward(gate_backward);

# %% [markdown]
# ## Experiment 1: a head that must often be silent
#
# Real text, and a task for a single head that we know the answer to: *at a capital
# letter, say what followed this letter when it came before (the mean, if several
# times); everywhere else say nothing.* A play is full of names, so this is a useful
# habit. A key carries the character **before** it, a value the character itself, as a
# fixed random code. We learn a query and a key for each character, and the mechanism's
# own sink or gate, using the gradients above. There are two reasons for silence: the
# token does not ask (no capital), or it asks and there is no answer (the capital is new
# in this window).
#
# The fifth head is plain softmax with something that is common in practice: a **start
# token**, one extra key and value at the front of every text, here learned.

# %%
corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
train_ids, val_ids = data.split(vocabulary.encode(corpus.text))
V, D, T = len(vocabulary), 16, 64
codes = rng.standard_normal((V, D))                # (V, D)  one code for each character
asks = np.array([c.isupper() for c in vocabulary.characters])  # (V,)
KINDS = ("does not ask", "asks, no answer", "asks, has an answer")
MODULES = {"softmax": attention.softmax, "off-by-one": attention.off_by_one,
           "sink": attention.sink, "gate": attention.gated,
           "start token": attention.softmax}

# %%
def task(ids):
    """ids (B, T + 1) -> the character before (B, T), the character (B, T),
    what to say (B, T, D), kind (B, T)
    """
    before, here = ids[:, :-1], ids[:, 1:]
    match = before[:, None, :] == here[:, :, None]                           # (B, T, T)
    match &= np.tri(T, dtype=bool)
    n = match.sum(axis=2)  # (B, T)
    kind = np.where(asks[here], np.where(n > 0, 2, 1), 0)
    # (B, T, T), (B, T, D) -> (B, T, D)
    answer = match @ codes[here] / np.maximum(n, 1)[..., None]
    return before, here, np.where(kind[..., None] == 2, answer, 0), kind

# %%
def head(name, p, before, here):
    """The head's output, cache and weights; B texts, one head: arrays (B, 1, T, D)"""
    q, k, v = p["query"][here][:, None], p["key"][before][:, None], codes[here][:, None]
    if name == "start token":  # one key and value in front
        first = np.broadcast_to(p["k0"], k[:, :, :1].shape)
        k = np.concatenate([first, k], axis=2)
        first = np.broadcast_to(p["v0"], v[:, :, :1].shape)
        v = np.concatenate([first, v], axis=2)
    arrays = [q, k, v]
    if name == "sink":
        arrays.append(p["sink"])
    if name == "gate":
        arrays.append(p["gate"][here][:, None])
    return MODULES[name].forward(*arrays, causal=True, return_weights=True)

# %%
def fresh(name):
    """What a head learns, at the start: {name: array}"""
    draw = np.random.default_rng(1)
    p = {"query": draw.normal(0, 0.5, (V, D)), "key": draw.normal(0, 0.5, (V, D))}
    if name == "sink":
        p["sink"] = np.zeros(1)
    if name == "gate":
        p["gate"] = np.zeros((V, 1))
    if name == "start token":
        p["k0"], p["v0"] = draw.normal(0, 0.5, D), draw.normal(0, 0.5, D)
    return p


# %%
def add_gradients(name, p, ids, grads):
    """Add the gradients of the mean squared error on ids (B, T + 1) to grads"""
    before, here, target, _ = task(ids)
    out, cache, _ = head(name, p, before, here)
    error = out[:, 0] - target                          # (B, T, D)
    d = MODULES[name].backward(2 * error[:, None] / error.size, cache)
    np.add.at(grads["query"], here, d["q"][:, 0])
    np.add.at(grads["key"], before, d["k"][:, 0, -T:])  # the T keys of the text
    if name == "start token":
        grads["k0"] += d["k"][:, 0, 0].sum(axis=0)
        grads["v0"] += d["v"][:, 0, 0].sum(axis=0)
    if name == "sink":
        grads["sink"] += d["sink"]
    if name == "gate":
        np.add.at(grads["gate"], here, d["gate_logits"][:, 0])


# %%
def train_head(name, steps=300, lr=0.03):
    vector, p, _ = optim.flatten(fresh(name))  # all in one vector, and views of it
    g, grads, _ = optim.flatten({n: np.zeros_like(a) for n, a in p.items()})
    m, m2 = np.zeros((2, vector.size))                      # AdamW's two moments
    for step in range(steps):
        g[:] = 0
        add_gradients(name, p, data.batch(train_ids, 16, T + 1, 0, step)[0], grads)
        optim.adamw(vector, g, m, m2, step + 1, lr)
    return p

# %%
before, here, target, kind = task(data.blocks(val_ids, T + 1)[0][:200])
size = np.mean(target[kind == 2]**2)  # mean square of the answers
heads, errors, seen = {}, {}, {}
for name in MODULES:
    heads[name] = train_head(name)
    out, _, seen[name] = head(name, heads[name], before, here)
    wrong = np.mean((out[:, 0] - target)**2, axis=2) / size
    errors[name] = [wrong[kind == n].mean() for n in range(3)]
number = {what: int((kind == n).sum()) for n, what in enumerate(KINDS)}
print("tokens of each kind:", number)

# %% tags=["plot"]
# Picture: bars of squared errors, five heads by three kinds of tokens. Softmax errs
# where it should be silent, the gate where there is an answer; with a sink or a start
# token all three errors are small.
fig, ax = plots.figure(7.6, 3.8)
for n, what in enumerate(KINDS):
    heights = [errors[name][n] for name in MODULES]
    bars = ax.bar(np.arange(5) + 0.27 * (n - 1), heights, 0.25, label=what,
                  hatch=("", "//", "..")[n], edgecolor="white")
    ax.bar_label(bars, fmt="%.2f", fontsize=7, padding=1)
ax.set_xticks(range(5), MODULES)
ax.set(ylabel="squared error / mean square of answers",
       title="Only a sink or a start token serves all three kinds (validation text)")
ax.legend(frameon=False);

# %% [markdown]
# Softmax cannot be silent: where it should say nothing, its best is to *spread* its
# unit so that the codes average out, and the average of finitely many codes is not
# zero. A gate ends that for tokens that do not ask; but whether there **is** an answer
# is written in the keys, which it does not see, so at a capital it half opens: too much
# for one kind and too little for the other. A sink, learned or fixed at 0, sees the
# scores, and serves both.
#
# And the start token? Look at where its weights go:

# %%
def by_kind(a):
    """a (B, T) -> its mean over the tokens of each kind, as text"""
    means = [f"{what} {a[kind == n].mean():.3f}" for n, what in enumerate(KINDS)]
    return ", ".join(means)


for name in ("softmax", "start token"):
    first = seen[name][:, 0, :, 0]  # (B, T)
    print(f"{name:11s} weight on the first key:", by_kind(first))
start_value = np.sqrt(np.mean(heads["start token"]["v0"]**2))
print(f"size of the start token's value: {start_value:.4f}",
      f"  of a character's: {np.sqrt(np.mean(codes**2)):.2f}")
print(f"the learned sink: {heads['sink']['sink'][0]:.2f};  sum of the weights:",
      by_kind(seen["sink"][:, 0].sum(axis=2)))

early = kind[:, :30]
suitable = ((early == 2).sum(axis=1) >= 2) & (early == 1).any(axis=1)
row = np.argmax(suitable)    # the first of them
letters = [c if c.isprintable() and c != " " else "␣"
           for c in vocabulary.decode(here[row, :30])]

# %% tags=["plot"]
# Picture: weights of three heads on 30 characters, the future white. Softmax spreads
# its weight. With a start token, and with a sink, nearly all weight lies in the first
# column, and a few single cells are bright: the answers.
fig, axes = plots.figure(10.4, 4.6, ncols=3, width_ratios=[31, 31, 32])
shown = {"softmax": seen["softmax"][row, 0, :30, :30],
         "start token": seen["start token"][row, 0, :30, :31]}
w = seen["sink"][row, 0, :30, :30]
shown["sink"] = np.hstack([1 - w.sum(axis=1, keepdims=True), w])  # the sink first
for ax, (name, w) in zip(axes, shown.items()):
    extra = ["•"] * (w.shape[1] - 30)
    seen_by = np.tri(30, w.shape[1], k=len(extra), dtype=bool)
    w = np.where(seen_by, w, np.nan)                     # the future stays white
    image = ax.imshow(w, cmap="cividis", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(w.shape[1]), extra + letters, fontsize=7)
    ax.set_yticks(range(30), letters, fontsize=7)
    ax.set(title=name + " (•)" * len(extra), xlabel="key (its value: this character)")
    ax.grid(False)
axes[0].set_ylabel("query")
fig.suptitle("A start token becomes a sink by itself; a learned sink looks the same")
fig.colorbar(image, ax=axes, label="weight", shrink=0.8);

# %% [markdown]
# The two pictures on the right are nearly the same. Plain softmax, given a start token,
# **made itself a sink**: it gives that token almost the whole unit wherever it has
# nothing to say, and it learned a start value of nearly zero, so that this adds
# nothing. Nobody told it to. This is the *attention sink* of large trained models,
# whose first token receives much of many heads' weights, whatever it is (arXiv
# 2309.17453). A learned sink gives the same freedom without a token for it.

# %% [markdown]
# ## Experiment 2: and in a small language model?
#
# Softmax and the three others in a model of two layers with four heads each and rotary
# positions (lesson 03), trained for a short while to guess the next character
# (`lessons.train`: lesson 19's training, and gradients whose norm is above 1 are scaled
# back to 1). There is no start token: a window begins anywhere. The usual measure of a
# sink is the **first-token mass**: the mean weight on key 0 over the queries $i \ge 1$
# (query 0 has no choice). A head that looks at all visible keys alike gives key 0 the
# weight $1/(i+1)$; the mean of these is the dashed line.

# %%
NAMES = ("softmax", "off_by_one", "sink", "gated")
x, y = (a[::20] for a in data.blocks(val_ids, 64))
masses, totals = [], []
with parallel.workers(2) as pool:
    for name in NAMES:
        config = model.Config(vocab_size=V, block_size=64, n_layer=2, n_head=4,
                              n_embd=64, attention=name, position="rope", bias=True,
                              scaled_init=False)
        params, buffers = lessons.train(pool, config, train_ids, steps=400, batch=8,
                                        lr=6e-3)
        layers = maps.weights(params, buffers, config, x)  # (B, H, T, T) for each layer
        mass = np.concatenate([statistics.first_token_mass(w) for w in layers])
        masses.append(mass)
        totals.append(np.concatenate([statistics.row_sums(w)[0] for w in layers]))
        loss = parallel.mean_loss(pool, params, buffers, x, y, config)
        print(f"{name:11s} validation loss {loss:.3f}",
              f"  first-token mass {mass.mean():.3f}",
              f"  sum of the weights {totals[-1].mean():.3f}   (means over heads)")

# %% tags=["plot"]
# Picture: eight heads of four models each. On the left the first-token mass: all but
# one lie below the dashed line of a uniform head. On the right the sums of the weights:
# 1 for softmax and gate, 0.8 to 1 with a sink.
fig, (left, right) = plots.figure(9.6, 3.8, ncols=2)
for n in range(len(NAMES)):
    for ax, values in ((left, masses), (right, totals)):
        ax.plot(np.linspace(n - 0.3, n + 0.3, 8), values[n], "os^D"[n], ms=6)
left.axhline(np.mean(1 / np.arange(2, 65)), color="gray", ls="--", lw=1,
             label="a uniform head")
left.legend(frameon=False, loc="lower left")
for ax, what in ((left, "first-token mass"), (right, "sum of the weights of a row")):
    ax.set_xticks(range(4), ["softmax", "off-by-one", "sink", "gate"])
    ax.set(xlabel="each mark is a head: four of layer 0, then four of layer 1",
           ylabel=what, ylim=(0, 1.06 * ax.get_ylim()[1]))
fig.suptitle("No head of these models makes the first token a sink")

# %% [markdown]
# **No first-token sink here.** The heads lie about the uniform line or below it, in all
# four models, and such a short training run cannot rank their losses. (A gate acts
# after the weights, so its rows still sum to 1.) Experiment 1 says what is missing: a
# recognisable place that is always there, and heads with narrow questions. In the
# paper's models (0.5 to 3 billion parameters) the learned sink gave a *worse* (higher)
# perplexity, $e$ to the loss, than softmax on C4, a collection of web pages, at each of
# three sizes: 81.5 against 71.7, 68.3 against 61.9, 48.5 against 44.9. In this
# project's own comparison of small character models, with three seeds and longer runs,
# a sink was slightly *better* than softmax, by 0.01 nats
# ([results](../docs/results.md)).
#
# **What we now know.** Softmax is blind to a common shift of the scores, so a row
# cannot be silent. A sink is a switch $\mathrm{sigmoid}(\ell - \text{sink})$ made from
# the scores; off-by-one fixes it at 0; a gate is a switch made from the query's token,
# and cannot see that there is no answer. Given a start token, softmax builds the sink
# itself.
#
# **What remains unknown.** Why large models with a learned sink did worse; and whether
# a row can do something better than give *less*: can it also have weights below zero?
# That is [lesson 06](06_affine_scaled.ipynb).
#
# **Source.** arXiv 2602.23057, eq. 2 to 5; gates: arXiv 2505.06708. In the package:
# `attention/sink.py`, `off_by_one.py`, `gated.py`.
