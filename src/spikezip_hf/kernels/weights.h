// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// Products of levels with a weight (n, k), a panel of 64 of its rows at a time: of bytes, which lie in panels already,
// or of float32. The latter are multiplied as fixed-point numbers, whole multiples of a row's own quantum, a power of two
// of which 2^26 are beyond its largest weight. Such a number is four bytes, so a product is four products of bytes, or
// additions of whole numbers for events; exact either way. Numbers are made of weights while they are multiplied: a panel
// is used many times, and reading the weights is what takes time.

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
    const int32_t *correction;  // and what to take off; or
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
    int8_t *digits;       // four panels of bytes, each worth 2^8 of the one before,
    int32_t *correction;  // and what to take off,
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

static inline __mmask16 first_of_16(int64_t n) { return n < 16 ? (__mmask16)(n > 0 ? (1u << n) - 1 : 0) : 0xffff; }

// Half of 16 numbers times their factors, in double precision: 48 bits, exact.
static inline __m512d half_of_products(__m512 numbers, __m512 factors, int half) {
    __m256 a = half ? _mm512_extractf32x8_ps(numbers, 1) : _mm512_castps512_ps256(numbers);
    __m256 b = half ? _mm512_extractf32x8_ps(factors, 1) : _mm512_castps512_ps256(factors);
    return _mm512_mul_pd(_mm512_cvtps_pd(a), _mm512_cvtps_pd(b));
}

// The quantum of a row: a power of two and an ordinary number; NaN if a number of the row is none, or beyond float32.
static float quantum_of(const float *row, const float *factors, int64_t k) {
    enum { LEAST = -100 };
    __m512i most = _mm512_setzero_si512();  // of numbers without their sign, whose bits are in the order of their size
    for (int64_t i = 0; i < k; i += 16) {
        __m512 x = _mm512_maskz_loadu_ps(first_of_16(k - i), row + i);
        if (!factors) {
            most = _mm512_max_epi32(most, _mm512_castps_si512(_mm512_abs_ps(x)));
            continue;
        }
        __m512 f = _mm512_maskz_loadu_ps(first_of_16(k - i), factors + i);
        for (int half = 0; half < 2; half++)
            most = _mm512_max_epi64(most, _mm512_castpd_si512(_mm512_abs_pd(half_of_products(x, f, half))));
    }
    int64_t bits = factors ? _mm512_reduce_max_epi64(most) : _mm512_reduce_max_epi32(most);
    int64_t exponent = factors ? (bits >> 52) - 1022 : (bits >> 23) - 126;
    if (exponent > 128) return NAN;
    return ldexpf(1.0f, (int)(exponent > LEAST ? exponent : LEAST) - FIXED_BITS);
}

// Up to 16 numbers of a row as multiples of its quantum, rounded to even.
static inline __m512i fixed_point(const float *numbers, const float *factors, __mmask16 there, float inverse) {
    __m512 x = _mm512_maskz_loadu_ps(there, numbers);
    if (!factors) return _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(inverse)));
    __m512 f = _mm512_maskz_loadu_ps(there, factors);
    __m512d times = _mm512_set1_pd((double)inverse);
    __m256i low = _mm512_cvtpd_epi32(_mm512_mul_pd(half_of_products(x, f, 0), times));
    __m256i high = _mm512_cvtpd_epi32(_mm512_mul_pd(half_of_products(x, f, 1), times));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

// Turn over 16 rows of 16 numbers.
static inline void turn_over(__m512i *x) {
    __m512i y[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
        y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            x[i + 2 * h] = _mm512_unpacklo_epi64(y[i + h], y[i + 2 + h]);
            x[i + 2 * h + 1] = _mm512_unpackhi_epi64(y[i + h], y[i + 2 + h]);
        }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {  // now lane l of x[4 g + c] has rows 4 g to 4 g + 3 of column 4 l + c
        __m512i a = _mm512_shuffle_i32x4(x[c], x[4 + c], 0x88), b = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0x88);
        __m512i d = _mm512_shuffle_i32x4(x[c], x[4 + c], 0xdd), e = _mm512_shuffle_i32x4(x[8 + c], x[12 + c], 0xdd);
        y[c] = _mm512_shuffle_i32x4(a, b, 0x88), y[8 + c] = _mm512_shuffle_i32x4(a, b, 0xdd);
        y[4 + c] = _mm512_shuffle_i32x4(d, e, 0x88), y[12 + c] = _mm512_shuffle_i32x4(d, e, 0xdd);
    }
    memcpy(x, y, sizeof y);
}

// Put 16 columns of a panel, from `j` on, in their places; each of `wide` numbers, a multiple of 64.
static void pack_columns(const int8_t *columns, int64_t wide, int64_t j, int8_t *panel) {
    for (int64_t i = 0; i < wide; i += 64) {
        __m512i fours[16];
#pragma GCC unroll 16
        for (int c = 0; c < 16; c++) fours[c] = _mm512_load_si512(columns + c * wide + i);
        turn_over(fours);
#pragma GCC unroll 16
        for (int q = 0; q < 16; q++) _mm512_storeu_si512(panel + ((i / 4 + q) * PANEL + j) * 4, fours[q]);
    }
}

// Put numbers of 16 columns from `j` on, 16 k from `i` on, in their places.
static inline void put_numbers(const __m512i *numbers, int64_t i, int64_t j, int64_t k, const Held *own) {
    if (own->numbers) {
        int32_t *out = own->numbers + (j / NUMBERS_ROW * padded(k, 16) + i) * NUMBERS_ROW + j % NUMBERS_ROW;
#pragma GCC unroll 16
        for (int q = 0; q < 16; q++) _mm512_store_si512(out + q * NUMBERS_ROW, numbers[q]);
    }
    if (!own->digits) return;
    const __m512i carry = _mm512_set1_epi32(0x808080);  // so that bytes go from -128 to 127
    const __mmask64 odd_bytes = 0xaaaaaaaaaaaaaaaa;
    const __mmask32 odd_pairs = 0xaaaaaaaa;
#pragma GCC unroll 4
    for (int q = 0; q < 16; q += 4) {
        __m512i x[4], digits[4];
        for (int r = 0; r < 4; r++) x[r] = _mm512_xor_si512(_mm512_add_epi32(numbers[q + r], carry), carry);
        __m512i even = _mm512_mask_mov_epi8(x[0], odd_bytes, _mm512_slli_epi16(x[1], 8));  // bytes 0 and 2 of both
        __m512i odd = _mm512_mask_mov_epi8(_mm512_srli_epi16(x[0], 8), odd_bytes, x[1]);    // bytes 1 and 3
        __m512i more_even = _mm512_mask_mov_epi8(x[2], odd_bytes, _mm512_slli_epi16(x[3], 8));
        __m512i more_odd = _mm512_mask_mov_epi8(_mm512_srli_epi16(x[2], 8), odd_bytes, x[3]);
        digits[0] = _mm512_mask_mov_epi16(even, odd_pairs, _mm512_slli_epi32(more_even, 16));
        digits[1] = _mm512_mask_mov_epi16(odd, odd_pairs, _mm512_slli_epi32(more_odd, 16));
        digits[2] = _mm512_mask_mov_epi16(_mm512_srli_epi32(even, 16), odd_pairs, more_even);
        digits[3] = _mm512_mask_mov_epi16(_mm512_srli_epi32(odd, 16), odd_pairs, more_odd);
        for (int digit = 0; digit < DIGITS; digit++)
            _mm512_store_si512(own->digits + digit * panel_bytes(k) + (i + q) * PANEL + j * 4, digits[digit]);
    }
}

// Make the numbers of a panel in fixed point.
static void hold_numbers(const Weight *weight, int64_t panel, Held *own) {
    int64_t k = weight->k, first = panel * PANEL;
    for (int64_t j = 0; j < PANEL; j++)
        own->quanta[j] = first + j < weight->n ? quantum_of(weight->numbers + (first + j) * k, weight->factors, k) : 1.0f;
    for (int64_t j = 0; j < PANEL; j += 16)
        for (int64_t i = 0; i < k; i += 16) {
            __m512i numbers[16];
            for (int64_t c = 0; c < 16; c++) {
                int64_t row = first + j + c;
                const float *factors = weight->factors ? weight->factors + i : NULL;
                numbers[c] = row < weight->n ? fixed_point(weight->numbers + row * k + i, factors, first_of_16(k - i),
                                                           1.0f / own->quanta[j + c])
                                             : _mm512_setzero_si512();
            }
            turn_over(numbers);
            put_numbers(numbers, i, j, k, own);
        }
    for (int digit = 0; own->digits && digit < DIGITS; digit++) {
        int8_t *out = own->digits + digit * panel_bytes(k);
        memset(out + padded(k, 16) * PANEL, 0, (size_t)(panel_bytes(k) - padded(k, 16) * PANEL));
        if (!tiles_allowed) correct(out, k, own->correction + digit * PANEL);
    }
}

// Take up a panel of a weight, unless it is there.
static void hold(const Weight *weight, int64_t panel, Held *own) {
    if (own->panel == panel) return;
    own->panel = panel;
    if (weight->numbers) hold_numbers(weight, panel, own);
    if (!own->bytes) return;
    // Four rows of k at a time: the bytes of each are put side by side, quarter by quarter of the panel, and rows turned over.
    const __m512i in_fours = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i in_rows = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i shift = _mm512_set1_epi8((char)128);
    const int8_t *in = weight->panels + panel * panel_bytes(weight->k);
    for (int64_t i = 0; i < padded(weight->k, 64); i += 4) {
        __m512i quarter[4], eighths[4];
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            __m512i shifted = _mm512_xor_si512(_mm512_loadu_si512(in + i * PANEL + 64 * q), shift);
            quarter[q] = _mm512_shuffle_epi8(shifted, in_fours);
            quarter[q] = _mm512_permutexvar_epi32(in_rows, quarter[q]);  // lane r has row i + r
        }
#pragma GCC unroll 2
        for (int q = 0; q < 2; q++) {
            eighths[2 * q] = _mm512_unpacklo_epi64(quarter[q], quarter[q + 2]);
            eighths[2 * q + 1] = _mm512_unpackhi_epi64(quarter[q], quarter[q + 2]);
        }
        turn_over_lanes(eighths, (int8_t *)own->bytes + i * PANEL);
    }
    memset(own->bytes + weight->k * PANEL, 128, PANEL);
}

// Whole products of `rows` rows of levels, at most 32, from row `first` on, with the panel that is held: to `product` of
// bytes, to `sums` of fixed point, (32, 64) both. `shifted`: the rows as vectors multiply them, or NULL.
static void whole_block(const Weight *weight, const Held *own, const int8_t *left, const uint8_t *shifted, int64_t first,
                        int rows, int8_t *spare, int32_t *product, double *sums) {
    int64_t k = weight->k;
    if (!weight->numbers) {
        weight_block(left, shifted, first, rows, k, weight->panels + own->panel * panel_bytes(k),
                     weight->correction + own->panel * PANEL, spare, product);
        return;
    }
    for (int digit = DIGITS - 1; digit >= 0; digit--) {
        weight_block(left, shifted, first, rows, k, own->digits + digit * panel_bytes(k), own->correction + digit * PANEL,
                     spare, product);
        if (digit == DIGITS - 1) memset(sums, 0, (size_t)(rows * PANEL) * sizeof *sums);
        for (int i = 0; i < rows * PANEL; i++) sums[i] = sums[i] * 256.0 + (double)product[i];
    }
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
