"""What can be wrong with one mechanism's own formula, forward. Mutants, as minattn.validate.mutants reads them."""

TEXT = """
[sink]

sink_ignored: the sink does not enter the denominator
- e_sink = np.exp(sink[:, None, None] - m)
+ e_sink = 0 * m

sink_without_exp: the sink's logit is added to the denominator as it stands
- e_sink = np.exp(sink[:, None, None] - m)
+ e_sink = np.abs(sink)[:, None, None] * np.exp(-m)

sink_not_shifted: the row maximum is subtracted from the scores but not from the sink
- e_sink = np.exp(sink[:, None, None] - m)
+ e_sink = np.exp(sink)[:, None, None] + 0 * m

maximum_without_sink: the row maximum leaves out the sink, whose exp overflows
- m = np.maximum(m, sink[:, None, None])
+ pass

maximum_is_sink: the sink is subtracted for the maximum
- m = np.maximum(m, sink[:, None, None])
+ m = sink[:, None, None] + np.zeros_like(m)

sink_of_first_head: every head gets the sink of the first
- return attend(q, k, v, sink=sink, **options)
+ return attend(q, k, v, sink=0 * sink + sink[0], **options)

sink_clamped_above: the sink is clamped at 10
- return attend(q, k, v, sink=sink, **options)
+ return attend(q, k, v, sink=np.minimum(sink, 10), **options)

sink_clamped_below: the sink is clamped at -10
- return attend(q, k, v, sink=sink, **options)
+ return attend(q, k, v, sink=np.maximum(sink, -10), **options)

sink_scaled: the sink is divided by sqrt(D) like a score
- return attend(q, k, v, sink=sink, **options)
+ return attend(q, k, v, sink=sink / q.dtype.type(q.shape[3] ** 0.5), **options)

one_token_shortcut: with a single key its weight is taken to be 1
- P = e / total
+ P = e / total if Tk > 1 else np.where(see, 1, e)

[off_by_one]

one_after_maximum: 1 is added after the maximum was subtracted
- e_sink = np.exp(sink[:, None, None] - m)
+ e_sink = np.ones_like(m)

plain_softmax: nothing is added
- e_sink = np.exp(sink[:, None, None] - m)
+ e_sink = 0 * m

zero_key_shifts_mask: an added zero key moves the causal mask by one, and shows the future (seen in pytorch #27461)
- see = np.broadcast_to(visible(Tq, Tk, **mask), shape)
+ longer = visible(Tq, Tk + 1, **{**mask, 'allowed': True})[:, :Tk]
+ see = np.broadcast_to(longer & mask.get('allowed', True), shape)

[gated]

gate_without_sigmoid: the logits themselves are the gate
- g = sigmoid(gate_logits)
+ g = gate_logits + 0

gate_tanh: tanh in place of the sigmoid
- g = sigmoid(gate_logits)
+ g = np.tanh(gate_logits)

gate_of_key: each value is gated by its own token, before attention
- Pv, core = attend(q, k, v, **options)
- g = sigmoid(gate_logits)
+ g, square = sigmoid(gate_logits), q.shape[2] == k.shape[2]
+ Pv, core = attend(q, k, v * g if square else v, **options)
+ g = np.ones_like(g) if square else g

gate_cut_off: a gate below sigmoid(-10) is taken as 0
- g = sigmoid(gate_logits)
+ g = np.where(gate_logits < -10, 0, sigmoid(gate_logits))

[affine]

beta_on_masked_keys: beta is added to hidden keys as well
- ones = core.see.astype(q.dtype)
+ ones = np.ones_like(core.s)

beta_undivided: beta is not divided by N
- beta = (alpha_ma[:, None, None] - alpha) / n
+ beta = alpha_ma[:, None, None] - alpha

beta_without_alpha: beta = alpha_ma / N
- beta = (alpha_ma[:, None, None] - alpha) / n
+ beta = alpha_ma[:, None, None] / n + 0 * alpha

beta_not_before_ma: while alpha_ma is zero there is no beta
- beta = (alpha_ma[:, None, None] - alpha) / n
+ beta = (alpha_ma[:, None, None] - alpha) / n * q.dtype.type(alpha_ma.any())

ma_of_first_head: every head gets the alpha_ma of the first
- beta = (alpha_ma[:, None, None] - alpha) / n
+ beta = (alpha_ma[0] - alpha) / n

total_counts_visible: length="total" counts the visible keys
- n = {"total": k.shape[2], "visible": n_seen}.get(length, length)
+ n = {"total": n_seen, "visible": n_seen}.get(length, length)

visible_counts_total: length="visible" counts all keys
- n = {"total": k.shape[2], "visible": n_seen}.get(length, length)
+ n = {"total": k.shape[2], "visible": k.shape[2]}.get(length, length)

length_ignored: a length given as a number is ignored
- n = {"total": k.shape[2], "visible": n_seen}.get(length, length)
+ n = {"total": k.shape[2], "visible": n_seen}.get(length, k.shape[2])

nothing_visible: a row that sees nothing divides by 0
- n_seen = np.maximum(core.see.sum(axis=3, keepdims=True), 1)
+ n_seen = core.see.sum(axis=3, keepdims=True)

alpha_not_clipped: alpha leaves [0, 1]
- alpha = np.clip(x * 0.1 + 0.5, 0, 1)
+ alpha = x * 0.1 + 0.5

running_sum_without_window: the sum of values starts at the first key, whatever the window
- ones = core.see.astype(q.dtype)
+ mask = {**core.mask, 'window': None, 'causal': core.mask.get('causal') or 'window' in core.mask}
+ ones = np.broadcast_to(visible(q.shape[2], k.shape[2], **mask), core.s.shape).astype(q.dtype)

sigmoid_everywhere: phi is always the sigmoid
- if phi == "sigmoid":
+ if True:

[energy]

statistics_of_the_future: norm="prefix" takes mean and deviation over the whole sequence
- last = {"prefix": p, "sequence": np.array([Tk - 1])}.get(norm, np.arange(Tk))
+ last = {"prefix": np.full(Tq, Tk - 1), "sequence": np.array([Tk - 1])}.get(norm, np.arange(Tk))

key_statistics_of_the_future: norm="key" takes mean and deviation over the whole sequence
- last = {"prefix": p, "sequence": np.array([Tk - 1])}.get(norm, np.arange(Tk))
+ last = {"prefix": p, "sequence": np.array([Tk - 1])}.get(norm, np.full(Tk, Tk - 1))

statistics_without_own_key: norm="key" counts only the keys before
- last = {"prefix": p, "sequence": np.array([Tk - 1])}.get(norm, np.arange(Tk))
+ last = {"prefix": p, "sequence": np.array([Tk - 1])}.get(norm, np.arange(Tk) - 1)

statistics_of_the_window: mean and deviation run over the window only
- member = np.arange(Tk) <= last[:, None]
+ first = last - (options.get('window') or Tk)
+ member = (np.arange(Tk) <= last[:, None]) & (np.arange(Tk) > first[:, None])

statistics_aligned_at_end: norm="prefix" ignores align="start"
- p = np.arange(Tq) + (Tk - Tq if options.get("align", "end") == "end" else 0)
+ p = np.arange(Tq) + Tk - Tq

unbiased_deviation: the variance is divided by n - 1
- var = (centred * centred).sum(axis=3, keepdims=True) / n
+ var = (centred * centred).sum(axis=3, keepdims=True) / np.maximum(n - 1, 1)

one_pass_variance: the variance is mean(e^2) - mean(e)^2, which loses its digits far from zero
- var = (centred * centred).sum(axis=3, keepdims=True) / n
+ var = np.maximum((e * e * member).sum(axis=3, keepdims=True) / n - mean * mean, 0)

deviation_without_floor: equal energies are divided by a deviation of 0
- rstd = 1 / np.maximum(np.sqrt(var), 1e-8)
+ rstd = 1 / np.sqrt(var)

epsilon_outside_root: 1e-8 is added to the deviation instead of the variance
- rstd = np.where(n > 1, 1 / np.sqrt(var + 1e-8), 0)
+ rstd = np.where(n > 1, 1 / (np.sqrt(var) + 1e-8), 0)

tau_added: tau has the wrong sign
- above = z - tau[:, None, None]
+ above = z + tau[:, None, None]

alpha_ignored: alpha does not enter the gate
- u = alpha[:, None, None] * above
+ u = above + 0

gate_not_logged: the gate itself is added to the scores, not its logarithm
- log_g = np.minimum(u, 0) - np.log1p(np.exp(-np.abs(u)))
+ log_g = sigmoid(u)

not_renormalised: weights are gated after the softmax and not renormalised
- out, core = attend(q, k, v, gate=log_g, **options)
+ plain = attend(q, k, v, **options)[1]
+ out, core = attend(q, k, v, gate=log_g, **options)
+ core.P = core.P * np.exp(core.lse - plain.lse)
+ out = core.out = core.P @ v

renormaliser_clamped: the sum of gated weights is clamped at 1e-8, as published: closed gates give 0
- out, core = attend(q, k, v, gate=log_g, **options)
+ plain = attend(q, k, v, **options)[1]
+ out, core = attend(q, k, v, gate=log_g, **options)
+ core.P = core.P * np.minimum(1, np.exp(core.lse - plain.lse) / 1e-8)
+ out = core.out = core.P @ v

[gaussian]

kernel_without_half: exp(-d^2 / sigma^2) without the half
- inv = np.exp(-2 * log_sigma)[:, None, None]
+ inv = 2 * np.exp(-2 * log_sigma)[:, None, None]

key_norms_forgotten: a dot product, not a distance
- key_bias = -0.5 * norm * inv
+ key_bias = 0 * norm * inv

sigma_not_squared: divides by sigma, not by its square
- inv = np.exp(-2 * log_sigma)[:, None, None]
+ inv = np.exp(-log_sigma)[:, None, None]

sigma_of_first_head: every head has the width of the first
- inv = np.exp(-2 * log_sigma)[:, None, None]
+ inv = np.exp(-2 * np.full_like(log_sigma, log_sigma[0]))[:, None, None]

sigma_clamped: log sigma is clamped at 5
- inv = np.exp(-2 * log_sigma)[:, None, None]
+ inv = np.exp(-2 * np.minimum(log_sigma, 5))[:, None, None]

tiny_sigma_is_identity: for a tiny sigma a token keeps to itself, though others are just like it
- out, core = attend(x * inv, k, v, scale=1.0, gate=key_bias, **options)
+ if inv.min() > 1e4 and keys is None:
+     options['allowed'] = options.get('allowed', True) & np.eye(x.shape[2], dtype=bool)[None, None]
+ out, core = attend(x * inv, k, v, scale=1.0, gate=key_bias, **options)

token_left_out: a token does not see itself
- see = np.broadcast_to(visible(Tq, Tk, **mask), shape)
+ see = np.broadcast_to(visible(Tq, Tk, **mask), shape) & ~np.eye(Tq, Tk, dtype=bool)

epsilon_in_denominator: the denominator holds an epsilon of 1e-6, as published
- total[total == 0] = 1
+ total = total + q.dtype.type(1e-6)

kernel_underflows: exp(-d^2 / (2 sigma^2)) as it stands: where all distances are large, 0 / 0
- m = s.max(axis=3, keepdims=True)
+ m = -gate.swapaxes(2, 3) if Tq == Tk else s.max(axis=3, keepdims=True)
"""
