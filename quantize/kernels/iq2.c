/* IQ2_XXS, IQ2_XS and IQ2_S: magnitudes 1, 3, 5 in groups of 8 that are points of a lattice, times a scale.
 *
 *   IQ2_XXS  byte 0..1   d, fp16; then, for each 32 weights, two 32-bit words: 4 indices of 8 bits;
 *                        and 4 x 7 signs (the eighth makes their number even) below 4 bits of scale
 *   IQ2_XS        0..1   d, fp16
 *                 2..65  per group 9 bits of index, 7 signs above
 *                66..73  scales, 4 bits each
 *   IQ2_S         0..1   d, fp16
 *                 2..33  per group the low 8 bits of the index
 *                34..65  per group 8 signs
 *                66..73  per group 2 more bits of the index
 *                74..81  scales, 4 bits each
 */
#include "fit_affine.h"
#include "fit_lattice.h"

/* What was found for one super-block: a scale per block of weights, and an index and signs per group of 8. */
struct iq2_result {
    vf scales[16];
    vi index[32], signs[32];
};

/* Keeps a block's result: no index and no signs where all is zero; where the scale is negative all signs turn. */
INLINE void keep_block(const struct lattice *lattice, const struct lattice_block *b, const struct lattice_fit *fit,
                       int j, int groups, vm zero, int sign_mask, struct iq2_result *r) {
    const vm turned = f_lt(fit->scale, f_set(0));
    for (int k = 0; k < groups; k++) {
        const vi signs = i_select(turned, ~b->signs[k], b->signs[k]) & sign_mask;
        r->index[groups * j + k] = index_of(lattice, fit->codes[k], zero);
        r->signs[groups * j + k] = i_select(zero, i_set(0), signs);
    }
    r->scales[j] = f_select(zero, f_set(0), f_select(turned, -fit->scale, fit->scale));
}

INLINE void weigh(const vf *x, const vf *importance, vf sigma2, int n, vf *w) {
    for (int i = 0; i < n; i++)
        w[i] = importance ? importance[i] * f_sqrt(sigma2 + x[i] * x[i]) : f_set(0.25f) * sigma2 + x[i] * x[i];
}

/* Blocks of 16, as IQ2_XS and IQ2_S have them. */
INLINE void fit_16(const struct tile *t, bool weighted, vf sigma2, const struct lattice *lattice, bool even,
                   float smallest, struct iq2_result *r) {
    const struct lattice_search search = {16, 8, -9, 0.1f};
    for (int j = 0; j < 16; j++) {
        struct lattice_block b;
        struct lattice_fit fit;
        vm again[2];
        weigh(t->x + 16 * j, weighted ? t->importance + 16 * j : NULL, sigma2, 16, b.w);
        prepare_block(t->x + 16 * j, 16, even, &b);
        fit.scale = b.max / f_set(5);
        fit_lattice(search, lattice, &b, b.max, i_eq(i_set(0), i_set(0)), &fit);
        for (int k = 0; k < 2; k++)
            again[k] = m_not(fit.rounded[k]);
        refit_lattice(search, lattice, &b, again, &fit);
        keep_block(lattice, &b, &fit, j, 2, f_lt(b.max, f_set(smallest)), even ? 127 : 255, r);
    }
}

INLINE void encode_xs(struct tile *t) {
    struct iq2_result r;
    vi share[16];
    vm zero;
    vu halves[37];
    fit_16(t, true, sum_of_squares(t->x, 256) / f_set(256), lattice_of(TYPE_IQ2_XS), true, GROUP_MAX_EPS, &r);
    halves[0] = share_scales(r.scales, 16, 1, share, &zero);
    for (int k = 0; k < 32; k++)
        halves[1 + k] = (vu)(r.index[k] | r.signs[k] << 9);
    for (int k = 0; k < 4; k++)
        halves[33 + k] = (vu)(share[4 * k] | share[4 * k + 1] << 4 | share[4 * k + 2] << 8 | share[4 * k + 3] << 12);
    clear_lanes(halves + 1, 32, zero);
    join_halves(halves, 37, t->words);
}

INLINE void encode_s(struct tile *t, bool weighted) {
    struct iq2_result r;
    vi share[16];
    vm zero;
    vu halves[41];
    const vf sigma2 = f_set(2) * sum_of_squares(t->x, 256) / f_set(256);
    fit_16(t, weighted, sigma2, lattice_of(TYPE_IQ2_S), false, 1e-8f, &r);
    halves[0] = share_scales(r.scales, 16, 0.9875f, share, &zero);
    for (int k = 0; k < 16; k++) {
        halves[1 + k] = (vu)((r.index[2 * k] & 255) | (r.index[2 * k + 1] & 255) << 8);
        halves[17 + k] = (vu)(r.signs[2 * k] | r.signs[2 * k + 1] << 8);
    }
    for (int k = 0; k < 4; k++) {
        vi high = i_set(0);
        for (int i = 0; i < 8; i++)
            high |= (r.index[8 * k + i] >> 8) << 2 * i;
        halves[33 + k] = (vu)high;
        halves[37 + k] = (vu)(share[4 * k] | share[4 * k + 1] << 4 | share[4 * k + 2] << 8 | share[4 * k + 3] << 12);
    }
    join_halves(halves, 41, t->words);
}

/* IQ2_XXS starts from the scale of a search without lattice, and rounds all groups again. */
INLINE void encode_xxs(struct tile *t) {
    const struct lattice_search search = {32, 8, -6, 0.1f};
    const struct lattice *lattice = lattice_of(TYPE_IQ2_XXS);
    const vf sigma2 = sum_of_squares(t->x, 256) / f_set(256);
    const vm all = i_eq(i_set(0), i_set(0)), again[4] = {all, all, all, all};
    struct iq2_result r;
    vi share[8];
    vm zero;
    vu halves[33];
    for (int j = 0; j < 8; j++) {
        struct lattice_block b;
        struct lattice_fit fit;
        vi levels[32];
        weigh(t->x + 32 * j, t->importance + 32 * j, sigma2, 32, b.w);
        prepare_block(t->x + 32 * j, 32, true, &b);
        fit.scale = fit_positive(32, 4, b.x, b.w, levels);
        const vf limit = fit.scale * f_set(3);
        fit_lattice(search, lattice, &b, limit, all, &fit);
        refit_lattice(search, lattice, &b, again, &fit);
        keep_block(lattice, &b, &fit, j, 4, f_le(limit, f_set(0)) | f_lt(b.max, f_set(GROUP_MAX_EPS)), 127, &r);
    }
    halves[0] = share_scales(r.scales, 8, 1, share, &zero);
    for (int j = 0; j < 8; j++) {
        const vi *index = r.index + 4 * j, *signs = r.signs + 4 * j;
        const vi high = signs[0] | signs[1] << 7 | signs[2] << 14 | signs[3] << 21 | share[j] << 28;
        halves[1 + 4 * j] = (vu)(index[0] | index[1] << 8);
        halves[2 + 4 * j] = (vu)(index[2] | index[3] << 8);
        halves[3 + 4 * j] = (vu)high & 0xffff;
        halves[4 + 4 * j] = (vu)high >> 16;
    }
    clear_lanes(halves + 1, 32, zero);
    join_halves(halves, 33, t->words);
}

static void xxs(struct tile *t) { encode_xxs(t); }
static void xs(struct tile *t) { encode_xs(t); }
static void s_plain(struct tile *t) { encode_s(t, false); }
static void s_weighted(struct tile *t) { encode_s(t, true); }

/* Without importance IQ2_XXS and IQ2_XS cannot be made; without their lattice none can. */
bool ISA(iq2_xxs)(const struct job *job) {
    return job->importance && lattice_of(TYPE_IQ2_XXS) && encode_lattice(job, 66, xxs);
}

bool ISA(iq2_xs)(const struct job *job) {
    return job->importance && lattice_of(TYPE_IQ2_XS) && encode_lattice(job, 74, xs);
}

bool ISA(iq2_s)(const struct job *job) {
    return lattice_of(TYPE_IQ2_S) && encode_lattice(job, 82, job->importance ? s_weighted : s_plain);
}
