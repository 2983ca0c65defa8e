"""Sampling: one token after another, each from its own prefix, with a key-value cache where one can serve."""
import numpy as np

from minattn import checks, decode, model
from minattn.attention_layer import KVCache
from minattn.errors import InputError
from minattn.layers import layers

TOGETHER = 8          # sequences that take each step together: a fixed number, so that the text does not depend on the threads


def recompute_reason(config):
    """Why this model cannot use a key-value cache; an empty string if it can."""
    for layer in layers(config):
        if why := layer.mechanism.recompute(**layer.options):
            return f"{layer.mechanism.name}: {why}"
    return ""


def stream(params, buffers, config, prompt, n_tokens, *, temperature=1.0, top_k=None, seed=0, cached=True, pool=None):
    """Continue a prompt; yields n_tokens ids, one at a time.

    prompt (T,) ids, at least one -> yields integers; or (B, T), B prompts at once -> yields (B,) arrays.
    temperature divides the logits (0 < temperature; small is nearly greedy); top_k keeps only that many of the most
    likely tokens (1: greedy). pool: threads (minattn.parallel.workers) that share the prompts, TOGETHER to a task.

    When block_size tokens are in view, the older half is let go and the newer half is read again from position 0: the
    model never sees a position that it was not trained on, and the cost of reading again is spread over half a block.
    The same tokens are in view with and without the cache, so both give the same text.
    """
    checks.number("temperature", temperature, above=0)
    checks.number("tokens", n_tokens, 0, integer=True)
    checks.number("seed", seed, 0, integer=True)
    if top_k is not None:
        checks.number("top-k", top_k, 1, integer=True)
    prompt = np.asarray(prompt)
    if prompt.size == 0:
        raise InputError("the prompt must have at least one token.")
    rng = np.random.default_rng(seed)
    cached = cached and not recompute_reason(config)
    decoder = decode.prepare(params, buffers, config) if cached and decode.serves(config) else None
    view = np.atleast_2d(prompt).astype(np.int64)[:, -config.block_size:]            # (B, T) what is in view
    parts = [slice(i, i + TOGETHER) for i in range(0, len(view), TOGETHER)]
    pasts, unread = None, view

    def read(part, past):
        """The logits after what is unread, (b, V)"""
        if decoder and past.length:
            return decode.step(decoder, unread[part, 0], past)
        return model.forward(params, unread[part], config, buffers=buffers, kv_cache=past, last_only=True)[0][:, -1]

    for _ in range(n_tokens):
        if view.shape[1] > config.block_size:
            view = view[:, -max(1, config.block_size // 2):]
            pasts, unread = None, view
        if pasts is None:
            pasts = [KVCache(config.block_size) if cached else None for _ in parts]
        unread = unread if cached else view
        logits = np.concatenate(list((pool.map if pool and len(parts) > 1 else map)(read, parts, pasts)))
        unread = _pick(logits.astype(np.float64), temperature, top_k, rng)[:, None]
        view = np.concatenate([view, unread], axis=1)
        yield unread[:, 0] if prompt.ndim == 2 else int(unread[0, 0])


def _pick(logits, temperature, top_k, rng):
    """logits (B, V) -> one id for each row, (B,)"""
    if top_k == 1:
        return np.argmax(logits, axis=1)
    if top_k is not None and top_k < logits.shape[1]:
        best = np.argpartition(logits, -top_k, axis=1)[:, -top_k:]
        kept = np.full_like(logits, -np.inf)
        np.put_along_axis(kept, best, np.take_along_axis(logits, best, axis=1), axis=1)
        logits = kept
    with np.errstate(over="ignore"):                       # a tiny temperature: -inf is as unlikely as it should be
        total = np.cumsum(np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature), axis=1)
    return np.sum(total <= rng.random((len(logits), 1)) * total[:, -1:], axis=1)


def text(run, prompt, n_tokens, **options):
    """Continue a text with a trained model (runs.Run) -> the prompt and what follows it."""
    from minattn.data import Vocabulary
    vocabulary = Vocabulary(run.vocabulary)
    ids = vocabulary.encode(prompt)
    checkpoint = run.checkpoint
    new = stream(checkpoint.params, checkpoint.buffers, run.config, ids, n_tokens, **options)
    return prompt + vocabulary.decode(np.fromiter(new, np.int64))
