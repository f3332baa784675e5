// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// Products of bytes, int8 x int8 to int32, a block of rows and 64 columns at a time: by tiles (AMX) or by vectors
// (AVX-512 VNNI). The right side lies in panels of 64 columns: the four k that the processor multiplies at once side by
// side, zeros where there is nothing, k up to a multiple of 64.

#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>
#define HAVE_PRODUCTS 1
#else
#define HAVE_PRODUCTS 0
#endif

#if HAVE_PRODUCTS && defined(__AMX_INT8__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAVE_TILES 1
#else
#define HAVE_TILES 0
#endif

enum { PANEL = 64, BLOCK_ROWS = 32 };  // columns and rows of a block of a product

static inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
static inline int64_t panel_bytes(int64_t k) { return padded(k, 64) * PANEL; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Copy rows of `n` bytes. Those of a panel by a constant number, which needs no call.
static inline void copy_rows(const int8_t *from, int64_t from_stride, int64_t rows, int64_t n, int8_t *to,
                             int64_t to_stride) {
    if (n == PANEL)
        for (int64_t r = 0; r < rows; r++) memcpy(to + r * to_stride, from + r * from_stride, PANEL);
    else if (n == from_stride && n == to_stride)
        memcpy(to, from, (size_t)(rows * n));
    else
        for (int64_t r = 0; r < rows; r++) memcpy(to + r * to_stride, from + r * from_stride, (size_t)n);
}

// Positions, from one up to another.
typedef struct {
    int64_t from, to;
} Span;

// From the first of `n` positions that holds a token up to behind the last: outside of it is padding alone. All of them if
// all hold tokens, NULL, or none does.
static inline Span span_of(const uint8_t *tokens, int64_t n) {
    const uint8_t *first = tokens ? memchr(tokens, 1, (size_t)n) : NULL;
    Span span = {first ? first - tokens : 0, n};
    while (first && !tokens[span.to - 1]) span.to--;
    return span;
}

// Put column `j` of a panel, `k` numbers, in its place.
static inline void pack_column(const int8_t *column, int64_t k, int64_t j, int8_t *panel) {
    for (int64_t q = 0; q < k / 4; q++) memcpy(panel + (q * PANEL + j) * 4, column + 4 * q, 4);
    if (k % 4) memcpy(panel + (k / 4 * PANEL + j) * 4, column + k / 4 * 4, (size_t)(k % 4));
}

#if HAVE_PRODUCTS
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

// Rows of levels as vectors multiply them, unsigned, shifted up by 128; k up to a multiple of 64, where panels have zeros.
static void shift_rows(const int8_t *left, int64_t stride, int64_t rows, int64_t k, uint8_t *shifted) {
    for (int64_t i = 0; i < rows; i++, left += stride)
        for (int64_t j = 0; j < k; j += 64, shifted += 64) {
            __m512i bytes = _mm512_maskz_loadu_epi8(first_of_64(k - j), left + j);
            _mm512_storeu_si512(shifted, _mm512_xor_si512(bytes, _mm512_set1_epi8((char)128)));
        }
}

// All rows that a weight is multiplied with, shifted once for all its panels; NULL where tiles multiply, and without memory.
static uint8_t *all_shifted(const int8_t *left, int64_t rows, int64_t k) {
    uint8_t *shifted = tiles_allowed ? NULL : aligned_alloc(64, (size_t)(rows * padded(k, 64)));
    if (!shifted) return NULL;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) shift_rows(left + i * k, k, 1, k, shifted + i * padded(k, 64));
    return shifted;
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

// `rows` shifted rows times a panel, to `out` (rows, 64).
static void shifted_block(const uint8_t *shifted, int rows, int64_t k, const int8_t *panel, const int32_t *correction,
                          int32_t *out) {
    int64_t wide = padded(k, 64);
    for (int i = 0; i < rows; i += VECTOR_ROWS)
        some_vectors(shifted + i * wide, wide, (int)least(rows - i, VECTOR_ROWS), panel, wide, correction, out + i * PANEL);
}

// `rows` rows, at most 32, times a panel, to `out` (32, 64). `spare`: 32 rows of k up to a multiple of 64.
static void product_block(const int8_t *left, int64_t stride, int rows, int64_t k, const int8_t *panel,
                          const int32_t *correction, int8_t *spare, int32_t *out) {
#if HAVE_TILES
    if (tiles_allowed) {
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
        return;
    }
#endif
    shift_rows(left, stride, rows, k, (uint8_t *)spare);
    shifted_block((uint8_t *)spare, rows, k, panel, correction, out);
}

// The same of `rows` rows of k from row `first` on, shifted already if `shifted` is there.
static void weight_block(const int8_t *left, const uint8_t *shifted, int64_t first, int rows, int64_t k,
                         const int8_t *panel, const int32_t *correction, int8_t *spare, int32_t *out) {
    if (shifted)
        shifted_block(shifted + first * padded(k, 64), rows, k, panel, correction, out);
    else
        product_block(left + first * k, k, rows, k, panel, correction, spare, out);
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

// The right side of a product, (k, n) of any strides, as panels.
static void pack_right(const int8_t *b, int64_t stride_k, int64_t stride_n, int64_t k, int64_t n, int8_t *panels,
                       int32_t *correction) {
    for (int64_t first = 0; first < n; first += PANEL) {
        int8_t *panel = panels + first / PANEL * panel_bytes(k);
        int64_t columns = least(n - first, PANEL);
        if (stride_n != 1 && (k % 64 || columns < PANEL)) memset(panel, 0, (size_t)panel_bytes(k));
        if (stride_n == 1)
            for (int64_t i = 0; i < padded(k, 64); i += 4)
                pack_four_rows(b + i * stride_k + first, stride_k, k - i, columns, panel + i * PANEL);
        else if (stride_k == 1)
            for (int64_t j = 0; j < columns; j++) pack_column(b + (first + j) * stride_n, k, j, panel);
        else
            for (int64_t i = 0; i < k; i++)
                for (int64_t j = 0; j < columns; j++)
                    panel[(i / 4 * PANEL + j) * 4 + i % 4] = b[i * stride_k + (first + j) * stride_n];
        if (!tiles_allowed) correct(panel, k, correction + first);
    }
}
#endif
