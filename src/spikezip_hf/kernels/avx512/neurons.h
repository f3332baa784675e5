// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// What neurons.h is made of, by AVX-512.

#pragma once

static inline __attribute__((always_inline)) void levels_of(const void *current, int kind, const float *quanta, int64_t n,
                                                            const Quantizer *given, int64_t c, int8_t *levels,
                                                            int *undefined) {
    const Quantizer q = *given;
    const __m512 half = _mm512_set1_ps(0.5f), near = _mm512_set1_ps(0x1p-13f);
    const __m512 top = _mm512_set1_ps(q.high + 0.5f), bottom = _mm512_set1_ps(q.low + 0.5f);  // floors are the bounds
    enum { DOWN = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC, NEAREST = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
    __mmask16 nan = 0;
    for (int64_t i = 0; i < n; i += 16, c += 16) {
        __mmask16 there = n - i < 16 ? (__mmask16)((1u << (n - i)) - 1) : 0xffff;
        __m512 x;
        if (kind) {
            if (kind == OF_SUMS) {
                __m256 low = _mm512_cvtpd_ps(_mm512_maskz_loadu_pd((__mmask8)there, (const double *)current + i));
                __m256 high = _mm512_cvtpd_ps(_mm512_maskz_loadu_pd((__mmask8)(there >> 8), (const double *)current + i + 8));
                x = _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
                x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(there, quanta + i));
            } else {
                x = _mm512_cvtepi32_ps(_mm512_maskz_loadu_epi32(there, (const int32_t *)current + i));
            }
            x = _mm512_mul_ps(x, _mm512_maskz_loadu_ps(there, q.scale + c));
            x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(there, q.bias + c));
        } else {
            x = _mm512_maskz_loadu_ps(there, (const float *)current + i);
        }
        nan |= _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        __m512 y = _mm512_fmadd_ps(x, _mm512_maskz_loadu_ps(there, q.inverse + c), half);
        y = _mm512_max_ps(_mm512_min_ps(y, top), bottom);
        __m512 rest = _mm512_abs_ps(_mm512_reduce_ps(y, NEAREST));
        if (q.divide || _mm512_mask_cmp_ps_mask(there, rest, near, _CMP_LT_OQ)) {
            y = _mm512_add_ps(_mm512_div_ps(x, _mm512_maskz_loadu_ps(there, q.threshold + c)), half);
            y = _mm512_max_ps(_mm512_min_ps(y, top), bottom);
        }
        _mm512_mask_cvtepi32_storeu_epi8(levels + i, there, _mm512_cvt_roundps_epi32(y, DOWN));
    }
    *undefined |= nan;
}

static inline int64_t track(const int8_t *target, int8_t *tracer, int64_t n, int8_t k, int8_t fewest,
                            int *pending) {
    const __m512i up = _mm512_set1_epi8(k), down = _mm512_set1_epi8((int8_t)-k), enough = _mm512_set1_epi8(fewest);
    __m512i sum = _mm512_setzero_si512();
    __mmask64 behind = 0;
    for (int64_t i = 0; i < n; i += 64) {
        __mmask64 there = n - i < 64 ? ((__mmask64)1 << (n - i)) - 1 : ~(__mmask64)0;
        __m512i to = _mm512_maskz_loadu_epi8(there, target + i), s = _mm512_maskz_loadu_epi8(there, tracer + i);
        __m512i step = _mm512_sub_epi8(to, s);
        __mmask64 fires = _mm512_cmpge_epi8_mask(_mm512_abs_epi8(step), enough);
        step = _mm512_maskz_max_epi8(fires, _mm512_min_epi8(step, up), down);
        s = _mm512_add_epi8(s, step);
        sum = _mm512_add_epi64(sum, _mm512_sad_epu8(_mm512_abs_epi8(step), _mm512_setzero_si512()));
        behind |= _mm512_cmpneq_epi8_mask(to, s);
        _mm512_mask_storeu_epi8(tracer + i, there, s);
    }
    *pending = behind != 0;
    return _mm512_reduce_add_epi64(sum);
}
