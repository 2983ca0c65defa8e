/* The smallest golden vectors of %s attention. Written by: python -m minattn vectors header FILE */
#ifndef MINATTN_VECTORS_H
#define MINATTN_VECTORS_H
#include <math.h>

typedef struct {
    const char *name;          /* given q k v dout allowed, due out dq dk dv scores P lse delta */
    int shape[4];
    const double *data;        /* row-major; allowed is 0 or 1 */
    double bound64, bound32;   /* the largest error that a double or a float may have; -1: given */
} vector_tensor;

typedef struct {
    const char *id;
    int causal, window, prefix, align_start;   /* window 0: none; query i is at i + Tk - Tq, or i */
    double scale;
    int n_tensors;
    const vector_tensor *tensors;
} vector_case;
