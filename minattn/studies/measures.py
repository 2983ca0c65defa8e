"""What is measured of a finished run.

Kept in its folder (measures.json) with the checksum of the checkpoint it belongs to. results.csv
has one column for each number:

    parameters              numbers that are learned
    val_loss                validation loss of the whole split, teacher-forced (nats per character)
    val_loss_prefix_only    val_loss + leak: the loss without what comes after
    leak                    prefix-only minus teacher-forced loss, over the same sampled validation
                            predictions
    leak_se                 its standard error, from the sampled predictions
    sample_teacher_forced   teacher-forced loss of the sampled predictions
    sample_prefix_only      loss of the same predictions, each from its own prefix alone
    sample_size             how many those are
    train_loss_last         loss of the last training batch
    train_loss_last_100     mean of the last 100 training batches
    train_loss_eval         loss in evaluation mode, over as many windows of the training split as
                            the validation split has, evenly spread
    gap                     val_loss - train_loss_eval
    first_token_mass        mean weight of later queries on the first key, over layers and heads
    entropy                 mean entropy of the rows of weights (of |w| / sum |w|), nats
    row_sum                 mean sum of a row of weights
    grad_norm_mean          mean gradient norm over all steps, before clipping; _std is its standard
                            deviation, _variance its variance, _cv standard deviation / mean
    spikes_6, spikes_9      steps whose gradient norm exceeds median + k MAD, k = 6 or 9
                            (arXiv 2602.23057)
    seconds                 of training, all sittings together
    loss_at_T               loss of characters spread over the validation split, read with windows
                            of T tokens: minattn.inspect.lengths; where --lengths asks for it
"""
from pathlib import Path

import numpy as np

from minattn import data, files, model, parallel, runs, train
from minattn.errors import InputError
from minattn.inspect import leak, lengths, maps, statistics

MEASURES = "measures.json"
EDITION = 1               # of the definitions below: another one, and every run is measured again
MAP_TOKENS = 4096         # tokens of the validation split whose attention maps are looked at
SPIKES = (6, 9)           # k
LENGTH_WINDOWS = 256      # windows that are read at every length
SCALARS = ("parameters", "val_loss", "val_loss_prefix_only", "leak", "leak_se",
           "sample_teacher_forced", "sample_prefix_only", "sample_size", "train_loss_last",
           "train_loss_last_100", "train_loss_eval", "gap", "first_token_mass", "entropy",
           "row_sum", "grad_norm_mean", "grad_norm_std", "grad_norm_variance", "grad_norm_cv",
           *(f"spikes_{k}" for k in SPIKES), "seconds")
KIND = {"of": dict, **dict.fromkeys(SCALARS, float), "leak_se": (float, None),
        "losses_by_length?": {str: float}}
ROW_KIND = {**runs.ROW_KIND, "grad_norm": float}


def read(folder, prefix_positions, at_lengths=()):
    """The measures of a finished run; None if it has none of its present checkpoint."""
    try:
        there = files.read_json(Path(folder) / MEASURES, KIND)
        return there if there["of"] == _of(folder, prefix_positions, at_lengths) else None
    except InputError:                                   # missing or damaged: it is measured again
        return None


def _of(folder, prefix_positions, at_lengths):
    """What measures belong to."""
    checkpoint = runs.checkpoint_header(folder)["sha256"]
    of = {"checkpoint": checkpoint, "prefix_positions": prefix_positions, "edition": EDITION}
    return {**of, "lengths": list(at_lengths)} if at_lengths else of


def flat(found):
    """Measures as columns of results.csv -> {name: number}"""
    by_length = found.get("losses_by_length", {})
    return {**{name: found[name] for name in SCALARS},
            **{f"loss_at_{length}": loss for length, loss in by_length.items()}}


def measure(folder, prefix_positions, at_lengths=(), *, threads=None, data_dir="data"):
    """Measure a finished run and keep the result in its folder.

    -> dict of SCALARS and of lists by layer
    """
    run = runs.load(folder)
    text = data.run_text(run.corpus, data_dir=data_dir, say=lambda line: None)
    rows = runs.read_metrics(folder)
    wrong = files.misfit(rows, [ROW_KIND], "line")
    if len(rows) != run.checkpoint.step or rows[-1]["val_loss"] is None or wrong:
        raise InputError(f"{run.folder / runs.METRICS} is damaged: it has {len(rows)} lines for "
                         f"{run.checkpoint.step} steps, or one without its numbers; restore it, or "
                         f"remove {run.folder}, and the same command trains it again.")
    train_ids, val_ids = data.split(data.Vocabulary(run.vocabulary).encode(text))
    val = data.blocks(val_ids, run.config.block_size)
    x, y = data.blocks(train_ids, run.config.block_size)
    some = train.evenly(len(x), len(val[0]))
    trained = run.checkpoint.params, run.checkpoint.buffers
    with parallel.workers(threads or 1) as pool:
        found = {"of": _of(folder, prefix_positions, at_lengths),
                 "parameters": model.count_parameters(run.config), "val_loss": rows[-1]["val_loss"],
                 **_leak(trained, run.config, val, prefix_positions, pool), **_training(rows),
                 "train_loss_eval": parallel.mean_loss(pool, *trained, x[some], y[some],
                                                       run.config),
                 **_weights(trained, run.config, val[0]),
                 "seconds": round(run.checkpoint.seconds, 1)}
        if at_lengths:
            by_length = lengths.losses(*trained, run.config, val_ids, at_lengths, LENGTH_WINDOWS,
                                       over=pool.map)
            found["losses_by_length"] = {str(length): x for length, x in by_length.items()}
    found["val_loss_prefix_only"] = found["val_loss"] + found["leak"]
    found["gap"] = found["val_loss"] - found["train_loss_eval"]
    if wrong := files.misfit(found, KIND):
        raise InputError(f"{folder} cannot be measured: {wrong}.")
    files.sweep(folder, (MEASURES,))                 # the caller has the lock
    files.write_json(Path(folder) / MEASURES, found)
    return found


def _leak(trained, config, val, n, pool):
    forced, alone = leak.losses(*trained, config, *val, *leak.spread(*val[0].shape, n),
                                over=pool.map)
    d = alone - forced
    return {"sample_teacher_forced": forced.mean(), "sample_prefix_only": alone.mean(),
            "leak": d.mean(), "leak_se": d.std(ddof=1) / len(d) ** 0.5 if len(d) > 1 else None,
            "sample_size": len(d)}


def _training(rows):
    losses, norms = (np.array([row[name] for row in rows]) for name in ("train_loss", "grad_norm"))
    median = np.median(norms)
    mad = np.median(np.abs(norms - median))
    return {"train_loss_last": losses[-1], "train_loss_last_100": losses[-100:].mean(),
            "grad_norm_mean": norms.mean(), "grad_norm_std": norms.std(),
            "grad_norm_variance": norms.var(), "grad_norm_cv": norms.std() / norms.mean(),
            **{f"spikes_{k}": int(np.sum(norms > median + k * mad)) for k in SPIKES}}


def _row_sum(w):
    return statistics.row_sums(w)[0]


def _row_sum_by_query(w):
    """(B, H, T, T) -> (T,), over sequences and heads"""
    return w.sum(axis=3, dtype=np.float64).mean(axis=(0, 1))


MAPS = {"first_token_mass": statistics.first_token_mass, "entropy": statistics.entropy,
        "row_sum": _row_sum, "row_sum_by_query": _row_sum_by_query}


def _weights(trained, config, x):
    """Statistics of the attention maps by layer, and their means."""
    some = train.evenly(len(x), max(1, MAP_TOKENS // x.shape[1]))
    by_layer = dict.fromkeys(MAPS, 0.0)                       # (layers, H) or (layers, T)
    parts = max(1, len(some) * x.shape[1] // 1024)            # few at a time: maps are T x T
    for part in np.array_split(x[some], parts):
        layers = maps.weights(*trained, config, part)
        share = len(part) / len(some)
        for name, statistic in MAPS.items():
            by_layer[name] += share * np.array([statistic(w) for w in layers])
    queries = by_layer.pop("row_sum_by_query").tolist()
    means = {name: float(values.mean()) for name, values in by_layer.items()}
    layers = {f"{name}_by_layer": values.mean(axis=1).tolist()
              for name, values in by_layer.items()}
    return {**means, **layers, "row_sum_by_query": queries}
