/* IQ2_XXS, IQ2_XS and IQ2_S: super-blocks of 256 weights; groups of 8 magnitudes (1, 3 or 5) are points of a lattice of
 * 256, 512 or 1024, x = sign * d * (2 * scale + 1) * magnitude, up to a constant.
 *
 *   IQ2_XXS  byte  0..1   d, fp16             8 sub-blocks of 32
 *                  2..65  8 bytes a sub-block: four point numbers; four times 7 signs, scale in 4 bits
 *   IQ2_XS   byte  0..1   d, fp16             16 sub-blocks of 16
 *                  2..65  two bytes a group: point number in 9 bits, 7 signs
 *                 66..73  scales, 4 bits each
 *   IQ2_S    byte  0..1   d, fp16             16 sub-blocks of 16
 *                  2..33  point numbers, low 8 bits
 *                 34..65  signs, 8 a group
 *                 66..73  bits 8 and 9 of the point numbers, four a byte
 *                 74..81  scales, 4 bits each
 *
 * Where there are 7 signs, the eighth makes their number even.
 */
#include "fit_affine.h"
#include "fit_lattice.h"

static const struct shape WIDE = {32, 8, 2, 2}, NARROW = {16, 8, 2, 2};

INLINE void weigh(const struct tile *t, int first, int n, bool weighted, struct lattice_fit *f) {
    for (int i = 0; i < n; i++) {
        const vf square = t->x[first + i] * t->x[first + i];
        f->w[i] = weighted ? t->importance[first + i] * f_sqrt(t->sigma2[0] + square)
                           : f_set(0.25f) * t->sigma2[0] + square;
    }
}

/* The lanes' point numbers and signs of group k as numbers; -1 in lanes that are all zero. */
struct group {
    int32_t number[W];
    union lanes sign;
};

INLINE void look_up(const struct lattice *lattice, const struct lattice_fit *f, int k, struct group *g) {
    const union lanes code = {.u = (vu)i_select(f->dead, i_set(-1), f->code[k])};
    g->sign.u = (vu)f->sign[k];
    for (int lane = 0; lane < W; lane++)
        g->number[lane] = code.word[lane] == UINT32_MAX ? -1 : lattice->index[code.word[lane]];
}

/* The half-precision factor of each lane's super-block, and its sub-blocks' scales in 4 bits; zeros without one. */
INLINE void finish(int n, const vf *scales, vf max_scale, float fudge, union block blocks[W], int at) {
    const vm none = f_eq(max_scale, f_set(0));
    const vf step = max_scale / f_set(31), inverse = f_set(1) / step;
    const union lanes d = {.u = (vu)i_select(none, i_set(0), (vi)to_half(step * f_set(fudge)))};
    for (int j = 0; j < n; j++) {
        const union lanes s = {.u = (vu)i_select(none, i_set(0), share(inverse, scales[j]))};
        for (int lane = 0; lane < W; lane++) {
            if (at)
                blocks[lane].bytes[at + j / 2] |= (uint8_t)(s.word[lane] << 4 * (j & 1));
            else
                blocks[lane].bytes[2 + 8 * j + 7] |= (uint8_t)(s.word[lane] << 4);
        }
    }
    for (int lane = 0; lane < W; lane++)
        memcpy(blocks[lane].bytes, &d.word[lane], 2);
}

/* IQ2_XXS starts from the scale of a search that knows nothing of the lattice. */
INLINE void start_xxs(struct lattice_fit *f) {
    vi levels[32];
    f->dead = f_lt(f->max, f_set(GROUP_MAX_EPS));
    f->scale = fit_positive(32, 4, f->x, f->w, levels);
    f->max = f->scale * f_set(3);
    f->dead |= f_le(f->max, f_set(0));
}

static void encode_xxs(struct tile *t) {
    const struct lattice *lattice = lattice_of(TYPE_IQ2_XXS);
    union block blocks[W];
    vf scales[8], max_scale = f_set(0);
    memset(blocks, 0, sizeof blocks);
    t->sigma2[0] = sum_of_squares(t->x, 256) / f_set(256);
    for (int j = 0; j < 8; j++) {
        struct lattice_fit f;
        weigh(t, 32 * j, 32, true, &f);
        prepare(WIDE, t->x + 32 * j, true, &f);
        start_xxs(&f);
        search(WIDE, (struct lattice_search){6, 0.1f, true, true}, lattice, &f);
        make_positive(WIDE, &f, 127);
        scales[j] = f_select(f.dead, f_set(0), f.scale);
        max_scale = f_select(f.dead, max_scale, f_max(max_scale, scales[j]));
        for (int k = 0; k < 4; k++) {
            struct group g;
            look_up(lattice, &f, k, &g);
            for (int lane = 0; lane < W; lane++) {
                uint32_t signs;
                uint8_t *bytes = blocks[lane].bytes + 2 + 8 * j;
                if (g.number[lane] < 0)
                    continue;
                bytes[k] = (uint8_t)g.number[lane];
                memcpy(&signs, bytes + 4, 4);
                signs |= g.sign.word[lane] << 7 * k;
                memcpy(bytes + 4, &signs, 4);
            }
        }
    }
    finish(8, scales, max_scale, 1, blocks, 0);
    const union lanes max = {.f = max_scale};
    for (int lane = 0; lane < W; lane++)
        if (max.number[lane] == 0)
            memset(blocks[lane].bytes, 0, 66);
    hand_over(t, blocks, 17);
}

static void encode_xs(struct tile *t) {
    const struct lattice *lattice = lattice_of(TYPE_IQ2_XS);
    union block blocks[W];
    vf scales[16], max_scale = f_set(0);
    memset(blocks, 0, sizeof blocks);
    t->sigma2[0] = sum_of_squares(t->x, 256) / f_set(256);
    for (int j = 0; j < 16; j++) {
        struct lattice_fit f;
        weigh(t, 16 * j, 16, true, &f);
        prepare(NARROW, t->x + 16 * j, true, &f);
        f.dead = f_lt(f.max, f_set(GROUP_MAX_EPS));
        f.scale = f.max / f_set(5);
        search(NARROW, (struct lattice_search){9, 0.1f, false, false}, lattice, &f);
        make_positive(NARROW, &f, 127);
        scales[j] = f_select(f.dead, f_set(0), f.scale);
        max_scale = f_select(f.dead, max_scale, f_max(max_scale, scales[j]));
        for (int k = 0; k < 2; k++) {
            struct group g;
            look_up(lattice, &f, k, &g);
            for (int lane = 0; lane < W; lane++) {
                const uint16_t both = (uint16_t)(g.number[lane] | g.sign.word[lane] << 9);
                if (g.number[lane] >= 0)
                    memcpy(blocks[lane].bytes + 2 + 4 * j + 2 * k, &both, 2);
            }
        }
    }
    finish(16, scales, max_scale, 1, blocks, 66);
    const union lanes max = {.f = max_scale};
    for (int lane = 0; lane < W; lane++)
        if (max.number[lane] == 0)
            memset(blocks[lane].bytes, 0, 74);
    hand_over(t, blocks, 19);
}

INLINE void encode_s(struct tile *t, bool weighted) {
    const struct lattice *lattice = lattice_of(TYPE_IQ2_S);
    union block blocks[W];
    vf scales[16], max_scale = f_set(0);
    memset(blocks, 0, sizeof blocks);
    t->sigma2[0] = f_set(2) * sum_of_squares(t->x, 256) / f_set(256);
    for (int j = 0; j < 16; j++) {
        struct lattice_fit f;
        weigh(t, 16 * j, 16, weighted, &f);
        prepare(NARROW, t->x + 16 * j, false, &f);
        f.dead = f_lt(f.max, f_set(1e-8f));
        f.scale = f.max / f_set(5);
        search(NARROW, (struct lattice_search){9, 0.1f, false, false}, lattice, &f);
        make_positive(NARROW, &f, 255);
        scales[j] = f_select(f.dead, f_set(0), f.scale);
        max_scale = f_select(f.dead, max_scale, f_max(max_scale, scales[j]));
        for (int k = 0; k < 2; k++) {
            struct group g;
            const int at = 2 * j + k;
            look_up(lattice, &f, k, &g);
            for (int lane = 0; lane < W; lane++) {
                if (g.number[lane] < 0)
                    continue;
                blocks[lane].bytes[2 + at] = (uint8_t)g.number[lane];
                blocks[lane].bytes[34 + at] = (uint8_t)g.sign.word[lane];
                blocks[lane].bytes[66 + at / 4] |= (uint8_t)(g.number[lane] >> 8 << 2 * (at % 4));
            }
        }
    }
    finish(16, scales, max_scale, 0.9875f, blocks, 74);
    hand_over(t, blocks, 21);
}

static void s_plain(struct tile *t) { encode_s(t, false); }
static void s_weighted(struct tile *t) { encode_s(t, true); }

/* Without importance these two do not exist: nothing is encoded then, and the output is not to be used. */
bool ISA(iq2_xxs)(const struct job *job) { return job->importance && encode_blocks(job, 256, 66, 1, encode_xxs); }
bool ISA(iq2_xs)(const struct job *job) { return job->importance && encode_blocks(job, 256, 74, 1, encode_xs); }

bool ISA(iq2_s)(const struct job *job) {
    return encode_blocks(job, 256, 82, 1, job->importance ? s_weighted : s_plain);
}
