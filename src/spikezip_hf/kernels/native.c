// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// The inner loops of a simulation on a CPU. Each does what a reference in `models/` does, operation for operation and
// rounding for rounding (compiled without contraction of a * b + c), only without passes over memory in between.
// Built and called by `native.py`.

#define _GNU_SOURCE  // syscall
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "neurons.h"
#include "softmax.h"
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
static const int64_t NOT_FIRED = INT64_MIN;

// `count` numbers, one or one for each feature, as one for each of `to`; `otherwise` where there are none.
static float *spread(const float *numbers, int64_t count, int64_t features, int64_t to, float otherwise) {
    float *all = malloc((size_t)to * sizeof *all);
    for (int64_t c = 0; all && c < to; c++) all[c] = c < features && count ? numbers[count == 1 ? 0 : c] : otherwise;
    return all;
}

// What currents x are given as.
enum {
    FLOATS,    // themselves
    INTEGERS,  // int32, x = integer * scale + bias
    LEVELS,    // int8, (rows, places, k): such integers are the product with a weight, see weights.h
    SCORES,    // int8, (rows, heads, queries, k): x is the softmax of the product with `right`
};

// The neurons of one node in a chunk. The mirror of `Neurons` in native.py.
typedef struct {
    const void *current;  // rows, of this kind
    int64_t kind;
    Weight weight;         // of LEVELS
    const int8_t *right;   // of SCORES: (rows, heads, k, features);
    int64_t k;
    const int64_t *strides;     // of `current`, three, whose last is 1, and of `right`, four;
    int64_t heads;
    const int32_t *table;  // of exponentials, see softmax.h,
    int64_t entries;       // so many;
    const uint8_t *keys;   // (rows, features) which scores count, or NULL for all
    const float *scale, *bias, *threshold;
    int64_t scales, biases, thresholds;  // one number or one for each feature; no bias if 0
    const uint8_t *tokens;               // (samples, positions) which positions hold tokens, or NULL for all;
    int64_t positions;                   // positions are the last dimension of places
    int64_t places, features;            // neurons of a sample: (places, features)
    int64_t steps, samples;
    const int64_t *index;  // (steps, samples) which row is the current of that step
    int8_t *tracer;        // (samples, places, features) before and after
    int8_t *levels;        // (steps, samples, places, features): its first rows are the levels of the steps at which a
                           // sample's levels move, and of the first step
    int64_t *row_of;       // (steps, samples) the row of `levels` that stands for a step
    uint8_t *changed;      // (steps, samples) whether it is the step's own
    int64_t *counts;       // (steps, samples) spikes
    uint8_t *at_target;    // (samples) whether the last tracers are at their targets
    int64_t min_level, max_level, max_spikes;
    int64_t closed;  // leading steps in which the node may not fire
    int64_t coarse;  // leading steps in which it does not fire at a difference of one level
} Neurons;

// A thread's own memory: targets and tracers of a block, its product, rows with zeros around them; of a weight, its panel
// and sums in fixed point; of scores, the right side of a product as panels, and a row of probabilities.
typedef struct {
    int8_t *target, *state, *spare, *panels;
    int32_t *product, *correction;
    double *sums;
    float *probabilities;
#if HAVE_PRODUCTS
    Held held;
    const uint8_t *shifted;  // everybody's: the rows of levels, shifted, if vectors multiply
    const Events *events;    // everybody's, too
#endif
} Scratch;

#if HAVE_PRODUCTS
static void pack_right(const int8_t *b, int64_t stride_k, int64_t stride_n, int64_t k, int64_t n, int8_t *panels,
                       int32_t *correction);

// Targets of `rows` queries of one head, from place `first` on, in one row: of the softmax of their scores.
static void targets_of_scores(const Neurons *a, const Quantizer *q, const Scratch *own, int64_t sample, int64_t row,
                              int64_t first, int64_t rows, int *undefined) {
    const int64_t *left_strides = a->strides, *right_strides = a->strides + 3, n = a->features;
    int64_t queries = a->places / a->heads, head = first / queries;
    const int8_t *left = (const int8_t *)a->current + row * left_strides[0] + head * left_strides[1];
    pack_right(a->right + row * right_strides[0] + head * right_strides[1], right_strides[2], right_strides[3], a->k, n,
               own->panels, own->correction);
    for (int64_t start = 0; start < rows; start += BLOCK_ROWS) {
        int64_t query = first % queries + start;
        int some = (int)least(rows - start, BLOCK_ROWS);
        for (int64_t j = 0; j < n; j += PANEL)
            product_block(left + query * left_strides[2], left_strides[2], some, a->k,
                          own->panels + j / PANEL * panel_bytes(a->k), own->correction + j, own->spare,
                          own->product + j * BLOCK_ROWS);
        for (int r = 0; r < some; r++) {
            int8_t *target = own->target + (start + r) * n;
            if (a->tokens && !a->tokens[sample * a->positions + query + r]) {
                memset(target, 0, (size_t)n);
                continue;
            }
            softmax(own->product + r * PANEL, BLOCK_ROWS * PANEL, n, a->keys ? a->keys + row * n : NULL, a->table,
                    a->entries, own->probabilities);
            levels_of_floats(own->probabilities, n, q, 0, target, undefined);
        }
    }
}
#endif

// Targets of a block of a step's row: `rows` places from `first` on, `width` features from `column` on.
static void targets_of_block(const Neurons *a, const Quantizer *q, const Scratch *own, int64_t sample, int64_t at,
                             int64_t first, int64_t rows, int64_t column, int64_t width, int *undefined) {
    const int32_t *integers = NULL;
    int64_t stride = a->features, row = a->index[at];
#if HAVE_PRODUCTS
    const double *wide = NULL;
    if (a->kind == SCORES) {
        targets_of_scores(a, q, own, sample, row, first, rows, undefined);
        return;
    }
    if (a->kind == LEVELS) {
        if (own->events->few[at])
            add_events(&a->weight, &own->held, own->events, at, first, rows, a->places, own->product, own->sums);
        else
            whole_block(&a->weight, &own->held, a->current, own->shifted, row * a->places + first, (int)rows, own->spare,
                        own->product, own->sums);
        integers = own->product, wide = a->weight.numbers ? own->sums : NULL, stride = PANEL;
    }
#endif
    if (a->kind == INTEGERS) integers = (const int32_t *)a->current + (row * a->places + first) * a->features + column;
    for (int64_t r = 0; r < rows; r++) {
        int8_t *target = own->target + r * width;
        if (a->tokens && !a->tokens[sample * a->positions + (first + r) % a->positions])
            memset(target, 0, (size_t)width);
        else if (a->kind == FLOATS)
            levels_of_floats((const float *)a->current + (row * a->places + first + r) * a->features, width, q, 0, target,
                             undefined);
#if HAVE_PRODUCTS
        else if (wide)
            levels_of_wide(wide + r * stride, own->held.quanta, width, q, column, target, undefined);
#endif
        else
            levels_of_integers(integers + r * stride, width, q, column, target, undefined);
    }
}

// Take a block of one sample's neurons through all steps.
static void run_block(const Neurons *a, const Quantizer *q, Scratch *own, int64_t sample, int64_t first,
                      int64_t rows, int64_t column, int64_t width, int *undefined) {
    int64_t there = least(width, a->features - column);  // the rest of a panel is nobody's
    int64_t place = first * a->features + column, n = a->places * a->features;
    int8_t *tracer = a->tracer + sample * n + place;
    for (int64_t r = 0; r < rows; r++) {
        memcpy(own->state + r * width, tracer + r * a->features, (size_t)there);
        memset(own->state + r * width + there, 0, (size_t)(width - there));
    }
#if HAVE_PRODUCTS
    if (a->kind == LEVELS) {
        hold(&a->weight, column / PANEL, &own->held);
        memset(own->product, 0, BLOCK_ROWS * PANEL * sizeof *own->product);
        memset(own->sums, 0, BLOCK_ROWS * PANEL * sizeof *own->sums);
    }
#endif
    const int64_t *index = a->index + sample;
    int64_t moves = a->steps - 1;  // the last step at which the current of this sample changes
    while (moves > 0 && index[moves * a->samples] == index[(moves - 1) * a->samples]) moves--;
    int64_t row = -1;
    int pending = 1;
    for (int64_t t = 0; t < a->steps; t++) {
        if (t <= moves || t <= a->closed || pending) {
            if (index[t * a->samples] != row) {
                row = index[t * a->samples];
                targets_of_block(a, q, own, sample, t * a->samples + sample, first, rows, column, width, undefined);
            }
            int8_t most = t < a->closed ? 0 : (int8_t)a->max_spikes;
            int64_t spikes = track(own->target, own->state, rows * width, most, t < a->coarse ? 2 : 1, &pending);
            if (spikes) {
#pragma omp atomic
                a->counts[t * a->samples + sample] += spikes;
            }
        }
        int8_t *out = a->levels + (t * a->samples + sample) * n + place;
        if (width == a->features)
            memcpy(out, own->state, (size_t)(rows * width));
        else
            for (int64_t r = 0; r < rows; r++) memcpy(out + r * a->features, own->state + r * width, (size_t)there);
    }
    for (int64_t r = 0; r < rows; r++) memcpy(tracer + r * a->features, own->state + r * width, (size_t)there);
    if (pending) {
#pragma omp atomic write
        a->at_target[sample] = 0;
    }
}

// How many of a head's queries one thread takes through all steps: all, but as many as stay in its second cache, and fewer
// where heads are too few for the threads.
static int64_t queries_of_block(int64_t queries, int64_t keys, int64_t heads) {
    enum { BLOCK = 1 << 19 };
    int64_t parts = (queries * keys + BLOCK - 1) / BLOCK;
#ifdef _OPENMP
    int64_t wanted = (2 * omp_get_max_threads() + heads - 1) / heads;
    if (wanted > parts) parts = wanted;
#endif
    return padded((queries + parts - 1) / parts, BLOCK_ROWS);
}

#if HAVE_PRODUCTS
// The share of its levels that may change for a row's events to be a shorter way than a whole product.
static double share_of_events(int fixed) {
    if (tiles_allowed) return fixed ? 0.25 : 0.06;
    return fixed ? 0.6 : 0.4;
}

// How many blocks of a product a thread takes up at once: all of a panel, which it has to hold, if panels are enough.
static int64_t blocks_of_a_thread(int64_t panels, int64_t blocks) {
    int threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    return panels >= 2 * threads ? blocks : 1;
}
#endif

// Run the neurons of one node through a chunk. Returns how many rows of levels there are, negative if a current is NaN;
// NOT_FIRED without memory.
int64_t spikezip_fire(const Neurons *a) {
    enum { BLOCK = 8192 };  // elements that one thread takes through all steps: they stay in its first cache
    int product = a->kind == LEVELS, scores = a->kind == SCORES;
    int64_t width = product ? PANEL : a->features, padded_features = padded(a->features, width);
    int64_t heads = scores ? a->heads : 1, places = a->places / heads;  // a block lies within a head
    int64_t rows_of_block = product ? BLOCK_ROWS : BLOCK / width > 0 ? BLOCK / width : 1;
    if (scores) rows_of_block = queries_of_block(places, width, a->samples * heads);
    int64_t blocks = (places + rows_of_block - 1) / rows_of_block, panels = padded_features / width;
    float *scale = spread(a->scale, a->scales, a->features, padded_features, 0.0f);
    float *bias = spread(a->bias, a->biases, a->features, padded_features, 0.0f);
    float *threshold = spread(a->threshold, a->thresholds, a->features, padded_features, 1.0f);
    float *inverse = malloc((size_t)padded_features * sizeof *inverse);
    int lacking = !scale || !bias || !threshold || !inverse, divide = 0;
    if (lacking) return free(scale), free(bias), free(threshold), free(inverse), NOT_FIRED;
    for (int64_t c = 0; c < padded_features; c++) inverse[c] = 1.0f / threshold[c], divide |= threshold[c] > 0x1p125f;
    Quantizer quantizer = {scale, bias, threshold, inverse, (float)a->min_level, (float)a->max_level, divide};
    int undefined = 0;
    memset(a->counts, 0, (size_t)(a->steps * a->samples) * sizeof *a->counts);
    memset(a->at_target, 1, (size_t)a->samples);
    int64_t grain = 1;  // blocks that a thread takes up at once
#if HAVE_PRODUCTS
    Events events = {0};
    uint8_t *shifted = NULL;
    if (product) {
        int64_t part = a->weight.numbers ? WIDE_PART : a->weight.k;
        lacking = find_events(a->current, a->index, a->steps, a->samples, a->places, a->weight.k, part,
                              share_of_events(a->weight.numbers != NULL), &events);
        int64_t given = 0;  // rows of levels
        for (int64_t at = 0; at < a->steps * a->samples; at++) given = given > a->index[at] ? given : a->index[at] + 1;
        if (events.whole && !tiles_allowed) {
            shifted = all_shifted(a->current, given * a->places, a->weight.k);
            lacking |= !shifted;
        }
        grain = blocks_of_a_thread(panels, a->samples * blocks);
    }
#endif

#pragma omp parallel reduction(| : undefined, lacking)
    {
        Scratch own = {.target = malloc((size_t)(rows_of_block * width)), .state = malloc((size_t)(rows_of_block * width)),
                       .sums = NULL};
#if HAVE_PRODUCTS
        own.shifted = shifted, own.events = &events;
        if (product) {
            lacking |= make_room(&a->weight, events.whole, events.any, &own.held);
            lacking |= !(own.sums = aligned_alloc(64, BLOCK_ROWS * PANEL * sizeof *own.sums));
        }
        if (product || scores) {
            int64_t columns = product ? PANEL : padded(a->features, PANEL);  // of a block's product
            own.spare = aligned_alloc(64, (size_t)(BLOCK_ROWS * padded(product ? a->weight.k : a->k, 64)));
            own.product = aligned_alloc(64, (size_t)(BLOCK_ROWS * columns) * sizeof *own.product);
            lacking |= !own.spare || !own.product;
            if (scores) {
                own.panels = aligned_alloc(64, (size_t)(columns / PANEL * panel_bytes(a->k)));
                own.correction = aligned_alloc(64, (size_t)columns * sizeof *own.correction);
                own.probabilities = aligned_alloc(64, (size_t)columns * sizeof *own.probabilities);
                lacking |= !own.panels || !own.correction || !own.probabilities;
            }
            begin_products();
        }
#endif
        lacking |= !own.target || !own.state;
        // Panels outside: what a thread takes up next has the weights that it has just used.
#pragma omp for schedule(dynamic, grain)
        for (int64_t item = 0; item < panels * a->samples * heads * blocks; item++) {
            if (lacking) continue;
            int64_t panel = item / (a->samples * heads * blocks), sample = item / (heads * blocks) % a->samples;
            int64_t head = item / blocks % heads, first = item % blocks * rows_of_block;
            run_block(a, &quantizer, &own, sample, head * places + first, least(places - first, rows_of_block),
                      panel * width, width, &undefined);
        }
#if HAVE_PRODUCTS
        if (product || scores) end_products();
        if (product) let_go(&own.held);
#endif
        free(own.target), free(own.state), free(own.spare), free(own.product);
        free(own.panels), free(own.correction), free(own.probabilities), free(own.sums);
    }
    free(scale), free(bias), free(threshold), free(inverse);
#if HAVE_PRODUCTS
    free(shifted), no_events(&events);
#endif
    if (lacking) return NOT_FIRED;

    // Keep the rows that something changed in.
    int64_t rows = 0, n = a->places * a->features;
    for (int64_t t = 0; t < a->steps; t++)
        for (int64_t b = 0; b < a->samples; b++) {
            int64_t at = t * a->samples + b;
            a->changed[at] = t == 0 || a->counts[at] > 0;
            a->row_of[at] = a->changed[at] ? rows++ : a->row_of[at - a->samples];
            if (a->changed[at] && a->row_of[at] != at) memcpy(a->levels + a->row_of[at] * n, a->levels + at * n, (size_t)n);
        }
    return undefined ? -rows : rows;
}

#if HAVE_PRODUCTS
// Put a block of a product, `rows` rows of a panel, in its place: whole numbers, or those of fixed point, `wide`, times their
// quanta; floats if there is a scale.
static void hand_out(const int32_t *product, const double *wide, const float *quanta, int64_t rows, int64_t columns,
                     const float *scale, const float *bias, void *out, int64_t stride) {
    for (int64_t r = 0; r < rows; r++) {
        float *values = (float *)out + r * stride;
        if (!scale && wide)
            for (int64_t c = 0; c < columns; c++) ((double *)out)[r * stride + c] = wide[r * PANEL + c] * (double)quanta[c];
        else if (!scale)
            memcpy(values, product + r * PANEL, (size_t)columns * sizeof *product);
        else {
            if (wide)
                for (int64_t c = 0; c < columns; c++) values[c] = (float)wide[r * PANEL + c] * quanta[c] * scale[c];
            else
                for (int64_t c = 0; c < columns; c++) values[c] = (float)product[r * PANEL + c] * scale[c];
            if (bias)
                for (int64_t c = 0; c < columns; c++) values[c] += bias[c];
        }
    }
}
#endif

// Values integer * scale[c] + bias[c] of rows of int8 or int32; one scale or one for each feature, and so of biases.
int spikezip_value(const void *integers, int is_int8, const float *given_scale, int64_t scales, const float *given_bias,
                   int64_t biases, int64_t rows, int64_t features, float *values) {
    float *scale = spread(given_scale, scales, features, features, 0.0f);
    float *bias = biases ? spread(given_bias, biases, features, features, 0.0f) : NULL;
    if (!scale || (biases && !bias)) return free(scale), free(bias), OUT_OF_MEMORY;
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
    free(scale), free(bias);
    return DONE;
}

// Levels of row `r` of a weight (n, k).
static void levels_of_weight(const float *weight, const float *scale, int64_t r, int64_t k, int max_level,
                             int8_t *levels) {
    enum { SOME = 64 };
    float threshold[SOME], inverse[SOME];
    for (int i = 0; i < SOME; i++) threshold[i] = scale[r], inverse[i] = 1.0f / scale[r];
    Quantizer quantizer = {NULL, NULL, threshold, inverse, (float)-max_level, (float)max_level, scale[r] > 0x1p125f};
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
#pragma omp parallel reduction(| : lacking)
    {
        int8_t *levels = malloc((size_t)k);
        lacking = !levels;
#pragma omp for schedule(dynamic)
        for (int64_t panel = 0; panel < padded(n, PANEL) / PANEL; panel++) {
            if (lacking) continue;
            int8_t *out = panels + panel * panel_bytes(k);
            if (k % 64 || n - panel * PANEL < PANEL) memset(out, 0, (size_t)panel_bytes(k));
            for (int64_t j = 0; j < least(n - panel * PANEL, PANEL); j++) {
                levels_of_weight(weight, scale, panel * PANEL + j, k, max_level, levels);
                pack_column(levels, k, j, out);
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

#if HAVE_PRODUCTS
// The right side of a product, (k, n) of any strides, as panels.
static void pack_right(const int8_t *b, int64_t stride_k, int64_t stride_n, int64_t k, int64_t n, int8_t *panels,
                       int32_t *correction) {
    for (int64_t first = 0; first < n; first += PANEL) {
        int8_t *panel = panels + first / PANEL * panel_bytes(k);
        int64_t columns = least(n - first, PANEL);
        if (k % 64 || columns < PANEL) memset(panel, 0, (size_t)panel_bytes(k));
        if (stride_k == 1)
            for (int64_t j = 0; j < columns; j++) pack_column(b + (first + j) * stride_n, k, j, panel);
        else
            for (int64_t i = 0; i < k; i++) {
                const int8_t *row = b + i * stride_k + first * stride_n;
                int8_t *out = panel + i / 4 * PANEL * 4 + i % 4;
                if (stride_n == 1)
                    for (int64_t j = 0; j < columns; j++) out[4 * j] = row[j];
                else
                    for (int64_t j = 0; j < columns; j++) out[4 * j] = row[j * stride_n];
            }
        if (!tiles_allowed) correct(panel, k, correction + first);
    }
}
#endif

// Products out (m, n) = left (m, k) @ weight.T: int32 or, in fixed point, float64; with `scale`, the floats product * scale[c]
// + bias[c].
int spikezip_linear(const int8_t *left, int64_t m, const Weight *weight, const float *given_scale, int64_t scales,
                    const float *given_bias, int64_t biases, void *out) {
    int lacking = 0;
#if HAVE_PRODUCTS
    int64_t n = weight->n, k = weight->k, fixed = weight->numbers != NULL;
    float *scale = scales ? spread(given_scale, scales, n, n, 0.0f) : NULL;
    float *bias = biases ? spread(given_bias, biases, n, n, 0.0f) : NULL;
    if ((scales && !scale) || (biases && !bias)) return free(scale), free(bias), OUT_OF_MEMORY;
    int64_t blocks = (m + BLOCK_ROWS - 1) / BLOCK_ROWS, count = padded(n, PANEL) / PANEL;
    uint8_t *shifted = all_shifted(left, m, k);
    if (!shifted && !tiles_allowed) return free(scale), free(bias), OUT_OF_MEMORY;
    int64_t grain = blocks_of_a_thread(count, blocks);
#pragma omp parallel reduction(| : lacking)
    {
        Held held;
        int8_t *spare = aligned_alloc(64, (size_t)(BLOCK_ROWS * padded(k, 64)));
        int32_t *product = aligned_alloc(64, BLOCK_ROWS * PANEL * sizeof *product);
        double *sums = aligned_alloc(64, BLOCK_ROWS * PANEL * sizeof *sums);
        lacking = make_room(weight, 1, 0, &held) | !spare | !product | !sums;
        begin_products();
#pragma omp for schedule(dynamic, grain)
        for (int64_t item = 0; item < count * blocks; item++) {
            if (lacking) continue;
            int64_t panel = item / blocks, first = item % blocks * BLOCK_ROWS, rows = least(m - first, BLOCK_ROWS);
            int64_t at = first * n + panel * PANEL;
            hold(weight, panel, &held);
            whole_block(weight, &held, left, shifted, first, (int)rows, spare, product, sums);
            hand_out(product, fixed ? sums : NULL, held.quanta, rows, least(n - panel * PANEL, PANEL),
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
        int8_t *spare = aligned_alloc(64, (size_t)(BLOCK_ROWS * padded(k, 64)));
        int32_t *product = aligned_alloc(64, BLOCK_ROWS * PANEL * sizeof *product);
        lacking = !panels || !correction || !spare || !product;
        begin_products();
#pragma omp for schedule(dynamic)
        for (int64_t pair = 0; pair < outer * inner; pair++) {
            if (lacking) continue;
            int64_t o = pair / inner, i = pair % inner;
            const int8_t *left = a + o * a_strides[0] + i * a_strides[1];
            int32_t *result = out + o * out_strides[0] + i * out_strides[1];
            pack_right(b + o * b_strides[0] + i * b_strides[1], b_strides[2], b_strides[3], k, n, panels, correction);
            for (int64_t first = 0; first < m; first += BLOCK_ROWS)
                for (int64_t j = 0; j < n; j += PANEL) {
                    int rows = (int)least(m - first, BLOCK_ROWS);
                    product_block(left + first * a_strides[2], a_strides[2], rows, k,
                                  panels + j / PANEL * panel_bytes(k), correction + j, spare, product);
                    hand_out(product, NULL, NULL, rows, least(n - j, PANEL), scale ? scale + j : NULL, NULL,
                             result + first * out_strides[2] + j, out_strides[2]);
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
