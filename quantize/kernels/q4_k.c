/* Q4_K and Q5_K: super-blocks of 8 x 32 weights, x = d * scale * level - dmin * min.
 *
 *   byte  0..1   d, fp16            16..47   (Q5_K) high bits: byte i, bit s is bit 4 of weight 32 s + i
 *         2..3   dmin, fp16         the rest: low nibbles, 32 bytes per 64 weights: byte i is weight i
 *         4..15  scales and mins              and, in its upper half, weight 32 + i
 *
 * Scales s and mins m have 6 bits:  byte 0..3  s[0..3] | high bits of s[4..7] << 6
 *                                   byte 4..7  m[0..3] | high bits of m[4..7] << 6
 *                                   byte 8..11 s[4..7] | m[4..7] << 4, low bits
 */
#include "fit_affine.h"

/* Sub-blocks' weights without importance: the root mean square plus the magnitude. */
INLINE void weigh_plain(const vf *x, vf *w) {
    const vf mean = f_sqrt(sum_of_squares(x, 32) / f_set(32));
    for (int i = 0; i < 32; i++)
        w[i] = mean + f_abs(x[i]);
}

INLINE void weigh(const struct tile *t, int first, bool weighted, vf *w) {
    if (!weighted) {
        weigh_plain(t->x + first, w);
        return;
    }
    for (int i = first; i < first + 32; i++)
        w[i - first] = t->importance[i] * f_sqrt(t->sigma2[0] + t->x[i] * t->x[i]);
}

/* Levels (6 bits, or what a wrapped uint8_t holds) of scales and mins, and their factors d and dmin. */
struct shares {
    vi scale[8], min[8];
    vf d, dmin;
};

INLINE void share_plain(const vf *scales, const vf *mins, struct shares *s) {
    vf max_scale = f_set(0), max_min = f_set(0);
    for (int j = 0; j < 8; j++) {
        max_scale = f_max(scales[j], max_scale);
        max_min = f_max(mins[j], max_min);
    }
    const vf by_scale = f_select(f_gt(max_scale, f_set(0)), f_set(63) / max_scale, f_set(0));
    const vf by_min = f_select(f_gt(max_min, f_set(0)), f_set(63) / max_min, f_set(0));
    for (int j = 0; j < 8; j++) {
        s->scale[j] = i_min(nearest(by_scale * scales[j]) & 255, i_set(63));
        s->min[j] = i_min(nearest(by_min * mins[j]) & 255, i_set(63));
    }
    s->d = max_scale / f_set(63);
    s->dmin = max_min / f_set(63);
}

/* Packs scales and mins into 12 bytes as above, and reads them back from there: a level above 63 overlaps. */
INLINE void pack_shares(struct shares *s, vu words[3]) {
    vi byte[12];
    for (int j = 0; j < 4; j++) {
        byte[j] = s->scale[j] | ((s->scale[j + 4] >> 4 << 6) & 255);
        byte[j + 4] = s->min[j] | ((s->min[j + 4] >> 4 << 6) & 255);
        byte[j + 8] = (s->scale[j + 4] & 15) | (s->min[j + 4] & 15) << 4;
    }
    for (int j = 0; j < 4; j++) {
        s->scale[j] = byte[j] & 63;
        s->min[j] = byte[j + 4] & 63;
        s->scale[j + 4] = (byte[j + 8] & 15) | byte[j] >> 6 << 4;
        s->min[j + 4] = byte[j + 8] >> 4 | byte[j + 4] >> 6 << 4;
    }
    for (int k = 0; k < 3; k++)
        words[k] = (vu)(byte[4 * k] | byte[4 * k + 1] << 8 | byte[4 * k + 2] << 16 | byte[4 * k + 3] << 24);
}

/* The final levels of sub-block j, with the rounded scale and min. */
INLINE void final_levels(const vf *x, const struct affine_fit *fit, vf d, vf dmin, int nmax, vi *levels) {
    const vm dead = f_eq(d, f_set(0));
    for (int i = 0; i < 32; i++)
        levels[i] = i_clamp(nearest((x[i] + dmin) / d), 0, nmax);
    if (m_any(dead))
        for (int i = 0; i < 32; i++)
            levels[i] = i_select(dead, affine_won_level(fit, x[i], nmax), levels[i]);
}

/* Low nibbles of two sub-blocks as 8 words; Q5_K's high bits are collected in qh at bits 2 * pair, 2 * pair + 1. */
INLINE void pack_pair(const vi *levels, int pair, vu *low, vu *qh) {
    for (int k = 0; k < 8; k++) {
        vi word = i_set(0);
        for (int b = 0; b < 4; b++) {
            const vi first = levels[4 * k + b], second = levels[32 + 4 * k + b];
            word |= (first & 15) << 8 * b | (second & 15) << (8 * b + 4);
            if (qh)
                qh[k] |= (vu)((first >> 4) << (8 * b + 2 * pair) | (second >> 4) << (8 * b + 2 * pair + 1));
        }
        low[k] = (vu)word;
    }
}

INLINE void encode_tile(struct tile *t, int nmax, bool weighted) {
    const struct affine_search search = weighted   ? (struct affine_search){32, nmax, -0.9f, 0.05f, 36, false}
                                      : nmax == 15 ? (struct affine_search){32, nmax, -1.0f, 0.1f, 20, false}
                                                   : (struct affine_search){32, nmax, -0.5f, 0.1f, 15, false};
    struct affine_fit fit[8];
    struct shares s;
    vf w[32 * INTERLEAVE], scales[8], mins[8], sums[8];
    if (weighted)
        t->sigma2[0] = f_set(2) * sum_of_squares(t->x, 256) / f_set(256);
    for (int j = 0; j < 8; j += INTERLEAVE) {
        for (int u = 0; u < INTERLEAVE; u++)
            weigh(t, 32 * (j + u), weighted, w + 32 * u);
        fit_affine(search, t->x + 32 * j, w, fit + j);
    }
    for (int j = 0; j < 8; j++) {
        scales[j] = fit[j].scale;
        mins[j] = -fit[j].min;
        sums[j] = fit[j].sum_w;
    }
    if (weighted) {
        s.d = fit_positive(8, 63, scales, sums, s.scale);
        s.dmin = fit_positive(8, 63, mins, sums, s.min);
        for (int j = 0; j < 8 && nmax == 31; j++) {
            s.scale[j] = i_min(s.scale[j], i_set(63));
            s.min[j] = i_min(s.min[j], i_set(63));
        }
    } else {
        share_plain(scales, mins, &s);
    }
    const vu d = to_half(s.d), dmin = to_half(s.dmin);
    t->words[0] = d | dmin << 16;
    pack_shares(&s, t->words + 1);
    vu *qh = nmax == 31 ? t->words + 4 : NULL, *low = t->words + (qh ? 12 : 4);
    for (int k = 0; qh && k < 8; k++)
        qh[k] = (vu)i_set(0);
    for (int pair = 0; pair < 4; pair++) {
        vi levels[64];
        for (int j = 2 * pair; j < 2 * pair + 2; j++)
            final_levels(t->x + 32 * j, &fit[j], from_half(d) * i_float(s.scale[j]),
                         from_half(dmin) * i_float(s.min[j]), nmax, levels + 32 * (j & 1));
        pack_pair(levels, pair, low + 8 * pair, qh);
    }
}

static void q4_k_plain(struct tile *t) { encode_tile(t, 15, false); }
static void q4_k_weighted(struct tile *t) { encode_tile(t, 15, true); }
static void q5_k_plain(struct tile *t) { encode_tile(t, 31, false); }
static void q5_k_weighted(struct tile *t) { encode_tile(t, 31, true); }

bool ISA(q4_k)(const struct job *job) {
    return encode_blocks(job, 256, 144, 1, job->importance ? q4_k_weighted : q4_k_plain);
}

bool ISA(q5_k)(const struct job *job) {
    return encode_blocks(job, 256, 176, 1, job->importance ? q5_k_weighted : q5_k_plain);
}
