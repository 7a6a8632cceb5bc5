/* MXFP4: blocks of 32 weights, x = 2^(e - 128) * value, the values 0, 1, 2, 3, 4, 6, 8, 12 and their negatives.
 *
 *   byte 0      e
 *        1..16  indices: byte i is weight i and, above it, weight i + 16; bit 3 is the sign
 *
 * The power of two comes from the largest magnitude, so all products and the differences that decide are exact: the
 * nearest value changes exactly halfway between neighbours, where the smaller one wins.
 */
#include "common.h"

enum { PER_BLOCK = 32 / W };

/* floorf(log2f(a)): the exponent, but for numbers so close below a power of two that log2f rounds up to it. */
static int floor_log2(float a) {
    uint32_t bits;
    memcpy(&bits, &a, 4);
    if (bits < 0x00800000 || (bits & 0x007fff00) == 0x007fff00)
        return (int)floorf(log2f(a));
    return (int)(bits >> 23) - 127;
}

/* The shared exponent's byte, which wraps for magnitudes below 2^-125. */
INLINE uint8_t exponent_of(float largest) { return largest > 0 ? (uint8_t)(floor_log2(largest) + 125) : 0; }

/* 2^(e - 128) */
INLINE float power_of(uint8_t e) {
    const uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return power;
}

/* The indices of W weights, as 32-bit numbers: how many midpoints lie below the magnitude, and the sign unless 0.
 * Next to the largest float the values 8 and 12 are infinite: nothing is nearest to them. */
INLINE vi index_of(vf x, float power) {
    static const float MIDPOINTS[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5, 7, 10};
    const float high = power > 0x1p+124f ? INFINITY : power;
    const vf a = f_abs(x);
    vi index = i_set(0);
    for (int k = 0; k < 7; k++)
#if W == 16
        index = i_select(f_lt(f_set(MIDPOINTS[k] * (k < 5 ? power : high)), a), index + 1, index);
#else
        index -= f_lt(f_set(MIDPOINTS[k] * (k < 5 ? power : high)), a);
#endif
    const vi sign = (vi)((vu)x >> 28) & 8;
    return index | i_select(i_eq(index, i_set(0)), i_set(0), sign);
}

/* 32 indices as 16 bytes. */
INLINE void store_indices(const vi index[PER_BLOCK], uint8_t *out) {
#if W == 16
    _mm_storeu_si128((__m128i *)out, _mm512_cvtepi32_epi8((__m512i)(index[0] | index[1] << 4)));
#elif W == 8
    const __m256i pairs = _mm256_packus_epi32((__m256i)(index[0] | index[2] << 4), (__m256i)(index[1] | index[3] << 4));
    const __m256i bytes = _mm256_packus_epi16(pairs, pairs);
    const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5));
    _mm_storeu_si128((__m128i *)out, _mm256_castsi256_si128(ordered));
#else
    typedef uint8_t bytes __attribute__((vector_size(W)));
    for (int k = 0; k < PER_BLOCK / 2; k++) {
        const bytes b = __builtin_convertvector((vu)(index[k] | index[k + PER_BLOCK / 2] << 4), bytes);
        memcpy(out + W * k, &b, sizeof b);
    }
#endif
}

/* Returns the bits of the block's largest magnitude. */
INLINE uint32_t encode_block(int source, const uint8_t *from, uint8_t out[17]) {
    vf x[PER_BLOCK];
    vi index[PER_BLOCK], size = i_set(0);
    for (int k = 0; k < PER_BLOCK; k++) {
        x[k] = load_source(source, from + source_bytes(source) * W * k);
        size = i_max(size, (vi)f_abs(x[k])); /* magnitudes order as their bits do */
    }
    const union lanes lanes = {.u = (vu)size};
    union { uint32_t bits; float number; } largest = {0};
    for (int lane = 0; lane < W; lane++)
        largest.bits = lanes.word[lane] > largest.bits ? lanes.word[lane] : largest.bits;
    if (largest.bits >= 0x7f800000)
        return largest.bits;
    out[0] = exponent_of(largest.number);
    for (int k = 0; k < PER_BLOCK; k++)
        index[k] = index_of(x[k], power_of(out[0]));
    store_indices(index, out + 1);
    return largest.bits;
}

INLINE bool encode_source(const struct job *job, int source) {
    const int64_t blocks = job->n_rows * (job->n_per_row / 32);
    uint32_t largest = 0;
    for (int64_t b = 0; b < blocks; b++) {
        const uint8_t *from = (const uint8_t *)job->rows + b * 32 * source_bytes(source);
        const uint32_t size = encode_block(source, from, job->out + 17 * b);
        largest = size > largest ? size : largest;
    }
    return largest < 0x7f800000;
}

bool ISA(mxfp4)(const struct job *job) {
    if (job->source == TYPE_BF16)
        return encode_source(job, TYPE_BF16);
    return job->source == TYPE_F16 ? encode_source(job, TYPE_F16) : encode_source(job, TYPE_F32);
}
