// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// The inner loops of a simulation on a CPU. Each does what a reference in `models/` does, operation for operation and
// rounding for rounding (compiled without contraction of a * b + c), only without passes over memory in between.
// Built by `building.py`, called by `native.py`.

#define _GNU_SOURCE  // syscall
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "arrays.h"
#include "neurons.h"
#include "softmax.h"
#include "weights.h"

static const int64_t NOT_FIRED = INT64_MIN;  // without memory

// What currents x are given as.
enum {
    FLOATS,    // themselves
    INTEGERS,  // int32, x = integer * scale + bias
    LEVELS,    // int8, (rows, places, k): so is their product with a weight, see weights.h
    SCORES,    // int8, (rows, heads, queries, k): x is the softmax of the product with `right`
    CONTEXTS,  // int8, (rows, heads, places, k): so is the product with `right`, head beside head
};

// The neurons of one node in a chunk. The mirror of `Neurons` in native.py.
typedef struct {
    const void *current;  // rows, of this kind
    int64_t kind;
    Weight weight;           // of LEVELS
    const int8_t *right;     // of SCORES: (rows, heads, k, features), of CONTEXTS: (rows, heads, k, width);
    const int64_t *strides;  // of `current`, three, whose last is 1, and of `right`, four, CONTEXTS' last is 1;
    int64_t k;
    int64_t width;         // of CONTEXTS: features of a head, at most PANEL;
    const int32_t *table;  // of SCORES: of exponentials, see softmax.h,
    int64_t entries;       // so many;
    const uint8_t *keys;   // (rows, features) which scores count, or NULL for all
    const float *scale, *bias, *threshold;
    int64_t scales, biases, thresholds;  // one number or one for each feature; no bias if 0
    const uint8_t *tokens;               // (samples, positions) which positions hold tokens, or NULL for all: elsewhere
                                         // there is no current, and tracers are 0
    int64_t positions;                   // the last dimension of places
    int64_t places, features;            // neurons of a sample: (places, features)
    int64_t steps, samples;
    const int64_t *index;  // (steps, samples) which row is the current of that step
    int8_t *tracer;        // (samples, places, features) before, unless they are fresh, and after
    int8_t *levels;        // (steps, samples, places, features): its first rows are the levels of the steps at which a
                           // sample's levels move, and of the first step
    int64_t *row_of;       // (steps, samples) the row of `levels` that stands for a step
    uint8_t *changed;      // (steps, samples) whether it is the step's own
    int64_t *counts;       // (steps, samples) spikes
    uint8_t *at_target;    // (samples) whether the last tracers are at their targets
    int64_t min_level, max_level, max_spikes;
    int64_t closed;  // leading steps in which the node may not fire
    int64_t coarse;  // leading steps in which it does not fire at a difference of one level
    int64_t fresh;   // whether tracers begin at 0, and what is in their memory is nothing
} Neurons;

// A thread's own memory: targets and tracers of a block, its product, rows with zeros around them; of a weight, its panel,
// sums in fixed point, and what the row before had for product or sums; of attention, the right side of a product as
// panels, and a row of probabilities.
typedef struct {
    int8_t *target, *state, *spare, *panels;
    int32_t *product, *last, *correction;
    double *sums, *last_sums;
    float *probabilities;
#if HAVE_PRODUCTS
    Held held;
    const uint8_t *shifted;  // everybody's: the rows of levels, shifted; NULL unless `shifts_rows`
    const Events *events;    // everybody's, too
#endif
} Scratch;

#if HAVE_PRODUCTS
// Targets of `rows` queries of one head, from place `first` on, in one row: of the softmax of their scores.
static void targets_of_scores(const Neurons *a, const Quantizer *q, const Scratch *own, int64_t sample, int64_t row,
                              int64_t first, int64_t rows, int *undefined) {
    const int64_t *left_strides = a->strides, *right_strides = a->strides + 3, n = a->features;
    int64_t head = first / a->positions;
    const uint8_t *keys = a->keys ? a->keys + row * n : NULL;
    Span seen = span_of(keys, n);
    int64_t count = seen.to - seen.from;
    const int8_t *left = (const int8_t *)a->current + row * left_strides[0] + head * left_strides[1];
    const int8_t *right = a->right + row * right_strides[0] + head * right_strides[1] + seen.from * right_strides[3];
    pack_right(right, right_strides[2], right_strides[3], a->k, count, own->panels, own->correction);
    for (int64_t start = 0; start < rows; start += BLOCK_ROWS) {
        int64_t query = first % a->positions + start;
        int some = (int)least(rows - start, BLOCK_ROWS);
        for (int64_t j = 0; j < count; j += PANEL)
            product_block(left + query * left_strides[2], left_strides[2], some, a->k,
                          own->panels + j / PANEL * panel_bytes(a->k), own->correction + j, own->spare,
                          own->product + j * BLOCK_ROWS);
        for (int r = 0; r < some; r++) {
            int8_t *target = own->target + (start + r) * n;
            memset(target, 0, (size_t)n);
            if (a->tokens && !a->tokens[sample * a->positions + query + r]) continue;
            softmax(own->product + r * PANEL, BLOCK_ROWS * PANEL, count, keys ? keys + seen.from : NULL, a->table,
                    a->entries, own->probabilities);
            levels_of_floats(own->probabilities, count, q, seen.from, target + seen.from, undefined);
        }
    }
}

// Targets of `rows` places of the head whose features begin at `column`, from place `first` on, in one row.
static void targets_of_contexts(const Neurons *a, const Quantizer *q, const Scratch *own, int64_t sample, int64_t row,
                                int64_t first, int64_t rows, int64_t column, int *undefined) {
    const int64_t *left_strides = a->strides, *right_strides = a->strides + 3, width = a->width;
    int64_t head = column / width;
    const int8_t *right = a->right + row * right_strides[0] + head * right_strides[1];
    Span loud = without_silence(right, right_strides[2], a->k, width);
    int64_t count = loud.to - loud.from;
    const int8_t *left = (const int8_t *)a->current + row * left_strides[0] + head * left_strides[1] + loud.from;
    pack_right(right + loud.from * right_strides[2], right_strides[2], 1, count, width, own->panels, own->correction);
    for (int64_t r = 0; r < rows; r++) {
        if (r % BLOCK_ROWS == 0)
            product_block(left + (first + r) * left_strides[2], left_strides[2], (int)least(rows - r, BLOCK_ROWS), count,
                          own->panels, own->correction, own->spare, own->product);
        int8_t *target = own->target + r * width;
        if (a->tokens && !a->tokens[sample * a->positions + first + r])
            memset(target, 0, (size_t)width);
        else
            levels_of_integers(own->product + r % BLOCK_ROWS * PANEL, width, q, column, target, undefined);
    }
}
#endif

// Targets of a block of a step's row: `rows` places from `first` on, `width` features from `column` on.
static void targets_of_block(const Neurons *a, const Quantizer *q, Scratch *own, int64_t sample, int64_t at,
                             int64_t first, int64_t rows, int64_t column, int64_t width, int *undefined) {
    const int32_t *integers = NULL;
    int64_t stride = a->features, row = a->index[at];
#if HAVE_PRODUCTS
    const double *sums = NULL;
    if (a->kind == SCORES) {
        targets_of_scores(a, q, own, sample, row, first, rows, undefined);
        return;
    }
    if (a->kind == CONTEXTS) {
        targets_of_contexts(a, q, own, sample, row, first, rows, column, undefined);
        return;
    }
    if (a->kind == LEVELS) {
        int32_t *last = own->product;
        double *last_sums = own->sums;
        if (own->sums)  // the product of numbers is only on the way to their sums
            own->sums = own->last_sums, own->last_sums = last_sums;
        else
            own->product = own->last, own->last = last;
        if (own->events->way[at] != WHOLE)
            add_events(&a->weight, &own->held, own->events, at, first, rows, a->places, last, own->product, last_sums,
                       own->sums);
        else
            whole_block(&a->weight, &own->held, a->current, own->shifted, row * a->places + first, (int)rows, own->spare,
                        own->product, own->sums);
        integers = own->product, sums = own->sums, stride = PANEL;
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
        else if (sums)
            levels_of_sums(sums + r * stride, own->held.quanta, width, q, column, target, undefined);
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
    if (there < width || a->fresh) memset(own->state, 0, (size_t)(rows * width));
    if (!a->fresh) copy_rows(tracer, a->features, rows, there, own->state, width);
#if HAVE_PRODUCTS
    if (a->kind == LEVELS) {
        hold(&a->weight, column / PANEL, &own->held);
        if (own->sums) {
            memset(own->sums, 0, BLOCK_ROWS * PANEL * sizeof *own->sums);
            memset(own->last_sums, 0, BLOCK_ROWS * PANEL * sizeof *own->sums);
        } else {
            memset(own->product, 0, BLOCK_ROWS * PANEL * sizeof *own->product);
            memset(own->last, 0, BLOCK_ROWS * PANEL * sizeof *own->last);
        }
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
        copy_rows(own->state, width, rows, there, out, a->features);
    }
    copy_rows(own->state, width, rows, there, tracer, a->features);
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

// Nothing at the padding of a sample's row of levels.
static void silence_padding(const Neurons *a, Span span, int8_t *levels) {
    int64_t size = a->positions * a->features;
    for (int64_t i = 0; i < a->places * a->features; i += size) {
        memset(levels + i, 0, (size_t)(span.from * a->features));
        memset(levels + i + span.to * a->features, 0, (size_t)(size - span.to * a->features));
    }
}

// Run the neurons of one node through a chunk. Returns how many rows of levels there are, negative if a current is NaN;
// NOT_FIRED without memory.
int64_t spikezip_fire(const Neurons *a) {
    enum { BLOCK = 8192 };  // elements that one thread takes through all steps: they stay in its first cache
    int product = a->kind == LEVELS, scores = a->kind == SCORES, contexts = a->kind == CONTEXTS;
    int64_t width = product ? PANEL : contexts ? a->width : a->features, padded_features = padded(a->features, width);
    int64_t heads = a->places / a->positions;  // or windows; a block lies within one
    int64_t rows_of_block = product ? BLOCK_ROWS : BLOCK / width > 0 ? BLOCK / width : 1;
    int64_t panels = padded_features / width;  // or heads whose contexts lie side by side
    if (scores || contexts) rows_of_block = queries_of_block(a->positions, width, a->samples * heads * panels);
    int64_t blocks = (a->positions + rows_of_block - 1) / rows_of_block;
    float *scale = spread(a->scale, a->scales, a->features, padded_features, 0.0f);
    float *bias = spread(a->bias, a->biases, a->features, padded_features, 0.0f);
    float *threshold = spread(a->threshold, a->thresholds, a->features, padded_features, 1.0f);
    float *inverse = malloc((size_t)padded_features * sizeof *inverse);
    Span *spans = malloc((size_t)a->samples * sizeof *spans);
    int lacking = !scale || !bias || !threshold || !inverse || !spans, divide = 0;
    if (lacking) return free(scale), free(bias), free(threshold), free(inverse), free(spans), NOT_FIRED;
    for (int64_t b = 0; b < a->samples; b++)
        spans[b] = span_of(a->tokens ? a->tokens + b * a->positions : NULL, a->positions);
    for (int64_t c = 0; c < padded_features; c++) inverse[c] = 1.0f / threshold[c], divide |= !inverse_is_of_use(threshold[c]);
    Quantizer quantizer = {scale, bias, threshold, inverse, (float)a->min_level, (float)a->max_level, divide};
    int undefined = 0;
    memset(a->counts, 0, (size_t)(a->steps * a->samples) * sizeof *a->counts);
    memset(a->at_target, 1, (size_t)a->samples);
    int unprepared = 0;  // for want of memory
    int64_t grain = 1;   // blocks that a thread takes up at once
#if HAVE_PRODUCTS
    Events events = {0};
    uint8_t *shifted = NULL;
    if (product) {
        int64_t part = a->weight.numbers ? NUMBERS_PART : a->weight.k;
        Given given = {a->current, a->index, spans, a->steps, a->samples, a->places, a->positions, a->weight.k};
        unprepared = find_events(&given, part, share_of_events(a->weight.numbers != NULL), !a->weight.numbers, &events);
        if (!unprepared && events.whole && shifts_rows(a->weight.numbers != NULL))
            unprepared = !(shifted = whole_rows_shifted(&given, &events));
        if (a->weight.numbers) grain = blocks_of_a_thread(panels, a->samples * heads * blocks);
    }
#endif

#pragma omp parallel reduction(| : undefined, lacking)
    {
        Scratch own = {.target = malloc((size_t)(rows_of_block * width)), .state = malloc((size_t)(rows_of_block * width))};
        lacking = unprepared | !own.target | !own.state;
#if HAVE_PRODUCTS
        own.shifted = shifted, own.events = &events;
        if (product) {
            lacking |= make_room(&a->weight, events.whole, events.any, &own.held);
            if (a->weight.numbers) {
                own.sums = aligned_alloc(64, BLOCK_ROWS * PANEL * sizeof *own.sums);
                own.last_sums = aligned_alloc(64, BLOCK_ROWS * PANEL * sizeof *own.sums);
                lacking |= !own.sums || !own.last_sums;
            } else {
                lacking |= !(own.last = aligned_alloc(64, BLOCK_ROWS * PANEL * sizeof *own.last));
            }
        }
        if (product || scores || contexts) {
            int64_t columns = scores ? padded(a->features, PANEL) : PANEL;  // of a block's product
            own.spare = aligned_alloc(64, (size_t)(BLOCK_ROWS * shifted_bytes(product ? a->weight.k : a->k)));
            own.product = aligned_alloc(64, (size_t)(BLOCK_ROWS * columns) * sizeof *own.product);
            lacking |= !own.spare || !own.product;
            if (!product) {
                own.panels = aligned_alloc(64, (size_t)(columns / PANEL * panel_bytes(a->k)));
                own.correction = aligned_alloc(64, (size_t)columns * sizeof *own.correction);
                lacking |= !own.panels || !own.correction;
            }
            if (scores) lacking |= !(own.probabilities = aligned_alloc(64, (size_t)columns * sizeof *own.probabilities));
            begin_products();
        }
#endif
        // Panels outside: what a thread takes up next has the weights that it has just used.
#pragma omp for schedule(dynamic, grain)
        for (int64_t item = 0; item < panels * a->samples * heads * blocks; item++) {
            if (lacking) continue;
            int64_t panel = item / (a->samples * heads * blocks), sample = item / (heads * blocks) % a->samples;
            int64_t head = item / blocks % heads, first = spans[sample].from + item % blocks * rows_of_block;
            int64_t rows = least(spans[sample].to - first, rows_of_block);
            if (rows > 0)
                run_block(a, &quantizer, &own, sample, head * a->positions + first, rows, panel * width, width, &undefined);
        }
#if HAVE_PRODUCTS
        if (product || scores || contexts) end_products();
        if (product) let_go(&own.held);
#endif
        free(own.target), free(own.state), free(own.spare), free(own.product);
        free(own.panels), free(own.correction), free(own.probabilities);
        free(own.last), free(own.sums), free(own.last_sums);
    }
    free(scale), free(bias), free(threshold), free(inverse);
#if HAVE_PRODUCTS
    free(shifted), no_events(&events);
#endif
    if (lacking) return free(spans), NOT_FIRED;

    // Keep the rows that something changed in.
    int64_t rows = 0, all = a->steps * a->samples, n = a->places * a->features;
    for (int64_t at = 0; at < all; at++) {
        a->changed[at] = at < a->samples || a->counts[at] > 0;
        a->row_of[at] = a->changed[at] ? rows++ : a->row_of[at - a->samples];
    }
    if (rows < all) {
        enum { PART = 4096 };  // of every row: rows move up one behind the other, parts of them side by side
#pragma omp parallel for schedule(static)
        for (int64_t i = 0; i < n; i += PART)
            for (int64_t at = 0; at < all; at++)
                if (a->changed[at] && a->row_of[at] != at)
                    memcpy(a->levels + a->row_of[at] * n + i, a->levels + at * n + i, (size_t)least(n - i, PART));
    }
    if (a->tokens) {
#pragma omp parallel for schedule(static)
        for (int64_t at = 0; at < all; at++)
            if (a->changed[at]) silence_padding(a, spans[at % a->samples], a->levels + a->row_of[at] * n);
        for (int64_t b = 0; b < a->samples && a->fresh; b++) silence_padding(a, spans[b], a->tracer + b * n);
    }
    free(spans);
    return undefined ? -rows : rows;
}
