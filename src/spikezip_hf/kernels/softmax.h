// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// Softmax of whole numbers, as `integer_softmax` in models/kernels.py: a table tells the exponential, a whole number, of a
// score's distance to the largest one, so that their sum is exact. Scores lie as products.h leaves them.

#pragma once

#include "products.h"

#if HAVE_PRODUCTS
enum { HIDDEN = -(1 << 30) };  // a score that does not count

// Probabilities of `n` scores, which lie in panels, `stride` from one to the next; `keys`: which of them count, or NULL
// for all. `table` has `entries` numbers, of which the last is 0. Writes up to a multiple of 16.
static void softmax(const int32_t *scores, int64_t stride, int64_t n, const uint8_t *keys, const int32_t *table,
                    int64_t entries, float *probabilities);

#if WITH_AVX512
#include "avx512/softmax.h"
#else
#include "avx2/softmax.h"
#endif
#endif
