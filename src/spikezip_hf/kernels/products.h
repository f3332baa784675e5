// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// Products of bytes, int8 x int8 to int32, a block of rows and 64 columns at a time: by tiles or by vectors. The right side
// lies in panels of 64 columns: the four k that the processor multiplies at once side by side, zeros where there is nothing,
// k up to a multiple of 64.

#pragma once

#include <stdint.h>
#include <string.h>

#include "instructions.h"

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
#if WITH_AVX512
#include "avx512/products.h"
#else
#include "avx2/products.h"
#endif

// All rows that a weight is multiplied with, shifted once for all its panels; NULL without memory.
static uint8_t *all_shifted(const int8_t *left, int64_t rows, int64_t k) {
    uint8_t *shifted = aligned_alloc(64, (size_t)(rows * shifted_bytes(k)));
    if (!shifted) return NULL;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) shift_row(left + i * k, k, shifted + i * shifted_bytes(k));
    return shifted;
}

// `rows` rows, at most 32, times a panel, to `out` (32, 64). `spare`: memory for 32 shifted rows.
static void product_block(const int8_t *left, int64_t stride, int rows, int64_t k, const int8_t *panel,
                          const int32_t *correction, int8_t *spare, int32_t *out) {
    if (tiles_allowed) {
        tiles_block(left, stride, rows, k, panel, spare, out);
        return;
    }
    for (int i = 0; i < rows; i++) shift_row(left + i * stride, k, (uint8_t *)spare + i * shifted_bytes(k));
    shifted_block((uint8_t *)spare, rows, k, panel, correction, out);
}

// The same of `rows` rows of k from row `first` on, shifted already if `shifted` is there.
static void weight_block(const int8_t *left, const uint8_t *shifted, int64_t first, int rows, int64_t k,
                         const int8_t *panel, const int32_t *correction, int8_t *spare, int32_t *out) {
    if (shifted)
        shifted_block(shifted + first * shifted_bytes(k), rows, k, panel, correction, out);
    else
        product_block(left + first * k, k, rows, k, panel, correction, spare, out);
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
