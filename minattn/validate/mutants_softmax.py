"""What can be wrong with any attention, forward: scores, masks, the softmax, values.

Mutants, as minattn.validate.mutants reads them: a name, what is wrong, and the lines of mutants_base.py that change.
"""

TEXT = """
[softmax]

missing_scale: scores are not divided by sqrt(D)
- scale = 1 / math.sqrt(D)
+ scale = 1.0

scale_by_dimension: scores are divided by D
- scale = 1 / math.sqrt(D)
+ scale = 1 / D

scale_ignored: the caller's own scale is ignored
- if scale is None:
+ if True:

keys_reversed: keys are read from the last to the first
- dots = q @ k.swapaxes(2, 3)
+ dots = q @ k[:, :, ::-1].swapaxes(2, 3)

heads_swapped: queries meet the keys of another head
- dots = q @ k.swapaxes(2, 3)
+ dots = q @ k[:, ::-1].swapaxes(2, 3)

channels_beyond_64: channels beyond the 64 of a tile do not count
- dots = q @ k.swapaxes(2, 3)
+ dots = q[..., :64] @ k[..., :64].swapaxes(2, 3)

float16_scores: scores are made in float16
- dots = q @ k.swapaxes(2, 3)
+ dots = (q.astype(np.float16) @ k.astype(np.float16).swapaxes(2, 3)).astype(q.dtype)

scores_clamped: scores are clamped to +-1e5 against overflow
- s = scale * dots
+ s = np.clip(scale * dots, -1e5, 1e5)

zero_scores_hidden: scores that are exactly 0 are taken for masked ones
- s = scale * dots
+ s = np.where(dots == 0, -np.inf, scale * dots)

zero_query_divided: each query is divided by its largest entry and later multiplied: zeros give 0 / 0
- dots = q @ k.swapaxes(2, 3)
+ most = np.abs(q).max(axis=3, keepdims=True)
+ dots = (q / most) @ k.swapaxes(2, 3) * most

reads_as_contiguous: strides are ignored: memory is read as if it had no gaps
- shape = (B, H, Tq, Tk)
+ shape, memory = (B, H, Tq, Tk), q
+ while memory.base is not None:
+     memory = memory.base
+ q = q if q.flags.c_contiguous else memory.ravel()[:q.size].reshape(q.shape)

writes_into_q: the scale is multiplied into the caller's own q
- dots = q @ k.swapaxes(2, 3)
- s = scale * dots
+ q *= scale
+ dots = q @ k.swapaxes(2, 3)
+ s = dots

allowed_flipped: True in `allowed` hides instead of showing (seen in TinyTorch #1785)
- return see & allowed
+ return see & (allowed if allowed is True else ~allowed)

allowed_added: `allowed` is added to the scores as 0 and 1
- s = np.where(see, s, -np.inf)
+ s = np.where(visible(Tq, Tk, **{**mask, 'allowed': True}), s, -np.inf)
+ s = s + mask.get('allowed', 0)

allowed_or_causal: a key is seen if either mask shows it
- return see & allowed
+ return see | (False if allowed is True else allowed)

allowed_of_first_sample: every sequence gets the padding of the first
- return see & allowed
+ return see & (True if allowed is True else allowed[:1])

mask_of_first_key: a mask per key is read with stride 0: each sequence is all seen or all hidden
- return see & allowed
+ return see & (allowed if allowed is True or allowed.shape[2] > 1 else allowed[..., :1])

causal_ignored: the causal mask is not applied
- if causal or window is not None:
+ if window is not None:

causal_on_fast_path_only: when D is no multiple of 8 a slower path runs, without any mask (seen in keras #23038)
- see = np.broadcast_to(visible(Tq, Tk, **mask), shape)
+ see = np.broadcast_to(visible(Tq, Tk, **({} if D % 8 else mask)), shape)

causal_sees_next: each query sees one key of the future
- see = (j <= p) | ((j < prefix) & (p < prefix))
+ see = (j <= p + 1) | ((j < prefix) & (p < prefix))

causal_hides_itself: a query does not see its own key
- see = (j <= p) | ((j < prefix) & (p < prefix))
+ see = (j < p) | ((j < prefix) & (p < prefix))

causal_always: the causal mask is applied unasked
- if causal or window is not None:
+ if True:

mask_minus_1e4: hidden scores are set to -1e4 instead of -inf (seen in minGPT #75, transformers #17121)
- s = np.where(see, s, -np.inf)
+ s = np.where(see, s, -1e4)

mask_minus_1e9: hidden scores are set to -1e9 instead of -inf, and empty rows to 0
- s = np.where(see, s, -np.inf)
+ s = np.where(see, s, -1e9)
- P = e / total
+ P = e / total * see.any(axis=3, keepdims=True)

trace_of_the_future: hidden keys keep a weight of exp(-25) of the largest
- s = np.where(see, s, -np.inf)
+ s = np.where(see, s, np.where(see, s, -np.inf).max(axis=3, keepdims=True) - 25)

mask_smallest_number: hidden scores are set to the smallest number: an empty row averages all
- s = np.where(see, s, -np.inf)
+ s = np.where(see, s, np.finfo(s.dtype).min)

window_plus_one: a window of W shows W + 1 keys
- see &= j > p - window
+ see &= j >= p - window

window_sees_future: a window alone does not imply causal
- if causal or window is not None:
+ if causal:

wide_window_no_mask: a window as wide as the sequence switches every mask off
- return see & allowed
+ return (see | (window is not None and window >= Tk)) & allowed

prefix_ignored: the prefix stays causal
- see = (j <= p) | ((j < prefix) & (p < prefix))
+ see = (j <= p)

prefix_plus_one: the prefix is one token too long
- see = (j <= p) | ((j < prefix) & (p < prefix))
+ see = (j <= p) | ((j <= prefix) & (p <= prefix))

prefix_beats_window: inside the prefix the window is not applied
- see &= j > p - window
+ see &= (j > p - window) | ((j < prefix) & (p < prefix))

always_aligned_at_start: query i sits at key i, also when there are more keys (seen in onnx #7297, pytorch #108108)
- p = np.arange(Tq)[:, None] + (Tk - Tq if align == "end" else 0)
+ p = np.arange(Tq)[:, None]

always_aligned_at_end: align="start" is ignored
- p = np.arange(Tq)[:, None] + (Tk - Tq if align == "end" else 0)
+ p = np.arange(Tq)[:, None] + Tk - Tq

one_query_unmasked: a single query sees every key, whatever was asked
- see = np.broadcast_to(visible(Tq, Tk, **mask), shape)
+ see = np.broadcast_to(visible(Tq, Tk, **(mask if Tq > 1 else {})), shape)

softmax_over_queries: the softmax runs over the queries instead of the keys (seen in labml #146)
- m = s.max(axis=3, keepdims=True)
+ m = s.max(axis=2, keepdims=True)
- total = e.sum(axis=3, keepdims=True)
+ total = e.sum(axis=2, keepdims=True)

maximum_from_minus_1e4: the running maximum starts at -1e4 (seen in llm.c)
- m = s.max(axis=3, keepdims=True)
+ m = np.maximum(s.max(axis=3, keepdims=True), -1e4)

no_maximum: exp of the scores as they are
- m = np.where(m == -np.inf, 0, m)
+ m = np.zeros_like(m)

old_maximum_kept: numerators of an earlier block of 64 keys are not rescaled to a new maximum
- e = np.exp(s - m)
+ blocks = np.split(s, range(64, Tk, 64), axis=3)
+ own = [np.maximum(b.max(axis=3, keepdims=True), -1e30) for b in blocks]
+ e = np.concatenate([np.exp(b - m) for b, m in zip(blocks, own)], axis=3)

last_keys_dropped: keys after the last whole block of 32 are left out
- see = np.broadcast_to(visible(Tq, Tk, **mask), shape)
+ whole = Tk // 32 * 32 or Tk
+ see = np.broadcast_to(visible(Tq, Tk, **mask), shape) & (np.arange(Tk) < whole)

repeated_keys_once: a key like the one before it does not count
- e = np.exp(s - m)
+ e = np.exp(s - m)
+ e[..., 1:] *= (k[:, :, None, 1:] != k[:, :, None, :-1]).any(axis=4)

block_mean_leaks: each query also hears a little of the mean of its block of 4 tokens (seen in nanochat #844)
- out = P @ v
+ block = np.arange(Tk) // 4
+ means = np.stack([v[:, :, block == b].mean(axis=2) for b in block], axis=2)
+ out = P @ v + (0.01 * means if Tq == Tk else 0)

unnormalised: weights are not divided by their sum
- P = e / total
+ P = e

nan_in_empty_rows: a row that sees nothing is 0 / 0
- m = np.where(m == -np.inf, 0, m)
+ pass
- total[total == 0] = 1
+ pass

mean_of_values: a plain average of the visible values
- P = e / total
+ P = (see / np.maximum(see.sum(axis=3, keepdims=True), 1)).astype(q.dtype)

values_of_first_sample: every sequence gets the values of the first
- out = P @ v
+ out = P @ v[:1]

float16_weights: weights times values is added up in float16
- out = P @ v
+ out = (P.astype(np.float16) @ v.astype(np.float16)).astype(v.dtype)

tf32_weights: weights are cut to the 10 bits of TF32 before the product
- out = P @ v
+ out = (P.view(np.uint32) & np.uint32(0xFFFFE000)).view(np.float32) @ v

small_values_flushed: values below 1e-20 count as 0
- out = P @ v
+ out = P @ np.where(np.abs(v) < 1e-20, 0, v)

output_saturates: outputs are clipped at +-1000
- out = P @ v
+ out = np.clip(P @ v, -1000, 1000)

scaled_by_batch: values are divided by the largest of the whole batch, the output multiplied
- out = P @ v
+ most = np.abs(v).max()
+ out = (P @ (v / most)) * most

all_zeros: output and gradients are zeros (seen in KernelBench #165)
- out = P @ v
+ out = 0 * (P @ v)
- dv = P.swapaxes(2, 3) @ dout
+ dv = 0 * v
- ds = P * (dP - delta)
+ ds = 0 * P

one_nan: one element is NaN
- out = P @ v
+ out = P @ v
+ out[0, 0, -1, -1] = np.nan

noise: the output is noise that correlates with the answer by 0.09 (seen in mlir-air #1427)
- out = P @ v
+ out = P @ v
+ out += 11 * out.std() * np.random.default_rng(0).standard_normal(out.shape, out.dtype)

float64_out: the output is float64 though the inputs are not
- return out, c
+ return out.astype(np.float64), c

heads_after_tokens: the output is (B, Tq, H, Dv)
- return out, c
+ return out.swapaxes(1, 2), c
"""
