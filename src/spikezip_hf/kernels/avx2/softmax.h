// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// What softmax.h is made of, by AVX2.

#pragma once

static void softmax(const int32_t *scores, int64_t stride, int64_t n, const uint8_t *keys, const int32_t *table,
                    int64_t entries, float *probabilities) {
    const __m256i lowest = _mm256_set1_epi32(INT32_MIN), last = _mm256_set1_epi32((int32_t)entries - 1);
    const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i top = lowest, sum = _mm256_setzero_si256();
    int32_t *found = (int32_t *)probabilities;  // scores, then exponentials, in the place of probabilities
    for (int64_t i = 0; i < n; i += 8) {
        __m256i x = load(scores + i / PANEL * stride + i % PANEL);
        if (keys) {
            __m256i count = _mm256_cvtepu8_epi32(_mm256_castsi256_si128(some_bytes(keys + i, least(n - i, 8))));
            x = _mm256_blendv_epi8(x, _mm256_set1_epi32(HIDDEN), _mm256_cmpeq_epi32(count, _mm256_setzero_si256()));
        }
        if (n - i < 8) x = _mm256_blendv_epi8(lowest, x, _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)(n - i)), numbers));
        top = _mm256_max_epi32(top, x);
        store(found + i, x);
    }
    for (int lanes = 0; lanes < 3; lanes++) {  // the largest of all, in each
        top = _mm256_max_epi32(top, _mm256_permutevar8x32_epi32(top, _mm256_xor_si256(numbers, _mm256_set1_epi32(1 << lanes))));
    }
    for (int64_t i = 0; i < n; i += 8) {
        __m256i there = _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)least(n - i, 8)), numbers);
        __m256i distance = _mm256_min_epi32(_mm256_sub_epi32(top, load(found + i)), last);
        __m256i part = _mm256_mask_i32gather_epi32(_mm256_setzero_si256(), table, distance, there, 4);
        sum = _mm256_add_epi64(sum, _mm256_and_si256(part, _mm256_set1_epi64x(0xffffffff)));
        sum = _mm256_add_epi64(sum, _mm256_srli_epi64(part, 32));
        store(found + i, part);
    }
    int64_t sums[4];
    store(sums, sum);
    const __m256 inverse = _mm256_set1_ps(1.0f / (float)(sums[0] + sums[1] + sums[2] + sums[3]));
    for (int64_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(probabilities + i, _mm256_mul_ps(_mm256_cvtepi32_ps(load(found + i)), inverse));
}
