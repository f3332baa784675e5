// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// Products of levels with a weight (n, k), a panel of 64 of its rows at a time: of bytes, which lie in panels already,
// or of float32. The latter are multiplied as fixed-point numbers, whole multiples of a row's own quantum, a power of two
// of which 2^26 are beyond its largest weight. Such a number is four bytes, so a product is four products of bytes, by AVX2
// two of halves of 16 bits, or additions of whole numbers for events; exact either way. Numbers are made of weights while
// they are multiplied: a panel is used many times, and reading the weights is what takes time.

#pragma once

#include <math.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "events.h"

enum { FIXED_BITS = 26, DIGITS = 4 };

typedef struct {
    int64_t n, k;
    const int8_t *panels;       // of bytes: see products.h,
    const int32_t *correction;  // and what `correct` says of them; or
    const float *numbers;       // (n, k) float32,
    const float *factors;       // (k) that they are multiplied with, or NULL
} Weight;

#if HAVE_PRODUCTS
// How many blocks of a product in fixed point a thread takes up at once: all of a panel, whose numbers it has to make, if
// panels are enough.
static int64_t blocks_of_a_thread(int64_t panels, int64_t blocks) {
    int threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    return panels >= 2 * threads ? blocks : 1;
}

// What a thread has of a weight: one panel, in the forms that its products take.
typedef struct {
    int64_t panel;        // which one; -1 for none yet
    float quanta[PANEL];  // of fixed point,
    int8_t *digits;       // for whole products, as `put_numbers` puts them,
    int32_t *correction;  // and what `correct` says of them if they are bytes that are shifted,
    int32_t *numbers;     // or rows for events, two times (k, 32);
    uint8_t *bytes;       // of bytes: rows for events, as `add_rows_of_bytes` takes them, (k, 64), and nobody's
} Held;

static void let_go(Held *own) {
    free(own->digits), free(own->correction), free(own->bytes), free(own->numbers);
}

// Memory for a panel of `weight`, as whole products and as events need it. Returns whether it is lacking.
static int make_room(const Weight *weight, int whole, int events, Held *own) {
    int fixed = weight->numbers != NULL, lacking = 0;
    *own = (Held){.panel = -1};
    if (fixed && whole) {
        own->digits = aligned_alloc(64, (size_t)(DIGITS * panel_bytes(weight->k)));
        own->correction = aligned_alloc(64, DIGITS * PANEL * sizeof *own->correction);
        lacking |= !own->digits || !own->correction;
    }
    if (fixed && events)
        lacking |= !(own->numbers = aligned_alloc(64, (size_t)(padded(weight->k, 16) * PANEL) * sizeof *own->numbers));
    if (!fixed && events) lacking |= !(own->bytes = aligned_alloc(64, (size_t)panel_bytes(weight->k + 1)));
    return lacking;
}

// The quantum of a row: a power of two and an ordinary number; NaN if a number of the row is none, or beyond float32. `bits`:
// the largest of those of its numbers without their signs, in whose order these are; of float64 or of float32.
static inline float quantum_of_bits(int64_t bits, int of_float64) {
    enum { LEAST = -100 };
    int64_t exponent = of_float64 ? (bits >> 52) - 1022 : (bits >> 23) - 126;
    if (exponent > 128) return NAN;
    return ldexpf(1.0f, (int)(exponent > LEAST ? exponent : LEAST) - FIXED_BITS);
}

#if WITH_AVX512
#include "avx512/weights.h"
#else
#include "avx2/weights.h"
#endif

// Make the numbers of a panel in fixed point.
static void hold_numbers(const Weight *weight, int64_t panel, Held *own) {
    int64_t k = weight->k, first = panel * PANEL;
    for (int64_t j = 0; j < PANEL; j++)
        own->quanta[j] = first + j < weight->n ? quantum_of(weight->numbers + (first + j) * k, weight->factors, k) : 1.0f;
    for (int64_t j = 0; j < PANEL; j += TILE)
        for (int64_t i = 0; i < padded(k, 16); i += TILE) make_numbers(weight, first + j, i, j, own);
    if (own->digits) finish_digits(own, k);
}

// Take up a panel of a weight, unless it is there.
static void hold(const Weight *weight, int64_t panel, Held *own) {
    if (own->panel == panel) return;
    own->panel = panel;
    if (weight->numbers) hold_numbers(weight, panel, own);
    if (!own->bytes) return;
    rows_for_events(weight->panels + panel * panel_bytes(weight->k), weight->k, own->bytes);
    memset(own->bytes + weight->k * PANEL, 128, PANEL);
}

// Whole products of `rows` rows of levels, at most 32, from row `first` on, with the panel that is held: to `product` of
// bytes, to `sums` of fixed point, (32, 64) both. `shifted`: the rows as vectors multiply them, or NULL.
static void whole_block(const Weight *weight, const Held *own, const int8_t *left, const uint8_t *shifted, int64_t first,
                        int rows, int8_t *spare, int32_t *product, double *sums) {
    int64_t k = weight->k;
    if (weight->numbers)
        digits_block(own, left, shifted, first, rows, k, spare, product, sums);
    else
        weight_block(left, shifted, first, rows, k, weight->panels + own->panel * panel_bytes(k),
                     weight->correction + own->panel * PANEL, spare, product);
}

// The sums of a step's row, for `rows` places from `first` on, by its events: of those of the row before (`last`, `last_sums`)
// and, if all go on, of the one ahead of it, in whose place they come.
static void add_events(const Weight *weight, const Held *own, const Events *events, int64_t at, int64_t first,
                       int64_t rows, int64_t places, const int32_t *last, int32_t *product, const double *last_sums,
                       double *sums) {
    const int64_t *start = events->start + at * (places * events->parts + 1);
    const int32_t *rises = events->rises + at * places * events->parts;
    int64_t halves = weight->numbers ? PANEL / NUMBERS_ROW : 1;
    int go_on = events->way[at] == GOES_ON;
    for (int64_t half = 0; half < halves; half++)
        for (int64_t part = 0; part < events->parts; part++)  // outside: its rows of the weight stay in the first cache
            for (int64_t r = 0; r < rows; r++) {
                int64_t i = (first + r) * events->parts + part, count = start[i + 1] - start[i];
                const uint16_t *features = events->features + start[i];
                if (weight->numbers) {
                    int64_t place = r * PANEL + half * NUMBERS_ROW;
                    add_rows_of_numbers(features, rises[i], count, own->numbers + half * padded(weight->k, 16) * NUMBERS_ROW,
                                        part ? sums + place : last_sums + place, go_on && !part, sums + place);
                } else {
                    add_rows_of_bytes(features, rises[i], count, own->bytes, last + r * PANEL, go_on, product + r * PANEL);
                }
            }
}
#endif
