# %% [markdown]
# # 13 · Is 0.01 better?
#
# **The question.** Two models are trained, and one ends with a loss that is 0.01 lower.
# Is it the better model, or was it lucky? **Time:** 25 minutes to read, 50 with the
# exercises. **You need:** lesson 19 (how a model is trained), mean and standard
# deviation. Every comparison of this project follows the rules of this lesson. (The
# letters: [notation](NOTATION.md).)

# %%
import numpy as np
from scipy import stats

from minattn import data, lessons, model, parallel, plots
from minattn.lessons import grader_13

# %% [markdown]
# ## The picture: one model, eight seeds
#
# Training begins with random weights and draws its batches at random. The *seed* of the
# random numbers fixes both. It is not part of the model: nobody would say that a model
# is good "with seed 3". So what does the loss of *one* run say about the model?
#
# We train a small model with eight seeds, and three changed versions of it with the
# same eight: with a sink (lesson 05), with rotary positions whose slowest waves are
# faster (base 100 in place of 10,000, lesson 03), and with eight narrow heads in place
# of four.

# %%
corpus = lessons.text()
vocabulary = data.Vocabulary(corpus.text)
train, val = data.split(vocabulary.encode(corpus.text).astype(int))
val_x, val_y = (a[::8] for a in data.blocks(val, 32))
MODELS = {"as it is": {}, "with a sink": {"attention": "sink"},
          "rotary base 100": {"position": "rope[base=100]"},
          "eight heads": {"n_head": 8}}
SEEDS = range(8)


def final_loss(job):
    """(what is changed, seed) -> the validation loss after 150 steps"""
    changed, seed = job
    shape = {"vocab_size": len(vocabulary), "block_size": 32, "n_layer": 2, "n_head": 4,
             "n_embd": 32, "position": "rope", **changed}
    config = model.Config(**shape)
    with parallel.workers(1) as one:
        params, buffers = lessons.train(one, config, train, steps=150, batch=16,
                                        lr=0.01, seed=seed)
        return parallel.mean_loss(one, params, buffers, val_x, val_y, config)


# %%
jobs = [(changed, seed) for changed in MODELS.values() for seed in SEEDS]
with parallel.workers(2) as pool:                      # two runs at a time
    losses = np.reshape(list(pool.map(final_loss, jobs)), (len(MODELS), len(SEEDS)))
for name, its in zip(MODELS, losses):
    print(f"{name:16s}", *(f"{loss:.3f}" for loss in its), f"  mean {its.mean():.3f}")

# %% tags=["plot"]
# Picture: Dots: final losses of four models with eight seeds each. The dots of each
# model spread over several hundredths, and the four groups overlap.
fig, ax = plots.figure(7, 3.2)
for n, its in enumerate(losses):
    ax.plot(its, np.full(len(SEEDS), n), "o", mfc="none", color=plots.COLOURS[n])
    ax.plot(its.mean(), n, "|", ms=22, mew=2, color=plots.COLOURS[n])
ax.set_yticks(range(len(MODELS)), MODELS)
ax.invert_yaxis()
ax.set(xlabel="validation loss (nats per character); bar: the mean",
       title="One run says little: seeds differ by more than models do")

# %% [markdown]
# Pick one dot from each row and you can tell almost any story. Whoever trains each
# model once and reports the better one is reporting the seed as well.
#
# ## Pair what belongs together
#
# The first cure costs nothing: use the *same* seeds for both models. Run $k$ of both
# then starts from the same random numbers and reads the same batches in the same order.
# A hard set of batches makes both losses larger and cancels in the difference
#
# $$ d_k = b_k - a_k, \qquad k = 1 \dots n, $$
#
# where $a_k$ is the loss of the first model with seed $k$ and $b_k$ that of the second.
# How much do the differences scatter if the seeds are paired, and if they are not?

# %%
def scatter(a, b):
    """The standard deviation of b - a: paired, and with nothing in common"""
    return np.std(b - a, ddof=1), np.sqrt(np.var(a, ddof=1) + np.var(b, ddof=1))


for name, its in list(zip(MODELS, losses))[1:]:
    paired, apart = scatter(losses[0], its)
    print(f"{name:16s} scatter of the differences: paired {paired:.3f}, "
          f"unpaired {apart:.3f}")

# %% [markdown]
# Pairing does not always help so much. In longer training the paths of two models
# separate, and the batches in common matter less. But it never costs anything.
#
# ## How sure is a mean of eight?
#
# The mean $\bar d$ of $n$ differences is itself a random number: with other seeds it
# would be another. Its *standard error* is $s / \sqrt n$, where
#
# $$ s = \sqrt{\frac{1}{n - 1} \sum_k (d_k - \bar d)^2} $$
#
# is the standard deviation of the differences. If $s$ were known exactly, the
# *interval* $\bar d \pm 1.96\, s/\sqrt n$ would contain the true mean in 95 of 100
# studies. But $s$ is an estimate, from few numbers, and it is often too small.
# Student's answer (1908): replace 1.96 by a larger number $t$ that depends on $n - 1$,
#
# $$ \bar d \pm t_{n-1}\, \frac{s}{\sqrt n}, \qquad
#    t_2 = 4.30, \quad t_4 = 2.78, \quad t_7 = 2.36, \quad t_\infty = 1.96. $$
#
# In Python $t$ is `stats.t.ppf(0.975, n - 1)`: 2.5 per cent are left out at each side.
# Does it work? Simulate 20,000 studies in which the truth is known to be 0.

# %%
rng = np.random.default_rng(0)
sizes, covered = np.arange(2, 21), {"1.96": [], "t": []}
for n in sizes:
    d = rng.standard_normal((20_000, n))                # studies of n differences
    error = d.std(axis=1, ddof=1) / np.sqrt(n)
    for name, factor in zip(covered, (1.96, stats.t.ppf(0.975, n - 1))):
        covered[name].append(np.mean(np.abs(d.mean(axis=1)) <= factor * error))

# %% tags=["plot"]
# Picture: Share of intervals that contain the truth, against the number of seeds.
# With 1.96 it rises from 0.70 at two seeds towards 0.95; with Student's t it is 0.95
# throughout.
fig, ax = plots.figure(6.4, 3.4)
for (name, share), style in zip(covered.items(), ("s--", "o-")):
    ax.plot(sizes, share, style, ms=4, label=f"mean ± {name} standard errors")
ax.axhline(0.95, color="gray", lw=1)
ax.set(xlabel="number of seeds $n$", ylabel="intervals that contain the truth",
       title="With few seeds, ± 1.96 promises too much", ylim=(0.65, 1))
ax.set_xticks([2, 5, 10, 15, 20])
ax.legend(frameon=False, loc="lower right");

# %% [markdown]
# ## Exercise 1: the interval
#
# Write the interval of this project: paired, 95 per cent, Student's $t$.


# %% tags=["exercise"]
def interval(a, b):
    """a, b (n,): losses of two models with the same n seeds -> low, high

    the 95 % interval of the mean of b - a
    """
    ...


grader_13.check_interval(interval);


# %% tags=["solution"]
def interval(a, b):
    d = np.asarray(b) - np.asarray(a)
    n = len(d)
    half = stats.t.ppf(0.975, n - 1) * d.std(ddof=1) / np.sqrt(n)
    return d.mean() - half, d.mean() + half


grader_13.check_interval(interval);

# %% [markdown]
# Now our three questions. An interval that contains 0 does not say "no difference". It
# says: the difference is probably no larger than the ends of this interval, and we
# cannot tell its sign.

# %% tags=["varies"]
def paired_interval(a, b):
    d = b - a
    half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
    return d.mean() - half, d.mean() + half


found = [paired_interval(losses[0], its) for its in losses[1:]]
for name, (low, high) in zip(list(MODELS)[1:], found):
    verdict = "the sign is open" if low < 0 < high else "worse" if low > 0 else "better"
    print(f"{name:16s} {(low + high) / 2:+.3f} [{low:+.3f}, {high:+.3f}]  {verdict}")

# %% tags=["plot"]
# Picture: Differences of three changed models to the unchanged one: eight dots each
# and the interval of the mean. The interval of eight heads lies above 0, that of the
# sink contains 0.
fig, ax = plots.figure(7, 2.8)
for n, ((low, high), its) in enumerate(zip(found, losses[1:])):
    ax.plot(its - losses[0], np.full(len(SEEDS), n + 0.15), "o", mfc="none", ms=5,
            color=plots.COLOURS[n + 1])
    ax.plot([low, high], [n - 0.15] * 2, lw=3, color=plots.COLOURS[n + 1])
ax.axvline(0, color="black", lw=1)
ax.set_yticks(range(len(found)), list(MODELS)[1:])
ax.invert_yaxis()
ax.set(xlabel="loss minus the loss of the model as it is, same seed",
       title="Paired by seed, 0.02 is visible (line: 95 % interval)")

# %% [markdown]
# Eight heads of four channels are worse here: the whole interval lies above 0. What a
# sink does is much smaller than the scatter of single runs, if it does anything.
#
# ## How many seeds?
#
# The interval shrinks with $1/\sqrt n$: four times the seeds halve it. So the price of
# a question is known before it is asked. If differences scatter by $s = 0.01$ and you
# want to see 0.01, two seeds are hopeless, and a hundred are a waste.
#
# ## Exercise 2: the price of a question


# %% tags=["exercise"]
def seeds_needed(s, half):
    """s > 0: the standard deviation of the differences; half > 0

    -> the smallest n >= 2 for which the 95 % interval is at most mean ± half
    """
    ...


grader_13.check_seeds_needed(seeds_needed);


# %% tags=["solution"]
def seeds_needed(s, half):
    n = 2
    while stats.t.ppf(0.975, n - 1) * s / np.sqrt(n) > half:
        n += 1
    return n


grader_13.check_seeds_needed(seeds_needed);

# %% [markdown]
# ## Asking twenty questions
#
# A 95 per cent interval misses the truth in one of twenty studies. Compare twenty
# variants that change nothing, and on average one of them will be "better" or "worse".
# So a table of twenty intervals needs a sentence that says so. Or make every interval
# wider (Bonferroni): with $m$ questions, allow each of them $0.05 / m$ to be wrong.
# Then the chance that *any* interval is wrong is at most 0.05.
#
# ## Exercise 3: all of them at once


# %% tags=["exercise"]
def intervals(a, b):
    """a (n,): losses of the baseline; b (m, n): of m variants, with the same n seeds

    -> low (m,), high (m,): intervals that all contain the truth in 95 % of studies
    """
    ...


grader_13.check_intervals(intervals);


# %% tags=["solution"]
def intervals(a, b):
    d = np.asarray(b) - a                               # (m, n)
    m, n = d.shape
    t = stats.t.ppf(1 - 0.05 / m / 2, n - 1)            # half of 0.05 / m at each side
    half = t * d.std(axis=1, ddof=1) / np.sqrt(n)
    return d.mean(axis=1) - half, d.mean(axis=1) + half


grader_13.check_intervals(intervals);

# %%
# 20,000 studies, 20 variants each that are all equal, 8 seeds
nothing = rng.standard_normal((20_000, 20, 8))
error = nothing.std(axis=2, ddof=1) / np.sqrt(8)
for name, wrong in (("one interval at 95 %", 0.05), ("Bonferroni", 0.05 / 20)):
    t = stats.t.ppf(1 - wrong / 2, 7)
    any_wrong = (np.abs(nothing.mean(axis=2)) > t * error).any(axis=1).mean()
    print(f"{name:21s} at least one of 20 finds a difference in "
          f"{100 * any_wrong:.0f} % of studies")

# %% [markdown]
# ## What an interval cannot know
#
# It measures one thing: what other seeds would have given. It knows nothing of
#
# - **another choice**: each model at its own best learning rate. Choose it on one half
#   of the validation text and report the other half, as lesson 12 does; the best of
#   many rates on the *same* text is too good.
# - **another text, size or length of training.** The sign itself can change: [our
#   results](../docs/results.md) contain a gain of 0.01 after 800 steps that is gone
#   after 2000.
# - **a mistake.** A model that sees the future wins in every seed, with a tiny interval
#   (lesson 07).
#
# The seed does not fix everything, either. Another processor rounds differently, and
# after some hundred steps the same seed has become another run. A clear sign
# survives that; the third digit does not.
#
# **What we now know.** One run measures model and seed together. The same seeds for
# both models, paired differences, Student's interval: then a difference has a size, an
# uncertainty and sometimes a sign. Few seeds need $t$, not 1.96. Many comparisons find
# something by chance.
#
# **What remains unknown.** Whether a difference that is certain here exists anywhere
# else. That takes another size and another text, not more seeds.
#
# **Source.** Student, *The probable error of a mean* (Biometrika, 1908). In the
# package: `studies/tables.py` (`paired`); `minattn compare` prints such intervals for
# any set of variants.
