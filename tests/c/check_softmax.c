/* Plain softmax attention in C, forward and backward, checked against golden vectors.

       python -m minattn vectors header vectors.h
       cc -std=c99 -O2 -I. check_softmax.c -lm && ./a.out          (-DREAL=float for single precision)

   One loop per sum, nothing clever: what a kernel looks like before somebody makes it fast. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "vectors.h"

#ifndef REAL
#define REAL double
#endif
typedef struct { int B, H, Tq, Tk, D, Dv; } sizes;

static const vector_tensor *find(const vector_case *c, const char *name)
{
    for (int i = 0; i < c->n_tensors; i++)
        if (strcmp(c->tensors[i].name, name) == 0) return &c->tensors[i];
    return NULL;
}

static int count(const vector_tensor *t) { return t->shape[0] * t->shape[1] * t->shape[2] * t->shape[3]; }

static REAL *numbers(const vector_case *c, const char *name, int zero)
{
    const vector_tensor *t = find(c, name);
    REAL *x = malloc(sizeof(REAL) * count(t));
    for (int i = 0; i < count(t); i++) x[i] = zero ? 0 : (REAL)t->data[i];
    return x;
}

/* which key may query i see? */
static int sees(const vector_case *c, sizes n, int b, int h, int i, int j)
{
    const vector_tensor *allowed = find(c, "allowed");
    int p = c->align_start ? i : i + n.Tk - n.Tq;
    if ((c->causal || c->window) && j > p && !(j < c->prefix && p < c->prefix)) return 0;
    if (c->window && j <= p - c->window) return 0;
    return !allowed || allowed->data[((b * n.H + h) * n.Tq + i) * n.Tk + j] != 0;
}

/* one row of scores, -infinity where hidden */
static void score(const vector_case *c, sizes n, int b, int h, int i, const REAL *q, const REAL *k, REAL *s)
{
    const vector_tensor *bias = find(c, "bias");
    for (int j = 0; j < n.Tk; j++) {
        s[j] = 0;
        for (int d = 0; d < n.D; d++) s[j] += q[i * n.D + d] * k[j * n.D + d];
        s[j] *= (REAL)c->scale;
        if (bias) {                                     /* a size of 1 stands for all */
            const int *m = bias->shape;
            int at = ((b % m[0] * m[1] + h % m[1]) * m[2] + i % m[2]) * m[3] + j % m[3];
            s[j] += (REAL)bias->data[at];
        }
        if (!sees(c, n, b, h, i, j)) s[j] = -INFINITY;
    }
}

/* one head: q (Tq, D), k (Tk, D), v (Tk, Dv) and dout (Tq, Dv) -> out, lse and the gradients, which it adds to */
static void head(const vector_case *c, sizes n, int b, int h, const REAL *q, const REAL *k, const REAL *v,
                 const REAL *dout, REAL *out, REAL *lse, REAL *dq, REAL *dk, REAL *dv)
{
    REAL *P = malloc(sizeof(REAL) * n.Tk), *dP = malloc(sizeof(REAL) * n.Tk);
    for (int i = 0; i < n.Tq; i++) {
        REAL max = -INFINITY, sum = 0, delta = 0;
        score(c, n, b, h, i, q, k, P);
        for (int j = 0; j < n.Tk; j++) if (P[j] > max) max = P[j];
        lse[i] = -INFINITY;
        if (max == -INFINITY) continue;                 /* sees nothing: gives nothing, and no gradient */
        for (int j = 0; j < n.Tk; j++) sum += P[j] = (REAL)exp(P[j] - max);
        lse[i] = max + (REAL)log(sum);
        for (int j = 0; j < n.Tk; j++) {                /* P = softmax(s); out = P v; dP = dout v^T */
            P[j] /= sum;
            dP[j] = 0;
            for (int d = 0; d < n.Dv; d++) {
                out[i * n.Dv + d] += P[j] * v[j * n.Dv + d];
                dP[j] += dout[i * n.Dv + d] * v[j * n.Dv + d];
                dv[j * n.Dv + d] += P[j] * dout[i * n.Dv + d];
            }
            delta += P[j] * dP[j];
        }
        for (int j = 0; j < n.Tk; j++) {                /* ds = P (dP - delta); s = scale q k^T */
            REAL ds = P[j] * (dP[j] - delta) * (REAL)c->scale;
            for (int d = 0; d < n.D; d++) {
                dq[i * n.D + d] += ds * k[j * n.D + d];
                dk[j * n.D + d] += ds * q[i * n.D + d];
            }
        }
    }
    free(P);
    free(dP);
}

static int compare(const vector_case *c, const char *name, const REAL *x)
{
    const vector_tensor *t = find(c, name);
    double worst = 0, bound = sizeof(REAL) == sizeof(double) ? t->bound64 : t->bound32;
    for (int i = 0; i < count(t); i++) {
        double error = x[i] == t->data[i] ? 0 : fabs((double)x[i] - t->data[i]);
        if (!(error <= worst)) worst = error == error ? error : INFINITY;     /* NaN too */
    }
    printf("%-4s %-44s %-4s error %.1e, at most %.1e\n", worst <= bound ? "ok" : "BAD", c->id, name, worst, bound);
    return !(worst <= bound);
}

int main(void)
{
    static const char *names[] = {"q", "k", "v", "dout", "out", "lse", "dq", "dk", "dv"};
    int bad = 0;
    for (int i = 0; i < N_VECTOR_CASES; i++) {
        const vector_case *c = &vector_cases[i];
        const int *q = find(c, "q")->shape, *v = find(c, "v")->shape;
        sizes n = {q[0], q[1], q[2], v[2], q[3], v[3]};
        REAL *x[9];
        for (int t = 0; t < 9; t++) x[t] = numbers(c, names[t], t > 3);
        for (int g = 0; g < n.B * n.H; g++) {
            int Q = g * n.Tq * n.D, K = g * n.Tk * n.D, V = g * n.Tk * n.Dv, O = g * n.Tq * n.Dv;
            head(c, n, g / n.H, g % n.H, x[0] + Q, x[1] + K, x[2] + V, x[3] + O, x[4] + O, x[5] + g * n.Tq,
                 x[6] + Q, x[7] + K, x[8] + V);
        }
        for (int t = 4; t < 9; t++) bad += compare(c, names[t], x[t]);
        for (int t = 0; t < 9; t++) free(x[t]);
    }
    printf("%d of %d tensors are wrong\n", bad, 5 * N_VECTOR_CASES);
    return bad != 0;
}
