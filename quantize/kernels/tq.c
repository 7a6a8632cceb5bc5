/* TQ1_0 and TQ2_0: super-blocks of 256 weights, each -d, 0 or d.
 *
 *   TQ1_0  byte  0..31  five trits each: weights i, i + 32, … i + 128, the first most significant
 *               32..47  the same for the next 80 weights, 16 apart
 *               48..51  four trits each of the last 16, 4 apart
 *               52..53  d, fp16
 *   TQ2_0  byte  0..63  2 bits: in each 128 weights, byte i (0..31) has weights i, i + 32, i + 64, i + 96
 *               64..65  d, fp16
 *
 * A byte of trits is their number as a fraction of 243, times 256, rounded up.
 */
#include "common.h"

/* Levels 0, 1, 2 and the scale. Halves are rounded away from zero. */
INLINE vf to_levels(const vf *x, vi *levels) {
    vf d = f_set(0);
    for (int i = 0; i < 256; i++)
        d = f_max(d, f_abs(x[i]));
    const vf inverse = f_select(f_nonzero(d), f_set(1) / d, f_set(0));
    for (int i = 0; i < 256; i++) {
        const vf y = x[i] * inverse;
        const vi half = ((vi)y & INT32_MIN) | 0x3effffff; /* the float below 0.5, with y's sign */
        levels[i] = (f_trunc(y + (vf)half) + 1) & 3;      /* what overflows an int counts as 0 */
    }
    return d;
}

/* `count` trits, `step` apart, as a byte; a missing fifth is 0. */
INLINE vi trits(const vi *levels, int count, int step) {
    vi q = i_set(0);
    for (int n = 0; n < 5; n++)
        q = q * 3 + (n < count ? levels[n * step] : i_set(0));
    return (q * 256 + 242) * 17261 >> 22; /* the quotient by 243, exact for every byte */
}

static void encode_1(struct tile *t) {
    vi levels[256];
    const vf d = to_levels(t->x, levels);
    for (int k = 0; k < 13; k++) {
        vi word = i_set(0);
        for (int b = 0; b < 4; b++) {
            const int i = 4 * k + b;
            const vi byte = i < 32   ? trits(levels + i, 5, 32)
                            : i < 48 ? trits(levels + 160 + i - 32, 5, 16)
                                     : trits(levels + 240 + i - 48, 4, 4);
            word |= byte << 8 * b;
        }
        t->words[k] = (vu)word;
    }
    t->words[13] = to_half(d);
}

static void encode_2(struct tile *t) {
    vi levels[256];
    const vf d = to_levels(t->x, levels);
    pack_2_bits(levels, t->words);
    t->words[16] = to_half(d);
}

bool ISA(tq1_0)(const struct job *job) { return encode_blocks(job, 256, 54, 1, encode_1); }
bool ISA(tq2_0)(const struct job *job) { return encode_blocks(job, 256, 66, 1, encode_2); }
