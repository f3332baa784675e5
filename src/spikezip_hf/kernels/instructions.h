// Copyright 2026 The spikezip_hf authors. Apache-2.0.
//
// Which instructions the loops are made of: those of `avx512/`, where products are of AVX-512 VNNI or tiles (AMX), else those
// of `avx2/` (also where there is AVX-512 without VNNI), else plain C, which has no products.

#pragma once

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define WITH_AVX512 1
#define WITH_AVX2 0
#elif defined(__AVX2__) && defined(__FMA__)
#define WITH_AVX512 0
#define WITH_AVX2 1
#else
#define WITH_AVX512 0
#define WITH_AVX2 0
#endif

#define HAVE_PRODUCTS (WITH_AVX512 || WITH_AVX2)
#if HAVE_PRODUCTS
#include <immintrin.h>
#endif
