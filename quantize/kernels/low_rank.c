/* rows += scale * up @ down. Every element is the sum of its products in the order of the rank, from zero, then scaled,
 * then added: the same bits for any number of rows and any width of vectors. */
#include "common.h"

enum { ROWS = 4, VECTORS = 2, COLUMNS = VECTORS * W };

/* COLUMNS of `height` rows (1 or ROWS); the sums stay in registers, `down` in the nearest cache for the next rows. */
INLINE void tile(float *rows, const float *up, const float *down, int64_t n_per_row, int64_t rank, float scale,
                 int height) {
    vf sums[ROWS][VECTORS] = {0};
    for (int64_t k = 0; k < rank; ++k)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            vf factor;
            memcpy(&factor, down + k * n_per_row + v * W, sizeof factor);
#pragma GCC unroll 4
            for (int i = 0; i < height; ++i)
                sums[i][v] += factor * up[i * rank + k];
        }
#pragma GCC unroll 4
    for (int i = 0; i < height; ++i)
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
            float *to = rows + i * n_per_row + v * W;
            vf weights;
            memcpy(&weights, to, sizeof weights);
            weights += sums[i][v] * scale;
            memcpy(to, &weights, sizeof weights);
        }
}

void ISA(add_product)(float *rows, const float *up, const float *down, int64_t n_rows, int64_t n_per_row, int64_t rank,
                      float scale) {
    int64_t at = 0;
    for (; at + COLUMNS <= n_per_row; at += COLUMNS) {
        int64_t i = 0;
        for (; i + ROWS <= n_rows; i += ROWS)
            tile(rows + i * n_per_row + at, up + i * rank, down + at, n_per_row, rank, scale, ROWS);
        for (; i < n_rows; ++i)
            tile(rows + i * n_per_row + at, up + i * rank, down + at, n_per_row, rank, scale, 1);
    }
    for (; at < n_per_row; ++at)
        for (int64_t i = 0; i < n_rows; ++i) {
            float sum = 0;
            for (int64_t k = 0; k < rank; ++k)
                sum += down[k * n_per_row + at] * up[i * rank + k];
            rows[i * n_per_row + at] += sum * scale;
        }
}
