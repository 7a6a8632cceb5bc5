/* The search of IQ2 and IQ3: x ~ scale * (2 * level + 1), where groups of levels must be points of a lattice.
 *
 * Lanes hold super-blocks, as everywhere; but the candidates of a group that is not on the lattice are compared with
 * one lane per candidate, for one super-block after the other. Their weights lie in memory by rows for that.
 */
#ifndef BOREALIS_FIT_LATTICE_H
#define BOREALIS_FIT_LATTICE_H

#include "find_point.h"

/* What is searched: blocks of n weights in groups of `group` (8, or 4 with more levels); steps first..-first of
 * inverse scale (top value + delta * step) / limit. */
struct lattice_search {
    int n, group;
    int first;
    float delta;
};

/* One block of weights in every lane: magnitudes (some may be negative), their weights w, the products w * x; and by
 * rows the magnitudes and the roots of w, which measure the distance to a point. */
struct lattice_block {
    vf x[32], w[32], wx[32];
    float row_x[W][32], row_w[W][32];
    vi signs[4]; /* a bit a weight, 8 weights a vector */
    vf max;
};

/* What was found: a point's code per group, whether it was rounding alone that led there, and the scale. */
struct lattice_fit {
    vi codes[8];
    vm rounded[8];
    vf scale;
};

INLINE int level_bits(int group) { return group == 8 ? 2 : 3; }
INLINE int top_level(int group) { return group == 8 ? 2 : 7; }
INLINE float top_value(int group) { return group == 8 ? 5 : 15; }

INLINE void to_rows(const vf *x, int n, float rows[W][32]) {
    for (int i = 0; i < n; i += W) {
        vi r[W];
        for (int k = 0; k < W; k++)
            r[k] = (vi)x[i + k];
        transpose(r);
        for (int lane = 0; lane < W; lane++)
            memcpy(rows[lane] + i, &r[lane], sizeof r[lane]);
    }
}

/* Splits 8 weights into magnitudes and signs. With `even`, the number of signs is made even: the weight that matters
 * least becomes a magnitude below zero. */
INLINE vi split_signs(const vf *x, const vf *w, bool even, vf *magnitude) {
    vi signs = i_set(0), odd = i_set(0);
    for (int i = 0; i < 8; i++) {
        const vi negative = i_select(f_lt(x[i], f_set(0)), i_set(1), i_set(0));
        magnitude[i] = (vf)((vi)x[i] ^ negative << 31);
        signs |= negative << i;
        odd ^= negative;
    }
    if (!even)
        return signs;
    vf least = w[0] * x[0] * x[0];
    vi at = i_set(1);
    for (int i = 1; i < 8; i++) {
        const vf size = w[i] * x[i] * x[i];
        const vm smaller = f_lt(size, least);
        least = f_select(smaller, size, least);
        at = i_select(smaller, i_set(1 << i), at);
    }
    at &= -odd;
    for (int i = 0; i < 8; i++)
        magnitude[i] = (vf)((vi)magnitude[i] ^ ((at >> i) & 1) << 31);
    return signs ^ at;
}

/* Prepares n weights x, whose weights are in b->w already. */
INLINE void prepare_block(const vf *x, int n, bool even, struct lattice_block *b) {
    vf root[32];
    for (int k = 0; k < n / 8; k++)
        b->signs[k] = split_signs(x + 8 * k, b->w + 8 * k, even, b->x + 8 * k);
    b->max = b->x[0];
    for (int i = 0; i < n; i++) {
        b->max = i ? f_max(b->max, b->x[i]) : b->max;
        b->wx[i] = b->w[i] * b->x[i];
        root[i] = f_sqrt(b->w[i]);
    }
    to_rows(b->x, n, b->row_x);
    to_rows(root, n, b->row_w);
}

/* The codes of the levels nearest to inverse * x. */
INLINE vi round_group(const vf *x, int group, vf inverse) {
    vi code = i_set(0);
    for (int i = 0; i < group; i++) {
        const vi level = i_clamp(nearest(f_set(0.5f) * (inverse * x[i] - f_set(1))), 0, top_level(group));
        code |= level << (level_bits(group) * i);
    }
    return code;
}

/* Replaces the codes that are not points, in the lanes that want it, by the nearest candidates at this scale. Says
 * which codes were points. `first` is the group's first weight in the rows. */
INLINE vm snap_group(const struct lattice *lattice, const struct lattice_block *b, int group, int first, vf scale,
                     vm wanted, vi *code) {
    static const float VALUE[4] = {1, 3, 5, 7};
    union lanes codes = {.u = (vu)*code}, entries, scales = {.f = scale};
    for (int lane = 0; lane < W; lane++)
        entries.word[lane] = (uint32_t)lattice->map[codes.word[lane]];
    const vm outside = i_lt((vi)entries.u, i_set(0));
    for (uint32_t left = m_bits(outside & wanted); left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        const float *x = b->row_x[lane] + first, *w = b->row_w[lane] + first;
        const int32_t entry = (int32_t)entries.word[lane];
        codes.word[lane] = group == 8 ? find_point_8(lattice, entry, x, w, scales.number[lane], VALUE)
                                      : find_point_4(lattice, entry, x, w, scales.number[lane]);
    }
    *code = (vi)codes.u;
    return m_not(outside);
}

/* The value 2 * level + 1 of coordinate i of a code. */
INLINE vf value_of(vi code, int group, int i) {
    const vi shifted = (vi)((vu)code >> (level_bits(group) * i));
#if W == 16
    const __m512 eight = _mm512_setr_ps(1, 3, 5, 7, 9, 11, 13, 15, 1, 3, 5, 7, 9, 11, 13, 15);
    const __m512 four = _mm512_setr_ps(1, 3, 5, 7, 1, 3, 5, 7, 1, 3, 5, 7, 1, 3, 5, 7);
    return (vf)_mm512_permutexvar_ps((__m512i)shifted, group == 8 ? four : eight);
#elif W == 8
    const __m256 eight = _mm256_setr_ps(1, 3, 5, 7, 9, 11, 13, 15), four = _mm256_setr_ps(1, 3, 5, 7, 1, 3, 5, 7);
    return (vf)_mm256_permutevar8x32_ps(group == 8 ? four : eight, (__m256i)shifted);
#else
    return i_float((shifted & ((1 << level_bits(group)) - 1)) * 2 + 1);
#endif
}

/* The sums of w * x * value and of w * value^2. */
INLINE void lattice_sums(const struct lattice_block *b, int n, int group, const vi *codes, vf *sum_xq, vf *sum_q2) {
    *sum_xq = *sum_q2 = f_set(0);
    for (int i = 0; i < n; i++) {
        const vf q = value_of(codes[i / group], group, i % group);
        *sum_xq += b->wx[i] * q;
        *sum_q2 += b->w[i] * q * q;
    }
}

/* Tries all steps; keeps the codes and the scale that explain most. fit->scale and `rounded` are what stays where none
 * does. */
INLINE void fit_lattice(const struct lattice_search s, const struct lattice *lattice, const struct lattice_block *b,
                        vf limit, vm rounded, struct lattice_fit *fit) {
    const int groups = s.n / s.group;
    const vm all = i_eq(i_set(0), i_set(0));
    vf best = f_set(0);
    for (int k = 0; k < groups; k++) {
        fit->codes[k] = i_set(0);
        fit->rounded[k] = rounded;
    }
    for (int step = s.first; step <= -s.first; step++) {
        const vf inverse = f_set(top_value(s.group) + step * s.delta) / limit, scale = f_set(1) / inverse;
        vi codes[8];
        vm now[8];
        for (int k = 0; k < groups; k++) {
            codes[k] = round_group(b->x + s.group * k, s.group, inverse);
            now[k] = snap_group(lattice, b, s.group, s.group * k, scale, all, &codes[k]);
        }
        vf sum_xq, sum_q2;
        lattice_sums(b, s.n, s.group, codes, &sum_xq, &sum_q2);
        const vm better = f_gt(sum_q2, f_set(0)) & f_gt(sum_xq * sum_xq, best * sum_q2);
        const vf fitted = sum_xq / sum_q2;
        fit->scale = f_select(better, fitted, fit->scale);
        best = f_select(better, fitted * sum_xq, best);
        for (int k = 0; k < groups; k++) {
            fit->codes[k] = i_select(better, codes[k], fit->codes[k]);
            fit->rounded[k] = (better & now[k]) | (m_not(better) & fit->rounded[k]);
        }
    }
}

/* Rounds the groups of `again` once more, with the scale found, and fits the scale anew in the lanes where any was. */
INLINE void refit_lattice(const struct lattice_search s, const struct lattice *lattice, const struct lattice_block *b,
                          const vm *again, struct lattice_fit *fit) {
    const vm usable = f_gt(fit->scale, f_set(0));
    const vf inverse = f_set(1) / fit->scale;
    vm some = m_not(i_eq(i_set(0), i_set(0)));
    for (int k = 0; k < s.n / s.group; k++) {
        const vm wanted = again[k] & usable;
        if (!m_any(wanted))
            continue;
        vi code = round_group(b->x + s.group * k, s.group, inverse);
        snap_group(lattice, b, s.group, s.group * k, fit->scale, wanted, &code);
        fit->codes[k] = i_select(wanted, code, fit->codes[k]);
        some |= wanted;
    }
    vf sum_xq, sum_q2;
    lattice_sums(b, s.n, s.group, fit->codes, &sum_xq, &sum_q2);
    fit->scale = f_select(some & f_gt(sum_q2, f_set(0)), sum_xq / sum_q2, fit->scale);
}

/* The index of each lane's code, a point; 0 in the lanes of `zero`. */
INLINE vi index_of(const struct lattice *lattice, vi code, vm zero) {
    union lanes codes = {.u = (vu)code}, index;
    for (int lane = 0; lane < W; lane++)
        index.word[lane] = (uint32_t)lattice->map[codes.word[lane]];
    return i_select(zero, i_set(0), (vi)index.u);
}

/* 4 bits for each of m scales, and d times `factor` as fp16; both 0 where all scales are: in the
 * lanes of `zero`. */
INLINE vu share_scales(const vf *scales, int m, float factor, vi *share, vm *zero) {
    vf max = f_set(0);
    for (int j = 0; j < m; j++)
        max = f_max(max, scales[j]);
    *zero = f_eq(max, f_set(0));
    const vf d = max / f_set(31), inverse = f_set(1) / d;
    for (int j = 0; j < m; j++) {
        const vi l = i_clamp(nearest(f_set(0.5f) * (inverse * scales[j] - f_set(1))), 0, 15);
        share[j] = i_select(*zero, i_set(0), l);
    }
    return (vu)i_select(*zero, i_set(0), (vi)to_half(d * f_set(factor)));
}

/* Sets n values to 0 in some lanes. */
INLINE void clear_lanes(vu *values, int n, vm lanes) {
    for (int k = 0; k < n; k++)
        values[k] = (vu)i_select(lanes, i_set(0), (vi)values[k]);
}

/* Joins n 16-bit values to words. */
INLINE void join_halves(const vu *halves, int n, vu *words) {
    for (int k = 0; k < n; k += 2)
        words[k / 2] = k + 1 < n ? halves[k] | halves[k + 1] << 16 : halves[k];
}

/* Whether weights and importance stay where the squares of sums of their products are finite, no importance is
 * negative and nothing is NaN: elsewhere the search can leave the lattice, and ggml's own path decides. */
INLINE bool stays_finite(const struct job *job) {
    const int64_t n = job->n_rows * job->n_per_row;
    const int bytes = source_bytes(job->source);
    const uint8_t *from = job->rows;
    vi size = i_set(0);
    if (job->source == TYPE_F32)
        for (int64_t i = 0; i < n; i += W)
            size = i_max(size, (vi)f_abs(load_source(TYPE_F32, from + i * bytes)));
    else if (job->source == TYPE_F16)
        for (int64_t i = 0; i < n; i += W)
            size = i_max(size, (vi)f_abs(load_source(TYPE_F16, from + i * bytes)));
    else
        for (int64_t i = 0; i < n; i += W)
            size = i_max(size, (vi)f_abs(load_source(TYPE_BF16, from + i * bytes)));
    const union lanes lanes = {.f = (vf)size};
    double peak = 0, largest = 0;
    for (int lane = 0; lane < W; lane++) {
        if (!(lanes.number[lane] < 0.999e15))
            return false;
        peak = lanes.number[lane] > peak ? lanes.number[lane] : peak;
    }
    if (!job->importance)
        return peak * peak * peak * peak < 0.999e15;
    for (int64_t i = 0; i < job->n_per_row; i++) {
        if (!(job->importance[i] >= 0))
            return false;
        largest = job->importance[i] > largest ? job->importance[i] : largest;
    }
    return peak * peak * largest < 0.999e15;
}

INLINE bool encode_lattice(const struct job *job, int nbytes, void (*encode)(struct tile *)) {
    return stays_finite(job) && encode_blocks(job, 256, nbytes, 1, encode);
}

#endif
