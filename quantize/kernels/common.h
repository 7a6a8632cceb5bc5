/* Vectors of W floats, W chosen by the instruction set this file is compiled for: 16 (AVX-512), 8 (AVX2) or 4.
 *
 * Every operation is what the scalar C expression named beside it gives in each lane, NaN and signed zeros included:
 * IEEE single precision, no contraction, no reassociation. Compile with -ffp-contract=off and without -ffast-math.
 */
#ifndef BOREALIS_COMMON_H
#define BOREALIS_COMMON_H

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "job.h"

#if defined(__FAST_MATH__) || (defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__)
#error "these kernels need IEEE arithmetic and a little-endian machine"
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define W 16
#define ISA(name) name##_avx512
#elif defined(__AVX2__) && defined(__F16C__)
#define W 8
#define ISA(name) name##_avx2
#else
#define W 4
#define ISA(name) name##_baseline
#endif

/* Four lanes use SSE2 where it is. BOREALIS_PORTABLE leaves it out: tests then run on x86 what other machines run. */
#if W > 4
#include <immintrin.h>
#elif defined(__SSE2__) && !defined(BOREALIS_PORTABLE)
#include <emmintrin.h>
#define WITH_SSE2
#endif

/* Below this a group of weights counts as zero. */
#define GROUP_MAX_EPS 1e-15f

/* Independent sub-blocks that are searched together, to hide latency. */
#define INTERLEAVE 4

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(4 * W)));
typedef int32_t vi __attribute__((vector_size(4 * W)));
typedef uint32_t vu __attribute__((vector_size(4 * W)));
#if W == 16
typedef __mmask16 vm;
#else
typedef vi vm;
#endif

/* A vector and its lanes. */
union lanes {
    vf f;
    vu u;
    float number[W];
    uint32_t word[W];
};

/* ---- making and comparing ---------------------------------------------------------------------------------- */

INLINE vf f_set(float a) { return a - (vf){0}; }
INLINE vi i_set(int32_t a) { return a - (vi){0}; }
INLINE vf i_float(vi a) { return __builtin_convertvector(a, vf); }
INLINE vf f_abs(vf a) { return (vf)((vi)a & 0x7fffffff); }

#if W == 16
INLINE vm f_lt(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ); }
INLINE vm f_le(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LE_OQ); }
INLINE vm f_eq(vf a, vf b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_EQ_OQ); }
INLINE vm i_eq(vi a, vi b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
INLINE vm i_lt(vi a, vi b) { return _mm512_cmplt_epi32_mask((__m512i)a, (__m512i)b); }
INLINE vf f_select(vm m, vf a, vf b) { return (vf)_mm512_mask_blend_ps(m, (__m512)b, (__m512)a); }
INLINE vi i_select(vm m, vi a, vi b) { return (vi)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a); }
INLINE vm m_not(vm m) { return (vm)~m; }
INLINE bool m_any(vm m) { return m != 0; }
#else
INLINE vm f_lt(vf a, vf b) { return a < b; }
INLINE vm f_le(vf a, vf b) { return a <= b; }
INLINE vm f_eq(vf a, vf b) { return a == b; }
INLINE vm i_eq(vi a, vi b) { return a == b; }
INLINE vm i_lt(vi a, vi b) { return a < b; }
INLINE vm m_not(vm m) { return ~m; }
#if W == 8
INLINE vf f_select(vm m, vf a, vf b) { return (vf)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
INLINE vi i_select(vm m, vi a, vi b) { return (vi)_mm256_blendv_ps((__m256)b, (__m256)a, (__m256)m); }
INLINE bool m_any(vm m) { return _mm256_movemask_ps((__m256)m) != 0; }
#else
INLINE vi i_select(vm m, vi a, vi b) { return (a & m) | (b & ~m); }
INLINE vf f_select(vm m, vf a, vf b) { return (vf)i_select(m, (vi)a, (vi)b); }
#if defined(WITH_SSE2)
INLINE bool m_any(vm m) { return _mm_movemask_ps((__m128)m) != 0; }
#else
INLINE bool m_any(vm m) { return (m[0] | m[1] | m[2] | m[3]) != 0; }
#endif
#endif
#endif

INLINE vm f_gt(vf a, vf b) { return f_lt(b, a); }
INLINE vm f_nonzero(vf a) { return m_not(f_eq(a, f_set(0))); }

/* ---- minimum, maximum, rounding ---------------------------------------------------------------------------- */

#if W == 16
INLINE vf f_min(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
INLINE vf f_max(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vi i_min(vi a, vi b) { return (vi)_mm512_min_epi32((__m512i)a, (__m512i)b); }
INLINE vi i_max(vi a, vi b) { return (vi)_mm512_max_epi32((__m512i)a, (__m512i)b); }
INLINE vf f_sqrt(vf a) { return (vf)_mm512_sqrt_ps((__m512)a); }
INLINE vf f_rint(vf a) { return (vf)_mm512_roundscale_ps((__m512)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vi f_trunc(vf a) { return (vi)_mm512_cvttps_epi32((__m512)a); }
#elif W == 8
INLINE vf f_min(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
INLINE vf f_max(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vi i_min(vi a, vi b) { return (vi)_mm256_min_epi32((__m256i)a, (__m256i)b); }
INLINE vi i_max(vi a, vi b) { return (vi)_mm256_max_epi32((__m256i)a, (__m256i)b); }
INLINE vf f_sqrt(vf a) { return (vf)_mm256_sqrt_ps((__m256)a); }
INLINE vf f_rint(vf a) { return (vf)_mm256_round_ps((__m256)a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
INLINE vi f_trunc(vf a) { return (vi)_mm256_cvttps_epi32((__m256)a); }
#else
INLINE vi i_min(vi a, vi b) { return i_select(a < b, a, b); }
INLINE vi i_max(vi a, vi b) { return i_select(a > b, a, b); }
INLINE vf f_rint(vf a) { return (a + 12582912.0f) - 12582912.0f; }
#if defined(WITH_SSE2)
INLINE vf f_min(vf a, vf b) { return (vf)_mm_min_ps((__m128)a, (__m128)b); }
INLINE vf f_max(vf a, vf b) { return (vf)_mm_max_ps((__m128)a, (__m128)b); }
INLINE vf f_sqrt(vf a) { return (vf)_mm_sqrt_ps((__m128)a); }
INLINE vi f_trunc(vf a) { return (vi)_mm_cvttps_epi32((__m128)a); }
#else
INLINE vf f_min(vf a, vf b) { return f_select(a < b, a, b); }
INLINE vf f_max(vf a, vf b) { return f_select(a > b, a, b); }
INLINE vf f_sqrt(vf a) { return (vf){sqrtf(a[0]), sqrtf(a[1]), sqrtf(a[2]), sqrtf(a[3])}; }
INLINE vi f_trunc(vf a) {
    const vm fits = (a < 2147483648.0f) & (a >= -2147483648.0f);
    return i_select(fits, __builtin_convertvector((vf)((vi)a & fits), vi), i_set(INT32_MIN));
}
#endif
#endif
/* Above: f_min is `a < b ? a : b`, f_max is `a > b ? a : b`; f_rint rounds halves to even and wants |a| < 2^22;
 * f_trunc is x86's conversion to int, which gives INT32_MIN for what does not fit. */

/* `a`, or 0 where that is more, and `a` clamped to 0..high, for an `a` that is not NaN. Floats that are not negative
 * order as their bits do, and integer comparisons leave the adders to the sums. */
#if W > 4
INLINE vf f_positive(vf a) { return (vf)i_max((vi)a, i_set(0)); }
INLINE vf f_clamp_positive(vf a, float high) { return (vf)i_min((vi)f_positive(a), (vi)f_set(high)); }
#else
INLINE vf f_positive(vf a) { return f_max(a, f_set(0)); }
INLINE vf f_clamp_positive(vf a, float high) { return f_min(f_positive(a), f_set(high)); }
#endif

INLINE vi i_clamp(vi a, int32_t low, int32_t high) { return i_max(i_min(a, i_set(high)), i_set(low)); }

/* The integer nearest to `a` as ggml computes it: by adding 1.5 * 2^23 and reading the mantissa. Exact for
 * |a| <= 4194303, and beyond that, or for NaN, the same odd number as there. */
INLINE vi nearest(vf a) { return ((vi)(a + 12582912.0f) & 0x7fffff) - 0x400000; }

/* Up to this magnitude `nearest` is simply rounding, and f_rint may stand for it. */
#define NEAREST_MAX 4194303.0f

/* ---- half precision ---------------------------------------------------------------------------------------- */

/* fp16 bits of `a`, halves to even; every NaN becomes 0x7E00 with its sign. */
INLINE vu to_half(vf a) {
    const vu bits = (vu)a, sign = (bits >> 16) & 0x8000;
    const vf clipped = f_abs(a) * 0x1p+112f * 0x1p-110f; /* overflow becomes infinity, the rest is scaled by 4 */
    const vu exponent = (vu)i_max((vi)((bits << 1 >> 1) & 0x7f800000), i_set(0x38800000));
    const vu sum = (vu)((vf)(exponent + 0x07800000) + clipped); /* the addition rounds at fp16's last bit */
    const vu half = ((sum >> 13) & 0x7c00) + (sum & 0x0fff);
    const vm nan = m_not(f_eq(a, a));
    return sign | (vu)i_select(nan, i_set(0x7e00), (vi)half);
}

/* fp16 bits (upper 16 bits zero) as float; a NaN stays a NaN. */
INLINE vf from_half(vu h) {
    const vu sign = (h & 0x8000) << 16, magnitude = (h & 0x7fff) << 13;
    const vf scaled = (vf)magnitude * 0x1p+112f; /* exact, subnormals too */
    const vm special = i_lt(i_set(0x0f7fffff), (vi)magnitude);
    return (vf)(sign | (vu)i_select(special, (vi)(magnitude | 0x7f800000), (vi)scaled));
}

/* ---- loading ----------------------------------------------------------------------------------------------- */

INLINE int source_bytes(int source) { return source == TYPE_F32 ? 4 : 2; }

/* A vector from any address. GCC 12 takes a memcpy into an array of vectors through general registers. */
INLINE vi load(const uint8_t *from) {
    typedef vi loose __attribute__((aligned(1), may_alias));
    return *(const loose *)from;
}

/* W weights of a source, in order. */
INLINE vf load_source(int source, const uint8_t *from) {
    if (source == TYPE_F32)
        return (vf)load(from);
#if W == 16
    const __m256i h = _mm256_loadu_si256((const __m256i *)from);
    return source == TYPE_BF16 ? (vf)((vu)_mm512_cvtepu16_epi32(h) << 16) : (vf)_mm512_cvtph_ps(h);
#elif W == 8
    const __m128i h = _mm_loadu_si128((const __m128i *)from);
    return source == TYPE_BF16 ? (vf)((vu)_mm256_cvtepu16_epi32(h) << 16) : (vf)_mm256_cvtph_ps(h);
#else
    typedef uint16_t halves __attribute__((vector_size(2 * W)));
    halves h;
    memcpy(&h, from, sizeof h);
    const vu wide = __builtin_convertvector(h, vu);
    return source == TYPE_BF16 ? (vf)(wide << 16) : from_half(wide);
#endif
}

/* ---- transposing ------------------------------------------------------------------------------------------- */

/* Transposes r as a W x W matrix of 32-bit elements. */
INLINE void transpose(vi r[W]) {
#if W == 16
    __m512i t[16], s[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32((__m512i)r[i], (__m512i)r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32((__m512i)r[i], (__m512i)r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        s[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        s[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        s[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        s[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(s[i], s[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(s[i], s[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(s[i + 8], s[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(s[i + 8], s[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; i++) {
        r[i] = (vi)_mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = (vi)_mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
#elif W == 8
    __m256i t[8], s[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32((__m256i)r[i], (__m256i)r[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32((__m256i)r[i], (__m256i)r[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        s[i] = _mm256_unpacklo_epi64(t[i], t[i + 2]);
        s[i + 1] = _mm256_unpackhi_epi64(t[i], t[i + 2]);
        s[i + 2] = _mm256_unpacklo_epi64(t[i + 1], t[i + 3]);
        s[i + 3] = _mm256_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = (vi)_mm256_permute2x128_si256(s[i], s[i + 4], 0x20);
        r[i + 4] = (vi)_mm256_permute2x128_si256(s[i], s[i + 4], 0x31);
    }
#elif defined(WITH_SSE2)
    const __m128i a = _mm_unpacklo_epi32((__m128i)r[0], (__m128i)r[1]), b = _mm_unpackhi_epi32((__m128i)r[0], (__m128i)r[1]);
    const __m128i c = _mm_unpacklo_epi32((__m128i)r[2], (__m128i)r[3]), d = _mm_unpackhi_epi32((__m128i)r[2], (__m128i)r[3]);
    r[0] = (vi)_mm_unpacklo_epi64(a, c);
    r[1] = (vi)_mm_unpackhi_epi64(a, c);
    r[2] = (vi)_mm_unpacklo_epi64(b, d);
    r[3] = (vi)_mm_unpackhi_epi64(b, d);
#else
    const vi a = r[0], b = r[1], c = r[2], d = r[3];
    r[0] = (vi){a[0], b[0], c[0], d[0]};
    r[1] = (vi){a[1], b[1], c[1], d[1]};
    r[2] = (vi){a[2], b[2], c[2], d[2]};
    r[3] = (vi){a[3], b[3], c[3], d[3]};
#endif
}

/* ---- a tile: one block in every lane ----------------------------------------------------------------------- */

enum { MAX_BLOCK = 256, MAX_WORDS = 64 };

/* x[i] holds weight i of W blocks; words[k] the k-th 32-bit word of their encodings. Small blocks come in groups:
 * W times m of them, the second W blocks after the first in every array. sigma2 is for each group. */
struct tile {
    vf x[MAX_BLOCK];
    vf importance[MAX_BLOCK];
    vf sigma2[INTERLEAVE];
    vu words[MAX_WORDS];
};

/* Loads n weights (a multiple of 2 W) from each of W places, transposed. Returns bits that are nonzero
 * exactly when a weight is not finite: an exponent of all ones carries into the sign's place. */
INLINE vu load_f32(const uint8_t *const from[W], int n, vf *x) {
    vu carry = {0};
    for (int i = 0; i < n; i += W) {
        vi r[W];
        for (int lane = 0; lane < W; lane++)
            r[lane] = load(from[lane] + 4 * i);
        transpose(r);
        for (int k = 0; k < W; k++) {
            carry |= ((vu)r[k] & 0x7f800000) + 0x00800000;
            x[i + k] = (vf)r[k];
        }
    }
    return carry & 0x80000000;
}

/* The same for 16-bit sources: pairs of weights travel as one 32-bit element. */
INLINE vu load_bf16(const uint8_t *const from[W], int n, vf *x) {
    vu carry = {0};
    for (int i = 0; i < n; i += 2 * W) {
        vi r[W];
        for (int lane = 0; lane < W; lane++)
            r[lane] = load(from[lane] + 2 * i);
        transpose(r);
        for (int k = 0; k < W; k++) {
            carry |= ((vu)r[k] & 0x7f807f80) + 0x00800080;
            x[i + 2 * k] = (vf)((vu)r[k] << 16);
            x[i + 2 * k + 1] = (vf)((vu)r[k] & 0xffff0000);
        }
    }
    return carry & 0x80008000;
}

INLINE vu load_f16(const uint8_t *const from[W], int n, vf *x) {
    vu carry = {0};
    for (int i = 0; i < n; i += 2 * W) {
        vi r[W];
        for (int lane = 0; lane < W; lane++)
            r[lane] = load(from[lane] + 2 * i);
        transpose(r);
        for (int k = 0; k < W; k++) {
            carry |= ((vu)r[k] & 0x7c007c00) + 0x04000400;
            x[i + 2 * k] = from_half((vu)r[k] & 0xffff);
            x[i + 2 * k + 1] = from_half((vu)r[k] >> 16);
        }
    }
    return carry & 0x80008000;
}

INLINE vu load_weights(int source, const uint8_t *const from[W], int n, vf *x) {
    if (source == TYPE_BF16)
        return load_bf16(from, n, x);
    return source == TYPE_F16 ? load_f16(from, n, x) : load_f32(from, n, x);
}

/* Writes the first `lanes` encodings of `nbytes` bytes, one after the other. */
INLINE void store_words(const vu *words, int nbytes, int lanes, uint8_t *out) {
    vi rows[W][(MAX_WORDS + W - 1) / W];
    for (int first = 0; first * 4 < nbytes; first += W) {
        vi r[W] = {{0}};
        for (int k = 0; k < W && (first + k) * 4 < nbytes; k++)
            r[k] = (vi)words[first + k];
        transpose(r);
        for (int lane = 0; lane < W; lane++)
            rows[lane][first / W] = r[lane];
    }
    for (int lane = 0; lane < lanes; lane++)
        memcpy(out + (size_t)lane * nbytes, rows[lane], nbytes);
}

/* Where lane's block begins, and its importance: block `first + lane`, or the last one where there are no more. */
INLINE void point_lanes(const struct job *job, int n, int64_t first, int64_t blocks, const uint8_t *from[W],
                        const uint8_t *weighing[W]) {
    for (int lane = 0; lane < W; lane++) {
        const int64_t block = first + lane < blocks ? first + lane : blocks - 1;
        from[lane] = (const uint8_t *)job->rows + block * n * source_bytes(job->source);
        weighing[lane] = (const uint8_t *)(job->importance + block % (job->n_per_row / n) * n);
    }
}

/* The sum of squares of n weights, in order. */
INLINE vf sum_of_squares(const vf *x, int n) {
    vf sum = f_set(0);
    for (int i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sum;
}

/* The low 2 bits of 256 levels as 16 words: in each 128, byte i (0..31) has levels i, i + 32, i + 64, i + 96. */
INLINE void pack_2_bits(const vi *levels, vu *words) {
    for (int k = 0; k < 16; k++) {
        const vi *l = levels + 128 * (k / 8) + 4 * (k % 8);
        vi word = i_set(0);
        for (int b = 0; b < 4; b++)
            word |= ((l[b] & 3) | (l[b + 32] & 3) << 2 | (l[b + 64] & 3) << 4 | (l[b + 96] & 3) << 6) << 8 * b;
        words[k] = (vu)word;
    }
}

/* Puts each lane's entry of `mean`, one float a row, into sigma2. */
INLINE void point_means(const struct job *job, const float *mean, int n, int64_t first, int64_t blocks, vf *sigma2) {
    union lanes lanes;
    for (int lane = 0; lane < W; lane++) {
        const int64_t block = first + lane < blocks ? first + lane : blocks - 1;
        lanes.number[lane] = mean[block / (job->n_per_row / n)];
    }
    *sigma2 = lanes.f;
}

/* Encodes a job of blocks of n weights and nbytes bytes. `encode` gets a tile of m * W blocks with x, with importance
 * when the job has it, with sigma2 from `mean` (a value a row) when that is given, and fills words. Lanes past the
 * last block repeat it and are not stored. Returns what load_weights does: zeros if all weights are finite. */
INLINE vu encode_tiles(const struct job *job, int n, int nbytes, int m, const float *mean,
                       void (*encode)(struct tile *)) {
    const int64_t blocks = job->n_rows * (job->n_per_row / n);
    struct tile tile;
    vu special = {0};
    for (int64_t start = 0; start < blocks; start += m * W) {
        for (int u = 0; u < m; u++) {
            const uint8_t *from[W], *weighing[W];
            point_lanes(job, n, start + u * W, blocks, from, weighing);
            special |= load_weights(job->source, from, n, tile.x + n * u);
            if (job->importance)
                load_f32(weighing, n, tile.importance + n * u);
            if (mean)
                point_means(job, mean, n, start + u * W, blocks, &tile.sigma2[u]);
        }
        encode(&tile);
        for (int u = 0; u < m; u++) {
            const int64_t first = start + u * W, left = blocks - first;
            if (left > 0)
                store_words(tile.words + (nbytes + 3) / 4 * u, nbytes, left < W ? (int)left : W, job->out + first * nbytes);
        }
    }
    return special;
}

INLINE bool all_zero(vu a) { return !m_any(m_not(i_eq((vi)a, i_set(0)))); }

INLINE bool encode_blocks(const struct job *job, int n, int nbytes, int m, void (*encode)(struct tile *)) {
    return all_zero(encode_tiles(job, n, nbytes, m, NULL, encode));
}

#endif
