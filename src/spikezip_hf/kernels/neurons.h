// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// Quantizer and tracker of ST-BIF+ neurons.

#pragma once

#include <math.h>
#include <stdint.h>

#include "instructions.h"

typedef struct {
    const float *scale, *bias, *threshold, *inverse;  // one for each feature; scale and bias only of integers
    float low, high;                                  // bounds of a level
    int divide;                                       // whether 1/s is of no use: it would be a denormal number, or none
} Quantizer;

// What levels are of: floats, or whole numbers, x = integer * scale + bias, int32, or float64 that are multiples of quanta.
enum { OF_FLOATS, OF_INTEGERS, OF_SUMS };

// Levels of `n` currents from feature `c` on: clamp(floor(x / s + 1/2)), the division correctly rounded. Sets `undefined` where
// one is not a number.
static inline __attribute__((always_inline)) void plain_levels_of(const void *current, int kind, const float *quanta, int64_t n,
                                                                  const Quantizer *given, int64_t c, int8_t *levels,
                                                                  int *undefined) {
    const Quantizer q = *given;
    int nan = 0;
    for (int64_t i = 0; i < n; i++) {
        float x = kind == OF_FLOATS     ? ((const float *)current)[i]
                  : kind == OF_INTEGERS ? (float)((const int32_t *)current)[i]
                                        : (float)((const double *)current)[i] * quanta[i];
        if (kind) x = x * q.scale[c + i] + q.bias[c + i];
        nan |= x != x;
        float level = floorf(x / q.threshold[c + i] + 0.5f);
        level = level < q.high ? level : q.high;
        levels[i] = (int8_t)(int32_t)(level > q.low ? level : q.low);
    }
    *undefined |= nan;
}

// One step of `n` trackers: S += clip(Q - S, -k, k), where |Q - S| is at least `fewest`. Returns the spikes fired; `*pending`
// says if any is still to come.
static inline int64_t plain_track(const int8_t *target, int8_t *tracer, int64_t n, int8_t k, int8_t fewest,
                                  int *pending) {
    int64_t spikes = 0;
    uint8_t left = 0;
    for (int64_t start = 0; start < n; start += 128) {  // sums of 128 fit in 16 bits
        int64_t end = start + 128 < n ? start + 128 : n;
        int16_t sum = 0;
        for (int64_t i = start; i < end; i++) {
            int8_t s = tracer[i];
            int8_t step = (int8_t)(target[i] - s);
            step = step >= fewest || step <= -fewest ? step : 0;
            step = step < k ? step : k;
            step = step > (int8_t)-k ? step : (int8_t)-k;
            s = (int8_t)(s + step);
            sum = (int16_t)(sum + (step < 0 ? -step : step));
            left |= (uint8_t)(target[i] ^ s);
            tracer[i] = s;
        }
        spikes += sum;
    }
    *pending = left != 0;
    return spikes;
}

// Multiplying by 1/s takes a quarter of the time and tells all but those next to a whole number: |x / s| is below 2^8 where
// it matters, so the product is off by less than 2^-14, and floor is that of the division wherever 2^-13 or more
// lie between it and a whole number.
static inline int inverse_is_of_use(float threshold) { return threshold <= 0x1p125f && 1.0f / threshold < INFINITY; }

#if WITH_AVX512
#include "avx512/neurons.h"
#elif WITH_AVX2
#include "avx2/neurons.h"
#else
#define levels_of plain_levels_of
#define track plain_track
#endif

static inline void levels_of_floats(const float *in, int64_t n, const Quantizer *q, int64_t c, int8_t *levels,
                                    int *undefined) {
    levels_of(in, OF_FLOATS, NULL, n, q, c, levels, undefined);
}

static inline void levels_of_integers(const int32_t *in, int64_t n, const Quantizer *q, int64_t c, int8_t *levels,
                                      int *undefined) {
    levels_of(in, OF_INTEGERS, NULL, n, q, c, levels, undefined);
}

static inline void levels_of_sums(const double *in, const float *quanta, int64_t n, const Quantizer *q, int64_t c,
                                  int8_t *levels, int *undefined) {
    levels_of(in, OF_SUMS, quanta, n, q, c, levels, undefined);
}
