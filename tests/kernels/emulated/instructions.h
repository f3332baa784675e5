// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// In place of the kernels' own instructions.h: AVX-512 with VNNI and VBMI2, and tiles (AMX), on a processor that has AVX2. Most of
// AVX-512 is SIMDe's. What it lacks, and tiles, are written out here, as Intel's manual has them; so are masked loads and stores,
// which in SIMDe touch what is masked out: beyond the end of memory, or while another thread writes there.

#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#define WITH_AVX512 1
#define WITH_AVX2 0
#define HAVE_PRODUCTS 1
#ifndef WITHOUT_TILES  // a processor with VNNI alone
#define __AVX512VBMI2__ 1
#define __AMX_INT8__ 1
#endif

// Rounded as the two lower bits of a mode say.
static inline float emulated_round(float x, int mode) {
    switch (mode & 3) {
        case 0: return rintf(x);
        case 1: return floorf(x);
        case 2: return ceilf(x);
        default: return truncf(x);
    }
}

static inline simde__m512i emulated_cvt_roundps_epi32(simde__m512 x, int mode) {
    float from[16];
    int32_t to[16];
    simde_mm512_storeu_ps(from, x);
    for (int i = 0; i < 16; i++) {
        float whole = emulated_round(from[i], mode);
        to[i] = whole >= -0x1p31f && whole < 0x1p31f ? (int32_t)whole : INT32_MIN;
    }
    return simde_mm512_loadu_si512(to);
}

static inline simde__m512 emulated_reduce_ps(simde__m512 x, int mode) {
    float numbers[16];
    simde_mm512_storeu_ps(numbers, x);
    for (int i = 0; i < 16; i++)
        numbers[i] = isinf(numbers[i]) ? 0.0f : numbers[i] - emulated_round(numbers[i], mode);
    return simde_mm512_loadu_ps(numbers);
}

static inline __m256 emulated_cvtpd_ps(simde__m512d x) {
    double from[8];
    float to[8];
    simde_mm512_storeu_pd(from, x);
    for (int i = 0; i < 8; i++) to[i] = (float)from[i];
    return _mm256_loadu_ps(to);
}

static inline simde__m512d emulated_cvtps_pd(__m256 x) {
    float from[8];
    double to[8];
    _mm256_storeu_ps(from, x);
    for (int i = 0; i < 8; i++) to[i] = (double)from[i];
    return simde_mm512_loadu_pd(to);
}

static inline simde__m512d emulated_cvtepi32_pd(__m256i x) {
    int32_t from[8];
    double to[8];
    _mm256_storeu_si256((__m256i *)from, x);
    for (int i = 0; i < 8; i++) to[i] = (double)from[i];
    return simde_mm512_loadu_pd(to);
}

static inline simde__m512i emulated_cvtepu8_epi16(__m256i x) {
    uint8_t from[32];
    uint16_t to[32];
    _mm256_storeu_si256((__m256i *)from, x);
    for (int i = 0; i < 32; i++) to[i] = from[i];
    return simde_mm512_loadu_si512(to);
}

// Copy those of `n` numbers that are in a mask, and touch no others.
static inline void emulated_copy(void *to, const void *from, uint64_t mask, int n, size_t size) {
    for (int i = 0; i < n; i++)
        if (mask >> i & 1) memcpy((char *)to + (size_t)i * size, (const char *)from + (size_t)i * size, size);
}

static inline simde__m512i emulated_maskz_loadu(uint64_t mask, const void *from, int n, size_t size) {
    int8_t numbers[64] = {0};
    emulated_copy(numbers, from, mask, n, size);
    return simde_mm512_loadu_si512(numbers);
}

static inline void emulated_mask_storeu(void *to, uint64_t mask, simde__m512i x, int n, size_t size) {
    int8_t numbers[64];
    simde_mm512_storeu_si512(numbers, x);
    emulated_copy(to, numbers, mask, n, size);
}

static inline __m128i emulated_mm_maskz_loadu_epi8(uint16_t mask, const void *from) {
    int8_t numbers[16] = {0};
    emulated_copy(numbers, from, mask, 16, 1);
    return _mm_loadu_si128((const __m128i *)numbers);
}

static inline void emulated_mask_cvtepi32_storeu_epi8(void *to, uint16_t mask, simde__m512i x) {
    int32_t from[16];
    int8_t bytes[16];
    simde_mm512_storeu_si512(from, x);
    for (int i = 0; i < 16; i++) bytes[i] = (int8_t)from[i];
    emulated_copy(to, bytes, mask, 16, 1);
}

static inline simde__m512i emulated_mask_i32gather_epi32(simde__m512i other, uint16_t mask, simde__m512i index,
                                                         const void *from, int scale) {
    int32_t to[16], places[16];
    simde_mm512_storeu_si512(to, other);
    simde_mm512_storeu_si512(places, index);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) memcpy(to + i, (const char *)from + (int64_t)places[i] * scale, sizeof *to);
    return simde_mm512_loadu_si512(to);
}

static inline simde__m512i emulated_maskz_compress_epi8(uint64_t mask, simde__m512i x) {
    int8_t from[64], to[64] = {0}, *next = to;
    simde_mm512_storeu_si512(from, x);
    for (int i = 0; i < 64; i++)
        if (mask >> i & 1) *next++ = from[i];
    return simde_mm512_loadu_si512(to);
}

static inline uint16_t emulated_test_epi8_mask(__m128i a, __m128i b) {
    return (uint16_t)~_mm_movemask_epi8(_mm_cmpeq_epi8(_mm_and_si128(a, b), _mm_setzero_si128()));
}

// Without the sign, also of NaN and of zero, which SIMDe leaves.
static inline simde__m512 emulated_abs_ps(simde__m512 x) {
    return simde_mm512_castsi512_ps(simde_mm512_and_si512(simde_mm512_castps_si512(x), simde_mm512_set1_epi32(INT32_MAX)));
}

static inline simde__m512d emulated_abs_pd(simde__m512d x) {
    return simde_mm512_castsi512_pd(simde_mm512_and_si512(simde_mm512_castpd_si512(x), simde_mm512_set1_epi64(INT64_MAX)));
}

// Where a processor would stop, so does this.
static inline const void *emulated_aligned(const void *at) {
    if ((uintptr_t)at % 64) __builtin_trap();
    return at;
}

// Tiles: eight of a thread, each 16 rows of 64 bytes, as `begin_products` configures them.
static _Thread_local int8_t emulated_tiles[8][16][64];
static _Thread_local int emulated_configured;

static inline int8_t *emulated_tile(int tile) {
    if (!emulated_configured) __builtin_trap();
    return emulated_tiles[tile][0];
}

static inline void emulated_tile_load(int tile, const void *from, int64_t stride) {
    for (int r = 0; r < 16; r++) memcpy(emulated_tile(tile) + 64 * r, (const char *)from + r * stride, 64);
}

static inline void emulated_tile_store(int tile, void *to, int64_t stride) {
    for (int r = 0; r < 16; r++) memcpy((char *)to + r * stride, emulated_tile(tile) + 64 * r, 64);
}

static inline void emulated_tile_dpbssd(int sums, int left, int right) {
    const int8_t *a = emulated_tile(left), *b = emulated_tile(right);
    for (int m = 0; m < 16; m++)
        for (int n = 0; n < 16; n++) {
            int32_t sum;
            memcpy(&sum, emulated_tile(sums) + 64 * m + 4 * n, sizeof sum);
            for (int k = 0; k < 64; k++) sum += a[64 * m + k] * b[64 * (k / 4) + 4 * n + k % 4];
            memcpy(emulated_tile(sums) + 64 * m + 4 * n, &sum, sizeof sum);
        }
}

#undef _mm512_abs_ps
#define _mm512_abs_ps(x) emulated_abs_ps(x)
#undef _mm512_abs_pd
#define _mm512_abs_pd(x) emulated_abs_pd(x)
#undef _mm512_load_si512
#define _mm512_load_si512(from) simde_mm512_load_si512(emulated_aligned(from))
#undef _mm512_store_si512
#define _mm512_store_si512(to, x) simde_mm512_store_si512((void *)emulated_aligned(to), x)
#undef _mm512_cvt_roundps_epi32
#define _mm512_cvt_roundps_epi32(x, mode) emulated_cvt_roundps_epi32(x, mode)
#undef _mm512_reduce_ps
#define _mm512_reduce_ps(x, mode) emulated_reduce_ps(x, mode)
#undef _mm512_cvtpd_ps
#define _mm512_cvtpd_ps(x) emulated_cvtpd_ps(x)
#undef _mm512_cvtps_pd
#define _mm512_cvtps_pd(x) emulated_cvtps_pd(x)
#undef _mm512_cvtepi32_pd
#define _mm512_cvtepi32_pd(x) emulated_cvtepi32_pd(x)
#undef _mm512_cvtepu8_epi16
#define _mm512_cvtepu8_epi16(x) emulated_cvtepu8_epi16(x)
#undef _mm512_maskz_loadu_epi8
#define _mm512_maskz_loadu_epi8(mask, from) emulated_maskz_loadu(mask, from, 64, 1)
#undef _mm512_maskz_loadu_epi32
#define _mm512_maskz_loadu_epi32(mask, from) emulated_maskz_loadu(mask, from, 16, 4)
#undef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(mask, from) simde_mm512_castsi512_ps(emulated_maskz_loadu(mask, from, 16, 4))
#undef _mm512_maskz_loadu_pd
#define _mm512_maskz_loadu_pd(mask, from) simde_mm512_castsi512_pd(emulated_maskz_loadu(mask, from, 8, 8))
#undef _mm_maskz_loadu_epi8
#define _mm_maskz_loadu_epi8(mask, from) emulated_mm_maskz_loadu_epi8(mask, from)
#undef _mm512_mask_storeu_epi8
#define _mm512_mask_storeu_epi8(to, mask, x) emulated_mask_storeu(to, mask, x, 64, 1)
#undef _mm512_mask_storeu_epi16
#define _mm512_mask_storeu_epi16(to, mask, x) emulated_mask_storeu(to, mask, x, 32, 2)
#undef _mm512_mask_cvtepi32_storeu_epi8
#define _mm512_mask_cvtepi32_storeu_epi8(to, mask, x) emulated_mask_cvtepi32_storeu_epi8(to, mask, x)
#undef _mm512_mask_i32gather_epi32
#define _mm512_mask_i32gather_epi32(other, mask, index, from, scale) \
    emulated_mask_i32gather_epi32(other, mask, index, from, scale)
#undef _mm512_maskz_compress_epi8
#define _mm512_maskz_compress_epi8(mask, x) emulated_maskz_compress_epi8(mask, x)
#undef _mm512_mask_cmp_ps_mask
#define _mm512_mask_cmp_ps_mask(mask, a, b, how) ((mask) & simde_mm512_cmp_ps_mask(a, b, how))
#undef _mm_test_epi8_mask
#define _mm_test_epi8_mask(a, b) emulated_test_epi8_mask(a, b)
#undef _tile_loadconfig
#define _tile_loadconfig(shape) ((void)(shape), emulated_configured = 1)
#undef _tile_release
#define _tile_release() (emulated_configured = 0)
#undef _tile_zero
#define _tile_zero(tile) memset(emulated_tile(tile), 0, sizeof emulated_tiles[tile])
#undef _tile_loadd
#define _tile_loadd(tile, from, stride) emulated_tile_load(tile, from, stride)
#undef _tile_stored
#define _tile_stored(tile, to, stride) emulated_tile_store(tile, to, stride)
#undef _tile_dpbssd
#define _tile_dpbssd(sums, left, right) emulated_tile_dpbssd(sums, left, right)
#define syscall(...) 0  // the permission to use tiles
