/* The search behind x ~ scale * level with levels -nmax..nmax-1, as Q6_K, Q3_K, Q4_0 and Q5_0 use it.
 *
 * 19 inverse scales around -nmax / (the weight of largest magnitude) are tried; the one whose least squares scale
 * explains most is kept. INTERLEAVE independent sub-blocks are searched together to hide latency.
 */
#ifndef BOREALIS_FIT_SYMMETRIC_H
#define BOREALIS_FIT_SYMMETRIC_H

#include "common.h"

/* What was found: x ~ scale * level, level = nearest(won_inverse * x), clamped. Where `zero`, scale is 0, and so is
 * nmax + level. */
struct symmetric_fit {
    vf scale, won_inverse;
    vm zero;
};

enum clamping { CLAMP_NONE, CLAMP_HIGH, CLAMP_BOTH, CLAMP_EXACT };

/* The level of t, clamped where it can leave the range: |t| is at most nmax plus a tenth of the step. */
INLINE vf symmetric_level(vf t, int nmax, enum clamping clamping) {
    if (clamping == CLAMP_EXACT)
        return i_float(i_clamp(nearest(t), -nmax, nmax - 1));
    if (clamping != CLAMP_NONE)
        t = f_min(t, f_set((float)(nmax - 1)));
    if (clamping == CLAMP_BOTH)
        t = f_max(t, f_set((float)-nmax));
    return f_rint(t);
}

/* The sums of w x level and of w level^2 in each of m sub-blocks. */
INLINE void symmetric_sums(int m, int n, int nmax, const vf *x, const vf *w, const vf *wx, const vf *inverse,
                           enum clamping clamping, vf *sum_xl, vf *sum_l2) {
    for (int u = 0; u < m; u++)
        sum_xl[u] = sum_l2[u] = f_set(0);
#pragma GCC unroll 4
    for (int i = 0; i < n; i++)
        for (int u = 0; u < m; u++) {
            const vf level = symmetric_level(inverse[u] * x[u * n + i], nmax, clamping);
            sum_xl[u] += wx[u * n + i] * level;
            sum_l2[u] += w[u * n + i] * level * level;
        }
}

/* Fits m <= INTERLEAVE sub-blocks of n weights x with weights w and products wx = w * x, one after the other.
 * `exact` must be set unless all x are finite. */
INLINE void fit_symmetric(int m, int n, int nmax, const vf *x, const vf *w, const vf *wx, bool exact,
                          struct symmetric_fit *fit) {
    vf amax[INTERLEAVE], max[INTERLEAVE], best[INTERLEAVE], inverse[INTERLEAVE];
    vf sum_xl[INTERLEAVE], sum_l2[INTERLEAVE];
    for (int u = 0; u < m; u++)
        amax[u] = max[u] = f_set(0);
    for (int i = 0; i < n; i++)
        for (int u = 0; u < m; u++) {
            const vf xi = x[u * n + i], size = f_abs(xi);
            max[u] = f_select(f_gt(size, amax[u]), xi, max[u]);
            amax[u] = f_select(f_gt(size, amax[u]), size, amax[u]);
        }
    for (int u = 0; u < m; u++) {
        fit[u].zero = f_lt(amax[u], f_set(GROUP_MAX_EPS));
        fit[u].won_inverse = inverse[u] = f_set((float)-nmax) / max[u];
    }
    symmetric_sums(m, n, nmax, x, w, wx, inverse, exact ? CLAMP_EXACT : CLAMP_HIGH, sum_xl, sum_l2);
    for (int u = 0; u < m; u++) {
        fit[u].scale = f_select(f_nonzero(sum_l2[u]), sum_xl[u] / sum_l2[u], f_set(0));
        best[u] = fit[u].scale * sum_xl[u];
    }
    for (int step = -9; step <= 9; step++) {
        if (step == 0)
            continue;
        for (int u = 0; u < m; u++)
            inverse[u] = f_set(-(nmax + 0.1f * step)) / max[u];
        if (exact)
            symmetric_sums(m, n, nmax, x, w, wx, inverse, CLAMP_EXACT, sum_xl, sum_l2);
        else if (step < -5)
            symmetric_sums(m, n, nmax, x, w, wx, inverse, CLAMP_NONE, sum_xl, sum_l2);
        else if (step < 5)
            symmetric_sums(m, n, nmax, x, w, wx, inverse, CLAMP_HIGH, sum_xl, sum_l2);
        else
            symmetric_sums(m, n, nmax, x, w, wx, inverse, CLAMP_BOTH, sum_xl, sum_l2);
        for (int u = 0; u < m; u++) {
            const vm better = f_gt(sum_l2[u], f_set(0)) & f_gt(sum_xl[u] * sum_xl[u], best[u] * sum_l2[u]);
            const vf scale = sum_xl[u] / sum_l2[u];
            fit[u].scale = f_select(better, scale, fit[u].scale);
            best[u] = f_select(better, scale * sum_xl[u], best[u]);
            fit[u].won_inverse = f_select(better, inverse[u], fit[u].won_inverse);
        }
    }
    for (int u = 0; u < m; u++)
        fit[u].scale = f_select(fit[u].zero, f_set(0), fit[u].scale);
}

/* nmax + the winner's level, as ggml leaves it in place where the final scale is 0. */
INLINE vi symmetric_won_level(const struct symmetric_fit *fit, vf x, int nmax) {
    const vi level = i_clamp(nearest(fit->won_inverse * x), -nmax, nmax - 1) + nmax;
    return i_select(fit->zero, i_set(0), level);
}

#endif
