// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// What weights.h is made of, by AVX-512.

#pragma once

enum { TILE = 16 };  // columns and rows of numbers that are made at once

static inline __mmask16 first_of_16(int64_t n) { return n < 16 ? (__mmask16)(n > 0 ? (1u << n) - 1 : 0) : 0xffff; }

// Half of 16 numbers times their factors, in double precision: 48 bits, exact.
static inline __m512d half_of_products(__m512 numbers, __m512 factors, int half) {
    __m256 a = half ? _mm512_extractf32x8_ps(numbers, 1) : _mm512_castps512_ps256(numbers);
    __m256 b = half ? _mm512_extractf32x8_ps(factors, 1) : _mm512_castps512_ps256(factors);
    return _mm512_mul_pd(_mm512_cvtps_pd(a), _mm512_cvtps_pd(b));
}

// The quantum of a row.
static float quantum_of(const float *row, const float *factors, int64_t k) {
    __m512i most = _mm512_setzero_si512();
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
    return quantum_of_bits(factors ? _mm512_reduce_max_epi64(most) : _mm512_reduce_max_epi32(most), factors != NULL);
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

// Put numbers of 16 columns from `j` on, 16 k from `i` on, in their places: as rows for events, and as digits, four panels
// of bytes, each worth 2^8 of the one before.
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

// Zeros behind the digits of a panel, and what multiplying them adds to its columns.
static void finish_digits(const Held *own, int64_t k) {
    for (int digit = 0; digit < DIGITS; digit++) {
        int8_t *out = own->digits + digit * panel_bytes(k);
        memset(out + padded(k, 16) * PANEL, 0, (size_t)(panel_bytes(k) - padded(k, 16) * PANEL));
        if (!tiles_allowed) correct(out, k, own->correction + digit * PANEL);
    }
}

// Whole products with the numbers of a panel: `whole_block` in fixed point.
static void digits_block(const Held *own, const int8_t *left, const uint8_t *shifted, int64_t first, int rows, int64_t k,
                         int8_t *spare, int32_t *product, double *sums) {
    for (int digit = DIGITS - 1; digit >= 0; digit--) {
        weight_block(left, shifted, first, rows, k, own->digits + digit * panel_bytes(k), own->correction + digit * PANEL,
                     spare, product);
        if (digit == DIGITS - 1) memset(sums, 0, (size_t)(rows * PANEL) * sizeof *sums);
        for (int i = 0; i < rows * PANEL; i++) sums[i] = sums[i] * 256.0 + (double)product[i];
    }
}

// Make the numbers of 16 rows of a weight, from `row` on, which are columns of a panel from `j` on: 16 k from `i` on.
static inline void make_numbers(const Weight *weight, int64_t row, int64_t i, int64_t j, const Held *own) {
    const float *factors = weight->factors ? weight->factors + i : NULL;
    int64_t k = weight->k;
    __m512i numbers[TILE];
    for (int64_t c = 0; c < TILE; c++)
        numbers[c] = row + c < weight->n ? fixed_point(weight->numbers + (row + c) * k + i, factors, first_of_16(k - i),
                                                       1.0f / own->quanta[j + c])
                                         : _mm512_setzero_si512();
    turn_over(numbers);
    put_numbers(numbers, i, j, k, own);
}

// The rows of a panel one behind the other, as `add_rows_of_bytes` takes them. Four at a time: the bytes of each are put side
// by side, quarter by quarter of the panel, and rows turned over.
static void rows_for_events(const int8_t *panel, int64_t k, uint8_t *rows) {
    const __m512i in_fours = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i in_rows = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m512i shift = _mm512_set1_epi8((char)128);
    for (int64_t i = 0; i < padded(k, 64); i += 4) {
        __m512i quarter[4], eighths[4];
#pragma GCC unroll 4
        for (int q = 0; q < 4; q++) {
            __m512i shifted = _mm512_xor_si512(_mm512_loadu_si512(panel + i * PANEL + 64 * q), shift);
            quarter[q] = _mm512_shuffle_epi8(shifted, in_fours);
            quarter[q] = _mm512_permutexvar_epi32(in_rows, quarter[q]);  // lane r has row i + r
        }
#pragma GCC unroll 2
        for (int q = 0; q < 2; q++) {
            eighths[2 * q] = _mm512_unpacklo_epi64(quarter[q], quarter[q + 2]);
            eighths[2 * q + 1] = _mm512_unpackhi_epi64(quarter[q], quarter[q + 2]);
        }
        turn_over_lanes(eighths, (int8_t *)rows + i * PANEL);
    }
}
