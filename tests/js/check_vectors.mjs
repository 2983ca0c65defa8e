// Golden vectors in a second language, by the formulas in schema.json: softmax, affine and energy.
//     node check_vectors.mjs DIR             check this file's own arithmetic, in double
//     node check_vectors.mjs DIR ANSWERS     check a .safetensors file with keys caseId/name
import { readFileSync } from "node:fs";
import { join } from "node:path";

const NUMBERS = { F64: Float64Array, F32: Float32Array, BOOL: Uint8Array };
const PRECISION = { F64: "float64", F32: "float32", BOOL: "bool" };

function readTensors(path) {
  const file = readFileSync(path);
  const size = Number(file.readBigUInt64LE(0));
  const tensors = new Map();
  for (const [key, about] of Object.entries(JSON.parse(file.toString("utf8", 8, 8 + size)))) {
    if (key === "__metadata__") continue;
    if (!(about.dtype in NUMBERS)) throw new Error(`${key} has the type ${about.dtype}`);
    const [start, end] = about.data_offsets.map((n) => n + 8 + size);
    const bytes = new Uint8Array(file.subarray(start, end));          // a copy, hence aligned
    tensors.set(key, { shape: about.shape, precision: PRECISION[about.dtype],
                       data: new NUMBERS[about.dtype](bytes.buffer) });
  }
  return tensors;
}

const zeros = (...shape) => ({ shape, data: new Float64Array(shape.reduce((a, b) => a * b, 1)) });
const sigmoid = (x) => (x < 0 ? Math.exp(x) / (1 + Math.exp(x)) : 1 / (1 + Math.exp(-x)));
const logSigmoid = (x) => Math.min(x, 0) - Math.log1p(Math.exp(-Math.abs(x)));

// The index of (b, h, i, j) in a tensor whose axes of size 1 stand for all.
function at(x, b, h, i, j) {
  const [B, H, I, J] = x.shape;
  return (((B > 1 ? b : 0) * H + (H > 1 ? h : 0)) * I + (I > 1 ? i : 0)) * J + (J > 1 ? j : 0);
}

// The statistics' keys of (query i, key j): the last key that counts.
function lastKey(norm, i, j, Tq, Tk, align) {
  if (norm === "key") return j;
  if (norm === "sequence") return Tk - 1;
  return align === "end" ? i + Tk - Tq : i;
}

// z of one key beneath the statistics of e_0..e_last, and dz -> de, through mean and deviation.
function normalise(e, j, last, norm) {
  if (norm === "none") return { z: e[j], backward: (dz, de) => { de[j] += dz; } };
  const n = Math.max(Math.min(last + 1, e.length), 1);
  const count = Math.max(Math.min(last + 1, e.length), 0);
  let mean = 0, variance = 0;
  for (let l = 0; l < count; l++) mean += e[l];
  mean /= n;                                              // exact for equal energies
  for (let l = 0; l < count; l++) variance += (e[l] - mean) ** 2 / n;
  let rstd, slope;                                        // slope: d rstd / d variance
  if (norm === "sequence") {
    const std = Math.sqrt(variance);
    rstd = 1 / Math.max(std, 1e-8);
    slope = std >= 1e-8 ? -0.5 * rstd ** 3 : 0;
  } else {
    rstd = n > 1 ? 1 / Math.sqrt(variance + 1e-8) : 0;
    slope = -0.5 * rstd ** 3;
  }
  return {
    z: (e[j] - mean) * rstd,
    backward(dz, de) {
      de[j] += dz * rstd;
      const dmean = -dz * rstd, dvariance = dz * (e[j] - mean) * slope;
      for (let l = 0; l < count; l++) de[l] += dmean / n + (2 * (e[l] - mean) * dvariance) / n;
    },
  };
}

function compute(entry, given) {
  const { causal, window, prefix, align, scale, phi, length, norm } = entry.attributes;
  const { q, k, v, dout, bias, allowed, alpha_logits, alpha_ma, energy, alpha, tau } = given;
  const [B, H, Tq, D] = q.shape, [, G, Tk] = k.shape, Dv = v.shape[3];
  const full = [B, H, Tq, Tk];
  const out = zeros(B, H, Tq, Dv), scores = zeros(...full), P = zeros(...full);
  const lse = zeros(B, H, Tq), delta = zeros(B, H, Tq);
  const dq = zeros(...q.shape), dk = zeros(...k.shape), dv = zeros(...v.shape);
  const found = { out, scores, P, lse, delta, dq, dk, dv };
  if (bias) found.dbias = zeros(...bias.shape);
  if (alpha_logits) found.dalpha_logits = zeros(...alpha_logits.shape);
  if (energy) Object.assign(found, { denergy: zeros(B, H, Tk), dalpha: zeros(H), dtau: zeros(H) });

  for (let b = 0; b < B; b++) for (let h = 0; h < H; h++) for (let i = 0; i < Tq; i++) {
    const g = Math.floor(h / (H / G)), p = align === "end" ? i + Tk - Tq : i;
    const row = (b * H + h) * Tq + i, key = (j) => (b * G + g) * Tk + j;
    const e = energy && Array.from(energy.data.subarray((b * H + h) * Tk, (b * H + h + 1) * Tk));
    const seen = [], s = new Float64Array(Tk), gates = [];
    for (let j = 0; j < Tk; j++) {
      let see = !(causal || window !== null) || j <= p || (j < prefix && p < prefix);
      if (window !== null) see = see && j > p - window;
      if (allowed) see = see && allowed.data[at(allowed, b, h, i, j)] !== 0;
      for (let d = 0; d < D; d++) s[j] += q.data[row * D + d] * k.data[key(j) * D + d];
      s[j] *= scale;
      if (bias) s[j] += bias.data[at(bias, b, h, i, j)];
      if (energy) {
        gates[j] = normalise(e, j, lastKey(norm, i, j, Tq, Tk, align), norm);
        gates[j].u = alpha.data[h] * (gates[j].z - tau.data[h]);
        s[j] += logSigmoid(gates[j].u);
      }
      if (see) seen.push(j); else s[j] = -Infinity;
      scores.data[row * Tk + j] = s[j];
    }
    const m = seen.reduce((a, j) => Math.max(a, s[j]), -Infinity);
    const total = m === -Infinity ? 0 : seen.reduce((a, j) => a + Math.exp(s[j] - m), 0);
    lse.data[row] = total === 0 ? -Infinity : m + Math.log(total);
    const weight = (j) => (total === 0 ? 0 : Math.exp(s[j] - m) / total);
    const Pv = new Float64Array(Dv), S = new Float64Array(Dv);
    for (const j of seen) {
      P.data[row * Tk + j] = weight(j);
      for (let d = 0; d < Dv; d++) {
        Pv[d] += weight(j) * v.data[key(j) * Dv + d];
        S[d] += v.data[key(j) * Dv + d];
      }
    }
    let a = 1, beta = 0, slope = 0, n = 1;
    if (alpha_logits) {
      const x = alpha_logits.data[row];
      a = phi === "sigmoid" ? sigmoid(x) : Math.min(Math.max(x / 10 + 0.5, 0), 1);
      slope = phi === "sigmoid" ? a * (1 - a) : Math.abs(x) < 5 ? 0.1 : 0;
      n = length === "total" ? Tk : length === "visible" ? Math.max(seen.length, 1) : length;
      beta = (alpha_ma.data[h] - a) / n;
    }
    let da = 0, dbeta = 0, rowsum = 0;
    for (let d = 0; d < Dv; d++) {
      const upon = dout.data[row * Dv + d];
      out.data[row * Dv + d] = a * Pv[d] + beta * S[d];
      da += upon * Pv[d];
      dbeta += upon * S[d];
    }
    if (alpha_logits) found.dalpha_logits.data[row] = (da - dbeta / n) * slope;
    const dP = seen.map((j) => {
      let sum = 0;
      for (let d = 0; d < Dv; d++) {
        const upon = dout.data[row * Dv + d];
        sum += a * upon * v.data[key(j) * Dv + d];
        dv.data[key(j) * Dv + d] += (a * weight(j) + beta) * upon;
      }
      rowsum += weight(j) * sum;
      return sum;
    });
    delta.data[row] = rowsum;
    seen.forEach((j, at_) => {
      const ds = weight(j) * (dP[at_] - rowsum);
      for (let d = 0; d < D; d++) {
        dq.data[row * D + d] += scale * ds * k.data[key(j) * D + d];
        dk.data[key(j) * D + d] += scale * ds * q.data[row * D + d];
      }
      if (bias) found.dbias.data[at(bias, b, h, i, j)] += ds;
      if (energy) {
        const du = ds * sigmoid(-gates[j].u);
        found.dalpha.data[h] += du * (gates[j].z - tau.data[h]);
        found.dtau.data[h] -= du * alpha.data[h];
        const start = (b * H + h) * Tk;
        gates[j].backward(du * alpha.data[h], found.denergy.data.subarray(start, start + Tk));
      }
    });
  }
  return found;
}

const [folder, answers] = process.argv.slice(2);
if (folder === undefined) {
  console.error("usage: node check_vectors.mjs DIR [ANSWERS.safetensors]");
  process.exit(2);
}
const index = JSON.parse(readFileSync(join(folder, "index.json"), "utf8"));
const tensors = readTensors(join(folder, index.payload));
const results = answers && readTensors(answers);
const counts = { passed: 0, failed: 0 };
for (const entry of index.cases) {
  const mine = ["softmax", "affine", "energy"].includes(entry.mechanism);
  if (entry.result !== "valid" || (!results && !mine)) continue;
  const given = {};
  for (const [name, about] of Object.entries(entry.tensors)) {
    if (["input", "cotangent"].includes(about.role)) {
      given[name] = tensors.get(`${entry.caseId}/${name}`);
    }
  }
  const found = results ? {} : compute(entry, given);
  for (const [name, about] of Object.entries(entry.tensors)) {
    const got = results ? results.get(`${entry.caseId}/${name}`) : found[name];
    if (!about.budgets || (results && !got)) continue;
    const truth = tensors.get(`${entry.caseId}/${name}`);
    const budget = about.budgets[got.precision ?? "float64"];
    if (budget === null) continue;
    let worst = got.data.length === truth.data.length ? 0 : Infinity;
    truth.data.forEach((x, n) => {
      const error = Object.is(x, got.data[n]) || x === got.data[n] ? 0 : Math.abs(x - got.data[n]);
      worst = Math.max(worst, Number.isNaN(error) ? Infinity : error);
    });
    counts[worst <= budget ? "passed" : "failed"] += 1;
    if (!(worst <= budget)) {
      console.log(`${entry.caseId} ${name}: off by ${worst}, allowed ${budget}`);
    }
  }
}
console.log(`tensors: ${counts.passed} passed, ${counts.failed} failed`);
process.exit(counts.failed === 0 && counts.passed > 0 ? 0 : 1);
