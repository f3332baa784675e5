// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// Rows of levels as events: the features whose levels differ from what was to be expected, once for each level. Expected
// is that all stay as they were in the row before, or that all go on as they last moved, whichever is nearer: while most
// neurons are on their way, most go on. A product with a weight then changes by rows of that weight, added or taken off:
// additions for spikes, and nothing for what is silent. Sums are of whole numbers, so they are those of a whole product.

#pragma once

#include <stdlib.h>

#include "products.h"

#if HAVE_PRODUCTS
enum { MOST_FEATURES = (1 << 16) - 1 };  // an event can name them, and nobody
enum { NUMBERS_ROW = 32, NUMBERS_PART = 384 };  // numbers of a row of a weight in fixed point, and how many rows at a time

// What a product is of: rows of levels (rows, places, k), and which of them are current, (steps, samples). Places are
// positions, several times over if there are windows; a sample's levels count in its span of positions.
typedef struct {
    const int8_t *levels;
    const int64_t *index;
    const Span *spans;  // (samples)
    int64_t steps, samples, places, positions, k;
} Given;

typedef struct {
    int64_t parts;        // events of a place lie in so many parts, each of as many features
    uint16_t *features;   // of all events: those of a part that rise, then those that fall; of bytes an even number, the
                          // first to fall nobody, k, if need be
    int64_t *start;       // (steps, samples, places * parts + 1) where those of a part lie
    int32_t *rises;       // (steps, samples, places, parts) how many rise
    uint8_t *way;         // (steps, samples) of steps that have a new row: how it is made, and so what events are against
    int whole;            // whether some are whole
    int any;              // whether some are made of events
} Events;

enum { WHOLE, STAYS, GOES_ON };

static void no_events(Events *events) {
    free(events->features), free(events->start), free(events->rises), free(events->way);
}

enum { PAIRS = 64 };  // whose sums fit in 16 bits: `add_rows_of_bytes` adds so many at once

// Signs, each for a pair of rows of a weight of bytes, twice: of up to 64 pairs from `pair` on, where so many rows rise.
static inline const int32_t *signs_of_pairs(int64_t rises, int64_t pair) {
    enum { RISE = 0x01010101, FALL = -1, RISE_AND_FALL = (int)0xff01ff01 };
    // Of the pairs around the first fall, so that one loop, whose end is hard to foresee, does for rises and falls.
    static const int32_t signs[2][2 * PAIRS + 1] = {
        {[0 ... PAIRS - 1] = RISE, [PAIRS ... 2 * PAIRS] = FALL},
        {[0 ... PAIRS - 1] = RISE, [PAIRS] = RISE_AND_FALL, [PAIRS + 1 ... 2 * PAIRS] = FALL},
    };
    int64_t rising = least(rises / 2 - pair, PAIRS);
    return signs[rises % 2] + PAIRS - (rising < -1 ? -1 : rising);
}

#if WITH_AVX512
#include "avx512/events.h"
#else
#include "avx2/events.h"
#endif

// The levels of a step, from a place on, and those of the step before: NULL ahead of the first.
static inline const int8_t *levels_now(const Given *a, int64_t at, int64_t place) {
    return a->levels + (a->index[at] * a->places + place) * a->k;
}

static inline const int8_t *levels_before(const Given *a, int64_t at, int64_t place) {
    return at < a->samples ? NULL : levels_now(a, at - a->samples, place);
}

static inline int is_new(const Given *a, int64_t at) {
    return at < a->samples || a->index[at] != a->index[at - a->samples];
}

// The levels of the row ahead of the one of the step before.
static inline const int8_t *levels_earlier(const Given *a, int64_t at, int64_t place) {
    at -= a->samples;
    while (!is_new(a, at)) at -= a->samples;
    return levels_before(a, at, place);
}

static inline int counts(const Given *a, int64_t at, int64_t place) {
    Span span = a->spans[at % a->samples];
    return span.from <= place % a->positions && place % a->positions < span.to;
}

// Which of two expectations is nearer to a step's levels, by up to 16 of its places. `spare`: memory for a row.
static int nearer_way(const Given *a, int64_t at, int8_t *spare) {
    enum { PLACES = 16 };
    if (at < a->samples) return STAYS;
    Span span = a->spans[at % a->samples];
    int64_t length = span.to - span.from, all = a->places / a->positions * length, stays = 0, goes_on = 0;
    for (int64_t i = 0; i < all; i += all / PLACES + 1) {
        int64_t place = i / length * a->positions + span.from + i % length;
        const int8_t *now = levels_now(a, at, place), *before = levels_before(a, at, place);
        if (!gone_on(before, levels_earlier(a, at, place), a->k, spare)) return STAYS;
        stays += count_events(now, before, a->k), goes_on += count_events(now, spare, a->k);
    }
    return goes_on < stays ? GOES_ON : STAYS;
}

// List the events of a step against what is expected, from `next` on: at most so many. Returns the way that they are for:
// another one where levels that go on are no bytes, WHOLE where there are more.
static int list_step(const Given *a, int64_t at, int64_t part, int even, int64_t most, int way, int8_t *spare, int64_t next,
                     Events *events) {
    int64_t k = a->k, size = a->places * events->parts, *start = events->start + at * (size + 1), left = most, first = next;
    int32_t *rises = events->rises + at * size;
    for (int64_t place = 0; place < a->places; place++) {
        const int8_t *now = levels_now(a, at, place), *expected = levels_before(a, at, place);
        int there = counts(a, at, place);
        if (there && way == GOES_ON) {
            if (!gone_on(expected, levels_earlier(a, at, place), k, spare))
                return list_step(a, at, part, even, most, STAYS, spare, first, events);
            expected = spare;
        }
        for (int64_t from = 0; from < k; from += part, start++, rises++) {
            int64_t to = least(k, from + part);
            int64_t count = there ? count_events(now + from, expected ? expected + from : NULL, to - from) : 0;
            if ((left -= count) < 0) return WHOLE;
            uint16_t *features = events->features + next;
            *start = next, next += count + (even & count);
            *rises = count ? (int32_t)list_events(now, expected, from, to, features, events->features + next) : 0;
        }
    }
    *start = next;
    return way;
}

// Find the events of all steps. Returns whether memory is lacking.
// `share`: a row is made of its events if they are at most this share of its levels. `part`: features of a part. `even`:
// whether parts are to have an even number of them.
static int find_events(const Given *a, int64_t part, double share, int even, Events *events) {
    int64_t all = a->steps * a->samples, k = a->k, parts = (k + part - 1) / part, size = a->places * parts;
    int64_t room = (int64_t)(share * (double)(a->places * k)) + size;  // for a step's, and a nobody for each part
    *events = (Events){.parts = parts};
    events->way = calloc((size_t)all, 1);
    events->start = malloc((size_t)(all * (size + 1)) * sizeof *events->start);
    events->rises = malloc((size_t)(all * size) * sizeof *events->rises);
    events->features = malloc((size_t)(all * room) * sizeof *events->features);
    if (!events->way || !events->start || !events->rises || !events->features) return 1;
    int whole = 0, any = 0, lacking = 0;
#pragma omp parallel for schedule(dynamic) reduction(| : whole, any, lacking)
    for (int64_t at = 0; at < all; at++) {
        if (!is_new(a, at)) continue;
        Span span = a->spans[at % a->samples];
        int64_t levels = a->places / a->positions * (span.to - span.from) * k;
        int8_t *spare = malloc((size_t)k);
        lacking |= !spare;
        if (spare && k <= MOST_FEATURES)
            events->way[at] = (uint8_t)list_step(a, at, part, even, (int64_t)(share * (double)levels),
                                                 nearer_way(a, at, spare), spare, at * room, events);
        free(spare);
        whole |= events->way[at] == WHOLE, any |= events->way[at] != WHOLE;
    }
    events->any = any, events->whole = whole;
    return lacking;
}

// The rows that are multiplied whole, shifted as vectors multiply them, once for all panels of a weight, each in its place
// among all; NULL without memory.
static uint8_t *whole_rows_shifted(const Given *a, const Events *events) {
    int64_t rows = 0, all = a->steps * a->samples, wide = shifted_bytes(a->k);
    for (int64_t at = 0; at < all; at++) rows = rows > a->index[at] ? rows : a->index[at] + 1;
    uint8_t *shifted = aligned_alloc(64, (size_t)(rows * a->places * wide));
    if (!shifted) return NULL;
#pragma omp parallel for schedule(dynamic)
    for (int64_t at = 0; at < all; at++)
        for (int64_t place = 0; place < a->places && is_new(a, at) && events->way[at] == WHOLE; place++)
            if (counts(a, at, place))
                shift_row(levels_now(a, at, place), a->k, shifted + (a->index[at] * a->places + place) * wide);
    return shifted;
}

#endif
