/* TQ1_0 and TQ2_0: super-blocks of 256 weights, x = d * (digit - 1), digits 0..2, d the largest magnitude.
 *
 *   TQ2_0  byte 0..63   in each 128 weights, byte i (0..31) has the digits of i, i + 32, i + 64, i + 96, 2 bits each
 *              64..65   d, fp16
 *   TQ1_0       0..31   five digits a byte: of weights i, i + 32, ..., i + 128
 *              32..47   of weights 160 + i, 160 + i + 16, ...
 *              48..51   four digits: of weights 240 + i, 240 + i + 4, ...
 *              52..53   d, fp16
 *
 * The digits of TQ1_0, the first one highest, are a number below 243 that is stored as a fraction of 256, rounded up.
 * A vector holds W neighbours of one super-block.
 */
#include "common.h"

/* The digits of W weights: where x / d rounds to, halves away from zero. When 1 / d overflows, the products are no
 * numbers to round, and ggml gives 1. */
INLINE vi digits_of(vf x, vf inverse) {
    const vf t = x * inverse, size = f_abs(t);
    const vm one = f_le(f_set(0.5f), size) & f_lt(size, f_set(2));
    return i_set(1) + i_select(one, 1 - (vi)((vu)t >> 31) * 2, i_set(0));
}

/* A number of digits as a fraction of 256, rounded up: ceil(256 q / 243), for q < 243. */
INLINE vi fraction_of(vi q) { return (vi)((vu)(q * 256 + 242) * 17261 >> 22); }

/* W numbers below 256 as bytes. */
INLINE void store_bytes(vi x, uint8_t *out) {
#if W == 16
    _mm_storeu_si128((__m128i *)out, _mm512_cvtepi32_epi8((__m512i)x));
#elif W == 8
    const __m256i pairs = _mm256_packus_epi32((__m256i)x, (__m256i)x), bytes = _mm256_packus_epi16(pairs, pairs);
    const __m256i ordered = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
    _mm_storel_epi64((__m128i *)out, _mm256_castsi256_si128(ordered));
#else
    typedef uint8_t bytes __attribute__((vector_size(W)));
    const bytes b = __builtin_convertvector((vu)x, bytes);
    memcpy(out, &b, sizeof b);
#endif
}

/* The largest magnitude, as bits, of 256 weights, which go to x. */
INLINE uint32_t load_block(int source, const uint8_t *from, vf x[256 / W]) {
    vi size = i_set(0);
    for (int k = 0; k < 256 / W; k++) {
        x[k] = load_source(source, from + source_bytes(source) * W * k);
        size = i_max(size, (vi)f_abs(x[k])); /* magnitudes order as their bits do */
    }
    const union lanes lanes = {.u = (vu)size};
    uint32_t largest = 0;
    for (int lane = 0; lane < W; lane++)
        largest = lanes.word[lane] > largest ? lanes.word[lane] : largest;
    return largest;
}

INLINE void pack_2(const vi digits[256 / W], uint8_t *out) {
    for (int half = 0; half < 2; half++)
        for (int k = 0; k < 32 / W; k++) {
            const vi *at = digits + 128 / W * half + k;
            store_bytes(at[0] | at[32 / W] << 2 | at[64 / W] << 4 | at[96 / W] << 6, out + 32 * half + W * k);
        }
}

/* Bytes of five digits each, from runs of n weights. */
INLINE void pack_runs(const vi *digits, int n, uint8_t *out) {
    for (int k = 0; k < n / W; k++) {
        vi q = digits[k];
        for (int run = 1; run < 5; run++)
            q = q * 3 + digits[n / W * run + k];
        store_bytes(fraction_of(q), out + W * k);
    }
}

INLINE void pack_1(const vi digits[256 / W], uint8_t *out) {
    int32_t last[16];
    pack_runs(digits, 32, out);
    pack_runs(digits + 160 / W, 16, out + 32);
    memcpy(last, digits + 240 / W, sizeof last);
    for (int i = 0; i < 4; i++) {
        const int q = ((last[i] * 3 + last[i + 4]) * 3 + last[i + 8]) * 3 + last[i + 12];
        out[48 + i] = (uint8_t)((q * 3 * 256 + 242) / 243);
    }
}

INLINE bool encode_source(const struct job *job, int source, bool base_3) {
    const int64_t blocks = job->n_rows * (job->n_per_row / 256);
    const int nbytes = base_3 ? 54 : 66;
    uint32_t largest = 0;
    for (int64_t b = 0; b < blocks; b++) {
        uint8_t *out = job->out + nbytes * b;
        vf x[256 / W];
        vi digits[256 / W];
        const uint32_t size = load_block(source, (const uint8_t *)job->rows + b * 256 * source_bytes(source), x);
        const vf d = (vf)((vu)i_set((int32_t)size)), inverse = f_select(f_nonzero(d), f_set(1) / d, f_set(0));
        const union lanes half = {.u = to_half(d)};
        const uint16_t bits = (uint16_t)half.word[0];
        for (int k = 0; k < 256 / W; k++)
            digits[k] = digits_of(x[k], inverse);
        if (base_3)
            pack_1(digits, out);
        else
            pack_2(digits, out);
        memcpy(out + nbytes - 2, &bits, 2);
        largest = size > largest ? size : largest;
    }
    return largest < 0x7f800000;
}

INLINE bool encode(const struct job *job, bool base_3) {
    if (job->source == TYPE_BF16)
        return encode_source(job, TYPE_BF16, base_3);
    return job->source == TYPE_F16 ? encode_source(job, TYPE_F16, base_3) : encode_source(job, TYPE_F32, base_3);
}

bool ISA(tq1_0)(const struct job *job) { return encode(job, true); }
bool ISA(tq2_0)(const struct job *job) { return encode(job, false); }
