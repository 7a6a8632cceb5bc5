/* Q4_0, Q4_1, Q5_0 and Q5_1: blocks of 32 weights, x = d * (level - 8 or 16), or x = d * level + m.
 *
 *   Q4_0 d            qs[16]     18 bytes     d, m  fp16
 *   Q4_1 d m          qs[16]     20 bytes     qh    bit i is bit 4 of level i
 *   Q5_0 d     qh[4]  qs[16]     22 bytes     qs    byte i: low nibbles of level i and, above, of level i + 16
 *   Q5_1 d m   qh[4]  qs[16]     24 bytes
 *
 * With importance the weights of the fit depend on the mean square of the whole row, summed in order: rows are summed
 * first, one in each lane, a few at a time so that they are still in the cache when they are encoded.
 */
#include "fit_affine.h"
#include "fit_symmetric.h"

enum { ROWS_AT_A_TIME = 32 };

/* Which of the four types: bits of a level, and whether there is a minimum. */
struct kind {
    int bits;
    bool affine;
};

INLINE int kind_bytes(struct kind kind) { return 2 + (kind.affine ? 2 : 0) + (kind.bits == 5 ? 4 : 0) + 16; }

/* Scale, minimum and levels of W blocks to words of the layout above. Levels have the kind's bits and no more. */
INLINE void pack(struct kind kind, vf scale, vf min, const vi *levels, vu words[6]) {
    vu body[5], *qs = body;
    int n = 4;
    if (kind.bits == 5) {
        vi qh = i_set(0);
        for (int i = 0; i < 32; i++)
            qh |= (levels[i] >> 4 & 1) << i;
        *qs++ = (vu)qh;
        n = 5;
    }
    for (int k = 0; k < 4; k++) {
        vi word = i_set(0);
        for (int b = 0; b < 4; b++)
            word |= (levels[4 * k + b] & 15) << 8 * b | (levels[16 + 4 * k + b] & 15) << (8 * b + 4);
        qs[k] = (vu)word;
    }
    words[0] = to_half(scale);
    if (kind.affine) {
        words[0] |= to_half(min) << 16;
        for (int k = 0; k < n; k++)
            words[k + 1] = body[k];
        return;
    }
    for (int k = 0; k < n; k++) { /* two bytes further */
        words[k] |= body[k] << 16;
        words[k + 1] = body[k] >> 16;
    }
}

/* The level's byte as C's conversion of a float to int8_t (or, wide, uint8_t) gives it, at most `most`. */
INLINE vi to_level(vf t, int most) { return i_min(f_trunc(t) << 24 >> 24, i_set(most)); }

/* Without importance: the scale comes from the extremes alone. */
INLINE void encode_plain(struct kind kind, const vf *x, vu words[6]) {
    const int most = kind.bits == 5 ? 31 : 15, zero = kind.bits == 5 ? 16 : 8;
    vi levels[32];
    if (kind.affine) {
        vf low = f_set(3.40282347e+38f), high = f_set(-3.40282347e+38f);
        for (int i = 0; i < 32; i++) {
            low = f_min(x[i], low);
            high = f_max(x[i], high);
        }
        const vf d = (high - low) / f_set((float)most), inverse = f_select(f_nonzero(d), f_set(1) / d, f_set(0));
        for (int i = 0; i < 32; i++) {
            const vf t = (x[i] - low) * inverse + f_set(0.5f);
            levels[i] = kind.bits == 5 ? f_trunc(t) & 31 : to_level(t, 15);
        }
        pack(kind, d, low, levels, words);
        return;
    }
    vf amax = f_set(0), max = f_set(0);
    for (int i = 0; i < 32; i++) {
        const vf size = f_abs(x[i]);
        max = f_select(f_lt(amax, size), x[i], max);
        amax = f_select(f_lt(amax, size), size, amax);
    }
    const vf d = max / f_set((float)-zero), inverse = f_select(f_nonzero(d), f_set(1) / d, f_set(0));
    for (int i = 0; i < 32; i++)
        levels[i] = to_level(x[i] * inverse + f_set(zero + 0.5f), most);
    pack(kind, d, d, levels, words);
}

/* With importance: a search in INTERLEAVE vectors of blocks. */
INLINE void encode_weighted(struct kind kind, struct tile *t) {
    const int most = kind.bits == 5 ? 31 : 15, zero = kind.bits == 5 ? 16 : 8, n_words = (kind_bytes(kind) + 3) / 4;
    vf w[32 * INTERLEAVE];
    vi levels[32];
    for (int i = 0; i < 32 * INTERLEAVE; i++)
        w[i] = t->importance[i] * f_sqrt(t->sigma2[i / 32] + t->x[i] * t->x[i]);
    if (kind.affine) {
        const struct affine_search search = {32, most, -0.9f, 0.05f, 36, false};
        struct affine_fit fit[INTERLEAVE];
        fit_affine(search, t->x, w, fit);
        for (int u = 0; u < INTERLEAVE; u++) {
            for (int i = 0; i < 32; i++)
                levels[i] = affine_won_level(&fit[u], t->x[32 * u + i], most);
            pack(kind, fit[u].scale, fit[u].min, levels, t->words + n_words * u);
        }
        return;
    }
    struct symmetric_fit fit[INTERLEAVE];
    vf wx[32 * INTERLEAVE];
    for (int i = 0; i < 32 * INTERLEAVE; i++)
        wx[i] = w[i] * t->x[i];
    fit_symmetric(INTERLEAVE, 32, zero, t->x, w, wx, false, fit);
    for (int u = 0; u < INTERLEAVE; u++) {
        for (int i = 0; i < 32; i++)
            levels[i] = symmetric_won_level(&fit[u], t->x[32 * u + i], zero);
        pack(kind, fit[u].scale, fit[u].scale, levels, t->words + n_words * u);
    }
}

/* The mean squares of ROWS_AT_A_TIME rows or fewer. */
static void mean_squares(const struct job *job, float *mean) {
    const int64_t row_bytes = job->n_per_row * source_bytes(job->source);
    for (int64_t first = 0; first < job->n_rows; first += W) {
        const uint8_t *from[W];
        union lanes sum = {.f = f_set(0)};
        for (int64_t i = 0; i < job->n_per_row; i += 32) {
            vf x[32];
            for (int lane = 0; lane < W; lane++) {
                const int64_t row = first + lane < job->n_rows ? first + lane : job->n_rows - 1;
                from[lane] = (const uint8_t *)job->rows + row * row_bytes + i * source_bytes(job->source);
            }
            load_weights(job->source, from, 32, x);
            for (int k = 0; k < 32; k++)
                sum.f += x[k] * x[k];
        }
        sum.f = sum.f / f_set((float)job->n_per_row);
        for (int lane = 0; lane < W && first + lane < job->n_rows; lane++)
            mean[first + lane] = sum.number[lane];
    }
}

INLINE bool encode_job(struct kind kind, const struct job *job, void (*plain)(struct tile *),
                       void (*weighted)(struct tile *)) {
    if (!job->importance)
        return encode_blocks(job, 32, kind_bytes(kind), 1, plain);
    vu special = {0};
    for (int64_t row = 0; row < job->n_rows; row += ROWS_AT_A_TIME) {
        float mean[ROWS_AT_A_TIME];
        struct job part = *job;
        part.n_rows = job->n_rows - row < ROWS_AT_A_TIME ? job->n_rows - row : ROWS_AT_A_TIME;
        part.rows = (const uint8_t *)job->rows + row * job->n_per_row * source_bytes(job->source);
        part.out = job->out + row * (job->n_per_row / 32) * kind_bytes(kind);
        mean_squares(&part, mean);
        special |= encode_tiles(&part, 32, kind_bytes(kind), INTERLEAVE, mean, weighted);
    }
    return all_zero(special);
}

#define Q4_0 ((struct kind){4, false})
#define Q4_1 ((struct kind){4, true})
#define Q5_0 ((struct kind){5, false})
#define Q5_1 ((struct kind){5, true})

static void q4_0_plain(struct tile *t) { encode_plain(Q4_0, t->x, t->words); }
static void q4_1_plain(struct tile *t) { encode_plain(Q4_1, t->x, t->words); }
static void q5_0_plain(struct tile *t) { encode_plain(Q5_0, t->x, t->words); }
static void q5_1_plain(struct tile *t) { encode_plain(Q5_1, t->x, t->words); }

static void q4_0_weighted(struct tile *t) { encode_weighted(Q4_0, t); }
static void q4_1_weighted(struct tile *t) { encode_weighted(Q4_1, t); }
static void q5_0_weighted(struct tile *t) { encode_weighted(Q5_0, t); }
static void q5_1_weighted(struct tile *t) { encode_weighted(Q5_1, t); }

bool ISA(q4_0)(const struct job *job) { return encode_job(Q4_0, job, q4_0_plain, q4_0_weighted); }
bool ISA(q4_1)(const struct job *job) { return encode_job(Q4_1, job, q4_1_plain, q4_1_weighted); }
bool ISA(q5_0)(const struct job *job) { return encode_job(Q5_0, job, q5_0_plain, q5_0_weighted); }
bool ISA(q5_1)(const struct job *job) { return encode_job(Q5_1, job, q5_1_plain, q5_1_weighted); }
