/* The lattice point nearest to a group of weights, among the candidates of a cell.
 *
 * The distance of a candidate is the sum over coordinates of w * (scale * value - x)^2, added up in order. A coordinate
 * has few values, so its terms are computed once per group, and a candidate's distance is read together from these
 * tables: one lane is one candidate, and a table is a register that is permuted.
 */
#ifndef BOREALIS_FIND_POINT_H
#define BOREALIS_FIND_POINT_H

#include "common.h"
#include "lattice.h"

/* The lanes of a mask as bits. */
INLINE uint32_t m_bits(vm m) {
#if W == 16
    return m;
#elif W == 8
    return (uint32_t)_mm256_movemask_ps((__m256)m);
#elif defined(WITH_SSE2)
    return (uint32_t)_mm_movemask_ps((__m128)m);
#else
    return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8);
#endif
}

enum { MAX_UNITS = 1 << LIST_BITS };

INLINE const uint16_t *list_of(const struct lattice *lattice, int32_t entry, int unit, int *units) {
    *units = ~entry & (MAX_UNITS - 1);
    return lattice->lists + (size_t)unit * ((uint32_t)~entry >> LIST_BITS);
}

#if W == 16
/* w * (scaled - x)^2 for 16 scaled values. */
INLINE __m512 term(__m512 scaled, float x, float w) {
    const __m512 difference = _mm512_sub_ps(scaled, _mm512_set1_ps(x));
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(w), difference), difference);
}

/* 16 distances; a permutation's index is 4 bits, two coordinates of a code. */
INLINE __m512 distances_8(__m512i codes, const __m512 terms[7]) {
    const __m512i c4 = _mm512_srli_epi32(codes, 4), c8 = _mm512_srli_epi32(codes, 8), c12 = _mm512_srli_epi32(codes, 12);
    __m512 d = _mm512_permutexvar_ps(codes, terms[0]);
    d = _mm512_add_ps(d, _mm512_permutexvar_ps(c4, terms[1]));
    d = _mm512_add_ps(d, _mm512_permutexvar_ps(c4, terms[2]));
    d = _mm512_add_ps(d, _mm512_permutexvar_ps(c8, terms[3]));
    d = _mm512_add_ps(d, _mm512_permutexvar_ps(c8, terms[4]));
    d = _mm512_add_ps(d, _mm512_permutexvar_ps(c12, terms[5]));
    return _mm512_add_ps(d, _mm512_permutexvar_ps(c12, terms[6]));
}

/* The code of the best candidate for 8 weights x weighted with w; value[l] is what level l stands for. */
INLINE uint32_t find_point_8(const struct lattice *lattice, int32_t entry, const float *x, const float *w, float scale,
                             const float value[4]) {
    int units;
    const uint16_t *list = list_of(lattice, entry, UNIT_8, &units);
    const __m512 values = _mm512_broadcast_f32x4(_mm_loadu_ps(value));
    const __m512i by_upper = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512 even = _mm512_mul_ps(_mm512_set1_ps(scale), values);
    const __m512 odd = _mm512_permutexvar_ps(by_upper, even);
    const __m512 terms[7] = {
        _mm512_add_ps(term(even, x[0], w[0]), term(odd, x[1], w[1])), term(even, x[2], w[2]), term(odd, x[3], w[3]),
        term(even, x[4], w[4]), term(odd, x[5], w[5]), term(even, x[6], w[6]), term(odd, x[7], w[7]),
    };
    __m512 d[MAX_UNITS], least = _mm512_set1_ps(INFINITY);
    for (int u = 0; u < units; u++) {
        d[u] = distances_8(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(list + 16 * u))), terms);
        least = _mm512_min_ps(d[u], least);
    }
    least = _mm512_set1_ps(_mm512_reduce_min_ps(least));
    for (int u = 0; u < units; u++) {
        const __mmask16 at = _mm512_cmp_ps_mask(d[u], least, _CMP_EQ_OQ);
        if (at)
            return list[16 * u + __builtin_ctz(at)];
    }
    return list[0];
}
#elif W == 8
INLINE __m256 distances_8(__m256i codes, const __m256 terms[8]) {
    __m256 d = _mm256_permutevar8x32_ps(terms[0], codes);
    for (int k = 1; k < 8; k++)
        d = _mm256_add_ps(d, _mm256_permutevar8x32_ps(terms[k], _mm256_srli_epi32(codes, 2 * k)));
    return d;
}
#endif

#if W >= 8
INLINE __m256 term_256(__m256 scaled, float x, float w) {
    const __m256 difference = _mm256_sub_ps(scaled, _mm256_set1_ps(x));
    return _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(w), difference), difference);
}

INLINE __m256 least_of(__m256 d) {
    d = _mm256_min_ps(d, _mm256_permute2f128_ps(d, d, 1));
    d = _mm256_min_ps(d, _mm256_shuffle_ps(d, d, 0x4e));
    return _mm256_min_ps(d, _mm256_shuffle_ps(d, d, 0xb1));
}

/* The first code of the list with the least of n * 8 distances. */
INLINE uint32_t first_least(const uint16_t *list, const __m256 *d, int n, __m256 least) {
    least = least_of(least);
    for (int u = 0; u < n; u++) {
        const int at = _mm256_movemask_ps(_mm256_cmp_ps(d[u], least, _CMP_EQ_OQ));
        if (at)
            return list[8 * u + __builtin_ctz((unsigned)at)];
    }
    return list[0];
}

INLINE __m256i load_codes(const uint16_t *list) { return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)list)); }

/* The same for 4 weights, whose levels 0..7 stand for 1, 3, ..., 15. */
INLINE uint32_t find_point_4(const struct lattice *lattice, int32_t entry, const float *x, const float *w, float scale) {
    int units;
    const uint16_t *list = list_of(lattice, entry, UNIT_4, &units);
    const __m256 scaled = _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_setr_ps(1, 3, 5, 7, 9, 11, 13, 15));
    __m256 terms[4], d[MAX_UNITS], least = _mm256_set1_ps(INFINITY);
    for (int k = 0; k < 4; k++)
        terms[k] = term_256(scaled, x[k], w[k]);
    for (int u = 0; u < units; u++) {
        const __m256i codes = load_codes(list + 8 * u);
        d[u] = _mm256_permutevar8x32_ps(terms[0], codes);
        for (int k = 1; k < 4; k++)
            d[u] = _mm256_add_ps(d[u], _mm256_permutevar8x32_ps(terms[k], _mm256_srli_epi32(codes, 3 * k)));
        least = _mm256_min_ps(d[u], least);
    }
    return first_least(list, d, units, least);
}
#endif

#if W == 8
INLINE uint32_t find_point_8(const struct lattice *lattice, int32_t entry, const float *x, const float *w, float scale,
                             const float value[4]) {
    int units;
    const uint16_t *list = list_of(lattice, entry, UNIT_8, &units);
    const __m256 scaled = _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_broadcast_ps((const __m128 *)value));
    __m256 terms[8], d[2 * MAX_UNITS], least = _mm256_set1_ps(INFINITY);
    for (int k = 0; k < 8; k++)
        terms[k] = term_256(scaled, x[k], w[k]);
    for (int u = 0; u < 2 * units; u++) {
        d[u] = distances_8(load_codes(list + 8 * u), terms);
        least = _mm256_min_ps(d[u], least);
    }
    return first_least(list, d, 2 * units, least);
}
#elif W == 4
/* Without permutations: tables in memory, one candidate at a time. Not inlined: it wants all registers. */
#define CALLED static __attribute__((noinline, unused))

INLINE uint32_t find_point(const struct lattice *lattice, int32_t entry, int n, int bits, const float *x, const float *w,
                           float scale, const float *value) {
    const int unit = n == 4 ? UNIT_4 : UNIT_8;
    int units;
    const uint16_t *list = list_of(lattice, entry, unit, &units);
    const int levels = 1 << bits;
    float terms[8 * 4], best = INFINITY;
    uint32_t won = list[0];
    for (int k = 0; k < n; k++)
        for (int l = 0; l < levels; l++) {
            const float difference = scale * value[l] - x[k];
            terms[k * levels + l] = w[k] * difference * difference;
        }
    for (int j = 0; j < unit * units; j++) {
        const uint32_t code = list[j];
        float d = terms[code & (levels - 1)];
        for (int k = 1; k < n; k++)
            d += terms[k * levels + (code >> (bits * k) & (levels - 1))];
        won = d < best ? code : won;
        best = d < best ? d : best;
    }
    return won;
}

CALLED uint32_t find_point_8(const struct lattice *lattice, int32_t entry, const float *x, const float *w, float scale,
                             const float value[4]) {
    return find_point(lattice, entry, 8, 2, x, w, scale, value);
}

CALLED uint32_t find_point_4(const struct lattice *lattice, int32_t entry, const float *x, const float *w, float scale) {
    static const float VALUE[8] = {1, 3, 5, 7, 9, 11, 13, 15};
    return find_point(lattice, entry, 4, 3, x, w, scale, VALUE);
}
#endif

#endif
