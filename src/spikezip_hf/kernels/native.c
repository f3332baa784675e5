// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// The inner loops of a simulation on a CPU. Each does what a reference in `models/` does, operation for operation and
// rounding for rounding (compiled without contraction of a * b + c), only without passes over memory in between.
// Built and called by `native.py`.

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define HAVE_PRODUCTS 1
#else
#define HAVE_PRODUCTS 0
#endif

enum {
    BLOCK = 8192,           // elements that one thread takes through all steps: they stay in its first cache
    MOST_FEATURES = 65536,  // of a node: a block has at least one row
};

int spikezip_has_products(void) { return HAVE_PRODUCTS; }

// Levels of `rows` rows: clamp(floor(x / s + 1/2)), where x is a float, or an integer times a scale plus a bias.
// Those of padding, positions without a token, are 0. Returns whether a current was not a number.
static int levels_of(const void *current, int is_integer, const float *scale, const float *bias,
                     const float *threshold, const uint8_t *tokens, int64_t positions, int64_t first_row, int64_t rows,
                     int64_t features, float low, float high, int8_t *target) {
    int undefined = 0;
    for (int64_t r = 0; r < rows; r++) {
        int8_t *out = target + r * features;
        if (tokens && !tokens[(first_row + r) % positions]) {
            memset(out, 0, (size_t)features);
        } else if (is_integer) {
            const int32_t *in = (const int32_t *)current + r * features;
            for (int64_t c = 0; c < features; c++) {
                float x = (float)in[c] * scale[c] + bias[c];
                undefined |= x != x;
                float level = floorf(x / threshold[c] + 0.5f);
                level = level < high ? level : high;
                out[c] = (int8_t)(int32_t)(level > low ? level : low);
            }
        } else {
            const float *in = (const float *)current + r * features;
            for (int64_t c = 0; c < features; c++) {
                float x = in[c];
                undefined |= x != x;
                float level = floorf(x / threshold[c] + 0.5f);
                level = level < high ? level : high;
                out[c] = (int8_t)(int32_t)(level > low ? level : low);
            }
        }
    }
    return undefined;
}

// One step of `n` trackers: S += clip(Q - S, -k, k). Returns the spikes fired; `*pending` says if any is still to come.
static int64_t track(const int8_t *target, int8_t *tracer, int8_t *levels, int64_t n, int8_t k, int *pending) {
    int64_t spikes = 0;
    uint8_t left = 0;
    for (int64_t start = 0; start < n; start += 128) {  // sums of 128 fit in 16 bits
        int64_t end = start + 128 < n ? start + 128 : n;
        int16_t sum = 0;
        for (int64_t i = start; i < end; i++) {
            int8_t s = tracer[i];
            int8_t step = (int8_t)(target[i] - s);
            step = step < k ? step : k;
            step = step > (int8_t)-k ? step : (int8_t)-k;
            s = (int8_t)(s + step);
            sum = (int16_t)(sum + (step < 0 ? -step : step));
            left |= (uint8_t)(target[i] ^ s);
            tracer[i] = s;
            levels[i] = s;
        }
        spikes += sum;
    }
    *pending = left != 0;
    return spikes;
}

// `count` numbers, one or one for each feature, as one for each feature; zeros if there are none.
static const float *spread(const float *numbers, int64_t count, int64_t features, float *to) {
    if (count == features) return numbers;
    for (int64_t c = 0; c < features; c++) to[c] = count ? numbers[0] : 0.0f;
    return to;
}

// Run the neurons of one node through a chunk of `steps` steps of `samples` samples.
//   current    rows of (n) elements, float or int32 (then x = integer * scale[c] + bias[c])
//   tokens     (samples, positions) which positions hold tokens, or NULL; positions are the last but one dimension
//   index      (steps, samples) which row is the current of that step
//   tracer     (samples, n) before and after
//   levels     (steps, samples, n): its first rows are the levels of the steps at which a sample's levels move, and of
//              the first step
//   row_of     (steps, samples) the row of `levels` that stands for a step; `changed`, whether it is the step's own
//   closed     leading steps in which the node may not fire
//   counts     (steps, samples) spikes; at_target (samples) whether the last tracers are at their targets
// `scale`, `bias` and `threshold` are one number or one for each feature, as `scales`, `biases` and `thresholds` say;
// no biases is no bias. Returns how many rows of levels there are, negative if a current is NaN.
int64_t spikezip_fire(const void *current, int is_integer, const float *scale, int64_t scales, const float *bias,
                      int64_t biases, const float *threshold, int64_t thresholds, const uint8_t *tokens,
                      int64_t positions, int64_t n, int64_t features, int64_t steps, int64_t samples,
                      const int64_t *index, int8_t *tracer, int8_t *levels, int64_t *row_of, uint8_t *changed,
                      int64_t *counts, uint8_t *at_target, int min_level, int max_level, int k, int64_t closed) {
    float *numbers = malloc((size_t)(3 * features) * sizeof *numbers);
    scale = spread(scale, scales, features, numbers);
    bias = spread(bias, biases, features, numbers + features);
    threshold = spread(threshold, thresholds, features, numbers + 2 * features);
    int64_t rows_of_block = BLOCK / features > 0 ? BLOCK / features : 1;
    int64_t block = rows_of_block * features;
    int64_t blocks = (n + block - 1) / block;
    int undefined = 0;
    memset(counts, 0, (size_t)(steps * samples) * sizeof *counts);
    for (int64_t b = 0; b < samples; b++) at_target[b] = 1;

#pragma omp parallel
    {
        int8_t target[MOST_FEATURES];
#pragma omp for schedule(dynamic) reduction(| : undefined)
        for (int64_t item = 0; item < samples * blocks; item++) {
            int64_t b = item / blocks, offset = item % blocks * block;
            int64_t size = n - offset < block ? n - offset : block;
            int64_t moves = steps - 1;  // the last step at which the current of this sample changes
            while (moves > 0 && index[moves * samples + b] == index[(moves - 1) * samples + b]) moves--;
            int64_t row = -1;
            int pending = 1;
            int8_t *state = tracer + b * n + offset;
            int64_t t = 0;
            for (; t < steps; t++) {
                if (t > moves && t > closed && !pending) break;
                if (index[t * samples + b] != row) {
                    row = index[t * samples + b];
                    const char *in = (const char *)current + 4 * (row * n + offset);
                    undefined |= levels_of(in, is_integer, scale, bias, threshold, tokens ? tokens + b * positions : NULL,
                                           positions, offset / features, size / features, features, (float)min_level,
                                           (float)max_level, target);
                }
                int64_t spikes = track(target, state, levels + (t * samples + b) * n + offset, size,
                                       t < closed ? 0 : (int8_t)k, &pending);
                if (spikes) {
#pragma omp atomic
                    counts[t * samples + b] += spikes;
                }
            }
            if (pending) {
#pragma omp atomic write
                at_target[b] = 0;
            }
            for (; t < steps; t++) memcpy(levels + (t * samples + b) * n + offset, state, (size_t)size);
        }
    }
    free(numbers);

    // Keep the rows that something changed in.
    int64_t rows = 0;
    for (int64_t t = 0; t < steps; t++)
        for (int64_t b = 0; b < samples; b++) {
            int64_t at = t * samples + b;
            changed[at] = t == 0 || counts[at] > 0;
            row_of[at] = changed[at] ? rows++ : row_of[at - samples];
            if (changed[at] && row_of[at] != at) memcpy(levels + row_of[at] * n, levels + at * n, (size_t)n);
        }
    return undefined ? -rows : rows;
}

// Values integer * scale[c] + bias[c] of rows of int8 or int32; scale and bias as in `spikezip_fire`.
void spikezip_value(const void *integers, int is_int8, const float *scale, int64_t scales, const float *bias,
                    int64_t biases, int64_t rows, int64_t features, float *values) {
    float *numbers = malloc((size_t)(2 * features) * sizeof *numbers);
    scale = spread(scale, scales, features, numbers);
    bias = biases ? spread(bias, biases, features, numbers + features) : NULL;
#pragma omp parallel for schedule(static)
    for (int64_t r = 0; r < rows; r++) {
        float *out = values + r * features;
        if (is_int8) {
            const int8_t *in = (const int8_t *)integers + r * features;
            if (bias)
                for (int64_t c = 0; c < features; c++) out[c] = (float)in[c] * scale[c] + bias[c];
            else
                for (int64_t c = 0; c < features; c++) out[c] = (float)in[c] * scale[c];
        } else {
            const int32_t *in = (const int32_t *)integers + r * features;
            if (bias)
                for (int64_t c = 0; c < features; c++) out[c] = (float)in[c] * scale[c] + bias[c];
            else
                for (int64_t c = 0; c < features; c++) out[c] = (float)in[c] * scale[c];
        }
    }
    free(numbers);
}

// Levels of a weight (n, k) with one scale for each of n rows, turned over: (k, n).
void spikezip_weight_levels(const float *weight, const float *scale, int64_t n, int64_t k, int max_level,
                            int8_t *levels) {
    enum { ROWS = 32 };
#pragma omp parallel
    {
        int8_t *tile = malloc((size_t)(ROWS * k));
#pragma omp for schedule(static)
        for (int64_t first = 0; first < n; first += ROWS) {
            int64_t rows = n - first < ROWS ? n - first : ROWS;
            for (int64_t r = 0; r < rows; r++) {
                const float *in = weight + (first + r) * k, s = scale[first + r], high = (float)max_level;
                for (int64_t i = 0; i < k; i++) {
                    float level = floorf(in[i] / s + 0.5f);
                    level = level < high ? level : high;
                    tile[r * k + i] = (int8_t)(int32_t)(level > -high ? level : -high);
                }
            }
            for (int64_t i = 0; i < k; i++)
                for (int64_t r = 0; r < rows; r++) levels[i * n + first + r] = tile[r * k + i];
        }
        free(tile);
    }
}

#if HAVE_PRODUCTS
enum { TILE_ROWS = 6, TILE_VECTORS = 4 };

// The right side of a product, (k, n), as the processor multiplies it: four k of a column side by side, columns in
// vectors of 16, zeros where there is nothing. `correction`: what the left side's shift by 128 adds to each column.
static void pack_right(const int8_t *b, int64_t stride_k, int64_t stride_n, int64_t k, int64_t n, int64_t width,
                       int8_t *packed, int32_t *correction) {
    int64_t quads = (k + 3) / 4;
    if (k % 4 || width != n) memset(packed, 0, (size_t)(quads * width * 4));
    if (stride_k == 1) {
        for (int64_t j = 0; j < n; j++) {
            const int8_t *column = b + j * stride_n;
            for (int64_t q = 0; q < k / 4; q++) memcpy(packed + (q * width + j) * 4, column + 4 * q, 4);
            if (k % 4) memcpy(packed + (k / 4 * width + j) * 4, column + k / 4 * 4, (size_t)(k % 4));
        }
    } else {
        for (int64_t i = 0; i < k; i++) {
            const int8_t *row = b + i * stride_k;
            int8_t *out = packed + i / 4 * width * 4 + i % 4;
            if (stride_n == 1)
                for (int64_t j = 0; j < n; j++) out[4 * j] = row[j];
            else
                for (int64_t j = 0; j < n; j++) out[4 * j] = row[j * stride_n];
        }
    }
    const __m512i shift = _mm512_set1_epi8((char)128);
    for (int64_t j = 0; j < width; j += 16) {
        __m512i sum = _mm512_setzero_si512();
        for (int64_t q = 0; q < quads; q++)
            sum = _mm512_dpbusd_epi32(sum, shift, _mm512_loadu_si512(packed + (q * width + j) * 4));
        _mm512_storeu_si512(correction + j, _mm512_sub_epi32(_mm512_setzero_si512(), sum));
    }
}

// The left side, (m, k), as unsigned bytes: all shifted up by 128.
static void pack_left(const int8_t *a, int64_t stride_m, int64_t stride_k, int64_t m, int64_t k, uint8_t *rows) {
    int64_t stride = (k + 3) / 4 * 4;
    for (int64_t i = 0; i < m; i++) {
        const int8_t *in = a + i * stride_m;
        uint8_t *out = rows + i * stride;
        if (stride_k == 1)
            for (int64_t j = 0; j < k; j++) out[j] = (uint8_t)in[j] ^ 128;
        else
            for (int64_t j = 0; j < k; j++) out[j] = (uint8_t)in[j * stride_k] ^ 128;
        for (int64_t j = k; j < stride; j++) out[j] = 0;
    }
}

// A tile of the product: `m` rows and `vectors` times 16 columns, of which `columns` are there.
static inline __attribute__((always_inline)) void product_tile(const uint8_t *rows, int64_t stride, int m,
                                                               const int8_t *packed, int64_t width, int64_t quads,
                                                               int vectors, const int32_t *correction, int32_t *out,
                                                               int64_t out_stride, int64_t columns) {
    // Loops are unrolled, so that all of `sums` are registers.
    __m512i sums[TILE_ROWS][TILE_VECTORS];
    const uint8_t *row[TILE_ROWS];
#pragma GCC unroll 8
    for (int i = 0; i < TILE_ROWS; i++) {
        row[i] = rows + (i < m ? i : 0) * stride;
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) sums[i][v] = _mm512_loadu_si512(correction + 16 * v);
    }
    for (int64_t q = 0; q < quads; q++) {
        __m512i right[TILE_VECTORS];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) right[v] = _mm512_loadu_si512(packed + (q * width + 16 * v) * 4);
#pragma GCC unroll 8
        for (int i = 0; i < TILE_ROWS; i++) {
            int32_t four;
            memcpy(&four, row[i] + 4 * q, 4);
            __m512i left = _mm512_set1_epi32(four);
#pragma GCC unroll 8
            for (int v = 0; v < vectors; v++) sums[i][v] = _mm512_dpbusd_epi32(sums[i][v], left, right[v]);
        }
    }
#pragma GCC unroll 8
    for (int i = 0; i < TILE_ROWS; i++) {
        if (i >= m) break;
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) {
            int64_t left = columns - 16 * v;
            __mmask16 mask = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
            _mm512_mask_storeu_epi32(out + i * out_stride + 16 * v, mask, sums[i][v]);
        }
    }
}
#endif

// Integer products out[o, i] (m, n) = a[o, i] (m, k) @ b[o, i] (k, n), int8 to int32, of `outer` times `inner` pairs.
// Strides, in elements: of the two dimensions of pairs and of the two of a matrix. The columns of `out` have stride 1.
void spikezip_products(const int8_t *a, const int64_t *a_strides, const int8_t *b, const int64_t *b_strides,
                       int32_t *out, const int64_t *out_strides, int64_t outer, int64_t inner, int64_t m, int64_t k,
                       int64_t n) {
#if HAVE_PRODUCTS
    int64_t quads = (k + 3) / 4, width = (n + 15) / 16 * 16;
#pragma omp parallel
    {
        int8_t *packed = aligned_alloc(64, (size_t)(quads * width * 4));
        uint8_t *rows = aligned_alloc(64, (size_t)((m * quads * 4 + 63) / 64 * 64));
        int32_t *correction = aligned_alloc(64, (size_t)(width * 4));
#pragma omp for schedule(dynamic)
        for (int64_t pair = 0; pair < outer * inner; pair++) {
            int64_t o = pair / inner, i = pair % inner;
            int32_t *result = out + o * out_strides[0] + i * out_strides[1];
            pack_right(b + o * b_strides[0] + i * b_strides[1], b_strides[2], b_strides[3], k, n, width, packed,
                       correction);
            pack_left(a + o * a_strides[0] + i * a_strides[1], a_strides[2], a_strides[3], m, k, rows);
            for (int64_t j = 0; j < width; j += 16 * TILE_VECTORS)
                for (int64_t r = 0; r < m; r += TILE_ROWS) {
                    int some = m - r < TILE_ROWS ? (int)(m - r) : TILE_ROWS;
                    const uint8_t *left = rows + r * quads * 4;
                    int32_t *tile = result + r * out_strides[2] + j;
                    if (width - j >= 16 * TILE_VECTORS)  // a constant, so that the sums are registers
                        product_tile(left, quads * 4, some, packed + j * 4, width, quads, TILE_VECTORS, correction + j,
                                     tile, out_strides[2], n - j);
                    else
                        for (int64_t v = j; v < width; v += 16)
                            product_tile(left, quads * 4, some, packed + v * 4, width, quads, 1, correction + v,
                                         tile + (v - j), out_strides[2], n - v);
                }
        }
        free(packed), free(rows), free(correction);
    }
#else
    (void)a, (void)a_strides, (void)b, (void)b_strides, (void)out, (void)out_strides;
    (void)outer, (void)inner, (void)m, (void)k, (void)n;
#endif
}
