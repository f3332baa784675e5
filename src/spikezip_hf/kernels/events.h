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

// Up to 64 levels of a row; 0 before the first row.
static inline __m512i some_levels(const int8_t *row, __mmask64 there) {
    return row ? _mm512_maskz_loadu_epi8(there, row) : _mm512_setzero_si512();
}

static int64_t count_events(const int8_t *now, const int8_t *before, int64_t k) {
    const __m512i shift = _mm512_set1_epi8((char)128);  // unsigned, in the same order
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < k; i += 64) {
        __m512i a = _mm512_xor_si512(some_levels(now + i, first_of_64(k - i)), shift);
        __m512i b = _mm512_xor_si512(some_levels(before ? before + i : NULL, first_of_64(k - i)), shift);
        __m512i by = _mm512_sub_epi8(_mm512_max_epu8(a, b), _mm512_min_epu8(a, b));
        sum = _mm512_add_epi64(sum, _mm512_sad_epu8(by, _mm512_setzero_si512()));
    }
    return _mm512_reduce_add_epi64(sum);
}

// Write the names of those of 64 features that are in a mask, from `first` on.
static inline void write_names(__mmask64 mask, int64_t first, uint16_t *out) {
#ifdef __AVX512VBMI2__
    static const int8_t places[64] = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
                                      22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43,
                                      44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63};
    __m512i named = _mm512_maskz_compress_epi8(mask, _mm512_loadu_si512(places)), from = _mm512_set1_epi16((int16_t)first);
    int count = __builtin_popcountll(mask);
    __m512i names = _mm512_add_epi16(_mm512_cvtepu8_epi16(_mm512_castsi512_si256(named)), from);
    _mm512_mask_storeu_epi16(out, (__mmask32)first_of_64(count), names);
    if (count <= 32) return;
    names = _mm512_add_epi16(_mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(named, 1)), from);
    _mm512_mask_storeu_epi16(out + 32, (__mmask32)first_of_64(count - 32), names);
#else
    for (; mask; mask &= mask - 1) *out++ = (uint16_t)(first + __builtin_ctzll(mask));
#endif
}

// List the features whose levels rise, from `out` on, and those whose levels fall, up to `end`: each as often as it does. If
// there is room for one more, `to` falls, which is nobody. Returns how many rise.
static int64_t list_events(const int8_t *now, const int8_t *before, int64_t from, int64_t to, uint16_t *out,
                           uint16_t *end) {
    const __m512i one = _mm512_set1_epi8(1);
    uint16_t *next = out;
    for (int64_t i = from; i < to; i += 64) {
        __m512i a = some_levels(now + i, first_of_64(to - i));
        __m512i b = some_levels(before ? before + i : NULL, first_of_64(to - i));
        __mmask64 rise = _mm512_cmpgt_epi8_mask(a, b), fall = _mm512_cmplt_epi8_mask(a, b);
        while (rise | fall) {
            write_names(rise, i, next);
            next += __builtin_popcountll(rise);
            end -= __builtin_popcountll(fall);
            write_names(fall, i, end);
            b = _mm512_mask_sub_epi8(_mm512_mask_add_epi8(b, rise, b, one), fall, b, one);
            rise = _mm512_cmpgt_epi8_mask(a, b), fall = _mm512_cmplt_epi8_mask(a, b);
        }
    }
    if (next < end) *next = (uint16_t)to;
    return next - out;
}

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

// The share of its levels that may be events for these to be a shorter way than a whole product.
static double share_of_events(int fixed) {
    if (tiles_allowed) return fixed ? 0.25 : 0.06;
    return fixed ? 0.6 : 0.5;
}

// A row's levels, if all go on as they moved between the two rows before. Returns whether these are bytes.
static int gone_on(const int8_t *before, const int8_t *earlier, int64_t k, int8_t *out) {
    __mmask64 beyond = 0;
    for (int64_t i = 0; i < k; i += 64) {
        __mmask64 there = first_of_64(k - i);
        __m512i b = some_levels(before + i, there), c = some_levels(earlier ? earlier + i : NULL, there);
        __m512i move = _mm512_sub_epi8(b, c), next = _mm512_add_epi8(b, move);
        beyond |= _mm512_cmpneq_epi8_mask(move, _mm512_subs_epi8(b, c));
        beyond |= _mm512_cmpneq_epi8_mask(next, _mm512_adds_epi8(b, move));
        _mm512_mask_storeu_epi8(out + i, there, next);
    }
    return !beyond;
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
// among all; NULL where tiles multiply, and without memory.
static uint8_t *whole_rows_shifted(const Given *a, const Events *events) {
    int64_t rows = 0, all = a->steps * a->samples, wide = padded(a->k, 64);
    for (int64_t at = 0; at < all; at++) rows = rows > a->index[at] ? rows : a->index[at] + 1;
    uint8_t *shifted = tiles_allowed ? NULL : aligned_alloc(64, (size_t)(rows * a->places * wide));
    if (!shifted) return NULL;
#pragma omp parallel for schedule(dynamic)
    for (int64_t at = 0; at < all; at++)
        for (int64_t place = 0; place < a->places && is_new(a, at) && events->way[at] == WHOLE; place++)
            if (counts(a, at, place))
                shift_rows(levels_now(a, at, place), a->k, 1, a->k, shifted + (a->index[at] * a->places + place) * wide);
    return shifted;
}

// Add up rows of 32 numbers up to 2^26, (k, 32), or take them off: so few that 32 bits are enough.
static inline __attribute__((always_inline)) void some_rows_of_numbers(const uint16_t *features, int64_t from, int64_t to,
                                                                       const int32_t *rows, const int fall, __m512i *sum) {
    for (int64_t i = from; i < to; i++) {
        const int32_t *row = rows + (size_t)features[i] * NUMBERS_ROW;
        __m512i left = _mm512_loadu_si512(row), right = _mm512_loadu_si512(row + 16);
        sum[0] = fall ? _mm512_sub_epi32(sum[0], left) : _mm512_add_epi32(sum[0], left);
        sum[1] = fall ? _mm512_sub_epi32(sum[1], right) : _mm512_add_epi32(sum[1], right);
    }
}

static inline __m256i half_of(__m512i x, int half) {
    return half ? _mm512_extracti64x4_epi64(x, 1) : _mm512_castsi512_si256(x);
}

// Make 64 sums of a row: of those of the row before (`last`), if all go on also of those of the row ahead of it, which are
// there now, and of rows of a weight of bytes: added if their features rise, taken off if these fall, two at a time, an even
// number in all. Bytes are shifted up by 128, so that they can be multiplied by signs. In a row of the weight eight columns
// of the first half of the panel lie ahead of eight of the second: then of two rows, their bytes put side by side, each
// half of the sums is in order.
static void add_rows_of_bytes(const uint16_t *features, int64_t rises, int64_t count, const uint8_t *rows,
                              const int32_t *last, int go_on, int32_t *sums) {
    enum { SOME = 64 };  // pairs: their sums fit in 16 bits
    enum { RISE = 0x01010101, FALL = -1, RISE_AND_FALL = (int)0xff01ff01 };  // signs of a pair, twice
    // Of the pairs around the first fall, so that one loop, whose end is hard to foresee, does for rises and falls.
    static const int32_t signs[2][2 * SOME + 1] = {
        {[0 ... SOME - 1] = RISE, [SOME ... 2 * SOME] = FALL},
        {[0 ... SOME - 1] = RISE, [SOME] = RISE_AND_FALL, [SOME + 1 ... 2 * SOME] = FALL},
    };
    const __m512i shift = _mm512_set1_epi32((int32_t)(128 * (count - 2 * rises)));
    __m512i sum[4];
    for (int v = 0; v < 4; v++) {
        sum[v] = _mm512_loadu_si512(last + 16 * v);
        if (go_on) sum[v] = _mm512_sub_epi32(_mm512_add_epi32(sum[v], sum[v]), _mm512_loadu_si512(sums + 16 * v));
        sum[v] = _mm512_add_epi32(sum[v], shift);
    }
    for (int64_t i = 0; i < count / 2; i += SOME) {
        int64_t pairs = least(count / 2 - i, SOME), rising = least(rises / 2 - i, SOME);
        const int32_t *sign = signs[rises % 2] + SOME - (rising < -1 ? -1 : rising);
        const uint16_t *of_pair = features + 2 * i;
        __m512i low = _mm512_setzero_si512(), high = _mm512_setzero_si512();
#pragma GCC unroll 2
        for (int64_t j = 0; j < pairs; j++, of_pair += 2) {
            __m512i one = _mm512_loadu_si512(rows + (size_t)of_pair[0] * PANEL);
            __m512i other = _mm512_loadu_si512(rows + (size_t)of_pair[1] * PANEL);
            __m512i both = _mm512_set1_epi32(sign[j]);
            low = _mm512_add_epi16(low, _mm512_maddubs_epi16(_mm512_unpacklo_epi8(one, other), both));
            high = _mm512_add_epi16(high, _mm512_maddubs_epi16(_mm512_unpackhi_epi8(one, other), both));
        }
        for (int v = 0; v < 4; v++) sum[v] = _mm512_add_epi32(sum[v], _mm512_cvtepi16_epi32(half_of(v / 2 ? high : low, v % 2)));
    }
    for (int v = 0; v < 4; v++) _mm512_storeu_si512(sums + 16 * v, sum[v]);
}

// The same of a weight in fixed point, one row at a time, any number of them, and 32 sums.
static void add_rows_of_numbers(const uint16_t *features, int64_t rises, int64_t count, const int32_t *rows,
                                const double *last, int go_on, double *sums) {
    enum { SOME = 31 };
    __m512d sum[4];
    for (int v = 0; v < 4; v++) {
        sum[v] = _mm512_loadu_pd(last + 8 * v);
        if (go_on) sum[v] = _mm512_sub_pd(_mm512_add_pd(sum[v], sum[v]), _mm512_loadu_pd(sums + 8 * v));
    }
    for (int64_t i = 0; i < count; i += SOME) {
        int64_t end = least(count, i + SOME), middle = rises < i ? i : least(rises, end);
        __m512i part[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
        some_rows_of_numbers(features, i, middle, rows, 0, part);
        some_rows_of_numbers(features, middle, end, rows, 1, part);
        for (int v = 0; v < 4; v++) sum[v] = _mm512_add_pd(sum[v], _mm512_cvtepi32_pd(half_of(part[v / 2], v % 2)));
    }
    for (int v = 0; v < 4; v++) _mm512_storeu_pd(sums + 8 * v, sum[v]);
}
#endif
