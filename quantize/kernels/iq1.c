/* IQ1_S and IQ1_M: super-blocks of 256 weights; groups of 8 levels -1, 0, 1 are points of a lattice of 2048. All levels
 * of a group are shifted by an eighth up or down, x = d * (2 * scale + 1) * (level + shift), up to a constant.
 *
 *   IQ1_S  byte  0..1   d, fp16                8 sub-blocks of 32
 *                2..33  point numbers, low 8 bits
 *               34..49  two bytes a sub-block: bits 8 to 10 of its 4 point numbers, scale in 3 bits, shift
 *   IQ1_M  byte  0..31  point numbers, low 8 bits        16 sub-blocks of 16
 *               32..47  a byte a sub-block: for each of its two groups bits 8 to 10 of the number, and the shift
 *               48..55  four times two bytes: scales of 4 sub-blocks in 3 bits, and 4 bits of d, fp16
 *
 * In a sorted sub-block two boundaries separate the three levels; all pairs of boundaries are tried.
 */
#include "fit_lattice.h"

#define UP {-1 + 0.125f, 0.125f, 1 + 0.125f, 0, -1 + 0.125f, 0.125f, 1 + 0.125f, 0}
#define DOWN {-1 - 0.125f, -0.125f, 1 - 0.125f, 0, -1 - 0.125f, -0.125f, 1 - 0.125f, 0}

/* What levels 0, 1 and 2 stand for with each shift, twice. */
static const float SHIFTED[2][8] = {UP, DOWN};

static const struct shape WIDE = {32, 8, 2, 2}, NARROW = {16, 8, 2, 2};

/* One sub-block in every lane. `down` is, per group, 1 where the shift is down. */
struct ternary_fit {
    const vf *x;
    vf w[32], scale;
    vm dead;
    vi code[4], down[4];
};

/* A sub-block sorted by weight, equal ones in their order, as the C library's merge sort leaves them. */
struct sorted {
    vf x[32], w[32];
    vi place[32];
};

INLINE void sort(int n, const vf *x, const vf *w, struct sorted *s) {
    for (int i = 0; i < n; i++) {
        s->x[i] = x[i];
        s->w[i] = w[i];
        s->place[i] = i_set(i);
    }
    for (int round = 0; round < n; round++)
        for (int i = round & 1; i + 1 < n; i += 2) {
            const vf a = s->x[i], b = s->x[i + 1], wa = s->w[i], wb = s->w[i + 1];
            const vi pa = s->place[i], pb = s->place[i + 1];
            const vm swap = f_lt(b, a);
            s->x[i] = f_select(swap, b, a);
            s->x[i + 1] = f_select(swap, a, b);
            s->w[i] = f_select(swap, wb, wa);
            s->w[i + 1] = f_select(swap, wa, wb);
            s->place[i] = i_select(swap, pb, pa);
            s->place[i + 1] = i_select(swap, pa, pb);
        }
}

/* The best split so far: levels change at places `first` and `second` of the sorted weights; `choice` of shifts. */
struct split {
    vf score, scale;
    vi first, second, choice;
};

INLINE void consider(struct split *s, vf sum_qx, vf sum_q2, int first, int second, int choice) {
    const vm better = f_gt(sum_q2, f_set(0)) & f_gt(sum_qx * sum_qx, s->score * sum_q2);
    if (!m_any(better))
        return;
    const vf scale = sum_qx / sum_q2;
    s->scale = f_select(better, scale, s->scale);
    s->score = f_select(better, scale * sum_qx, s->score);
    s->first = i_select(better, i_set(first), s->first);
    s->second = i_select(better, i_set(second), s->second);
    s->choice = i_select(better, i_set(choice), s->choice);
}

INLINE struct split no_split(void) {
    return (struct split){f_set(-3.40282347e+38f), f_set(0), i_set(-1), i_set(-1), i_set(-1)};
}

/* Codes from the split, in the weights' own order; a negative scale turns the levels round. */
INLINE void take_split(int n, const struct sorted *s, const struct split *best, struct ternary_fit *f) {
    const vm negative = f_lt(best->scale, f_set(0));
    const union lanes turned = {.u = (vu)i_select(negative, i_set(1), i_set(0))};
    const union lanes first = {.u = (vu)best->first}, second = {.u = (vu)best->second};
    union lanes code[4];
    f->dead |= i_lt(best->first, i_set(0));
    f->scale = f_select(negative, -best->scale, best->scale);
    memset(code, 0, sizeof code);
    for (int i = 0; i < n; i++) {
        const union lanes place = {.u = (vu)s->place[i]};
        for (int lane = 0; lane < W; lane++) {
            const uint32_t level = (i >= (int32_t)first.word[lane]) + (i >= (int32_t)second.word[lane]);
            const uint32_t at = place.word[lane];
            code[at / 8].word[lane] |= (turned.word[lane] ? 2 - level : level) << 2 * (at % 8);
        }
    }
    for (int k = 0; k < n / 8; k++)
        f->code[k] = (vi)code[k].u;
}

/* What weight i's level stands for. */
INLINE vf value_of(const struct ternary_fit *f, int i) {
    const vf level = i_float((f->code[i / 8] >> 2 * (i % 8) & 3) - 1);
    return level + f_select(i_eq(f->down[i / 8], i_set(1)), f_set(-0.125f), f_set(0.125f));
}

/* Moves codes to points; where one moved, the scale is fitted again. */
INLINE void settle(struct shape shape, const struct lattice *lattice, struct ternary_fit *f) {
    float row_x[W][32], row_w[W][32];
    const union lanes scale = {.f = f->scale};
    union lanes moved = {.f = f_set(0)};
    vf sum_qx = f_set(0), sum_q2 = f_set(0);
    to_rows(shape.n, f->x, row_x);
    to_rows(shape.n, f->w, row_w);
    for (int k = 0; k < shape.n / 8; k++) {
        const union lanes down = {.u = (vu)f->down[k]};
        union lanes code = {.u = (vu)f->code[k]};
        for (int lane = 0; lane < W; lane++) {
            const uint32_t c = code.word[lane];
            if (!lattice->eights[c])
                continue;
            moved.word[lane] = 1;
            code.word[lane] = nearest_point(shape, SHIFTED[down.word[lane]], row_x[lane] + 8 * k, row_w[lane] + 8 * k,
                                            scale.number[lane], lattice->neighbours + lattice->first[c],
                                            lattice->eights[c]);
        }
        f->code[k] = (vi)code.u;
    }
    for (int i = 0; i < shape.n; i++) {
        const vf q = value_of(f, i);
        sum_qx += f->w[i] * q * f->x[i];
        sum_q2 += f->w[i] * q * q;
    }
    const vm again = i_eq((vi)moved.u, i_set(1)) & f_gt(sum_qx, f_set(0)) & f_gt(sum_q2, f_set(0));
    f->scale = f_select(again, sum_qx / sum_q2, f->scale);
}

INLINE vf largest(int n, const vf *x) {
    vf max = f_abs(x[0]);
    for (int i = 1; i < n; i++)
        max = f_max(max, f_abs(x[i]));
    return max;
}

INLINE void weigh(const struct tile *t, int first, int n, bool weighted, vf *w) {
    for (int i = 0; i < n; i++) {
        const vf square = t->x[first + i] * t->x[first + i];
        w[i] = weighted ? t->importance[first + i] * f_sqrt(t->sigma2[0] + square) : square;
    }
}

/* ---- IQ1_S -------------------------------------------------------------------------------------------------- */

/* All splits of 32 sorted weights, shifted up and down. up[i] and down[i]: what the weights before and after place i
 * contribute to the sums. */
INLINE struct split split_wide(const struct sorted *s) {
    struct {
        vf before_qx, before_q2, after_qx, after_q2;
    } up[33], down[33];
    vf sum_x[33], sum_w[33];
    struct split best = no_split();
    sum_x[0] = sum_w[0] = f_set(0);
    for (int i = 0; i < 32; i++) {
        sum_x[i + 1] = sum_x[i] + s->w[i] * s->x[i];
        sum_w[i + 1] = sum_w[i] + s->w[i];
    }
    for (int i = 0; i <= 32; i++) {
        const vf x_before = sum_x[i] - sum_x[0], x_after = sum_x[32] - sum_x[i];
        const vf w_before = sum_w[i] - sum_w[0], w_after = sum_w[32] - sum_w[i];
        up[i].before_qx = x_before * f_set(-0.875f);
        up[i].before_q2 = w_before * f_set(-0.875f) * f_set(-0.875f);
        up[i].after_qx = x_after * f_set(1.125f);
        up[i].after_q2 = w_after * f_set(1.125f) * f_set(1.125f);
        down[i].before_qx = x_before * f_set(-1.125f);
        down[i].before_q2 = w_before * f_set(-1.125f) * f_set(-1.125f);
        down[i].after_qx = x_after * f_set(0.875f);
        down[i].after_q2 = w_after * f_set(0.875f) * f_set(0.875f);
    }
    for (int i = 0; i <= 32; i++)
        for (int j = i; j <= 32; j++) {
            const vf middle = (sum_x[j] - sum_x[i]) * f_set(0.125f);
            const vf middle2 = (sum_w[j] - sum_w[i]) * f_set(0.125f) * f_set(0.125f);
            consider(&best, up[i].before_qx + middle + up[j].after_qx, up[i].before_q2 + middle2 + up[j].after_q2, i, j, 0);
            consider(&best, down[i].before_qx - middle + down[j].after_qx,
                     down[i].before_q2 + middle2 + down[j].after_q2, i, j, 1);
        }
    return best;
}

static void encode_s(struct tile *t) {
    const struct lattice *lattice = lattice_of(TYPE_IQ1_S);
    union block blocks[W];
    vf scales[8], max_scale = f_set(0);
    vi down[8];
    memset(blocks, 0, sizeof blocks);
    t->sigma2[0] = f_set(2) * sum_of_squares(t->x, 256) / f_set(256);
    for (int j = 0; j < 8; j++) {
        struct ternary_fit f = {.x = t->x + 32 * j};
        struct sorted sorted;
        weigh(t, 32 * j, 32, true, f.w);
        f.dead = f_lt(largest(32, f.x), f_set(1e-12f));
        sort(32, f.x, f.w, &sorted);
        const struct split best = split_wide(&sorted);
        take_split(32, &sorted, &best, &f);
        for (int k = 0; k < 4; k++)
            f.down[k] = i_select(f_lt(best.scale, f_set(0)), i_set(1) - best.choice, best.choice) & 1;
        settle(WIDE, lattice, &f);
        scales[j] = f_select(f.dead, f_set(0), f.scale);
        down[j] = i_select(f.dead, i_set(0), f.down[0]);
        max_scale = f_select(f.dead, max_scale, f_max(max_scale, scales[j]));
        for (int k = 0; k < 4; k++) {
            const union lanes code = {.u = (vu)i_select(f.dead, i_set(-1), f.code[k])};
            for (int lane = 0; lane < W; lane++) {
                if (code.word[lane] == UINT32_MAX)
                    continue;
                const int number = lattice->index[code.word[lane]];
                uint8_t *bytes = blocks[lane].bytes;
                bytes[2 + 4 * j + k] = (uint8_t)number;
                bytes[34 + 2 * j] |= (uint8_t)(number >> 8 << 3 * k);
                bytes[35 + 2 * j] |= (uint8_t)(number >> 8 << 3 * k >> 8);
            }
        }
    }
    const vm none = f_eq(max_scale, f_set(0));
    const vf step = max_scale / f_set(15), inverse = f_set(1) / step;
    const union lanes d = {.u = (vu)i_select(none, i_set(0), (vi)to_half(step * f_set(1.125f)))};
    for (int j = 0; j < 8; j++) {
        const vi share = i_clamp(nearest(f_set(0.5f) * (inverse * scales[j] - f_set(1))), 0, 7);
        const union lanes top = {.u = (vu)i_select(none, i_set(0), share | down[j] << 3)};
        for (int lane = 0; lane < W; lane++)
            blocks[lane].bytes[35 + 2 * j] |= (uint8_t)(top.word[lane] << 4);
    }
    for (int lane = 0; lane < W; lane++)
        memcpy(blocks[lane].bytes, &d.word[lane], 2);
    hand_over(t, blocks, 13);
}

/* ---- IQ1_M -------------------------------------------------------------------------------------------------- */

/* All splits of 16 sorted weights whose two halves (by their own order) are shifted each on its own: choice 0 is up, up;
 * 1 up, down; 2 down, up; 3 down, down. */
INLINE struct split split_narrow(const struct sorted *s) {
    const float up[3] = {-1 + 0.125f, 0.125f, 1 + 0.125f}, down[3] = {-1 - 0.125f, -0.125f, 1 - 0.125f};
    vf sum_x[2][17], up_1[2][17], up_2[2][17], down_1[2][17], down_2[2][17], total_up[2], total_down[2];
    struct split best = no_split();
    for (int h = 0; h < 2; h++) {
        vf sum_w[17];
        sum_x[h][0] = sum_w[0] = f_set(0);
        for (int i = 0; i < 16; i++) {
            const vm here = i_eq(s->place[i] >> 3, i_set(h));
            sum_x[h][i + 1] = f_select(here, sum_x[h][i] + s->w[i] * s->x[i], sum_x[h][i]);
            sum_w[i + 1] = f_select(here, sum_w[i] + s->w[i], sum_w[i]);
        }
        total_up[h] = sum_x[h][16] * f_set(up[2]);
        total_down[h] = sum_x[h][16] * f_set(down[2]);
        for (int i = 0; i <= 16; i++) {
            up_1[h][i] = sum_w[16] * f_set(up[2]) * f_set(up[2]) + sum_w[i] * f_set(up[0] * up[0] - up[1] * up[1]);
            up_2[h][i] = sum_w[i] * f_set(up[1] * up[1] - up[2] * up[2]);
            down_1[h][i] = sum_w[16] * f_set(down[2]) * f_set(down[2])
                         + sum_w[i] * f_set(down[0] * down[0] - down[1] * down[1]);
            down_2[h][i] = sum_w[i] * f_set(down[1] * down[1] - down[2] * down[2]);
        }
    }
    for (int i = 0; i <= 16; i++)
        for (int j = i; j <= 16; j++) {
            vf qx[2][2], q2[2][2]; /* by half, by shift */
            for (int h = 0; h < 2; h++) {
                const vf sum = sum_x[h][i] + sum_x[h][j];
                qx[h][0] = total_up[h] - sum;
                qx[h][1] = total_down[h] - sum;
                q2[h][0] = up_1[h][i] + up_2[h][j];
                q2[h][1] = down_1[h][i] + down_2[h][j];
            }
            for (int k = 0; k < 4; k++)
                consider(&best, qx[0][k / 2] + qx[1][k % 2], q2[0][k / 2] + q2[1][k % 2], i, j, k);
        }
    return best;
}

/* The factor d by least squares over the super-block, with the scales as rounded. */
INLINE vf refit(const struct ternary_fit *fits, const vi *shares, vf d) {
    vf sum_qx = f_set(0), sum_q2 = f_set(0);
    for (int j = 0; j < 16; j++)
        for (int i = 0; i < 16; i++) {
            const struct ternary_fit *f = &fits[j];
            const vf q = value_of(f, i) * i_float(shares[j] * 2 + 1);
            sum_qx += f->w[i] * q * f->x[i];
            sum_q2 += f->w[i] * q * q;
        }
    return f_select(f_gt(sum_q2, f_set(0)), sum_qx / sum_q2, d);
}

INLINE void encode_m(struct tile *t, bool weighted) {
    const struct lattice *lattice = lattice_of(TYPE_IQ1_M);
    struct ternary_fit fits[16];
    union block blocks[W];
    vf max_scale = f_set(0);
    vi shares[16];
    memset(blocks, 0, sizeof blocks);
    t->sigma2[0] = f_set(2) * sum_of_squares(t->x, 256) / f_set(256);
    for (int j = 0; j < 16; j++) {
        struct ternary_fit *f = &fits[j];
        struct sorted sorted;
        f->x = t->x + 16 * j;
        weigh(t, 16 * j, 16, weighted, f->w);
        f->dead = f_lt(largest(16, f->x), f_set(1e-7f));
        sort(16, f->x, f->w, &sorted);
        const struct split best = split_narrow(&sorted);
        take_split(16, &sorted, &best, f);
        const vi choice = i_select(f_lt(best.scale, f_set(0)), i_set(3) - best.choice, best.choice);
        f->down[0] = choice >> 1 & 1;
        f->down[1] = choice & 1;
        settle(NARROW, lattice, f);
        f->scale = f_select(f->dead, f_set(0), f->scale);
        max_scale = f_select(f->dead, max_scale, f_max(max_scale, f->scale));
        for (int k = 0; k < 2; k++) { /* nothing there: point 0, shifted up */
            f->code[k] = i_select(f->dead, i_set(lattice->origin), f->code[k]);
            f->down[k] = i_select(f->dead, i_set(0), f->down[k]);
        }
    }
    const vm none = f_eq(max_scale, f_set(0));
    const vf step = max_scale / f_set(15), inverse = f_set(1) / step;
    for (int j = 0; j < 16; j++)
        shares[j] = i_clamp(nearest(f_set(0.5f) * (inverse * fits[j].scale - f_set(1))), 0, 7);
    const union lanes d = {.u = to_half(refit(fits, shares, step) * f_set(1.1125f))};
    const union lanes empty = {.u = (vu)i_select(none, i_set(1), i_set(0))};
    for (int j = 0; j < 16; j++) {
        const union lanes share = {.u = (vu)shares[j]};
        for (int k = 0; k < 2; k++) {
            const union lanes code = {.u = (vu)fits[j].code[k]}, down = {.u = (vu)fits[j].down[k]};
            for (int lane = 0; lane < W; lane++) {
                const int number = lattice->index[code.word[lane]];
                const int shift = empty.word[lane] ? 0 : (int)down.word[lane];
                blocks[lane].bytes[2 * j + k] = (uint8_t)number;
                blocks[lane].bytes[32 + j] |= (uint8_t)((number >> 8 | shift << 3) << 4 * k);
            }
        }
        for (int lane = 0; lane < W; lane++) {
            if (empty.word[lane])
                continue;
            const uint32_t bits = share.word[lane] << 3 * (j % 4);
            blocks[lane].bytes[48 + 2 * (j / 4)] |= (uint8_t)bits;
            blocks[lane].bytes[49 + 2 * (j / 4)] |= (uint8_t)(bits >> 8);
        }
    }
    for (int lane = 0; lane < W; lane++)
        for (int k = 0; k < 4 && !empty.word[lane]; k++)
            blocks[lane].bytes[49 + 2 * k] |= (uint8_t)((d.word[lane] >> 4 * k & 15) << 4);
    hand_over(t, blocks, 14);
}

static void m_plain(struct tile *t) { encode_m(t, false); }
static void m_weighted(struct tile *t) { encode_m(t, true); }

/* Without importance IQ1_S does not exist: nothing is encoded then, and the output is not to be used. */
bool ISA(iq1_s)(const struct job *job) { return job->importance && encode_blocks(job, 256, 50, 1, encode_s); }

bool ISA(iq1_m)(const struct job *job) {
    return encode_blocks(job, 256, 56, 1, job->importance ? m_weighted : m_plain);
}
