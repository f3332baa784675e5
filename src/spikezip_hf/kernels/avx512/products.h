// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// What products.h is made of, by tiles (AMX) or by AVX-512 VNNI.

#pragma once

#if defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAVE_TILES 1
#else
#define HAVE_TILES 0
#endif

static int tiles_allowed = 0;

static inline __mmask64 first_of_64(int64_t n) { return n < 64 ? ((__mmask64)1 << n) - 1 : ~(__mmask64)0; }

// Ask the system for tile registers, for the whole process, if they are wanted. Returns whether they are used.
static int use_tiles(int wanted) {
    int allowed = 0;
    (void)wanted;
#if HAVE_TILES
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 };
    if (wanted) allowed = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#endif
    return tiles_allowed = allowed;  // at once: another thread may be multiplying
}

// Whether rows are shifted for whole products with a weight.
static int shifts_rows(int fixed) { return (void)fixed, !tiles_allowed; }

// Each thread says before its products what tiles are: eight of 16 rows of 64 bytes.
static void begin_products(void) {
#if HAVE_TILES
    if (!tiles_allowed) return;
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } shape = {.palette = 1};
    for (int i = 0; i < 8; i++) shape.bytes[i] = 64, shape.rows[i] = 16;
    _tile_loadconfig(&shape);
#endif
}

static void end_products(void) {
#if HAVE_TILES
    if (tiles_allowed) _tile_release();
#endif
}

// What multiplying unsigned bytes, shifted up by 128, adds to each column of a panel, taken off. Tiles need none of it.
static void correct(const int8_t *panel, int64_t k, int32_t *correction) {
    const __m512i shift = _mm512_set1_epi8((char)128);
    for (int64_t j = 0; j < PANEL; j += 16) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t q = 0; q < padded(k, 64) / 4; q++)
            sum = _mm512_dpbusd_epi32(sum, shift, _mm512_loadu_si512(panel + (q * PANEL + j) * 4));
        _mm512_storeu_si512(correction + j, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
    }
}

#if HAVE_TILES
// 16 or 32 rows times half a panel.
static inline __attribute__((always_inline)) void tiles(const int8_t *left, int64_t stride, int both,
                                                        const int8_t *panel, int64_t k, int32_t *out) {
    _tile_zero(0);
    _tile_zero(1);
    if (both) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t i = 0; i < k; i += 64) {
        _tile_loadd(4, left + i, stride);
        if (both) _tile_loadd(5, left + 16 * stride + i, stride);
        _tile_loadd(6, panel + i * PANEL, 4 * PANEL);
        _tile_dpbssd(0, 4, 6);
        if (both) _tile_dpbssd(2, 5, 6);
        _tile_loadd(7, panel + i * PANEL + 64, 4 * PANEL);
        _tile_dpbssd(1, 4, 7);
        if (both) _tile_dpbssd(3, 5, 7);
    }
    _tile_stored(0, out, 4 * PANEL);
    _tile_stored(1, out + 16, 4 * PANEL);
    if (both) {
        _tile_stored(2, out + 16 * PANEL, 4 * PANEL);
        _tile_stored(3, out + 16 * PANEL + 16, 4 * PANEL);
    }
}
#endif

// `rows` rows, at most 32, times a panel, to `out` (32, 64). `spare`: memory for 32 rows of k up to a multiple of 64.
static void tiles_block(const int8_t *left, int64_t stride, int rows, int64_t k, const int8_t *panel, int8_t *spare,
                        int32_t *out) {
#if HAVE_TILES
    int64_t wide = padded(k, 64);
    if (wide != k || rows % 16) {  // the last rows, or the last columns of the left side: with zeros around them
        for (int i = 0; i < rows; i++) {
            memcpy(spare + i * wide, left + i * stride, (size_t)k);
            memset(spare + i * wide + k, 0, (size_t)(wide - k));
        }
        left = spare, stride = wide;
    }
    for (int half = 0; half < 2; half++)
        if (rows > 16)
            tiles(left, stride, 1, panel + 128 * half, wide, out + 32 * half);
        else
            tiles(left, stride, 0, panel + 128 * half, wide, out + 32 * half);
#else
    (void)left, (void)stride, (void)rows, (void)k, (void)panel, (void)spare, (void)out;
#endif
}

enum { VECTOR_ROWS = 6 };

// Up to 6 rows, shifted up by 128, times a panel. Loops are unrolled, so that all of `sums` are registers.
static inline __attribute__((always_inline)) void vectors(const uint8_t *left, int64_t stride, const int rows,
                                                          const int8_t *panel, int64_t k, const int32_t *correction,
                                                          int32_t *out) {
    __m512i sums[VECTOR_ROWS][4];
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int v = 0; v < 4; v++) sums[i][v] = _mm512_loadu_si512(correction + 16 * v);
    for (int64_t q = 0; q < k / 4; q++) {
        __m512i right[4];
#pragma GCC unroll 8
        for (int v = 0; v < 4; v++) right[v] = _mm512_loadu_si512(panel + (q * PANEL + 16 * v) * 4);
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++) {
            int32_t four;
            memcpy(&four, left + i * stride + 4 * q, 4);
            __m512i shifted = _mm512_set1_epi32(four);
#pragma GCC unroll 8
            for (int v = 0; v < 4; v++) sums[i][v] = _mm512_dpbusd_epi32(sums[i][v], shifted, right[v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
        for (int v = 0; v < 4; v++) _mm512_storeu_si512(out + i * PANEL + 16 * v, sums[i][v]);
}

static void some_vectors(const uint8_t *left, int64_t stride, int rows, const int8_t *panel, int64_t k,
                         const int32_t *correction, int32_t *out) {
    switch (rows) {
        case 1: vectors(left, stride, 1, panel, k, correction, out); break;
        case 2: vectors(left, stride, 2, panel, k, correction, out); break;
        case 3: vectors(left, stride, 3, panel, k, correction, out); break;
        case 4: vectors(left, stride, 4, panel, k, correction, out); break;
        case 5: vectors(left, stride, 5, panel, k, correction, out); break;
        default: vectors(left, stride, VECTOR_ROWS, panel, k, correction, out);
    }
}

static inline int64_t shifted_bytes(int64_t k) { return padded(k, 64); }

// A row of levels as vectors multiply them, unsigned, shifted up by 128; k up to a multiple of 64, where panels have zeros.
static inline void shift_row(const int8_t *left, int64_t k, uint8_t *shifted) {
    for (int64_t j = 0; j < k; j += 64) {
        __m512i bytes = _mm512_maskz_loadu_epi8(first_of_64(k - j), left + j);
        _mm512_storeu_si512(shifted + j, _mm512_xor_si512(bytes, _mm512_set1_epi8((char)128)));
    }
}

// `rows` shifted rows times a panel, to `out` (rows, 64).
static void shifted_block(const uint8_t *shifted, int rows, int64_t k, const int8_t *panel, const int32_t *correction,
                          int32_t *out) {
    int64_t wide = padded(k, 64);
    for (int i = 0; i < rows; i += VECTOR_ROWS)
        some_vectors(shifted + i * wide, wide, (int)least(rows - i, VECTOR_ROWS), panel, wide, correction, out + i * PANEL);
}

// Whether `n` levels are all 0.
static int silent(const int8_t *levels, int64_t n) {
    __mmask64 any = 0;
    for (int64_t i = 0; i < n && !any; i += 64) {
        __m512i some = _mm512_maskz_loadu_epi8(first_of_64(n - i), levels + i);
        any = _mm512_test_epi8_mask(some, some);
    }
    return !any;
}

// Store four vectors of four lanes turned over: the first lanes of all, then the second ones.
static inline void turn_over_lanes(const __m512i *x, int8_t *out) {
    __m512i low = _mm512_shuffle_i32x4(x[0], x[1], 0x44), high = _mm512_shuffle_i32x4(x[0], x[1], 0xee);
    __m512i more_low = _mm512_shuffle_i32x4(x[2], x[3], 0x44), more_high = _mm512_shuffle_i32x4(x[2], x[3], 0xee);
    _mm512_storeu_si512(out, _mm512_shuffle_i32x4(low, more_low, 0x88));
    _mm512_storeu_si512(out + 64, _mm512_shuffle_i32x4(low, more_low, 0xdd));
    _mm512_storeu_si512(out + 128, _mm512_shuffle_i32x4(high, more_high, 0x88));
    _mm512_storeu_si512(out + 192, _mm512_shuffle_i32x4(high, more_high, 0xdd));
}

// Put rows of a panel, at most 64 columns, in their places: four, of which there are so many, zeros for the others.
static void pack_four_rows(const int8_t *rows, int64_t stride, int64_t there, int64_t columns, int8_t *panel) {
    __m512i row[4], pairs[4], fours[4];
    for (int i = 0; i < 4; i++) row[i] = _mm512_maskz_loadu_epi8(i < there ? first_of_64(columns) : 0, rows + i * stride);
    for (int i = 0; i < 2; i++) {  // bytes, then pairs of them, side by side: within 16 columns
        pairs[2 * i] = _mm512_unpacklo_epi8(row[2 * i], row[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi8(row[2 * i], row[2 * i + 1]);
    }
    for (int i = 0; i < 2; i++) {
        fours[2 * i] = _mm512_unpacklo_epi16(pairs[i], pairs[2 + i]);
        fours[2 * i + 1] = _mm512_unpackhi_epi16(pairs[i], pairs[2 + i]);
    }
    turn_over_lanes(fours, panel);
}
