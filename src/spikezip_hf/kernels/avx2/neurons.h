// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// What neurons.h is made of, by AVX2: eight currents and 32 trackers at a time, the last few in plain C.

#pragma once

static inline __attribute__((always_inline)) void levels_of(const void *current, int kind, const float *quanta, int64_t n,
                                                            const Quantizer *given, int64_t c, int8_t *levels,
                                                            int *undefined) {
    const Quantizer q = *given;
    const __m256 half = _mm256_set1_ps(0.5f), near = _mm256_set1_ps(0x1p-13f), no_sign = _mm256_set1_ps(-0.0f);
    const __m256 top = _mm256_set1_ps(q.high + 0.5f), bottom = _mm256_set1_ps(q.low + 0.5f);  // floors are the bounds
    __m256 nan = _mm256_setzero_ps();
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 x;
        if (kind) {
            if (kind == OF_SUMS) {
                const double *sums = (const double *)current + i;
                __m128 low = _mm256_cvtpd_ps(_mm256_loadu_pd(sums)), high = _mm256_cvtpd_ps(_mm256_loadu_pd(sums + 4));
                x = _mm256_mul_ps(_mm256_set_m128(high, low), _mm256_loadu_ps(quanta + i));
            } else {
                x = _mm256_cvtepi32_ps(_mm256_loadu_si256((const __m256i *)((const int32_t *)current + i)));
            }
            x = _mm256_mul_ps(x, _mm256_loadu_ps(q.scale + c + i));
            x = _mm256_add_ps(x, _mm256_loadu_ps(q.bias + c + i));
        } else {
            x = _mm256_loadu_ps((const float *)current + i);
        }
        nan = _mm256_or_ps(nan, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        __m256 y = _mm256_fmadd_ps(x, _mm256_loadu_ps(q.inverse + c + i), half);
        y = _mm256_max_ps(_mm256_min_ps(y, top), bottom);
        __m256 rest = _mm256_sub_ps(y, _mm256_round_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        rest = _mm256_andnot_ps(no_sign, rest);
        if (q.divide || _mm256_movemask_ps(_mm256_cmp_ps(rest, near, _CMP_LT_OQ))) {
            y = _mm256_add_ps(_mm256_div_ps(x, _mm256_loadu_ps(q.threshold + c + i)), half);
            y = _mm256_max_ps(_mm256_min_ps(y, top), bottom);
        }
        __m256i whole = _mm256_cvtps_epi32(_mm256_floor_ps(y));
        __m128i pairs = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storel_epi64((__m128i *)(levels + i), _mm_packs_epi16(pairs, pairs));
    }
    *undefined |= _mm256_movemask_ps(nan);
    if (i == n) return;
    int64_t size = kind == OF_SUMS ? sizeof(double) : sizeof(float);
    plain_levels_of((const char *)current + i * size, kind, quanta ? quanta + i : NULL, n - i, given, c + i, levels + i,
                    undefined);
}

static inline int64_t track(const int8_t *target, int8_t *tracer, int64_t n, int8_t k, int8_t fewest, int *pending) {
    const __m256i up = _mm256_set1_epi8(k), down = _mm256_set1_epi8((int8_t)-k), nothing = _mm256_setzero_si256();
    const __m256i too_few = _mm256_set1_epi8((int8_t)(fewest - 1));
    __m256i sum = nothing, behind = nothing;
    int64_t i = 0, sums[4];
    for (; i + 32 <= n; i += 32) {
        __m256i to = _mm256_loadu_si256((const __m256i *)(target + i));
        __m256i s = _mm256_loadu_si256((const __m256i *)(tracer + i)), step = _mm256_sub_epi8(to, s);
        __m256i fires = _mm256_cmpgt_epi8(_mm256_abs_epi8(step), too_few);
        step = _mm256_and_si256(fires, _mm256_max_epi8(_mm256_min_epi8(step, up), down));
        s = _mm256_add_epi8(s, step);
        sum = _mm256_add_epi64(sum, _mm256_sad_epu8(_mm256_abs_epi8(step), nothing));
        behind = _mm256_or_si256(behind, _mm256_xor_si256(to, s));
        _mm256_storeu_si256((__m256i *)(tracer + i), s);
    }
    _mm256_storeu_si256((__m256i *)sums, sum);
    int rest = 0;
    int64_t spikes = i < n ? plain_track(target + i, tracer + i, n - i, k, fewest, &rest) : 0;
    *pending = rest || !_mm256_testz_si256(behind, behind);
    return spikes + sums[0] + sums[1] + sums[2] + sums[3];
}
