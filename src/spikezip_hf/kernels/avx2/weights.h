// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// What weights.h is made of, by AVX2.

#pragma once

enum { TILE = 8 };  // columns and rows of numbers that are made at once

// The quantum of a row.
static float quantum_of(const float *row, const float *factors, int64_t k) {
    int64_t most = 0;
    int32_t most_of_floats = 0;
    for (int64_t i = 0; i < k && factors; i++) {
        double product = (double)row[i] * (double)factors[i];
        int64_t bits;
        memcpy(&bits, &product, sizeof bits);
        bits &= INT64_MAX;
        most = bits > most ? bits : most;
    }
    for (int64_t i = 0; i < k && !factors; i++) {
        int32_t bits;
        memcpy(&bits, row + i, sizeof bits);
        bits &= INT32_MAX;
        most_of_floats = bits > most_of_floats ? bits : most_of_floats;
    }
    return quantum_of_bits(factors ? most : most_of_floats, factors != NULL);
}

static inline __m256 some_floats(const float *from, int64_t n) {
    return _mm256_castsi256_ps(some_bytes(from, n * (int64_t)sizeof *from));
}

// Half of 8 numbers times their factors, in double precision: 48 bits, exact; then times a power of two, rounded to even.
static inline __m128i half_of_products(__m256 numbers, __m256 factors, double times, int half) {
    __m128 a = half ? _mm256_extractf128_ps(numbers, 1) : _mm256_castps256_ps128(numbers);
    __m128 b = half ? _mm256_extractf128_ps(factors, 1) : _mm256_castps256_ps128(factors);
    __m256d product = _mm256_mul_pd(_mm256_cvtps_pd(a), _mm256_cvtps_pd(b));
    return _mm256_cvtpd_epi32(_mm256_mul_pd(product, _mm256_set1_pd(times)));
}

// Up to 8 numbers of a row as multiples of its quantum, rounded to even.
static inline __m256i fixed_point(const float *numbers, const float *factors, int64_t there, float inverse) {
    __m256 x = some_floats(numbers, there);
    if (!factors) return _mm256_cvtps_epi32(_mm256_mul_ps(x, _mm256_set1_ps(inverse)));
    __m256 f = some_floats(factors, there);
    __m128i low = half_of_products(x, f, (double)inverse, 0), high = half_of_products(x, f, (double)inverse, 1);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// Turn over 8 rows of 8 numbers.
static inline void turn_over(__m256i *x) {
    __m256i y[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
        y[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        y[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            x[i + 2 * h] = _mm256_unpacklo_epi64(y[i + h], y[i + 2 + h]);
            x[i + 2 * h + 1] = _mm256_unpackhi_epi64(y[i + h], y[i + 2 + h]);
        }
#pragma GCC unroll 8
    for (int c = 0; c < 4; c++) {  // now lane l of x[4 g + c] has rows 4 g to 4 g + 3 of column 4 l + c
        y[c] = _mm256_permute2x128_si256(x[c], x[4 + c], 0x20);
        y[4 + c] = _mm256_permute2x128_si256(x[c], x[4 + c], 0x31);
    }
    memcpy(x, y, sizeof y);
}

// Put 16 columns of a panel, from `j` on, in their places; each of `wide` numbers, a multiple of 64.
static void pack_columns(const int8_t *columns, int64_t wide, int64_t j, int8_t *panel) {
    for (int64_t c = 0; c < 16; c++) pack_column(columns + c * wide, wide, j + c, panel);
}

// Put numbers of 8 columns from `j` on, 8 k from `i` on, in their places: as rows for events, and as digits: of eight columns
// and two k at a time the lower halves, side by side, then the higher ones.
static inline void put_numbers(const __m256i *numbers, int64_t i, int64_t j, int64_t k, const Held *own) {
    if (own->numbers) {
        int32_t *out = own->numbers + (j / NUMBERS_ROW * padded(k, 16) + i) * NUMBERS_ROW + j % NUMBERS_ROW;
#pragma GCC unroll 8
        for (int q = 0; q < TILE; q++) store(out + q * NUMBERS_ROW, numbers[q]);
    }
    if (!own->digits) return;
    const __m256i carry = _mm256_set1_epi32(0x8000);  // so that lower halves go from -2^15 to 2^15 - 1
    enum { ODD_HALVES = 0xaa };
    int16_t *out = (int16_t *)own->digits + (j / TILE * padded(k, 16) + i) * TILE * 2;
#pragma GCC unroll 4
    for (int q = 0; q < TILE; q += 2) {
        __m256i one = numbers[q], other = numbers[q + 1];
        store(out + q * TILE * 2, _mm256_blend_epi16(one, _mm256_slli_epi32(other, 16), ODD_HALVES));
        one = _mm256_add_epi32(one, carry), other = _mm256_add_epi32(other, carry);
        store(out + q * TILE * 2 + 16, _mm256_blend_epi16(_mm256_srli_epi32(one, 16), other, ODD_HALVES));
    }
}

static void finish_digits(const Held *own, int64_t k) { (void)own, (void)k; }

// Levels of 16 bits, of which 256 are multiplied at a time: of 2^8 products of 2^7 and 2^15 the sum is at most 2^30.
enum { LEVELS_PART = 256, HALVES_ROWS = 4 };

// Up to 4 rows times 8 columns, whose halves are summed up in 32 bits each. Loops are unrolled, so that all of `low` and
// `high` are registers.
static inline __attribute__((always_inline)) void halves(const int16_t *left, const int rows, const int16_t *right,
                                                         int64_t pairs, double *sums) {
    __m256i low[HALVES_ROWS], high[HALVES_ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) low[i] = high[i] = _mm256_setzero_si256();
    for (int64_t q = 0; q < pairs; q++) {
        __m256i lower = load(right + 32 * q), higher = load(right + 32 * q + 16);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            int32_t two;
            memcpy(&two, left + i * LEVELS_PART + 2 * q, sizeof two);
            __m256i levels = _mm256_set1_epi32(two);
            low[i] = _mm256_add_epi32(low[i], _mm256_madd_epi16(levels, lower));
            high[i] = _mm256_add_epi32(high[i], _mm256_madd_epi16(levels, higher));
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
            __m128i l = h ? _mm256_extracti128_si256(low[i], 1) : _mm256_castsi256_si128(low[i]);
            __m128i u = h ? _mm256_extracti128_si256(high[i], 1) : _mm256_castsi256_si128(high[i]);
            __m256d sum = _mm256_fmadd_pd(_mm256_cvtepi32_pd(u), _mm256_set1_pd(65536.0), _mm256_cvtepi32_pd(l));
            double *out = sums + i * PANEL + 4 * h;
            _mm256_storeu_pd(out, _mm256_add_pd(_mm256_loadu_pd(out), sum));
        }
}

static void some_halves(const int16_t *left, int rows, const int16_t *right, int64_t pairs, double *sums) {
    switch (rows) {
        case 1: halves(left, 1, right, pairs, sums); break;
        case 2: halves(left, 2, right, pairs, sums); break;
        case 3: halves(left, 3, right, pairs, sums); break;
        default: halves(left, HALVES_ROWS, right, pairs, sums);
    }
}

// Up to 256 levels in 16 bits, zeros behind up to a multiple of 32.
static inline void widen(const int8_t *levels, int64_t n, int16_t *out) {
    for (int64_t i = 0; i < n; i += 32) {
        __m256i some = some_bytes(levels + i, n - i);
        store(out + i, _mm256_cvtepi8_epi16(_mm256_castsi256_si128(some)));
        store(out + i + 16, _mm256_cvtepi8_epi16(_mm256_extracti128_si256(some, 1)));
    }
}

// Whole products with the numbers of a panel: `whole_block` in fixed point. Levels are as they are, not shifted.
static void digits_block(const Held *own, const int8_t *left, const uint8_t *shifted, int64_t first, int rows, int64_t k,
                         int8_t *spare, int32_t *product, double *sums) {
    (void)shifted, (void)spare, (void)product;
    int16_t levels[BLOCK_ROWS * LEVELS_PART];
    memset(sums, 0, (size_t)(rows * PANEL) * sizeof *sums);
    for (int64_t from = 0; from < k; from += LEVELS_PART) {
        int64_t some = least(k - from, LEVELS_PART);
        for (int r = 0; r < rows; r++) widen(left + (first + r) * k + from, some, levels + r * LEVELS_PART);
        for (int64_t j = 0; j < PANEL; j += TILE)  // outside: these columns and the levels stay in the first cache
            for (int r = 0; r < rows; r += HALVES_ROWS)
                some_halves(levels + r * LEVELS_PART, (int)least(rows - r, HALVES_ROWS),
                            (int16_t *)own->digits + (j / TILE * padded(k, 16) + from) * TILE * 2, (some + 1) / 2,
                            sums + r * PANEL + j);
    }
}

// Make the numbers of 8 rows of a weight, from `row` on, which are columns of a panel from `j` on: 8 k from `i` on.
static inline void make_numbers(const Weight *weight, int64_t row, int64_t i, int64_t j, const Held *own) {
    const float *factors = weight->factors ? weight->factors + i : NULL;
    __m256i numbers[TILE];
    for (int64_t c = 0; c < TILE; c++)
        numbers[c] = row + c < weight->n ? fixed_point(weight->numbers + (row + c) * weight->k + i, factors, weight->k - i,
                                                       1.0f / own->quanta[j + c])
                                         : _mm256_setzero_si256();
    turn_over(numbers);
    put_numbers(numbers, i, j, weight->k, own);
}

// The rows of a panel one behind the other, as `add_rows_of_bytes` takes them. Four at a time: the bytes of each are put side
// by side, eight columns of the panel at a time, and rows turned over.
static void rows_for_events(const int8_t *panel, int64_t k, uint8_t *rows) {
    const __m256i in_fours = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                              0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const __m256i in_rows = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7), shift = _mm256_set1_epi8((char)128);
    for (int64_t i = 0; i < padded(k, 64); i += 4)
        for (int h = 0; h < 2; h++) {  // half of the columns
            __m256i eight[4], pairs[4];
            for (int v = 0; v < 4; v++) {
                __m256i shifted = _mm256_xor_si256(load(panel + i * PANEL + 128 * h + 32 * v), shift);
                eight[v] = _mm256_permutevar8x32_epi32(_mm256_shuffle_epi8(shifted, in_fours), in_rows);
            }
            for (int v = 0; v < 2; v++) {
                pairs[2 * v] = _mm256_unpacklo_epi64(eight[2 * v], eight[2 * v + 1]);      // rows 0 and 2
                pairs[2 * v + 1] = _mm256_unpackhi_epi64(eight[2 * v], eight[2 * v + 1]);  // 1 and 3
            }
            uint8_t *out = rows + i * PANEL + 32 * h;
            store(out, _mm256_permute2x128_si256(pairs[0], pairs[2], 0x20));
            store(out + PANEL, _mm256_permute2x128_si256(pairs[1], pairs[3], 0x20));
            store(out + 2 * PANEL, _mm256_permute2x128_si256(pairs[0], pairs[2], 0x31));
            store(out + 3 * PANEL, _mm256_permute2x128_si256(pairs[1], pairs[3], 0x31));
        }
}
