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
#include "common.h"
#include "lattice.h"

/* One sub-block in every lane: magnitudes, their weights in the fit and those of the neighbour search, and what came
 * out: scale, the lattice codes of 8 groups, and the signs of 4 times 8 weights. */
struct fit {
    vf x[32], w[32];
    float row_x[W][32], row_w[W][32]; /* x and the root of w, lane by lane, for the neighbour search */
    vf max, scale;
    vm dead;
    vi code[8], sign[4];
};

/* ---- the neighbour search ----------------------------------------------------------------------------------- */

/* The code nearest to 4 magnitudes among n times 8 neighbours: the first with the least sum of w (scale q - x)^2. What
 * each level adds to the sum is worked out once; neighbours then only pick and add. */
#if W > 4
INLINE uint32_t nearest_point(const float *x, const float *w, float scale, const uint32_t *neighbours, int n) {
    const __m256 q = _mm256_setr_ps(1, 3, 5, 7, 9, 11, 13, 15), scaled = _mm256_mul_ps(_mm256_set1_ps(scale), q);
    __m256 part[4], best = _mm256_set1_ps(3.40282347e+38f);
    __m256i winner = _mm256_set1_epi32(INT32_MAX);
    for (int i = 0; i < 4; i++) {
        const __m256 difference = _mm256_sub_ps(scaled, _mm256_set1_ps(x[i]));
        part[i] = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(w[i]), difference), difference);
    }
    for (int k = 0; k < n; k++) {
        const __m256i code = _mm256_loadu_si256((const __m256i *)(neighbours + 8 * k));
        __m256 sum = _mm256_permutevar8x32_ps(part[0], code);
        sum = _mm256_add_ps(sum, _mm256_permutevar8x32_ps(part[1], _mm256_srli_epi32(code, 3)));
        sum = _mm256_add_ps(sum, _mm256_permutevar8x32_ps(part[2], _mm256_srli_epi32(code, 6)));
        sum = _mm256_add_ps(sum, _mm256_permutevar8x32_ps(part[3], _mm256_srli_epi32(code, 9)));
        const __m256 less = _mm256_cmp_ps(sum, best, _CMP_LT_OQ);
        best = _mm256_blendv_ps(best, sum, less);
        winner = _mm256_blendv_epi8(winner, code, _mm256_castps_si256(less));
    }
    __m256 least = _mm256_min_ps(best, _mm256_permute2f128_ps(best, best, 1));
    least = _mm256_min_ps(least, _mm256_permute_ps(least, 0x4e));
    least = _mm256_min_ps(least, _mm256_permute_ps(least, 0xb1));
    const __m256i equal = _mm256_castps_si256(_mm256_cmp_ps(best, least, _CMP_EQ_OQ));
    if (n == 1) /* lanes are in the list's order */
        return neighbours[__builtin_ctz(_mm256_movemask_ps(_mm256_castsi256_ps(equal)) | 0x100) & 7] & 0xffff;
    __m256i first = _mm256_blendv_epi8(_mm256_set1_epi32(INT32_MAX), winner, equal);
    first = _mm256_min_epi32(first, _mm256_permute2x128_si256(first, first, 1));
    first = _mm256_min_epi32(first, _mm256_shuffle_epi32(first, 0x4e));
    first = _mm256_min_epi32(first, _mm256_shuffle_epi32(first, 0xb1));
    return (uint32_t)_mm256_cvtsi256_si32(first) & 0xffff;
}
#else
INLINE uint32_t nearest_point(const float *x, const float *w, float scale, const uint32_t *neighbours, int n) {
    float part[4][8], best = 3.40282347e+38f;
    uint32_t winner = neighbours[0];
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < 8; l++) {
            const float difference = scale * (float)(2 * l + 1) - x[i];
            part[i][l] = w[i] * difference * difference;
        }
    for (int k = 0; k < 8 * n; k++) {
        const uint32_t c = neighbours[k];
        const float sum = part[0][c & 7] + part[1][c >> 3 & 7] + part[2][c >> 6 & 7] + part[3][c >> 9 & 7];
        winner = sum < best ? c : winner;
        best = sum < best ? sum : best;
    }
    return winner & 0xffff;
}
#endif

/* ---- one sub-block ------------------------------------------------------------------------------------------ */

/* The codes of plain rounding with inverse scale `inverse`; lattice points or not. */
INLINE void round_codes(const struct fit *f, vf inverse, vi code[8]) {
    for (int k = 0; k < 8; k++) {
        code[k] = i_set(0);
        for (int i = 0; i < 4; i++) {
            const vf t = f_set(0.5f) * (inverse * f->x[4 * k + i] - f_set(1));
            code[k] |= i_clamp(nearest(t), 0, 7) << 3 * i;
        }
    }
}

/* Replaces codes that are no points by the best neighbours at `scale`, in the lanes and groups where `wanted`. */
INLINE void move_to_points(const struct lattice *lattice, const struct fit *f, vf scale, vi code[8]) {
    const union lanes scales = {.f = scale};
    for (int k = 0; k < 8; k++) {
        union lanes codes = {.u = (vu)code[k]};
        for (int lane = 0; lane < W; lane++) {
            const uint32_t c = codes.word[lane];
            if (lattice->eights[c])
                codes.word[lane] = nearest_point(f->row_x[lane] + 4 * k, f->row_w[lane] + 4 * k, scales.number[lane],
                                                 lattice->neighbours + lattice->first[c], lattice->eights[c]);
        }
        code[k] = (vi)codes.u;
    }
}

/* The sums of w x q and w q^2 for the codes' magnitudes q. */
INLINE void sums_of(const struct fit *f, const vi code[8], vf *sum_qx, vf *sum_q2) {
    *sum_qx = *sum_q2 = f_set(0);
    for (int k = 0; k < 8; k++)
        for (int i = 0; i < 4; i++) {
            const vf q = i_float((code[k] >> 3 * i & 7) * 2 + 1), w = f->w[4 * k + i];
            *sum_qx += w * f->x[4 * k + i] * q;
            *sum_q2 += w * q * q;
        }
}

/* Searches scale and codes: `steps` inverse scales to both sides of 15 / max, then once more with the scale found
 * (all groups, or only those that rounding had not put on points). */
INLINE void search(const struct lattice *lattice, struct fit *f, int steps, bool all) {
    vf best = f_set(0), sum_qx, sum_q2;
    vi code[8], rounded[8], off[8]; /* off: 1 where the winner's group was moved to a point */
    f->scale = f->max / f_set(15);
    for (int k = 0; k < 8; k++) {
        f->code[k] = i_set(0);
        off[k] = i_set(all);
    }
    for (int step = -steps; step <= steps; step++) {
        const vf inverse = f_set(15 + step * 0.2f) / f->max;
        round_codes(f, inverse, rounded);
        memcpy(code, rounded, sizeof code);
        move_to_points(lattice, f, f_set(1) / inverse, code);
        sums_of(f, code, &sum_qx, &sum_q2);
        const vm better = f_gt(sum_q2, f_set(0)) & f_gt(sum_qx * sum_qx, best * sum_q2);
        const vf scale = sum_qx / sum_q2;
        f->scale = f_select(better, scale, f->scale);
        best = f_select(better, scale * sum_qx, best);
        for (int k = 0; k < 8; k++) {
            const vi moved = i_select(i_eq(code[k], rounded[k]), i_set(0), i_set(1));
            off[k] = i_select(better, moved, off[k]);
            f->code[k] = i_select(better, code[k], f->code[k]);
        }
    }
    vi any_off = i_set(0);
    for (int k = 0; k < 8; k++)
        any_off |= off[k];
    const vm again = i_eq(any_off, i_set(1)) & f_gt(f->scale, f_set(0));
    round_codes(f, f_set(1) / f->scale, code);
    move_to_points(lattice, f, f->scale, code);
    for (int k = 0; k < 8; k++) {
        const vm here = all ? again : again & i_eq(off[k], i_set(1));
        f->code[k] = i_select(here, code[k], f->code[k]);
    }
    sums_of(f, f->code, &sum_qx, &sum_q2);
    f->scale = f_select(again & f_gt(sum_q2, f_set(0)), sum_qx / sum_q2, f->scale);
}

/* Makes 8 signs even in number by flipping that of the weight which matters least. */
INLINE vi make_even(struct fit *f, int k, const vf *x, vi sign) {
    vi flips = i_set(0), which = i_set(0);
    vf least = f->w[8 * k] * x[0] * x[0];
    for (int i = 0; i < 8; i++)
        flips ^= sign >> i & 1;
    for (int i = 1; i < 8; i++) {
        const vf size = f->w[8 * k + i] * x[i] * x[i];
        which = i_select(f_lt(size, least), i_set(i), which);
        least = f_select(f_lt(size, least), size, least);
    }
    for (int i = 0; i < 8; i++) {
        const vm flip = i_eq(which, i_set(i)) & i_eq(flips, i_set(1));
        f->x[8 * k + i] = f_select(flip, -f->x[8 * k + i], f->x[8 * k + i]);
        sign ^= i_select(flip, i_set(1 << i), i_set(0));
    }
    return sign & 127;
}

/* Fills f from sub-block j: weights of the fit, magnitudes, signs. */
INLINE void prepare(const struct tile *t, int j, bool weighted, bool even, struct fit *f) {
    const vf *x = t->x + 32 * j;
    for (int i = 0; i < 32; i++) {
        const vf square = x[i] * x[i];
        f->w[i] = weighted ? t->importance[32 * j + i] * f_sqrt(t->sigma2[0] + square) : square;
    }
    for (int k = 0; k < 4; k++) {
        f->sign[k] = i_set(0);
        for (int i = 0; i < 8; i++) {
            const vf xi = x[8 * k + i];
            const vm negative = m_not(f_le(f_set(0), xi));
            f->x[8 * k + i] = f_select(negative, -xi, xi);
            f->sign[k] |= i_select(negative, i_set(1 << i), i_set(0));
        }
        if (even)
            f->sign[k] = make_even(f, k, x + 8 * k, f->sign[k]);
    }
    f->max = f->x[0];
    for (int i = 1; i < 32; i++)
        f->max = f_max(f->max, f->x[i]);
    for (int i = 0; i < 32; i += W) {
        vi rows_x[W], rows_w[W];
        for (int k = 0; k < W; k++) {
            rows_x[k] = (vi)f->x[i + k];
            rows_w[k] = (vi)f_sqrt(f->w[i + k]);
        }
        transpose(rows_x);
        transpose(rows_w);
        for (int lane = 0; lane < W; lane++) {
            memcpy(f->row_x[lane] + i, &rows_x[lane], sizeof rows_x[lane]);
            memcpy(f->row_w[lane] + i, &rows_w[lane], sizeof rows_w[lane]);
        }
    }
}

/* A negative scale becomes positive, and all signs turn. */
INLINE void make_positive(struct fit *f, int sign_bits) {
    const vm negative = f_lt(f->scale, f_set(0));
    f->scale = f_select(negative, -f->scale, f->scale);
    for (int k = 0; k < 4; k++)
        f->sign[k] = i_select(negative, ~f->sign[k] & sign_bits, f->sign[k]);
}

/* ---- super-blocks ------------------------------------------------------------------------------------------- */

/* Scales as 4 bits: of 2 s + 1, where 31 is the largest. */
INLINE vi share(vf inverse, vf scale) {
    return i_clamp(nearest(f_set(0.5f) * (inverse * scale - f_set(1))), 0, 15);
}

/* Bytes of each lane's encoding, put together one by one. */
union block {
    vu words[28];
    uint8_t bytes[112];
};

/* Hands the lanes' blocks to the tile, transposed. */
INLINE void hand_over(struct tile *t, union block blocks[W], int n_words) {
    for (int k = 0; k < n_words; k++) {
        union lanes word;
        for (int lane = 0; lane < W; lane++)
            memcpy(&word.word[lane], blocks[lane].bytes + 4 * k, 4);
        t->words[k] = word.u;
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
        struct fit f;
        prepare(t, j, weighted, true, &f);
        f.dead = f_lt(f.max, f_set(1e-8f));
        search(lattice, &f, 15, false);
        make_positive(&f, 127);
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
        struct fit f;
        union lanes code[8], sign[4];
        prepare(t, j, weighted, false, &f);
        f.dead = f_eq(f.max, f_set(0));
        search(lattice, &f, 9, true);
        make_positive(&f, 255);
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
