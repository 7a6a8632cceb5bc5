/* What the caller asks of an encoder, and the table each instruction set offers. Shared by all objects. */
#ifndef BOREALIS_JOB_H
#define BOREALIS_JOB_H

#include <stdbool.h>
#include <stdint.h>

/* Numbers of ggml: the source formats and the types that can be encoded. */
enum {
    TYPE_F32 = 0, TYPE_F16 = 1, TYPE_Q4_0 = 2, TYPE_Q4_1 = 3, TYPE_Q5_0 = 6, TYPE_Q5_1 = 7, TYPE_Q8_0 = 8,
    TYPE_Q2_K = 10, TYPE_Q3_K = 11, TYPE_Q4_K = 12, TYPE_Q5_K = 13, TYPE_Q6_K = 14,
    TYPE_IQ2_XXS = 16, TYPE_IQ2_XS = 17, TYPE_IQ3_XXS = 18, TYPE_IQ1_S = 19, TYPE_IQ4_NL = 20, TYPE_IQ3_S = 21,
    TYPE_IQ2_S = 22, TYPE_IQ4_XS = 23, TYPE_IQ1_M = 29, TYPE_BF16 = 30, TYPE_TQ1_0 = 34, TYPE_TQ2_0 = 35,
    TYPE_MXFP4 = 39, TYPE_COUNT = 40
};

/* Contiguous rows of F32, F16 or BF16 weights, and where their encoding goes. */
struct job {
    const void *rows;
    int source;              /* TYPE_F32, TYPE_F16 or TYPE_BF16 */
    int64_t n_rows;          /* at least 1 */
    int64_t n_per_row;       /* a multiple of the type's block */
    const float *importance; /* n_per_row finite values, or NULL */
    uint8_t *out;            /* n_rows encoded rows; nothing is written before or after them */
};

/* Encodes the whole job. False when a weight was NaN or infinite: what was written is then not to be used. */
typedef bool encoder(const struct job *);

/* rows [n_rows, n_per_row] += scale * up [n_rows, rank] @ down [rank, n_per_row]. */
typedef void low_rank(float *rows, const float *up, const float *down, int64_t n_rows, int64_t n_per_row, int64_t rank,
                      float scale);

/* Encoders by type, NULL where there is none. */
typedef encoder *const encoder_table[TYPE_COUNT];

#endif
