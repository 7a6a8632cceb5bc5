/* Builds the point sets' tables: which codes are points, and each other code's nearest points. Not vectorised, and
 * compiled once. */
#include "lattice.h"

#include <stdlib.h>
#include <string.h>

#include "job.h"

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

enum { MAX_DISTANCE = 8 * 14 * 14 + 1 };

static struct lattice lattices[TYPE_COUNT];

const struct lattice *lattice_of(int type) { return lattices[type].index ? &lattices[type] : NULL; }

/* What is being built. Levels stand for the odd numbers 2 l + 1, so squared distances are multiples of 4. */
struct builder {
    int dims, bits, n_points, wanted;
    const uint16_t *points;
    int *distance;        /* of every point to the code at hand */
    int count[MAX_DISTANCE];
};

static int distance(const struct builder *b, int code, int point) {
    int sum = 0;
    for (int i = 0; i < b->dims; i++) {
        const int mask = (1 << b->bits) - 1;
        const int step = (code >> b->bits * i & mask) - (point >> b->bits * i & mask);
        sum += step * step;
    }
    return sum;
}

/* Writes the neighbours of `code`, or only counts them: all points at the `wanted` smallest distances, by distance and
 * then by number. Returns how many entries there are, padding included. */
static uint32_t list_neighbours(struct builder *b, int code, uint32_t *out) {
    memset(b->count, 0, sizeof b->count);
    for (int j = 0; j < b->n_points; j++)
        b->count[b->distance[j] = distance(b, code, b->points[j])]++;
    uint32_t n = 0;
    for (int d = 0, have = 0; d < MAX_DISTANCE && have < b->wanted; d++) {
        have += b->count[d] > 0;
        for (int j = 0; out && b->count[d] && j < b->n_points; j++)
            if (b->distance[j] == d)
                *out++ = n++ << 16 | b->points[j];
        n += out ? 0 : (uint32_t)b->count[d];
    }
    const uint32_t padded = (n + NEIGHBOURS_AT_A_TIME - 1) / NEIGHBOURS_AT_A_TIME * NEIGHBOURS_AT_A_TIME;
    for (; out && n < padded; n++, out++)
        *out = out[-1];
    return padded;
}

/* Whether every level of `code` is one that occurs (2-bit levels are 0, 1 and 2). */
static int occurs(const struct builder *b, int code) {
    for (int i = 0; i < b->dims && b->bits == 2; i++)
        if ((code >> 2 * i & 3) == 3)
            return 0;
    return 1;
}

/* Gives `type` its points: codes of `dims` levels of `bits` bits, in the order of their numbers. `wanted` is how many
 * different distances a list of neighbours covers. Returns 0, or -1 without memory. Not to be called while the type is
 * being encoded; a second call does nothing. */
EXPORT int borealis_set_lattice(int type, int dims, int bits, int wanted, const uint16_t *points, int n_points) {
    if (lattices[type].index)
        return 0;
    const int codes = 1 << dims * bits;
    struct builder b = {.dims = dims, .bits = bits, .n_points = n_points, .wanted = wanted, .points = points};
    int16_t *index = malloc(codes * sizeof *index);
    uint32_t *first = calloc(codes, sizeof *first), *neighbours = NULL, total = 0;
    uint16_t *eights = calloc(codes, sizeof *eights);
    b.distance = malloc(n_points * sizeof *b.distance);
    if (!index || !first || !eights || !b.distance)
        goto fail;
    memset(index, -1, codes * sizeof *index);
    for (int j = 0; j < n_points; j++)
        index[points[j]] = (int16_t)j;
    for (int code = 0; code < codes; code++)
        if (index[code] < 0 && occurs(&b, code)) {
            const uint32_t n = list_neighbours(&b, code, NULL);
            first[code] = total;
            eights[code] = (uint16_t)(n / NEIGHBOURS_AT_A_TIME);
            total += n;
        }
    neighbours = malloc((total ? total : 1) * sizeof *neighbours);
    if (!neighbours)
        goto fail;
    for (int code = 0; code < codes; code++)
        if (eights[code])
            list_neighbours(&b, code, neighbours + first[code]);
    free(b.distance);
    lattices[type] = (struct lattice){index, first, eights, neighbours};
    return 0;
fail:
    free(index);
    free(first);
    free(eights);
    free(b.distance);
    return -1;
}
