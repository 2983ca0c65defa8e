"""Sampling: one token after another, with a key-value cache where the model allows one.

    p(token) = exp(logit / temperature) / sum over the vocabulary
"""
import numpy as np

from minattn import checks, decode, model
from minattn.attention_layer import KVCache
from minattn.errors import InputError, NotFinite
from minattn.layers import layers

TOGETHER = 8          # sequences per task: fixed, so that the text does not depend on the threads


def recompute_reason(config):
    """Why this model cannot use a key-value cache; an empty string if it can."""
    for layer in layers(config):
        if why := layer.mechanism.recompute(**layer.options):
            return f"{layer.mechanism.name}: {why}"
    return ""


def stream(params, buffers, config, prompt, n_tokens, *, temperature=1.0, top_k=None, seed=0,
           cached=True, pool=None):
    """Continue a prompt; yields n_tokens ids, one at a time.

    prompt (T,) ids, at least one -> yields integers; or (B, T), B prompts -> yields (B,) arrays
    temperature   divides the logits: above 0; if small, nearly greedy
    top_k         samples from this many of the most likely tokens only (1: greedy)
    pool          threads (minattn.parallel.workers) that share the prompts

    When block_size tokens are in context, the older half is dropped and the newer half is read
    again from position 0: the model never sees a position it was not trained on, and one reading
    serves half a block. With and without the cache the context is the same, and so is the text.
    """
    temperature = checks.number("temperature", temperature, above=0)
    n_tokens = checks.number("tokens", n_tokens, 0, integer=True)
    seed = checks.number("seed", seed, 0, integer=True, most=1 << 128)
    if top_k is not None:
        top_k = checks.number("top-k", top_k, 1, integer=True)
    prompt = prompt if isinstance(prompt, np.ndarray) else np.asarray(prompt)
    if prompt.size == 0:
        raise InputError("the prompt must have at least one token.")
    checks.integers("prompt", prompt, config.vocab_size, axes=2 if prompt.ndim == 2 else 1)
    rng = np.random.default_rng(seed)
    cached = cached and not recompute_reason(config)
    decoder = decode.prepare(params, buffers, config) if cached else None
    context = np.atleast_2d(prompt).astype(np.int64)[:, -config.block_size:]         # (B, T)
    groups = [slice(i, i + TOGETHER) for i in range(0, len(context), TOGETHER)]
    map_groups = pool.map if pool and len(groups) > 1 else map

    def last_logits(group, kv_cache):
        """The logits after the last unread token, (b, V)"""
        if decoder and kv_cache.length:
            return decode.step(decoder, unread[group, 0], kv_cache)
        return model.forward(params, unread[group], config, buffers=buffers, kv_cache=kv_cache,
                             last_only=True)[0][:, -1]

    caches, unread = None, context
    for _ in range(n_tokens):
        if context.shape[1] > config.block_size:
            context = context[:, -max(1, config.block_size // 2):]
            caches, unread = None, context
        if caches is None:
            caches = [KVCache(config.block_size) if cached else None for _ in groups]
        logits = np.concatenate(list(map_groups(last_logits, groups, caches)))
        if np.isnan(logits).any():
            raise NotFinite("a logit", "is not a number: the weights cannot be sampled from.")
        token = _pick(logits.astype(np.float64), temperature, top_k, rng)
        context = np.concatenate([context, token[:, None]], axis=1)
        unread = token[:, None] if cached else context
        yield token if prompt.ndim == 2 else int(token[0])


def _pick(logits, temperature, top_k, rng):
    """Sample one token per row: logits (B, V) -> (B,)"""
    if top_k == 1:
        return np.argmax(logits, axis=1)
    if top_k is not None and top_k < logits.shape[1]:
        best = np.argpartition(logits, -top_k, axis=1)[:, -top_k:]
        kept = np.full_like(logits, -np.inf)
        np.put_along_axis(kept, best, np.take_along_axis(logits, best, axis=1), axis=1)
        logits = kept
    with np.errstate(over="ignore"):                       # a tiny temperature gives -inf, rightly
        numerators = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
    cumulative = np.cumsum(numerators, axis=1)             # the first to exceed a uniform draw
    return np.sum(cumulative <= rng.random((len(logits), 1)) * cumulative[:, -1:], axis=1)


def first_prompt(vocabulary):
    """What a text begins with where none is given: a new line, or the first character known."""
    return "\n" if "\n" in vocabulary else vocabulary[0]


def text(run, prompt, n_tokens, **options):
    """Continue a text with a trained model (runs.Run) -> the prompt and what follows it."""
    from minattn.data import Vocabulary
    vocabulary = Vocabulary(run.vocabulary)
    ids = vocabulary.encode(prompt)
    checkpoint = run.checkpoint
    new = stream(checkpoint.params, checkpoint.buffers, run.config, ids, n_tokens, **options)
    return prompt + vocabulary.decode(np.fromiter(new, np.int64))
