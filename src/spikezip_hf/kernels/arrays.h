// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// Products and values of whole arrays, as `native.py` calls them.

#pragma once

#include <stdlib.h>

#include "neurons.h"
#include "weights.h"

// What products are done by from now on: 0: nothing here; 1: vectors; 2: tiles, if the processor and the system allow it
// and they are wanted.
int spikezip_products_by(int tiles_wanted) {
#if HAVE_PRODUCTS
    return use_tiles(tiles_wanted) ? 2 : 1;
#else
    return (void)tiles_wanted, 0;
#endif
}

int64_t spikezip_panel_bytes(int64_t k) { return panel_bytes(k); }

// Where there is no memory for what is needed on the way, a function leaves its results unfinished, and returns this.
enum { DONE, OUT_OF_MEMORY };

// `count` numbers, one or one for each feature, as one for each of `to`; `otherwise` where there are none.
static float *spread(const float *numbers, int64_t count, int64_t features, int64_t to, float otherwise) {
    float *all = malloc((size_t)to * sizeof *all);
    for (int64_t c = 0; all && c < to; c++) all[c] = c < features && count ? numbers[count == 1 ? 0 : c] : otherwise;
    return all;
}

#if HAVE_PRODUCTS
// Put a block of a product, `rows` rows of a panel, in its place: whole numbers, or those of fixed point, `sums`, times their
// quanta; floats if there is a scale.
static void hand_out(const int32_t *product, const double *sums, const float *quanta, int64_t rows, int64_t columns,
                     const float *scale, const float *bias, void *out, int64_t stride) {
    for (int64_t r = 0; r < rows; r++) {
        float *values = (float *)out + r * stride;
        if (!scale && sums)
            for (int64_t c = 0; c < columns; c++) ((double *)out)[r * stride + c] = sums[r * PANEL + c] * (double)quanta[c];
        else if (!scale)
            memcpy(values, product + r * PANEL, (size_t)columns * sizeof *product);
        else {
            if (sums)
                for (int64_t c = 0; c < columns; c++) values[c] = (float)sums[r * PANEL + c] * quanta[c] * scale[c];
            else
                for (int64_t c = 0; c < columns; c++) values[c] = (float)product[r * PANEL + c] * scale[c];
            if (bias)
                for (int64_t c = 0; c < columns; c++) values[c] += bias[c];
        }
    }
}
#endif

// A term of a sum: rows of floats, or of whole numbers, each integer * scale[c] + bias[c]. The mirror of `Term` in native.py.
typedef struct {
    const void *numbers;  // rows of (vectors, features)
    int64_t kind;         // of this kind
    const float *scale;
    int64_t scales;  // one number or one for each feature; none if 0; so
    const float *bias;
    int64_t biases;
    const int64_t *index;  // the row that stands for each row of the sum; NULL: as they are
} Term;

enum { OF_FLOAT32, OF_INT32, OF_INT8 };  // kinds of terms

// Put values of `n` features of a term in their place, or add them to what is there.
static inline __attribute__((always_inline)) void put_values(const void *restrict numbers, const int kind, int64_t n,
                                                             const float *restrict scale, const float *restrict bias,
                                                             const int add, float *restrict out) {
    for (int64_t c = 0; c < n; c++) {
        float x = kind == OF_INT8    ? (float)((const int8_t *)numbers)[c]
                  : kind == OF_INT32 ? (float)((const int32_t *)numbers)[c]
                                     : ((const float *)numbers)[c];
        if (kind != OF_FLOAT32) x = x * scale[c];
        if (bias) x = x + bias[c];
        out[c] = add ? out[c] + x : x;
    }
}

static void put_term(const Term *term, int64_t from, int64_t n, const float *scale, const float *bias, int add, float *out) {
    const int8_t *numbers = (const int8_t *)term->numbers + from * (term->kind == OF_INT8 ? 1 : 4);
    if (term->kind == OF_INT8)
        add ? put_values(numbers, OF_INT8, n, scale, bias, 1, out) : put_values(numbers, OF_INT8, n, scale, bias, 0, out);
    else if (term->kind == OF_INT32)
        add ? put_values(numbers, OF_INT32, n, scale, bias, 1, out) : put_values(numbers, OF_INT32, n, scale, bias, 0, out);
    else
        add ? put_values(numbers, OF_FLOAT32, n, scale, bias, 1, out) : put_values(numbers, OF_FLOAT32, n, scale, bias, 0, out);
}

// The sum of one term or two, (rows, vectors, features).
int spikezip_sum(const Term *terms, int64_t count, int64_t rows, int64_t vectors, int64_t features, float *sum) {
    float *scale[2] = {NULL, NULL}, *bias[2] = {NULL, NULL};
    int lacking = 0;
    for (int64_t t = 0; t < count; t++) {
        if (terms[t].scales) lacking |= !(scale[t] = spread(terms[t].scale, terms[t].scales, features, features, 0.0f));
        if (terms[t].biases) lacking |= !(bias[t] = spread(terms[t].bias, terms[t].biases, features, features, 0.0f));
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows * vectors; i++)
        for (int64_t t = 0; t < count && !lacking; t++) {
            int64_t row = terms[t].index ? terms[t].index[i / vectors] : i / vectors;
            put_term(terms + t, (row * vectors + i % vectors) * features, features, scale[t], bias[t], t > 0,
                     sum + i * features);
        }
    for (int t = 0; t < 2; t++) free(scale[t]), free(bias[t]);
    return lacking ? OUT_OF_MEMORY : DONE;
}

// Levels of row `r` of a weight (n, k).
static void levels_of_weight(const float *weight, const float *scale, int64_t r, int64_t k, int max_level,
                             int8_t *levels) {
    enum { SOME = 64 };
    float threshold[SOME], inverse[SOME];
    for (int i = 0; i < SOME; i++) threshold[i] = scale[r], inverse[i] = 1.0f / scale[r];
    Quantizer quantizer = {NULL, NULL, threshold, inverse, (float)-max_level, (float)max_level, !inverse_is_of_use(scale[r])};
    int undefined = 0;
    for (int64_t i = 0; i < k; i += SOME)
        levels_of_floats(weight + r * k + i, least(k - i, SOME), &quantizer, 0, levels + i, &undefined);
}

// Levels of a weight (n, k) with one scale for each of n rows, turned over: (k, n).
int spikezip_weight_levels(const float *weight, const float *scale, int64_t n, int64_t k, int max_level,
                           int8_t *levels) {
    enum { ROWS = 32 };
    int lacking = 0;
#pragma omp parallel reduction(| : lacking)
    {
        int8_t *tile = malloc((size_t)(ROWS * k));
        lacking = !tile;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < n; first += ROWS) {
            if (lacking) continue;
            int64_t rows = least(n - first, ROWS);
            for (int64_t r = 0; r < rows; r++) levels_of_weight(weight, scale, first + r, k, max_level, tile + r * k);
            for (int64_t i = 0; i < k; i++)
                for (int64_t r = 0; r < rows; r++) levels[i * n + first + r] = tile[r * k + i];
        }
        free(tile);
    }
    return lacking ? OUT_OF_MEMORY : DONE;
}

// The same as panels of a product, and their corrections.
int spikezip_weight_panels(const float *weight, const float *scale, int64_t n, int64_t k, int max_level, int8_t *panels,
                           int32_t *correction) {
    int lacking = 0;
#if HAVE_PRODUCTS
    enum { COLUMNS = 16 };
    int64_t wide = padded(k, 64);
#pragma omp parallel reduction(| : lacking)
    {
        int8_t *levels = aligned_alloc(64, (size_t)(COLUMNS * wide));
        lacking = !levels;
#pragma omp for schedule(dynamic)
        for (int64_t panel = 0; panel < padded(n, PANEL) / PANEL; panel++) {
            if (lacking) continue;
            int8_t *out = panels + panel * panel_bytes(k);
            for (int64_t j = 0; j < PANEL; j += COLUMNS) {
                if (wide > k || panel * PANEL + j + COLUMNS > n) memset(levels, 0, (size_t)(COLUMNS * wide));
                for (int64_t row = panel * PANEL + j, c = 0; c < COLUMNS && row + c < n; c++)
                    levels_of_weight(weight, scale, row + c, k, max_level, levels + c * wide);
                pack_columns(levels, wide, j, out);
            }
            correct(out, k, correction + panel * PANEL);
        }
        free(levels);
    }
#else
    (void)weight, (void)scale, (void)n, (void)k, (void)max_level, (void)panels, (void)correction;
#endif
    return lacking ? OUT_OF_MEMORY : DONE;
}

// Products out (m, n) = left (m, k) @ weight.T: int32 or, in fixed point, float64; with `scale`, the floats product * scale[c]
// + bias[c].
int spikezip_linear(const int8_t *left, int64_t m, const Weight *weight, const float *given_scale, int64_t scales,
                    const float *given_bias, int64_t biases, void *out) {
    int lacking = 0;
#if HAVE_PRODUCTS
    int64_t n = weight->n, k = weight->k;
    int fixed = weight->numbers != NULL;
    float *scale = scales ? spread(given_scale, scales, n, n, 0.0f) : NULL;
    float *bias = biases ? spread(given_bias, biases, n, n, 0.0f) : NULL;
    if ((scales && !scale) || (biases && !bias)) return free(scale), free(bias), OUT_OF_MEMORY;
    int64_t blocks = (m + BLOCK_ROWS - 1) / BLOCK_ROWS, count = padded(n, PANEL) / PANEL;
    int shifts = shifts_rows(fixed);
    uint8_t *shifted = shifts ? all_shifted(left, m, k) : NULL;
    if (shifts && !shifted) return free(scale), free(bias), OUT_OF_MEMORY;
    int64_t grain = fixed ? blocks_of_a_thread(count, blocks) : 1;
#pragma omp parallel reduction(| : lacking)
    {
        Held held;
        int8_t *spare = aligned_alloc(64, (size_t)(BLOCK_ROWS * shifted_bytes(k)));
        int32_t *product = aligned_alloc(64, BLOCK_ROWS * PANEL * sizeof *product);
        double *sums = fixed ? aligned_alloc(64, BLOCK_ROWS * PANEL * sizeof *sums) : NULL;
        lacking = make_room(weight, 1, 0, &held) | !spare | !product | (fixed && !sums);
        begin_products();
#pragma omp for schedule(dynamic, grain)
        for (int64_t item = 0; item < count * blocks; item++) {
            if (lacking) continue;
            int64_t panel = item / blocks, first = item % blocks * BLOCK_ROWS, rows = least(m - first, BLOCK_ROWS);
            int64_t at = first * n + panel * PANEL;
            hold(weight, panel, &held);
            whole_block(weight, &held, left, shifted, first, (int)rows, spare, product, sums);
            hand_out(product, sums, held.quanta, rows, least(n - panel * PANEL, PANEL),
                     scale ? scale + panel * PANEL : NULL, bias ? bias + panel * PANEL : NULL,
                     (char *)out + at * (int64_t)(fixed && !scale ? sizeof *sums : sizeof *product), n);
        }
        end_products();
        free(spare), free(product), free(sums), let_go(&held);
    }
    free(scale), free(bias), free(shifted);
#else
    (void)left, (void)m, (void)weight, (void)given_scale, (void)scales, (void)given_bias, (void)biases, (void)out;
#endif
    return lacking ? OUT_OF_MEMORY : DONE;
}

#if HAVE_PRODUCTS
// The rows of the right side of a product, (k, n), but for silent ones at either end, as those of padding are.
static Span without_silence(const int8_t *rows, int64_t stride, int64_t k, int64_t n) {
    Span span = {0, k};
    while (span.from < k && silent(rows + span.from * stride, n)) span.from++;
    while (span.from < span.to && silent(rows + (span.to - 1) * stride, n)) span.to--;
    return span;
}
#endif

// Integer products out[o, i] (m, n) = a[o, i] (m, k) @ b[o, i] (k, n), int8 to int32, of `outer` times `inner` pairs.
// Strides, in elements: of the two dimensions of pairs and of the two of a matrix. The columns of `a` and of `out` have
// stride 1. With `scale`, one number, floats: product * scale.
int spikezip_products(const int8_t *a, const int64_t *a_strides, const int8_t *b, const int64_t *b_strides, int32_t *out,
                      const int64_t *out_strides, int64_t outer, int64_t inner, int64_t m, int64_t k, int64_t n,
                      const float *given_scale) {
    int lacking = 0;
#if HAVE_PRODUCTS
    float *scale = given_scale ? spread(given_scale, 1, n, n, 0.0f) : NULL;
    if (given_scale && !scale) return OUT_OF_MEMORY;
#pragma omp parallel reduction(| : lacking)
    {
        int8_t *panels = aligned_alloc(64, (size_t)(padded(n, PANEL) / PANEL * panel_bytes(k)));
        int32_t *correction = aligned_alloc(64, (size_t)padded(n, PANEL) * sizeof *correction);
        int8_t *spare = aligned_alloc(64, (size_t)(BLOCK_ROWS * shifted_bytes(k)));
        int32_t *product = aligned_alloc(64, BLOCK_ROWS * PANEL * sizeof *product);
        lacking = !panels || !correction || !spare || !product;
        begin_products();
#pragma omp for schedule(dynamic)
        for (int64_t pair = 0; pair < outer * inner; pair++) {
            if (lacking) continue;
            int64_t o = pair / inner, i = pair % inner;
            const int8_t *right = b + o * b_strides[0] + i * b_strides[1];
            Span loud = b_strides[3] == 1 ? without_silence(right, b_strides[2], k, n) : (Span){0, k};
            int64_t count = loud.to - loud.from;
            const int8_t *left = a + o * a_strides[0] + i * a_strides[1] + loud.from;
            int32_t *result = out + o * out_strides[0] + i * out_strides[1];
            pack_right(right + loud.from * b_strides[2], b_strides[2], b_strides[3], count, n, panels, correction);
            for (int64_t first = 0; first < m; first += BLOCK_ROWS) {
                int rows = (int)least(m - first, BLOCK_ROWS), quiet = 1;
                for (int r = 0; r < rows && quiet; r++) quiet = silent(left + (first + r) * a_strides[2], count);
                if (quiet) memset(product, 0, (size_t)(rows * PANEL) * sizeof *product);
                for (int64_t j = 0; j < n; j += PANEL) {
                    if (!quiet)
                        product_block(left + first * a_strides[2], a_strides[2], rows, count,
                                      panels + j / PANEL * panel_bytes(count), correction + j, spare, product);
                    hand_out(product, NULL, NULL, rows, least(n - j, PANEL), scale ? scale + j : NULL, NULL,
                             result + first * out_strides[2] + j, out_strides[2]);
                }
            }
        }
        end_products();
        free(panels), free(correction), free(spare), free(product);
    }
    free(scale);
#else
    (void)given_scale, (void)a, (void)a_strides, (void)b, (void)b_strides, (void)out, (void)out_strides;
    (void)outer, (void)inner, (void)m, (void)k, (void)n;
#endif
    return lacking ? OUT_OF_MEMORY : DONE;
}
