// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// What events.h is made of, by AVX2.

#pragma once

// Up to 32 levels of a row; 0 before the first row.
static inline __m256i some_levels(const int8_t *row, int64_t n) { return some_bytes(row, row ? n : 0); }

static int64_t count_events(const int8_t *now, const int8_t *before, int64_t k) {
    const __m256i shift = _mm256_set1_epi8((char)128);  // unsigned, in the same order
    __m256i sum = _mm256_setzero_si256();
    for (int64_t i = 0; i < k; i += 32) {
        __m256i a = _mm256_xor_si256(some_levels(now + i, k - i), shift);
        __m256i b = _mm256_xor_si256(some_levels(before ? before + i : NULL, k - i), shift);
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(a, b));
    }
    int64_t parts[4];
    store(parts, sum);
    return parts[0] + parts[1] + parts[2] + parts[3];
}

// Write the names of those of 32 features that are in a mask, from `first` on.
static inline void write_names(uint32_t mask, int64_t first, uint16_t *out) {
    for (; mask; mask &= mask - 1) *out++ = (uint16_t)(first + __builtin_ctz(mask));
}

// Of each mask of eight features, which are in it: from the first place on, and up to the last.
static uint8_t from_first[256][8], up_to_last[256][8];

static __attribute__((constructor)) void list_masks(void) {
    for (int mask = 0; mask < 256; mask++) {
        int count = __builtin_popcount((unsigned)mask), found = 0;
        for (int i = 0; i < 8; i++)
            if (mask >> i & 1) from_first[mask][found] = up_to_last[mask][8 - count + found] = (uint8_t)i, found++;
    }
}

static inline void write_eight(const uint8_t *places, int64_t first, uint16_t *out) {
    __m128i names = _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)places));
    _mm_storeu_si128((__m128i *)out, _mm_add_epi16(names, _mm_set1_epi16((int16_t)first)));
}

// List the features whose levels rise, from `out` on, and those whose levels fall, up to `end`: each as often as it does. If
// there is room for one more, `to` falls, which is nobody. Returns how many rise.
static int64_t list_events(const int8_t *now, const int8_t *before, int64_t from, int64_t to, uint16_t *out,
                           uint16_t *end) {
    uint16_t *next = out;
    for (int64_t i = from; i < to; i += 32) {
        __m256i a = some_levels(now + i, to - i), b = some_levels(before ? before + i : NULL, to - i);
        __m256i rising = _mm256_cmpgt_epi8(a, b), falling = _mm256_cmpgt_epi8(b, a);
        uint32_t rise = (uint32_t)_mm256_movemask_epi8(rising), fall = (uint32_t)_mm256_movemask_epi8(falling);
        while (rise | fall) {
            int rises = __builtin_popcount(rise), falls = __builtin_popcount(fall);
            if (end - next >= rises + falls + 8) {  // room for what eight at a time write too much
                uint16_t *up = next, *down = end;
                for (int64_t e = 0; e < 32; e += 8) {
                    uint32_t eight = rise >> e & 0xff, more = fall >> e & 0xff;
                    write_eight(from_first[eight], i + e, up), up += __builtin_popcount(eight);
                    write_eight(up_to_last[more], i + e, down - 8), down -= __builtin_popcount(more);
                }
            } else {
                write_names(rise, i, next);
                write_names(fall, i, end - falls);
            }
            next += rises, end -= falls;
            b = _mm256_add_epi8(_mm256_sub_epi8(b, rising), falling);  // one up, one down: a mask is -1
            rising = _mm256_cmpgt_epi8(a, b), falling = _mm256_cmpgt_epi8(b, a);
            rise = (uint32_t)_mm256_movemask_epi8(rising), fall = (uint32_t)_mm256_movemask_epi8(falling);
        }
    }
    if (next < end) *next = (uint16_t)to;
    return next - out;
}

// The share of its levels that may be events for these to be a shorter way than a whole product.
static double share_of_events(int fixed) { return fixed ? 0.6 : 0.5; }

// A row's levels, if all go on as they moved between the two rows before. Returns whether these are bytes.
static int gone_on(const int8_t *before, const int8_t *earlier, int64_t k, int8_t *out) {
    __m256i as_bytes = _mm256_set1_epi8(-1);
    for (int64_t i = 0; i < k; i += 32) {
        __m256i b = some_levels(before + i, k - i), c = some_levels(earlier ? earlier + i : NULL, k - i);
        __m256i move = _mm256_sub_epi8(b, c), next = _mm256_add_epi8(b, move);
        as_bytes = _mm256_and_si256(as_bytes, _mm256_cmpeq_epi8(move, _mm256_subs_epi8(b, c)));
        as_bytes = _mm256_and_si256(as_bytes, _mm256_cmpeq_epi8(next, _mm256_adds_epi8(b, move)));
        store_some(out + i, next, k - i);
    }
    return _mm256_movemask_epi8(as_bytes) == -1;
}

// Make 64 sums of a row: of those of the row before (`last`), if all go on also of those of the row ahead of it, which are
// there now, and of rows of a weight of bytes: added if their features rise, taken off if these fall, two at a time, an even
// number in all. Bytes are shifted up by 128, so that they can be multiplied by signs.
static void add_rows_of_bytes(const uint16_t *features, int64_t rises, int64_t count, const uint8_t *rows,
                              const int32_t *last, int go_on, int32_t *sums) {
    const __m256i shift = _mm256_set1_epi32((int32_t)(128 * (count - 2 * rises)));
    for (int v = 0; v < 8; v++) {
        __m256i sum = load(last + 8 * v);
        if (go_on) sum = _mm256_sub_epi32(_mm256_add_epi32(sum, sum), load(sums + 8 * v));
        store(sums + 8 * v, _mm256_add_epi32(sum, shift));
    }
    for (int64_t i = 0; i < count / 2; i += PAIRS) {
        int64_t pairs = least(count / 2 - i, PAIRS);
        const int32_t *sign = signs_of_pairs(rises, i);
        const uint16_t *of_pair = features + 2 * i;
        __m256i part[4];  // of eight columns and the eight behind the next eight: so do bytes of two rows lie side by side
        for (int v = 0; v < 4; v++) part[v] = _mm256_setzero_si256();
#pragma GCC unroll 2
        for (int64_t j = 0; j < pairs; j++, of_pair += 2) {
            const uint8_t *one = rows + (size_t)of_pair[0] * PANEL, *other = rows + (size_t)of_pair[1] * PANEL;
            __m256i both = _mm256_set1_epi32(sign[j]);
#pragma GCC unroll 2
            for (int h = 0; h < 2; h++) {
                __m256i x = load(one + 32 * h), y = load(other + 32 * h);
                __m256i low = _mm256_maddubs_epi16(_mm256_unpacklo_epi8(x, y), both);
                __m256i high = _mm256_maddubs_epi16(_mm256_unpackhi_epi8(x, y), both);
                part[2 * h] = _mm256_add_epi16(part[2 * h], low), part[2 * h + 1] = _mm256_add_epi16(part[2 * h + 1], high);
            }
        }
#pragma GCC unroll 8
        for (int v = 0; v < 8; v++) {
            __m256i of = part[v / 4 * 2 + v % 2];
            __m128i eight = v / 2 % 2 ? _mm256_extracti128_si256(of, 1) : _mm256_castsi256_si128(of);
            store(sums + 8 * v, _mm256_add_epi32(load(sums + 8 * v), _mm256_cvtepi16_epi32(eight)));
        }
    }
}

// The same of a weight in fixed point, one row at a time, any number of them, and 32 sums. Numbers are up to 2^26: 31 of
// them fit in 32 bits.
static void add_rows_of_numbers(const uint16_t *features, int64_t rises, int64_t count, const int32_t *rows,
                                const double *last, int go_on, double *sums) {
    enum { SOME = 31 };
    for (int v = 0; v < 8; v++) {
        __m256d sum = _mm256_loadu_pd(last + 4 * v);
        if (go_on) sum = _mm256_sub_pd(_mm256_add_pd(sum, sum), _mm256_loadu_pd(sums + 4 * v));
        _mm256_storeu_pd(sums + 4 * v, sum);
    }
    for (int64_t i = 0; i < count; i += SOME) {
        int64_t end = least(count, i + SOME), middle = rises < i ? i : least(rises, end);
        __m256i part[4];
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) part[v] = _mm256_setzero_si256();
        for (int64_t e = i; e < middle; e++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                part[v] = _mm256_add_epi32(part[v], load(rows + (size_t)features[e] * NUMBERS_ROW + 8 * v));
        for (int64_t e = middle; e < end; e++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                part[v] = _mm256_sub_epi32(part[v], load(rows + (size_t)features[e] * NUMBERS_ROW + 8 * v));
#pragma GCC unroll 8
        for (int v = 0; v < 8; v++) {
            __m128i four = v % 2 ? _mm256_extracti128_si256(part[v / 2], 1) : _mm256_castsi256_si128(part[v / 2]);
            double *sum = sums + 4 * v;
            _mm256_storeu_pd(sum, _mm256_add_pd(_mm256_loadu_pd(sum), _mm256_cvtepi32_pd(four)));
        }
    }
}
