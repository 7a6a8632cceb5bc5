/* Q3_K: super-blocks of 16 x 16 weights, x = d * (scale - 32) * (level - 4).
 *
 *   byte   0..31   high bits: byte i, bit s is bit 2 of weight 32 s + i
 *         32..95   low bits: in each 128 weights, byte i (0..31) has weights i, i + 32, i + 64, i + 96, 2 bits each
 *         96..103  low 4 bits of scale j and, above, of scale j + 8
 *        104..107  bits 4 and 5 of scales j, j + 4, j + 8, j + 12
 *        108..109  d, fp16
 */
#include "fit_symmetric.h"

/* The search without importance: start from the largest magnitude's scale, weights x^2, then change single levels up
 * to five times round where that explains more. Levels 0..7 of m sub-blocks of 16, and their scales. */
INLINE void fit_stepwise(int m, const vf *x, vf *scales, vi *levels) {
    vf amax[INTERLEAVE], max[INTERLEAVE], sum_xl[INTERLEAVE], sum_l2[INTERLEAVE], level[16 * INTERLEAVE];
    for (int u = 0; u < m; u++)
        amax[u] = max[u] = sum_xl[u] = sum_l2[u] = f_set(0);
    for (int i = 0; i < 16; i++)
        for (int u = 0; u < m; u++) {
            const vf xi = x[16 * u + i], size = f_abs(xi);
            max[u] = f_select(f_gt(size, amax[u]), xi, max[u]);
            amax[u] = f_select(f_gt(size, amax[u]), size, amax[u]);
        }
    for (int u = 0; u < m; u++)
        max[u] = f_set(-4) / max[u];
    for (int i = 0; i < 16; i++)
        for (int u = 0; u < m; u++) {
            const vf xi = x[16 * u + i], w = xi * xi;
            const vf l = i_float(i_clamp(nearest(max[u] * xi), -4, 3));
            level[16 * u + i] = l;
            sum_xl[u] += w * xi * l;
            sum_l2[u] += w * l * l;
        }
    for (int round = 0; round < 5; round++) {
        vm changed = f_lt(f_set(0), f_set(0));
        for (int i = 0; i < 16; i++)
            for (int u = 0; u < m; u++) {
                const vf xi = x[16 * u + i], w = xi * xi, wx = w * xi, old = level[16 * u + i];
                vf slx = sum_xl[u] - wx * old, sl2 = sum_l2[u] - w * old * old;
                vm take = f_gt(slx, f_set(0));
                const vf l = i_float(i_clamp(nearest(xi * sl2 / slx), -4, 3));
                take &= m_not(f_eq(l, old));
                slx += wx * l;
                sl2 += w * l * l;
                take &= f_gt(sl2, f_set(0)) & f_gt(slx * slx * sum_l2[u], sum_xl[u] * sum_xl[u] * sl2);
                level[16 * u + i] = f_select(take, l, old);
                sum_xl[u] = f_select(take, slx, sum_xl[u]);
                sum_l2[u] = f_select(take, sl2, sum_l2[u]);
                changed |= take & m_not(f_lt(amax[u], f_set(GROUP_MAX_EPS)));
            }
        if (!m_any(changed))
            break;
    }
    for (int u = 0; u < m; u++) {
        const vm zero = f_lt(amax[u], f_set(GROUP_MAX_EPS));
        for (int i = 0; i < 16; i++)
            levels[16 * u + i] = i_select(zero, i_set(0), f_trunc(level[16 * u + i]) + 4);
        const vf scale = f_select(f_gt(sum_l2[u], f_set(0)), sum_xl[u] / sum_l2[u], f_set(0));
        scales[u] = f_select(zero, f_set(0), scale);
    }
}

/* Scales to 0..63 by the one of largest magnitude; returns d. Without one, all are 0, which stands for -32. */
INLINE vf share_plain(const vf *scales, vi *share) {
    vf amax = f_set(0), max = f_set(0);
    for (int j = 0; j < 16; j++) {
        const vm larger = f_gt(f_abs(scales[j]), amax);
        max = f_select(larger, scales[j], max);
        amax = f_select(larger, f_abs(scales[j]), amax);
    }
    const vm some = f_nonzero(max);
    const vf inverse = f_set(-32) / max;
    for (int j = 0; j < 16; j++)
        share[j] = i_select(some, i_clamp(nearest(inverse * scales[j]) << 24 >> 24, -32, 31) + 32, i_set(0));
    return f_select(some, f_set(1) / inverse, f_set(0));
}

/* The same by a search weighted with the sub-blocks' sums of weights. */
INLINE vf share_weighted(const vf *scales, const vf *sums, vi *share) {
    struct symmetric_fit fit;
    vf wx[16];
    for (int j = 0; j < 16; j++)
        wx[j] = sums[j] * scales[j];
    fit_symmetric(1, 16, 32, scales, sums, wx, true, &fit);
    for (int j = 0; j < 16; j++)
        share[j] = symmetric_won_level(&fit, scales[j], 32);
    return fit.scale;
}

/* The search with importance, for INTERLEAVE sub-blocks from number j on; also the sums of weights. */
INLINE void fit_weighted(const struct tile *t, int j, vf *scales, vf *sums, vi *levels) {
    const vf *x = t->x + 16 * j;
    struct symmetric_fit fit[INTERLEAVE];
    vf w[16 * INTERLEAVE], wx[16 * INTERLEAVE];
    for (int i = 0; i < 16 * INTERLEAVE; i++) {
        w[i] = t->importance[16 * j + i] * f_sqrt(t->sigma2[0] + x[i] * x[i]);
        wx[i] = w[i] * x[i];
    }
    fit_symmetric(INTERLEAVE, 16, 4, x, w, wx, false, fit);
    for (int u = 0; u < INTERLEAVE; u++) {
        sums[j + u] = f_set(0);
        for (int i = 0; i < 16; i++) {
            sums[j + u] += w[16 * u + i];
            levels[16 * (j + u) + i] = symmetric_won_level(&fit[u], x[16 * u + i], 4);
        }
        scales[j + u] = fit[u].scale;
    }
}

INLINE void pack(const vi *levels, const vi *share, vu d, vu *words) {
    for (int k = 0; k < 8; k++) {
        vi high = i_set(0);
        for (int b = 0; b < 4; b++)
            for (int s = 0; s < 8; s++)
                high |= (levels[32 * s + 4 * k + b] >> 2) << (8 * b + s);
        words[k] = (vu)high;
    }
    pack_2_bits(levels, words + 8);
    vi low[2] = {i_set(0), i_set(0)}, high = i_set(0);
    for (int j = 0; j < 8; j++)
        low[j / 4] |= ((share[j] & 15) | (share[j + 8] & 15) << 4) << 8 * (j & 3);
    for (int j = 0; j < 16; j++)
        high |= (share[j] >> 4) << (8 * (j & 3) + 2 * (j / 4));
    words[24] = (vu)low[0];
    words[25] = (vu)low[1];
    words[26] = (vu)high;
    words[27] = d;
}

INLINE void encode_tile(struct tile *t, bool weighted) {
    vf scales[16], sums[16];
    vi levels[256], share[16];
    if (weighted)
        t->sigma2[0] = f_set(2) * sum_of_squares(t->x, 256) / f_set(256);
    for (int j = 0; j < 16; j += INTERLEAVE)
        if (weighted)
            fit_weighted(t, j, scales, sums, levels);
        else
            fit_stepwise(INTERLEAVE, t->x + 16 * j, scales + j, levels + 16 * j);
    const vu half = to_half(weighted ? share_weighted(scales, sums, share) : share_plain(scales, share));
    for (int j = 0; j < 16; j++) {
        const vf d = from_half(half) * i_float(share[j] - 32);
        const vm dead = f_eq(d, f_set(0));
        for (int i = 16 * j; i < 16 * j + 16; i++)
            levels[i] = i_select(dead, levels[i], i_clamp(nearest(t->x[i] / d), -4, 3) + 4);
    }
    pack(levels, share, half, t->words);
}

static void plain(struct tile *t) { encode_tile(t, false); }
static void weighted(struct tile *t) { encode_tile(t, true); }

bool ISA(q3_k)(const struct job *job) {
    return encode_blocks(job, 256, 110, 1, job->importance ? weighted : plain);
}
