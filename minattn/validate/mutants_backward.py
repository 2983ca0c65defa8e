"""What can be wrong with gradients when the forward is right. Mutants, as minattn.validate.mutants reads them."""

TEXT = """
[softmax]

dv_not_transposed: dv = P dout instead of P^T dout
- dv = P.swapaxes(2, 3) @ dout
+ dv = (P if c.Tq == c.Tk else P.swapaxes(2, 3)) @ dout

rowsum_dropped: ds = P dP, without rowsum(dout * out)
- ds = P * (dP - delta)
+ ds = P * dP

rowsum_of_out: rowsum(out) for rowsum(dout * out): right for a cotangent of ones
- delta = (dout * c.out).sum(axis=3, keepdims=True)
+ delta = c.out.sum(axis=3, keepdims=True)

dq_unscaled: dq lacks the scale
- dq = c.scale * (ds @ k)
+ dq = ds @ k

dk_from_k: dk = ds^T k instead of ds^T q
- dk = c.scale * (ds.swapaxes(2, 3) @ q)
+ dk = c.scale * (ds.swapaxes(2, 3) @ (k if c.Tq == c.Tk else q))

dk_of_last_block: dk is overwritten by each block of 64 queries, not added up
- dk = c.scale * (ds.swapaxes(2, 3) @ q)
+ first = (c.Tq - 1) // 64 * 64
+ dk = c.scale * (ds[:, :, first:].swapaxes(2, 3) @ q[:, :, first:])

mask_ignored_backward: the backward makes the weights again without the mask (seen in triton #4541)
- P = c.P
+ P = np.exp(c.raw - c.lse)

window_ignored_backward: the backward makes the weights again without the window
- P = c.P
+ P = c.P
+ if c.mask.get('window') is not None:
+     P = np.exp(c.raw - c.lse) * visible(c.Tq, c.Tk, **{**c.mask, 'window': None})

nan_behind_empty_rows: only the forward guards empty rows (seen in pytorch #41508, flash-attention #443)
- P = c.P
+ P = c.e / c.e.sum(axis=3, keepdims=True)

float16_dp: dP is made in float16
- dP = dout @ v.swapaxes(2, 3)
+ dP = (dout.astype(np.float16) @ v.astype(np.float16).swapaxes(2, 3)).astype(v.dtype)

dv_kept_between_calls: the buffer of dv is not cleared between calls
- def attend_backward(dout, c):
+ def attend_backward(dout, c, kept={}):
- dv = P.swapaxes(2, 3) @ dout
+ dv = kept[v.shape] = kept.get(v.shape, 0) + P.swapaxes(2, 3) @ dout

bias_gradient_of_one_query: the gradient of a bias per key is not summed over the queries
- grads["bias"] = sum_to(ds, c.bias.shape)
+ one = c.bias.shape[-2] == 1
+ grads["bias"] = sum_to(ds[:, :, :1] if one else ds, c.bias.shape)

bias_gradient_scaled: the gradient of the bias is multiplied by the scale
- grads["bias"] = sum_to(ds, c.bias.shape)
+ grads["bias"] = c.scale * sum_to(ds, c.bias.shape)

bias_gradient_missing: the bias gets no gradient
- grads["bias"] = sum_to(ds, c.bias.shape)
+ pass

[sink]

sink_gradient_zero: the sink gets a gradient of zeros (seen in flash-attention #1973, #2102, vllm-metal #550)
- grads["sink"] = -(P_sink * delta).sum(axis=(0, 2, 3))
+ grads["sink"] = np.zeros_like(c.sink)

sink_gradient_sign: the sink's gradient has the wrong sign
- grads["sink"] = -(P_sink * delta).sum(axis=(0, 2, 3))
+ grads["sink"] = (P_sink * delta).sum(axis=(0, 2, 3))

sink_gradient_one_sample: the sink's gradient is not summed over the batch
- grads["sink"] = -(P_sink * delta).sum(axis=(0, 2, 3))
+ grads["sink"] = -(P_sink * delta)[0].sum(axis=(1, 2))

sink_forgotten_backward: the backward's weights sum to one, as if there were no sink
- P = c.P
+ rows = c.P.sum(axis=3, keepdims=True)
+ P = c.P / np.where(rows == 0, 1, rows)

sink_weight_by_subtraction: the sink's weight is taken as 1 - rowsum(P), which rounds to nothing
- P_sink = c.e_sink / c.total
+ P_sink = 1 - c.P.sum(axis=3, keepdims=True)

[off_by_one]

one_forgotten_backward: the backward's weights sum to one
- P = c.P
+ rows = c.P.sum(axis=3, keepdims=True)
+ P = c.P / np.where(rows == 0, 1, rows)

[gated]

gate_derivative_halved: the derivative of the sigmoid lacks 1 - g
- grads["gate_logits"] = dg * c.g * (1 - c.g)
+ grads["gate_logits"] = dg * c.g

gate_derivative_overflows: the sigmoid's derivative is made from exp(-x) and overflows
- grads["gate_logits"] = dg * c.g * (1 - c.g)
+ y = np.exp(-c.gate_logits)
+ grads["gate_logits"] = dg * y / (1 + y) ** 2

gate_gradient_first_channel: the gradient of a gate per head is that of its first channel
- dg = sum_to(dg, c.g.shape)
+ dg = dg[..., :c.g.shape[3]]

attention_hears_ungated: the gradient enters attention without passing the gate
- dPv = dout * c.g
+ dPv = dout

[affine]

ma_differentiated: gradients flow into the running mean alpha_ma as if it were mean(alpha)
- dalpha = dalpha - dbeta / c.n
+ dalpha = dalpha - dbeta / c.n - (dbeta / c.n).mean(axis=(0, 2), keepdims=True)

beta_not_differentiated: alpha's gradient leaves out its part in beta
- dalpha = dalpha - dbeta / c.n
+ pass

dv_without_beta: dv leaves out the sum of values
- grads["v"] = grads["v"] + c.ones.swapaxes(2, 3) @ (c.beta * dout)
+ pass

slope_outside_clip: the slope of the clip is 0.1 everywhere
- slope = np.where(np.abs(x) < 5, 0.1, 0).astype(x.dtype)
+ slope = np.full_like(x, 0.1)

slope_at_kinks: the slope is 0.1 at the kinks themselves
- slope = np.where(np.abs(x) < 5, 0.1, 0).astype(x.dtype)
+ slope = np.where(np.abs(x) <= 5, 0.1, 0).astype(x.dtype)

attention_hears_unscaled: the gradient enters attention without alpha
- dPv = c.alpha * dout
+ dPv = dout

[energy]

log_gate_derivative: the derivative of log sigmoid is taken as 1
- du = sum_to(ds, c.u.shape) * sigmoid(-c.u)
+ du = sum_to(ds, c.u.shape)

tau_gradient_sign: the gradient of tau has the wrong sign
- grads["tau"] = -c.alpha * du.sum(axis=(0, 2, 3))
+ grads["tau"] = c.alpha * du.sum(axis=(0, 2, 3))

alpha_gradient_without_tau: the gradient of alpha leaves out tau
- grads["alpha"] = (du * c.above).sum(axis=(0, 2, 3))
+ grads["alpha"] = (du * c.z).sum(axis=(0, 2, 3))

statistics_detached: mean and deviation are taken as constants
- if c.norm != "none":
+ if False:

deviation_detached: the deviation is taken as a constant
- drstd = dz * (c.e - c.mean)
+ drstd = 0 * dz

[gaussian]

value_role_forgotten: dx leaves out the token's part as a value
- dk = dk + dv
+ dk = dk + 0 * dv

key_role_forgotten: dx leaves out the token's part as a key
- dx = dx + dk
+ dx = dx + dv

key_norm_constant: |x_j|^2 is taken as a constant
- dk = dk - c.k * c.inv * ds.sum(axis=2)[..., None]
+ pass

log_sigma_gradient_halved: d log sigma lacks the factor 2
- grads["log_sigma"] = -2 * (ds * s).sum(axis=(0, 2, 3))
+ grads["log_sigma"] = -1 * (ds * s).sum(axis=(0, 2, 3))

log_sigma_without_norms: d log sigma leaves out the key norms
- s = c.core.scale * c.core.dots + c.key_bias
+ s = c.core.scale * c.core.dots

values_have_no_gradient: values that were given apart get no gradient
- grads["values"] = dv
+ grads["values"] = 0 * dv
"""
