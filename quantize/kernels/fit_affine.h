/* The search behind x ~ scale * level + min with levels 0..nmax, as Q2_K, Q4_K, Q5_K, Q4_1 and Q5_1 use it.
 *
 * Every step tries a slightly different inverse scale, solves the weighted least squares problem for the levels that
 * come out, and keeps the result when its error is smaller. A step starts from the minimum the last success left, so
 * steps cannot run in parallel; lanes and INTERLEAVE independent sub-blocks do.
 */
#ifndef BOREALIS_FIT_AFFINE_H
#define BOREALIS_FIT_AFFINE_H

#include "common.h"

/* What is searched: levels 0..nmax; steps i of inverse scale (first + delta * i + nmax) / range; errors squared, or
 * absolute. */
struct affine_search {
    int n, nmax;
    float first, delta;
    int steps;
    bool absolute;
};

/* What was found for one sub-block: x ~ scale * level + min, with level = nearest((x - won_min) * won_inverse),
 * clamped; where `flat`, scale and all levels are 0. sum_w is the sum of the weights. */
struct affine_fit {
    vf scale, min, won_inverse, won_min, sum_w;
    vm flat;
};

/* How levels must be computed: by `nearest` whatever comes, or by rounding in the range where that is the same,
 * or also without a look at the upper end because nothing lies beyond. */
enum care { EXACT, PLAIN, PLAIN_BELOW };

/* The clamped level of t as a float. */
INLINE vf affine_level(vf t, int nmax, enum care care) {
    if (care == EXACT)
        return i_float(i_clamp(nearest(t), 0, nmax));
    return f_rint(care == PLAIN ? f_clamp_positive(t, (float)nmax) : f_positive(t));
}

INLINE vf affine_error(vf difference, bool absolute) {
    return absolute ? f_abs(difference) : difference * difference;
}

/* State of the search in INTERLEAVE sub-blocks. */
struct affine_state {
    vf low[INTERLEAVE], high[INTERLEAVE], sum_x[INTERLEAVE], best[INTERLEAVE];
    struct affine_fit *fit;
};

/* The care that this step needs: t is monotonic in x, so the ends of each sub-block tell. */
INLINE enum care affine_care(const struct affine_state *s, const vf *inverse, int nmax) {
    const vf bottom = f_set(-NEAREST_MAX), top = f_set(NEAREST_MAX), last = f_set(nmax + 0.49f);
    vm plain = f_eq(bottom, bottom), below = plain;
    for (int u = 0; u < INTERLEAVE; u++) {
        const vf t_low = (s->low[u] - s->fit[u].min) * inverse[u], t_high = (s->high[u] - s->fit[u].min) * inverse[u];
        const vm flat = s->fit[u].flat, least = f_le(bottom, t_low) & f_le(bottom, t_high);
        plain &= (least & f_le(t_low, top) & f_le(t_high, top)) | flat;
        below &= (least & f_lt(t_low, last) & f_lt(t_high, last)) | flat;
    }
    return !m_any(m_not(below)) ? PLAIN_BELOW : m_any(m_not(plain)) ? EXACT : PLAIN;
}

/* The error of the starting point. */
INLINE void affine_start(const struct affine_search a, const vf *x, const vf *w, struct affine_state *s, enum care care) {
    for (int u = 0; u < INTERLEAVE; u++)
        s->best[u] = f_set(0);
    for (int i = 0; i < a.n; i++)
        for (int u = 0; u < INTERLEAVE; u++) {
            const struct affine_fit *f = &s->fit[u];
            const vf xi = x[u * a.n + i];
            const vf level = affine_level(f->won_inverse * (xi - f->min), a.nmax, care);
            s->best[u] += w[u * a.n + i] * affine_error(f->scale * level + f->min - xi, a.absolute);
        }
}

/* One step: levels, sums, least squares, error, and the winner kept. */
INLINE void affine_step(const struct affine_search a, const vf *x, const vf *w, struct affine_state *s,
                        const vf *inverse, vf *levels, enum care care) {
    vf min[INTERLEAVE], scale[INTERLEAVE], error[INTERLEAVE];
    vf sum_l[INTERLEAVE], sum_l2[INTERLEAVE], sum_xl[INTERLEAVE];
    vm solvable[INTERLEAVE];
    for (int u = 0; u < INTERLEAVE; u++) {
        min[u] = s->fit[u].min;
        sum_l[u] = sum_l2[u] = sum_xl[u] = error[u] = f_set(0);
    }
#pragma GCC unroll 2
    for (int i = 0; i < a.n; i++)
        for (int u = 0; u < INTERLEAVE; u++) {
            const vf xi = x[u * a.n + i];
            const vf level = affine_level(inverse[u] * (xi - min[u]), a.nmax, care);
            const vf wl = w[u * a.n + i] * level;
            levels[u * a.n + i] = level;
            sum_l[u] += wl;
            sum_l2[u] += wl * level;
            sum_xl[u] += wl * xi;
        }
    for (int u = 0; u < INTERLEAVE; u++) {
        const vf sum_w = s->fit[u].sum_w, sum_x = s->sum_x[u];
        const vf determinant = sum_w * sum_l2[u] - sum_l[u] * sum_l[u];
        const vf free_min = (sum_l2[u] * sum_x - sum_l[u] * sum_xl[u]) / determinant;
        const vm positive = f_gt(free_min, f_set(0));
        solvable[u] = f_gt(determinant, f_set(0));
        min[u] = f_select(positive, f_set(0), free_min);
        scale[u] = f_select(positive, sum_xl[u], sum_w * sum_xl[u] - sum_x * sum_l[u])
                 / f_select(positive, sum_l2[u], determinant);
    }
#pragma GCC unroll 2
    for (int i = 0; i < a.n; i++)
        for (int u = 0; u < INTERLEAVE; u++) {
            const vf difference = scale[u] * levels[u * a.n + i] + min[u] - x[u * a.n + i];
            error[u] += w[u * a.n + i] * affine_error(difference, a.absolute);
        }
    for (int u = 0; u < INTERLEAVE; u++) {
        struct affine_fit *f = &s->fit[u];
        const vm better = solvable[u] & f_lt(error[u], s->best[u]);
        s->best[u] = f_select(better, error[u], s->best[u]);
        f->won_inverse = f_select(better, inverse[u], f->won_inverse);
        f->won_min = f_select(better, f->min, f->won_min);
        f->scale = f_select(better, scale[u], f->scale);
        f->min = f_select(better, min[u], f->min);
    }
}

/* Fits INTERLEAVE sub-blocks of a.n weights: x and their weights w lie one sub-block after the other. */
INLINE void fit_affine(const struct affine_search a, const vf *x, const vf *w, struct affine_fit fit[INTERLEAVE]) {
    struct affine_state s = {.fit = fit};
    vf inverse[INTERLEAVE], levels[INTERLEAVE * 32];
    for (int u = 0; u < INTERLEAVE; u++) {
        s.low[u] = s.high[u] = x[u * a.n];
        fit[u].sum_w = w[u * a.n];
        s.sum_x[u] = w[u * a.n] * x[u * a.n];
    }
    for (int i = 1; i < a.n; i++)
        for (int u = 0; u < INTERLEAVE; u++) {
            const vf xi = x[u * a.n + i], wi = w[u * a.n + i];
            s.low[u] = f_min(xi, s.low[u]);
            s.high[u] = f_max(xi, s.high[u]);
            fit[u].sum_w += wi;
            s.sum_x[u] += wi * xi;
        }
    for (int u = 0; u < INTERLEAVE; u++) {
        struct affine_fit *f = &fit[u];
        f->min = f->won_min = f_select(f_gt(s.low[u], f_set(0)), f_set(0), s.low[u]);
        f->flat = f_eq(s.high[u], f->min);
        f->won_inverse = f_set((float)a.nmax) / (s.high[u] - f->min);
        f->scale = f_set(1) / f->won_inverse;
        inverse[u] = f->won_inverse;
    }
    if (affine_care(&s, inverse, a.nmax) == EXACT)
        affine_start(a, x, w, &s, EXACT);
    else
        affine_start(a, x, w, &s, PLAIN);
    for (int step = 0; step <= a.steps; step++) {
        const float factor = a.first + a.delta * step + a.nmax;
        for (int u = 0; u < INTERLEAVE; u++)
            inverse[u] = f_set(factor) / (s.high[u] - fit[u].min);
        const enum care care = affine_care(&s, inverse, a.nmax);
        if (care == PLAIN_BELOW)
            affine_step(a, x, w, &s, inverse, levels, PLAIN_BELOW);
        else if (care == PLAIN)
            affine_step(a, x, w, &s, inverse, levels, PLAIN);
        else
            affine_step(a, x, w, &s, inverse, levels, EXACT);
    }
    for (int u = 0; u < INTERLEAVE; u++) {
        const vf start = f_select(f_gt(s.low[u], f_set(0)), f_set(0), s.low[u]);
        fit[u].scale = f_select(fit[u].flat, f_set(0), fit[u].scale);
        fit[u].min = f_select(fit[u].flat, start, fit[u].min);
    }
}

/* The levels of the search's winner, for weights whose final scale is 0: ggml leaves them in place there. */
INLINE vi affine_won_level(const struct affine_fit *fit, vf x, int nmax) {
    const vi level = i_clamp(nearest(fit->won_inverse * (x - fit->won_min)), 0, nmax);
    return i_select(fit->flat, i_set(0), level);
}

/* Quantizes n values x >= 0 with weights w to levels 0..nmax of one common scale, which is returned.
 * levels[i] are what ggml's uint8_t holds: a negative value wraps. */
INLINE vf fit_positive(int n, int nmax, const vf *x, const vf *w, vi *levels) {
    vf max = f_set(0);
    for (int i = 0; i < n; i++)
        max = f_max(max, x[i]);
    const vm zero = f_lt(max, f_set(GROUP_MAX_EPS));
    vf inverse = f_set((float)nmax) / max;
    vf scale = f_set(1) / inverse, best = f_set(0);
    for (int i = 0; i < n; i++) {
        const vf difference = x[i] - scale * i_float(nearest(inverse * x[i]) & 255);
        best += w[i] * difference * difference;
    }
    for (int step = -4; step <= 4; step++) {
        if (step == 0)
            continue;
        const vf candidate = f_set(0.1f * step + nmax) / max;
        const vf candidate_scale = f_set(1) / candidate;
        vf error = f_set(0);
        for (int i = 0; i < n; i++) {
            const vf difference = x[i] - candidate_scale * i_float(i_min(nearest(candidate * x[i]), i_set(nmax)));
            error += w[i] * difference * difference;
        }
        const vm better = f_lt(error, best);
        best = f_select(better, error, best);
        inverse = f_select(better, candidate, inverse);
    }
    vf sum_xl = f_set(0), sum_l2 = f_set(0);
    for (int i = 0; i < n; i++) {
        const vi l = i_min(nearest(inverse * x[i]), i_set(nmax));
        const vf level = i_float(l);
        levels[i] = l & 255;
        sum_xl += w[i] * x[i] * level;
        sum_l2 += w[i] * level * level;
    }
    for (int round = 0; round < 5; round++) {
        vi changed = i_set(0);
        for (int i = 0; i < n; i++) {
            const vf wx = w[i] * x[i], old = i_float(levels[i]);
            vf slx = sum_xl - wx * old, sl2 = sum_l2 - w[i] * old * old;
            vm take = f_gt(slx, f_set(0)) & f_gt(sl2, f_set(0));
            const vi l = i_min(nearest(x[i] * sl2 / slx), i_set(nmax));
            const vf level = i_float(l);
            take &= m_not(i_eq(l, levels[i]));
            slx += wx * level;
            sl2 += w[i] * level * level;
            take &= f_gt(slx * slx * sum_l2, sum_xl * sum_xl * sl2);
            levels[i] = i_select(take, l & 255, levels[i]);
            sum_xl = f_select(take, slx, sum_xl);
            sum_l2 = f_select(take, sl2, sum_l2);
            changed = i_select(take, i_set(1), changed);
        }
        if (!m_any(i_eq(changed, i_set(1)) & m_not(zero)))
            break;
    }
    for (int i = 0; i < n; i++)
        levels[i] = i_select(zero, i_set(0), levels[i]);
    const vf fitted = f_select(f_gt(sum_l2, f_set(0)), sum_xl / sum_l2, f_set(0));
    return f_select(zero, f_set(0), fitted);
}

#endif
