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
    int *distance;          /* of every point to the code at hand */
    uint32_t *neighbours;   /* grows */
    uint32_t used, room;
    int start[MAX_DISTANCE];
};

static int distance(const struct builder *b, int code, int point) {
    const int mask = (1 << b->bits) - 1;
    int sum = 0;
    for (int i = 0; i < b->dims; i++) {
        const int step = (code >> b->bits * i & mask) - (point >> b->bits * i & mask);
        sum += step * step;
    }
    return sum;
}

/* Appends the neighbours of `code`: all points at the `wanted` smallest distances, by distance and then by number, and
 * padding. Returns how many entries that is, or 0 without memory. */
static uint32_t append_neighbours(struct builder *b, int code) {
    memset(b->start, 0, sizeof b->start);
    for (int j = 0; j < b->n_points; j++)
        b->start[b->distance[j] = distance(b, code, b->points[j])]++;
    int n = 0, farthest = 0;
    for (int d = 0, have = 0; d < MAX_DISTANCE && have < b->wanted; d++) { /* counts become places */
        const int count = b->start[d];
        b->start[d] = n;
        n += count;
        have += count > 0;
        farthest = d;
    }
    const uint32_t padded = (n + NEIGHBOURS_AT_A_TIME - 1) / NEIGHBOURS_AT_A_TIME * NEIGHBOURS_AT_A_TIME;
    if (b->used + padded > b->room) {
        const uint32_t room = 2 * b->room + padded;
        uint32_t *more = realloc(b->neighbours, room * sizeof *more);
        if (!more)
            return 0;
        b->neighbours = more;
        b->room = room;
    }
    uint32_t *out = b->neighbours + b->used;
    for (int j = 0; j < b->n_points; j++)
        if (b->distance[j] <= farthest) {
            const uint32_t place = b->start[b->distance[j]]++;
            out[place] = place << 16 | b->points[j];
        }
    for (uint32_t k = n; k < padded; k++)
        out[k] = out[n - 1];
    b->used += padded;
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
    uint32_t *first = calloc(codes, sizeof *first);
    uint16_t *eights = calloc(codes, sizeof *eights);
    b.distance = malloc(n_points * sizeof *b.distance);
    if (!index || !first || !eights || !b.distance)
        goto fail;
    memset(index, -1, codes * sizeof *index);
    for (int j = 0; j < n_points; j++)
        index[points[j]] = (int16_t)j;
    for (int code = 0; code < codes; code++)
        if (index[code] < 0 && occurs(&b, code)) {
            first[code] = b.used;
            eights[code] = (uint16_t)(append_neighbours(&b, code) / NEIGHBOURS_AT_A_TIME);
            if (!eights[code])
                goto fail;
        }
    free(b.distance);
    lattices[type] = (struct lattice){index, first, eights, b.neighbours, points[0]};
    return 0;
fail:
    free(index);
    free(first);
    free(eights);
    free(b.distance);
    free(b.neighbours);
    return -1;
}
