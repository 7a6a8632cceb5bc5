/* MXFP4: blocks of 32 weights, a power of two times 0, 0.5, 1, 1.5, 2, 3, 4 or 6 with a sign.
 *
 *   byte 0      exponent: the factor is 2^(e - 127)
 *        1..16  indices: byte i is weight i and, above it, weight i + 16; bit 3 is the sign
 */
#include "common.h"

/* floor(log2f(a)) for a > 0. Just below a power of two log2f may round up to it, as this machine's libm decides:
 * it is asked there, and for subnormals. */
INLINE vi floor_log2(vf a) {
    const union lanes lanes = {.f = a};
    vi exponent = ((vi)a >> 23) - 127;
    const vm unsure = i_lt(i_set(0x7ffeff), (vi)a & 0x7fffff) | i_lt((vi)a, i_set(0x00800000));
    if (m_any(unsure)) {
        union lanes exact = {.u = (vu)exponent};
        for (int lane = 0; lane < W; lane++)
            if (lanes.number[lane] > 0 && lanes.word[lane] < 0x7f800000)
                exact.word[lane] = (uint32_t)(int32_t)floorf(log2f(lanes.number[lane]));
        exponent = (vi)exact.u;
    }
    return exponent;
}

/* Half the factor of exponent byte e, 2^(e - 128): the values are stored doubled. */
INLINE vf half_factor(vi e) {
    const vi subnormal = i_select(i_eq(e, i_set(0)), i_set(0x00200000), i_set(0x00400000));
    return (vf)i_select(i_lt(e, i_set(2)), subnormal, (e - 1) << 23);
}

static void encode(struct tile *t) {
    static const float NEXT[7] = {1, 2, 3, 4, 6, 8, 12}, MIDDLE[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5, 7, 10};
    vf amax = f_set(0), threshold[7];
    for (int i = 0; i < 32; i++)
        amax = f_max(f_abs(t->x[i]), amax);
    const vm some = f_gt(amax, f_set(0));
    const vi e = i_select(some, floor_log2(amax) - 2 + 127, i_set(0)) & 255; /* a negative one wraps */
    const vf d = half_factor(e);
    for (int k = 0; k < 7; k++) { /* a value that overflows is never nearest */
        const vm finite = f_lt(f_set(NEXT[k]) * d, f_set(__builtin_inff()));
        threshold[k] = f_select(finite, f_set(MIDDLE[k]) * d, f_set(__builtin_inff()));
    }
    vi index[32];
    for (int i = 0; i < 32; i++) {
        const vf size = f_abs(t->x[i]);
        vi n = i_set(0);
        for (int k = 0; k < 7; k++)
            n += i_select(f_gt(size, threshold[k]), i_set(1), i_set(0));
        const vm negative = i_lt((vi)t->x[i], i_set(0)) & i_lt(i_set(0), n);
        index[i] = n + i_select(negative, i_set(8), i_set(0));
    }
    t->words[0] = (vu)e;
    for (int k = 0; k < 4; k++) {
        vi word = i_set(0);
        for (int b = 0; b < 4; b++)
            word |= index[4 * k + b] << 8 * b | index[16 + 4 * k + b] << (8 * b + 4);
        t->words[k] |= (vu)word << 8; /* one byte further */
        t->words[k + 1] = (vu)word >> 24;
    }
}

bool ISA(mxfp4)(const struct job *job) { return encode_blocks(job, 32, 17, 1, encode); }
