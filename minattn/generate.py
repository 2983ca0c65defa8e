"""Sampling: one token after another, each from its own prefix, with a key-value cache where one can serve."""
import numpy as np

from minattn import checks, model
from minattn.attention_layer import Past, plan


def recompute_reason(config):
    """Why this model cannot use a key-value cache; an empty string if it can."""
    return next((f"{layer.mechanism.name}: {why}" for layer in plan(config) if (why := layer.mechanism.recompute(**layer.kernel))), "")


def stream(params, buffers, config, prompt, n_tokens, *, temperature=1.0, top_k=None, seed=0, cached=True):
    """Continue a prompt; yields n_tokens ids, one at a time.

    prompt (T,) ids, at least one. temperature divides the logits (0 < temperature; small is nearly greedy); top_k keeps
    only that many of the most likely tokens (1: greedy).

    When block_size tokens are in view, the older half is let go and the newer half is read again from position 0: the
    model never sees a position that it was not trained on, and the cost of reading again is spread over half a block.
    The same tokens are in view with and without the cache, so both give the same text.
    """
    checks.number("temperature", temperature, above=0)
    checks.number("tokens", n_tokens, 0, integer=True)
    if top_k is not None:
        checks.number("top-k", top_k, 1, integer=True)
    rng = np.random.default_rng(seed)
    cached = cached and not recompute_reason(config)
    view = [int(t) for t in prompt]
    view = view[-config.block_size:]
    past, unread = None, view
    for _ in range(n_tokens):
        if len(view) > config.block_size:
            view = view[-max(1, config.block_size // 2):]
            past, unread = None, view
        if cached:
            past = past or Past(config.block_size)
            logits = model.forward(params, np.array([unread]), config, buffers=buffers, past=past, last_only=True)[0]
        else:
            logits = model.forward(params, np.array([view]), config, buffers=buffers, last_only=True)[0]
        token = _pick(logits[0, -1].astype(np.float64), temperature, top_k, rng)
        view = view + [token]
        unread = [token]
        yield token


def _pick(logits, temperature, top_k, rng):
    if top_k == 1:
        return int(np.argmax(logits))
    if top_k is not None and top_k < logits.size:
        keep = np.argpartition(logits, -top_k)[-top_k:]
        logits = np.where(np.isin(np.arange(logits.size), keep), logits, -np.inf)
    logits = (logits - logits.max()) / temperature
    total = np.cumsum(np.exp(logits))
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))


def text(run, prompt, n_tokens, **options):
    """Continue a text with a trained model (runs.Run) -> the prompt and what follows it."""
    from minattn.data import Vocabulary
    vocabulary = Vocabulary(run.vocabulary)
    ids = vocabulary.encode(prompt)
    checkpoint = run.checkpoint
    new = stream(checkpoint.params, checkpoint.buffers, run.config, ids, n_tokens, **options)
    return prompt + vocabulary.decode(np.fromiter(new, np.int64))
