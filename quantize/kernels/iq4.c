/* IQ4_NL and IQ4_XS: 16 fixed values, denser around 0, times a scale.
 *
 *   IQ4_NL  blocks of 32          byte 0..1  d, fp16
 *                                      2..17 indices: byte i is weight i and, above it, weight i + 16
 *   IQ4_XS  super-blocks of 256   byte 0..1  d, fp16
 *                                      2..3  bits 4 and 5 of the 8 scales
 *                                      4..7  low nibbles of the scales, two a byte
 *                                      8..   indices, 16 bytes per 32 weights as in IQ4_NL
 *
 * The nearest value changes exactly halfway between neighbours; those midpoints are floats without rounding, and so
 * are the differences ggml compares near them.
 */
#include "common.h"

static const float VALUES[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* ---- the value nearest to t, and its index ----------------------------------------------------------------- */

#if W == 16
/* Buckets rint(t * TO_BUCKET), modulo 32, each with at most one midpoint inside and none near an end, so that any
 * rounding will do; for |t| < 158.
 * BUCKET_AT: that midpoint, or infinity; BUCKET_INDEX: the index before it; the values before and after it. */
#define NONE __builtin_inff()
#define TO_BUCKET 0.0976f
static const float BUCKET_AT[32] = {
    -4.5f, 7, 19, 31.5f, 45.5f, NONE, 61, NONE, 79, NONE, 101, NONE, NONE, NONE, NONE, NONE,
    NONE, NONE, NONE, NONE, NONE, -115.5f, NONE, -93.5f, NONE, -74, -57, NONE, -42, -28.5f, -16, NONE,
};
static const int32_t BUCKET_INDEX[32] = {
    7, 8, 9, 10, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15, 15, 15,
    0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 4, 4, 5, 6, 7,
};
static const float BUCKET_BEFORE[32] = {
    -10, 1, 13, 25, 38, 53, 53, 69, 69, 89, 89, 113, 113, 113, 113, 113,
    -127, -127, -127, -127, -127, -127, -104, -104, -83, -83, -65, -49, -49, -35, -22, -10,
};
static const float BUCKET_AFTER[32] = {
    1, 13, 25, 38, 53, 69, 69, 89, 89, 113, 113, 113, 113, 113, 113, 113,
    -104, -104, -104, -104, -104, -104, -83, -83, -65, -65, -49, -35, -35, -22, -10, 1,
};

INLINE __m512i bucket(vf t) { return _mm512_cvtps_epi32((__m512)t); }

INLINE vf look_up(const float *table, __m512i i) {
    return (vf)_mm512_permutex2var_ps(_mm512_loadu_ps(table), i, _mm512_loadu_ps(table + 16));
}

/* The nearest value to t, for |t| < 158; `rough` is about t * TO_BUCKET. */
INLINE vf nearest_value(vf t, vf rough) {
    const __m512i i = bucket(rough);
    const vm after = f_le(look_up(BUCKET_AT, i), t);
    return f_select(after, look_up(BUCKET_AFTER, i), look_up(BUCKET_BEFORE, i));
}

/* The index of the nearest value, for every t; NaN gives 15, as in ggml. */
INLINE vi nearest_index(vf t) {
    t = f_max(f_min(t, f_set(113)), f_set(-127));
    const __m512i i = bucket(t * f_set(TO_BUCKET));
    const vm after = f_le(look_up(BUCKET_AT, i), t);
    const vi before = (vi)look_up((const float *)BUCKET_INDEX, i);
    return i_select(after, before + 1, before);
}
#elif W == 8
#define TO_BUCKET 1
/* Binary search: three comparisons lead to one of eight pairs of neighbours, the fourth picks from the pair. */
INLINE vi find_pair(vf t, vm *upper) {
    const __m256 third = _mm256_setr_ps(-93.5f, 0, -28.5f, 0, 19, 0, 79, 0);
    const __m256 fourth = _mm256_setr_ps(-115.5f, -74, -42, -16, 7, 31.5f, 61, 101);
    const vm half = f_le(f_set(-4.5f), t);
    const vm quarter = f_le(f_select(half, f_set(45.5f), f_set(-57)), t);
    const vi pairs = (half & 4) | (quarter & 2);
    const vm eighth = f_le((vf)_mm256_permutevar8x32_ps(third, (__m256i)pairs), t);
    const vi pair = pairs | (eighth & 1);
    *upper = f_le((vf)_mm256_permutevar8x32_ps(fourth, (__m256i)pair), t);
    return pair;
}

/* The nearest value; t is not NaN. */
INLINE vf nearest_value(vf t, vf rough) {
    (void)rough;
    const __m256 low = _mm256_setr_ps(-127, -83, -49, -22, 1, 25, 53, 89);
    const __m256 high = _mm256_setr_ps(-104, -65, -35, -10, 13, 38, 69, 113);
    vm upper;
    const vi pair = find_pair(t, &upper);
    return f_select(upper, (vf)_mm256_permutevar8x32_ps(high, (__m256i)pair),
                    (vf)_mm256_permutevar8x32_ps(low, (__m256i)pair));
}

/* The index of the nearest value, for every t; NaN gives 15, as in ggml. */
INLINE vi nearest_index(vf t) {
    vm upper;
    const vi pair = find_pair(f_min(t, f_set(113)), &upper);
    return pair * 2 + (upper & 1);
}
#else
#define TO_BUCKET 1
static const float MIDPOINTS[15] = {-115.5f, -93.5f, -74, -57, -42, -28.5f, -16, -4.5f, 7, 19, 31.5f, 45.5f, 61, 79, 101};

/* The nearest value; t is not NaN. */
INLINE vf nearest_value(vf t, vf rough) {
    (void)rough;
    vf value = f_set(VALUES[0]);
    for (int k = 0; k < 15; k++)
        value += (vf)(f_le(f_set(MIDPOINTS[k]), t) & (vi)f_set(VALUES[k + 1] - VALUES[k]));
    return value;
}

/* The index of the nearest value, for every t; NaN gives 15, as in ggml. */
INLINE vi nearest_index(vf t) {
    vi index = i_set(15);
    for (int k = 0; k < 15; k++)
        index += f_lt(t, f_set(MIDPOINTS[k]));
    return index;
}
#endif

/* ---- the search --------------------------------------------------------------------------------------------- */

/* 15 inverse scales around (the value -127) / (the weight of largest magnitude), beside that one itself; the one whose
 * least squares scale explains most wins. The scales of m blocks of 32 weights x, weighted with x^2, or importance times
 * the root of sigma2 + x^2. (The roots are taken beside other work: they are the slowest of it.) */
INLINE void fit_values(int m, const vf *x, const vf *importance, const vf *sigma2, vf *scales) {
    vf w[32 * INTERLEAVE], amax[INTERLEAVE], max[INTERLEAVE], best[INTERLEAVE], inverse[INTERLEAVE];
    for (int u = 0; u < m; u++)
        amax[u] = max[u] = best[u] = scales[u] = f_set(0);
    for (int i = 0; i < 32; i++)
        for (int u = 0; u < m; u++) {
            const vf xi = x[32 * u + i], size = f_abs(xi);
            w[32 * u + i] = importance ? importance[32 * u + i] * f_sqrt(sigma2[u] + xi * xi) : xi * xi;
            max[u] = f_select(f_gt(size, amax[u]), xi, max[u]);
            amax[u] = f_select(f_gt(size, amax[u]), size, amax[u]);
        }
    for (int u = 0; u < m; u++)
        inverse[u] = f_set(1) / (-max[u] / f_set(VALUES[0]));
    for (int step = -8; step <= 7; step++) { /* -8 stands for the starting point */
        vf sum_qx[INTERLEAVE], sum_q2[INTERLEAVE], coarse[INTERLEAVE];
        for (int u = 0; u < m; u++) {
            sum_qx[u] = sum_q2[u] = f_set(0);
            if (step > -8)
                inverse[u] = f_set(step + VALUES[0]) / max[u];
            coarse[u] = inverse[u] * f_set(TO_BUCKET); /* t need not be waited for */
        }
#pragma GCC unroll 2
        for (int i = 0; i < 32; i++)
            for (int u = 0; u < m; u++) {
                const vf xi = x[32 * u + i], q = nearest_value(inverse[u] * xi, coarse[u] * xi), wq = w[32 * u + i] * q;
                sum_qx[u] += wq * xi;
                sum_q2[u] += wq * q;
            }
        for (int u = 0; u < m; u++) {
            const vm some = f_gt(sum_q2[u], f_set(0));
            const vf scale = sum_qx[u] / sum_q2[u];
            const vm better = some & f_gt(sum_qx[u] * sum_qx[u], best[u] * sum_q2[u]);
            if (step == -8) {
                scales[u] = f_select(some, scale, f_set(0));
                best[u] = scales[u] * sum_qx[u];
            } else {
                scales[u] = f_select(better, scale, scales[u]);
                best[u] = f_select(better, scale * sum_qx[u], best[u]);
            }
        }
    }
    for (int u = 0; u < m; u++)
        scales[u] = f_select(f_lt(amax[u], f_set(GROUP_MAX_EPS)), f_set(0), scales[u]);
}

/* The indices of 32 weights as 4 words. */
INLINE void pack_indices(const vf *x, vf inverse, vu words[4]) {
    vi index[32];
    for (int i = 0; i < 32; i++)
        index[i] = nearest_index(inverse * x[i]);
    for (int k = 0; k < 4; k++) {
        vi word = i_set(0);
        for (int b = 0; b < 4; b++)
            word |= index[4 * k + b] << 8 * b | index[16 + 4 * k + b] << (8 * b + 4);
        words[k] = (vu)word;
    }
}

INLINE void encode_nl(struct tile *t, bool weighted) {
    vf sigma2[INTERLEAVE], scales[INTERLEAVE];
    for (int u = 0; u < INTERLEAVE; u++)
        sigma2[u] = weighted ? sum_of_squares(t->x + 32 * u, 32) * f_set(2.0f / 32) : f_set(0);
    fit_values(INTERLEAVE, t->x, weighted ? t->importance : NULL, sigma2, scales);
    for (int u = 0; u < INTERLEAVE; u++) {
        vu body[4], *words = t->words + 5 * u;
        pack_indices(t->x + 32 * u, f_select(f_nonzero(scales[u]), f_set(1) / scales[u], f_set(0)), body);
        words[0] = to_half(scales[u]);
        for (int k = 0; k < 4; k++) { /* two bytes further */
            words[k] |= body[k] << 16;
            words[k + 1] = body[k] >> 16;
        }
    }
}

INLINE void encode_xs(struct tile *t, bool weighted) {
    vf sigma2[INTERLEAVE], scales[8], max = f_set(0), amax = f_set(0);
    sigma2[0] = weighted ? sum_of_squares(t->x, 256) * f_set(2.0f / 256) : f_set(0);
    for (int u = 1; u < INTERLEAVE; u++)
        sigma2[u] = sigma2[0];
    for (int j = 0; j < 8; j += INTERLEAVE)
        fit_values(INTERLEAVE, t->x + 32 * j, weighted ? t->importance + 32 * j : NULL, sigma2, scales + j);
    for (int j = 0; j < 8; j++) {
        const vm larger = f_gt(f_abs(scales[j]), amax);
        max = f_select(larger, scales[j], max);
        amax = f_select(larger, f_abs(scales[j]), amax);
    }
    const vf d = -max / f_set(32), inverse = f_select(f_nonzero(d), f_set(1) / d, f_set(0));
    vi high = i_set(0), low = i_set(0);
    for (int j = 0; j < 8; j++) {
        const vi l = i_clamp(nearest(inverse * scales[j]), -32, 31);
        const vf dl = d * i_float(l);
        pack_indices(t->x + 32 * j, f_select(f_nonzero(dl), f_set(1) / dl, f_set(0)), t->words + 2 + 4 * j);
        low |= ((l + 32) & 15) << 4 * j;
        high |= ((l + 32) >> 4) << 2 * j;
    }
    t->words[0] = to_half(d) | (vu)high << 16;
    t->words[1] = (vu)low;
}

static void nl_plain(struct tile *t) { encode_nl(t, false); }
static void nl_weighted(struct tile *t) { encode_nl(t, true); }
static void xs_plain(struct tile *t) { encode_xs(t, false); }
static void xs_weighted(struct tile *t) { encode_xs(t, true); }

bool ISA(iq4_nl)(const struct job *job) {
    return encode_blocks(job, 32, 18, INTERLEAVE, job->importance ? nl_weighted : nl_plain);
}

bool ISA(iq4_xs)(const struct job *job) {
    return encode_blocks(job, 256, 136, 1, job->importance ? xs_weighted : xs_plain);
}
