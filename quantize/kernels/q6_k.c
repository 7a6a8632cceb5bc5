/* Q6_K: super-blocks of 16 x 16 weights, x = d * scale * (level - 32).
 *
 *   byte   0..127  ql: in each 128 weights, byte i (0..63) is the low nibble of weight i and, above it, of i + 64
 *        128..191  qh: in each 128 weights, byte i (0..31) has bits 4 and 5 of weights i, i + 32, i + 64, i + 96
 *        192..207  scales, int8
 *        208..209  d, fp16
 */
#include "fit_symmetric.h"

/* Levels 0..63 of sub-block j. */
INLINE void final_levels(const vf *x, const struct symmetric_fit *fit, vf d, vi *levels) {
    const vm dead = f_eq(d, f_set(0));
    for (int i = 0; i < 16; i++)
        levels[i] = i_clamp(nearest(x[i] / d), -32, 31) + 32;
    if (m_any(dead))
        for (int i = 0; i < 16; i++)
            levels[i] = i_select(dead, symmetric_won_level(fit, x[i], 32), levels[i]);
}

/* 128 levels as 16 words of ql and 8 words of qh. */
INLINE void pack_half(const vi *l, vu *ql, vu *qh) {
    for (int k = 0; k < 8; k++) {
        vi a = i_set(0), b = i_set(0), high = i_set(0);
        for (int n = 0; n < 4; n++) {
            const vi *q = l + 4 * k + n;
            a |= (q[0] & 15) << 8 * n | (q[64] & 15) << (8 * n + 4);
            b |= (q[32] & 15) << 8 * n | (q[96] & 15) << (8 * n + 4);
            high |= (q[0] >> 4 | q[32] >> 4 << 2 | q[64] >> 4 << 4 | q[96] >> 4 << 6) << 8 * n;
        }
        ql[k] = (vu)a;
        ql[8 + k] = (vu)b;
        qh[k] = (vu)high;
    }
}

INLINE void encode_tile(struct tile *t, bool weighted) {
    struct symmetric_fit fit[16];
    vf max_scale = f_set(0), max_abs = f_set(0);
    for (int j = 0; j < 16; j += INTERLEAVE) {
        const vf *x = t->x + 16 * j;
        vf w[16 * INTERLEAVE], wx[16 * INTERLEAVE];
        for (int i = 0; i < 16 * INTERLEAVE; i++) {
            w[i] = weighted ? t->importance[16 * j + i] : x[i] * x[i];
            wx[i] = w[i] * x[i];
        }
        fit_symmetric(INTERLEAVE, 16, 32, x, w, wx, false, fit + j);
    }
    for (int j = 0; j < 16; j++) {
        const vf size = f_abs(fit[j].scale);
        const vm larger = f_gt(size, max_abs);
        max_scale = f_select(larger, fit[j].scale, max_scale);
        max_abs = f_select(larger, size, max_abs);
    }
    const vm zero = f_lt(max_abs, f_set(GROUP_MAX_EPS));
    const vf inverse = f_set(-128) / max_scale;
    const vu d = to_half(f_set(1) / inverse);
    vi scales[16], levels[256];
    for (int j = 0; j < 16; j++) {
        scales[j] = i_min(nearest(inverse * fit[j].scale), i_set(127)) << 24 >> 24;
        final_levels(t->x + 16 * j, &fit[j], from_half(d) * i_float(scales[j]), levels + 16 * j);
    }
    for (int half = 0; half < 2; half++)
        pack_half(levels + 128 * half, t->words + 16 * half, t->words + 32 + 8 * half);
    for (int k = 0; k < 4; k++) {
        const vi *s = scales + 4 * k;
        t->words[48 + k] = (vu)((s[0] & 255) | (s[1] & 255) << 8 | (s[2] & 255) << 16 | s[3] << 24);
    }
    t->words[52] = d;
    if (m_any(zero))
        for (int k = 0; k < 53; k++)
            t->words[k] = (vu)i_select(zero, i_set(0), (vi)t->words[k]);
}

static void plain(struct tile *t) { encode_tile(t, false); }
static void weighted(struct tile *t) { encode_tile(t, true); }

bool ISA(q6_k)(const struct job *job) {
    return encode_blocks(job, 256, 210, 1, job->importance ? weighted : plain);
}
