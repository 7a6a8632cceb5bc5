/* IQ3_XXS and IQ3_S: super-blocks of 8 x 32 weights; groups of 4 magnitudes (1, 3, … 15) are points of a lattice of 256 or
 * 512, x = sign * d * (2 * scale + 1) * magnitude, up to a constant.
 *
 *   IQ3_XXS  byte  0..1    d, fp16
 *                  2..65   point numbers, 8 a sub-block
 *                 66..97   a word a sub-block: four times 7 signs (the eighth makes their number even), scale in 4 bits
 *   IQ3_S    byte  0..1    d, fp16
 *                  2..65   point numbers, low 8 bits
 *                 66..73   bit 8 of the point numbers, a byte a sub-block
 *                 74..105  signs
 *                106..109  scales, 4 bits each
 */
#include "fit_lattice.h"

static const struct shape SHAPE = {32, 4, 3, 7};

/* Weights of the fit for sub-block j. */
INLINE void weigh(const struct tile *t, int j, bool weighted, struct lattice_fit *f) {
    for (int i = 0; i < 32; i++) {
        const vf square = t->x[32 * j + i] * t->x[32 * j + i];
        f->w[i] = weighted ? t->importance[32 * j + i] * f_sqrt(t->sigma2[0] + square) : square;
    }
}

INLINE void encode_xxs(struct tile *t, bool weighted) {
    const struct lattice *lattice = lattice_of(TYPE_IQ3_XXS);
    union block blocks[W];
    union lanes sign_words[8], d;
    vf scales[8], max_scale = f_set(0);
    memset(blocks, 0, sizeof blocks);
    t->sigma2[0] = f_set(2) * sum_of_squares(t->x, 256) / f_set(256);
    for (int j = 0; j < 8; j++) {
        struct lattice_fit f;
        weigh(t, j, weighted, &f);
        prepare(SHAPE, t->x + 32 * j, true, &f);
        f.dead = f_lt(f.max, f_set(1e-8f));
        f.scale = f.max / f_set(15);
        search(SHAPE, (struct lattice_search){15, 0.2f, false, false}, lattice, &f);
        make_positive(SHAPE, &f, 127);
        scales[j] = f_select(f.dead, f_set(0), f.scale);
        max_scale = f_select(f.dead, max_scale, f_max(max_scale, scales[j]));
        const vi signs = f.sign[0] | f.sign[1] << 7 | f.sign[2] << 14 | f.sign[3] << 21;
        sign_words[j].u = (vu)i_select(f.dead, i_set(0), signs);
        for (int k = 0; k < 8; k++) {
            const union lanes code = {.u = (vu)i_select(f.dead, i_set(-1), f.code[k])};
            for (int lane = 0; lane < W; lane++)
                if (code.word[lane] != UINT32_MAX)
                    blocks[lane].bytes[2 + 8 * j + k] = (uint8_t)lattice->index[code.word[lane]];
        }
    }
    const vm none = f_eq(max_scale, f_set(0));
    const vf step = max_scale / f_set(31);
    d.u = (vu)i_select(none, i_set(0), (vi)to_half(step * f_set(1.0125f)));
    for (int j = 0; j < 8; j++)
        sign_words[j].u |= (vu)share(f_set(1) / step, scales[j]) << 28;
    const union lanes empty = {.u = (vu)i_select(none, i_set(1), i_set(0))};
    for (int lane = 0; lane < W; lane++) {
        memcpy(blocks[lane].bytes, &d.word[lane], 2);
        for (int j = 0; j < 8; j++)
            memcpy(blocks[lane].bytes + 66 + 4 * j, &sign_words[j].word[lane], 4);
        if (empty.word[lane])
            memset(blocks[lane].bytes, 0, 98);
    }
    hand_over(t, blocks, 25);
}

INLINE void encode_s(struct tile *t, bool weighted) {
    const struct lattice *lattice = lattice_of(TYPE_IQ3_S);
    union block blocks[W];
    union lanes d, share_pairs[4];
    int written[W] = {0}; /* sub-blocks so far: ggml leaves no room for one that is all zero, so later ones move up */
    vf scales[8], max_scale = f_set(0);
    memset(blocks, 0, sizeof blocks);
    t->sigma2[0] = f_set(2) * sum_of_squares(t->x, 256) / f_set(256);
    for (int j = 0; j < 8; j++) {
        struct lattice_fit f;
        union lanes code[8], sign[4];
        weigh(t, j, weighted, &f);
        prepare(SHAPE, t->x + 32 * j, false, &f);
        f.dead = f_eq(f.max, f_set(0));
        f.scale = f.max / f_set(15);
        search(SHAPE, (struct lattice_search){9, 0.2f, true, false}, lattice, &f);
        make_positive(SHAPE, &f, 255);
        scales[j] = f_select(f.dead, f_set(0), f.scale);
        max_scale = f_select(f.dead, max_scale, f_max(max_scale, scales[j]));
        for (int k = 0; k < 8; k++)
            code[k].u = (vu)i_select(f.dead, i_set(-1), f.code[k]);
        for (int k = 0; k < 4; k++)
            sign[k].u = (vu)f.sign[k];
        for (int lane = 0; lane < W; lane++) {
            if (code[0].word[lane] == UINT32_MAX)
                continue;
            uint8_t *bytes = blocks[lane].bytes;
            for (int k = 0; k < 8; k++) {
                const int number = lattice->index[code[k].word[lane]];
                bytes[2 + 8 * written[lane] + k] = (uint8_t)number;
                bytes[66 + j] |= (uint8_t)(number >> 8 << k);
            }
            for (int k = 0; k < 4; k++)
                bytes[74 + 4 * written[lane] + k] = (uint8_t)sign[k].word[lane];
            written[lane]++;
        }
    }
    const vm none = f_eq(max_scale, f_set(0));
    const vf step = max_scale / f_set(31), inverse = f_set(1) / step;
    d.u = (vu)i_select(none, i_set(0), (vi)to_half(step * f_set(1.033f)));
    for (int j = 0; j < 8; j += 2) {
        const vi pair = share(inverse, scales[j]) | share(inverse, scales[j + 1]) << 4;
        share_pairs[j / 2].u = (vu)i_select(none, i_set(0), pair);
    }
    for (int lane = 0; lane < W; lane++) {
        memcpy(blocks[lane].bytes, &d.word[lane], 2);
        for (int j = 0; j < 4; j++)
            blocks[lane].bytes[106 + j] = (uint8_t)share_pairs[j].word[lane];
    }
    hand_over(t, blocks, 28);
}

static void xxs_plain(struct tile *t) { encode_xxs(t, false); }
static void xxs_weighted(struct tile *t) { encode_xxs(t, true); }
static void s_plain(struct tile *t) { encode_s(t, false); }
static void s_weighted(struct tile *t) { encode_s(t, true); }

bool ISA(iq3_xxs)(const struct job *job) {
    return encode_blocks(job, 256, 98, 1, job->importance ? xxs_weighted : xxs_plain);
}

bool ISA(iq3_s)(const struct job *job) {
    return encode_blocks(job, 256, 110, 1, job->importance ? s_weighted : s_plain);
}
