"""What the notebooks import: a text, a short training, and graders that judge an exercise.

A lesson is two files of the folder lessons/ and a notebook made from the first: NN_name.py and
grader_NN.py, which notebooks import as minattn.lessons.grader_NN. grading.py is how graders judge.
"""
from pathlib import Path

# The folder lies at the top of a clone; an installed package carries a copy of it inside.
_installed = Path(__file__).with_name("notebooks")
FOLDER = _installed if _installed.is_dir() else Path(__file__).parents[2] / "lessons"
__path__.append(str(FOLDER))


def text():
    """TinyShakespeare, where data/ of a clone or MINATTN_DATA has it, else the built-in plays.

    -> data.Corpus
    """
    from minattn import data
    return data.load_corpus("tinyshakespeare", data_dir=FOLDER.parent / "data", download=False,
                            say=lambda message: None)


def train(pool, config, ids, *, steps, batch, lr, seed=0, params=None, targets=None, each=None):
    """Train a small character model on ids (N,) with the trainer's own step -> params, buffers.

    AdamW without decay; the learning rate rises over 30 steps to `lr` and falls along a cosine to
    lr / 10; gradients with a norm above 1 are scaled back to 1. `batch` windows of
    config.block_size a step, in two chunks: the result does not depend on the number of threads.

    pool             from parallel.workers
    seed             of the fresh parameters and of the windows
    params           start from these instead; they are not changed
    targets(x, y)    what to predict from x in place of the next characters y, all (batch, T)
    each(buffers)    called after every step
    """
    from minattn import data, model, parallel
    from minattn.train import Settings
    settings = Settings(steps=max(1, steps), batch_size=batch, lr=lr, min_lr=lr / 10, warmup=30,
                        beta2=0.999, weight_decay=0.0, seed=seed)
    fresh, buffers = model.init(config, seed)
    state = parallel.start(params or fresh, buffers)
    for step in range(steps):
        x, y = data.batch(ids, batch, config.block_size, seed, step)
        y = targets(x, y) if targets else y
        parallel.train_step(pool, state, x, y, config, settings)
        if each:
            each(state.buffers)
    return state.params, state.buffers
