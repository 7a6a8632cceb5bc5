/* The search behind the IQ2 and IQ3 types: magnitudes 1, 3, 5, … times a scale, in groups that are points of a lattice.
 *
 * Lanes hold sub-blocks of different super-blocks, as everywhere; only the search among neighbours, whose lists differ
 * in length, is done group by group, with eight neighbours in a vector.
 */
#ifndef BOREALIS_FIT_LATTICE_H
#define BOREALIS_FIT_LATTICE_H

#include "common.h"
#include "lattice.h"

/* Sub-blocks of n weights, in groups of `dims` with levels 0..top of `bits` bits. */
struct shape {
    int n, dims, bits, top;
};

/* One sub-block in every lane: magnitudes, their weights in the fit and those of the neighbour search, and what came
 * out: scale, the lattice codes of the groups, and the signs of 8 weights each. */
struct lattice_fit {
    vf x[32], w[32];
    float row_x[W][32], row_w[W][32]; /* x and the root of w, lane by lane, for the neighbour search */
    vf max, scale;
    vm dead;
    vi code[8], sign[4];
};

/* ---- the neighbour search ----------------------------------------------------------------------------------- */

/* What the levels stand for; 2-bit levels twice. */
static const float ODD_8[8] = {1, 3, 5, 7, 9, 11, 13, 15}, ODD_4[8] = {1, 3, 5, 7, 1, 3, 5, 7};

/* The code nearest to a group of weights among n times 8 neighbours: the first with the least sum of
 * w (scale q - x)^2. What each level adds to the sum is worked out once; neighbours then only pick and add. */
#if W > 4
/* part[i] for level numbers in `code`: 3-bit levels pick among 8 entries, 2-bit levels among 4, twice the same. */
INLINE __m256 pick(struct shape shape, __m256 part, __m256i code, int i) {
    const __m256i level = _mm256_srli_epi32(code, shape.bits * i);
    return shape.bits == 3 ? _mm256_permutevar8x32_ps(part, level) : _mm256_permutevar_ps(part, level);
}

INLINE uint32_t nearest_point(struct shape shape, const float *q, const float *x, const float *w, float scale,
                              const uint32_t *neighbours, int n) {
    const __m256 scaled = _mm256_mul_ps(_mm256_set1_ps(scale), _mm256_loadu_ps(q));
    __m256 part[8], best = _mm256_set1_ps(3.40282347e+38f);
    __m256i winner = _mm256_set1_epi32((int)neighbours[0]);
    for (int i = 0; i < shape.dims; i++) {
        const __m256 difference = _mm256_sub_ps(scaled, _mm256_set1_ps(x[i]));
        part[i] = _mm256_mul_ps(_mm256_mul_ps(_mm256_set1_ps(w[i]), difference), difference);
    }
    for (int k = 0; k < n; k++) {
        const __m256i code = _mm256_loadu_si256((const __m256i *)(neighbours + 8 * k));
        __m256 sum = pick(shape, part[0], code, 0);
        for (int i = 1; i < shape.dims; i++)
            sum = _mm256_add_ps(sum, pick(shape, part[i], code, i));
        const __m256 less = _mm256_cmp_ps(sum, best, _CMP_LT_OQ);
        best = _mm256_blendv_ps(best, sum, less);
        winner = _mm256_blendv_epi8(winner, code, _mm256_castps_si256(less));
    }
    __m256 least = _mm256_min_ps(best, _mm256_permute2f128_ps(best, best, 1));
    least = _mm256_min_ps(least, _mm256_permute_ps(least, 0x4e));
    least = _mm256_min_ps(least, _mm256_permute_ps(least, 0xb1));
    const __m256i equal = _mm256_castps_si256(_mm256_cmp_ps(best, least, _CMP_EQ_OQ));
    if (n == 1) /* lanes are in the list's order */
        return neighbours[__builtin_ctz(_mm256_movemask_ps(_mm256_castsi256_ps(equal)) | 0x80)] & 0xffff;
    __m256i first = _mm256_blendv_epi8(_mm256_set1_epi32(INT32_MAX), winner, equal);
    first = _mm256_min_epi32(first, _mm256_permute2x128_si256(first, first, 1));
    first = _mm256_min_epi32(first, _mm256_shuffle_epi32(first, 0x4e));
    first = _mm256_min_epi32(first, _mm256_shuffle_epi32(first, 0xb1));
    return (uint32_t)_mm256_cvtsi256_si32(first) & 0xffff;
}
#else
INLINE uint32_t nearest_point(struct shape shape, const float *q, const float *x, const float *w, float scale,
                              const uint32_t *neighbours, int n) {
    float part[8][8], best = 3.40282347e+38f;
    uint32_t winner = neighbours[0];
    const uint32_t mask = (1u << shape.bits) - 1;
    for (int i = 0; i < shape.dims; i++)
        for (int l = 0; l <= shape.top; l++) {
            const float difference = scale * q[l] - x[i];
            part[i][l] = w[i] * difference * difference;
        }
    for (int k = 0; k < 8 * n; k++) {
        const uint32_t c = neighbours[k];
        float sum = part[0][c & mask];
        for (int i = 1; i < shape.dims; i++)
            sum += part[i][c >> shape.bits * i & mask];
        winner = sum < best ? c : winner;
        best = sum < best ? sum : best;
    }
    return winner & 0xffff;
}
#endif

/* ---- one sub-block ------------------------------------------------------------------------------------------ */

/* The codes of plain rounding with inverse scale `inverse`; lattice points or not. */
INLINE void round_codes(struct shape shape, const struct lattice_fit *f, vf inverse, vi *code) {
    for (int k = 0; k < shape.n / shape.dims; k++) {
        code[k] = i_set(0);
        for (int i = 0; i < shape.dims; i++) {
            const vf t = f_set(0.5f) * (inverse * f->x[shape.dims * k + i] - f_set(1));
            code[k] |= i_clamp(nearest(t), 0, shape.top) << shape.bits * i;
        }
    }
}

/* Replaces codes that are no points by the best neighbours at `scale`. */
INLINE void move_to_points(struct shape shape, const struct lattice *lattice, const struct lattice_fit *f, vf scale,
                           vi *code) {
    const union lanes scales = {.f = scale};
    for (int k = 0; k < shape.n / shape.dims; k++) {
        union lanes codes = {.u = (vu)code[k]};
        for (int lane = 0; lane < W; lane++) {
            const uint32_t c = codes.word[lane];
            if (lattice->eights[c])
                codes.word[lane] =
                    nearest_point(shape, shape.bits == 3 ? ODD_8 : ODD_4, f->row_x[lane] + shape.dims * k,
                                  f->row_w[lane] + shape.dims * k, scales.number[lane],
                                  lattice->neighbours + lattice->first[c], lattice->eights[c]);
        }
        code[k] = (vi)codes.u;
    }
}

/* The sums of w x q and w q^2 for the codes' magnitudes q. */
INLINE void sums_of(struct shape shape, const struct lattice_fit *f, const vi *code, vf *sum_qx, vf *sum_q2) {
    *sum_qx = *sum_q2 = f_set(0);
    for (int i = 0; i < shape.n; i++) {
        const vi level = code[i / shape.dims] >> shape.bits * (i % shape.dims) & ((1 << shape.bits) - 1);
        const vf q = i_float(level * 2 + 1);
        *sum_qx += f->w[i] * f->x[i] * q;
        *sum_q2 += f->w[i] * q * q;
    }
}

/* How the scale is searched: `steps` inverse scales to both sides of (2 top + 1) / max, `delta` apart; then once more
 * with the scale found: in all groups, or only in those that rounding had not put on points. Without a group off its
 * point there is no second time, except where `always`. */
struct lattice_search {
    int steps;
    float delta;
    bool all, always;
};

INLINE void search(struct shape shape, struct lattice_search how, const struct lattice *lattice,
                   struct lattice_fit *f) {
    const int groups = shape.n / shape.dims;
    vf best = f_set(0), sum_qx, sum_q2;
    vi code[8], rounded[8], off[8], any_off = i_set(0); /* off: 1 where the winner's group was moved to a point */
    for (int k = 0; k < groups; k++) {
        f->code[k] = i_set(0);
        off[k] = i_set(how.all);
    }
    for (int step = -how.steps; step <= how.steps; step++) {
        const vf inverse = f_set(2 * shape.top + 1 + step * how.delta) / f->max;
        round_codes(shape, f, inverse, rounded);
        memcpy(code, rounded, groups * sizeof *code);
        move_to_points(shape, lattice, f, f_set(1) / inverse, code);
        sums_of(shape, f, code, &sum_qx, &sum_q2);
        const vm better = f_gt(sum_q2, f_set(0)) & f_gt(sum_qx * sum_qx, best * sum_q2);
        const vf scale = sum_qx / sum_q2;
        f->scale = f_select(better, scale, f->scale);
        best = f_select(better, scale * sum_qx, best);
        for (int k = 0; k < groups; k++) {
            const vi moved = i_select(i_eq(code[k], rounded[k]), i_set(0), i_set(1));
            off[k] = i_select(better, moved, off[k]);
            f->code[k] = i_select(better, code[k], f->code[k]);
        }
    }
    for (int k = 0; k < groups; k++)
        any_off |= how.always ? i_set(1) : off[k];
    const vm again = i_eq(any_off, i_set(1)) & f_gt(f->scale, f_set(0));
    round_codes(shape, f, f_set(1) / f->scale, code);
    move_to_points(shape, lattice, f, f->scale, code);
    for (int k = 0; k < groups; k++) {
        const vm here = how.all ? again : again & i_eq(off[k], i_set(1));
        f->code[k] = i_select(here, code[k], f->code[k]);
    }
    sums_of(shape, f, f->code, &sum_qx, &sum_q2);
    f->scale = f_select(again & f_gt(sum_q2, f_set(0)), sum_qx / sum_q2, f->scale);
}

/* Makes 8 signs even in number by flipping that of the weight which matters least. */
INLINE vi make_even(struct lattice_fit *f, int k, const vf *x, vi sign) {
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

/* n (a multiple of W, at most 32) vectors lane by lane. */
INLINE void to_rows(int n, const vf *x, float rows[W][32]) {
    for (int i = 0; i < n; i += W) {
        vi r[W];
        for (int k = 0; k < W; k++)
            r[k] = (vi)x[i + k];
        transpose(r);
        for (int lane = 0; lane < W; lane++)
            memcpy(rows[lane] + i, &r[lane], sizeof r[lane]);
    }
}

/* Fills f from a sub-block whose weights of the fit, f->w, are there already: magnitudes, signs, the largest. */
INLINE void prepare(struct shape shape, const vf *x, bool even, struct lattice_fit *f) {
    vf root[32];
    for (int k = 0; k < shape.n / 8; k++) {
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
    for (int i = 1; i < shape.n; i++)
        f->max = f_max(f->max, f->x[i]);
    for (int i = 0; i < shape.n; i++)
        root[i] = f_sqrt(f->w[i]);
    to_rows(shape.n, f->x, f->row_x);
    to_rows(shape.n, root, f->row_w);
}

/* A negative scale becomes positive, and all signs turn. */
INLINE void make_positive(struct shape shape, struct lattice_fit *f, int sign_bits) {
    const vm negative = f_lt(f->scale, f_set(0));
    f->scale = f_select(negative, -f->scale, f->scale);
    for (int k = 0; k < shape.n / 8; k++)
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
INLINE void hand_over(struct tile *t, const union block blocks[W], int n_words) {
    for (int k = 0; k < n_words; k++) {
        union lanes word;
        for (int lane = 0; lane < W; lane++)
            memcpy(&word.word[lane], blocks[lane].bytes + 4 * k, 4);
        t->words[k] = word.u;
    }
}

#endif
