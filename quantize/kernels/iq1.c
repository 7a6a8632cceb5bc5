/* IQ1_S and IQ1_M: x = d * scale * (level + delta), level -1, 0 or 1 in groups of 8 that are points of a lattice, delta
 * 1/8 or -1/8.
 *
 *   IQ1_S  byte 0..1   d, fp16
 *               2..33  per group the low 8 bits of the index
 *              34..49  per 32 weights 16 bits: 4 x 3 bits of the indices, 3 bits of scale, the sign of delta
 *   IQ1_M       0..31  per group the low 8 bits of the index
 *              32..47  per 16 weights 2 x (3 bits of the index, the sign of delta)
 *              48..55  4 x 16 bits: 4 scales of 3 bits, and 4 bits of d, fp16
 *
 * A block's weights are sorted; two cuts split them into the three levels, and all pairs of cuts are tried with sums
 * from the left. One lane is one super-block, so the sort is a network and the cuts are the same loop for all.
 */
#include "fit_lattice.h"

#define DELTA 0.125f

/* A block in every lane: the weights by size with their weights and places, and what the cuts found. */
struct sorted {
    vf x[32], w[32];
    vi place[32];
    vf scale, best;
    vi cut[2], choice; /* -1 where nothing was found */
};

/* Exchanges a and b unless they are in order; equal weights keep their order. */
INLINE void order(struct sorted *s, int a, int b) {
    const vf xa = s->x[a], xb = s->x[b], wa = s->w[a], wb = s->w[b];
    const vi pa = s->place[a], pb = s->place[b];
    const vm swap = f_lt(xb, xa) | (f_eq(xb, xa) & i_lt(pb, pa));
    s->x[a] = f_select(swap, xb, xa);
    s->x[b] = f_select(swap, xa, xb);
    s->w[a] = f_select(swap, wb, wa);
    s->w[b] = f_select(swap, wa, wb);
    s->place[a] = i_select(swap, pb, pa);
    s->place[b] = i_select(swap, pa, pb);
}

/* Batcher's merge exchange. */
INLINE void sort(const vf *x, const vf *w, int n, struct sorted *s) {
    for (int i = 0; i < n; i++) {
        s->x[i] = x[i];
        s->w[i] = w[i];
        s->place[i] = i_set(i);
    }
    for (int p = 1; p < n; p *= 2)
        for (int k = p; k >= 1; k /= 2)
            for (int j = k % p; j <= n - 1 - k; j += 2 * k)
                for (int i = 0; i < k && i < n - j - k; i++)
                    if ((i + j) / (2 * p) == (i + j + k) / (2 * p))
                        order(s, i + j, i + j + k);
}

/* Keeps cuts i, j with these sums in the lanes where they explain more. */
INLINE void keep_cuts(struct sorted *s, vf sum_xq, vf sum_q2, int i, int j, int choice) {
    const vm better = f_gt(sum_q2, f_set(0)) & f_gt(sum_xq * sum_xq, s->best * sum_q2);
    if (!m_any(better))
        return;
    const vf scale = sum_xq / sum_q2;
    s->scale = f_select(better, scale, s->scale);
    s->best = f_select(better, scale * sum_xq, s->best);
    s->cut[0] = i_select(better, i_set(i), s->cut[0]);
    s->cut[1] = i_select(better, i_set(j), s->cut[1]);
    s->choice = i_select(better, i_set(choice), s->choice);
}

INLINE void start_cuts(struct sorted *s) {
    s->scale = f_set(0);
    s->best = f_set(-3.40282347e+38f);
    s->cut[0] = s->cut[1] = s->choice = i_set(-1);
}

/* The cuts of 32 weights with one delta: choice 0 is 1/8, 1 is -1/8. */
INLINE void cut_32(struct sorted *s) {
    const float plus[3] = {-1 + DELTA, DELTA, 1 + DELTA}, minus[3] = {-1 - DELTA, -DELTA, 1 - DELTA};
    vf xs[33], ws[33], x_after[2][33], w_after[2][33];
    start_cuts(s);
    xs[0] = ws[0] = f_set(0);
    for (int i = 0; i < 32; i++) {
        xs[i + 1] = xs[i] + s->w[i] * s->x[i];
        ws[i + 1] = ws[i] + s->w[i];
    }
    for (int i = 0; i <= 32; i++) {
        const vf x = xs[32] - xs[i], w = ws[32] - ws[i];
        x_after[0][i] = x * f_set(plus[2]);
        x_after[1][i] = x * f_set(minus[2]);
        w_after[0][i] = w * f_set(plus[2]) * f_set(plus[2]);
        w_after[1][i] = w * f_set(minus[2]) * f_set(minus[2]);
    }
    for (int i = 0; i <= 32; i++) {
        const vf x_plus = xs[i] * f_set(plus[0]), w_plus = ws[i] * f_set(plus[0]) * f_set(plus[0]);
        const vf x_minus = xs[i] * f_set(minus[0]), w_minus = ws[i] * f_set(minus[0]) * f_set(minus[0]);
        for (int j = i; j <= 32; j++) {
            const vf x = (xs[j] - xs[i]) * f_set(DELTA), w = (ws[j] - ws[i]) * f_set(DELTA) * f_set(DELTA);
            keep_cuts(s, x_plus + x + x_after[0][j], w_plus + w + w_after[0][j], i, j, 0);
            keep_cuts(s, x_minus - x + x_after[1][j], w_minus + w + w_after[1][j], i, j, 1);
        }
    }
}

/* The cuts of 16 weights whose halves each have a delta: bit 1 of the choice is set for -1/8 in the first half, bit 0
 * in the second. */
INLINE void cut_16(struct sorted *s) {
    const float top[2] = {1 + DELTA, 1 - DELTA}, first[2] = {0.75f, 1.25f}, second[2] = {-1.25f, -0.75f};
    vf xs[2][17], ws[2][17], w_first[2][2][17], w_second[2][2][17], x_all[2][2];
    start_cuts(s);
    for (int h = 0; h < 2; h++) {
        xs[h][0] = ws[h][0] = f_set(0);
        for (int i = 0; i < 16; i++) {
            const vm here = h ? i_lt(i_set(7), s->place[i]) : i_lt(s->place[i], i_set(8));
            xs[h][i + 1] = f_select(here, xs[h][i] + s->w[i] * s->x[i], xs[h][i]);
            ws[h][i + 1] = f_select(here, ws[h][i] + s->w[i], ws[h][i]);
        }
        for (int d = 0; d < 2; d++) {
            x_all[d][h] = xs[h][16] * f_set(top[d]);
            for (int i = 0; i <= 16; i++) {
                w_first[d][h][i] = ws[h][16] * f_set(top[d]) * f_set(top[d]) + ws[h][i] * f_set(first[d]);
                w_second[d][h][i] = ws[h][i] * f_set(second[d]);
            }
        }
    }
    for (int i = 0; i <= 16; i++)
        for (int j = i; j <= 16; j++) {
            vf x[2][2], w[2][2];
            for (int h = 0; h < 2; h++) {
                const vf sum = xs[h][i] + xs[h][j];
                for (int d = 0; d < 2; d++) {
                    x[d][h] = x_all[d][h] - sum;
                    w[d][h] = w_first[d][h][i] + w_second[d][h][j];
                }
            }
            for (int c = 0; c < 4; c++)
                keep_cuts(s, x[c >> 1][0] + x[c & 1][1], w[c >> 1][0] + w[c & 1][1], i, j, c);
        }
}

/* A block of n weights, by rows too, and what was found: levels 0..2 as codes of groups of 8, and the scale. */
struct ternary {
    const vf *x;
    const vf *w;
    float row_x[W][32], row_w[W][32];
    vi codes[4];
    vf delta[4], scale;
    vm found;
};

/* The levels that the cuts mean, by place; a negative scale turns them. */
INLINE void cut_levels(const struct sorted *s, int n, struct ternary *b) {
    const vm turned = f_lt(s->scale, f_set(0));
    vi low = i_set(0), high = i_set(0);
    for (int i = 0; i < n; i++) {
        const vi above = i_select(i_lt(i_set(i), s->cut[0]), i_set(0), i_set(1))
                       + i_select(i_lt(i_set(i), s->cut[1]), i_set(0), i_set(1));
        const vi level = i_select(turned, 2 - above, above) << (2 * (s->place[i] & 15));
        const vm early = i_lt(s->place[i], i_set(16));
        low |= i_select(early, level, i_set(0));
        high |= i_select(early, i_set(0), level);
    }
    b->codes[0] = low & 0xffff;
    b->codes[1] = (vi)((vu)low >> 16);
    b->codes[2] = high & 0xffff;
    b->codes[3] = (vi)((vu)high >> 16);
    b->scale = f_select(turned, -s->scale, s->scale);
}

/* Where a group's levels are no point, takes the nearest candidate. Returns the lanes where that happened. */
INLINE vm snap_ternary(const struct lattice *lattice, int k, struct ternary *b) {
    union lanes codes = {.u = (vu)b->codes[k]}, entries, scales = {.f = b->scale}, delta = {.f = b->delta[k]};
    for (int lane = 0; lane < W; lane++)
        entries.word[lane] = (uint32_t)lattice->map[codes.word[lane]];
    const vm outside = i_lt((vi)entries.u, i_set(0)) & b->found;
    for (uint32_t left = m_bits(outside); left; left &= left - 1) {
        const int lane = __builtin_ctz(left);
        const float d = delta.number[lane], value[4] = {d - 1, d, d + 1};
        codes.word[lane] = find_point_8(lattice, (int32_t)entries.word[lane], b->row_x[lane] + 8 * k,
                                        b->row_w[lane] + 8 * k, scales.number[lane], value);
    }
    b->codes[k] = (vi)codes.u;
    return outside;
}

/* Adds up w * q * x and w * q^2 over a group's weights, in order; q is (level + delta) * factor. */
INLINE void add_group(const struct ternary *b, int k, vf factor, vf *sum_xq, vf *sum_q2) {
    for (int i = 8 * k; i < 8 * k + 8; i++) {
        const vi level = (b->codes[k] >> (2 * (i & 7))) & 3;
        const vf q = (i_float(level - 1) + b->delta[k]) * factor, wq = b->w[i] * q;
        *sum_xq += wq * b->x[i];
        *sum_q2 += wq * q;
    }
}

/* Searches a block of n weights (32, or 16 with a delta per half). Lanes whose weights are all below `smallest` find
 * nothing, and have scale 0. Returns the choice of deltas. */
INLINE vi fit_ternary(const struct lattice *lattice, int n, float smallest, struct ternary *b) {
    struct sorted s;
    vf max = f_abs(b->x[0]);
    for (int i = 1; i < n; i++)
        max = f_max(max, f_abs(b->x[i]));
    sort(b->x, b->w, n, &s);
    if (n == 32)
        cut_32(&s);
    else
        cut_16(&s);
    b->found = m_not(f_lt(max, f_set(smallest)) | i_lt(s.choice, i_set(0)));
    const vm turned = f_lt(s.scale, f_set(0));
    vi choice = i_select(turned, (n == 32 ? 1 : 3) - s.choice, s.choice);
    choice = i_select(b->found, choice, i_set(0));
    cut_levels(&s, n, b);
    to_rows(b->x, n, b->row_x);
    to_rows(b->w, n, b->row_w);
    vm snapped = m_not(i_eq(choice, choice));
    for (int k = 0; k < n / 8; k++) {
        const vi minus = n == 32 ? choice : (choice >> (1 - k)) & 1;
        b->delta[k] = f_select(i_eq(minus, i_set(0)), f_set(DELTA), f_set(-DELTA));
        snapped |= snap_ternary(lattice, k, b);
    }
    vf sum_xq = f_set(0), sum_q2 = f_set(0);
    for (int k = 0; k < n / 8; k++)
        add_group(b, k, f_set(1), &sum_xq, &sum_q2);
    const vm refit = snapped & f_gt(sum_xq, f_set(0)) & f_gt(sum_q2, f_set(0));
    b->scale = f_select(refit, sum_xq / sum_q2, b->scale);
    b->scale = f_select(b->found, b->scale, f_set(0));
    return choice;
}

INLINE vf largest(const vf *scales, int m) {
    vf max = f_set(0);
    for (int j = 0; j < m; j++)
        max = f_max(max, scales[j]);
    return max;
}

INLINE void weigh(const struct tile *t, int first, int n, bool weighted, vf sigma2, vf *w) {
    for (int i = first; i < first + n; i++)
        w[i - first] = weighted ? t->importance[i] * f_sqrt(sigma2 + t->x[i] * t->x[i]) : t->x[i] * t->x[i];
}

INLINE void encode_s(struct tile *t) {
    const struct lattice *lattice = lattice_of(TYPE_IQ1_S);
    const vf sigma2 = f_set(2) * sum_of_squares(t->x, 256) / f_set(256);
    vf scales[8], w[32];
    vi choice[8];
    vu halves[25];
    for (int j = 0; j < 8; j++) {
        struct ternary b = {.x = t->x + 32 * j, .w = w};
        vi index[4], high = i_set(0);
        weigh(t, 32 * j, 32, true, sigma2, w);
        choice[j] = fit_ternary(lattice, 32, 1e-12f, &b);
        scales[j] = b.scale;
        for (int k = 0; k < 4; k++) {
            index[k] = index_of(lattice, b.codes[k], m_not(b.found));
            high |= (index[k] >> 8) << 3 * k;
        }
        halves[1 + 2 * j] = (vu)((index[0] & 255) | (index[1] & 255) << 8);
        halves[2 + 2 * j] = (vu)((index[2] & 255) | (index[3] & 255) << 8);
        halves[17 + j] = (vu)high;
    }
    const vf max = largest(scales, 8), d = max / f_set(15), inverse = f_set(1) / d;
    const vm zero = f_eq(max, f_set(0));
    halves[0] = (vu)i_select(zero, i_set(0), (vi)to_half(d * f_set(1.125f)));
    for (int j = 0; j < 8; j++) {
        const vi share = i_clamp(nearest(f_set(0.5f) * (inverse * scales[j] - f_set(1))), 0, 7) | choice[j] << 3;
        halves[17 + j] |= (vu)i_select(zero, i_set(0), share << 12);
    }
    join_halves(halves, 25, t->words);
}

/* The factor d of IQ1_M: a least squares fit over the whole super-block. */
INLINE vf fit_factor(const struct tile *t, struct ternary *b, const vf *scales, vi codes[32], bool weighted, vf sigma2,
                     const vi *choice, vf max, vi *share) {
    const vf d = max / f_set(15), inverse = f_set(1) / d;
    vf sum_xq = f_set(0), sum_q2 = f_set(0), w[16];
    for (int j = 0; j < 16; j++) {
        share[j] = i_clamp(nearest(f_set(0.5f) * (inverse * scales[j] - f_set(1))), 0, 7);
        weigh(t, 16 * j, 16, weighted, sigma2, w);
        b->x = t->x + 16 * j;
        b->w = w;
        for (int k = 0; k < 2; k++) {
            b->codes[k] = codes[2 * j + k];
            b->delta[k] = f_select(i_eq((choice[j] >> (1 - k)) & 1, i_set(0)), f_set(DELTA), f_set(-DELTA));
            add_group(b, k, i_float(2 * share[j] + 1), &sum_xq, &sum_q2);
        }
    }
    return f_select(f_gt(sum_q2, f_set(0)), sum_xq / sum_q2, d);
}

INLINE void encode_m(struct tile *t, bool weighted) {
    const struct lattice *lattice = lattice_of(TYPE_IQ1_M);
    const vf sigma2 = f_set(2) * sum_of_squares(t->x, 256) / f_set(256);
    struct ternary b;
    vf scales[16], w[16];
    vi choice[16], codes[32], low[16], high[16], share[16];
    vu halves[28];
    for (int j = 0; j < 16; j++) {
        vi index[2];
        b.x = t->x + 16 * j;
        b.w = w;
        weigh(t, 16 * j, 16, weighted, sigma2, w);
        choice[j] = fit_ternary(lattice, 16, 1e-7f, &b);
        scales[j] = b.scale;
        for (int k = 0; k < 2; k++) {
            index[k] = index_of(lattice, b.codes[k], m_not(b.found));
            codes[2 * j + k] = i_select(b.found, b.codes[k], i_set(lattice->first));
        }
        low[j] = (index[0] & 255) | (index[1] & 255) << 8;
        high[j] = index[0] >> 8 | index[1] >> 8 << 4;
    }
    const vf max = largest(scales, 16);
    const vm zero = f_eq(max, f_set(0));
    const vf d = fit_factor(t, &b, scales, codes, weighted, sigma2, choice, max, share);
    const vu half = to_half(d * f_set(1.1125f));
    for (int j = 0; j < 16; j++) {
        halves[j] = (vu)low[j];
        high[j] |= i_select(zero, i_set(0), (choice[j] >> 1) << 3 | (choice[j] & 1) << 7);
    }
    for (int k = 0; k < 8; k++)
        halves[16 + k] = (vu)(high[2 * k] | high[2 * k + 1] << 8);
    for (int k = 0; k < 4; k++) {
        vi word = share[4 * k] | share[4 * k + 1] << 3 | share[4 * k + 2] << 6 | share[4 * k + 3] << 9;
        word |= (vi)((half >> 4 * k & 15) << 12);
        halves[24 + k] = (vu)i_select(zero, i_set(0), word);
    }
    join_halves(halves, 28, t->words);
}

static void s_weighted(struct tile *t) { encode_s(t); }
static void m_plain(struct tile *t) { encode_m(t, false); }
static void m_weighted(struct tile *t) { encode_m(t, true); }

bool ISA(iq1_s)(const struct job *job) {
    return job->importance && lattice_of(TYPE_IQ1_S) && encode_lattice(job, 50, s_weighted);
}

bool ISA(iq1_m)(const struct job *job) {
    return lattice_of(TYPE_IQ1_M) && encode_lattice(job, 56, job->importance ? m_weighted : m_plain);
}
