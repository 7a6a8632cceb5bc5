/* Q2_K: super-blocks of 16 x 16 weights, x = d * scale * level - dmin * min.
 *
 *   byte  0..15  scale of sub-block j and, above it, its min: 4 bits each
 *        16..79  levels: in each 128 weights, byte i (0..31) has weights i, i + 32, i + 64, i + 96, 2 bits each
 *        80..83  d, dmin, fp16
 */
#include "fit_affine.h"

/* Scales and mins to 4 bits by their maxima. Bytes are what ggml's uint8_t holds: what overflows 4 bits mixes. */
INLINE vf share(const vf *values, vi *levels) {
    vf max = f_set(0);
    for (int j = 0; j < 16; j++)
        max = f_max(values[j], max);
    const vm positive = f_gt(max, f_set(0));
    const vf inverse = f_set(15) / max;
    for (int j = 0; j < 16; j++)
        levels[j] = i_select(positive, nearest(inverse * values[j]), i_set(0));
    return f_select(positive, max / f_set(15), f_set(0));
}

/* Final levels 0..3 of sub-block j. */
INLINE void final_levels(const vf *x, const struct affine_fit *fit, vf d, vf dmin, vi *levels) {
    const vm dead = f_eq(d, f_set(0));
    for (int i = 0; i < 16; i++)
        levels[i] = i_clamp(nearest((x[i] + dmin) / d), 0, 3);
    if (m_any(dead))
        for (int i = 0; i < 16; i++)
            levels[i] = i_select(dead, affine_won_level(fit, x[i], 3), levels[i]);
}

INLINE void encode_tile(struct tile *t, bool weighted) {
    const struct affine_search search = weighted ? (struct affine_search){16, 3, -0.9f, 0.05f, 36, false}
                                                 : (struct affine_search){16, 3, -0.5f, 0.1f, 15, true};
    struct affine_fit fit[16];
    vf scales[16], mins[16], sums[16], d, dmin;
    vi scale[16], min[16], levels[256];
    if (weighted)
        t->sigma2[0] = sum_of_squares(t->x, 256) / f_set(256);
    for (int j = 0; j < 16; j += INTERLEAVE) {
        const vf *x = t->x + 16 * j;
        vf w[16 * INTERLEAVE];
        for (int i = 0; i < 16 * INTERLEAVE; i++)
            w[i] = weighted ? t->importance[16 * j + i] * f_sqrt(t->sigma2[0] + x[i] * x[i]) : f_abs(x[i]);
        fit_affine(search, x, w, fit + j);
    }
    for (int j = 0; j < 16; j++) {
        scales[j] = fit[j].scale;
        mins[j] = -fit[j].min;
        sums[j] = fit[j].sum_w;
    }
    if (weighted) {
        d = fit_positive(16, 15, scales, sums, scale);
        dmin = fit_positive(16, 15, mins, sums, min);
    } else {
        d = share(scales, scale);
        dmin = share(mins, min);
    }
    const vu half_d = to_half(d), half_dmin = to_half(dmin);
    for (int j = 0; j < 16; j++) {
        const vi byte = (scale[j] | min[j] << 4) & 255;
        final_levels(t->x + 16 * j, &fit[j], from_half(half_d) * i_float(byte & 15),
                     from_half(half_dmin) * i_float(byte >> 4), levels + 16 * j);
        t->words[j / 4] = (vu)byte << 8 * (j & 3) | (j & 3 ? t->words[j / 4] : (vu)i_set(0));
    }
    pack_2_bits(levels, t->words + 4);
    t->words[20] = half_d | half_dmin << 16;
}

static void plain(struct tile *t) { encode_tile(t, false); }
static void weighted(struct tile *t) { encode_tile(t, true); }

bool ISA(q2_k)(const struct job *job) {
    return encode_blocks(job, 256, 84, 1, job->importance ? weighted : plain);
}
