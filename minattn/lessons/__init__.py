"""What the lesson notebooks import: a text to work on, a short training, and checks that say whether an exercise is solved.

lesson_NN.py holds the checks of lessons/NN_*.ipynb; grading.py is how they judge.
"""


def text():
    """The text of the lessons: TinyShakespeare where it lies in data/ or MINATTN_DATA, else the built-in plays. -> data.Corpus"""
    from pathlib import Path

    from minattn import data
    here = Path(__file__).parents[2] / "data"
    return data.load_corpus("tinyshakespeare", data_dir=here, download=False, say=lambda message: None)


def train(pool, config, ids, *, steps, batch, lr, seed=0, params=None, targets=None, each=None):
    """Train a small character model on ids (N,) -> params, buffers. The trainer's loop without its run folder, in its plainest form.

    AdamW without decay; the learning rate rises over 30 steps to `lr` and falls along a cosine to lr / 10; gradients with a norm
    above 1 are scaled back to 1. `batch` windows of config.block_size a step, in two chunks: the result does not depend on the
    number of threads. pool: from parallel.workers. seed: of the fresh parameters and of the windows. params: start from these
    instead; they are not changed. targets(x, y): what to predict from x in place of the next characters y, all (batch, T).
    each(buffers): called after every step.
    """
    import numpy as np

    from minattn import data, model, optim, parallel
    fresh, buffers = model.init(config, seed)
    vector, params, _ = optim.flatten(params or fresh)
    g, grads, _ = optim.flatten({name: np.zeros_like(a) for name, a in params.items()})
    m, v = np.zeros((2, vector.size), vector.dtype)
    for step in range(steps):
        x, y = data.batch(ids, batch, config.block_size, seed, step)
        y = targets(x, y) if targets else y
        _, buffers = parallel.loss_and_gradients(pool, params, buffers, x, y, config, chunks=2, out=grads)
        g *= optim.clip_factor(optim.global_norm(grads), 1.0)
        optim.adamw(vector, g, m, v, step + 1, optim.learning_rate(step, lr=lr, min_lr=lr / 10, warmup=30, steps=steps))
        if each:
            each(buffers)
    return params, buffers
