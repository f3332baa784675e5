// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// What softmax.h is made of, by AVX-512.

#pragma once

static void softmax(const int32_t *scores, int64_t stride, int64_t n, const uint8_t *keys, const int32_t *table,
                    int64_t entries, float *probabilities) {
    const __m512i hidden = _mm512_set1_epi32(HIDDEN), last = _mm512_set1_epi32((int32_t)entries - 1);
    __m512i top = _mm512_set1_epi32(INT32_MIN), sum = _mm512_setzero_si512();
    int32_t *found = (int32_t *)probabilities;  // scores, then exponentials, in the place of probabilities
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 there = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : 0xffff;
        __m512i x = _mm512_loadu_si512(scores + i / PANEL * stride + i % PANEL);
        if (keys) {
            __m128i counts = _mm_maskz_loadu_epi8(there, keys + i);
            x = _mm512_mask_mov_epi32(hidden, _mm_test_epi8_mask(counts, counts), x);
        }
        top = _mm512_mask_max_epi32(top, there, top, x);
        _mm512_storeu_si512(found + i, x);
    }
    top = _mm512_set1_epi32(_mm512_reduce_max_epi32(top));
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 there = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : 0xffff;
        __m512i distance = _mm512_min_epi32(_mm512_sub_epi32(top, _mm512_loadu_si512(found + i)), last);
        __m512i part = _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), there, distance, table, 4);
        sum = _mm512_add_epi64(sum, _mm512_and_si512(part, _mm512_set1_epi64(0xffffffff)));
        sum = _mm512_add_epi64(sum, _mm512_srli_epi64(part, 32));
        _mm512_storeu_si512(found + i, part);
    }
    const __m512 inverse = _mm512_set1_ps(1.0f / (float)_mm512_reduce_add_epi64(sum));
    for (int64_t i = 0; i < n; i += 16)
        _mm512_storeu_ps(probabilities + i, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_loadu_si512(found + i)), inverse));
}
