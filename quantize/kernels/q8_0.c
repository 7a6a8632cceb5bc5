/* Q8_0: blocks of 32 weights, x = d * level.
 *
 *   byte 0..1   d, fp16
 *        2..33  levels, int8
 *
 * So little is computed that transposing would cost more: here a vector holds W neighbours of one block, and only
 * the scales of W blocks are worked out together.
 */
#include "common.h"

enum { PER_BLOCK = 32 / W };

/* The 32 weights at `from` as PER_BLOCK vectors, in order. */
INLINE void load_block(int source, const uint8_t *from, vf x[PER_BLOCK]) {
    for (int k = 0; k < PER_BLOCK; k++)
        x[k] = load_source(source, from + source_bytes(source) * W * k);
}

/* Levels: halves are rounded away from zero, as roundf does; what does not fit an int gives 0. */
INLINE void store_levels(const vf x[PER_BLOCK], vf inverse, uint8_t out[32]) {
    vi level[PER_BLOCK];
    for (int k = 0; k < PER_BLOCK; k++) {
        const vf y = x[k] * inverse;
        const vi half = ((vi)y & INT32_MIN) | 0x3effffff; /* the float below 0.5, with y's sign */
        level[k] = f_trunc(y + (vf)half);
    }
#if W == 16
    for (int k = 0; k < 2; k++)
        _mm_storeu_si128((__m128i *)(out + 16 * k), _mm512_cvtepi32_epi8((__m512i)level[k]));
#elif W == 8
    const __m256i byte = _mm256_set1_epi32(255);
    const __m256i a = _mm256_packus_epi32(_mm256_and_si256((__m256i)level[0], byte), _mm256_and_si256((__m256i)level[1], byte));
    const __m256i b = _mm256_packus_epi32(_mm256_and_si256((__m256i)level[2], byte), _mm256_and_si256((__m256i)level[3], byte));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i *)out, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order));
#else
    typedef uint8_t bytes __attribute__((vector_size(W)));
    for (int k = 0; k < PER_BLOCK; k++) {
        const bytes b = __builtin_convertvector((vu)level[k], bytes);
        memcpy(out + W * k, &b, sizeof b);
    }
#endif
}

/* Encodes `count` <= W neighbouring blocks. Returns the largest magnitude's bits in each. */
INLINE vi encode_group(int source, const uint8_t *from, int count, uint8_t *out) {
    const int block_bytes = 32 * source_bytes(source);
    vi size[W];
    for (int b = 0; b < W; b++) {
        vf x[PER_BLOCK];
        load_block(source, from + (b < count ? b : count - 1) * block_bytes, x);
        size[b] = (vi)f_abs(x[0]);
        for (int k = 1; k < PER_BLOCK; k++)
            size[b] = i_max(size[b], (vi)f_abs(x[k])); /* magnitudes order as their bits do */
    }
    transpose(size);
    for (int k = 1; k < W; k++)
        size[0] = i_max(size[0], size[k]);
    const vf d = (vf)size[0] / f_set(127);
    const union lanes inverse = {.f = f_select(f_nonzero(d), f_set(1) / d, f_set(0))}, half = {.u = to_half(d)};
    for (int b = 0; b < count; b++) {
        const uint16_t scale = (uint16_t)half.word[b];
        vf x[PER_BLOCK];
        load_block(source, from + b * block_bytes, x);
        memcpy(out + 34 * b, &scale, 2);
        store_levels(x, f_set(inverse.number[b]), out + 34 * b + 2);
    }
    return size[0];
}

INLINE bool encode_source(const struct job *job, int source) {
    const int64_t blocks = job->n_rows * (job->n_per_row / 32);
    vi size = i_set(0);
    for (int64_t first = 0; first < blocks; first += W) {
        const int count = blocks - first < W ? (int)(blocks - first) : W;
        const uint8_t *from = (const uint8_t *)job->rows + first * 32 * source_bytes(source);
        const vi group = count == W ? encode_group(source, from, W, job->out + 34 * first)
                                    : encode_group(source, from, count, job->out + 34 * first);
        size = i_max(size, group);
    }
    return !m_any(i_lt(i_set(0x7f7fffff), size));
}

bool ISA(q8_0)(const struct job *job) {
    if (job->source == TYPE_BF16)
        return encode_source(job, TYPE_BF16);
    return job->source == TYPE_F16 ? encode_source(job, TYPE_F16) : encode_source(job, TYPE_F32);
}
