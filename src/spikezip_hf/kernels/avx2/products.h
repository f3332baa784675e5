// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// What products.h is made of, by AVX2. It multiplies unsigned bytes by signed ones and adds up pairs of products in 16 bits,
// where they must fit. Levels are few: shifted up until none of their row is negative, those of 4 bits are at most 15, so that
// eight such sums fit, and those of 5 bits at most 31, four.

#pragma once

enum { tiles_allowed = 0 };
static int use_tiles(int wanted) { return (void)wanted, 0; }
static void begin_products(void) {}
static void end_products(void) {}
static void tiles_block(const int8_t *left, int64_t stride, int rows, int64_t k, const int8_t *panel, int8_t *spare,
                        int32_t *out) {
    (void)left, (void)stride, (void)rows, (void)k, (void)panel, (void)spare, (void)out;
}

static inline __m256i load(const void *from) { return _mm256_loadu_si256(from); }
static inline void store(void *to, __m256i x) { _mm256_storeu_si256(to, x); }

// Up to 32 bytes, with zeros behind.
static inline __m256i some_bytes(const void *from, int64_t n) {
    if (n >= 32) return load(from);
    int8_t bytes[32] = {0};
    if (n > 0) memcpy(bytes, from, (size_t)n);
    return load(bytes);
}

static inline void store_some(void *to, __m256i x, int64_t n) {
    if (n >= 32) {
        store(to, x);
        return;
    }
    int8_t bytes[32];
    store(bytes, x);
    memcpy(to, bytes, (size_t)n);
}

// The sum of each column of a panel: so much is added to it for each that levels are shifted up.
static void correct(const int8_t *panel, int64_t k, int32_t *correction) {
    for (int64_t j = 0; j < PANEL; j += 8) {
        __m256i sum = _mm256_setzero_si256();
        for (int64_t q = 0; q < padded(k, 64) / 4; q++) {
            __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), load(panel + (q * PANEL + j) * 4));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
        }
        store(correction + j, sum);
    }
}

// A row of levels, shifted up by the lowest of them and 0, which stands ahead of it, as does the highest.
typedef struct {
    int32_t lowest, highest;
    uint8_t levels[];
} Shifted;

static inline int64_t shifted_bytes(int64_t k) { return padded(k + 32 + (int64_t)sizeof(Shifted), 64); }

// The largest of 32 bytes.
static inline int32_t most_of_bytes(__m256i x) {
    const __m128i shift = _mm_set1_epi8((char)128);  // unsigned, in the same order
    __m128i most = _mm_xor_si128(_mm_max_epi8(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)), shift);
    most = _mm_xor_si128(most, _mm_set1_epi8(-1));  // the least of pairs, and of those an instruction finds
    most = _mm_minpos_epu16(_mm_min_epu8(most, _mm_srli_epi16(most, 8)));
    return (int8_t)(~_mm_cvtsi128_si32(most) ^ 128);
}

// Whether rows are shifted for whole products with a weight: not for one in fixed point, see weights.h.
static int shifts_rows(int fixed) { return !fixed; }

static void shift_row(const int8_t *left, int64_t k, uint8_t *out) {
    Shifted *row = (Shifted *)out;
    int64_t whole = k / 32 * 32, i;
    __m256i last = some_bytes(left + whole, k - whole), lowest = last, highest = last;
    for (i = 0; i < whole; i += 32) {
        __m256i some = load(left + i);
        lowest = _mm256_min_epi8(lowest, some), highest = _mm256_max_epi8(highest, some);
    }
    row->lowest = -most_of_bytes(_mm256_sub_epi8(_mm256_set1_epi8(-1), lowest)) - 1;  // ~x is -x - 1
    row->highest = most_of_bytes(highest);
    __m256i shift = _mm256_set1_epi8((char)row->lowest);
    for (i = 0; i < whole; i += 32) store(row->levels + i, _mm256_sub_epi8(load(left + i), shift));
    store(row->levels + whole, _mm256_sub_epi8(last, shift));  // where the levels end, a panel has zeros
}

// Whether `n` levels are all 0.
static int silent(const int8_t *levels, int64_t n) {
    for (int64_t i = 0; i < n; i += 32) {
        __m256i some = some_bytes(levels + i, n - i);
        if (!_mm256_testz_si256(some, some)) return 0;
    }
    return 1;
}

enum { VECTOR_ROWS = 4 };

static inline __m256i four_levels(const uint8_t *levels) {
    int32_t four;
    memcpy(&four, levels, 4);
    return _mm256_set1_epi32(four);
}

// Up to 4 rows times 16 columns of a panel: `terms` sums of pairs at once in 16 bits. Loops are unrolled, so that all of
// `parts` are registers.
static inline __attribute__((always_inline)) void vectors(const uint8_t *left, int64_t stride, const int rows,
                                                          const int8_t *panel, int64_t quads, int64_t terms,
                                                          int32_t *out) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t from = 0; from < quads; from += terms) {
        __m256i parts[VECTOR_ROWS][2];
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) parts[i][0] = parts[i][1] = _mm256_setzero_si256();
        for (int64_t q = from; q < least(quads, from + terms); q++) {
            __m256i first = load(panel + q * PANEL * 4), second = load(panel + q * PANEL * 4 + 32);
#pragma GCC unroll 8
            for (int i = 0; i < rows; i++) {
                __m256i four = four_levels(left + i * stride + 4 * q);
                parts[i][0] = _mm256_add_epi16(parts[i][0], _mm256_maddubs_epi16(four, first));
                parts[i][1] = _mm256_add_epi16(parts[i][1], _mm256_maddubs_epi16(four, second));
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
            for (int v = 0; v < 2; v++) {
                int32_t *sums = out + i * PANEL + 8 * v;
                store(sums, _mm256_add_epi32(load(sums), _mm256_madd_epi16(parts[i][v], ones)));
            }
    }
}

static void some_vectors(const uint8_t *left, int64_t stride, int rows, const int8_t *panel, int64_t quads, int64_t terms,
                         int32_t *out) {
    switch (rows) {
        case 1: vectors(left, stride, 1, panel, quads, terms, out); break;
        case 2: vectors(left, stride, 2, panel, quads, terms, out); break;
        case 3: vectors(left, stride, 3, panel, quads, terms, out); break;
        default: vectors(left, stride, VECTOR_ROWS, panel, quads, terms, out);
    }
}

// A row times 16 columns, of levels so far apart that pairs of products do not fit in 16 bits: half of each, and its rest.
static void far_apart(const uint8_t *levels, const int8_t *panel, int64_t quads, int32_t *out) {
    const __m256i ones = _mm256_set1_epi16(1), lower_bits = _mm256_set1_epi8(0x7f);
    for (int64_t q = 0; q < quads; q++) {
        __m256i four = four_levels(levels + 4 * q);
        __m256i half = _mm256_and_si256(_mm256_srli_epi16(four, 1), lower_bits), rest = _mm256_sub_epi8(four, half);
        for (int v = 0; v < 2; v++) {
            __m256i right = load(panel + q * PANEL * 4 + 32 * v);
            __m256i sum = _mm256_madd_epi16(_mm256_maddubs_epi16(half, right), ones);
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(rest, right), ones));
            store(out + 8 * v, _mm256_add_epi32(load(out + 8 * v), sum));
        }
    }
}

// `rows` shifted rows times a panel, to `out` (rows, 64).
static void shifted_block(const uint8_t *shifted, int rows, int64_t k, const int8_t *panel, const int32_t *correction,
                          int32_t *out) {
    enum { ROOM = 128 };  // -2 * 128 * 128 is the largest sum of a pair in 16 bits: of levels in a range of 128
    int64_t stride = shifted_bytes(k), quads = (k + 3) / 4;
    int range[BLOCK_ROWS];
    for (int r = 0; r < rows; r++) {
        const Shifted *row = (const Shifted *)(shifted + r * stride);
        range[r] = row->highest - row->lowest;
        for (int j = 0; j < PANEL; j++) out[r * PANEL + j] = row->lowest * correction[j];
    }
    for (int j = 0; j < PANEL; j += 16)  // outside: these columns stay in the first cache
        for (int r = 0; r < rows; r += VECTOR_ROWS) {
            int some = (int)least(rows - r, VECTOR_ROWS), widest = 1;
            for (int i = 0; i < some; i++) widest = range[r + i] > widest ? range[r + i] : widest;
            const uint8_t *levels = shifted + r * stride + sizeof(Shifted);
            if (widest <= ROOM)
                some_vectors(levels, stride, some, panel + 4 * j, quads, ROOM / widest,
                             out + r * PANEL + j);
            else
                for (int i = 0; i < some; i++)
                    far_apart(levels + i * stride, panel + 4 * j, quads, out + (r + i) * PANEL + j);
        }
}

// Put rows of a panel, at most 64 columns, in their places: four, of which there are so many, zeros for the others.
static void pack_four_rows(const int8_t *rows, int64_t stride, int64_t there, int64_t columns, int8_t *panel) {
    for (int64_t j = 0; j < PANEL; j += 32, panel += 128) {
        __m256i row[4], pairs[4], fours[4];
        for (int i = 0; i < 4; i++) row[i] = some_bytes(rows + i * stride + j, i < there ? columns - j : 0);
        for (int i = 0; i < 2; i++) {  // bytes, then pairs of them, side by side: within 16 columns
            pairs[2 * i] = _mm256_unpacklo_epi8(row[2 * i], row[2 * i + 1]);
            pairs[2 * i + 1] = _mm256_unpackhi_epi8(row[2 * i], row[2 * i + 1]);
        }
        for (int i = 0; i < 2; i++) {
            fours[2 * i] = _mm256_unpacklo_epi16(pairs[i], pairs[2 + i]);
            fours[2 * i + 1] = _mm256_unpackhi_epi16(pairs[i], pairs[2 + i]);
        }
        for (int i = 0; i < 2; i++) {
            store(panel + 32 * i, _mm256_permute2x128_si256(fours[2 * i], fours[2 * i + 1], 0x20));
            store(panel + 64 + 32 * i, _mm256_permute2x128_si256(fours[2 * i], fours[2 * i + 1], 0x31));
        }
    }
}
