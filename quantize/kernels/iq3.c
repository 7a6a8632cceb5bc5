/* IQ3_XXS and IQ3_S: magnitudes 1, 3, ..., 15 in groups of 4 that are points of a lattice, times a scale.
 *
 *   IQ3_XXS  byte 0..1    d, fp16
 *                 2..65   per group an index of 8 bits
 *                66..97   per 32 weights 4 x 7 signs (the eighth makes their number even) below 4 bits of scale
 *   IQ3_S         0..1    d, fp16
 *                 2..65   per group the low 8 bits of the index
 *                66..73   per group bit 8 of the index
 *                74..105  signs, a bit per weight
 *               106..109  scales, 4 bits each
 */
#include "fit_lattice.h"

/* What was found for one super-block: a scale and signs per block of 32 weights, and an index per group of 4. */
struct iq3_result {
    vf scales[8];
    vi index[64], signs[32];
    vm zero[8];
};

INLINE void keep_block(const struct lattice *lattice, const struct lattice_block *b, const struct lattice_fit *fit,
                       int j, vm zero, int sign_mask, struct iq3_result *r) {
    const vm turned = f_lt(fit->scale, f_set(0));
    for (int k = 0; k < 8; k++)
        r->index[8 * j + k] = index_of(lattice, fit->codes[k], zero);
    for (int k = 0; k < 4; k++) {
        const vi signs = i_select(turned, ~b->signs[k], b->signs[k]) & sign_mask;
        r->signs[4 * j + k] = i_select(zero, i_set(0), signs);
    }
    r->zero[j] = zero;
    r->scales[j] = f_select(zero, f_set(0), f_select(turned, -fit->scale, fit->scale));
}

/* Searches block j of 32 weights. `s_rules`: what IQ3_S does otherwise: any number of signs, only zeros count as zero,
 * and when one group was not rounded to a point all are rounded again. Returns the lanes that count as zero. */
INLINE vm fit_block(const struct tile *t, int j, bool weighted, bool s_rules, vf sigma2, const struct lattice *lattice,
                    struct lattice_block *b, struct lattice_fit *fit) {
    const struct lattice_search search = {32, 4, s_rules ? -9 : -15, 0.2f};
    const vf *x = t->x + 32 * j, *importance = t->importance + 32 * j;
    vm again[8], some = m_not(i_eq(i_set(0), i_set(0)));
    for (int i = 0; i < 32; i++)
        b->w[i] = weighted ? importance[i] * f_sqrt(sigma2 + x[i] * x[i]) : x[i] * x[i];
    prepare_block(x, 32, !s_rules, b);
    fit->scale = b->max / f_set(15);
    fit_lattice(search, lattice, b, b->max, s_rules ? some : m_not(some), fit);
    for (int k = 0; k < 8; k++)
        some |= again[k] = m_not(fit->rounded[k]);
    for (int k = 0; s_rules && k < 8; k++)
        again[k] = some;
    refit_lattice(search, lattice, b, again, fit);
    return s_rules ? f_eq(b->max, f_set(0)) : f_lt(b->max, f_set(1e-8f));
}

INLINE void fit_blocks(const struct tile *t, bool weighted, bool s_rules, const struct lattice *lattice,
                       struct iq3_result *r) {
    const vf sigma2 = f_set(2) * sum_of_squares(t->x, 256) / f_set(256);
    for (int j = 0; j < 8; j++) {
        struct lattice_block b;
        struct lattice_fit fit;
        const vm zero = fit_block(t, j, weighted, s_rules, sigma2, lattice, &b, &fit);
        keep_block(lattice, &b, &fit, j, zero, s_rules ? 255 : 127, r);
    }
}

INLINE void encode_xxs(struct tile *t, bool weighted) {
    struct iq3_result r;
    vi share[8];
    vm zero;
    vu halves[49];
    fit_blocks(t, weighted, false, lattice_of(TYPE_IQ3_XXS), &r);
    halves[0] = share_scales(r.scales, 8, 1.0125f, share, &zero);
    for (int k = 0; k < 32; k++)
        halves[1 + k] = (vu)(r.index[2 * k] | r.index[2 * k + 1] << 8);
    for (int j = 0; j < 8; j++) {
        const vi *signs = r.signs + 4 * j;
        const vu word = (vu)(signs[0] | signs[1] << 7 | signs[2] << 14 | signs[3] << 21 | share[j] << 28);
        halves[33 + 2 * j] = word & 0xffff;
        halves[34 + 2 * j] = word >> 16;
    }
    clear_lanes(halves + 1, 48, zero);
    join_halves(halves, 49, t->words);
}

/* ggml writes the low bytes of indices and the signs of IQ3_S one after the other without a gap for blocks of zeros:
 * what follows such a block moves up, and the last place stays empty. */
INLINE void close_gaps(const vm zero[8], vi *values, int each) {
    for (int j = 7; j >= 0; j--)
        if (m_any(zero[j]))
            for (int i = each * j; i < 8 * each; i++)
                values[i] = i_select(zero[j], i < 7 * each ? values[i + each] : i_set(0), values[i]);
}

INLINE void encode_s(struct tile *t, bool weighted) {
    struct iq3_result r;
    vi share[8];
    vm zero;
    vu halves[55];
    fit_blocks(t, weighted, true, lattice_of(TYPE_IQ3_S), &r);
    halves[0] = share_scales(r.scales, 8, 1.033f, share, &zero);
    for (int k = 0; k < 4; k++) {
        vi high = i_set(0);
        for (int i = 0; i < 16; i++)
            high |= (r.index[16 * k + i] >> 8) << i;
        halves[33 + k] = (vu)high;
    }
    close_gaps(r.zero, r.index, 8);
    close_gaps(r.zero, r.signs, 4);
    for (int k = 0; k < 32; k++)
        halves[1 + k] = (vu)((r.index[2 * k] & 255) | (r.index[2 * k + 1] & 255) << 8);
    for (int k = 0; k < 16; k++)
        halves[37 + k] = (vu)(r.signs[2 * k] | r.signs[2 * k + 1] << 8);
    for (int k = 0; k < 2; k++)
        halves[53 + k] = (vu)(share[4 * k] | share[4 * k + 1] << 4 | share[4 * k + 2] << 8 | share[4 * k + 3] << 12);
    join_halves(halves, 55, t->words);
}

static void xxs_plain(struct tile *t) { encode_xxs(t, false); }
static void xxs_weighted(struct tile *t) { encode_xxs(t, true); }
static void s_plain(struct tile *t) { encode_s(t, false); }
static void s_weighted(struct tile *t) { encode_s(t, true); }

bool ISA(iq3_xxs)(const struct job *job) {
    return lattice_of(TYPE_IQ3_XXS) && encode_lattice(job, 98, job->importance ? xxs_weighted : xxs_plain);
}

bool ISA(iq3_s)(const struct job *job) {
    return lattice_of(TYPE_IQ3_S) && encode_lattice(job, 110, job->importance ? s_weighted : s_plain);
}
