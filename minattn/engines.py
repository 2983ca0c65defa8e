"""What computes the steps of a run: NumPy, or PyTorch with the same settings (torch_engine.py).

    with engines.start(checkpoint, config, settings, threads) as engine:
        engine.train_step(x, y)      one step on a batch (B, T) -> loss, norm of the gradient,
                                     learning rate; NotFinite for what is not finite
        engine.mean_loss(x, y)       over many windows (N, T), without gradients
        engine.arrays()              params, buffers, m, v as NumPy arrays: what a checkpoint holds
"""
from contextlib import closing, contextmanager

from minattn import model, parallel
from minattn.errors import InputError


def check(settings):
    """InputError unless this machine has what the settings of a run ask for."""
    if settings.engine == "numpy":
        return
    try:
        import torch
    except ImportError:
        raise InputError("--engine torch needs PyTorch, which is not installed: pip install "
                         "torch, or leave --engine out.") from None
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch finds no CUDA device on this machine; leave "
                         "--device out to train on the CPU.")


@contextmanager
def start(checkpoint, config, settings, threads):
    """The engine of these settings, at this checkpoint."""
    check(settings)
    if settings.engine == "numpy":
        with (parallel.workers(threads) as pool,
              closing(Numpy(pool, checkpoint, config, settings, threads)) as engine):
            yield engine
        return
    from minattn import torch_engine
    with torch_engine.start(checkpoint, config, settings, threads) as engine:
        yield engine


class Numpy:
    def __init__(self, pool, checkpoint, config, settings, threads):
        self.pool, self.config, self.settings = pool, config, settings
        matrices = model.matrices(config) if settings.optimizer == "muon" else ()
        self.state = parallel.start(checkpoint.params, checkpoint.buffers, settings.decay,
                                    m=checkpoint.m, v=checkpoint.v, step=checkpoint.step,
                                    matrices=matrices)
        parallel.share(self.state, config, settings, threads)

    def close(self):
        if self.state.team:
            self.state.team.close()

    def train_step(self, x, y):
        return parallel.train_step(self.pool, self.state, x, y, self.config, self.settings)

    def mean_loss(self, x, y):
        return parallel.mean_loss(self.pool, self.state.params, self.state.buffers, x, y,
                                  self.config)

    def arrays(self):
        state = self.state
        return state.params, state.buffers, state.named(state.m), state.named(state.v)
