/* F32, F16 and BF16 from any of the three, halves to even. Rows that have the type already are copied. */
#include "common.h"

INLINE void store_16_bits(vu x, uint8_t *to) {
#if W == 16
    _mm256_storeu_si256((__m256i *)to, _mm512_cvtepi32_epi16((__m512i)x));
#elif W == 8
    const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)x, (__m256i)x), 0x08);
    _mm_storeu_si128((__m128i *)to, _mm256_castsi256_si128(pairs));
#else
    typedef uint16_t halves __attribute__((vector_size(2 * W)));
    const halves h = __builtin_convertvector(x, halves);
    memcpy(to, &h, sizeof h);
#endif
}

INLINE void store_as(int type, vf x, uint8_t *to) {
    const vu bits = (vu)x;
    if (type == TYPE_F32)
        memcpy(to, &x, sizeof x);
    else if (type == TYPE_F16)
#if W == 16
        _mm256_storeu_si256((__m256i *)to, _mm512_cvtps_ph((__m512)x, _MM_FROUND_TO_NEAREST_INT));
#elif W == 8
        _mm_storeu_si128((__m128i *)to, _mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT));
#else
        store_16_bits(to_half(x), to);
#endif
    else
        store_16_bits((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, to);
}

/* The carry of load_f32 and its kin: nonzero sign bits when a weight is not finite. */
INLINE vu not_finite(vf x) { return (((vu)x & 0x7f800000) + 0x00800000) & 0x80000000; }

INLINE bool convert(const struct job *job, int source, int type) {
    const int64_t n = job->n_rows * job->n_per_row, from_bytes = source_bytes(source), to_bytes = source_bytes(type);
    const uint8_t *from = job->rows;
    vu special = {0};
    int64_t i = 0;
    for (; i + W <= n; i += W) {
        const vf x = load_source(source, from + i * from_bytes);
        special |= not_finite(x);
        store_as(type, x, job->out + i * to_bytes);
    }
    if (i < n) {
        uint8_t in[4 * W] = {0}, out[4 * W];
        memcpy(in, from + i * from_bytes, (size_t)((n - i) * from_bytes));
        const vf x = load_source(source, in);
        special |= not_finite(x);
        store_as(type, x, out);
        memcpy(job->out + i * to_bytes, out, (size_t)((n - i) * to_bytes));
    }
    return all_zero(special);
}

INLINE bool convert_to(const struct job *job, int type) {
    if (job->source == TYPE_F32)
        return convert(job, TYPE_F32, type);
    return job->source == TYPE_F16 ? convert(job, TYPE_F16, type) : convert(job, TYPE_BF16, type);
}

bool ISA(f32)(const struct job *job) { return convert_to(job, TYPE_F32); }
bool ISA(f16)(const struct job *job) { return convert_to(job, TYPE_F16); }
bool ISA(bf16)(const struct job *job) { return convert_to(job, TYPE_BF16); }
