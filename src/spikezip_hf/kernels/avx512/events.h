// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// What events.h is made of, by AVX-512.

#pragma once

// Up to 64 levels of a row; 0 before the first row.
static inline __m512i some_levels(const int8_t *row, __mmask64 there) {
    return row ? _mm512_maskz_loadu_epi8(there, row) : _mm512_setzero_si512();
}

static int64_t count_events(const int8_t *now, const int8_t *before, int64_t k) {
    const __m512i shift = _mm512_set1_epi8((char)128);  // unsigned, in the same order
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < k; i += 64) {
        __m512i a = _mm512_xor_si512(some_levels(now + i, first_of_64(k - i)), shift);
        __m512i b = _mm512_xor_si512(some_levels(before ? before + i : NULL, first_of_64(k - i)), shift);
        __m512i by = _mm512_sub_epi8(_mm512_max_epu8(a, b), _mm512_min_epu8(a, b));
        sum = _mm512_add_epi64(sum, _mm512_sad_epu8(by, _mm512_setzero_si512()));
    }
    return _mm512_reduce_add_epi64(sum);
}

// Write the names of those of 64 features that are in a mask, from `first` on.
static inline void write_names(__mmask64 mask, int64_t first, uint16_t *out) {
#ifdef __AVX512VBMI2__
    static const int8_t places[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                      22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
                                      44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    __m512i named = _mm512_maskz_compress_epi8(mask, _mm512_loadu_si512(places)), from = _mm512_set1_epi16((int16_t)first);
    int count = __builtin_popcountll(mask);
    __m512i names = _mm512_add_epi16(_mm512_cvtepu8_epi16(_mm512_castsi512_si256(named)), from);
    _mm512_mask_storeu_epi16(out, (__mmask32)first_of_64(count), names);
    if (count <= 32) return;
    names = _mm512_add_epi16(_mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(named, 1)), from);
    _mm512_mask_storeu_epi16(out + 32, (__mmask32)first_of_64(count - 32), names);
#else
    for (; mask; mask &= mask - 1) *out++ = (uint16_t)(first + __builtin_ctzll(mask));
#endif
}

// List the features whose levels rise, from `out` on, and those whose levels fall, up to `end`: each as often as it does. If
// there is room for one more, `to` falls, which is nobody. Returns how many rise.
static int64_t list_events(const int8_t *now, const int8_t *before, int64_t from, int64_t to, uint16_t *out,
                           uint16_t *end) {
    const __m512i one = _mm512_set1_epi8(1);
    uint16_t *next = out;
    for (int64_t i = from; i < to; i += 64) {
        __m512i a = some_levels(now + i, first_of_64(to - i));
        __m512i b = some_levels(before ? before + i : NULL, first_of_64(to - i));
        __mmask64 rise = _mm512_cmpgt_epi8_mask(a, b), fall = _mm512_cmplt_epi8_mask(a, b);
        while (rise | fall) {
            write_names(rise, i, next);
            next += __builtin_popcountll(rise);
            end -= __builtin_popcountll(fall);
            write_names(fall, i, end);
            b = _mm512_mask_sub_epi8(_mm512_mask_add_epi8(b, rise, b, one), fall, b, one);
            rise = _mm512_cmpgt_epi8_mask(a, b), fall = _mm512_cmplt_epi8_mask(a, b);
        }
    }
    if (next < end) *next = (uint16_t)to;
    return next - out;
}

// The share of its levels that may be events for these to be a shorter way than a whole product.
static double share_of_events(int fixed) {
    if (tiles_allowed) return fixed ? 0.25 : 0.06;
    return fixed ? 0.6 : 0.5;
}

// A row's levels, if all go on as they moved between the two rows before. Returns whether these are bytes.
static int gone_on(const int8_t *before, const int8_t *earlier, int64_t k, int8_t *out) {
    __mmask64 beyond = 0;
    for (int64_t i = 0; i < k; i += 64) {
        __mmask64 there = first_of_64(k - i);
        __m512i b = some_levels(before + i, there), c = some_levels(earlier ? earlier + i : NULL, there);
        __m512i move = _mm512_sub_epi8(b, c), next = _mm512_add_epi8(b, move);
        beyond |= _mm512_cmpneq_epi8_mask(move, _mm512_subs_epi8(b, c));
        beyond |= _mm512_cmpneq_epi8_mask(next, _mm512_adds_epi8(b, move));
        _mm512_mask_storeu_epi8(out + i, there, next);
    }
    return !beyond;
}

// Add up rows of 32 numbers up to 2^26, (k, 32), or take them off: so few that 32 bits are enough.
static inline __attribute__((always_inline)) void some_rows_of_numbers(const uint16_t *features, int64_t from, int64_t to,
                                                                       const int32_t *rows, const int fall, __m512i *sum) {
    for (int64_t i = from; i < to; i++) {
        const int32_t *row = rows + (size_t)features[i] * NUMBERS_ROW;
        __m512i left = _mm512_loadu_si512(row), right = _mm512_loadu_si512(row + 16);
        sum[0] = fall ? _mm512_sub_epi32(sum[0], left) : _mm512_add_epi32(sum[0], left);
        sum[1] = fall ? _mm512_sub_epi32(sum[1], right) : _mm512_add_epi32(sum[1], right);
    }
}

static inline __m256i half_of(__m512i x, int half) {
    return half ? _mm512_extracti64x4_epi64(x, 1) : _mm512_castsi512_si256(x);
}

// Make 64 sums of a row: of those of the row before (`last`), if all go on also of those of the row ahead of it, which are
// there now, and of rows of a weight of bytes: added if their features rise, taken off if these fall, two at a time, an even
// number in all. Bytes are shifted up by 128, so that they can be multiplied by signs. In a row of the weight eight columns
// of the first half of the panel lie ahead of eight of the second: then of two rows, their bytes put side by side, each
// half of the sums is in order.
static void add_rows_of_bytes(const uint16_t *features, int64_t rises, int64_t count, const uint8_t *rows,
                              const int32_t *last, int go_on, int32_t *sums) {
    const __m512i shift = _mm512_set1_epi32((int32_t)(128 * (count - 2 * rises)));
    __m512i sum[4];
    for (int v = 0; v < 4; v++) {
        sum[v] = _mm512_loadu_si512(last + 16 * v);
        if (go_on) sum[v] = _mm512_sub_epi32(_mm512_add_epi32(sum[v], sum[v]), _mm512_loadu_si512(sums + 16 * v));
        sum[v] = _mm512_add_epi32(sum[v], shift);
    }
    for (int64_t i = 0; i < count / 2; i += PAIRS) {
        int64_t pairs = least(count / 2 - i, PAIRS);
        const int32_t *sign = signs_of_pairs(rises, i);
        const uint16_t *of_pair = features + 2 * i;
        __m512i low = _mm512_setzero_si512(), high = _mm512_setzero_si512();
#pragma GCC unroll 2
        for (int64_t j = 0; j < pairs; j++, of_pair += 2) {
            __m512i one = _mm512_loadu_si512(rows + (size_t)of_pair[0] * PANEL);
            __m512i other = _mm512_loadu_si512(rows + (size_t)of_pair[1] * PANEL);
            __m512i both = _mm512_set1_epi32(sign[j]);
            low = _mm512_add_epi16(low, _mm512_maddubs_epi16(_mm512_unpacklo_epi8(one, other), both));
            high = _mm512_add_epi16(high, _mm512_maddubs_epi16(_mm512_unpackhi_epi8(one, other), both));
        }
        for (int v = 0; v < 4; v++) sum[v] = _mm512_add_epi32(sum[v], _mm512_cvtepi16_epi32(half_of(v / 2 ? high : low, v % 2)));
    }
    for (int v = 0; v < 4; v++) _mm512_storeu_si512(sums + 16 * v, sum[v]);
}

// The same of a weight in fixed point, one row at a time, any number of them, and 32 sums.
static void add_rows_of_numbers(const uint16_t *features, int64_t rises, int64_t count, const int32_t *rows,
                                const double *last, int go_on, double *sums) {
    enum { SOME = 31 };
    __m512d sum[4];
    for (int v = 0; v < 4; v++) {
        sum[v] = _mm512_loadu_pd(last + 8 * v);
        if (go_on) sum[v] = _mm512_sub_pd(_mm512_add_pd(sum[v], sum[v]), _mm512_loadu_pd(sums + 8 * v));
    }
    for (int64_t i = 0; i < count; i += SOME) {
        int64_t end = least(count, i + SOME), middle = rises < i ? i : least(rises, end);
        __m512i part[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        some_rows_of_numbers(features, i, middle, rows, 0, part);
        some_rows_of_numbers(features, middle, end, rows, 1, part);
        for (int v = 0; v < 4; v++) sum[v] = _mm512_add_pd(sum[v], _mm512_cvtepi32_pd(half_of(part[v / 2], v % 2)));
    }
    for (int v = 0; v < 4; v++) _mm512_storeu_pd(sums + 8 * v, sum[v]);
}
