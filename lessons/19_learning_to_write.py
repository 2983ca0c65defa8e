# %% [markdown]
# # 19 · Learning to write
#
# **The question.** How does a model with random weights learn to write? We train that
# of lesson 02 on real text while you wait, and look at what it has learned. **Time:**
# 25 minutes to read, 50 with the exercises. **You need:** lesson 02 (the model). (The
# letters: [notation](NOTATION.md).)

# %%
import numpy as np

from minattn import data, generate, lessons, model, optim, plots
from minattn.lessons import grader_19

corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
# numbers below V; the last tenth is kept for judging
train, val = data.split(vocabulary.encode(corpus.text).astype(int))
V = len(vocabulary)
print(f"{len(train):,} characters to learn from, "
      f"{len(val):,} to judge by (validation), V = {V} distinct")

# %% [markdown]
# ## The picture: guessing the next character by counting
#
# A language model does one thing: it looks at the characters so far and gives a
# probability to each of the $V$ possible next ones. The simplest looks at *one*
# character and counts what followed it in the text. Such a table of pairs is called a
# *bigram* model.
#
# How good is a guess? If the character that really comes had probability $p$, the
# *surprise* is $-\ln p$, in nats: 0 for certainty, $\ln V$ for an even guess among $V$.
# The **loss** is the mean surprise over $N$ places, $n = 1 \dots N$ with right answers
# $y_n$ (the *targets*):
#
# $$ L = -\frac1N \sum_n \ln p_n(y_n) $$

# %%
def pairs(ids):
    """ids (N,) -> (V, V): how often character b (column) follows a (row)"""
    return np.bincount(ids[:-1] * V + ids[1:], minlength=V * V).reshape(V, V)

counts = pairs(train) + 1                   # (V, V)  never 0: nothing is impossible
single = counts.sum(axis=0) / counts.sum()  # (V,)    without looking at anything
bigram = counts / counts.sum(axis=1, keepdims=True)  # (V, V)  row: this, column: next

# %% tags=["plot"]
# Picture: a square of probabilities, this character by next character, for letters,
# space and line end. A few cells are bright, such as u after q.
shown = [i for i, c in enumerate(vocabulary.characters)
         if c in "\n abcdefghijklmnopqrstuvwxyz"]
letters = [vocabulary.characters[i] for i in shown]
letters = [{"\n": "⏎", " ": "␣"}.get(c, c) for c in letters]
fig, ax = plots.figure(6.4, 5.4)
image = ax.imshow(bigram[np.ix_(shown, shown)], cmap="cividis", vmax=0.5)
ax.grid(False)
ax.set_xticks(range(len(shown)), letters, fontsize=8)
ax.set_yticks(range(len(shown)), letters, fontsize=8)
ax.set(xlabel="next character (⏎ line end, ␣ space)", ylabel="this character",
       title="After q comes u: the bigram table")
fig.colorbar(image, label="probability (yellow: 0.5 and more)", shrink=0.8);

# %% [markdown]
# Find the bright square that says "after q comes u". How well does the table guess?
#
# ## Exercise 1: the loss of a table


# %% tags=["exercise"]
def table_loss(table, ids):
    """table (V, V): rows of probabilities, this character -> next; ids (N,)

    -> the mean surprise over the N - 1 places that have a character before them
    """
    ...


grader_19.check_table_loss(table_loss);


# %% tags=["solution"]
def table_loss(table, ids):
    return -np.mean(np.log(table[ids[:-1], ids[1:]]))


grader_19.check_table_loss(table_loss);

# %%
right = bigram[val[:-1], val[1:]]
baselines = {"even guess": np.log(V), "frequencies": -np.mean(np.log(single[val[1:]])),
             "bigram": -np.mean(np.log(right))}
# cheating: counted on the text that judges
best = pairs(val) / np.maximum(pairs(val).sum(axis=1, keepdims=True), 1)
best = -np.mean(np.log(best[val[:-1], val[1:]]))
for name, loss in baselines.items():
    print(f"{name:12s} {loss:.3f} nats per character, "
          f"as good as choosing evenly among {np.exp(loss):.1f}")
print(f"no model that looks at one character can get below {best:.3f}: "
      "the bigram table of the validation text itself")

# %% [markdown]
# These are the losses to beat. A model above the bigram's has not even learned to use
# the last character. One below the last number, the best that any table of pairs can
# do, must look further back. That is what attention is for.
#
# ## Learning
#
# Now follow the gradient downhill. One step size does not fit all, because some weights
# have far larger gradients than others. **Adam** keeps running means, $m$ of the
# gradient $g$ and $v$ of its square, and moves each weight $w$ by about the learning
# rate $\eta$ (step $t = 1, 2, \dots$):
#
# $$ m \leftarrow \beta_1 m + (1 - \beta_1)\, g, \qquad
#    v \leftarrow \beta_2 v + (1 - \beta_2)\, g^2, \qquad
#    w \leftarrow w - \eta\,
#    \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} $$
#
# (arXiv 1412.6980, algorithm 1; the divisions correct for means that start at 0).
# $\eta$ first rises, then falls: `optim.learning_rate`. Why all this helps is
# [lesson 12](12_how_a_model_learns.ipynb).

# %%
def adam(w, g, m, v, t, lr, betas=(0.9, 0.99), eps=1e-8):
    m += (1 - betas[0]) * (g - m)      # in place: running mean of the gradient
    v += (1 - betas[1]) * (g * g - v)  # and of its square
    w -= lr * (m / (1 - betas[0]**t)) / (np.sqrt(v / (1 - betas[1]**t)) + eps)

config = model.Config(vocab_size=V, block_size=48, n_layer=2, n_head=4, n_embd=64,
                      scaled_init=False)
STEPS, BATCH = 900, 16
params, _ = model.init(config, seed=0)  # float32: half the memory, twice the speed
moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in params.items()}
# about 100 windows that do not overlap
val_x, val_y = (a[::max(1, len(a) // 100)] for a in data.blocks(val, config.block_size))

def write(n, temperature=0.8, seed=0):
    """One character after another, each drawn at random: exercise 2"""
    ids = generate.stream(params, {}, config, vocabulary.encode("\n"), n,
                          temperature=temperature, seed=seed)
    return vocabulary.decode(np.array(list(ids)))


# %%
print(f"{model.count_parameters(config):,} parameters, "
      f"{STEPS} steps of {BATCH} x {config.block_size} characters")
losses, checked = [], []

# %% tags=["varies"]
for step in range(STEPS + 1):
    if step % 150 == 0 or step == 50:
        checked.append((step, model.forward(params, val_x, config, targets=val_y)[1]))
    if step in (0, 50, 150, STEPS):
        print(f"\n--- after {step} steps, validation loss {checked[-1][1]:.3f} ---\n"
              f"{write(160).strip()}")
    x, y = data.batch(train, BATCH, config.block_size, seed=0, step=step)
    _, loss, cache = model.forward(params, x, config, targets=y)
    grads = model.backward(cache, config)
    losses.append(loss)
    rate = optim.learning_rate(step, lr=4e-3, min_lr=2e-4, warmup=50, steps=STEPS)
    for name, w in params.items() if step < STEPS else ():
        adam(w, grads[name], *moments[name], step + 1, rate)

# %% tags=["plot"]
# Picture: the loss of every batch and of the validation text against the step. It
# starts at the line of the even guess and falls below those of frequencies and bigram
# table.
fig, ax = plots.figure(6.8, 4.2)
ax.plot(losses, color=plots.COLOURS[5], lw=0.7, alpha=0.7, label="train, each batch")
ax.plot(*zip(*checked), "o-", color=plots.COLOURS[0], ms=4,
        label=f"validation (last {checked[-1][1]:.3f})")
for (name, loss), n in zip(baselines.items(), (6, 3, 1)):
    colour = plots.COLOURS[n]
    ax.axhline(loss, color=colour, ls="--", lw=1)
    ax.text(STEPS, loss, f"{name} {loss:.2f}", va="bottom", ha="right", color=colour)
ax.set(xlabel="step", ylabel="loss (nats per character)",
       title="The model beats one baseline after the other")
ax.legend(frameon=False, loc="center right", bbox_to_anchor=(1, 0.48));

# %% [markdown]
# The curve starts at the even guess. Within some tens of steps the model knows how
# frequent each character is, then which follows which; and then it passes below what is
# possible for a model that looks at one character only. Does it use more, then? Measure
# the loss by how many characters were in view: at the first place of a window the model
# has one, at the last it has all 48. (This time on all of the validation text, so the
# mean differs slightly from the number above.)

# %%
everything = data.blocks(val, config.block_size)
p_right = []
for i in range(0, len(everything[0]), 200):
    z = model.forward(params, everything[0][i:i + 200], config)[0]    # (200, T, V)
    z = z.astype(np.float64)
    z -= np.log(np.exp(z).sum(axis=2, keepdims=True))  # log probabilities
    came = everything[1][i:i + 200, :, None]
    p_right.append(np.take_along_axis(z, came, axis=2)[..., 0])
surprise = -np.concatenate(p_right)                    # (windows, T)

# %%
line_ends = np.sum(everything[1] == vocabulary.encode("\n"), axis=1)
line = np.argmin(line_ends)                                       # a window with few
letter = np.array([c.isalpha() for c in vocabulary.characters])
now, before = letter[everything[1]], letter[everything[0]]
space = everything[1] == vocabulary.encode(" ")
means = {"first letter of a word": surprise[now & ~before].mean(),
         "letter inside a word": surprise[now & before].mean(),
         "space after a word": surprise[space & before].mean(),
         "other character after a word": surprise[~now & ~space & before].mean()}
for what, mean in means.items():
    print(f"mean surprise, {what:29s}{mean:.2f}")

# %% tags=["plot"]
# Picture: on the left the loss against the number of characters in view: a steep fall
# over the first few, then level. On the right bars: the surprise at each character of
# one line, highest at the first letters of two names and at a semicolon.
fig, (left, right) = plots.figure(11, 3.8, ncols=2, width_ratios=(1, 1.9))
left.plot(np.arange(1, config.block_size + 1), surprise.mean(axis=0), "o-", ms=3)
left.axhline(best, color=plots.COLOURS[1], ls="--", lw=1)
left.text(config.block_size, best, "the best table of pairs", ha="right", va="bottom",
          color=plots.COLOURS[1])
left.set(xlabel="characters in view", ylabel="loss (nats per character)",
         title=f"More context, less surprise (mean {surprise.mean():.3f})")
right.bar(range(config.block_size), surprise[line], color=plots.COLOURS[0])
text = vocabulary.decode(everything[1][line])
letters = [{"\n": "⏎", " ": "␣"}.get(c, c) for c in text]
right.set_xticks(range(config.block_size), letters, fontsize=9)
right.set(xlabel="the character that came (␣ space, ⏎ line end)",
          ylabel="surprise (nats)", title="New words and punctuation surprise it most");

# %% [markdown]
# With one character in view it can be no better than the best bigram table. The next
# few characters help most; beyond them the curve is flat apart from noise. After
# seconds of training, a small model uses little of what it can see. On the right is one
# line; the means above are over all of the validation text. The model is surprised most
# where it must guess a new word or a punctuation mark, less inside a word, and least by
# the space that ends one.
#
# ## Exercise 2: from scores to a choice
#
# To write, draw the next character from the model's probabilities, append it, repeat.
# The *temperature* $\tau$ divides the logits first: small is cautious, 1 is the model
# as it learned, large is wild. Often only the $k$ most likely characters are allowed
# (*top-k*).

# %% tags=["exercise"]
def sampling_probabilities(z, temperature, k):
    """z (V,) -> probabilities (V,): 0 but for the k largest logits (all different)"""
    ...
grader_19.check_sampling_probabilities(sampling_probabilities);

# %% tags=["solution"]
def sampling_probabilities(z, temperature, k):
    z = np.where(z >= np.sort(z)[-k], z, -np.inf) / temperature
    p = np.exp(z - z.max())
    return p / p.sum()
grader_19.check_sampling_probabilities(sampling_probabilities);

# %% tags=["plot"]
# Picture: the probabilities of every character after a piece of validation text, at the
# temperature 0.8; the slider below it sharpens or flattens them.
before = val[:40]
z = model.forward(params, before[None], config, last_only=True)[0][0, 0]   # (V,)


def draw(temperature):
    p = np.exp((z - z.max()) / temperature)
    p /= p.sum()
    fig, ax = plots.figure(10, 3)
    ax.bar(range(V), p, color=plots.COLOURS[0])
    ax.set_xticks(range(V), [repr(c)[1:-1].replace(" ", "␣") for c in
                             vocabulary.characters], fontsize=7)
    ax.set(xlabel="next character", ylabel="probability", ylim=(0, 1),
           title="A low temperature bets on one character, a high one on all")
    return fig


lessons.slider(draw, "temperature", [0.1, 0.2, 0.5, 0.8, 1, 1.5, 2, 5], start=0.8)

# %% tags=["varies"]
for temperature in (0.2, 0.8, 2.0):
    print(f"--- temperature {temperature} ---\n{write(150, temperature).strip()}\n")

# %% [markdown]
# **What we now know.** Training learns frequencies first, then pairs, then more: a loss
# below the *best* bigram table's proves that the model looks further back than one
# character. To write is to draw from its probabilities; the temperature decides how
# boldly.
#
# **What remains unknown.** We gave the model a table of places without asking why. What
# would it lose without one, and is a table the best way?
# [Lesson 03](03_positions.ipynb) asks. Where the time of a step goes is
# [lesson 16](16_why_it_is_fast.ipynb). And one run with one seed is an anecdote:
# [lesson 13](13_is_it_better.ipynb).
#
# **Source.** Adam: arXiv 1412.6980, algorithm 1. In the package: `train.py`,
# `generate.py`.
